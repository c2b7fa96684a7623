"""From records to modes: NExT-LF, and its peers NExT-ERA and SSI-cov."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sat.methods.next_lf.irf import correlation_irf, irf_spectrum, require_records
from sat.methods.next_lf.modes import Modes, StableMode, poles_to_modes, stabilise, stable_poles
from sat.methods.next_lf.pencil import Pencil, loewner_pencil
from sat.methods.problems.arguments import require_counts

ORDERS = tuple(range(10, 62, 2))
WINDOW = 5.0
"""The exponential window's end is e^-5 of its start."""


class DiagramRow(NamedTuple):
    """A model's poles in the stabilisation diagram, and which of them the one before has."""

    order: int
    modes: Modes
    stable: Tensor


@dataclass(frozen=True, eq=False)
class OMAResult:
    """What was identified.

    Parameters
    ----------
    modes : list of StableMode
        By rising frequency.
    diagram : list of DiagramRow
        By rising order.
    """

    modes: list[StableMode]
    diagram: list[DiagramRow]


def strongest(y: Tensor) -> tuple[int, ...]:
    """Return the channel (of (P, n) records) whose variance is largest, as the only reference."""
    return (int(y.double().var(1).argmax()),)


def next_lf(
    y: Tensor,
    fs: float,
    refs: Sequence[int] | None = None,
    band: tuple[float, float] | None = None,
    orders: Sequence[int] = ORDERS,
    domain: str = "z",
    *,
    n_lags: int = 1024,
    window: float = WINDOW,
    method: str = "direct",
    nperseg: int | None = None,
    transform: str = "products",
    seed: int = 0,
) -> OMAResult:
    """Return natural frequencies, damping and mode shapes from vibration records alone.

    Parameters
    ----------
    y : torch.Tensor
        (P, n), real floating point: channels in rows.
    fs : float
        Samples a second.
    refs : sequence of int, optional
        Channels that all are correlated with; the one of the largest variance without it.
    band : (float, float), optional
        Hz, within (0, fs / 2); all lines without it. Modes above fs / 2 alias into it: filter
        before sampling.
    orders : sequence of int
        Of the models, even, rising.
    domain : {"z", "s"}
        See `irf_spectrum`.
    n_lags : int
        N: lines are fs / N apart.
    window : float
        Responses are multiplied by exp(-window t / (N dt)), which damping is freed from
        afterwards; 0 for none.
    method, nperseg, transform
        See `correlation_irf`.
    seed : int
        Of the tangential directions.

    Returns
    -------
    OMAResult
        Without modes, and with a warning, if none is stable.

    Raises
    ------
    TypeError
        If ``y`` is not real floating point.
    ValueError
        If an argument breaks its rule.

    Source
    ------
    arXiv 2603.01359, Aerospace 13(4) 378, 2026; arXiv 2412.09418.
    """
    require_rate(fs)
    require_records(y)
    refs = strongest(y) if refs is None else refs
    irf = correlation_irf(y, refs, n_lags, method, nperseg, transform=transform)
    return lf_modes(irf, fs, band, orders, domain, window=window, seed=seed)


def lf_modes(
    irf: Tensor,
    fs: float,
    band: tuple[float, float] | None = None,
    orders: Sequence[int] = ORDERS,
    domain: str = "z",
    *,
    window: float = WINDOW,
    seed: int = 0,
) -> OMAResult:
    """Return what the Loewner framework finds in impulse responses (P, M, N + 1); see `next_lf`.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.
    """
    require_rate(fs)
    require_orders(orders)
    if not 0 <= window < math.inf:
        raise ValueError(f"window={window}: must be at least 0 and finite, as an exponent")
    decay = window * fs / max(irf.shape[-1] - 1, 1)
    spectrum = irf_spectrum(irf, 1 / fs, domain, decay)
    if band is not None:
        spectrum = spectrum.band(*band)
    lines = len(spectrum.points)
    if lines < 2 * max(orders):
        raise ValueError(
            f"orders up to {max(orders)}: want {2 * max(orders)} lines, and the band has {lines}; "
            "widen it, take more lags, or lower orders"
        )
    generator = torch.Generator().manual_seed(seed)
    pencil = loewner_pencil(spectrum.points, spectrum.values, generator)
    return _settle(pencil, 1 / fs, orders, domain, decay)


def next_era(
    y: Tensor,
    fs: float,
    refs: Sequence[int] | None = None,
    orders: Sequence[int] = ORDERS,
    *,
    block_rows: int = 60,
    block_columns: int = 240,
    transform: str = "products",
) -> OMAResult:
    """Return modes by the eigensystem realisation of the same impulse responses.

    Parameters
    ----------
    y, fs, refs, orders, transform
        As of `next_lf`.
    block_rows, block_columns : int
        Lags that are stacked in rows and in columns; correlations go to as many as both.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.

    Source
    ------
    Juang, Pappa 1985, "An eigensystem realization algorithm for modal parameter identification".
    """
    require_rate(fs)
    require_records(y)
    refs = strongest(y) if refs is None else refs
    require_counts(block_rows=block_rows, block_columns=block_columns)
    irf = correlation_irf(y, refs, block_rows + block_columns, transform=transform)
    return era_modes(irf, fs, orders, block_rows, block_columns)


def era_modes(
    irf: Tensor,
    fs: float,
    orders: Sequence[int] = ORDERS,
    block_rows: int = 60,
    block_columns: int = 240,
) -> OMAResult:
    """Return modes of a block Hankel matrix of impulse responses (P, M, N + 1) from lag 1 on.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or there are too few lags.
    """
    require_rate(fs)
    require_orders(orders)
    pencil = _hankel_pencil(irf.detach().double(), block_rows, block_columns, max(orders))
    return _settle(pencil, 1 / fs, orders)


def ssi_cov(
    y: Tensor,
    fs: float,
    orders: Sequence[int] = ORDERS,
    *,
    block_rows: int = 60,
    weighting: str = "none",
    transform: str = "products",
) -> OMAResult:
    """Return modes by covariance-driven stochastic subspace identification.

    All channels are references.

    Parameters
    ----------
    y, fs, orders, transform
        As of `next_lf`.
    block_rows : int
        Lags that are stacked in rows, and in columns; correlations go to twice as many.
    weighting : {"none", "cva"}
        "cva" whitens past and future by Cholesky factors of their covariances.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule, or a covariance is not positive definite.

    Source
    ------
    Peeters, De Roeck 1999, "Reference-based stochastic subspace identification for output-only
    modal analysis"; Van Overschee, De Moor 1996 for the weights.
    """
    require_rate(fs)
    require_records(y)
    require_counts(block_rows=block_rows)
    everything = range(len(y))
    irf = correlation_irf(y, everything, 2 * block_rows, transform=transform)
    return ssi_modes(irf, fs, orders, weighting)


def ssi_modes(
    irf: Tensor, fs: float, orders: Sequence[int] = ORDERS, weighting: str = "none"
) -> OMAResult:
    """Return modes of correlations (P, P, 2 rows + 1) of all channels with all; see `ssi_cov`.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or a covariance is not positive definite.
    """
    require_rate(fs)
    require_orders(orders)
    if weighting not in ("none", "cva"):
        raise ValueError(f"weighting={weighting!r}: must be 'none' or 'cva'")
    rows = (irf.shape[-1] - 1) // 2
    irf = irf.detach().double()
    pencil = _hankel_pencil(irf, rows, rows, max(orders))
    if weighting == "cva":
        pencil = _whitened(pencil, irf[..., :rows])
    return _settle(pencil, 1 / fs, orders)


def _hankel_pencil(irf: Tensor, rows: int, columns: int, order: int) -> Pencil:
    """Return Hankel matrices of lags from 1 on, and a lag later.

    Of H0 = Y S X^H a realisation has A = S^-1/2 Y^H H1 X S^-1/2, which is a pencil's (S, Y^H H1 X)
    after a change of states. Outputs are H0's first rows, inputs its first columns.
    """
    require_counts(block_rows=rows, block_columns=columns)
    p, m, size = irf.shape
    if size <= rows + columns:
        raise ValueError(
            f"{size - 1} lags: too few for {rows} block rows and {columns} block columns, which "
            f"want {rows + columns}"
        )
    if min(rows * p, columns * m) < order:
        raise ValueError(
            f"order {order}: above {min(rows * p, columns * m)}, what {rows} block rows and "
            f"{columns} block columns of {p} channels, {m} references leave; take more"
        )

    def hankel(first: int) -> Tensor:
        blocks = irf[..., first : first + rows + columns - 1].unfold(2, columns, 1)
        return blocks.permute(2, 0, 3, 1).reshape(rows * p, columns * m)

    now = hankel(1)
    return Pencil(now, hankel(2), now[:, :m], -now[:p])


def _whitened(pencil: Pencil, correlations: Tensor) -> Pencil:
    """Return L_f^-1 [H0, H1] L_p^-H of the covariances of future L_f L_f^H and past L_p L_p^H."""
    p, _, rows = correlations.shape
    lags = torch.arange(rows)[:, None] - torch.arange(rows)
    # R(-k) = R(k)^T; block (i, j) of the future is R(i - j), of the past its transpose.
    both = torch.cat((correlations.permute(2, 1, 0).flip(0)[:-1], correlations.permute(2, 0, 1)))
    blocks = both[lags + rows - 1]
    future, past = (
        _cholesky(x.permute(0, 2, 1, 3).reshape(rows * p, rows * p), name)
        for x, name in ((blocks, "future"), (blocks.mT, "past"))
    )
    whiten = torch.linalg.solve_triangular
    now, later = (
        whiten(past, whiten(future, x, upper=False).mT, upper=False).mT
        for x in (pencil.LL, pencil.sLL)
    )
    return Pencil(now, later, now @ past.mT[:, :p], -(future[:p] @ now))


def _cholesky(covariance: Tensor, name: str) -> Tensor:
    """Return the lower Cholesky factor; raise ValueError if there is none."""
    factor, failed = torch.linalg.cholesky_ex((covariance + covariance.mT) / 2)
    if bool(failed):
        raise ValueError(
            f"the {name}'s covariance is not positive definite: weighting='cva' wants noise in "
            "every channel, or fewer block rows; use weighting='none'"
        )
    return factor


def _settle(
    pencil: Pencil, dt: float, orders: Sequence[int], domain: str = "z", decay: float = 0.0
) -> OMAResult:
    """Return modes of models of all orders, and what they agree on."""
    candidates = [
        poles_to_modes(system, dt, domain=domain, window_decay=decay)
        for system in pencil.realise_all(orders)
    ]
    rows = zip(orders, candidates, stable_poles(candidates), strict=True)
    return OMAResult(stabilise(candidates), [DiagramRow(*row) for row in rows])


def require_rate(fs: float) -> None:
    """Raise ValueError for a sampling rate that is none."""
    if not 0 < fs < math.inf:
        raise ValueError(f"fs={fs}: must be positive and finite, samples a second")


def require_orders(orders: Sequence[int]) -> None:
    """Raise ValueError unless orders are even, positive and rise."""
    good = all(isinstance(k, int) and k > 0 and k % 2 == 0 for k in orders)
    if not orders or not good or list(orders) != sorted(set(orders)):
        raise ValueError(f"orders={list(orders)}: must be even ints that rise, as poles are pairs")
