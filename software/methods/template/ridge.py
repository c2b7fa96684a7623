"""The method itself: plain PyTorch that knows no device."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Ridge(nn.Module):
    """Linear regression with a penalty on the squares of the weights.

    Parameters
    ----------
    dim : int
        Inputs, at least 1.
    penalty : float
        Weight of the penalty; not negative.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Hoerl and Kennard 1970, section 2.
    """

    def __init__(self, dim: int, penalty: float = 0.1) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim={dim!r}: must be an int of at least 1")
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty={penalty}: must be finite and not negative")
        self.penalty = penalty
        self.weight = nn.Parameter(torch.zeros(dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions (samples, 1) for x (samples, dim)."""
        return x @ self.weight

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error of y (samples, 1), with the penalty."""
        return (self(x) - y).square().mean() + self.penalty * self.weight.square().sum()
