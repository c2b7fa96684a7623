"""Places and times as vectors of sines and cosines."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts


class SinCosEmbedding(nn.Module):
    """[sin(x ω), cos(x ω)] of each axis, one axis after another, zeros up to the width.

    ω falls from 1 to nearly 1/10000, so coordinates (times: steps) should reach into the hundreds.

    Parameters
    ----------
    dim : int
        Width: at least 2 an axis.
    ndim : int
        Axes.

    Raises
    ------
    ValueError
        If a number breaks its rule.

    Source
    ------
    The authors' ``src/neural_dem``; Vaswani et al., arXiv 1706.03762, section 3.5.
    """

    waves: Tensor

    def __init__(self, dim: int, ndim: int) -> None:
        super().__init__()
        require_counts(dim=dim, ndim=ndim)
        each = dim // ndim // 2 * 2
        if each < 2:
            raise ValueError(f"dim={dim}: must be at least 2 for each of {ndim} axes; widen it")
        self.dim, self.ndim = dim, ndim
        numbers = torch.arange(each // 2, dtype=torch.float64)
        self.register_buffer("waves", 10000.0 ** (-2 * numbers / each), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, dim) for x (…, ndim), in x's dtype; angles are float64."""
        if x.shape[-1] != self.ndim:
            raise ValueError(f"x has shape {tuple(x.shape)}: must end in {self.ndim} coordinates")
        angle = x.double()[..., None] * self.waves.double()
        parts = torch.cat([angle.sin(), angle.cos()], -1).flatten(-2).to(x.dtype)
        return nn.functional.pad(parts, (0, self.dim - parts.shape[-1]))
