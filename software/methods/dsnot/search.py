"""The exchange of kept and pruned weights, all rows of a layer at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sat.methods.dsnot.masks import (
    METHODS,
    require_pattern,
    require_statistics,
    require_weight,
    score,
)
from sat.methods.dsnot.statistics import ColumnStatistics

PAPER_CYCLES, PAPER_COLUMNS = 50, 4096
"""The authors' 50 exchanges a row belong to layers of 4096 inputs."""


@dataclass(frozen=True)
class DSnoTResult:
    """What `dsnot` did to a layer.

    Attributes
    ----------
    mask : torch.Tensor
        (outputs, inputs) bool, True where kept.
    swaps : torch.Tensor
        (outputs,) int64: exchanges made in each row.
    error_before, error_after : torch.Tensor
        (outputs,) float64: expected dense output minus sparse output, summed over a sample's
        tokens.
    """

    mask: Tensor
    swaps: Tensor
    error_before: Tensor
    error_after: Tensor


def scaled_cycles(inputs: int) -> int:
    """Return 50 exchanges for 4096 inputs, fewer or more in proportion, at least 1.

    The mean error falls with every exchange while its variance rises: on narrow layers 50 ruin a
    model.
    """
    return max(1, round(PAPER_CYCLES * inputs / PAPER_COLUMNS))


def dsnot(
    weight: Tensor,
    stats: ColumnStatistics,
    mask: Tensor,
    *,
    cycles: int | str = "scaled",
    threshold: float = 0.1,
    power: float = 1.0,
    same_sign: bool = True,
    n: int | None = None,
    m: int | None = None,
    initial: str = "wanda",
) -> DSnoTResult:
    """Exchange kept and pruned weights so that each row's expected output comes back.

    With ``D = W * total``, a row's error e is the sum of D over its pruned weights. While
    ``|e| > threshold``, at most ``cycles`` times:

    - *grow*: of the weights pruned at first, the one with the largest ``D / variance^power`` if
      e > 0, the smallest if e < 0; only those whose D has e's sign. Columns of variance 0 come
      last, in their order (``power > 0``).
    - *prune*: of the weights kept at first, those with D of the other sign, the one with the
      smallest ``|W| sqrt(norm2)``. N:M: of the grown weight's own group, whatever the sign, the
      one with the smallest ``initial`` score; a grow candidate whose group has none left is passed
      over, at no cycle.
    - e moves by D of the pruned minus D of the grown. If its sign would differ from that of the
      row's first error (``same_sign``; in N:M always), the row stops without the exchange.

    Each candidate is used once; a row stops for good where it finds none. The counts of kept
    weights, in rows and groups, do not change.

    Parameters
    ----------
    weight : torch.Tensor
        (outputs, inputs); it is not changed.
    stats : ColumnStatistics
        Of the layer's inputs.
    mask : torch.Tensor
        (outputs, inputs) bool, True where kept, as `initial_mask` returns it.
    cycles : int or str
        At least 1, or ``"scaled"``: `scaled_cycles`.
    threshold : float
        Not negative, in the unit of ``total``: outputs summed over a sample's tokens.
    power : float
        Not negative; 0 leaves the variance out.
    same_sign : bool
    n, m : int, optional
        Pattern of the mask, if it is N:M.
    initial : str
        Score that the mask came from: ``"magnitude"``, ``"wanda"``, ``"sparsegpt"``.

    Returns
    -------
    DSnoTResult

    Raises
    ------
    ValueError
        If an argument breaks its rule: statistics without samples or of another width, a mask of
        another shape or, with ``n, m``, pattern, NaNs.

    Source
    ------
    Zhang et al., "Dynamic Sparse No Training", ICLR 2024, arXiv 2310.08915; ``lib/prune.py`` of
    the authors, whose search goes on into kept weights where candidates are used up, and whose
    unstructured default leaves out the sign rule.
    """
    stats = _require(weight, stats, mask, cycles, threshold, power, initial)
    pattern = None
    if n is not None or m is not None:
        pattern = require_pattern(weight, n, m)
        _require_groups(mask, *pattern)
    limit = scaled_cycles(weight.shape[1]) if isinstance(cycles, str) else cycles
    wide = weight.detach().double()
    d = wide * stats.total
    error = (d * ~mask).sum(1)
    grow = _GrowOrders(d, stats.variance, power, mask)
    if pattern is None:
        victims: _RowVictims | _GroupVictims = _RowVictims(d, score(weight, stats, "wanda"), mask)
    else:
        victims = _GroupVictims(score(weight, stats, initial), mask, pattern[1])
        same_sign = True
    return _search(mask, d, error, grow, victims, limit, threshold, same_sign)


def _search(
    mask: Tensor, d: Tensor, before: Tensor, grow: _GrowOrders,
    victims: _RowVictims | _GroupVictims, limit: int, threshold: float, same_sign: bool,
) -> DSnoTResult:  # fmt: skip
    mask, error = mask.clone(), before.clone()
    swaps = torch.zeros(len(mask), dtype=torch.int64)
    active = error.abs() > threshold
    for _ in range(limit):
        rows = active.nonzero()[:, 0]
        if not len(rows):
            break
        positive = error[rows] > 0
        grown, found = grow.next(rows, positive, victims)
        pruned, there = victims.next(rows, positive, grown)
        moved = error[rows] + d[rows, pruned] - d[rows, grown]
        good = found & there
        if same_sign:
            good &= moved.sign() == before[rows].sign()
        active[rows[~good]] = False
        rows, grown, pruned = rows[good], grown[good], pruned[good]
        mask[rows, grown] = True
        mask[rows, pruned] = False
        error[rows] = moved[good]
        swaps[rows] += 1
        active &= error.abs() > threshold
    return DSnoTResult(mask, swaps, before, error)


def _order(keys: Tensor, chosen: Tensor, descending: bool) -> tuple[Tensor, Tensor]:
    """Return the places of a row's chosen keys in order, the others after them; and how many.

    Descending is ascending read from its end: of equal keys the last comes first.
    """
    if descending:
        last = keys.shape[1] - 1
        turned, count = _order(-keys.flip(1), chosen.flip(1), False)
        return last - turned, count
    order = keys.masked_fill(~chosen, math.inf).sort(dim=1, stable=True).indices
    return order, chosen.sum(1)


class _TwoOrders:
    """For each row two lists of columns, one for either sign of the error, each with a pointer."""

    def __init__(self, lists: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        orders, counts = zip(*lists, strict=True)
        self.orders, self.counts = torch.stack(orders), torch.stack(counts)
        self.pointers = torch.zeros_like(self.counts)

    def take(self, rows: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next column of each row's list, and whether there was one."""
        at = self.pointers[sign, rows]
        there = at < self.counts[sign, rows]
        columns = self.orders[sign, rows, at.clamp(max=self.orders.shape[2] - 1)]
        self.pointers[sign, rows] = at + 1
        return columns, there


class _GrowOrders(_TwoOrders):
    """Pruned weights: falling keys where the error is positive, rising where it is negative."""

    def __init__(self, d: Tensor, variance: Tensor, power: float, mask: Tensor) -> None:
        keys = d
        if power:
            divisor = variance**power
            keys = torch.where(divisor > 0, d / divisor.where(divisor > 0, 1), 0)
        super().__init__(
            (_order(keys, ~mask & (d < 0), False), _order(keys, ~mask & (d > 0), True))
        )

    def next(
        self, rows: Tensor, positive: Tensor, victims: _RowVictims | _GroupVictims
    ) -> tuple[Tensor, Tensor]:
        sign = positive.long()
        columns, there = self.take(rows, sign)
        while True:
            again = there & ~victims.left(rows, columns)
            if not bool(again.any()):
                return columns, there
            columns[again], there[again] = self.take(rows[again], sign[again])


class _RowVictims(_TwoOrders):
    """Kept weights of the sign that the error has not, smallest Wanda score first."""

    def __init__(self, d: Tensor, scores: Tensor, mask: Tensor) -> None:
        super().__init__(
            (_order(scores, mask & (d > 0), False), _order(scores, mask & (d < 0), False))
        )

    def left(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return whether a candidate may be grown: here always."""
        return torch.ones_like(rows, dtype=torch.bool)

    def next(self, rows: Tensor, positive: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        return self.take(rows, positive.long())


class _GroupVictims:
    """Kept weights of each group of m, smallest initial score first; a pointer a group."""

    def __init__(self, scores: Tensor, mask: Tensor, m: int) -> None:
        groups = scores.masked_fill(~mask, math.inf).view(len(mask), -1, m)
        self.m = m
        self.orders = groups.sort(dim=-1, stable=True).indices
        self.counts = mask.view(groups.shape).sum(-1)
        self.pointers = torch.zeros_like(self.counts)

    def left(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return whether the groups of columns have a weight left to prune."""
        groups = columns // self.m
        return self.pointers[rows, groups] < self.counts[rows, groups]

    def next(self, rows: Tensor, positive: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        groups = grown // self.m
        there = self.left(rows, grown)
        at = self.pointers[rows, groups].clamp(max=self.m - 1)
        self.pointers[rows, groups] += 1
        return groups * self.m + self.orders[rows, groups, at], there


def _require(
    weight: Tensor, stats: ColumnStatistics, mask: Tensor, cycles: int | str, threshold: float,
    power: float, initial: str,
) -> ColumnStatistics:  # fmt: skip
    require_weight(weight)
    stats = require_statistics(weight, stats)
    stats.require_samples()
    if mask.shape != weight.shape or mask.dtype is not torch.bool:
        raise ValueError(
            f"mask is {tuple(mask.shape)} of {mask.dtype}: must be bool of weight's shape "
            f"{tuple(weight.shape)}; make it with initial_mask"
        )
    whole = isinstance(cycles, int) and not isinstance(cycles, bool)
    if cycles != "scaled" and not (whole and int(cycles) >= 1):
        raise ValueError(
            f"cycles={cycles!r}: must be an int of at least 1, or 'scaled'; leave it out for that"
        )
    for name, value in (("threshold", threshold), ("power", power)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: must be finite and not negative; raise it")
    if initial not in METHODS:
        raise ValueError(f"initial={initial!r}: must be one of {', '.join(METHODS)}; choose one")
    return stats


def _require_groups(mask: Tensor, n: int, m: int) -> None:
    kept = mask.view(len(mask), -1, m).sum(-1)
    if bool((kept != n).any()):
        row, group = (kept != n).nonzero()[0].tolist()
        raise ValueError(
            f"mask keeps {int(kept[row, group])} of group {group} in row {row}: must keep {n} of "
            f"every {m}; make it with initial_mask(..., n={n}, m={m})"
        )


def output_error(weight: Tensor, mask: Tensor, x: Tensor) -> tuple[float, float]:
    """Return the mean square error of a masked layer's outputs in two parts.

    Parameters
    ----------
    weight, mask
        As `dsnot`.
    x : torch.Tensor
        (..., inputs): tokens.

    Returns
    -------
    mean_part : float
        Mean over outputs of the squared mean over tokens of the error: what exchanges repair.
    variance_part : float
        Mean over outputs of its variance over tokens. Both add up to the mean square error.

    Raises
    ------
    ValueError
        If shapes do not fit, or there is no token.
    """
    require_weight(weight)
    if mask.shape != weight.shape or mask.dtype is not torch.bool:
        raise ValueError(
            f"mask is {tuple(mask.shape)}: must be bool of shape {tuple(weight.shape)}"
        )
    if x.shape[-1:] != weight.shape[1:] or not x.numel():
        raise ValueError(
            f"x is {tuple(x.shape)}: must be (..., {weight.shape[1]}) with at least one token"
        )
    left_out = weight.detach() * ~mask
    error = (x.detach().reshape(-1, x.shape[-1]) @ left_out.mT).double()
    return float(error.mean(0).square().mean()), float(error.var(0, unbiased=False).mean())
