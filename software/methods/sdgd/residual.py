"""Losses of a PDE of which a few terms are evaluated: Algorithms 1 to 3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts
from sat.methods.problems.jets import Jet, JetMLP, function_jet
from sat.methods.sdgd.pdes import DimensionwisePDE, Model

MODES = ("alg1", "alg2", "shared", "full")
CHUNK = 64
"""Terms that an exact residual takes at once."""

_BROKEN_LINES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Threshold,
    nn.Hardshrink, nn.Softshrink,
)  # fmt: skip


class DimensionSampler:
    """Draws terms without replacement, each set of them as likely as any other.

    Parameters
    ----------
    n_terms : int
        Terms there are.
    batch : int
        Terms of a draw.
    generator : torch.Generator

    Raises
    ------
    ValueError
        If ``batch`` is not within 1 … ``n_terms``.
    """

    def __init__(self, n_terms: int, batch: int, generator: torch.Generator) -> None:
        require_counts(n_terms=n_terms, batch=batch)
        if batch > n_terms:
            raise ValueError(f"batch={batch}: must be at most n_terms={n_terms}; lower it")
        self.n_terms, self.batch, self.generator = n_terms, batch, generator

    def draw(self) -> Tensor:
        """Return new indices (batch,) int64."""
        return torch.randperm(self.n_terms, generator=self.generator)[: self.batch]


def require_independent(forward: DimensionSampler, backward: DimensionSampler) -> None:
    """Raise ValueError if two samplers would draw the same, which makes "alg2" biased."""
    one, other = forward.generator, backward.generator
    if one is not other and torch.equal(one.get_state(), other.get_state()):
        raise ValueError(
            "generators of both samplers have the same state: must differ, or I and J are the "
            "same and the gradient is biased; seed them apart, or give both the same object"
        )


class ConstrainedMLP(nn.Module):
    """u by a network of tanh that keeps a PDE's side condition exactly.

    Parameters
    ----------
    pde : DimensionwisePDE
        Its constraint.
    width, hidden : int
        Hidden layers, ``hidden`` of ``width``; the released ones are 3 of 128.
    """

    def __init__(self, pde: DimensionwisePDE, width: int = 128, hidden: int = 3) -> None:
        super().__init__()
        require_counts(width=width, hidden=hidden)
        self.pde = pde
        self.net = JetMLP([pde.inputs, *[width] * hidden, 1])

    def forward(self, x: Tensor) -> Tensor:
        """Return u (points,) for x (points, inputs)."""
        value = self.net(x)
        nowhere = value.new_zeros(0, *value.shape)
        axes = torch.zeros(0, dtype=torch.int64)
        return self.pde.constrain(Jet(value, nowhere, nowhere), x, axes).value[:, 0]

    def along(self, x: Tensor, axes: Tensor, seconds: int) -> Jet:
        """Return u (one channel) with derivatives along axes, the first ``seconds`` twice."""
        return self.pde.constrain(self.net.along(x, axes, seconds), x, axes)


def derivatives(model: Model, x: Tensor, axes: Tensor, seconds: int) -> Jet:
    """Return u of one channel with its derivatives along axes.

    A model that has ``along`` says so itself; any other function is differentiated by `torch.func`.

    Parameters
    ----------
    model : callable
        (points, inputs) to (points,).
    x : torch.Tensor
    axes : torch.Tensor
        (directions,) int64.
    seconds : int
        Along how many, from the first, to differentiate twice.

    Raises
    ------
    ValueError
        If the model has an activation of straight pieces: second derivatives are 0 there.
    """
    if isinstance(model, (ConstrainedMLP, JetMLP)):
        return model.along(x, axes, seconds)
    if isinstance(model, nn.Module):
        for name, layer in model.named_modules():
            if isinstance(layer, _BROKEN_LINES):
                raise ValueError(
                    f"layer {name!r} is a {type(layer).__name__}: must have second derivatives, "
                    "and straight pieces have none; use nn.Tanh, nn.GELU or nn.SiLU"
                )
    return function_jet(model, x, axes, seconds)


def laplacian_terms(model: Model, x: Tensor, idx: Tensor) -> Tensor:
    """Return u_ii of some axes.

    Parameters
    ----------
    model : callable
        (points, inputs) to (points,), or `JetMLP` of one output.
    x : torch.Tensor
        (N, inputs).
    idx : torch.Tensor
        (axes,) int64, none twice.

    Returns
    -------
    torch.Tensor
        (N, axes); no Hessian is formed.

    Raises
    ------
    ValueError
        If ``x`` or ``idx`` breaks its rule.
    """
    if x.ndim != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: must be (N, inputs); reshape it")
    _require_indices("idx", idx, x.shape[1])
    return derivatives(model, x, idx, len(idx)).second[..., 0].T


def sdgd_residual(
    model: Model,
    x: Tensor,
    pde: DimensionwisePDE,
    idx_fwd: Tensor | None = None,
    idx_bwd: Tensor | None = None,
    mode: str = "alg1",
) -> Tensor:
    """Return half the mean squared residual, with the gradient of an algorithm.

    With r the residual L u - R, n terms, means over points:
    "full" takes all terms;
    "alg1" the exact r, without a graph, times the gradient of (n/|J|) Σ_J L_j u;
    "alg2" r with (n/|I|) Σ_I L_i u for the sum, without a graph, times the same: unbiased if I and
    J are independent;
    "shared" r with the terms of I, and its own gradient: one graph, biased, for it minimises the
    variance of the sampled residual, too.
    What is no sum over terms is exact in all of them.

    Parameters
    ----------
    model : callable
        (N, inputs) to (N,).
    x : torch.Tensor
        (N, inputs).
    pde : DimensionwisePDE
    idx_fwd : torch.Tensor, optional
        I, of "alg2" and "shared": int64, none twice.
    idx_bwd : torch.Tensor, optional
        J, of "alg1" and "alg2".
    mode : {"alg1", "alg2", "shared", "full"}

    Returns
    -------
    torch.Tensor
        Scalar; its value is that of the residual it multiplies by.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    FloatingPointError
        If a residual is not finite.

    Source
    ------
    Section 3, Algorithms 1 to 3.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    pde.require(x)
    needed = {"alg1": (False, True), "alg2": (True, True), "shared": (True, False)}.get(mode)
    for name, idx, wanted in zip(
        ("idx_fwd", "idx_bwd"), (idx_fwd, idx_bwd), needed or (False, False), strict=True
    ):
        if wanted and idx is None:
            raise ValueError(f"{name} is None: mode={mode!r} needs it; draw it")
        if not wanted and idx is not None:
            raise ValueError(f"{name} is given: mode={mode!r} has no use for it; leave it out")
        if idx is not None:
            _require_indices(name, idx, pde.d)
    every = torch.arange(pde.d)
    if mode in ("full", "shared"):
        whole = _operator(model, x, pde, every if idx_fwd is None else idx_fwd) - pde.rhs(x)
        return _finite(whole).square().mean() / 2
    with torch.no_grad():
        if mode == "alg1":
            residual = _exact(model, x, pde) - pde.rhs(x)
        else:
            assert idx_fwd is not None
            residual = _operator(model, x, pde, idx_fwd) - pde.rhs(x)
    assert idx_bwd is not None
    sampled = _operator(model, x, pde, idx_bwd)
    # Its value is 0, its gradient the algorithm's.
    moved = residual * (sampled - sampled.detach())
    return (_finite(residual).square() / 2 + moved).mean()


def _operator(model: Model, x: Tensor, pde: DimensionwisePDE, idx: Tensor) -> Tensor:
    """Return (n/|I|) Σ_I L_i u + rest (points,)."""
    jet = derivatives(model, x, pde.axes(idx), len(idx))
    return pde.d / len(idx) * pde.terms(jet).sum(0) + pde.rest(model, x, jet)


def _exact(model: Model, x: Tensor, pde: DimensionwisePDE) -> Tensor:
    """Return L u (points,), some terms at a time."""
    total, jet = x.new_zeros(len(x)), None
    for idx in torch.arange(pde.d).split(CHUNK):
        jet = derivatives(model, x, pde.axes(idx), len(idx))
        total = total + pde.terms(jet).sum(0)
    assert jet is not None
    return total + pde.rest(model, x, jet)


def _finite(residual: Tensor) -> Tensor:
    if not bool(torch.isfinite(residual).all()):
        raise FloatingPointError(
            "the residual has infinities or NaNs: must be finite; look at the model's parameters "
            "and the points"
        )
    return residual


def _require_indices(name: str, idx: Tensor, terms: int) -> None:
    if idx.ndim != 1 or idx.dtype != torch.int64:
        raise ValueError(
            f"{name} has shape {tuple(idx.shape)} and dtype {str(idx.dtype).split('.')[-1]}: must "
            "be a list of int64"
        )
    if not 1 <= len(idx) <= terms:
        raise ValueError(
            f"{name} has {len(idx)} entries: must be 1 to {terms}, the terms there are"
        )
    low, high = int(idx.min()), int(idx.max())
    if low < 0 or high >= terms:
        raise ValueError(f"{name} has entries {low} to {high}: must be within 0 to {terms - 1}")
    if len(idx.unique()) < len(idx):
        raise ValueError(f"{name} has an entry twice: must be drawn without replacement")
