"""Gaussian mixtures whose noised densities are known exactly: scores without a trained network.

Adding normal noise to a mixture widens its components, S -> S + s² I, which share eigenvectors for
all levels s. The variance-exploding form adds noise, x_ve = x_0 + s z; the variance-preserving one
shrinks the data, too: x_vp = sqrt(a) x_0 + sqrt(1 - a) z = sqrt(a) x_ve at s = sqrt((1 - a) / a).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts

TOLERANCE = 1e-8
"""How far weights may be off their sum, and covariances off symmetric and positive, of 1."""


class GaussianMixtureVE:
    """A mixture under noise of deviation s, variance-exploding.

    All is computed in float64, and returned in the dtype of ``x``.

    Parameters
    ----------
    weights : torch.Tensor
        (K,), positive, of sum 1.
    means : torch.Tensor
        (K, d).
    covariances : torch.Tensor
        (K, d, d), symmetric and positive semidefinite; zeros make points.

    Raises
    ------
    ValueError
        If a shape or a number breaks its rule.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights, self.means, self.covariances = (
            torch.as_tensor(given, dtype=torch.float64) for given in (weights, means, covariances)
        )
        _require_mixture(self.weights, self.means, self.covariances)
        self.dim = self.means.shape[1]
        variances, self._axes = torch.linalg.eigh(self.covariances)
        self._variances = variances.clamp(min=0)

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return log densities (n,) of x (n, d) at levels ``sigma``, one or (n,).

        Raises
        ------
        ValueError
            If a shape is wrong, a level negative, or 0 where a covariance is singular.
        """
        x, variances, seen = self._inputs(x, sigma)
        return self._joint(seen, variances).logsumexp(0).to(x.dtype)

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Return d log p / dx (n, d) at x (n, d) and levels ``sigma``, one or (n,).

        Raises
        ------
        ValueError
            As by `log_prob`.
        """
        x, variances, seen = self._inputs(x, sigma)
        shares = self._joint(seen, variances).softmax(0)
        # Each component pulls along its own axes; all of them turned back by one product.
        pulls = (-seen / variances * shares[..., None]).transpose(0, 1).flatten(1)
        return (pulls @ self._axes.mT.flatten(0, 1)).to(x.dtype)

    def level_log_prob(self, x: Tensor, levels: Tensor) -> Tensor:
        """Return log densities (n, T) of x (n, d) at each of levels (T,).

        Less their logsumexp they are the levels' posterior, where all are equally likely.

        Raises
        ------
        ValueError
            As by `log_prob`.
        """
        levels = torch.as_tensor(levels, dtype=torch.float64)
        if levels.ndim != 1:
            raise ValueError(f"levels have shape {tuple(levels.shape)}: must be (T,)")
        seen = self._along_axes(x)
        # (K, d, T): all levels of a component share its axes.
        variances = self._noised(levels).permute(0, 2, 1)
        distances = seen.square() @ variances.reciprocal()
        log_norms = variances.log().sum(1) + self.dim * math.log(2 * math.pi)
        each = self.weights.log()[:, None, None] - (distances + log_norms[:, None]) / 2
        return each.logsumexp(0).to(x.dtype)

    def moments(self, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return mean (d,) and covariance (d, d), float64, at a level."""
        mean = (self.weights[:, None] * self.means).sum(0)
        apart = self.means - mean
        within = (self.weights[:, None, None] * self.covariances).sum(0)
        between = (self.weights[:, None] * apart).mT @ apart
        return mean, within + between + sigma**2 * torch.eye(self.dim, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator, sigma: float = 0.0) -> Tensor:
        """Return draws (n, d), float64, at a level.

        Raises
        ------
        ValueError
            If ``n`` is no positive int.
        """
        require_counts(n=n)
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        z *= (self._variances[chosen] + sigma**2).sqrt()
        x = self.means[chosen]
        for k in chosen.unique().tolist():
            x[chosen == k] += z[chosen == k] @ self._axes[k].mT
        return x

    # ------------------------------------------------------------------------------------- inside

    def _inputs(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, variances (K, n or 1, d) and coordinates (K, n, d) along each one's axes."""
        seen = self._along_axes(x)
        levels = torch.as_tensor(sigma, dtype=torch.float64)
        if levels.shape not in ((), (len(x),)):
            raise ValueError(
                f"sigma has shape {tuple(levels.shape)}: must be one number, or ({len(x)},) as x"
            )
        return x, self._noised(levels.reshape(-1)), seen

    def require_points(self, x: Tensor) -> None:
        """Raise ValueError unless x is (n, d), floating point."""
        if x.ndim != 2 or x.shape[1] != self.dim or not x.is_floating_point():
            raise ValueError(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}: must be (n, {self.dim}), "
                "floating point"
            )

    def _along_axes(self, x: Tensor) -> Tensor:
        self.require_points(x)
        # Differences first: products of near numbers would lose them.
        return (x.to(torch.float64) - self.means[:, None]) @ self._axes

    def _noised(self, levels: Tensor) -> Tensor:
        """Return variances (K, levels, d)."""
        if not bool(((levels >= 0) & levels.isfinite()).all()):
            raise ValueError(
                f"sigma reaches from {float(levels.min())} to {float(levels.max())}: must be "
                "finite and not negative"
            )
        variances = self._variances[:, None] + levels[:, None].square()
        if not bool((variances > 0).all()):
            raise ValueError(
                f"sigma={float(levels.min())}: a covariance is singular, so there is no density "
                "without noise; raise sigma, or add to the covariance"
            )
        return variances

    def _joint(self, seen: Tensor, variances: Tensor) -> Tensor:
        """Return log weight + log density (K, n)."""
        distances = (seen.square() / variances).sum(-1)
        log_norms = variances.log().sum(-1) + self.dim * math.log(2 * math.pi)
        return self.weights.log()[:, None] - (distances + log_norms) / 2


class GaussianMixture:
    """A mixture under the variance-preserving process x = sqrt(a) x_0 + sqrt(1 - a) z.

    Parameters
    ----------
    weights, means, covariances : torch.Tensor
        As of `GaussianMixtureVE`, which is `ve`; all is computed there, in float64.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.ve = GaussianMixtureVE(weights, means, covariances)
        self.dim = self.ve.dim

    def eps(self, x: Tensor, alpha_bar: Tensor | float) -> Tensor:
        """Return E[z | x] (n, d), the best prediction of the noise in x (n, d).

        Parameters
        ----------
        x : torch.Tensor
            (n, d).
        alpha_bar : torch.Tensor or float
            a within (0, 1], one or (n,).

        Raises
        ------
        ValueError
            If a shape is wrong, or a level out of range.
        """
        root, sigma = self._level(x, alpha_bar)
        return (-sigma * self.ve.score(x.double() / root, sigma[:, 0])).to(x.dtype)

    def score(self, x: Tensor, alpha_bar: Tensor | float) -> Tensor:
        """Return d log p / dx (n, d); arguments and errors as of `eps`."""
        root, sigma = self._level(x, alpha_bar)
        return (self.ve.score(x.double() / root, sigma[:, 0]) / root).to(x.dtype)

    def log_prob(self, x: Tensor, alpha_bar: Tensor | float = 1.0) -> Tensor:
        """Return log densities (n,); arguments and errors as of `eps`."""
        root, sigma = self._level(x, alpha_bar)
        inner = self.ve.log_prob(x.double() / root, sigma[:, 0])
        return (inner - self.dim * root[:, 0].log()).to(x.dtype)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return draws (n, d), float64, of the data."""
        return self.ve.sample(n, generator)

    def _level(self, x: Tensor, alpha_bar: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return sqrt(a) and s as columns (n, 1)."""
        self.ve.require_points(x)
        a = torch.as_tensor(alpha_bar, dtype=torch.float64)
        if a.shape not in ((), x.shape[:1]) or not bool(((a > 0) & (a <= 1)).all()):
            raise ValueError(
                f"alpha_bar of shape {tuple(a.shape)}, {a.flatten()[:3].tolist()} …: must be one "
                f"number or ({len(x)},), above 0 and at most 1"
            )
        a = a.expand(len(x))[:, None]
        return a.sqrt(), ((1 - a) / a).sqrt()


def ring(components: int = 8, radius: float = 1.0, std: float = 0.15) -> GaussianMixture:
    """Return equal round components on a circle in the plane.

    Raises
    ------
    ValueError
        If ``components`` is no positive int.
    """
    require_counts(components=components)
    angles = 2 * math.pi * torch.arange(components, dtype=torch.float64) / components
    means = radius * torch.stack([angles.cos(), angles.sin()], 1)
    covariances = std**2 * torch.eye(2, dtype=torch.float64).expand(components, 2, 2)
    return GaussianMixture(
        torch.full((components,), 1 / components, dtype=torch.float64), means, covariances
    )


def _require_mixture(weights: Tensor, means: Tensor, covariances: Tensor) -> None:
    count, dim = means.shape if means.ndim == 2 else (0, 0)
    if not count or not dim or weights.shape != (count,) or covariances.shape != (count, dim, dim):
        raise ValueError(
            f"weights, means and covariances have shapes {tuple(weights.shape)}, "
            f"{tuple(means.shape)} and {tuple(covariances.shape)}: must be (K,), (K, d), (K, d, d)"
        )
    if not all(bool(given.isfinite().all()) for given in (weights, means, covariances)):
        raise ValueError("the mixture has infinities or NaNs: must be finite")
    if not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > TOLERANCE:
        raise ValueError(
            f"weights {weights.tolist()} have sum {float(weights.sum())}: must be positive and of "
            "sum 1; divide by the sum, in float64"
        )
    for k, covariance in enumerate(covariances):
        size = float(covariance.abs().max())
        off = float((covariance - covariance.mT).abs().max())
        if off > TOLERANCE * size:
            raise ValueError(
                f"covariance {k} is off its transpose by {off}: must be symmetric; take "
                "(C + C.T) / 2"
            )
        least = float(torch.linalg.eigvalsh(covariance).min())
        if least < -TOLERANCE * size:
            raise ValueError(
                f"covariance {k} has eigenvalue {least}: must be positive semidefinite; add to its "
                "diagonal"
            )
