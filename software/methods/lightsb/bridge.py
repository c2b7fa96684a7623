"""The bridge: potential, plan, drift, training and sampling.

Between p0 and p1, with a Wiener prior of variance epsilon, the plan is

    π(x1 | x0) = Σ_k α̃_k(x0) N(x1 | r_k + S_k x0, ε S_k) / c(x0),
    log α̃_k(x0) = log α_k + (x0ᵀ S_k x0 + 2 r_kᵀ x0) / 2ε,  c = Σ_k α̃_k,

where v(x1) = Σ_k α_k N(x1 | r_k, ε S_k) is the adjusted potential (section 3.1).
Everything is computed from logarithms, and quadratic forms as matrix products: of x² and x for
diagonal S_k, of x ⊗ x and x for full ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

COVARIANCES = ("diagonal", "full")


@dataclass(frozen=True)
class _Forms:
    """Quadratic forms q_k(x) = xᵀ Q_k x / 2 + b_kᵀ x + c_k, for all k at once.

    Q is (K, dim) where diagonal, else (K, dim, dim).
    """

    quadratic: Tensor
    linear: Tensor
    constant: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return (batch, K)."""
        if self.quadratic.ndim == 2:
            squares, weights = x.square(), self.quadratic
        else:
            squares = (x[:, :, None] * x[:, None, :]).flatten(1)
            weights = self.quadratic.flatten(1)
        return squares @ weights.mT / 2 + x @ self.linear.mT + self.constant


class LightSB(nn.Module):
    """A Schrödinger bridge with a Gaussian mixture for its potential.

    Parameters
    ----------
    dim : int
        Of the space.
    n_potentials : int
        Gaussians in the mixture.
    epsilon : float
        Variance of the Wiener prior over the unit of time; positive.
    covariance : str
        ``"diagonal"`` or ``"full"`` S_k.

    Raises
    ------
    ValueError
        If a number breaks its rule.

    Source
    ------
    Korotin, Gushchin, Burnaev 2023 (arXiv 2310.01174), sections 3 and 4.
    """

    def __init__(
        self, dim: int, n_potentials: int, epsilon: float, covariance: str = "diagonal"
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("n_potentials", n_potentials)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: must be an int of at least 1")
        if not 0 < epsilon < math.inf:
            raise ValueError(f"epsilon={epsilon}: must be positive and finite; it is a variance")
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance={covariance!r}: must be 'diagonal' or 'full'")
        self.dim, self.epsilon, self.covariance = dim, float(epsilon), covariance
        self.log_alpha = nn.Parameter(torch.full((n_potentials,), -math.log(n_potentials)))
        self.r = nn.Parameter(torch.zeros(n_potentials, dim))
        # Logarithms of the diagonal of S, or of its Cholesky factor's; below it, the factor.
        size = (n_potentials, dim) if covariance == "diagonal" else (n_potentials, dim, dim)
        self.factor = nn.Parameter(torch.zeros(size))
        self.set_components(
            self.log_alpha.detach().exp(),
            self.r.detach(),
            (0.1 * torch.eye(dim)).expand(n_potentials, dim, dim),
        )

    # ------------------------------------------------------------------------- parameters

    @torch.no_grad()
    def set_components(self, alpha: Tensor, r: Tensor, s: Tensor) -> None:
        """Set the mixture.

        Parameters
        ----------
        alpha : (K,), positive, finite
        r : (K, dim), finite
        s : (K, dim, dim), symmetric, positive definite; of a diagonal bridge, diagonal

        Raises
        ------
        ValueError
            If a shape or a matrix breaks its rule.
        """
        shape = (*self.r.shape, self.dim)
        given = tuple(alpha.shape), tuple(r.shape), tuple(s.shape)
        if given != (shape[:1], shape[:2], shape):
            raise ValueError(f"alpha, r, S are {given}: must be {shape[:1]}, {shape[:2]}, {shape}")
        if not bool((alpha > 0).all()):
            raise ValueError(f"alpha has a weight of {float(alpha.min())}: all must be positive")
        for name, value in (("alpha", alpha), ("r", r), ("S", s)):
            if not bool(torch.isfinite(value).all()):
                k = int((~torch.isfinite(value)).nonzero()[0, 0])
                raise ValueError(f"{name}[{k}] is {value[k].tolist()}: components must be finite")
        # Of each matrix by itself: a wide one must not hide what is wrong with a narrow one.
        size = s.abs().amax((1, 2))
        skew = (s - s.mT).abs().amax((1, 2))
        if bool((skew > 1e-5 * size).any()):
            raise ValueError(
                f"S is not symmetric, by {float(skew.max()):.3g}: a covariance is; "
                "use (S + S.mT) / 2"
            )
        factor, failed = torch.linalg.cholesky_ex(s)
        if bool(failed.any()):
            raise ValueError(
                f"S[{int(failed.nonzero()[0, 0])}] is not positive definite: all eigenvalues of a "
                "covariance are positive"
            )
        diagonal = torch.diagonal(factor, dim1=-2, dim2=-1)
        self.log_alpha.copy_(alpha.log())
        self.r.copy_(r)
        if self.covariance == "full":
            self.factor.copy_(factor.tril(-1) + torch.diag_embed(diagonal.log()))
        elif bool((s.tril(-1).abs().amax((1, 2)) > 1e-6 * size).any()):
            raise ValueError("S is not diagonal: make the bridge with covariance='full'")
        else:
            self.factor.copy_(2 * diagonal.log())

    @torch.no_grad()
    def initialise(self, x1: Tensor, generator: torch.Generator | None = None) -> None:
        """Put the potentials on random samples of p1: S = 0.1 I, equal weights."""
        x1 = x1.to(self.r.dtype)
        self._check(x1, "x1")
        count = len(self.r)
        # Without repeats as long as there are samples.
        picks = [torch.randperm(len(x1), generator=generator) for _ in range(-(-count // len(x1)))]
        r = x1[torch.cat(picks)[:count]]
        s = 0.1 * torch.eye(self.dim, dtype=r.dtype).expand(count, -1, -1)
        self.set_components(torch.full((count,), 1 / count, dtype=r.dtype), r, s)

    def cholesky(self) -> Tensor:
        """Return the Cholesky factors of S: (K, dim) diagonals, or (K, dim, dim)."""
        if self.covariance == "diagonal":
            return (self.factor / 2).exp()
        diagonal = torch.diagonal(self.factor, dim1=-2, dim2=-1).exp()
        return self.factor.tril(-1) + torch.diag_embed(diagonal)

    def _s(self) -> Tensor:
        if self.covariance == "diagonal":
            return self.factor.exp()
        factor = self.cholesky()
        return factor @ factor.mT

    def _inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return inverses and logarithms of determinants of matrices like S."""
        if self.covariance == "diagonal":
            return 1 / x, x.log().sum(-1)
        factor = torch.linalg.cholesky(x)
        log_det = 2 * torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
        return torch.cholesky_inverse(factor), log_det

    def _times(self, matrices: Tensor, vectors: Tensor) -> Tensor:
        """Return each matrix (K, …) times its vector (K, dim)."""
        if self.covariance == "diagonal":
            return matrices * vectors
        return (matrices @ vectors[..., None])[..., 0]

    def _check(self, x: Tensor, name: str) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim or not len(x):
            raise ValueError(f"{name} has shape {tuple(x.shape)}: must be (samples, {self.dim})")
        if x.dtype != self.r.dtype:
            raise ValueError(
                f"{name} is {x.dtype}: must be {self.r.dtype} like the parameters; convert it with "
                ".to(), or the bridge with .double()"
            )
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(1).nonzero()[0, 0])
            raise ValueError(f"{name}[{bad}] is {x[bad].tolist()}: samples must be finite")

    # ------------------------------------------------------------------------------- plan

    def _log_weights(self, x0: Tensor) -> Tensor:
        """Return log α̃_k(x0): (batch, K)."""
        forms = _Forms(self._s() / self.epsilon, self.r / self.epsilon, self.log_alpha)
        return forms(x0)

    def log_c(self, x0: Tensor) -> Tensor:
        """Return log c(x0), (batch,), for x0 (batch, dim) (section 3.1)."""
        self._check(x0, "x0")
        return torch.logsumexp(self._log_weights(x0), -1)

    def log_v(self, x1: Tensor) -> Tensor:
        """Return log v(x1), (batch,), for x1 (batch, dim) (section 3.1)."""
        self._check(x1, "x1")
        precision, log_det = self._inverse(self._s() * self.epsilon)
        linear = self._times(precision, self.r)
        constant = (
            self.log_alpha
            - (linear * self.r).sum(-1) / 2
            - (log_det + self.dim * math.log(2 * math.pi)) / 2
        )
        return torch.logsumexp(_Forms(-precision, linear, constant)(x1), -1)

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Return E log c(x0) - E log v(x1): KL from the true bridge up to a constant (section 3.2).

        Raises
        ------
        ValueError
            If samples have another dimension, or one is not finite.
        """
        return self.log_c(x0).mean() - self.log_v(x1).mean()

    def conditional_mean(self, x0: Tensor) -> Tensor:
        """Return E[x1 | x0]: (batch, dim)."""
        self._check(x0, "x0")
        return self._mixed(self._log_weights(x0), self.r, self._s(), x0)

    def _mixed(self, log_weights: Tensor, offsets: Tensor, matrices: Tensor, x: Tensor) -> Tensor:
        """Return Σ_k w_k(x) (offset_k + matrix_k x), the weights normalised."""
        weights = torch.softmax(log_weights, -1)
        if self.covariance == "diagonal":
            return weights @ offsets + (weights @ matrices) * x
        mixed = (weights @ matrices.flatten(1)).view(-1, self.dim, self.dim)
        return weights @ offsets + (mixed @ x[:, :, None])[:, :, 0]

    @torch.no_grad()
    def sample(self, x0: Tensor, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw from the plan: (n, batch, dim) given x0 (batch, dim)."""
        self._check(x0, "x0")
        if n < 1:
            raise ValueError(f"n={n}: must be at least 1")
        weights = torch.softmax(self._log_weights(x0), -1)
        k = torch.multinomial(weights, n, replacement=True, generator=generator).mT
        noise = torch.randn(n, *x0.shape, dtype=x0.dtype, generator=generator)
        scale, s = self.cholesky() * math.sqrt(self.epsilon), self._s()
        if self.covariance == "diagonal":
            return self.r[k] + s[k] * x0 + scale[k] * noise
        moved = (s[k] @ x0[..., None] + scale[k] @ noise[..., None])[..., 0]
        return self.r[k] + moved

    # ---------------------------------------------------------------------------- process

    def drift(self, x: Tensor, t: float) -> Tensor:
        """Return the bridge's drift g(x, t), (batch, dim), for 0 <= t < 1 (section 3.3).

        g = (E[x1 | x_t = x] - x) / (1 - t). With τ = ε (1 - t), x1 given component k is Gaussian of
        precision A_k = t / τ I + S_k⁻¹ / ε and mean A_k⁻¹ h_k, h_k = x / τ + S_k⁻¹ r_k / ε. The
        component's weight is α_k N(r_k | 0, ε S_k) |A_k|^(-1/2) exp(h_kᵀ A_k⁻¹ h_k / 2), the
        integral of that Gaussian (a test holds all of it against quadrature).
        """
        self._check(x, "x")
        if not 0 <= t < 1:
            raise ValueError(f"t={t}: must be from 0 to below 1; the process ends at 1")
        rest = self.epsilon * (1 - t)
        precision, log_det = self._inverse(self._s() * self.epsilon)
        pull = self._times(precision, self.r)
        ahead = torch.full((self.dim,), t / rest, dtype=x.dtype)
        if self.covariance == "full":
            ahead = torch.diag(ahead)
        spread, log_det_a = self._inverse(precision + ahead)
        offsets = self._times(spread, pull)
        constant = (
            self.log_alpha + ((offsets - self.r) * pull).sum(-1) / 2 - log_det / 2 - log_det_a / 2
        )
        forms = _Forms(spread / rest**2, offsets / rest, constant)
        return (self._mixed(forms(x), offsets, spread / rest, x) - x) / (1 - t)

    @torch.no_grad()
    def trajectory(
        self,
        x0: Tensor,
        n_steps: int,
        method: str = "euler",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Sample paths of the bridge: (n_steps + 1, batch, dim) at equal times from 0 to 1.

        Parameters
        ----------
        x0 : (batch, dim)
        n_steps : int
        method : str
            ``"euler"``: Euler-Maruyama with `drift`; ``"bridge"``: an end point from the plan, then
            a Brownian bridge to it.
        """
        self._check(x0, "x0")
        if n_steps < 1:
            raise ValueError(f"n_steps={n_steps}: must be at least 1")
        if method not in ("euler", "bridge"):
            raise ValueError(f"method={method!r}: must be 'euler' or 'bridge'")
        end = self.sample(x0, 1, generator)[0] if method == "bridge" else None
        path, dt = [x0], 1 / n_steps
        for i in range(n_steps):
            x, t = path[-1], i * dt
            noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
            if end is None:
                path.append(x + self.drift(x, t) * dt + math.sqrt(self.epsilon * dt) * noise)
            else:
                left = max(0.0, 1 - t - dt) / (1 - t)
                step = (end - x) * (1 - left) + math.sqrt(self.epsilon * dt * left) * noise
                path.append(x + step)
        return torch.stack(path)

    # --------------------------------------------------------------------------- training

    def fit(
        self,
        sampler0: Callable[[int], Tensor],
        sampler1: Callable[[int], Tensor],
        steps: int,
        *,
        batch: int = 128,
        lr: float = 1e-3,
        decay: bool = False,
        progress: Callable[[int, float], Any] | None = None,
    ) -> list[float]:
        """Minimise the loss with Adam (section 3.2).

        Parameters
        ----------
        sampler0, sampler1 : callable
            Take a count to as many samples of p0, p1.
        steps, batch : int
        lr : float
        decay : bool
            Whether the rate falls to zero along half a cosine.
        progress : callable, optional
            Called with the step and its loss.

        Returns
        -------
        list of float
            Losses.
        """
        if steps < 1 or batch < 1:
            raise ValueError(f"steps={steps}, batch={batch}: must be at least 1 each")
        optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        losses = []
        for step in range(steps):
            if decay:
                optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            value = self.loss(sampler0(batch), sampler1(batch))
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(value.detach()))
            if progress is not None:
                progress(step, losses[-1])
        return losses
