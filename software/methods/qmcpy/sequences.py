"""Point sets in [0, 1)^d with independent randomizations: lattices, digital nets, Halton's."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from sat.methods.problems.arguments import require_counts
from sat.methods.qmcpy.digits import (
    FLOAT_BITS,
    MAX_BASE,
    MAX_BITS,
    digit_product,
    from_digits,
    gray,
    interlace,
    linear_matrix_scramble,
    nested_scramble,
    require_power,
    reverse_bits,
    to_digits,
)

KUO = (
    1, 182667, 213731, 255351, 96013, 116671, 479315, 424089, 271103, 464421, 124483, 230887,
    392877, 162965, 109125, 168491,
)  # fmt: skip
"""First components of kuo.lattice-33002-1024-1048576.9125, extensible up to 2^20 points."""
CHUNK = 2**22
"""Digits that are computed at a time."""
TINY = 2.0**-FLOAT_BITS


class PointSequence(ABC):
    """What all sequences share: how points are asked for.

    Parameters
    ----------
    dim : int
        d.
    n_max : int
        Points there are.
    orders, order : str
        Those there are, and the one of this sequence.
    randomizations : tuple
        Those there are; None is the sequence as it is.
    randomize : str or None
    """

    def __init__(
        self,
        dim: int,
        n_max: int,
        orders: tuple[str, ...],
        order: str,
        randomizations: tuple[str | None, ...],
        randomize: str | None,
    ) -> None:
        require_counts(dim=dim, n_max=n_max)
        for name, value, allowed in (
            ("order", order, orders), ("randomize", randomize, randomizations),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(str, allowed))}")
        self.dim = dim
        self.n_max = n_max
        self.order = order
        self.randomize = randomize

    def sample(
        self, n: int, replications: int = 1, start: int = 0, seed: int = 0, digits: bool = False
    ) -> Tensor:
        """Return points of independent randomizations of one point set.

        Parameters
        ----------
        n : int
            Points. In radical order, ``start`` is 0 or a power of two, and so is ``start + n``.
        replications : int
            R.
        start : int
            Index of the first; the points of a seed are the same whichever part is asked for.
        seed : int
        digits : bool
            Whether to return integers, base^t times the points.

        Returns
        -------
        torch.Tensor
            (R, n, d) float64 in [0, 1), or int64.

        Raises
        ------
        ValueError
            If an argument breaks its rule.
        """
        require_counts(n=n, replications=replications)
        if not isinstance(start, int) or start < 0:
            raise ValueError(f"start={start!r}: must be an int of at least 0")
        if start + n > self.n_max:
            raise ValueError(f"start + n = {start + n}: must be at most n_max={self.n_max}")
        if self.order == "radical":
            require_power("start + n", start + n)
            if start:
                require_power("start", start)
        if self.randomize is None and replications > 1:
            raise ValueError(
                f"replications={replications} with randomize=None: they would all be equal; choose "
                "a randomization"
            )
        generator = torch.Generator().manual_seed(seed)
        return self._points(torch.arange(start, start + n), replications, generator, digits)

    @abstractmethod
    def _points(
        self, index: Tensor, replications: int, generator: torch.Generator, digits: bool
    ) -> Tensor:
        """Return the points of numbers ``index`` (n,), as `points` does."""


class Lattice(PointSequence):
    """A rank-1 lattice, shifted: frac(v(i) z + shift), v the radical inverse in base 2.

    Parameters
    ----------
    dim : int
        d.
    n_max : int
        Points, a power of two, at most 2^31.
    generating_vector : sequence of int, optional
        z, at least d. Kuo's extensible one of 16 components if not given, up to 2^20 points;
        `cbc_lattice` makes others.
    randomize : {"shift", None}
    order : {"radical", "linear", "gray"}
        v(i); i / n, the same points in order along the lattice, all n at once; or v of i's Gray
        code.

    Raises
    ------
    TypeError
        If a component of ``generating_vector`` is no integer.
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        dim: int,
        n_max: int = 2**20,
        generating_vector: Sequence[int] | None = None,
        randomize: str | None = "shift",
        order: str = "radical",
    ) -> None:
        super().__init__(
            dim, n_max, ("radical", "linear", "gray"), order, ("shift", None), randomize
        )
        self.bits = require_power("n_max", n_max)
        z = KUO if generating_vector is None else generating_vector
        if self.bits > 31 or (generating_vector is None and self.bits > 20):
            raise ValueError(f"n_max={n_max}: must be at most 2^31, 2^20 with the vector built in")
        if dim > len(z):
            raise ValueError(
                f"dim={dim}: generating_vector has {len(z)} components; give a longer one, see "
                "cbc_lattice"
            )
        self.generating_vector = torch.tensor([operator.index(c) for c in z[:dim]])

    def _points(
        self, index: Tensor, replications: int, generator: torch.Generator, digits: bool
    ) -> Tensor:
        if digits:
            raise ValueError("digits=True: a lattice has no digits; take points")
        if self.order == "linear":
            if index[0] != 0:
                raise ValueError(f"start={int(index[0])}: in linear order all points come at once")
            n = len(index)
            # Exact in integers, as below: (i z mod n) / n.
            x = (index[:, None] * (self.generating_vector % n) % n).double() / n
        else:
            index = gray(index) if self.order == "gray" else index
            z = self.generating_vector % self.n_max
            turned = reverse_bits(index, self.bits)[:, None] * z
            x = (turned % self.n_max).double() / self.n_max
        if self.randomize is None:
            return x[None]
        shift = torch.rand(replications, 1, self.dim, generator=generator, dtype=torch.float64)
        return (x + shift) % 1


class DigitalNet(PointSequence):
    """A digital net in base 2: digits of a point are a matrix times the digits of its index.

    Parameters
    ----------
    dim : int
        d.
    alpha : int
        Order: above 1, digits of alpha coordinates are interlaced into one.
    matrices : torch.Tensor, optional
        (alpha d, m) int64, columns of the generating matrices as integers of ``matrix_bits``
        digits, the most significant first. Joe and Kuo's, m = 30, if not given.
    bits : int
        t of the points, at most 63. float64 keeps 53.
    randomize : {"lms_ds", "lms", "ds", "nus", None}
        Linear matrix scramble, digital shift, or both; nested uniform scramble. Matrices and
        Owen's tree act before interlacing, the shift after.
    order : {"radical", "gray"}
        Natural index, or its Gray code.
    matrix_bits : int
        Digits of ``matrices``.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        dim: int,
        alpha: int = 1,
        matrices: Tensor | None = None,
        bits: int = MAX_BITS,
        randomize: str | None = "lms_ds",
        order: str = "radical",
        *,
        matrix_bits: int = 30,
    ) -> None:
        require_counts(dim=dim, alpha=alpha, bits=bits, matrix_bits=matrix_bits)
        if bits > MAX_BITS or matrix_bits > MAX_BITS:
            raise ValueError(f"bits={bits}, matrix_bits={matrix_bits}: must be at most {MAX_BITS}")
        width = alpha * dim
        if matrices is None:
            if width > SobolEngine.MAXDIM:
                raise ValueError(
                    f"alpha dim = {width}: the table has {SobolEngine.MAXDIM} coordinates; give "
                    "matrices"
                )
            matrices = SobolEngine(width).sobolstate
        if matrices.ndim != 2 or matrices.is_floating_point() or len(matrices) < width:
            raise ValueError(
                f"matrices has shape {tuple(matrices.shape)}, {matrices.dtype}: must be integers "
                f"(alpha dim = {width} or more, m)"
            )
        if bool((matrices < 0).any()) or bool((matrices >> matrix_bits > 0).any()):
            raise ValueError(f"matrices: must have from 0 to {matrix_bits} bits; see matrix_bits")
        super().__init__(
            dim, 2 ** matrices.shape[1], ("radical", "gray"), order,
            ("lms_ds", "lms", "ds", "nus", None), randomize,
        )  # fmt: skip
        self.alpha = alpha
        self.bits = bits
        # Digits of a coordinate before interlacing: enough for those after.
        self.inner = max(-(-bits // alpha), 1)
        columns = to_digits(matrices[:width].long(), 2, matrix_bits)
        self.columns = columns[:, : self.inner]

    def _points(
        self, index: Tensor, replications: int, generator: torch.Generator, digits: bool
    ) -> Tensor:
        index = gray(index) if self.order == "gray" else index
        used = max(int(index.max()).bit_length(), 1)
        # Lowest digit of the index first: it multiplies the first column.
        of_index = to_digits(index, 2, used).flip(-2)
        kind = self.randomize or ""
        columns = self.columns
        if kind.startswith("lms"):
            made = linear_matrix_scramble(columns, 2, self.inner, generator, replications)
        else:
            padding = columns.new_zeros(len(columns), self.inner - columns.shape[1], self.n_digits)
            made = torch.cat([columns, padding], 1)[None]
        made = made[..., :used]
        if kind == "nus":
            keys = _keys(generator, replications, len(columns))
            plain = digit_product(made[0], of_index, 2)
            scrambled = nested_scramble(plain, 2, keys, self.inner)
            points = interlace(from_digits(scrambled, 2), self.alpha, self.inner, self.bits)
            return self._finish(points, digits)
        # (R, alpha d, inner, m): rows that take turns are those of the interlaced matrix.
        made = made.unflatten(1, (self.dim, self.alpha)).transpose(2, 3).flatten(2, 3)
        made = made[:, :, : self.bits]
        step = max(CHUNK // made[..., 0].numel(), 1)
        points = torch.cat(
            [from_digits(digit_product(made, part, 2), 2) for part in of_index.split(step, dim=-1)],
            -1,
        )
        if kind.endswith("ds"):
            high = min(2**self.bits, 2**63 - 1)
            points = points ^ torch.randint(high, (replications, self.dim, 1), generator=generator)
        return self._finish(points, digits)

    @property
    def n_digits(self) -> int:
        """Digits of an index, m."""
        return int(self.columns.shape[-1])

    def _finish(self, points: Tensor, digits: bool) -> Tensor:
        points = points.transpose(1, 2)
        return points if digits else to_unit(points, self.bits)


class Halton(PointSequence):
    """Halton's sequence: coordinate j is the radical inverse in base of the j-th prime.

    Parameters
    ----------
    dim : int
        At most 309, whose prime is 2039.
    randomize : {"lms_dp", "lms_ds", "lms", "dp", "ds", "nus", None}
        Linear matrix scramble, then a permutation (dp) or a shift (ds) a digit; or nested uniform
        scramble.
    n_max : int
        Points, at most 2^31.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(self, dim: int, randomize: str | None = "lms_dp", n_max: int = 2**31) -> None:
        super().__init__(
            dim, n_max, ("natural",), "natural",
            ("lms_dp", "lms_ds", "lms", "dp", "ds", "nus", None), randomize,
        )  # fmt: skip
        primes = _primes(MAX_BASE)
        if dim > len(primes):
            raise ValueError(
                f"dim={dim}: must be at most {len(primes)}, digits of larger primes are not exact"
            )
        if n_max > 2**31:
            raise ValueError(f"n_max={n_max}: must be at most 2^31")
        self.bases = primes[:dim]
        # As many digits as int64 holds.
        self.digits = [int(MAX_BITS / math.log2(base)) for base in self.bases]

    def _points(
        self, index: Tensor, replications: int, generator: torch.Generator, digits: bool
    ) -> Tensor:
        kind = self.randomize or ""
        made = []
        for base, t in zip(self.bases, self.digits, strict=True):
            # All random numbers are drawn whatever the index is: later points extend these.
            used = max(math.ceil(math.log(int(index.max()) + 2, base)), 1)
            of_index = to_digits(index, base, used).flip(-2)[None]
            digit = torch.cat([of_index, of_index.new_zeros(1, t - used, len(index))], 1)
            if kind == "nus":
                keys = _keys(generator, replications, 1)
                digit = nested_scramble(digit, base, keys, t)[:, 0]
            elif kind.startswith("lms"):
                identity = torch.eye(t, dtype=torch.int64)[None]
                lower = linear_matrix_scramble(identity, base, t, generator, replications)[:, 0]
                digit = digit_product(lower[..., :used], of_index, base)
            if kind.endswith("dp"):
                order = torch.rand(replications, t, base, generator=generator).argsort(-1)
                digit = order.gather(-1, digit.expand(replications, -1, -1))
            elif kind.endswith("ds"):
                digit = (
                    digit + torch.randint(base, (replications, t, 1), generator=generator)
                ) % base
            made.append(from_digits(digit, base))
        points = torch.stack(made, -1)
        if digits:
            return points
        scale = [float(base) ** t for base, t in zip(self.bases, self.digits, strict=True)]
        return (points / torch.tensor(scale, dtype=torch.float64)).clamp(max=1 - TINY)


def to_unit(points: Tensor, bits: int) -> Tensor:
    """Return integers of some bits as float64 in [0, 1), those beyond 53 bits cut off."""
    if bits > FLOAT_BITS:
        points, bits = points >> (bits - FLOAT_BITS), FLOAT_BITS
    return points.double() * 2.0**-bits


def _keys(generator: torch.Generator, replications: int, dim: int) -> Tensor:
    return torch.randint(2**63 - 1, (replications, dim), generator=generator)


def _primes(last: int) -> list[int]:
    return [n for n in range(2, last + 1) if all(n % p for p in range(2, math.isqrt(n) + 1))]
