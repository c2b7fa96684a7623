"""Gram matrices of matching kernels and points, diagonal under a fast transform."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sat.methods.qmcpy.digits import require_power
from sat.methods.qmcpy.kernels import DSIKernel, ProductKernel, SIKernel
from sat.methods.qmcpy.transforms import fftbr, fwht, ifftbr

SHIFT_TOL = 1e-12
"""How far a lattice's differences may be off, modulo 1, in float64."""
SINGULAR = 1e-15
"""Least eigenvalue over the largest that is more than rounding."""


def require_structure(kernel: ProductKernel, points: Tensor) -> None:
    """Raise ValueError unless the Gram matrix of these points is what `FastGram` takes it for.

    The points themselves are asked: whether x_i and x_(i + 2^k) differ by the same for all i below
    2^k, by XOR for a digitally shift-invariant kernel; and by twice as much for k - 1, modulo 1,
    for a shift-invariant one.
    """
    if points.ndim != 2 or points.shape[0] == 0:
        raise ValueError(f"points has shape {tuple(points.shape)}: must be (n, d), one replication")
    m = require_power("number of points", len(points))
    digital = isinstance(kernel, DSIKernel)
    if not digital and not isinstance(kernel, SIKernel):
        raise TypeError(f"kernel is {type(kernel).__name__}: must be an SIKernel or DSIKernel")
    x = kernel.prepare(points)
    holds, before = True, None
    for k in range(m):
        low, high = x[: 2**k], x[2**k : 2 ** (k + 1)]
        if digital:
            holds = bool(((low ^ high) == (low[:1] ^ high[:1])).all())
        else:
            step = high[:1] - low[:1]
            holds = _whole(high - low - step)
            # x_(2^k) - x_0 is z / 2^(k + 1): twice that is the step before, or none at all.
            holds = holds and _whole(2 * step - (0 if before is None else before))
            before = step
        if not holds:
            break
    if not holds:
        expected = (
            "a digital net with one digital shift, scrambled by matrices or not at all"
            if digital
            else "a lattice in radical order with one shift"
        )
        raise ValueError(
            f"points: the first {2 ** (k + 1)} are not {expected}; other sequences, orders, nested "
            "scrambles and mixed randomizations have no fast Gram matrix, form it whole"
        )


def _whole(x: Tensor) -> bool:
    return bool(((x - x.round()).abs() <= SHIFT_TOL).all())


class FastGram:
    """The Gram matrix K of a kernel and n = 2^m points, by its eigenvalues: O(n log n) each.

    Parameters
    ----------
    kernel : SIKernel or DSIKernel
    points : torch.Tensor
        (n, d): a shifted lattice in radical order for the first, a digital net with a digital
        shift, linear matrix scrambled or not, for the second. Checked.
    transform : {"fft", "products"}
        How transforms are computed.

    Raises
    ------
    TypeError, ValueError
        If points do not have the structure, or the kernel is another.

    Source
    ------
    Sorokin, arXiv 2502.14256, fast kernel methods.
    """

    def __init__(self, kernel: ProductKernel, points: Tensor, transform: str = "fft") -> None:
        require_structure(kernel, points)
        self.kernel = kernel
        self.points = points
        self.transform = transform
        self.eigenvalues = kernel.gram_eigenvalues(points, transform)

    def __len__(self) -> int:
        return len(self.points)

    def matvec(self, y: Tensor) -> Tensor:
        """Return K y of y (…, n) float64.

        Raises
        ------
        ValueError
            If the last axis is not n long.
        """
        return self._apply(y, self.eigenvalues)

    def solve(self, y: Tensor) -> Tensor:
        """Return K⁻¹ y of y (…, n) float64.

        Raises
        ------
        ValueError
            If the last axis is not n long.
        ArithmeticError
            If K is singular in float64.
        """
        return self._apply(y, 1 / self._positive())

    def logdet(self) -> Tensor:
        """Return log det K.

        Raises
        ------
        ArithmeticError
            If K is singular in float64.
        """
        return self._positive().log().sum()

    def extend(self, points: Tensor) -> FastGram:
        """Return the Gram matrix of twice the points, from half the kernel values and transforms.

        Parameters
        ----------
        points : torch.Tensor
            (n, d), points n to 2 n - 1 of the same sequence and randomization.

        Raises
        ------
        ValueError
            If they do not go on with the structure.
        """
        both = torch.cat([self.points, points])
        if len(both) != 2 * len(self):
            raise ValueError(f"points: {len(points)} given, {len(self)} needed to double")
        require_structure(self.kernel, both)
        n = len(self)
        values = self.kernel(points, both[:1])
        new = self.kernel.transform(values, self.transform)
        old = (self.eigenvalues / math.sqrt(n)).to(new.dtype)
        if new.is_complex():
            angles = -math.pi / n * torch.arange(n, dtype=torch.float64)
            new = new * torch.polar(torch.ones_like(angles), angles)
        made = torch.cat([old + new, old - new]) * math.sqrt(n)
        grown = FastGram.__new__(FastGram)
        grown.kernel, grown.points, grown.transform = self.kernel, both, self.transform
        grown.eigenvalues = made.real if made.is_complex() else made
        return grown

    def _positive(self) -> Tensor:
        least = float(self.eigenvalues.min())
        if not least > SINGULAR * float(self.eigenvalues.max()):
            raise ArithmeticError(
                f"least eigenvalue {least:g} of at most {float(self.eigenvalues.max()):g}: the "
                "Gram matrix is singular in float64; take a lower alpha or fewer points"
            )
        return self.eigenvalues

    def _apply(self, y: Tensor, factors: Tensor) -> Tensor:
        if y.ndim == 0 or y.shape[-1] != len(self):
            raise ValueError(
                f"y has shape {tuple(y.shape)}: its last axis must be {len(self)} long"
            )
        if isinstance(self.kernel, SIKernel):
            turned = factors * fftbr(y.double(), self.transform)
            return ifftbr(turned, self.transform).real
        return fwht(factors * fwht(y.double(), self.transform), self.transform)


@dataclass(frozen=True)
class Interpolant:
    """A function Σ_i c_i k(x, x_i) that has given values at the points.

    Parameters
    ----------
    kernel : ProductKernel
    points : torch.Tensor
        (n, d).
    coefficients : torch.Tensor
        (…, n) float64.
    """

    kernel: ProductKernel
    points: Tensor
    coefficients: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return values (…, q) at points x (q, d): one product of q by n."""
        flat = self.coefficients.reshape(-1, len(self.points))
        made = self.kernel(x[:, None], self.points) @ flat.mT
        return made.mT.reshape(*self.coefficients.shape[:-1], len(x))


def kernel_interpolate(
    kernel: ProductKernel, points: Tensor, values: Tensor, transform: str = "fft"
) -> Interpolant:
    """Return the kernel interpolant of values at points of the kernel's kind.

    Parameters
    ----------
    kernel : SIKernel or DSIKernel
    points : torch.Tensor
        (n, d), as `FastGram` takes them.
    values : torch.Tensor
        (…, n): one function, or several.
    transform : {"fft", "products"}

    Returns
    -------
    Interpolant

    Raises
    ------
    TypeError, ValueError, ArithmeticError
        As `FastGram` and its solve.
    """
    return Interpolant(kernel, points, FastGram(kernel, points, transform).solve(values))
