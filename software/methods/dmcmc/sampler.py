"""A chain over samples and their levels of noise, and short integrations from where it passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sat.methods.dmcmc.integrators import Integrator, Score, kar2, noise_like
from sat.methods.dmcmc.levels import LevelPosterior, require_levels
from sat.methods.problems.arguments import require_counts

SELECT = ("sample", "argmax")
START_STEPS, KICK, WARM_UP = 20, 0.5, 20


class CheckedScore:
    """A score that is counted, and must be finite.

    Parameters
    ----------
    score : callable

    Attributes
    ----------
    evaluations : int
        Times that it was asked for a batch.
    """

    def __init__(self, score: Score) -> None:
        self.score, self.evaluations = score, 0

    def __call__(self, x: Tensor, s: Tensor) -> Tensor:
        """Return the score (n, d) of x (n, d) at levels s (n,).

        Raises
        ------
        FloatingPointError
            If it has another shape, infinities or NaNs.
        """
        self.evaluations += 1
        out = self.score(x, s)
        if out.shape != x.shape or not bool(out.isfinite().all()):
            what = "NaNs or infinities" if out.shape == x.shape else f"shape {tuple(out.shape)}"
            raise FloatingPointError(
                f"evaluation {self.evaluations}: the score has {what}, smallest s "
                f"{float(s.min()):.3g}: must be {tuple(x.shape)} and finite; lower eta, or raise "
                "the smallest level"
            )
        return out


def from_vp(eps: Callable[[Tensor, Tensor], Tensor]) -> Score:
    """Return the score of a variance-preserving model, by its prediction of noise.

    Parameters
    ----------
    eps : callable
        Of x_vp (n, d) and abar (n,): the noise in x_vp = sqrt(abar) x_0 + sqrt(1 - abar) z.

    Returns
    -------
    callable
        ``-eps(sqrt(a) x, a) / s``, ``a = 1 / (1 + s²)``: x_ve = x_vp / sqrt(a).
    """

    def score(x: Tensor, s: Tensor) -> Tensor:
        a = 1 / (1 + s.square())
        return -eps(a.sqrt()[:, None].to(x.dtype) * x, a) / s[:, None].to(x.dtype)

    return score


class DLG:
    """Denoising Langevin Gibbs: many chains, each over a sample x and its level s.

    A step is one of Langevin's at the present level, ``x + eta/2 S(x, s) + sqrt(eta) z``, and a
    draw of the level from p(s | x). One evaluation of the score. A fixed eta biases the level: the
    chain cannot stay much below sqrt(eta), so eta sets the level it works at.

    Parameters
    ----------
    score : callable
        See `integrators`.
    level_posterior : LevelPosterior
        `ExactPosterior`, `NoiseClassifier`.
    levels : torch.Tensor
        (T,), positive and monotone; those of ``level_posterior``.
    eta : float
        Langevin's step.
    select : {"sample", "argmax"}
        The draw, or the likeliest level, as the released code takes: no Gibbs step, and in few
        dimensions far from one.
    adaptive : bool
        Whether the step is ``eta (s² + radius²)``; an extension, for an unbiased chain.
    radius : float
        Of the data's finest detail.

    Attributes
    ----------
    x, s : torch.Tensor or None
        Where the chains are, (chains, d) and (chains,); None before `start`.
    start_evaluations : int
        What `start` took.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or the posterior is one over other levels.

    Source
    ------
    Kim, Ye 2023, arXiv 2209.14593, sections 3 and 4, and its released code.
    """

    def __init__(
        self,
        score: Score,
        level_posterior: LevelPosterior,
        levels: Tensor,
        eta: float,
        select: str = "sample",
        adaptive: bool = False,
        *,
        radius: float = 0.0,
    ) -> None:
        if not 0 < eta < math.inf:
            raise ValueError(f"eta={eta}: must be positive and finite; 0.05 to 0.8 for pixels")
        if select not in SELECT:
            raise ValueError(f"select={select!r}: must be one of {', '.join(SELECT)}")
        if not 0 <= radius < math.inf:
            raise ValueError(f"radius={radius}: must be finite and not negative")
        self.levels = require_levels(levels)
        theirs = level_posterior.levels
        if theirs.shape != self.levels.shape or not torch.allclose(
            theirs.double(), self.levels, rtol=1e-6
        ):
            raise ValueError(
                f"level_posterior has {len(theirs)} levels, levels {len(self.levels)}: must be the "
                "same; train it on these"
            )
        self.score = score if isinstance(score, CheckedScore) else CheckedScore(score)
        self.level_posterior, self.eta, self.select = level_posterior, eta, select
        self.adaptive, self.radius = adaptive, radius
        self.x: Tensor | None = None
        self.s: Tensor | None = None
        self.start_evaluations = 0

    @torch.no_grad()
    def start(
        self,
        n_chains: int,
        dim: int,
        generator: torch.Generator,
        *,
        integrator: Integrator | None = None,
        kick: float = KICK,
        warm_up: int = WARM_UP,
    ) -> None:
        """Begin chains near the data: integrate noise, add some, read levels, take some steps.

        Parameters
        ----------
        n_chains, dim : int
        generator : torch.Generator
        integrator : callable, optional
            From the highest level; KAR2 with 20 steps, to the lowest, if not given.
        kick : float
            Deviation of the noise that is added.
        warm_up : int
            Steps.

        Raises
        ------
        ValueError
            If a number breaks its rule.
        FloatingPointError
            If the score is not finite.
        """
        require_counts(n_chains=n_chains, dim=dim)
        if not 0 <= kick < math.inf:
            raise ValueError(f"kick={kick}: must be finite and not negative; 0.5 is usual")
        if not isinstance(warm_up, int) or warm_up < 0:
            raise ValueError(f"warm_up={warm_up!r}: must be an int of at least 0; 20 is usual")
        before = self.score.evaluations
        smax = float(self.levels.max())
        x = smax * torch.randn(n_chains, dim, generator=generator, dtype=torch.float64)
        s = torch.full((n_chains,), smax, dtype=x.dtype)
        if integrator is None:
            lowest = float(self.levels.min())
            x = kar2(self.score, x, s, generator, steps=START_STEPS, sigma_min=lowest)
        else:
            x = integrator(self.score, x, s, generator)
        x = x + kick * noise_like(x, generator)
        s = self.draw_level(x, generator)
        for _ in range(warm_up):
            x, s = self.step(x, s, generator)
        self.x, self.s = x, s
        self.start_evaluations = self.score.evaluations - before

    @torch.no_grad()
    def draw_level(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return levels (n,) of samples x (n, d), drawn from p(s | x) or the likeliest."""
        log_probs = self.level_posterior.log_probs(x)
        if self.select == "argmax":
            chosen = log_probs.argmax(1)
        else:
            chosen = torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]
        return self.levels[chosen].to(x.dtype)

    @torch.no_grad()
    def step(
        self, x: Tensor, s: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return x (n, d) and s (n,) after one step; the object stays as it is.

        Raises
        ------
        ValueError
            If s is not (n,).
        FloatingPointError
            If the score is not finite.
        """
        if s.shape != x.shape[:1]:
            raise ValueError(f"s has shape {tuple(s.shape)}: must be ({len(x)},), a level a sample")
        eta = self.eta * (s.square() + self.radius**2) if self.adaptive else s.new_tensor(self.eta)
        eta = eta[..., None]
        x = x + eta / 2 * self.score(x, s) + eta.sqrt() * noise_like(x, generator)
        return x, self.draw_level(x, generator)

    def run(
        self, n_skip: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Go on by some steps; remember where the level was least, the place before them included.

        Parameters
        ----------
        n_skip : int
        generator : torch.Generator, optional

        Returns
        -------
        x, s, x_min, s_min : torch.Tensor
            Where the chains are now, (chains, d) and (chains,), and where each was least noisy.

        Raises
        ------
        ValueError
            If ``n_skip`` is no positive int.
        RuntimeError
            If the chains were not started.
        FloatingPointError
            If the score is not finite.
        """
        require_counts(n_skip=n_skip)
        if self.x is None or self.s is None:
            raise RuntimeError("these chains are nowhere yet: call start first")
        x, s = self.x, self.s
        x_min, s_min = x, s
        for _ in range(n_skip):
            x, s = self.step(x, s, generator)
            lower = s < s_min
            x_min, s_min = torch.where(lower[:, None], x, x_min), torch.where(lower, s, s_min)
        self.x, self.s = x, s
        return x, s, x_min, s_min


@dataclass(frozen=True)
class Samples:
    """What a sampler made.

    Attributes
    ----------
    x : torch.Tensor
        (n_samples, d).
    evaluations_per_sample : int
        Of the score: steps of the chain, the integrator, and the last denoising; of an integrator
        that varies, the mean, rounded up.
    level_trace : torch.Tensor
        (rounds, chains): levels that the integrator began at.
    start_evaluations : int
        What starting the chains took, a chain; not in the above, for it is paid once.
    """

    x: Tensor
    evaluations_per_sample: int
    level_trace: Tensor
    start_evaluations: int = 0


@torch.no_grad()
def dmcmc_sample(
    dlg: DLG,
    integrator: Integrator,
    n_samples: int,
    n_skip: int,
    tweedie: float = 0.01,
    generator: torch.Generator | None = None,
) -> Samples:
    """Draw samples: each chain gives one after every ``n_skip`` steps.

    The integrator begins where the chain was least noisy since the last sample, each chain at its
    own level; the chain goes on from where it is.

    Parameters
    ----------
    dlg : DLG
        Started.
    integrator : callable
        A score, x, s and a generator to clean x: ``functools.partial(kar1, steps=4)``.
    n_samples : int
        No multiple of the chains: the last round is cut.
    n_skip : int
    tweedie : float
        The level t of the last denoising, ``x + t² S(x, t)``.
    generator : torch.Generator, optional

    Returns
    -------
    Samples

    Raises
    ------
    ValueError
        If a number breaks its rule.
    RuntimeError
        If the chains were not started.
    FloatingPointError
        If the score is not finite: eta is too large.
    """
    require_counts(n_samples=n_samples, n_skip=n_skip)
    require_tweedie(tweedie)
    made: list[Tensor] = []
    trace: list[Tensor] = []
    before = dlg.score.evaluations
    while sum(map(len, made)) < n_samples:
        _, _, x, s = dlg.run(n_skip, generator)
        x = integrator(dlg.score, x, s, generator or torch.default_generator)
        made.append(denoise(dlg.score, x, tweedie))
        trace.append(s)
    evaluations = -(-(dlg.score.evaluations - before) // len(made))
    return Samples(
        torch.cat(made)[:n_samples], evaluations, torch.stack(trace), dlg.start_evaluations
    )


@torch.no_grad()
def from_noise(
    score: Score,
    integrator: Integrator,
    n: int,
    dim: int,
    smax: float,
    generator: torch.Generator,
    tweedie: float = 0.01,
) -> Samples:
    """Draw n samples (n, dim) in the usual way: all integrated from pure noise at level smax.

    Raises
    ------
    ValueError
        If a number breaks its rule.
    FloatingPointError
        If the score is not finite.
    """
    require_counts(n=n, dim=dim)
    if not 0 < smax < math.inf:
        raise ValueError(f"smax={smax}: must be positive and finite")
    require_tweedie(tweedie)
    checked = CheckedScore(score)
    s = torch.full((n,), smax, dtype=torch.float64)
    x = smax * torch.randn(n, dim, generator=generator, dtype=torch.float64)
    x = denoise(checked, integrator(checked, x, s, generator), tweedie)
    return Samples(x, checked.evaluations, s[None])


def denoise(score: Score, x: Tensor, t: float) -> Tensor:
    """Return E[x_0 | x] at level t by Tweedie's formula, ``x + t² S(x, t)``."""
    return x + t**2 * score(x, x.new_full((len(x),), t))


def require_tweedie(t: float) -> None:
    """Raise ValueError unless the level of the last denoising is positive and finite."""
    if not 0 < t < math.inf:
        raise ValueError(f"tweedie={t}: must be positive and finite; 0.01 is usual")
