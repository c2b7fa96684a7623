"""The learner: a Frank-Wolfe step a batch, and nothing kept but the dictionary and a direction.

Source: Xue, Lau 2021, "Online Orthogonal Dictionary Learning Based on Frank-Wolfe Method",
arXiv 2103.01484. Its text was not at hand: exponents of the schedule were set by measurement.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import sat
from sat.methods.odl_fw.baselines import require_samples
from sat.methods.odl_fw.oracle import polar, require_oracle
from sat.methods.problems.arguments import require_counts

Schedule = Callable[[int], float]
"""Takes the step's number, from 1, to a share in (0, 1]."""

ITERATIONS, TOLERANCE = 30, 5e-4
"""Of Newton-Schulz as oracle, the latter times sqrt(M): singular values end within about 1e-6 of 1,
and products of float16 operands, which go on changing M atoms by 3.5e-4 sqrt(M), stop, too."""
COMPLETION = 4e-3
"""How much of D, over the direction's mean singular value, completes what the direction has not."""
LACKING = 1e-3
"""Singular values of a direction that count as none, over its largest: those that sums of float16
products leave are about 1e-4."""


def default_rho(t: int) -> float:
    """Return the weight of the newest gradient, min(1, 2 t^-1/2)."""
    return min(1.0, 2 * t**-0.5)


def default_gamma(t: int) -> float:
    """Return the step's length, min(1, 2 t^-3/4)."""
    return min(1.0, 2 * t**-0.75)


def objective(d: Tensor, y: Tensor, exponent: float = 3.0) -> Tensor:
    """Return ``-(1/p) mean sum |Dᵀ y|^p``, least where codes are sparse.

    Parameters
    ----------
    d : torch.Tensor
        (M, M), atoms in columns.
    y : torch.Tensor
        (samples, M).
    exponent : float
        p.

    Returns
    -------
    torch.Tensor
        A scalar.
    """
    return -(y @ d).abs().pow(exponent).sum(1).mean() / exponent


def gradient(d: Tensor, y: Tensor, exponent: float = 3.0) -> Tensor:
    """Return `objective`'s gradient, ``-(1/b) Y (|A|^(p-2) ∘ A)ᵀ`` with ``A = Dᵀ Y``: two products.

    Parameters and dtype are `objective`'s; it returns (M, M).
    """
    a = y @ d
    return y.mT @ (a.abs().pow(exponent - 2) * a) / -len(y)


class OnlineODL(nn.Module):
    """Learns an orthogonal basis in which a stream of samples is sparse.

    Step t averages gradients, ``d <- (1 - rho) d + rho G``, takes the matrix of the spectral ball
    that goes along -d furthest, ``S = -polar(d)``, and goes part of the way,
    ``D <- (1 - gamma) D + gamma S``. The objective is concave, so its least values lie on extreme
    points of the ball, and those are the orthogonal matrices. Samples are seen once and not kept;
    what is kept are D and d, M x M each, and with ``whiten`` second moments.

    Parameters
    ----------
    n_atoms : int
        M, the width of samples.
    exponent : float
        p of the norm that is maximised, above 2, at most 4; 4 heeds rare large codes more.
    rho, gamma : callable, optional
        Of t, from 1, to (0, 1]; `default_rho`, `default_gamma`.
    forgetting : tuple of float
        Floors under rho and gamma, in [0, 1], for dictionaries that change.
    oracle : {"svd", "newton_schulz"}
    whiten : bool
        For bases that are not orthogonal: samples are multiplied by the inverse root of their
        second moments so far.
    generator : torch.Generator, optional
        Of the start, an orthogonal matrix; seed 0 without it.
    dtype : torch.dtype

    Raises
    ------
    TypeError
        If ``dtype`` is neither float32 nor float64.
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Xue, Lau 2021, arXiv 2103.01484; forgetting is ours.
    """

    def __init__(
        self,
        n_atoms: int,
        exponent: float = 3.0,
        rho: Schedule | None = None,
        gamma: Schedule | None = None,
        forgetting: tuple[float, float] = (0.0, 0.0),
        oracle: str = "svd",
        whiten: bool = False,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        require_counts(n_atoms=n_atoms)
        require_oracle(oracle)
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"dtype={dtype}: must be torch.float32 or torch.float64; torch has no SVD of others"
            )
        if not 2 < exponent <= 4:
            raise ValueError(
                f"exponent={exponent}: must be above 2 and at most 4; 3 is the paper's"
            )
        if len(forgetting) != 2 or not all(0 <= floor <= 1 for floor in forgetting):
            raise ValueError(
                f"forgetting={forgetting}: must be floors of rho and gamma, both in [0, 1]"
            )
        self.n_atoms, self.exponent, self.oracle, self.whiten = n_atoms, exponent, oracle, whiten
        self.rho, self.gamma = rho or default_rho, gamma or default_gamma
        self.forgetting = forgetting
        generator = generator or torch.Generator().manual_seed(0)
        start = torch.randn(n_atoms, n_atoms, generator=generator, dtype=torch.float64)
        self._relaxed = nn.Buffer(polar(start).to(dtype))
        self._direction = nn.Buffer(torch.zeros(n_atoms, n_atoms, dtype=dtype))
        self._steps = nn.Buffer(torch.tensor(0))
        self._gap = nn.Buffer(torch.tensor(math.nan, dtype=torch.float64))
        if whiten:
            self._moments = nn.Buffer(torch.zeros(n_atoms, n_atoms, dtype=dtype))
            self._samples = nn.Buffer(torch.tensor(0))

    @torch.no_grad()
    def partial_fit(self, y: Tensor) -> OnlineODL:
        """Take a step.

        Parameters
        ----------
        y : torch.Tensor
            (samples, M), real floating point; made the learner's dtype.

        Returns
        -------
        OnlineODL
            Itself.

        Raises
        ------
        TypeError
            If ``y`` is not real floating point.
        ValueError
            If its shape is another, an entry or the gradient is not finite, or rho or gamma are
            outside (0, 1]. Nothing has changed then.
        """
        require_samples(y, self.n_atoms)
        y = y.to(self._relaxed.dtype)
        t = int(self._steps) + 1
        rho = max(_share("rho", self.rho(t), t), self.forgetting[0])
        gamma = max(_share("gamma", self.gamma(t), t), self.forgetting[1])
        moments, samples = None, 0
        if self.whiten:
            samples = int(self._samples) + len(y)
            share = max(len(y) / samples, self.forgetting[0])
            moments = torch.lerp(self._moments, y.mT @ y / len(y), share)
            y = y @ _root(moments, -0.5)
        slope = gradient(self._relaxed, y, self.exponent)
        if not bool(slope.isfinite().all()):
            raise ValueError(
                f"the gradient is not finite: y, up to {float(y.abs().max()):.3g}, must fit "
                f"{y.dtype} to the power {self.exponent:g}; scale it down"
            )
        direction = torch.lerp(self._direction, slope, rho)
        if bool(direction.any()):
            target = self._furthest(direction)
            self._gap.fill_(float((direction * (self._relaxed - target)).sum(dtype=torch.float64)))
            self._relaxed.lerp_(target, gamma)
        else:
            warnings.warn(f"step {t}: its samples are all 0; the dictionary stays", stacklevel=2)
            self._gap.zero_()
        self._direction.copy_(direction)
        self._steps.fill_(t)
        if moments is not None:
            self._moments.copy_(moments)
            self._samples.fill_(samples)
        return self

    def _furthest(self, direction: Tensor) -> Tensor:
        """Return the matrix of the ball that goes along ``-direction`` furthest.

        What the direction has not (of patches without a mean, the mean's part; of a first batch of
        fewer than M samples, most) any completion is as far. Newton-Schulz leaves 0 there: D would
        lose it, gradients have no part in what D has lost, and it would never come back. The SVD
        takes what rounding left, anew in each step. So D completes both: by the SVD its polar
        factor there, by products a little of it everywhere, which where the two agree, at a
        solution, changes nothing.
        """
        if self.oracle == "svd":
            u, values, vh = torch.linalg.svd(direction)
            has = int((values > LACKING * values[0]).sum())
            u_rest, vh_rest = u[:, has:], vh[has:]
            target = -u[:, :has] @ vh[:has]
            if has < self.n_atoms:
                target += u_rest @ polar(u_rest.mT @ self._relaxed @ vh_rest.mT) @ vh_rest
            return target
        root = math.sqrt(self.n_atoms)
        completed = self._relaxed * (COMPLETION * float(direction.norm()) / root) - direction
        return polar(completed, self.oracle, ITERATIONS, TOLERANCE * root)

    @property
    def relaxed(self) -> Tensor:
        """D itself, (M, M), singular values at most 1; of whitened samples with ``whiten``."""
        return self._relaxed.clone()

    @property
    def steps(self) -> int:
        """Steps taken."""
        return int(self._steps)

    @property
    def gap(self) -> float:
        """The last step's ``<d, D - S>``, at least 0 and 0 at a solution; NaN before the first."""
        return float(self._gap)

    @property
    def dictionary(self) -> Tensor:
        """The basis, (M, M), atoms in columns: D's polar factor; with ``whiten``, coloured."""
        basis = polar(self._relaxed)
        return _root(self._moments, 0.5) @ basis if self._coloured else basis

    @property
    def _coloured(self) -> bool:
        return self.whiten and self.steps > 0

    def transform(self, y: Tensor) -> Tensor:
        """Return codes.

        Parameters
        ----------
        y : torch.Tensor
            (samples, M), real floating point.

        Returns
        -------
        torch.Tensor
            (samples, M), of the learner's dtype: a number an atom.

        Raises
        ------
        TypeError, ValueError
            If ``y`` is not as `partial_fit` wants it.
        """
        require_samples(y, self.n_atoms)
        if not self.steps:
            warnings.warn("no batch was seen: the basis is a random one", stacklevel=2)
        y = y.to(self._relaxed.dtype)
        if self._coloured:
            y = y @ _root(self._moments, -0.5)
        return y @ polar(self._relaxed)

    def inverse_transform(self, codes: Tensor) -> Tensor:
        """Return the samples of codes, ``codes Dᵀ``.

        Parameters
        ----------
        codes : torch.Tensor
            (samples, M), real floating point.

        Returns
        -------
        torch.Tensor
            (samples, M), of the learner's dtype.

        Raises
        ------
        TypeError, ValueError
            If ``codes`` are no such samples.
        """
        require_samples(codes, self.n_atoms)
        return codes.to(self._relaxed.dtype) @ self.dictionary.mT

    def sparse_code(
        self, y: Tensor, k: int | None = None, *, nm: tuple[int, int] | None = None
    ) -> Tensor:
        """Return codes with only the largest kept.

        Parameters
        ----------
        y : torch.Tensor
            (samples, M), real floating point.
        k : int, optional
            How many of a sample's codes are kept.
        nm : (int, int), optional
            Instead of k: N, how many of every M consecutive codes, so that
            `inverse_transform` is an N:M product.

        Returns
        -------
        torch.Tensor
            (samples, M), zeros elsewhere.

        Raises
        ------
        TypeError, ValueError
            If ``y`` is not as `partial_fit` wants it, not exactly one of k and nm is given, k is
            not from 1 to M, or nm is no pattern.
        """
        if (k is None) == (nm is None):
            raise ValueError(f"k={k} and nm={nm}: give exactly one of them")
        codes = self.transform(y)
        if nm is not None:
            return sat.prune(codes, f"{nm[0]}:{nm[1]}", axis=1).to_dense()
        if not isinstance(k, int) or not 1 <= k <= self.n_atoms:
            raise ValueError(f"k={k!r}: must be an int from 1 to {self.n_atoms}, the atoms")
        return keep_largest(codes, k)


def keep_largest(codes: Tensor, k: int) -> Tensor:
    """Return codes (samples, M) with all but the k largest magnitudes of each row 0."""
    places = codes.abs().topk(k, dim=1).indices
    return torch.zeros_like(codes).scatter(1, places, codes.gather(1, places))


def _share(name: str, value: float, t: int) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"{name}({t}) is {value}: must be in (0, 1]; mend the schedule")
    return value


def _root(moments: Tensor, power: float) -> Tensor:
    """Return a power of a positive semidefinite matrix; directions it has not stay 0."""
    values, vectors = torch.linalg.eigh(moments)
    floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
    scale = torch.where(values > floor, values.clamp(min=floor).pow(power), 0)
    return (vectors * scale) @ vectors.mT
