"""What a matrix product is to the mapper: sizes, pattern, start values; never the numbers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum

from sat.rtl.config import M_CHOICES


class StartShape(Enum):
    """Start values of a product's sums."""

    ZERO = "zero"
    """+0 everywhere."""
    ROW = "row"
    """One value per column, for all rows: a bias."""
    MATRIX = "matrix"
    """One value per sum."""


@dataclass(frozen=True)
class Product:
    """C[rows, cols] = start + A[rows, depth] · B[depth, cols], B dense or N:M along the depth.

    Parameters
    ----------
    rows, cols, depth : int
        At least 1 each.
    n, m : int
        B's pattern; 1:1 is dense.
    start : StartShape
    count : int
        Products of a stack, one after the other in one program; 1 if there is no stack.

    Raises
    ------
    ValueError
        A size below 1, or a pattern that is none.
    """

    rows: int
    cols: int
    depth: int
    n: int = 1
    m: int = 1
    start: StartShape = StartShape.ZERO
    count: int = 1

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "depth", "count"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value}: a product has at least 1")
        if not ((self.n == self.m == 1) or (self.m in M_CHOICES and 1 <= self.n <= self.m)):
            raise ValueError(
                f"pattern {self.n}:{self.m}: N must be 1 to M and M one of {M_CHOICES}, "
                "or 1:1 for dense"
            )

    @functools.cached_property
    def _hash(self) -> int:
        sizes = self.rows, self.cols, self.depth, self.n, self.m, self.count
        return hash((*sizes, self.start.value))

    def __hash__(self) -> int:
        # Products are keys of every account.
        return self._hash

    @property
    def dense(self) -> bool:
        """Whether B has no pattern."""
        return self.m == 1

    @property
    def kept(self) -> int:
        """Stored values of a column of B: min(N, e) for each group of e elements."""
        return kept_values(self.depth, self.n, self.m)

    @property
    def macs(self) -> int:
        """Multiply-accumulates: count · rows · cols · stored depth."""
        return self.count * self.rows * self.cols * self.kept


def kept_values(depth: int, n: int, m: int) -> int:
    """Return how many of ``depth`` elements a pattern N:M stores; the last group may be short."""
    return n * (depth // m) + min(n, depth % m)
