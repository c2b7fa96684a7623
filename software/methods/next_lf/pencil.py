"""Loewner matrices of tangential data, and the models that their singular vectors leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sat.methods.problems.scaling import scaled_product


@dataclass(frozen=True, eq=False)
class StateSpace:
    """H(p) = C (p E - A)^-1 B.

    Parameters
    ----------
    E, A : torch.Tensor
        (k, k).
    B : torch.Tensor
        (k, M).
    C : torch.Tensor
        (P, k).
    """

    E: Tensor
    A: Tensor
    B: Tensor
    C: Tensor

    def evaluate(self, points: Tensor) -> Tensor:
        """Return H at points (K,) of the complex plane: (P, M, K) complex128."""
        e, a, b, c = (x.to(torch.complex128) for x in (self.E, self.A, self.B, self.C))
        states = torch.linalg.solve(points.to(torch.complex128)[:, None, None] * e - a, b)
        return (c @ states).permute(1, 2, 0)


@dataclass(frozen=True, eq=False)
class Pencil:
    """Matrices between all left and all right data, whose rank is that of the model behind them.

    Parameters
    ----------
    LL, sLL : torch.Tensor
        (rows, columns): the Loewner matrix and the shifted one; or two Hankel matrices, the second
        a lag later.
    V : torch.Tensor
        (rows, M), left data.
    W : torch.Tensor
        (P, columns), right data.
    """

    LL: Tensor
    sLL: Tensor
    V: Tensor
    W: Tensor

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.linalg.svd(self.LL, full_matrices=False)

    @property
    def singular_values(self) -> Tensor:
        """Of LL, (min(rows, columns),) float64, falling: they show the order."""
        return self._factors[1]

    def realise(self, order: int) -> StateSpace:
        """Return the model of an order; see `realise_all`."""
        return self.realise_all([order])[0]

    def realise_all(self, orders: Sequence[int]) -> list[StateSpace]:
        """Return models of some orders: one SVD and one projection, of which each is a corner.

        E, which is Y^H LL X of the leading singular vectors, is the singular values' diagonal.

        Parameters
        ----------
        orders : sequence of int
            From 1 to LL's smaller side.

        Raises
        ------
        ValueError
            If there is none, or one breaks its rule.
        """
        left, values, right = self._factors
        for order in orders:
            if not isinstance(order, int) or not 1 <= order <= len(values):
                raise ValueError(f"order {order}: must be an int from 1 to {len(values)}")
        if not orders:
            raise ValueError("orders: there are none; give some")
        k = max(orders)
        rows, columns = left[:, :k].mH, right[:k].mH
        e = torch.diag(values[:k]).to(self.LL.dtype)
        a = scaled_product(scaled_product(rows, self.sLL), columns)
        b, c = scaled_product(rows, self.V), -scaled_product(self.W, columns)
        return [StateSpace(e[:k, :k], a[:k, :k], b[:k], c[:, :k]) for k in orders]


class LoewnerPencil(Pencil):
    """The pencil of tangential data of H: ``LL_ij = (v_i r_j - l_i w_j) / (mu_i - lambda_j)``."""


def loewner_pencil(
    points: Tensor,
    values: Tensor,
    generator: torch.Generator,
    real: bool = True,
    *,
    products: bool = True,
) -> LoewnerPencil:
    """Return the Loewner pencil of samples of a transfer function, conjugates added.

    Odd points (the first, third, …) are left ones, even points right ones, so that both are spread
    over the band; directions are real, normal.

    Parameters
    ----------
    points : torch.Tensor
        (K,) complex, none real, no two the same or conjugates of each other; K at least 2.
    values : torch.Tensor
        (P, M, K) complex, H there.
    generator : torch.Generator
        Of the directions.
    real : bool
        Whether pairs of conjugates are turned into pairs of real rows and columns. Without, all
        is complex128, each point followed by its conjugate.
    products : bool
        Whether the numerators are matrix products, or sums term by term. They are differences that
        nearly cancel where mu_i is close to lambda_j, so what a product loses is amplified.
        Estimated responses are off by far more; exact ones, below 1e-4, want sums.

    Returns
    -------
    LoewnerPencil
        LL, sLL (2 K_left, 2 K_right), V (2 K_left, M), W (P, 2 K_right); float64 if ``real``.

    Raises
    ------
    ValueError
        If shapes do not fit, or points are real, or coincide.

    Source
    ------
    Mayo, Antoulas 2007, "A framework for the solution of the generalized realization problem";
    arXiv 2412.09418 for modal analysis.
    """
    points, values = (x.detach().to(torch.complex128) for x in (points, values))
    if points.ndim != 1 or values.ndim != 3 or values.shape[2] != len(points) or len(points) < 2:
        raise ValueError(
            f"points have shape {tuple(points.shape)}, values {tuple(values.shape)}: must be (K,) "
            "and (P, M, K), K at least 2"
        )
    if not bool(torch.isfinite(torch.view_as_real(values)).all()):
        raise ValueError("values have entries that are not finite: refused")
    if bool((points.imag == 0).any()):
        raise ValueError("points: one is real, its own conjugate; leave out 0 Hz and Nyquist's")
    mu, lam = points[::2, None], points[1::2]
    if bool((mu == lam).any()) or bool((mu == lam.conj()).any()):
        raise ValueError("points: a left one coincides with a right one or its conjugate")
    p, m, k = values.shape
    directions = torch.randn(k, max(p, m), generator=generator, dtype=torch.float64)
    left, right = directions[::2, :p], directions[1::2, :m].mT
    v = (left.mT[:, None] * values[..., ::2]).sum(0).mT
    w = (right * values[..., 1::2]).sum(1)
    vr = _times(torch.view_as_real(v).permute(2, 0, 1), right, products)
    lw = _times(left, torch.view_as_real(w).permute(2, 0, 1), products)
    vr, lw = torch.complex(*vr), torch.complex(*lw)
    # Directions are real, so of v_i r_j and l_i w_j that with a conjugate is the conjugate.
    near, far = (vr - lw) / (mu - lam), (vr - lw.conj()) / (mu - lam.conj())
    # sLL = mu LL + l w: the same quotient, without a second one.
    shifted = mu * near + lw, mu * far + lw.conj()
    if not real:
        both = (_pairs(near, far), _pairs(*shifted))
        v = torch.stack((v, v.conj()), 1).reshape(-1, m)
        w = torch.stack((w, w.conj()), 2).reshape(p, -1)
        return LoewnerPencil(*both, v, w)
    root = math.sqrt(2)
    v = root * torch.stack((v.real, v.imag), 1).reshape(-1, m)
    w = root * torch.stack((w.real, -w.imag), 2).reshape(p, -1)
    return LoewnerPencil(_real_pairs(near, far), _real_pairs(*shifted), v, w)


def _times(a: Tensor, b: Tensor, products: bool) -> Tensor:
    """Return a @ b, or the same term by term in float64."""
    if products:
        return scaled_product(a, b)
    return sum(
        (a[..., k, None] * b[..., k, None, :] for k in range(1, a.shape[-1])),
        a[..., 0, None] * b[..., 0, None, :],
    )


def _pairs(near: Tensor, far: Tensor) -> Tensor:
    """Return rows and columns of points and conjugates in turn.

    Of entries (mu, lambda) and (mu, lambda*).
    """
    rows = torch.stack((torch.stack((near, far), 2), torch.stack((far.conj(), near.conj()), 2)), 1)
    return rows.reshape(2 * len(near), -1)


def _real_pairs(near: Tensor, far: Tensor) -> Tensor:
    """Return the same with pairs made real.

    By (1/sqrt 2) [[1, 1], [-i, i]] on the left and (1/sqrt 2) [[1, i], [1, -i]] on the right.
    """
    first = torch.stack((near.real + far.real, far.imag - near.imag), 2)
    second = torch.stack((near.imag + far.imag, near.real - far.real), 2)
    return torch.stack((first, second), 1).reshape(2 * len(near), -1)
