"""Golden model of the weight update (WUVE) and of the two prunings that follow it.

For each weight w with momentum v and gradient g, all FP32, each operation rounded on its own:

    g1 = g * unscale                      1 / loss scale, as `torch.amp.GradScaler.unscale_`
    d  = g1 + decay * w                   decay_pruned for weights that FF prunes
    v' = momentum * v + d
    w' = w + (-learning_rate) * v'

A decay of 0 leaves its term out, a momentum of 0 makes v' = d: as `torch.optim.SGD` does, so that
neither an infinite weight nor the sign of a zero makes a difference. What torch leaves open:

* Its CPU kernels compute ``x + alpha * y`` with one rounding (a fused multiply-add) where they are
  vectorised, and with two elsewhere. The device rounds twice, as torch's arithmetic reads.
* Its first step copies the gradient into a momentum buffer that it did not have. Starting from
  v = 0, v' = momentum * 0 + d is the same but for d = -0, which becomes +0.

SR-STE (Zhou et al., ICLR 2021, equation 5) adds lambda * w to the gradient of pruned weights:
decay_pruned is the weight decay plus lambda.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sat.rtl.isa import Instruction
from sat.sim.golden import sore
from sat.sim.golden.fp import canonical_nan32, fp32_to_fp16

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Rates:
    """The numbers of an update, as bits of FP32: the fields of RATES."""

    learning_rate: int = 0
    momentum: int = 0
    decay: int = 0
    decay_pruned: int = 0
    unscale: int = 0

    @classmethod
    def of(cls, instruction: Instruction) -> Rates:
        """Return what a RATES sets."""
        return cls(*(getattr(instruction, field.name) for field in fields(cls)))

    def number(self, name: str) -> np.float32:
        """Return one of them as a number."""
        return np.uint32(getattr(self, name)).view(np.float32)


class Copy(NamedTuple):
    """A pruned copy: (lines, kept) float16 values and uint8 indices."""

    values: NDArray[np.float16]
    indices: NDArray[np.uint8]


class Updated(NamedTuple):
    """What an UPDATE makes of a tile: w and v (rows, columns) float32, and both copies."""

    w: Float32
    v: Float32
    ff: Copy
    bp: Copy


def _canonical(x: Float32) -> Float32:
    return canonical_nan32(np.ascontiguousarray(x).view(np.uint32)).view(np.float32)


def sgd(
    w: Float32, v: Float32, g: Float32, pruned: NDArray[np.bool_], rates: Rates
) -> tuple[Float32, Float32]:
    """Return w' and v'.

    Parameters
    ----------
    w, v, g : float32, any one shape
    pruned : bool, of that shape
        Which weights FF prunes.
    rates : Rates
    """
    with np.errstate(all="ignore"):
        g1 = _canonical(g * rates.number("unscale"))
        rate = np.where(pruned, rates.number("decay_pruned"), rates.number("decay"))
        term = _canonical(rate * w)
        d = np.where(rate == 0, g1, _canonical(g1 + term))
        momentum = rates.number("momentum")
        v_new = d if momentum == 0 else _canonical(_canonical(momentum * v) + d)
        step = _canonical(-rates.number("learning_rate") * v_new)
        return _canonical(w + step), v_new


def non_finite(g: Float32) -> int:
    """Return how many gradients are infinite or NaN."""
    return int(np.count_nonzero(~np.isfinite(g)))


def narrow(w: Float32) -> NDArray[np.float16]:
    """Return FP32 numbers rounded to FP16."""
    return fp32_to_fp16(np.ascontiguousarray(w).view(np.uint32)).view(np.float16)


def _prune(h: NDArray[np.float16], pattern: tuple[int, int], axis: int) -> Copy:
    """Return the compact form along an axis, lines first."""
    values, indices = sore.select(h, *pattern, axis=axis)
    if axis == 0:
        values, indices = values.T, indices.T
    return Copy(np.ascontiguousarray(values), np.ascontiguousarray(indices))


def update_tile(
    w: Float32,
    v: Float32,
    g: Float32,
    ff: tuple[int, int],
    bp: tuple[int, int],
    rates: Rates,
    skip: bool = False,
) -> Updated:
    """Return what UPDATE makes of a tile.

    Parameters
    ----------
    w, v, g : (rows, columns) float32
        Output channels by input channels.
    ff, bp : (int, int)
        Patterns N:M along the columns, along the rows.
    rates : Rates
    skip : bool
        Leave w and v as they are; the copies are made nevertheless.
    """
    if skip:
        w_new, v_new = w.copy(), v.copy()
    else:
        pruned = ~sore.mask(narrow(w), *ff, axis=1)
        w_new, v_new = sgd(w, v, g, pruned, rates)
    h = narrow(w_new)
    return Updated(w_new, v_new, _prune(h, ff, 1), _prune(h, bp, 0))
