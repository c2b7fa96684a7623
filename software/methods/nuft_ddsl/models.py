"""Networks on rasters of meshes: one for shapes in the plane, one for bodies in space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.nuft_ddsl.layers import SimplexRaster
from sat.methods.problems.arguments import require_counts


class _OverRaster(nn.Module, ABC):
    """A network over the raster of a mesh: ``raster`` and `logits` are a subclass's."""

    raster: SimplexRaster

    def forward(self, vertices: Tensor, elements: Tensor, densities: Tensor) -> Tensor:
        """Return logits (meshes, classes) of vertices (meshes, n, d)."""
        return self.classify(self.raster(vertices, elements, densities))

    def classify(self, rasters: Tensor) -> Tensor:
        """Return logits (meshes, classes) of rasters (meshes, res, …, inputs)."""
        return self.logits(rasters.movedim(-1, 1).to(next(self.parameters()).dtype))

    @abstractmethod
    def logits(self, pictures: Tensor) -> Tensor:
        """Return logits (meshes, classes) of pictures (meshes, inputs, res, …)."""


class SpectralLeNet(_OverRaster):
    """Convolutions and pooling over the raster of a plane mesh, then dense layers.

    Parameters
    ----------
    classes : int
    res : int
        Pixels an axis of the raster; each convolution halves them as long as they are even.
    inputs : int
        Channels of densities.
    channels : sequence of int
        Of the 3 x 3 convolutions, each with batch normalisation.
    hidden : int
        Width of the dense layer.
    j : int, optional
        As for `simplex_ft`: 2 fills boundaries.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        classes: int,
        res: int,
        inputs: int = 1,
        channels: Sequence[int] = (16, 32, 64),
        hidden: int = 64,
        j: int | None = None,
    ) -> None:
        super().__init__()
        require_counts(classes=classes, res=res, inputs=inputs, hidden=hidden)
        self.raster = SimplexRaster(res, j=j)
        layers: list[nn.Module] = []
        width = inputs
        for channel in channels:
            require_counts(channel=channel)
            layers += [nn.Conv2d(width, channel, 3, padding=1), nn.BatchNorm2d(channel), nn.ReLU()]
            if res % 2 == 0:
                layers.append(nn.MaxPool2d(2))
                res //= 2
            width = channel
        layers += [nn.Flatten(), nn.Linear(width * res**2, hidden), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Linear(hidden, classes))

    def logits(self, pictures: Tensor) -> Tensor:
        """Return logits (meshes, classes) of pictures (meshes, inputs, res, res)."""
        made: Tensor = self.network(pictures)
        return made


class ResidualBlock3d(nn.Module):
    """Two 3 x 3 x 3 convolutions and what passes them by."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(before, after, 3, stride, padding=1, bias=False)
        self.second = nn.Conv3d(after, after, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm3d(after) for _ in range(2))
        self.past: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.past = nn.Conv3d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, after, …) of (batch, before, …)."""
        inner = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.norms[1](self.second(inner)) + self.past(x))


class SpectralResNet3d(_OverRaster):
    """A residual network over the raster of points, lines, surfaces or bodies in space.

    Parameters
    ----------
    classes, res, inputs
        As for `SpectralLeNet`.
    channels : sequence of int
        Of the residual blocks; all but the first halve their pixels.
    j : int, optional
        As for `simplex_ft`: 3 fills closed surfaces.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        classes: int,
        res: int,
        inputs: int = 1,
        channels: Sequence[int] = (16, 32, 64),
        j: int | None = None,
    ) -> None:
        super().__init__()
        require_counts(classes=classes, res=res, inputs=inputs, blocks=len(channels))
        self.raster = SimplexRaster(res, j=j)
        widths = [channels[0], *channels]
        self.stem = nn.Conv3d(inputs, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock3d(before, after, 1 if place == 0 else 2)
                for place, (before, after) in enumerate(zip(widths, widths[1:], strict=False))
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def logits(self, pictures: Tensor) -> Tensor:
        """Return logits (meshes, classes) of pictures (meshes, inputs, res, res, res)."""
        features = self.blocks(functional.relu(self.stem(pictures)))
        made: Tensor = self.head(torch.flatten(features, 2).mean(-1))
        return made
