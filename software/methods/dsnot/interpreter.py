"""DSnoT's rules for one row in plain Python, one candidate after another.

What `sat.methods.dsnot.search` is judged by: it shares no code with it, and sorts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def exchange_row(
    weights: Sequence[float],
    total: Sequence[float],
    variance: Sequence[float],
    norm2: Sequence[float],
    kept: Sequence[bool],
    *,
    cycles: int,
    threshold: float = 0.1,
    power: float = 1.0,
    same_sign: bool = True,
    m: int | None = None,
    scores: Sequence[float] = (),
) -> tuple[list[bool], int, float, float]:
    """Return a row's mask, how many exchanges led to it, and the errors before and after.

    Parameters
    ----------
    weights, total, variance, norm2 : sequence of float
        (inputs,): the row and its inputs' statistics.
    kept : sequence of bool
        (inputs,): the mask at first.
    cycles, threshold, power, same_sign
        As `sat.methods.dsnot.dsnot`.
    m : int, optional
        Size of groups, if the mask is N:M; ``scores`` are the initial ones then.
    """
    columns = range(len(weights))
    d = [weights[j] * total[j] for j in columns]
    error = first = math.fsum(d[j] for j in columns if not kept[j])
    mask, used, swaps = list(kept), set(), 0

    def free(j: int, wanted: bool) -> bool:
        """Return whether a weight was kept (or pruned) at first and not used since."""
        return kept[j] == wanted and j not in used

    def worth(j: int) -> float:
        if not power:
            return abs(d[j])
        return abs(d[j]) / variance[j] ** power if variance[j] > 0 else 0.0

    for _ in range(cycles):
        if abs(error) <= threshold:
            break
        sign = 1 if error > 0 else -1
        grows = [j for j in columns if free(j, False) and d[j] * sign > 0]
        if m is not None:
            grows = [
                j for j in grows if any(free(k, True) and k // m == j // m for k in columns)
            ]  # fmt: skip
        if not grows:
            break
        # Of equal ones the last for a positive error, the first for a negative one.
        grown = max(grows, key=lambda j: (worth(j), sign * j))
        used.add(grown)
        if m is None:
            victims = [j for j in columns if free(j, True) and d[j] * sign < 0]
            value = [abs(w) * math.sqrt(n) for w, n in zip(weights, norm2, strict=True)]
        else:
            victims = [j for j in columns if free(j, True) and j // m == grown // m]
            value = list(scores)
        if not victims:
            break
        pruned = min(victims, key=lambda j: (value[j], j))
        used.add(pruned)
        after = error + d[pruned] - d[grown]
        if same_sign and (after > 0) - (after < 0) != (first > 0) - (first < 0):
            break
        mask[grown], mask[pruned] = True, False
        error, swaps = after, swaps + 1
    return mask, swaps, first, error
