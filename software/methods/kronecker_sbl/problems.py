"""Problems with a known answer: random dictionaries, antennas' ones, a channel over a surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sat.methods.kronecker_sbl.dictionary import KroneckerDictionary, mode_products
from sat.methods.kronecker_sbl.solver import SUPPORT, find_support
from sat.methods.problems.arguments import require_counts

COMPLEX = torch.complex128


@dataclass(frozen=True)
class KroneckerProblem:
    """y = (A_1 ⊗ … ⊗ A_I) x + noise.

    Parameters
    ----------
    y : torch.Tensor
        (prod M_i,) complex128.
    factors : list of torch.Tensor
        (M_i, N_i) complex128.
    x : torch.Tensor
        (prod N_i,) complex128.
    noise_var : float
        Mean of \\|noise\\|², linear: the mean of \\|A x\\|² over 10^(snr_db / 10).
    """

    y: Tensor
    factors: list[Tensor]
    x: Tensor
    noise_var: float


@dataclass(frozen=True)
class IRSProblem(KroneckerProblem):
    """Channel estimation over an intelligent reflecting surface.

    Parameters
    ----------
    y, factors, x, noise_var
        Of `KroneckerProblem`; axes are surface patterns, pilots, base antennas, and of x the
        difference of angles at the surface, the angle at the user, the angle at the base station.
    user_to_surface, surface_to_base : torch.Tensor
        (n_surface, n_user) and (n_base, n_surface), the two channels.
    pilots : torch.Tensor
        (n_user, n_pilots), QPSK of power 1 / n_user.
    patterns : torch.Tensor
        (n_surface, n_patterns), ±1 over √n_surface.
    """

    user_to_surface: Tensor
    surface_to_base: Tensor
    pilots: Tensor
    patterns: Tensor

    @property
    def channels(self) -> Tensor:
        """What is wanted: (n_patterns, n_base, n_user), one over the surface a pattern."""
        return torch.einsum(
            "bl,lp,lu->pbu", self.surface_to_base, self.patterns, self.user_to_surface
        )

    def channels_of(self, x: Tensor) -> Tensor:
        """Return the channels, as `channels`, that an estimate of x (prod N_i,) means."""
        surface, _, base = self.factors
        n_user, n_grid = len(self.pilots), surface.shape[1]
        user = math.sqrt(n_user) * steering_dictionary(n_user, n_grid).conj()
        sizes = (n_grid, n_grid, n_grid)
        return mode_products(x.reshape(sizes), [surface, user, base]).transpose(1, 2)


def steering_dictionary(n_ant: int, n_grid: int) -> Tensor:
    """Return unit steering vectors of a line of antennas, half a wavelength apart.

    Parameters
    ----------
    n_ant, n_grid : int

    Returns
    -------
    torch.Tensor
        (n_ant, n_grid) complex128: exp(iπ a u) / √n_ant for antenna a = 0, 1, … and cosines u of
        the angle from -1 to 1 - 2 / n_grid.

    Raises
    ------
    ValueError
        If a number is no int of at least 1.
    """
    require_counts(n_ant=n_ant, n_grid=n_grid)
    cosines = -1 + 2 * torch.arange(n_grid, dtype=torch.float64) / n_grid
    phases = math.pi * torch.outer(torch.arange(n_ant, dtype=torch.float64), cosines)
    return torch.polar(torch.full_like(phases, n_ant**-0.5), phases)


def kronecker_problem(
    seed: int,
    snr_db: float,
    rows: Sequence[int] = (4, 5, 6),
    columns: int = 10,
    nonzeros: int = 2,
    *,
    steering: bool = False,
) -> KroneckerProblem:
    """Return a problem with normal entries on a Kronecker product of random places.

    Parameters
    ----------
    seed : int
    snr_db : float
        Mean of \\|A x\\|² over the noise's, in dB.
    rows : sequence of int
        M_i.
    columns, nonzeros : int
        N_i and nonzero places, of each factor.
    steering : bool
        Whether factors are `steering_dictionary`; else they are complex normal with unit columns.

    Returns
    -------
    KroneckerProblem

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    require_counts(columns=columns, nonzeros=nonzeros)
    if nonzeros > columns:
        raise ValueError(f"nonzeros={nonzeros}: must be at most columns={columns}")
    generator = torch.Generator().manual_seed(seed)
    factors, support = [], []
    for m in rows:
        if steering:
            a = steering_dictionary(m, columns)
        else:
            a = torch.randn(m, columns, generator=generator, dtype=COMPLEX)
            a = a / torch.linalg.vector_norm(a, dim=0)
        factors.append(a)
        support.append(torch.randperm(columns, generator=generator)[:nonzeros])
    x = torch.zeros([columns] * len(rows), dtype=COMPLEX)
    values = torch.randn([nonzeros] * len(rows), generator=generator, dtype=COMPLEX)
    x[torch.meshgrid(*support, indexing="ij")] = values
    x = x.flatten()
    y, noise_var = _noisy(KroneckerDictionary(factors).matvec(x), snr_db, generator)
    return KroneckerProblem(y, factors, x, noise_var)


def irs_mimo_problem(
    seed: int,
    snr_db: float,
    *,
    n_user: int = 6,
    n_base: int = 16,
    n_surface: int = 256,
    n_grid: int = 18,
    n_pilots: int = 3,
    n_patterns: int = 6,
    spread: int = 3,
) -> IRSProblem:
    """Return a channel from a user over a surface to a base station, to be estimated.

    Rays leave the user at one angle and reach the surface at ``spread`` neighbouring ones; they
    leave it at one angle and reach the base station at ``spread`` neighbouring ones, all on the
    grid. The surface turns arrival and departure into their difference, which the grid holds, too.

    Parameters
    ----------
    seed : int
    snr_db : float
        Mean of \\|A x\\|² over the noise's, in dB.
    n_user, n_base, n_surface : int
        Antennas, and elements of the surface.
    n_grid : int
        Steering vectors of each dictionary.
    n_pilots, n_patterns : int
        What is measured: as many symbols, under as many patterns of the surface.
    spread : int
        Neighbouring angles; gains are CN(0, 1 / spread).

    Returns
    -------
    IRSProblem

    Raises
    ------
    ValueError
        If a number is no int of at least 1, or ``spread`` more than ``n_grid``.

    Source
    ------
    He, Joseph 2023, arXiv 2307.14719, application; sizes and geometry of the released PC-KroSBL.
    """
    require_counts(
        n_user=n_user, n_base=n_base, n_surface=n_surface, n_grid=n_grid, n_pilots=n_pilots,
        n_patterns=n_patterns, spread=spread,
    )  # fmt: skip
    if spread > n_grid:
        raise ValueError(f"spread={spread}: must be at most n_grid={n_grid}")
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    def fan() -> tuple[Tensor, Tensor]:
        angles = draw(n_grid - spread + 1) + torch.arange(spread)
        gains = torch.randn(spread, generator=generator, dtype=COMPLEX) / math.sqrt(spread)
        return angles, gains

    at_user, leaves = draw(n_grid), draw(n_grid)
    (arrives, to_surface), (at_base, to_base) = fan(), fan()
    user, base, surface = (steering_dictionary(n, n_grid) for n in (n_user, n_base, n_surface))
    user, base, surface = (len(a) ** 0.5 * a for a in (user, base, surface))
    signs = torch.randint(2, (n_surface, n_patterns), generator=generator) * 2 - 1
    patterns = signs.to(COMPLEX) / math.sqrt(n_surface)
    turns = torch.randint(4, (n_user, n_pilots), generator=generator, dtype=torch.float64)
    pilots = torch.polar(torch.full_like(turns, n_user**-0.5), math.pi / 4 * (2 * turns + 1))
    # conj(a(u)) a(v) is a(v - u) but for the first column's start at -1: columns of differences.
    differences = surface[:, :1].conj() * surface
    x = torch.zeros(n_grid, n_grid, n_grid, dtype=COMPLEX)
    x[(arrives - leaves)[:, None] % n_grid, at_user, at_base] = to_surface[:, None] * to_base
    factors = [patterns.mT @ differences, pilots.mT @ user.conj(), base]
    y, noise_var = _noisy(KroneckerDictionary(factors).matvec(x.flatten()), snr_db, generator)
    up = torch.outer(surface[:, arrives] @ to_surface, user[:, at_user].conj())
    down = torch.outer(base[:, at_base] @ to_base, surface[:, leaves].conj())
    return IRSProblem(y, factors, x.flatten(), noise_var, up, down, pilots, patterns)


def _noisy(y: Tensor, snr_db: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """Return y with complex normal noise, and its variance."""
    if not math.isfinite(snr_db):
        raise ValueError(f"snr_db={snr_db}: must be finite")
    noise_var = float(y.abs().square().mean()) / 10 ** (snr_db / 10)
    noise = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    return y + math.sqrt(noise_var) * noise, noise_var


def nmse(estimate: Tensor, truth: Tensor) -> float:
    """Return ‖estimate - truth‖² / ‖truth‖².

    Raises
    ------
    ValueError
        If shapes differ, or the truth is zero.
    """
    _require_pair(estimate, truth)
    return float((estimate - truth).norm() / truth.norm()) ** 2


def support_recovery_rate(estimate: Tensor, truth: Tensor, threshold: float = SUPPORT) -> float:
    """Return how many places are in both supports over how many are in any.

    Parameters
    ----------
    estimate : torch.Tensor
        (N,); its support is what is above ``threshold`` of the largest \\|estimate\\|.
    truth : torch.Tensor
        (N,); its support is what is not zero.
    threshold : float
        From 0 to below 1.

    Raises
    ------
    ValueError
        If shapes differ, the truth is zero or the threshold breaks its rule.
    """
    _require_pair(estimate, truth)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold}: must be from 0 to below 1")
    found = set(find_support(estimate, threshold).tolist())
    true = set(truth.nonzero().flatten().tolist())
    return len(found & true) / len(found | true)


def _require_pair(estimate: Tensor, truth: Tensor) -> None:
    if estimate.shape != truth.shape:
        raise ValueError(
            f"estimate has shape {tuple(estimate.shape)}, truth {tuple(truth.shape)}: must agree"
        )
    if not bool(truth.any()):
        raise ValueError("truth is zero: there is nothing to be recovered")
