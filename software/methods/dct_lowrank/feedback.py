"""What a projection leaves out, kept for the next step in few bits."""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (4, 8)


def encode(x: Tensor, bits: int) -> dict[str, Tensor]:
    """Round a matrix to uniform codes between each row's least and greatest number.

    255 steps a row in 8 bits, 15 in 4; to the nearest, so that the error is at most half a step
    of its row. A row of one value keeps it.

    Parameters
    ----------
    x : torch.Tensor
        (rows, cols), finite.
    bits : int
        4 or 8.

    Returns
    -------
    dict of str to torch.Tensor
        ``"codes"``: uint8, two numbers a byte in 4 bits, the first in the low half; ``"low"`` and
        ``"step"``: (rows, 1), the value of code 0 and the distance of neighbours.

    Raises
    ------
    ValueError
        If ``bits`` is neither.
    """
    if bits not in BITS:
        raise ValueError(f"bits={bits!r}: must be 4 or 8; choose one")
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    codes = ((x - low) / step.where(step > 0, 1)).round().clamp(0, 2**bits - 1).to(torch.uint8)
    if bits == 4:
        flat = torch.nn.functional.pad(codes.flatten(), (0, codes.numel() % 2))
        codes = flat[::2] | (flat[1::2] << 4)
    return {"codes": codes, "low": low, "step": step}


def decode(saved: dict[str, Tensor], cols: int) -> Tensor:
    """Return the matrix (rows, cols) that `encode` rounded, of its dtype."""
    codes, rows = saved["codes"], len(saved["low"])
    if codes.ndim == 1:
        codes = torch.stack([codes & 15, codes >> 4], 1).flatten()[: rows * cols]
    return saved["low"] + codes.view(rows, cols) * saved["step"]
