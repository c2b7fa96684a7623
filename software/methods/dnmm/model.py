"""The mixture of networks, its loss and its training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.dnmm.data import clusters, require_data, require_dimension, require_rows
from sat.methods.dnmm.integrators import (
    SMALLEST_WIDTH,
    BoxIntegrator,
    ImportancePool,
    TensorTrapezoid,
    Trapezoid1D,
    kernel_log_density,
    silverman_width,
)
from sat.methods.problems.arguments import require_counts
from sat.methods.problems.scaling import LOSS_SCALE
from sat.methods.problems.training import descend, fit

LOG_FLOOR = math.log(1e-12)
"""Of a density in the training loss, and only there."""

NODES = {1: 800, 2: 40}
POOL = 6000
FINER = 4
SOLID = 0.9
"""Sum of the logistic functions of g at the start."""

PRETRAIN_RATE = 2e-2


class DNMM(nn.Module):
    """p(x) = Σ c_k φ_k(x) in a box, 0 outside; φ_k = λ_k · sigmoid(network_k(x)), λ_k > 0.

    Weights c_k = s(g_k) / Σ s(g_j), s the logistic function: positive, of sum 1. That φ_k
    integrates to 1 is a soft constraint of the training; at the end each is divided by its
    integral. Networks are of tanh layers, and a component is a group of 1 x 1 convolutions, so that
    all components are one stack of products (and N:M by `sat.sparsify_`, from 32 nodes on).

    Trained in float32 on standardised data; float64 afterwards.

    Parameters
    ----------
    dim : int
        d.
    n_components : int
        K.
    hidden : sequence of int
        Nodes of each hidden layer, of one component; at least one layer.
    margin : float
        How far the box goes beyond the data, in ranges of theirs.
    generator : torch.Generator, optional
        Of weights, clusters, pools; torch's own if not given.

    Attributes
    ----------
    box : torch.Tensor
        (2, d) float64 in units of the data.
    before : torch.Tensor
        (K,) float64, integrals of φ_k before they were divided by them.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Trentin 2023 (mixture, adaptive λ, soft constraint); the start, the integrals and the constants
    are ours.
    """

    center: Tensor
    scale: Tensor
    box: Tensor
    before: Tensor
    log_norm: Tensor

    def __init__(
        self,
        dim: int,
        n_components: int,
        hidden: Sequence[int] = (8, 8),
        margin: float = 0.3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require_counts(dim=dim, n_components=n_components)
        require_counts(**{f"hidden[{i}]": width for i, width in enumerate(hidden)})
        if not hidden:
            raise ValueError("hidden=(): must have at least one layer, or φ_k is no bump")
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin={margin}: must be finite and not negative; 0.3 is usual")
        self.dim, self.n_components, self.margin = dim, n_components, margin
        self.generator = generator
        k = n_components
        self.first = nn.Linear(dim, k * hidden[0])
        widths = [*hidden, 1]
        self.deep = nn.ModuleList(
            nn.Conv2d(k * before, k * after, 1, groups=k)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.log_amplitude = nn.Parameter(torch.zeros(k))
        self.gate = nn.Parameter(torch.zeros(k))
        for name, shape in (("center", (dim,)), ("scale", (dim,)), ("box", (2, dim))):
            self.register_buffer(name, torch.full(shape, math.nan, dtype=torch.float64))
        self.register_buffer("before", torch.ones(k, dtype=torch.float64))
        self.register_buffer("log_norm", torch.zeros(k, dtype=torch.float64))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the networks anew, as torch draws linear layers."""
        for layer in (self.first, *self.deep):
            assert isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None
            reach = layer.weight[0].numel() ** -0.5
            for values in (layer.weight, layer.bias):
                values.uniform_(-reach, reach, generator=self.generator)

    @property
    def weights(self) -> Tensor:
        """c (K,), of sum 1."""
        return self.gate.sigmoid() / self.gate.sigmoid().sum()

    def log_components(self, z: Tensor) -> Tensor:
        """Return log φ_k (n, K) at standardised z (n, d), not divided by integrals."""
        if self.dim == 1:  # a product of depth 1 is none
            h = z * self.first.weight[:, 0] + self.first.bias
        else:
            h = self.first(z)
        h = h.mT[None, :, :, None]
        for layer in self.deep:
            h = layer(h.tanh())
        return self.log_amplitude + functional.logsigmoid(h[0, :, :, 0].mT)

    def log_mixture(self, log_phi: Tensor) -> Tensor:
        """Return log Σ c_k φ_k (n,) of log φ_k (n, K)."""
        return torch.logsumexp(log_phi + self.weights.log(), 1)

    def standardise(self, x: Tensor) -> Tensor:
        """Return (x - mean) / deviation of the training data, (n, d) float64.

        Raises
        ------
        RuntimeError
            Before `fit`.
        ValueError
            If ``x`` is no finite (n, d).
        """
        if not bool(torch.isfinite(self.scale).all()):
            raise RuntimeError("the mixture has no box: call fit(X) or load a state_dict")
        require_rows(x, self.dim)
        return (x.double() - self.center) / self.scale

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p (n,) of x (n, d); -inf outside the box.

        Raises
        ------
        RuntimeError
            Before `fit`.
        ValueError
            If ``x`` is no finite (n, d).
        """
        z = self.standardise(x).to(self.gate.dtype)
        log_p = self.log_mixture(self.log_components(z) - self.log_norm) - self.scale.log().sum()
        return torch.where(self._inside(x), log_p, -math.inf)

    def pdf(self, x: Tensor) -> Tensor:
        """Return p (n,) of x (n, d); errors as `log_prob`."""
        return self.log_prob(x).exp()

    def components(self, x: Tensor) -> Tensor:
        """Return the densities φ_k (n, K) of x (n, d), 0 outside the box; errors as `log_prob`."""
        z = self.standardise(x).to(self.gate.dtype)
        log_phi = self.log_components(z) - self.log_norm - self.scale.log().sum()
        return log_phi.exp() * self._inside(x)[:, None]

    def _inside(self, x: Tensor) -> Tensor:
        return ((x >= self.box[0]) & (x <= self.box[1])).all(1)

    @torch.no_grad()
    def integrals(self, rule: BoxIntegrator | None = None) -> Tensor:
        """Return the integrals of all φ_k over the box, (K,) float64; 1 after `fit`.

        Parameters
        ----------
        rule : BoxIntegrator, optional
            In units of the data; if not given, the finest that `fit` made, so without it only in
            the process that called `fit`.

        Raises
        ------
        RuntimeError
            Before `fit`, and if there is no rule.
        ValueError
            If the rule has another dimension.
        """
        if rule is not None:
            require_dimension(rule, self.dim)
            return rule.integrate(self.components).double()
        return self._standard_integrals(self._finest()) / self.log_norm.exp()

    def _finest(self) -> BoxIntegrator:
        rule: BoxIntegrator | None = getattr(self, "finest", None)
        if rule is None:
            raise RuntimeError("there is no rule from fit(X): give one, such as Trapezoid1D")
        return rule

    def _standard_integrals(self, rule: BoxIntegrator) -> Tensor:
        dtype = self.gate.dtype
        return rule.integrate(lambda z: self.log_components(z.to(dtype)).double().exp())

    # ---------------------------------------------------------------------------------- training

    def fit(
        self,
        x: Tensor,
        steps: int = 600,
        lr: float = 1e-2,
        alpha: float = 10.0,
        weight_decay: float | None = None,
        pretrain: int = 300,
        integrator: str | BoxIntegrator = "auto",
        watch: list[tuple[float, list[float]]] | None = None,
    ) -> list[float]:
        """Train anew on x (N, d), float32 or float64; return the loss of each step.

        K-means and kernel estimates of the clusters are the start, which the components are fitted
        to by least squares; then all is trained together on the whole data. Adam's rate falls to 0
        as a half wave of a cosine; gradients are of the loss times 1024, for float16's sake.

        Parameters
        ----------
        x : torch.Tensor
        steps : int
            600 in one dimension, 1500 in two.
        lr : float
        alpha : float
            Weight of the integrals; positive.
        weight_decay : float, optional
            Of weights, not biases or amplitudes; 0.2 / N if not given.
        pretrain : int
            Steps of the start.
        integrator : {"auto"} or BoxIntegrator
            "auto" takes 800 points in one dimension, 40 x 40 in two, a pool of 6,000 else. One of
            your own is in standardised units, on the box of `standard_box`.
        watch : list, optional
            Gets the mean log-likelihood of the data, before normalisation, and all integrals, of
            each step.

        Returns
        -------
        list of float

        Raises
        ------
        ValueError
            If an argument breaks its rule, or k-means finds no K clusters of at least 3 rows.
        FloatingPointError
            If a loss is not finite.

        Source
        ------
        Trentin 2023: the likelihood of the mixture under the soft constraint.
        """
        require_counts(steps=steps, pretrain=pretrain)
        if not 0 < lr < math.inf:
            raise ValueError(f"lr={lr}: must be positive and finite; 1e-2 is usual")
        if not 0 < alpha < math.inf:
            raise ValueError(
                f"alpha={alpha}: must be positive and finite, or the likelihood diverges; 10 is "
                "usual"
            )
        if weight_decay is not None and not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay={weight_decay}: must be finite and not negative")
        if not x.dtype.is_floating_point:
            raise ValueError(f"x is {x.dtype}: must be floating point; use .double()")
        x = require_data(x, self.dim, self.n_components)
        decay = 0.2 / len(x) if weight_decay is None else weight_decay
        self.float()
        self.reset_parameters()
        self.scale, self.center = torch.std_mean(x, 0, correction=0)
        z = (x - self.center) / self.scale
        standard = self.standard_box(x)
        self.box = self._data_box(x)  # not by way of `standard`, whose rounding may cut data off
        rule = self._rule(integrator, z, standard)
        wide = z.float()
        self._start(wide, rule, pretrain)

        def loss(_: Tensor) -> Tensor:
            log_phi = self.log_components(torch.cat([rule.points.float(), wide]))
            value, likelihood, sums = _loss(self, log_phi, rule, alpha, decay)
            if watch is not None:
                watch.append((float(likelihood.detach()), sums.detach().tolist()))
            return LOSS_SCALE * value

        curve = fit(
            loss, 1, torch.optim.Adam(self.parameters(), lr), epochs=steps, batch=1,
            generator=self._generator(), schedule="cosine",
        )  # fmt: skip
        self.double()
        with torch.no_grad():
            self.finest = rule.refined(FINER)
            self.before = self._standard_integrals(self.finest)
            self.log_norm = self.before.log()
        return [value / LOSS_SCALE for value in curve]

    def standard_box(self, x: Tensor) -> Tensor:
        """Return the box (2, d) of data x (N, d) in their standardised units, margins included."""
        scale, center = torch.std_mean(x.double(), 0, correction=0)
        return (self._data_box(x) - center) / scale

    def _data_box(self, x: Tensor) -> Tensor:
        low, high = x.double().min(0).values, x.double().max(0).values
        room = self.margin * (high - low)
        return torch.stack([low - room, high + room])

    def _rule(self, integrator: str | BoxIntegrator, z: Tensor, box: Tensor) -> BoxIntegrator:
        if isinstance(integrator, BoxIntegrator):
            require_dimension(integrator, self.dim)
            if not torch.allclose(integrator.box, box, rtol=1e-6, atol=1e-6):
                raise ValueError(
                    f"integrator's box {integrator.box.tolist()}: must be {box.tolist()}, that of "
                    "standard_box(x), or integrals miss what the density covers"
                )
            return integrator
        if integrator != "auto":
            raise ValueError(f"integrator={integrator!r}: must be 'auto' or a BoxIntegrator")
        if self.dim == 1:
            return Trapezoid1D(NODES[1], box)
        if self.dim == 2:
            return TensorTrapezoid(NODES[2], box)
        return ImportancePool(POOL, z, box, self._generator())

    def _generator(self) -> torch.Generator:
        return self.generator if self.generator is not None else torch.default_generator

    def _start(self, z: Tensor, rule: BoxIntegrator, steps: int) -> None:
        """Put c_k and λ_k on the clusters, and fit φ_k to the clusters' kernel estimates."""
        labels = clusters(z, self.n_components, self._generator())
        logs = []
        sides = rule.box[1] - rule.box[0]
        for k in range(self.n_components):
            own = z[labels == k].double()
            self._look_at(k, own)
            width = silverman_width(own, SMALLEST_WIDTH * float(sides.min()))
            logs.append(kernel_log_density(own, width, rule.points))
        target = torch.stack(logs, 1).exp().float()
        share = SOLID * torch.bincount(labels, minlength=self.n_components) / len(z)
        with torch.no_grad():
            self.gate.copy_(share.logit())
            self.log_amplitude.copy_((1.5 * target.max(0).values).log())
        points = rule.points.float()

        def losses(_: int) -> list[Tensor]:
            return [(self.log_components(points).exp() - target).square().mean(0).sum()]

        descend(self, losses, steps=steps, lr=PRETRAIN_RATE, last_lr=PRETRAIN_RATE)

    @torch.no_grad()
    def _look_at(self, k: int, own: Tensor) -> None:
        """Give component k's first layer the coordinates of its cluster (n, d), standardised."""
        nodes = slice(
            k * self.first.out_features // self.n_components,
            (k + 1) * self.first.out_features // self.n_components,
        )
        spread, center = torch.std_mean(own.float(), 0, correction=0)
        self.first.weight[nodes] /= spread.clamp(min=SMALLEST_WIDTH)
        self.first.bias[nodes] -= (self.first.weight[nodes] * center).sum(1)

    # ---------------------------------------------------------------------------------- sampling

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n draws (n, d) float64.

        A component each, then rejection in the box below 1.1 times its largest value on the rule of
        `fit`, or, from three dimensions on, one of the rule's points by their densities.

        Raises
        ------
        RuntimeError
            Before `fit`, or in a process that did not call it.
        ValueError
            If ``n`` is no positive int.
        """
        require_counts(n=n)
        rule = self._finest()
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        values = self.log_components(rule.points).exp()
        drawn = torch.empty(n, self.dim, dtype=torch.float64)
        for k in range(self.n_components):
            places = (chosen == k).nonzero().flatten()
            if self.dim > 2:
                by = values[:, k] * rule.weights
                picked = torch.multinomial(by, len(places), replacement=True, generator=generator)
                drawn[places] = rule.points[picked]
            else:
                drawn[places] = self._rejected(k, len(places), 1.1 * values[:, k].max(), generator)
        return self.center + self.scale * drawn

    def _rejected(self, k: int, n: int, bound: Tensor, generator: torch.Generator) -> Tensor:
        low, high = self._finest().box
        kept, count = [torch.empty(0, self.dim, dtype=torch.float64)], n
        while count:
            u = torch.rand(16 * count, self.dim + 1, generator=generator, dtype=torch.float64)
            z = low + (high - low) * u[:, 1:]
            kept.append(z[u[:, 0] * bound < self.log_components(z)[:, k].exp()][:count])
            count -= len(kept[-1])
        return torch.cat(kept)


def dnmm_loss(
    model: DNMM, x: Tensor, integrator: BoxIntegrator, alpha: float, weight_decay: float = 0.0
) -> Tensor:
    """Return the loss of standardised x (n, d), of the model's dtype.

    -mean log(Σ c_k φ_k + 1e-12) + α/2 Σ (1 - ∫φ_k)² + r ‖weights‖², φ_k not divided by integrals.

    Parameters
    ----------
    model : DNMM
    x : torch.Tensor
    integrator : BoxIntegrator
        In standardised units.
    alpha : float
        Not negative; at 0 the loss has no minimum.
    weight_decay : float
        r.

    Raises
    ------
    ValueError
        If a shape or number breaks its rule.

    Source
    ------
    Trentin 2023; the floor and the decay are ours.
    """
    require_rows(x, model.dim)
    require_dimension(integrator, model.dim)
    if not alpha >= 0:
        raise ValueError(f"alpha={alpha}: must not be negative; 10 is usual")
    log_phi = model.log_components(torch.cat([integrator.points.to(x.dtype), x]))
    return _loss(model, log_phi, integrator, alpha, weight_decay)[0]


def _loss(
    model: DNMM, log_phi: Tensor, rule: BoxIntegrator, alpha: float, decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, mean log-likelihood and integrals of log φ_k at the rule's points, then data."""
    count = len(rule.points)
    log_p = model.log_mixture(log_phi[count:])
    floor = torch.full_like(log_p, LOG_FLOOR)
    sums = rule.integrate(lambda _: log_phi[:count].exp())
    size = model.first.weight.square().sum()
    for layer in model.deep:
        size = size + layer.weight.square().sum()  # type: ignore[union-attr, operator]
    value = alpha / 2 * (1 - sums).square().sum() - torch.logaddexp(log_p, floor).mean()
    return value + decay * size, log_p.mean(), sums
