"""Fields with mean 0 and deviation 1 at every point, by statistics of the training set."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FieldNormalizer(nn.Module):
    """Pointwise normalisation; fit it on training fields alone.

    Parameters
    ----------
    x : torch.Tensor
        (samples, …) real, at least two samples.
    eps : float
        Added to the deviation, so that points that never vary (an edge) stay finite.

    Raises
    ------
    ValueError
        If there are fewer than two samples, ``eps`` is not positive, or x is complex.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, x: Tensor, eps: float = 1e-5) -> None:
        super().__init__()
        if x.ndim < 2 or len(x) < 2:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: must have at least 2 samples, of at least one "
                "point; a deviation takes two"
            )
        if x.is_complex():
            raise ValueError(f"x is {x.dtype}: must be real; give its parts as channels")
        if not eps > 0:
            raise ValueError(f"eps={eps}: must be positive, or a constant point divides by 0")
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("deviation", torch.std(x, 0) + eps)

    def encode(self, x: Tensor) -> Tensor:
        """Return (x - mean) / deviation for x (batch, …)."""
        return (x - self.mean) / self.deviation

    def decode(self, x: Tensor) -> Tensor:
        """Return x · deviation + mean: undo `encode`."""
        return x * self.deviation + self.mean
