"""Polynomials that are orthonormal for data: one signal's, and which products of several."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts

MOST_TERMS = 5000


def require_signals(name: str, x: Tensor, width: int | None = None) -> None:
    """Raise unless ``x`` is a finite real (N, width) of at least one row.

    Raises
    ------
    TypeError
        If it is no tensor of float32 or float64.
    ValueError
        If its shape is another, or an entry is not finite.
    """
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} is {kind}: must be a float32 or float64 tensor; use .double()")
    if x.ndim != 2 or not len(x) or (width is not None and x.shape[1] != width):
        columns = "n" if width is None else width
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}: must be (N, {columns}), N at least 1; a single "
            "column is x[:, None]"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} has infinities or NaNs: must be finite; drop those rows")


def total_degree_indices(n: int, degree: int) -> Tensor:
    """Return all multi-indices of n signals with a sum of at most ``degree``.

    Returns
    -------
    torch.Tensor
        (T, n) int64, T = C(n + degree, degree): the constant first, then by degree.

    Raises
    ------
    ValueError
        If a number is no positive int, or T is above 5000.
    """
    require_counts(n=n, degree=degree)
    terms = math.comb(n + degree, degree)
    if terms > MOST_TERMS:
        raise ValueError(
            f"n={n} signals, degree={degree}: {terms} terms, must be at most {MOST_TERMS}; lower "
            "the degree or the width"
        )
    chosen = [
        places for k in range(degree + 1) for places in combinations_with_replacement(range(n), k)
    ]
    indices = torch.zeros(terms, n, dtype=torch.int64)
    for row, places in zip(indices, chosen, strict=True):
        for place in places:
            row[place] += 1
    return indices


class APCBasis(nn.Module):
    """Arbitrary polynomial chaos: for each signal, polynomials orthonormal over its values.

    P_k has degree k and the mean of P_j P_k over the training values is 1 where j = k, else 0. By
    the three-term recurrence of the empirical measure,
    √b_{k+1} P_{k+1} = (x - a_k) P_k - √b_k P_{k-1}, P_0 = 1, computed in float64. A scale or an
    offset of a signal changes none of its polynomials but by a sign.

    A signal of m distinct values has polynomials of degree below m only; others are 0.

    Parameters
    ----------
    degree : int
        d, at least 1.
    signals : int
        n; as many as `fit` is given unless a ``state_dict`` is loaded instead.

    Attributes
    ----------
    a, b : torch.Tensor
        (d + 1, n) float64, b_0 = 1. Buffers, as are those that follow.
    low, high : torch.Tensor
        (n,) float64, least and greatest value of each signal.
    degrees : torch.Tensor
        (n,) int64, the highest degree of each signal; -1 before `fit`.

    Raises
    ------
    ValueError
        If ``degree`` is no positive int.

    Source
    ------
    Oladyshkin and Nowak 2012 (the basis); Gautschi 2004, section 2.2 (Stieltjes' procedure).
    """

    a: Tensor
    b: Tensor
    low: Tensor
    high: Tensor
    degrees: Tensor

    def __init__(self, degree: int, signals: int = 0) -> None:
        super().__init__()
        require_counts(degree=degree)
        self.degree = degree
        wide = torch.zeros(degree + 1, signals, dtype=torch.float64)
        for name in ("a", "b"):
            self.register_buffer(name, wide.clone())
        for name in ("low", "high"):
            self.register_buffer(name, wide[0].clone())
        self.register_buffer("degrees", torch.full((signals,), -1))

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Move, but stay float64: `nn.Module.float` is for signals and weights."""
        kept = {name: value for name, value in self._buffers.items() if value is not None}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            self._buffers[name] = value.to(self._buffers[name].device)  # type: ignore[union-attr]
        return self

    @property
    def fitted(self) -> bool:
        """Whether there are statistics."""
        return bool(len(self.degrees)) and int(self.degrees.min()) >= 0

    @torch.no_grad()
    def fit(self, x: Tensor) -> APCBasis:
        """Take the statistics of x (N, n), float32 or float64; no gradient passes through them.

        Raises
        ------
        TypeError, ValueError
            If ``x`` breaks a rule of `require_signals`.
        """
        require_signals("x", x)
        x = x.double()
        low, high, center = x.min(0).values, x.max(0).values, x.mean(0)
        x = x - center
        a, b = (x.new_zeros(self.degree + 1, x.shape[1]) for _ in range(2))
        b[0] = 1
        # What rounding leaves of a constant, or of P_m for m distinct values, is no polynomial.
        eps = torch.finfo(x.dtype).eps
        tiny = (64 * eps * torch.maximum(low.abs(), high.abs())).square()
        alive, degrees = low < high, torch.zeros_like(center, dtype=torch.int64)
        before, now = torch.zeros_like(x), torch.ones_like(x)
        for k in range(self.degree + 1):
            a[k] = (x * now.square()).mean(0)
            if k == self.degree:
                break
            after = (x - a[k]) * now - b[k].sqrt() * before
            norm = after.square().mean(0)
            alive = alive & (norm > (tiny if k == 0 else 64 * eps * b[1]))
            b[k + 1] = torch.where(alive, norm, 0.0)
            degrees += alive
            before, now = now, after * _inverse_root(b[k + 1])
        self.a, self.b = torch.where(b > 0, a + center, 0.0), b
        self.low, self.high, self.degrees = low, high, degrees
        return self

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Return a and b, (d + 1, n) float64 each.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        self._require_fitted()
        return self.a, self.b

    def univariate(self, x: Tensor) -> Tensor:
        """Return P_0 … P_d (N, d + 1, n) of x (N, n), in its dtype; gradients pass to ``x``.

        Raises
        ------
        RuntimeError
            Before `fit`.
        TypeError, ValueError
            If ``x`` breaks a rule of `require_signals`.
        """
        self._require_fitted()
        require_signals("x", x, self.a.shape[1])
        a, root = self.a.to(x.dtype), self.b.sqrt().to(x.dtype)
        inverse = _inverse_root(self.b).to(x.dtype)
        polynomials = [torch.ones_like(x)]
        for k in range(self.degree):
            after = (x - a[k]) * polynomials[-1]
            if k:
                after = after - root[k] * polynomials[-2]
            polynomials.append(after * inverse[k + 1])
        return torch.stack(polynomials, 1)

    def clamp(self, x: Tensor, margin: float = 0.1) -> Tensor:
        """Return x (N, n) held within each signal's range and ``margin`` ranges around it.

        Raises
        ------
        RuntimeError
            Before `fit`.
        TypeError, ValueError
            If ``x`` breaks a rule of `require_signals`.
        """
        self._require_fitted()
        require_signals("x", x, self.a.shape[1])
        room = margin * (self.high - self.low)
        return x.clamp((self.low - room).to(x.dtype), (self.high + room).to(x.dtype))

    def monomial_coefficients(self) -> Tensor:
        """Return each polynomial's coefficients of 1, x, x², …: (n, d + 1, d + 1) float64.

        Rows are degrees. To read, not to evaluate: they cancel where signals are not centred.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        self._require_fitted()
        root, inverse = self.b.sqrt(), _inverse_root(self.b)
        rows = self.a.new_zeros(self.degree + 1, self.degree + 1, self.a.shape[1])
        rows[0, 0] = 1
        for k in range(self.degree):
            rows[k + 1, 1:] = rows[k, :-1]
            rows[k + 1] -= self.a[k] * rows[k]
            if k:
                rows[k + 1] -= root[k] * rows[k - 1]
            rows[k + 1] *= inverse[k + 1]
        return rows.permute(2, 0, 1)

    def _require_fitted(self) -> None:
        if not self.fitted:
            raise RuntimeError("the basis has no statistics: call fit(x) or load a state_dict")


def _inverse_root(b: Tensor) -> Tensor:
    """Return 1 / √b, and 0 where b is."""
    return torch.where(b > 0, b, 1.0).rsqrt() * (b > 0)
