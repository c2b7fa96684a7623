"""Layers whose weights are normal distributions, all but a few of them exactly 0."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.sparsity.pattern import Pattern

MODES = ("noise", "mean", "weights")
_FLOOR = 1e-8
"""Added to the variance of outputs: its root has a gradient at 0."""
_CHUNK = 2**22


class SparseBayesLayer(nn.Module):
    """A product with weights that are N(mu, sigma²) at some places, and 0 everywhere else.

    Parameters are compact: ``mu`` (active,) and ``rho`` (active,), sigma = softplus(rho); `places`
    (active,) int64 says where, as row · depth + column. Nothing is stored for other places.

    Where N:M patterns or density 1 make it worth a product, gradients of weights are one, of
    all places, and inactive ones are forgotten. Else only those of active places are computed,
    but for steps that `want_dense_gradient`.

    Parameters
    ----------
    rows, depth : int
        Outputs, and inputs of each.
    density : float, optional
        Share of active places, of which there is at least one; with a pattern its N/M.
    prior_std : float
        Of the prior N(0, prior_std²).
    sigma_init : float
        Deviations at first.
    mu_init : float, optional
        Deviation of the means at first; √(2 / (depth · density)) if not given.
    pattern : str, optional
        ``"2:8"`` and the like: N active places in each M consecutive inputs.
    bias : bool
        Whether outputs have one, which is no distribution.
    bayes : bool
        Whether there are deviations; else weights are their means, for comparison.

    Attributes
    ----------
    mode : {"noise", "mean", "weights"}
        What `forward` does unless it is told: noise on outputs, of the variance that weights give
        them (local reparametrisation); weights at their means; or one draw of all weights.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    places: Tensor

    def __init__(
        self,
        rows: int,
        depth: int,
        density: float | None = None,
        prior_std: float = 0.1,
        sigma_init: float = 0.01,
        *,
        mu_init: float | None = None,
        pattern: str | None = None,
        bias: bool = True,
        bayes: bool = True,
    ) -> None:
        super().__init__()
        for name, size in (("outputs", rows), ("inputs", depth)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}={size!r}: must be a positive int; raise it")
        for name, value in (("prior_std", prior_std), ("sigma_init", sigma_init)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: must be positive and finite; raise it")
        if mu_init is not None and not 0 <= mu_init < math.inf:
            raise ValueError(f"mu_init={mu_init}: must be finite and not negative")
        self.rows, self.depth, self.prior_std, self.bayes = rows, depth, prior_std, bayes
        self.pattern = None if pattern is None else Pattern.parse(pattern)
        self.density = self._density(density)
        self.mode = "noise"
        count = max(1, round(self.density * rows * depth))
        self.register_buffer("places", self._draw(count))
        std = math.sqrt(2 / (depth * self.density)) if mu_init is None else mu_init
        self.mu = nn.Parameter(std * torch.randn(count))
        if bayes:
            self.rho = nn.Parameter(torch.full((count,), rho_of(sigma_init)))
        else:
            self.register_parameter("rho", None)
        self.bias = nn.Parameter(torch.zeros(rows)) if bias else None
        self.by_product = self.pattern is not None or count == rows * depth
        # Layers of their own, so that `sat.sparsify_` finds the products; weights come with calls.
        self.mean_product = _bare(rows, depth)
        self.variance_product = _bare(rows, depth) if bayes else None
        self.dense_gradient: Tensor | None = None
        self._dense_wanted = False

    def _density(self, density: float | None) -> float:
        if self.pattern is not None:
            own = self.pattern.n / self.pattern.m
            if self.depth % self.pattern.m:
                raise ValueError(
                    f"pattern {self.pattern}: the inputs, {self.depth}, must be a multiple of M; "
                    "pad them"
                )
            if density is not None and density != own:
                raise ValueError(
                    f"density={density} with pattern {self.pattern}: must be N/M = {own}; leave it "
                    "out"
                )
            return own
        if density is None:
            raise ValueError("density=None: must be given without a pattern; 1 is dense")
        if not 0 < density <= 1 or density * self.rows * self.depth < 1:
            raise ValueError(
                f"density={density}: must be above 0, at most 1, and leave {self.rows} x "
                f"{self.depth} places a weight; raise it"
            )
        return density

    def _draw(self, count: int) -> Tensor:
        if self.pattern is None:
            return torch.randperm(self.rows * self.depth)[:count].sort().values
        n, m = self.pattern.n, self.pattern.m
        groups = self.rows * self.depth // m
        inside = torch.rand(groups, m).argsort(1)[:, :n].sort(1).values
        return (inside + m * torch.arange(groups)[:, None]).flatten()

    @property
    def sigma(self) -> Tensor:
        """Deviations of active weights (active,); zeros without ``bayes``."""
        return torch.zeros_like(self.mu) if self.rho is None else functional.softplus(self.rho)

    @property
    def mask(self) -> Tensor:
        """Active places, (rows, depth) bool."""
        mask = torch.zeros(self.rows * self.depth, dtype=torch.bool, device=self.places.device)
        mask[self.places] = True
        return mask.view(self.rows, self.depth)

    def scatter(self, values: Tensor) -> Tensor:
        """Return values (active,) at their places among zeros, (rows, depth)."""
        dense = torch.zeros(self.rows * self.depth, dtype=values.dtype, device=values.device)
        return dense.index_put((self.places,), values).view(self.rows, self.depth)

    def kl(self) -> Tensor:
        """Return Σ KL(N(mu, sigma²) | N(0, prior_std²)) of active weights, nats; a scalar."""
        if self.rho is None:
            return self.mu.new_zeros(())
        sigma, prior = self.sigma, self.prior_std
        terms = (
            torch.log(prior / sigma) + (sigma.square() + self.mu.square()) / (2 * prior**2) - 0.5
        )
        return terms.sum()

    def want_dense_gradient(self, wanted: bool) -> None:
        """Let backward passes leave the gradient of all means, (rows, depth), or no longer."""
        self._dense_wanted, self.dense_gradient = wanted, None

    def require_finite(self, name: str) -> None:
        """Raise FloatingPointError, with a name for the layer, unless parameters are finite."""
        for kind, value in (("mu", self.mu), ("sigma", self.sigma)):
            if not bool(torch.isfinite(value).all()):
                raise FloatingPointError(
                    f"layer {name!r}: {kind} has infinities or NaNs: must be finite; lower the "
                    "learning rates"
                )

    def _multiply(self, x: Tensor, sample: bool | None) -> Tensor:
        """Return outputs (..., rows) of x (..., depth)."""
        mode = self.mode if sample is None else ("noise" if sample else "mean")
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}; choose one")
        noisy = self.rho is not None and mode != "mean"
        mu: Tensor = self.mu
        if noisy and mode == "weights":
            mu = mu + self.sigma * torch.randn_like(mu)
        out = self._product(x, mu, self.mean_product, self._dense_wanted)
        if noisy and mode == "noise":
            variance = self.sigma.square()
            # By a power of two, which changes no digit: in float16 they would vanish.
            largest = float(variance.detach().max())
            if not math.isfinite(largest):
                self.require_finite(f"of {self.depth} inputs and {self.rows} outputs")
            scale = 2.0 ** math.ceil(math.log2(max(largest, 1e-30)))
            assert self.variance_product is not None
            spread = self._product(x.square(), variance / scale, self.variance_product, False)
            # What is 0 by rounding may be below it.
            spread = (scale * spread).clamp(min=0) + _FLOOR
            out = out + spread.sqrt() * torch.randn_like(out)
        return out if self.bias is None else out + self.bias

    def _product(self, x: Tensor, values: Tensor, layer: nn.Linear, dense: bool) -> Tensor:
        weight = self.scatter(values)
        if not self.by_product:
            flat = x.reshape(-1, self.depth)
            out = _Sampled.apply(
                flat, values, weight.detach(), self.places, self if dense else None
            )
            return out.view(*x.shape[:-1], self.rows)
        if dense and weight.requires_grad:
            weight.register_hook(self._keep)
        layer.weight = weight  # type: ignore[assignment]
        try:
            out = layer(x)
        finally:
            layer.weight = _placeholder(weight)  # type: ignore[assignment]
        return out

    def _keep(self, gradient: Tensor) -> None:
        kept = gradient.detach()
        self.dense_gradient = kept if self.dense_gradient is None else self.dense_gradient + kept

    def extra_repr(self) -> str:
        """Return words for the size and what is active."""
        which = f"density={self.density:g}" if self.pattern is None else f"pattern={self.pattern}"
        return f"{self.depth}, {self.rows}, {which}, active={len(self.places)}, bayes={self.bayes}"


def rho_of(sigma: float) -> float:
    """Return what softplus makes a deviation of."""
    return sigma + math.log(-math.expm1(-sigma))


def _placeholder(weight: Tensor) -> Tensor:
    """Return zeros of the weight's shape that take no memory."""
    return torch.zeros(1, dtype=weight.dtype, device=weight.device).expand(weight.shape)


def _bare(rows: int, depth: int) -> nn.Linear:
    """Return a linear layer without a parameter."""
    layer = nn.Linear(depth, rows, bias=False)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = _placeholder(weight)  # type: ignore[assignment]
    return layer


class _Sampled(torch.autograd.Function):
    """x·Wᵀ whose gradient of W is computed at active places alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, weight: Tensor, places: Tensor,
        keeper: SparseBayesLayer | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, places)
        ctx.keeper = keeper
        return x @ weight.mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, places = ctx.saved_tensors
        to_x = gradient @ weight if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_x, None, None, None, None
        if ctx.keeper is not None:
            dense = gradient.mT @ x
            ctx.keeper._keep(dense)
            return to_x, dense.flatten()[places], None, None, None
        size = max(1, _CHUNK // max(1, len(x)))
        parts = [
            (gradient[:, chunk // x.shape[1]] * x[:, chunk % x.shape[1]]).sum(0)
            for chunk in places.split(size)
        ]
        return to_x, torch.cat(parts), None, None, None


class SparseBayesLinear(SparseBayesLayer):
    """`SparseBayesLayer` in place of ``nn.Linear``.

    Parameters
    ----------
    inputs, outputs : int
    density, prior_std, sigma_init, **options
        Of `SparseBayesLayer`.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        density: float | None = None,
        prior_std: float = 0.1,
        sigma_init: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(outputs, inputs, density, prior_std, sigma_init, **options)

    def forward(self, x: Tensor, sample: bool | None = None) -> Tensor:
        """Return outputs.

        Parameters
        ----------
        x : torch.Tensor
            (..., inputs).
        sample : bool, optional
            Noise or means; what ``mode`` says if not given.

        Returns
        -------
        torch.Tensor
            (..., outputs).

        Raises
        ------
        ValueError
            If the last axis is not the inputs.
        """
        if x.shape[-1:] != (self.depth,):
            raise ValueError(
                f"input has shape {tuple(x.shape)}: its last axis must be {self.depth}; turn it"
            )
        return self._multiply(x, sample)


class SparseBayesConv2d(SparseBayesLayer):
    """`SparseBayesLayer` in place of ``nn.Conv2d``: a product of patches of the picture.

    Depth runs over channels, then rows and columns of the kernel.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation : int
        As of ``nn.Conv2d``, square.
    density, prior_std, sigma_init, **options
        Of `SparseBayesLayer`.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        density: float | None = None,
        prior_std: float = 0.1,
        sigma_init: float = 0.01,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        **options: Any,
    ) -> None:
        sizes = {"kernel_size": (kernel_size, 1), "stride": (stride, 1), "padding": (padding, 0),
                 "dilation": (dilation, 1), "in_channels": (in_channels, 1)}  # fmt: skip
        for name, (value, least) in sizes.items():
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: must be an int of at least {least}; raise it")
        depth = in_channels * kernel_size**2
        super().__init__(out_channels, depth, density, prior_std, sigma_init, **options)
        self.in_channels, self.kernel_size = in_channels, kernel_size
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x: Tensor, sample: bool | None = None) -> Tensor:
        """Return outputs.

        Parameters
        ----------
        x : torch.Tensor
            (batch, in_channels, height, width).
        sample : bool, optional
            Noise or means; what ``mode`` says if not given.

        Returns
        -------
        torch.Tensor
            (batch, out_channels, height, width) of the outputs.

        Raises
        ------
        ValueError
            If the channels are not ``in_channels``, or no kernel fits.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"input has shape {tuple(x.shape)}: must be (batch, {self.in_channels}, height, "
                "width); transpose it"
            )
        reach = self.dilation * (self.kernel_size - 1) + 1
        size = [(side + 2 * self.padding - reach) // self.stride + 1 for side in x.shape[2:]]
        if min(size) < 1:
            raise ValueError(
                f"input of {x.shape[2]} x {x.shape[3]}: must hold a kernel of reach {reach}; pad it"
            )
        patches = functional.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)
        return self._multiply(patches.mT, sample).mT.unflatten(2, size)
