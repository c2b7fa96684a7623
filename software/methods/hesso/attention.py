"""Self-attention whose heads, or channels of heads, can be cut out."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Attention over a sequence, with as many heads and channels a head as are asked for.

    Its scale is that of the channels it was made with, so that cutting some changes nothing else.

    Parameters
    ----------
    width, heads : int
        Channels, which ``heads`` divides.
    by : str
        What one group is: ``"head"``, a whole head of query, key and value, or ``"channel"``, the
        same channel of all heads (heads keep equal sizes).

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width``, or ``by`` is another.
    """

    def __init__(self, width: int, heads: int, *, by: str = "head") -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width}: must be a multiple of heads={heads}; change either")
        if by not in ("head", "channel"):
            raise ValueError(f"by={by!r}: must be 'head' or 'channel'; choose one")
        self.heads, self.by = heads, by
        self.scale = 1 / math.sqrt(width // heads)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, width) for the same."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return y
