"""Unbiased pruning of gradients: a random choice whose mean is what was pruned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sat.layers.schemes import BDWP_WU, Scheme, register_scheme
from sat.sim.golden import sore
from sat.sparsity.pattern import Pattern

_ROUNDS = 16
"""As many as a group has elements: by then every share that is above 1 has been cut."""


def inclusion(x: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return how likely each element of groups is kept: min(1, c |x|), of each group N in all.

    The variance of an unbiased choice, the sum of x² (1 / p - 1), is least for these: p in
    proportion to magnitudes (Horvitz and Thompson, "A generalization of sampling without
    replacement from a finite universe", 1952, section 5), and for N = 1 they are those of MVUE
    (Chmiel et al., "Minimum variance unbiased N:M sparsity for the neural gradients", 2023,
    section 3).

    Parameters
    ----------
    x : (..., M) float64
        Finite.
    n : int
        1 to M.

    Returns
    -------
    (..., M) float64
        0 for zeros, unless a group has fewer than N others; its first ones are then kept.
    """
    size = np.abs(x)
    order = np.argsort(-size, axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1, kind="stable")
    sure = (rank < n) & ((size > 0).sum(-1, keepdims=True) <= n)
    free = ~sure.any(-1, keepdims=True) & np.ones(size.shape, bool)
    chance = sure.astype(np.float64)
    for _ in range(_ROUNDS):
        left = n - (chance * ~free).sum(-1, keepdims=True)
        weight = np.where(free, size, 0)
        total = weight.sum(-1, keepdims=True)
        share = np.divide(left * weight, total, out=np.zeros_like(weight), where=total > 0)
        above = free & (share >= 1)
        chance = np.where(free, np.minimum(share, 1), chance)
        if not above.any():
            break
        free &= ~above
    return chance


def draw(
    x: NDArray[np.float16], n: int, rng: np.random.Generator
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Return groups with each element divided by its chance, and which N of each are kept.

    By systematic sampling: chances laid end to end are met by a comb of step 1 that starts at
    random, so exactly N are.

    Parameters
    ----------
    x : (..., M) float16
        A group with a number that is not finite keeps its N largest, as they are.
    n : int
    rng : numpy.random.Generator
    """
    finite = np.isfinite(x).all(-1, keepdims=True)
    wide = np.where(finite, x, 0).astype(np.float64)
    chance = inclusion(wide, n)
    ends = np.cumsum(chance, axis=-1)
    # The last end is N but for rounding: the comb must not slip past it.
    ends = np.where(ends > n - 1e-9, n, ends)
    start = rng.random((*x.shape[:-1], 1))
    teeth = np.ceil(ends - start)
    kept = np.diff(teeth, axis=-1, prepend=0.0) > 0
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        grown = np.where(chance > 0, wide / chance, 0).astype(np.float16)
    largest = sore.mask(x, n, x.shape[-1], axis=-1) if n < x.shape[-1] else np.ones(x.shape, bool)
    return np.where(finite, grown, x), np.where(finite, kept, largest)


@dataclass(frozen=True)
class UnbiasedGradients(Scheme):
    """A scheme that prunes in WU by a draw whose mean is the dense gradient.

    What is kept is divided by its chance of being kept (`inclusion`), so WU's result is unbiased,
    and a large value may overflow FP16 where the dense gradient did not. Draws depend on the seed
    and on how many there were before; `sat.sparsify_` begins anew with the seed, for all layers of
    its module. Devices are sent what was drawn: they have no source of random numbers.

    Parameters
    ----------
    seed : int
    """

    seed: int = 0
    rng: np.random.Generator = field(init=False, repr=False, compare=False)

    draws = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rng", np.random.default_rng(self.seed))

    def restarted(self) -> UnbiasedGradients:
        """As `Scheme.restarted`: the seed's first draw is the next."""
        return replace(self)

    def select(
        self, x: NDArray[np.float16], pattern: Pattern, axis: int, stage: str
    ) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """As `Scheme.select`, but in WU drawn."""
        if stage != "WU":
            return super().select(x, pattern, axis, stage)
        n, m = pattern.n, pattern.m
        last = np.moveaxis(x, axis, -1)
        length = last.shape[-1]
        # A short last group is filled up with zeros, which are kept last of all.
        padded = np.zeros((*last.shape[:-1], -(-length // m) * m), np.float16)
        padded[..., :length] = last
        grown, kept = draw(padded.reshape(*last.shape[:-1], -1, m), n, self.rng)
        stored = pattern.kept(length)
        flat = kept.reshape(padded.shape)
        places = np.nonzero(flat)[-1].reshape(*last.shape[:-1], -1)[..., :stored]
        values = np.take_along_axis(grown.reshape(padded.shape), places, -1)
        indices = (places % m).astype(np.uint8)
        return (
            np.ascontiguousarray(np.moveaxis(values, -1, axis)),
            np.ascontiguousarray(np.moveaxis(indices, -1, axis)),
        )


register_scheme(
    UnbiasedGradients(
        "bdwp_mvue",
        "BDWP, and output gradients pruned in WU by an unbiased draw (Chmiel et al. 2023)",
        BDWP_WU,
    )
)
