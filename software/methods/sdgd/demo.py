"""SDGD judged: its gradients by enumeration, then Sine-Gordon in 100 dimensions beside a full PINN.

Errors are relative to the exact solution. What a constant and a linear function under the same
constraint can do is always beside them, as they can do much in many dimensions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import combinations, product

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import quad
from scipy.stats import ncx2
from torch import Tensor, nn

import sat
from sat.methods import Result
from sat.methods.problems.rounding import product_bound
from sat.methods.sdgd.pdes import AllenCahn, DimensionwisePDE, HJBLog, SineGordon, TwoBody
from sat.methods.sdgd.residual import ConstrainedMLP, laplacian_terms, sdgd_residual
from sat.methods.sdgd.trainer import SDGDTrainer

DIM, POINTS, STEPS, QUICK_STEPS, TEST = 100, 100, 2500, 600, 20_000
LOW_DIM, LOW_STEPS, LOW_BATCH = 10, 1500, 5
HJB_DIM, HJB_STEPS, HJB_BATCH, HJB_TEST = 20, 1500, 4, 200
MARKS, MARKED = 20, 2000


@dataclass
class Run:
    """A training: its model, errors on the test set by CPU seconds, and what it took."""

    model: ConstrainedMLP
    steps: int
    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    @property
    def error(self) -> float:
        """At the end."""
        return self.errors[-1]


def relative_error(model: ConstrainedMLP, x: Tensor, u: Tensor) -> float:
    """Return the relative L2 error on points (N, inputs) with solutions (N,)."""
    with torch.no_grad():
        return float((model(x) - u).norm() / u.norm())


def train(
    pde: DimensionwisePDE, test: tuple[Tensor, Tensor], dim_batch: int, steps: int, seed: int, *,
    mode: str = "shared", pattern: str | None = None, least: int = 128,
) -> Run:  # fmt: skip
    """Train a network; ``pattern`` prunes layers of at least ``least`` inputs N:M in FF and BP."""
    torch.manual_seed(seed)
    run = Run(ConstrainedMLP(pde), steps)
    if pattern is not None:

        def wide(_: str, layer: nn.Module) -> bool:
            outputs, inputs = layer.weight.shape  # type: ignore[union-attr, misc]
            return bool(inputs >= least and outputs > 1)

        sat.sparsify_(run.model, "bdwp", pattern, filter_fn=wide)
    trainer = SDGDTrainer(run.model, pde, POINTS, dim_batch, steps=steps, mode=mode, seed=seed)
    judged = 0.0
    began = time.process_time()

    def watch(step: int) -> None:
        nonlocal judged
        if step % max(1, steps // MARKS) == 0 or step == steps:
            now = time.process_time()
            run.times.append(now - began - judged)
            some = slice(None if step == steps else MARKED)
            run.errors.append(relative_error(run.model, test[0][some], test[1][some]))
            judged += time.process_time() - now

    trainer.train(watch)
    run.seconds = run.times[-1]
    return run


def baselines(x: Tensor, u: Tensor) -> tuple[float, float]:
    """Return errors of the best (1 - ‖x‖²)·constant and (1 - ‖x‖²)·(linear), by least squares."""
    points, values = x.double().numpy(), u.double().numpy()
    factor = 1 - (points**2).sum(1, keepdims=True)
    errors = []
    for basis in (factor, factor * np.c_[np.ones(len(points)), points]):
        weights, *_ = np.linalg.lstsq(basis, values, rcond=None)
        errors.append(np.linalg.norm(basis @ weights - values) / np.linalg.norm(values))
    return float(errors[0]), float(errors[1])


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Check gradients by enumeration, then train.

    Parameters
    ----------
    seed : int
        Of the solution's coefficients, points, terms and networks.
    quick : bool
        Fewer steps, and only d = 100 by one term a step beside the full network.
    """
    result = Result()
    _enumeration(result, seed)
    _derivatives(result, seed)
    _memory(result)
    pde, test = _problem(DIM, seed)
    const, linear = _report_baselines(result, test, DIM)
    one = train(pde, test, 1, QUICK_STEPS if quick else STEPS, seed)
    full = _full_at_equal_time(result, one, seed)
    result.metrics["d = 100, one term a step: relative L2"] = one.error
    result.metrics["d = 100, one term a step: over linear's"] = one.error / linear
    result.metrics["d = 100, one term a step: CPU seconds"] = one.seconds
    if quick:
        result.check("d = 100, one term, 600 steps: over the constant's", one.error / const, 0.5)
        result.left_out += [
            "1,900 of 2,500 steps, and the bound on their error",
            "16 terms a step, algorithms 1 and 2, d = 10, the HJB equation, N:M",
        ]
        result.figures["training"] = _picture({"1 term": one, "full": full}, test)
        return result
    result.check("d = 100, one term a step: relative L2", one.error, 0.015)
    result.check("d = 100, one term a step: over the constant's", one.error / const, 0.25)
    result.check("d = 100, one term a step: CPU seconds", one.seconds, 60)
    runs = {"1 term, shared": one}
    for mode, steps in (("shared", 300), ("alg2", 300), ("alg1", 60)):
        made = train(pde, test, 16, steps, seed, mode=mode)
        result.metrics[f"d = 100, 16 terms, {mode}, {steps} steps: relative L2"] = made.error
        result.metrics[f"d = 100, 16 terms, {mode}: ms a step"] = 1e3 * made.seconds / steps
        runs[f"16 terms, {mode}"] = made
    for pattern, least in (("2:8", 128), ("1:4", 100)):
        sparse = train(pde, test, 1, STEPS, seed, pattern=pattern, least=least)
        layers = "hidden layers" if least == 128 else "first and hidden layers"
        result.metrics[f"d = 100, one term, {layers} {pattern}: relative L2"] = sparse.error
    _few_dimensions(result, seed)
    _hjb(result, seed)
    result.figures["training"] = _picture({**runs, "full": full}, test)
    return result


def _problem(d: int, seed: int) -> tuple[SineGordon, tuple[Tensor, Tensor]]:
    pde = SineGordon(d, seed)
    x = SineGordon(d, seed + 1).sample(TEST)
    return pde, (x, pde.solution(x))


def _report_baselines(result: Result, test: tuple[Tensor, Tensor], d: int) -> tuple[float, float]:
    const, linear = baselines(*test)
    result.metrics[f"d = {d}, best (1 - r²) constant: relative L2"] = const
    result.metrics[f"d = {d}, best (1 - r²) linear: relative L2"] = linear
    return const, linear


def _full_at_equal_time(result: Result, one: Run, seed: int) -> Run:
    """Train on all terms for the CPU time that one term a step took."""
    pde, test = _problem(DIM, seed)
    probe = train(pde, test, DIM, 10, seed, mode="full")
    steps = max(10, round(one.seconds / float(np.median(np.diff(probe.times)))))
    pde, test = _problem(DIM, seed)
    full = train(pde, test, DIM, steps, seed, mode="full")
    result.metrics["d = 100, all terms: steps in the same CPU time"] = steps
    result.metrics["d = 100, all terms: relative L2"] = full.error
    result.metrics["d = 100, all terms: CPU seconds"] = full.seconds
    ratio = (full.seconds / full.steps) / (one.seconds / one.steps)
    result.check("d = 100: a step's CPU time, all terms over one", ratio, 5, at_least=True)
    result.check("d = 100: error at equal CPU time, one term over all", one.error / full.error, 1)
    return full


def _few_dimensions(result: Result, seed: int) -> None:
    """In 10 dimensions a linear function is not good enough: the network has to do something."""
    _, test = _problem(LOW_DIM, seed)
    _report_baselines(result, test, LOW_DIM)
    for mode in ("shared", "alg2"):
        pde, _ = _problem(LOW_DIM, seed)
        made = train(pde, test, LOW_BATCH, LOW_STEPS, seed, mode=mode)
        name = f"d = {LOW_DIM}, {LOW_BATCH} terms a step, {mode}: relative L2"
        if mode == "alg2":
            result.check(name, made.error, 0.015)
        else:
            result.metrics[name] = made.error


# ------------------------------------------------------------------------------- exact figures


def _gradient(loss: Tensor, model: ConstrainedMLP) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def _enumeration(result: Result, seed: int) -> None:
    """Average the gradients over all sets of 2 of 5 terms, in float64."""
    torch.manual_seed(seed)
    # A solution about as small as a new network, or the residual would hide the terms' variance.
    pde = SineGordon(5, seed, SineGordon(5, seed).coefficients / 20)
    model = ConstrainedMLP(pde, 16, 2).double()
    x = pde.sample(8).double()
    sets = [torch.tensor(pair) for pair in combinations(range(5), 2)]

    def by(mode: str, i: Tensor | None = None, j: Tensor | None = None) -> Tensor:
        return _gradient(sdgd_residual(model, x, pde, i, j, mode), model)

    true = by("full")
    size = float(true.norm())
    bound = product_bound(1e-12, 16)
    first = torch.stack([by("alg1", None, j) for j in sets]).mean(0)
    result.check(
        "alg1, all J: gradient off the full one", float((first - true).norm()) / size, bound
    )
    second = torch.stack([by("alg2", i, j) for i, j in product(sets, sets)]).mean(0)
    off = float((second - true).norm()) / size
    result.check("alg2, all I and J: gradient off the full one", off, bound)
    shared = torch.stack([by("shared", i) for i in sets]).mean(0)
    result.metrics["shared, all I: gradient off the full one"] = (
        float((shared - true).norm()) / size
    )
    # Σ_I L_i u over its mean has the variance that the biased loss adds.
    terms = laplacian_terms(model, x, torch.arange(5))
    each = torch.stack([terms[:, i].sum(1) * 5 / 2 for i in sets])
    variance = _gradient((each - terms.sum(1)).square().mean() / 2, model)
    off = float((shared - true - variance).norm()) / size
    result.check("shared, all I: off the full one and its variance's", off, bound)


def _derivatives(result: Result, seed: int) -> None:
    """Hold second derivatives and right-hand sides against Hessians by `torch.func`, in float64."""
    torch.manual_seed(seed)
    for pde in (SineGordon(6, seed), AllenCahn(6, seed)):
        x = pde.sample(10).double()

        def exact(point: Tensor, pde: TwoBody = pde) -> Tensor:
            return pde.solution(point[None])[0]

        bent = torch.func.vmap(torch.func.hessian(exact))(x)
        trace = bent.diagonal(dim1=1, dim2=2).sum(1)
        off = (pde.rhs(x) - trace - pde.reaction(pde.solution(x))).abs().max()
        off /= pde.rhs(x).abs().max()
        result.check(f"{type(pde).__name__}: right-hand side off the solution's", float(off), 1e-12)
    model = ConstrainedMLP(pde, 16, 3).double()

    def value(point: Tensor) -> Tensor:
        return model(point[None])[0]

    bent = torch.func.vmap(torch.func.hessian(value))(x).diagonal(dim1=1, dim2=2)
    with torch.no_grad():
        off = (laplacian_terms(model, x, torch.arange(6)) - bent).abs().max() / bent.abs().max()
    bound = product_bound(1e-12, 16)
    result.check("u_ii of a network off the Hessian's", float(off), bound)


def kept_bytes(dim_batch: int) -> int:
    """Return the bytes that a step's graph keeps for its backward pass."""
    pde = SineGordon(DIM)
    model = ConstrainedMLP(pde)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sdgd_residual(model, pde.sample(POINTS), pde, torch.arange(dim_batch), mode="shared")
    del loss
    return sum(kept.values())


def _memory(result: Result) -> None:
    kept = {batch: kept_bytes(batch) for batch in (1, 16, 32, 64, DIM)}
    for batch, size in kept.items():
        result.metrics[f"kept for the backward pass, |I| = {batch}: MB"] = size / 1e6
    ratio = (kept[64] - kept[32]) / (kept[32] - kept[16])
    result.check("kept bytes, 32 to 64 terms over 16 to 32: off 2", abs(ratio - 2), 0.02)
    ratio = kept[DIM] / kept[1]
    result.check("kept bytes, all terms over one", ratio, 20, at_least=True)


def cole_hopf(x: Tensor) -> float:
    """Return HJBLog's solution at a point (d + 1,), by scipy's quadrature.

    ‖x + √(2(1-t)) W‖² is 2(1-t) times a variable of the noncentral chi-squared law.
    """
    spread = 2 * (1 - float(x[-1]))
    law = ncx2(len(x) - 1, float(x[:-1].double().square().sum()) / spread)
    low, high = law.ppf(1e-12), law.isf(1e-12)
    mean, _ = quad(lambda q: 2 / (1 + spread * q) * law.pdf(q), low, high, limit=200)
    return float(-np.log(mean))


def _hjb(result: Result, seed: int) -> None:
    pde = HJBLog(HJB_DIM, seed)
    x = HJBLog(HJB_DIM, seed + 1).sample(HJB_TEST)
    exact = torch.tensor([cole_hopf(point) for point in x])
    off = float((pde.solution(x[:20]) / exact[:20] - 1).abs().max())
    result.check("HJB: solution by 20,000 draws off quadrature, worst of 20", off, 0.01)
    start = float((pde.terminal(x[:, :-1]) - exact).norm() / exact.norm())
    result.metrics["HJB, d = 20, g alone: relative L2"] = start
    for mode in ("shared", "alg2"):
        made = train(HJBLog(HJB_DIM, seed), (x, exact), HJB_BATCH, HJB_STEPS, seed, mode=mode)
        name = f"HJB, d = {HJB_DIM}, {HJB_BATCH} terms a step, {mode}"
        result.metrics[f"{name}: relative L2"] = made.error
        result.check(f"{name}: over g's", made.error / start, 0.25)


# ------------------------------------------------------------------------------------- picture


def _picture(runs: dict[str, Run], test: tuple[Tensor, Tensor]) -> Figure:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, made in runs.items():
        left.plot(made.times, made.errors, ".-", label=name)
    for value, text in zip(baselines(*test), ("constant", "linear"), strict=True):
        left.axhline(value, color="k", linestyle=":", linewidth=1)
        place = {"transform": left.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        left.text(0.99, value, f"(1 - r²) {text}", fontsize=7, **place)
    left.set(xlabel="CPU seconds", ylabel="relative L2 error", yscale="log", xlim=(0, None))
    left.set_title(f"Sine-Gordon, d = {DIM}", fontsize=10)
    left.legend(fontsize=7)
    x, u = test[0][:1000], test[1][:1000]
    best = next(iter(runs.values())).model
    with torch.no_grad():
        made_u = best(x)
    middle.plot(u, made_u, ".", markersize=3)
    ends = [float(u.min()), float(u.max())]
    middle.plot(ends, ends, "k", linewidth=0.8)
    middle.set(xlabel="exact u", ylabel="network's u (one term a step)")
    batches = (1, 4, 16, 32, 64, DIM)
    right.plot(batches, [kept_bytes(batch) / 1e6 for batch in batches], "o-")
    right.set(xlabel="terms a step, |I|", ylabel="kept for the backward pass, MB", ylim=(0, None))
    return figure
