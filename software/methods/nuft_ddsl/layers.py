"""Modules: a mesh's spectrum, and its anti-aliased raster."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sat.methods.nuft_ddsl.transform import MODES, simplex_ft


class SimplexFT(nn.Module):
    """The spectrum of a mesh, as `simplex_ft` computes it.

    Parameters
    ----------
    res, period, j, mode, elem_batch
        As for `simplex_ft`.

    Raises
    ------
    ValueError
        If there is no such mode.
    """

    def __init__(
        self,
        res: int | Sequence[int],
        period: float | Sequence[float] = 1.0,
        j: int | None = None,
        mode: str = "density",
        elem_batch: int = 100,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
        self.res, self.period, self.j = res, period, j
        self.mode, self.elem_batch = mode, elem_batch

    def forward(self, vertices: Tensor, elements: Tensor, densities: Tensor) -> Tensor:
        """Return (…, res[0], …, res[-1] // 2 + 1, channels) complex128."""
        return simplex_ft(
            vertices, elements, densities, self.res, self.period, self.j, self.mode, self.elem_batch
        )


class SimplexRaster(SimplexFT):
    """A mesh as a picture: its spectrum, smoothed, transformed back.

    Parameters
    ----------
    res, period, j, mode, elem_batch
        As for `simplex_ft`. Pixel i of an axis is the value at i · period / res.
    smoothing : {"gaussian", "none"}
        Whether modes m are multiplied by ``exp(-(2 sigma |m / res|)² / 2)``, against ringing.
    sigma : float
        Deviations of the Gaussian at the highest frequency, finite and not negative.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Jiang et al. 2019, arXiv 1901.11082, and its released code.
    """

    def __init__(
        self,
        res: int | Sequence[int],
        period: float | Sequence[float] = 1.0,
        j: int | None = None,
        mode: str = "density",
        elem_batch: int = 100,
        *,
        smoothing: str = "gaussian",
        sigma: float = 2.0,
    ) -> None:
        super().__init__(res, period, j, mode, elem_batch)
        if smoothing not in ("gaussian", "none"):
            raise ValueError(f"smoothing={smoothing!r}: must be 'gaussian' or 'none'")
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma={sigma}: must be finite and not negative; 2 is the paper's")
        self.smoothing, self.sigma = smoothing, sigma

    def forward(self, vertices: Tensor, elements: Tensor, densities: Tensor) -> Tensor:
        """Return (…, res[0], …, res[-1], channels) float64."""
        spectrum = super().forward(vertices, elements, densities)
        dim = vertices.shape[-1]
        sizes = [self.res] * dim if isinstance(self.res, int) else list(self.res)
        axes = tuple(range(-dim - 1, -1))
        if self.smoothing == "gaussian":
            squares = torch.zeros((), dtype=torch.float64)
            for axis, n in enumerate(sizes):
                last = axis == dim - 1
                numbers = torch.fft.rfftfreq if last else torch.fft.fftfreq
                squares = squares[..., None] + numbers(n, dtype=torch.float64).square()
            spectrum = spectrum * torch.exp(-2 * self.sigma**2 * squares)[..., None]
        return torch.fft.irfftn(spectrum, s=sizes, dim=axes)
