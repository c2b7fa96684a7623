"""Shift-invariant and digitally shift-invariant kernels, with derivatives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts
from sat.methods.qmcpy.digits import FLOAT_BITS, MAX_BITS
from sat.methods.qmcpy.transforms import fftbr, fwht

BERNOULLI = {
    2: (1 / 6, -1, 1),
    3: (0, 1 / 2, -3 / 2, 1),
    4: (-1 / 30, 0, 1, -2, 1),
    5: (0, -1 / 6, 0, 5 / 3, -5 / 2, 1),
    6: (1 / 42, 0, -1 / 2, 0, 5 / 2, -3, 1),
    7: (0, 1 / 6, 0, -7 / 6, 0, 7 / 2, -7 / 2, 1),
    8: (-1 / 30, 0, 2 / 3, 0, -7 / 3, 0, 14 / 3, -4, 1),
    9: (0, -3 / 10, 0, 2, 0, -21 / 5, 0, 6, -9 / 2, 1),
    10: (5 / 66, 0, -3 / 2, 0, 5, 0, -7, 0, 15 / 2, -5, 1),
}
"""Coefficients of the Bernoulli polynomials, the constant first."""
Orders = int | Sequence[int]


class ProductKernel(ABC):
    """scale · Π_j (1 + weight_j K_j), K_j a kernel of one dimension.

    Parameters
    ----------
    alpha : int or sequence of int
        Smoothness, of all dimensions or each.
    weights : float or sequence of float
        Not negative, of all dimensions or each.
    scale : float
        Positive.
    """

    highest = 0

    def __init__(
        self, alpha: Orders, weights: float | Sequence[float] = 1.0, scale: float = 1.0
    ) -> None:
        self.alpha = alpha
        self.weights = weights
        self.scale = scale
        for a in [alpha] if isinstance(alpha, int) else alpha:
            if not isinstance(a, int) or not 1 <= a <= self.highest:
                raise ValueError(f"alpha={alpha}: must be from 1 to {self.highest}")
        for weight in [weights] if isinstance(weights, (int, float)) else weights:
            if not 0 <= weight < math.inf:
                raise ValueError(f"weights={weights}: must be finite and not negative")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale={scale}: must be positive and finite")

    def __call__(self, x: Tensor, z: Tensor, order_x: Orders = 0, order_z: Orders = 0) -> Tensor:
        """Return the kernel, or a derivative, of pairs of points.

        Parameters
        ----------
        x, z : torch.Tensor
            (…, d), broadcast against each other: ``kernel(x[:, None], z)`` is a matrix.
        order_x, order_z : int or sequence of int
            Orders of the derivative, in all dimensions or each.

        Returns
        -------
        torch.Tensor
            (…) float64.

        Raises
        ------
        TypeError, ValueError
            If points are not of this kernel's kind, or an order is too high.
        """
        if x.ndim == 0 or z.ndim == 0 or x.shape[-1] != z.shape[-1]:
            raise ValueError(
                f"x {tuple(x.shape)} and z {tuple(z.shape)}: must have the same dimensions, last"
            )
        d = x.shape[-1]
        x, z = self.prepare(x), self.prepare(z)
        out: Tensor | float = self.scale
        rows = zip(
            _each("alpha", self.alpha, d), _each("weights", self.weights, d),
            _each("order_x", order_x, d), _each("order_z", order_z, d), strict=True,
        )  # fmt: skip
        for j, (alpha, weight, b0, b1) in enumerate(rows):
            if min(b0, b1) < 0:
                raise ValueError(f"order_x={order_x}, order_z={order_z}: must not be negative")
            out = out * self.factor(x[..., j], z[..., j], int(alpha), weight, int(b0), int(b1))
        assert isinstance(out, Tensor)
        return out

    @abstractmethod
    def prepare(self, x: Tensor) -> Tensor:
        """Return points as `factor` takes them."""

    @abstractmethod
    def factor(self, x: Tensor, z: Tensor, alpha: int, weight: float, b0: int, b1: int) -> Tensor:
        """Return one dimension's factor."""

    @abstractmethod
    def transform(self, x: Tensor, transform: str = "fft") -> Tensor:
        """Return the transform that diagonalises this kernel's Gram matrices."""

    def gram_eigenvalues(self, points: Tensor, transform: str = "fft") -> Tensor:
        """Return the Gram matrix's eigenvalues, of points (n, d) with its structure.

        Parameters
        ----------
        points : torch.Tensor
            (n, d), n a power of two: what `FastGram` takes, which checks it.
        transform : {"fft", "products"}

        Returns
        -------
        torch.Tensor
            (n,) float64, in the transform's order.
        """
        made = self.transform(self(points, points[:1]), transform)
        return math.sqrt(len(points)) * (made.real if made.is_complex() else made)


class SIKernel(ProductKernel):
    """Shift-invariant kernel of periodic functions, by Bernoulli polynomials.

    Parameters
    ----------
    alpha : int or sequence of int
        From 1 to 5: Fourier coefficients fall as frequency^(-2 alpha).
    weights : float or sequence of float
    scale : float

    Notes
    -----
    K_j is (-1)^(a+1) (2 pi)^(2a) / (2a)! B_2a((x - z) mod 1). A derivative of order b0 in x and b1
    in z, 2a - b0 - b1 at least 2, has the factor weight (-1)^(a+b1+1) (2 pi)^(2a) / c! B_c with
    c = 2a - b0 - b1, without the 1.

    Source
    ------
    Sorokin, arXiv 2502.14256, shift-invariant kernels.
    """

    highest = 5

    def prepare(self, x: Tensor) -> Tensor:
        """Return points in float64."""
        if not x.is_floating_point():
            raise TypeError(f"points are {x.dtype}: a shift-invariant kernel takes floating point")
        return x.double()

    def factor(self, x: Tensor, z: Tensor, alpha: int, weight: float, b0: int, b1: int) -> Tensor:
        """Return one dimension's factor."""
        c = 2 * alpha - b0 - b1
        if c < 2:
            raise ValueError(
                f"order_x={b0}, order_z={b1} of alpha={alpha}: 2 alpha - order_x - order_z must be "
                "at least 2; raise alpha"
            )
        u = (x - z) % 1
        value = torch.zeros_like(u)
        for coefficient in reversed(BERNOULLI[c]):
            value = value * u + coefficient
        sign = (-1) ** (alpha + b1 + 1)
        value = weight * sign * (2 * math.pi) ** (2 * alpha) / math.factorial(c) * value
        return value if b0 + b1 else 1 + value

    def transform(self, x: Tensor, transform: str = "fft") -> Tensor:
        """Return `fftbr`."""
        return fftbr(x, transform)


class DSIKernel(ProductKernel):
    """Digitally shift-invariant kernel, by sums of Walsh functions in closed form.

    Parameters
    ----------
    alpha : int or sequence of int
        From 1 to 4.
    weights : float or sequence of float
    scale : float
    bits : int, optional
        Digits of points that are integers; of points that are floating point, to how many they
        are cut, at most 53. Both need it.

    Notes
    -----
    u = x XOR z as integers. K_j is Σ_(k ≥ 1) wal_k(u) 2^(-mu_a(k)), mu_a the sum of the a highest
    1-based places of k's digits, for a from 2 on; for a = 1 it is Σ wal_k(u)
    2^(-(2 floor(log2 k) + 1)): the released package's text lacks this 1, its code has it.
    A derivative of order b = b0 + b1, a - b at least 2, has the factor weight (-2)^b (1 + K_(a-b)).

    Source
    ------
    Sorokin, arXiv 2502.14256, digitally shift-invariant kernels.
    """

    highest = 4

    def __init__(
        self,
        alpha: Orders,
        weights: float | Sequence[float] = 1.0,
        scale: float = 1.0,
        bits: int | None = None,
    ) -> None:
        super().__init__(alpha, weights, scale)
        if bits is not None:
            require_counts(bits=bits)
            if bits > MAX_BITS:
                raise ValueError(f"bits={bits}: must be at most {MAX_BITS}")
        self.bits = bits

    def prepare(self, x: Tensor) -> Tensor:
        """Return points as integers of `bits` digits."""
        if self.bits is None:
            raise ValueError(
                f"points are {x.dtype} and bits=None: say how many digits they have; XOR is of "
                "integers"
            )
        if x.is_floating_point():
            if self.bits > FLOAT_BITS:
                raise ValueError(
                    f"bits={self.bits}: points in floating point have at most {FLOAT_BITS}; take "
                    "them with digits=True"
                )
            if not bool(((x >= 0) & (x < 1)).all()):  # as NaN does not
                raise ValueError("points must lie in [0, 1); take them modulo 1")
            return (x.double() * 2.0**self.bits).long()
        if bool(((x < 0) | (x >> self.bits > 0)).any()):
            raise ValueError(f"points must be integers from 0 to below 2^{self.bits}")
        return x.long()

    def factor(self, x: Tensor, z: Tensor, alpha: int, weight: float, b0: int, b1: int) -> Tensor:
        """Return one dimension's factor."""
        order = b0 + b1
        if order and alpha - order < 2:
            raise ValueError(
                f"order_x={b0}, order_z={b1} of alpha={alpha}: alpha - order_x - order_z must be "
                "at least 2; raise alpha"
            )
        assert self.bits is not None
        value = _walsh_sum(x ^ z, self.bits, alpha - order)
        return weight * (-2.0) ** order * (1 + value) if order else 1 + weight * value

    def transform(self, x: Tensor, transform: str = "fft") -> Tensor:
        """Return `fwht`."""
        return fwht(x, transform)


def _walsh_sum(u: Tensor, bits: int, alpha: int) -> Tensor:
    """Return K_alpha of u / 2^bits in closed form; terms of 2^-beta vanish at 0."""
    # Cut to float64's 53 digits: rounded, x might reach the next power of two, and beta another.
    cut = torch.where(
        u >= 2**FLOAT_BITS, u >> (MAX_BITS - FLOAT_BITS) << (MAX_BITS - FLOAT_BITS), u
    )
    x = cut.double() * 2.0**-bits
    at_zero = u == 0
    # frexp writes x as f 2^e, f from 1/2 to below 1, so that floor(log2 x) is e - 1.
    beta = torch.where(at_zero, 0, 1 - torch.frexp(x).exponent).double()
    t1 = torch.where(at_zero, 0.0, 2.0**-beta)
    t2, t3 = t1**2, t1**3
    if alpha == 1:
        return 1 - 3 * t1
    if alpha == 2:
        return -beta * x + 2.5 * (1 - t1) - 1
    if alpha == 3:
        return beta * x**2 - 5 * (1 - t1) * x + 43 / 18 * (1 - t2) - 1
    signs = torch.zeros_like(x)
    places = min(bits, 20)
    for a in range(places):
        signs += (1 - 2 * ((u >> (bits - 1 - a)) & 1)) * 8.0**-a
    # Digits beyond are zero, or below 2^-60.
    signs += 8.0**-places * 8 / 7
    smooth = -2 / 3 * beta * x**3 + 5 * (1 - t1) * x**2 - 43 / 9 * (1 - t2) * x
    return smooth + 701 / 294 * (1 - t3) + beta * (signs / 48 - 1 / 42) - 1


def _each(name: str, value: float | Sequence[float], d: int) -> list[float]:
    if isinstance(value, (int, float)):
        return [value] * d
    if len(value) != d:
        raise ValueError(f"{name} has {len(value)} entries: points have {d} dimensions")
    return list(value)
