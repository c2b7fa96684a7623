"""Training: the network's weights, and what parameters are sought, by the residual alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sat.methods.pi_gnn_galerkin.problem import Coefficients, GalerkinProblem
from sat.methods.problems.arguments import require_counts

LOSSES = ("residual", "energy")
FLOAT32_NODES = 1000
"""Nodes above which float32 holds too little of a residual."""

Nets = nn.Module | Mapping[str, Sequence[nn.Module]]
"""A network of all components, or by unknown one a component."""


@dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes
    ----------
    U : torch.Tensor, or dict of them
        Coefficients (n,), (n, components), or by name; of several problems, a list.
    params : dict
        Parameters found, by name.
    history : dict
        By step: ``"loss"``, and each parameter's name.
    """

    U: Any
    params: dict[str, float]
    history: dict[str, list[float]]


class Solver(nn.Module):
    """Networks on a problem's graphs: from coordinates to all coefficients.

    Parameters
    ----------
    problem : GalerkinProblem
    net : nn.Module, or mapping of name to sequence of them
        A module takes (n, dim + features) and the operator (n, n) to (n, components).
    dtype : torch.dtype
        Networks compute in it; residuals in float64.

    Raises
    ------
    ValueError
        If networks are not as many as unknowns and components.
    """

    def __init__(self, problem: GalerkinProblem, net: Nets, dtype: torch.dtype) -> None:
        super().__init__()
        self.problem = problem
        if isinstance(net, nn.Module):
            if len(problem.unknowns) > 1:
                raise ValueError(
                    f"unknowns {sorted(problem.unknowns)} need networks each: give name to a list, "
                    "one a component"
                )
            net = {next(iter(problem.unknowns)): [net]}
        for name, (_, count) in problem.unknowns.items():
            if name not in net or len(net[name]) not in (1, count):
                raise ValueError(
                    f"unknown {name!r} of {count} components: must have one network, or one a "
                    "component"
                )
        self.nets = nn.ModuleList(nn.ModuleList(net[name]) for name in problem.unknowns)
        self.inputs, self.operators = [], []
        for space, _ in problem.unknowns.values():
            features = () if problem.features is None else (problem.features,)
            self.inputs.append(torch.cat([space.nodes, *features], 1).to(dtype))
            self.operators.append(space.lhat.to(dtype))

    def forward(self) -> Tensor:
        """Return coefficients (size,) float64, with those that are set in their places."""
        parts = []
        for nets, x, lhat, (name, (space, count)) in zip(
            self.nets, self.inputs, self.operators, self.problem.unknowns.items(), strict=True
        ):
            assert isinstance(nets, nn.ModuleList)
            out = torch.cat([net(x, lhat) for net in nets], 1)
            if out.shape != (space.n, count):
                raise ValueError(
                    f"the network of {name or 'the field'} gave {tuple(out.shape)}: must be "
                    f"({space.n}, {count})"
                )
            parts.append(out.double().flatten())
        return self.problem.placed(torch.cat(parts))


def fit(
    problem: GalerkinProblem | Sequence[GalerkinProblem],
    net: Nets,
    steps: int = 600,
    lr: float = 1e-3,
    loss: str = "residual",
    param_lr: float | None = None,
    seed: int | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    on_step: Callable[[int, Coefficients], None] | None = None,
) -> Fit:
    """Minimise the residual by Adam, its rate falling to 0 as a half wave of a cosine.

    Parameters
    ----------
    problem : GalerkinProblem, or sequence of them
        Of several, the sizes of residuals add up row by row before the norm; they share networks
        and parameters, and are told apart by their features or graphs.
    net : nn.Module, or mapping of name to sequence of them
        As of `Solver`; converted to ``dtype`` in place.
    steps : int
    lr : float
        Largest rate of the weights.
    loss : {"residual", "energy"}
        The norm of the residual, or the energy of a linear symmetric form.
    param_lr : float, optional
        Of the sought parameters; that of the weights if not given, which is too small for most.
    seed : int, optional
        Draw the networks' weights anew from it; they are taken as they are if not given.
    dtype : torch.dtype
        Networks compute in it.
    on_step : callable, optional
        Called with the number of each step, from 0, and the (first problem's) coefficients then.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        If an argument breaks its rule, or the loss is not finite.

    Source
    ------
    arXiv 2107.12146, section 2; the released ``source/TensorFEMCore.py`` (the norm, not squared).
    """
    require_counts(steps=steps)
    problems = [problem] if isinstance(problem, GalerkinProblem) else list(problem)
    _require_arguments(problems, loss, lr, param_lr, dtype)
    solvers = [Solver(one, net, dtype).to(dtype) for one in problems]
    if seed is not None:
        _draw(solvers[0], seed)
    unknown = {
        name: nn.Parameter(torch.tensor(float(value), dtype=torch.float64))
        for one in problems
        for name, value in one.params.items()
    }
    groups: list[dict[str, Any]] = [{"params": list(solvers[0].nets.parameters()), "lr": lr}]
    if unknown:
        rate = lr if param_lr is None else param_lr
        groups.append({"params": list(unknown.values()), "lr": rate})
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history: dict[str, list[float]] = {"loss": [], **{name: [] for name in unknown}}
    for step in range(steps):
        optimizer.zero_grad()
        flats = [solver() for solver in solvers]
        value = _loss(problems, flats, unknown, loss)
        if not math.isfinite(float(value.detach())):
            raise ValueError(f"step {step}: the loss is {float(value.detach())}; lower lr={lr}")
        if on_step is not None:
            on_step(step, problems[0].split(flats[0].detach()))
        history["loss"].append(float(value.detach()))
        for name, one in unknown.items():
            history[name].append(float(one.detach()))
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = [one.split(solver()) for one, solver in zip(problems, solvers, strict=True)]
    params = {name: float(one.detach()) for name, one in unknown.items()}
    return Fit(found[0] if isinstance(problem, GalerkinProblem) else found, params, history)


def _loss(
    problems: list[GalerkinProblem], flats: list[Tensor], params: dict[str, Any], kind: str
) -> Tensor:
    pairs = list(zip(problems, flats, strict=True))
    if kind == "energy":
        return torch.stack([one.energy(flat) for one, flat in pairs]).sum()
    if len(pairs) == 1:
        return problems[0].loss(flats[0], params)
    rows = torch.stack([one.residual(flat, params)[one.rows].abs() for one, flat in pairs])
    penalties = torch.stack([one.penalty(flat) for one, flat in pairs])
    return rows.sum(0).norm() + penalties.sum()


def _draw(solver: Solver, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for nets in solver.nets:
            assert isinstance(nets, nn.ModuleList)
            for net in nets:
                if not hasattr(net, "reset_parameters"):
                    raise ValueError(
                        f"seed={seed}: {type(net).__name__} has no reset_parameters(); draw its "
                        "weights yourself and give seed=None"
                    )
                net.reset_parameters()  # type: ignore[operator]


def _require_arguments(
    problems: list[GalerkinProblem],
    loss: str,
    lr: float,
    param_lr: float | None,
    dtype: torch.dtype,
) -> None:
    if not problems or len({int(one.rows.sum()) for one in problems}) > 1:
        raise ValueError("problems: must be one at least, all with as many rows in the loss")
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: must be one of {', '.join(LOSSES)}")
    for name, rate in (("lr", lr), ("param_lr", lr if param_lr is None else param_lr)):
        if not 0 < rate < math.inf:
            raise ValueError(f"{name}={rate}: must be positive and finite")
    for one in problems:
        if loss == "energy":
            one.require_energy()
        if dtype != torch.float64 and loss == "residual" and one.size > FLOAT32_NODES:
            warnings.warn(
                f"{dtype} for {one.size} coefficients: residuals of fine meshes cancel more bits "
                "than it has; use float64",
                stacklevel=3,
            )
