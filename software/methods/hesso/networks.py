"""The networks that the demo prunes, and a trap for whoever looks at magnitudes alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.hesso.attention import SelfAttention


def make_cnn() -> nn.Sequential:
    """Return two convolutions with BatchNorm and two linear layers, for digits: 112 groups."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


class ResidualCNN(nn.Module):
    """An addition, a concatenation, a depthwise convolution and flattening, for digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv1, self.norm1 = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.conv2, self.norm2 = nn.Conv2d(24, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.side = nn.Conv2d(16, 8, 1)
        self.depthwise, self.norm3 = (
            nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.BatchNorm2d(24)
        )  # fmt: skip
        self.hidden, self.head = nn.Linear(24 * 4, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (samples, 10) of pictures (samples, 1, 8, 8)."""
        h = functional.relu(self.norm(self.stem(x)))
        h = functional.relu(h + self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(h))))))
        h = torch.cat([functional.max_pool2d(h, 2), functional.avg_pool2d(self.side(h), 2)], 1)
        h = functional.max_pool2d(functional.relu(self.norm3(self.depthwise(h))), 2)
        logits: Tensor = self.head(functional.gelu(self.hidden(h.flatten(1))))
        return logits


class Transformer(nn.Module):
    """Digits read row by row by two blocks of `SelfAttention` and a perceptron."""

    def __init__(self, width: int = 32, heads: int = 4, by: str = "head") -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.attention = nn.ModuleList(SelfAttention(width, heads, by=by) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (samples, 10) of pictures (samples, 1, 8, 8)."""
        h = self.embed(x.flatten(1, 2))
        for i in range(2):
            h = h + self.attention[i](self.norms[2 * i](h))
            h = h + self.down[i](functional.gelu(self.up[i](self.norms[2 * i + 1](h))))
        logits: Tensor = self.head(self.norms[4](h).mean(1))
        return logits


TRAP_SCALE = 1e-3
_NEEDED, _IDLE, _COPIES, _INPUTS, _NOISE = 8, 8, 6, 16, 0.1


@dataclass(frozen=True)
class Trap:
    """A planted regression whose first layer is small by its scale, and needed.

    Attributes
    ----------
    model : nn.Sequential
        16 inputs; 16 units, of which 8 are each needed and 8 lead nowhere; 48 units, in sixfold
        copies; 8 outputs. The first layer is scaled by 1e-3, the second by 1e3: the function is
        that of the plain network.
    needed : torch.Tensor
        (16,) bool: units of the first layer.
    """

    model: nn.Sequential
    plain: nn.Sequential
    needed: Tensor

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return normal inputs and the plain network's outputs with noise of deviation 0.1."""
        x = torch.randn(count, _INPUTS, generator=generator)
        with torch.no_grad():
            y = self.plain(x)
        return x, y + _NOISE * torch.randn(y.shape, generator=generator)


def make_trap(seed: int) -> Trap:
    """Return a `Trap`, its units in random order."""
    generator = torch.Generator().manual_seed(seed)
    units, copies = _NEEDED + _IDLE, _NEEDED * _COPIES
    order = torch.randperm(units, generator=generator)
    first = torch.randn(units, _INPUTS, generator=generator) / _INPUTS**0.5
    second, third = torch.zeros(copies, units), torch.zeros(_NEEDED, copies)
    shuffled = torch.randperm(copies, generator=generator)
    for place, unit in enumerate(shuffled.tolist()):
        feature = place % _NEEDED
        second[unit, order[feature]] = 1 + 0.1 * torch.randn((), generator=generator)
        third[feature, unit] = 1 / _COPIES
    networks = []
    for scale in (1.0, TRAP_SCALE):
        network = nn.Sequential(
            nn.Linear(_INPUTS, units), nn.ReLU(), nn.Linear(units, copies), nn.ReLU(),
            nn.Linear(copies, _NEEDED),
        )  # fmt: skip
        with torch.no_grad():
            for layer, weight in zip(
                (0, 2, 4), (scale * first, second / scale, third), strict=True
            ):
                network[layer].weight.copy_(weight)  # type: ignore[union-attr, operator]
                network[layer].bias.zero_()  # type: ignore[union-attr, operator]
        networks.append(network)
    needed = torch.zeros(units, dtype=torch.bool)
    needed[order[:_NEEDED]] = True
    return Trap(networks[1], networks[0], needed)
