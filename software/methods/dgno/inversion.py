"""From a few noisy values of u back to a: decoders frozen, the code sought, the physics kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sat.methods.dgno.model import DGNO
from sat.methods.problems.arguments import require_counts

MISFIT_WEIGHT = 25.0


@dataclass(frozen=True)
class Inversion:
    """What `invert` found.

    Attributes
    ----------
    beta : torch.Tensor
        (latent,): the code of least loss.
    a_prob : torch.Tensor
        (n_input,): probability of the upper phase in each cell, mean over the posterior's draws
        (ones if a is continuous).
    a : torch.Tensor
        (n_input,): a of ``beta``, its likelier phase.
    u : torch.Tensor
        (places,): u of ``beta``.
    spread : torch.Tensor
        (n_input,): standard deviation of a under the posterior, in the units of a.
    draws : torch.Tensor
        (count, n_input): a of the posterior's draws, mean over phases.
    misfit : float
        ‖u(x_obs) - y‖ / ‖y‖ of ``beta``.
    """

    beta: Tensor
    a_prob: Tensor
    a: Tensor
    u: Tensor
    spread: Tensor
    draws: Tensor
    misfit: float


def posterior_covariance(jacobian: Tensor, noise: float, prior: Tensor) -> Tensor:
    """Return (JᵀJ / σ² + prior⁻¹)⁻¹: Laplace's covariance of a code at its optimum.

    Parameters
    ----------
    jacobian : torch.Tensor
        (sensors, latent): of u by code.
    noise : float
        σ.
    prior : torch.Tensor
        (latent, latent), positive definite.

    Returns
    -------
    torch.Tensor
        (latent, latent) float64.
    """
    j = jacobian.double()
    precision = j.mT @ j / noise**2 + torch.cholesky_inverse(torch.linalg.cholesky(prior.double()))
    return torch.cholesky_inverse(torch.linalg.cholesky(precision))


def invert(
    model: DGNO,
    x_obs: Tensor,
    y: Tensor,
    noise: float,
    *,
    codes: Tensor,
    f: float = 10.0,
    places: Tensor | None = None,
    starts: int = 4,
    steps: int = 500,
    lr: float = 1e-2,
    relaxed: int = 25,
    prior: float = 0.1,
    draws: int = 100,
    generator: torch.Generator,
) -> Inversion:
    """Recover a from values of u at sensors.

    The code starts at those of the given inputs whose u fit the sensors best: elsewhere decoders
    know nothing. Loss of a code: 25 ‖u(x_obs) - y‖ / ‖y‖, the equations' residuals with the decoded
    a (its phases relaxed by logistic noise), and its squared distance from the Gaussian of the
    given codes. Adam, its rate halved every tenth of the steps. The posterior is a mixture of
    Laplace's Gaussians at the ends of all starts, weighted by their densities.

    Parameters
    ----------
    model : DGNO
        Trained; its parameters stay as they are.
    x_obs : torch.Tensor
        (sensors, dim) within [0, 1].
    y : torch.Tensor
        (sensors,): values of u there.
    noise : float
        Their standard deviation, positive, in the units of u.
    codes : torch.Tensor
        (samples, latent): ``model.encode`` of training inputs, more than one.
    f : float
        Right-hand side.
    places : torch.Tensor, optional
        (places, dim), of the returned u; the centres of cells if not given.
    starts, steps : int
    lr : float
    relaxed : int
        Draws of logistic noise that are averaged.
    prior : float
        Weight of the mean squared distance from the codes' Gaussian, not negative.
    draws : int
        From the posterior.
    generator : torch.Generator

    Returns
    -------
    Inversion

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    _require(model, x_obs, y, noise, codes)
    require_counts(starts=starts, steps=steps, relaxed=relaxed, draws=draws)
    if not 0 <= prior < math.inf:
        raise ValueError(f"prior={prior}: must be finite and not negative; 0 switches it off")
    codes = codes.detach()
    mean = codes.mean(0)
    # A thousandth of the variance in every direction, so that no code is ruled out.
    covariance = codes.mT.cov().double()
    scale = float(covariance.diagonal().mean()) or 1.0
    covariance += 1e-3 * scale * torch.eye(len(mean), dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance)

    def distance(beta: Tensor) -> Tensor:
        """Return (batch,): squared distances from the codes, in their deviations."""
        off = torch.linalg.solve_triangular(factor, (beta - mean).double().mT, upper=False)
        return off.square().sum(0)

    def misfit(beta: Tensor) -> Tensor:
        return (model.solution(x_obs, beta) - y).norm(dim=1) / y.norm()

    bounded = model.kind == "point"
    with torch.no_grad():
        best = misfit(codes).argsort()[:starts]
        free = codes[best].clamp(-0.999, 0.999).atanh() if bounded else codes[best].clone()
    free.requires_grad_()

    def code() -> Tensor:
        return torch.tanh(free) if bounded else free

    def loss(beta: Tensor) -> Tensor:
        x = model.test.sample(model.centers, generator, beta.dtype)
        medium = _relaxed(model, x.flatten(0, 1), beta, relaxed, generator)
        mixed, weak = model.residuals(medium, x, beta, f)
        physics = mixed + math.sqrt(model.centers) * weak
        nearby = prior * distance(beta).to(beta.dtype) / model.latent
        return MISFIT_WEIGHT * misfit(beta) + physics + nearby

    optimizer = torch.optim.Adam([free], lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, max(1, steps // 10), 0.5)
    for _ in range(steps):
        (free.grad,) = torch.autograd.grad(loss(code()).sum(), free)
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        ends = code()
        # Over several draws of test functions: one would decide by chance.
        chosen = int(torch.stack([loss(ends) for _ in range(8)]).mean(0).argmin())
        squares = (model.solution(x_obs, ends) - y).double().square().sum(1)
        energy = squares / (2 * noise**2) + distance(ends) / 2
    posterior = _draw(model, x_obs, noise, ends, energy, covariance, draws, generator)
    with torch.no_grad():
        beta = ends[chosen : chosen + 1]
        decoded = model.medium(model.cells, beta)[0]
        samples = model.medium(model.cells, posterior)
        if model.phases is None:
            share = torch.ones_like(decoded)
            a, spread = decoded, samples.std(0)
        else:
            low, high = model.phases
            share = ((samples - low) / (high - low)).mean(0)
            a = torch.where(decoded >= (low + high) / 2, high, low)
            spread = (high - low) * (share * (1 - share)).clamp(min=0).sqrt()
        return Inversion(
            beta[0], share, a, model.solution(model.cells if places is None else places, beta)[0],
            spread, samples, float(misfit(beta)),
        )  # fmt: skip


def _relaxed(
    model: DGNO, x: Tensor, beta: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    out = model.decode_input(x, beta)
    if model.phases is None:
        return out
    uniform = torch.rand(count, *out.shape, generator=generator, dtype=out.dtype)
    return model.mix(torch.sigmoid(out + torch.logit(uniform, 1e-6).mean(0)))


def _draw(
    model: DGNO,
    x_obs: Tensor,
    noise: float,
    ends: Tensor,
    energy: Tensor,
    prior: Tensor,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Return codes (count, latent) from Laplace's Gaussians at the ends of all starts."""
    weights = torch.softmax(-energy, 0)
    chosen = torch.multinomial(weights, count, True, generator=generator)
    out = torch.empty(count, model.latent, dtype=ends.dtype)
    for end in chosen.unique().tolist():
        jacobian = torch.func.jacrev(lambda b: model.solution(x_obs, b[None])[0])(ends[end])
        factor = torch.linalg.cholesky(posterior_covariance(jacobian.detach(), noise, prior))
        places = (chosen == end).nonzero()[:, 0]
        noises = torch.randn(len(places), model.latent, generator=generator, dtype=torch.float64)
        out[places] = (ends[end] + noises @ factor.mT).to(ends.dtype)
    return out.clamp(-1, 1) if model.kind == "point" else out


def _require(model: DGNO, x_obs: Tensor, y: Tensor, noise: float, codes: Tensor) -> None:
    if x_obs.ndim != 2 or x_obs.shape[1] != model.dim or len(x_obs) == 0:
        raise ValueError(
            f"x_obs has shape {tuple(x_obs.shape)}: must be (sensors, {model.dim}), at least one"
        )
    if not bool(((x_obs >= 0) & (x_obs <= 1)).all()):
        worst = float(x_obs.flatten()[(x_obs - 0.5).abs().argmax()])
        raise ValueError(f"x_obs={worst:g}: must lie within [0, 1]; scale the domain")
    if y.shape != x_obs.shape[:1]:
        raise ValueError(f"y has shape {tuple(y.shape)}: must be ({len(x_obs)},), one a sensor")
    if not bool(y.isfinite().all()) or not bool(y.any()):
        raise ValueError("y has NaNs, infinities or zeros alone: must be finite; drop such sensors")
    if not 0 < noise < math.inf:
        raise ValueError(f"noise={noise}: must be positive and finite; give the sensors' deviation")
    if codes.ndim != 2 or codes.shape[1] != model.latent or len(codes) < 2:
        raise ValueError(
            f"codes has shape {tuple(codes.shape)}: must be (samples, latent={model.latent}), at "
            "least 2; give model.encode of training inputs"
        )
