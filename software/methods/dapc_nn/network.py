"""Layers of expansions with a bounded function between, their training, and output statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sat.methods.dapc_nn.basis import require_signals
from sat.methods.dapc_nn.functions import Moments
from sat.methods.dapc_nn.layer import DaPCLayer
from sat.methods.problems.arguments import require_counts
from sat.methods.problems.scaling import LOSS_SCALE
from sat.methods.problems.training import fit

ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}
SOLVERS = ("varpro", "adam")
HIDDEN_RIDGE = 0.1
"""Ridge of the hidden layers over that of the output layer."""


class DaPCNN(nn.Module):
    """A network of `DaPCLayer`, a bounded function after each but the last.

    Inputs need no scaling, as the polynomials follow it; the target is standardised within. With
    no hidden layer it is a classic polynomial chaos expansion.

    To train it otherwise, by batches too: call `refresh` with all training inputs before each
    epoch, and take it as any module. Statistics never come from a batch.

    Parameters
    ----------
    n_in : int
    hidden : sequence of int
        Nodes of each hidden layer; may be empty.
    n_out : int
    degree : int
        Of every layer's expansions.
    activation : {"tanh", "sigmoid"}
    basis : {"product", "joint"}
        Of every layer; `mean` and `variance` need ``"joint"``.
    dtype : torch.dtype
        float64 or float32.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or a layer has more than 5000 terms.

    Source
    ------
    Oladyshkin et al. 2023. Training and start are ours.
    """

    y_mean: Tensor
    y_scale: Tensor

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        n_out: int = 1,
        degree: int = 2,
        activation: str = "tanh",
        basis: str = "product",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: must be one of {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]
        widths = [n_in, *hidden, n_out]
        self.layers = nn.ModuleList(
            DaPCLayer(before, after, degree, basis, dtype)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.register_buffer("y_mean", torch.zeros(n_out, dtype=dtype))
        self.register_buffer("y_scale", torch.ones(n_out, dtype=dtype))

    @property
    def last(self) -> DaPCLayer:
        """The output layer."""
        layer = self.layers[-1]
        assert isinstance(layer, DaPCLayer)
        return layer

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights, as `DaPCLayer.reset_parameters`."""
        for layer in self.layers:
            assert isinstance(layer, DaPCLayer)
            layer.reset_parameters(generator)

    def features(self, x: Tensor, *, clamp: bool = False, refresh: bool = False) -> Tensor:
        """Return the output layer's Ψ (N, T); with ``refresh``, statistics are taken on the way."""
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, DaPCLayer)
            if refresh:
                if number:
                    _require_moving(x, number)
                layer.refresh(x.detach())
            if layer is self.last:
                break
            x = self.activation(layer(x, clamp=clamp))
        return self.last.features(x, clamp=clamp)

    def forward(self, x: Tensor, *, clamp: bool = False) -> Tensor:
        """Return outputs (N, n_out) in units of the target, for x (N, n_in).

        Raises
        ------
        RuntimeError
            Before `refresh` or `fit`.
        TypeError, ValueError
            If ``x`` is no finite float32 or float64 tensor of that shape.
        """
        z = self.last.linear(self.features(x, clamp=clamp)[:, 1:])
        return self.y_mean + self.y_scale * z

    @torch.no_grad()
    def refresh(self, x: Tensor) -> None:
        """Compute the statistics of all layers on x (N, n_in), all training inputs.

        Raises
        ------
        TypeError, ValueError
            As `DaPCLayer.refresh`, and if a hidden signal is constant.
        """
        self.features(x, refresh=True)

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        steps: int = 300,
        lr: float = 4e-2,
        ridge: float = 1e-3,
        solver: str = "varpro",
        seed: int = 0,
        refresh: int = 1,
    ) -> list[float]:
        """Draw weights anew and train on all samples; return the loss of each step.

        The loss is the squared error over the standardised target's N rows, plus ridge · ‖W‖² of
        the output layer and a tenth of that of hidden ones. Adam's rate falls to 0 as a half wave
        of a cosine; gradients are of the loss times 1024, so that float16 keeps them.

        Parameters
        ----------
        x : torch.Tensor
            (N, n_in).
        y : torch.Tensor
            (N, n_out), or (N,) for one output.
        steps : int
        lr : float
        ridge : float
            Not negative.
        solver : {"varpro", "adam"}
            Variable projection, the output layer in closed form at each step; or all weights by
            Adam, which wants 800 steps and more.
        seed : int
            Of the first weights.
        refresh : int
            Steps from one computation of the statistics to the next.

        Returns
        -------
        list of float
            One number where everything is in closed form: no hidden layer, and "varpro".

        Raises
        ------
        TypeError
            If a tensor is not float32 or float64.
        ValueError
            If an argument breaks its rule, a target is constant, a hidden signal becomes constant,
            or ridge is 0 with fewer samples than terms.
        FloatingPointError
            If a loss is not finite.
        """
        require_counts(steps=steps, refresh=refresh)
        y = self._check(x, y, lr, ridge, solver)
        scale, mean = torch.std_mean(y, 0, correction=0)
        self.y_mean, self.y_scale = mean, scale
        target = (y - mean) / scale
        generator = torch.Generator().manual_seed(seed)
        self.reset_parameters(generator)
        closed = solver == "varpro"
        if closed and len(self.layers) == 1:
            return [float(self._project(x, target, ridge))]
        step = 0

        def loss(_: Tensor) -> Tensor:
            nonlocal step
            psi = self.features(x, refresh=step % refresh == 0)
            step += 1
            if closed:
                # Least over W, the loss has no slope along W: the gradient through the solve is 0.
                w = solve_ridge(psi.detach(), target, ridge)
                z = psi @ w
            else:
                w = self.last.coefficients
                z = self.last.linear(psi[:, 1:])
            error = (z - target).square().sum() / len(x)
            return LOSS_SCALE * (error + self._penalty(w, ridge))

        layers = self.layers[:-1] if closed else self.layers
        optimizer = torch.optim.Adam(layers.parameters(), lr)
        curve = fit(
            loss, len(x), optimizer, epochs=steps, batch=len(x), generator=generator,
            schedule="cosine",
        )  # fmt: skip
        if closed:
            self._project(x, target, ridge)
        else:
            self.refresh(x)
        return [value / LOSS_SCALE for value in curve]

    def _penalty(self, w: Tensor, ridge: float) -> Tensor:
        penalty = ridge * w.square().sum()
        for layer in self.layers[:-1]:
            linear = layer.linear
            assert isinstance(linear, nn.Linear)
            size = linear.weight.square().sum() + linear.bias.square().sum()
            penalty = penalty + HIDDEN_RIDGE * ridge * size
        return penalty

    @torch.no_grad()
    def _project(self, x: Tensor, target: Tensor, ridge: float) -> Tensor:
        """Refresh, put the best output layer in place, and return the loss."""
        psi = self.features(x, refresh=True)
        w = solve_ridge(psi, target, ridge)
        self.last.set_coefficients(w)
        return (psi @ w - target).square().sum() / len(x) + self._penalty(w, ridge)

    def _check(self, x: Tensor, y: Tensor, lr: float, ridge: float, solver: str) -> Tensor:
        if solver not in SOLVERS:
            raise ValueError(f"solver={solver!r}: must be one of {', '.join(SOLVERS)}")
        if not 0 < lr < math.inf:
            raise ValueError(f"lr={lr}: must be positive and finite; 4e-2 is the usual one")
        if not 0 <= ridge < math.inf:
            raise ValueError(f"ridge={ridge}: must be finite and not negative")
        first = self.layers[0]
        assert isinstance(first, DaPCLayer)
        require_signals("x", x, first.indices.shape[1])
        outputs = self.last.linear.out_features
        if outputs == 1 and y.ndim == 1:
            y = y[:, None]
        require_signals("y", y, outputs)
        if len(y) != len(x) or {x.dtype, y.dtype} != {self.last.linear.weight.dtype}:
            raise ValueError(
                f"x {tuple(x.shape)} {x.dtype}, y {tuple(y.shape)} {y.dtype}: must have as many "
                f"rows, and the network's dtype {self.last.linear.weight.dtype}"
            )
        constant = (y.min(0).values == y.max(0).values).nonzero().flatten().tolist()
        if constant:
            raise ValueError(f"output {constant[0]} is constant: there is nothing to fit; drop it")
        terms = len(self.last.indices)
        if ridge == 0 and solver == "varpro" and len(x) < terms:
            raise ValueError(
                f"{len(x)} samples for {terms} terms with ridge=0: least squares have no single "
                "solution; give more samples or ridge=1e-3"
            )
        return y

    @torch.no_grad()
    def predict(self, x: Tensor, clamp: bool = True) -> Tensor:
        """Return outputs (N, n_out) in units of the target.

        Parameters
        ----------
        x : torch.Tensor
            (N, n_in).
        clamp : bool
            Whether every signal is held within its training range and a tenth of it around, as
            polynomials grow fast outside.

        Raises
        ------
        RuntimeError
            Before `refresh` or `fit`.
        TypeError, ValueError
            As `forward`.
        """
        outputs: Tensor = self(x, clamp=clamp)
        return outputs

    @torch.no_grad()
    def mean(self) -> Tensor:
        """Return the mean output (n_out,) float64 over the training inputs: the constant's W.

        Raises
        ------
        ValueError
            If the output layer's basis is not orthonormal for its signals: see `variance`.
        """
        w = self._orthonormal()
        return self.y_mean.double() + self.y_scale.double() * w[0]

    @torch.no_grad()
    def variance(self) -> Tensor:
        """Return the variance of the output (n_out,) float64: the sum of all other W².

        Raises
        ------
        ValueError
            If the basis is "product" and there are hidden layers, whose signals are dependent.
            Without hidden layers independent inputs are taken for granted.
        """
        w = self._orthonormal()
        return self.y_scale.double().square() * w[1:].square().sum(0)

    @torch.no_grad()
    def sobol(self) -> Moments:
        """Return mean, variance and Sobol indices of a fit of one output without hidden layers.

        The inputs are taken to be independent.

        Raises
        ------
        ValueError
            If there are hidden layers, or several outputs; those by sampling.
        """
        if len(self.layers) > 1 or self.last.linear.out_features > 1:
            raise ValueError(
                f"{len(self.layers) - 1} hidden layers, {self.last.linear.out_features} outputs: "
                "coefficients give the indices of one output without hidden layers; sample instead"
            )
        parts = self._orthonormal()[1:, 0].square()
        alpha = self.last.indices[1:]
        involved = (alpha > 0).double()
        alone = involved * (involved.sum(1, keepdim=True) == 1)
        whole = parts.sum()
        return Moments(
            float(self.mean()), float(self.variance()),
            (parts[:, None] * alone).sum(0) / whole, (parts[:, None] * involved).sum(0) / whole,
        )  # fmt: skip

    def _orthonormal(self) -> Tensor:
        """Return the output layer's W in float64, if its basis is orthonormal."""
        if len(self.layers) > 1 and self.last.basis != "joint":
            raise ValueError(
                "basis='product' is not orthonormal for hidden signals, which depend on each "
                "other: coefficients are no statistics; train with basis='joint', or sample"
            )
        return self.last.coefficients.double()


def solve_ridge(psi: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Return W (T, outputs) that minimises ‖Ψ W - y‖² / N + ridge ‖W‖², float64 solve.

    Terms that are 0 everywhere, as dropped ones are, get the coefficient 0.

    Raises
    ------
    ValueError
        If there is no single solution.
    """
    gram = (psi.mT @ psi / len(psi)).double()
    right = (psi.mT @ y / len(psi)).double()
    diagonal = gram.diagonal()
    diagonal.add_(torch.where(diagonal > 0, ridge, 1.0))
    lower, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise ValueError(
            f"ridge={ridge}: term {int(failed) - 1} of {len(gram)} is a combination of those "
            "before it on these samples, so least squares have no single solution; take ridge=1e-3"
        )
    return torch.cholesky_solve(right, lower).to(psi.dtype)


def fit_apc(
    x: Tensor, y: Tensor, degree: int, ridge: float = 0.0, basis: str = "product"
) -> DaPCNN:
    """Return the classic expansion of y (N,) or (N, n_out) in x (N, n), by least squares.

    Raises
    ------
    TypeError, ValueError
        As `DaPCNN.fit`.
    """
    require_signals("x", x)
    model = DaPCNN(x.shape[1], (), 1 if y.ndim == 1 else y.shape[1], degree, "tanh", basis, x.dtype)
    model.fit(x, y, ridge=ridge)
    return model


def _require_moving(x: Tensor, number: int) -> None:
    still = (x.min(0).values == x.max(0).values).nonzero().flatten().tolist()
    if still:
        raise ValueError(
            f"node {still[0]} of hidden layer {number} is constant: it carries nothing; lower lr "
            "or ridge, or take another seed"
        )
