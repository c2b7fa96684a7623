"""DaPC NN judged: its bases by exact moments, Ishigami's function beside perceptrons and aPC.

Errors are root mean squares over the deviation of 3,000 fresh points. References are numpy's,
scikit-learn's, fractions, and perceptrons by plain products.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.neural_network import MLPRegressor
from torch import Tensor, nn

import sat
from sat.methods import Result
from sat.methods.dapc_nn.basis import APCBasis
from sat.methods.dapc_nn.figure import Shown, draw
from sat.methods.dapc_nn.functions import Moments, borehole, ishigami, ishigami_moments
from sat.methods.dapc_nn.network import DaPCNN, fit_apc
from sat.methods.problems.rounding import product_bound

Array = NDArray[np.float64]
Data = tuple[Tensor, Tensor]
SEEDS, RUNS, TEST = 8, 300, 3000
HIDDEN = (6,)
PERCEPTRONS = ((10, 6), (16,))
PERCEPTRON_STEPS, PERCEPTRON_RATE = 2000, 1e-2
LBFGS_SEEDS = 2
SIZES = (100, 200, 300, 600, 1000)
WIDE, WIDE_STEPS, WIDE_RATE = (16,), 800, 2e-2


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about two minutes on one core.

    Parameters
    ----------
    seed : int
        Of the first data set and network; the others follow it.
    quick : bool
        One network, beside aPC of degree 4 alone.
    """
    result = Result()
    _bases(result, seed)
    model, data = _ishigami(result, seed, quick)
    _orthonormal(result, model, data)
    moments = _sobol(result, seed)
    errors: dict[str, list[float]] = {}
    if quick:
        result.left_out += [
            f"{SEEDS - 1} of {SEEDS} networks, aPC of degree 6, the product basis, perceptrons",
            "the borehole, diabetes, N:M, errors over the number of runs",
        ]
    else:
        _borehole(result, seed)
        _diabetes(result, seed)
        _patterns(result, seed)
        errors = _sizes(seed)
        for name, curve in errors.items():
            for size, value in zip(SIZES, curve, strict=True):
                result.metrics[f"N = {size}, {name}: error"] = value
    start = DaPCNN(3, HIDDEN, basis="joint")
    start.reset_parameters(torch.Generator().manual_seed(seed))
    start.refresh(data[0])
    result.figures["chaos"] = draw(Shown(start, model, data[0], moments, SIZES, errors))
    return result


# --------------------------------------------------------------------------------------- bases


def _bases(result: Result, seed: int) -> None:
    rng = np.random.default_rng(seed)
    uniform = rng.uniform(-1, 1, 100_000)
    both = column(np.concatenate([uniform, -uniform]))
    a, b = (values.numpy()[:, 0] for values in APCBasis(4).fit(both).coefficients())
    k = np.arange(1, 5)
    worst = np.abs(b[1:] - k**2 / (4 * k**2 - 1)).max()
    result.check("b_k of 100,000 uniform values and their negatives off Legendre's", worst, 2e-3)
    result.check("… a_k off 0", np.abs(a).max(), 1e-12)
    bimodal = np.concatenate([rng.normal(-2, 0.3, 150), rng.normal(1, 0.5, 150)])
    for name, values in {
        "uniform": uniform[:300], "exponential": rng.exponential(size=300), "bimodal": bimodal,
    }.items():  # fmt: skip
        basis = APCBasis(4).fit(column(values))
        p = basis.univariate(column(values))[:, :, 0].numpy()
        worst = np.abs(p.T @ p / len(p) - np.eye(5)).max()
        result.check(f"mean P_j P_k off I, degree 4, 300 {name} values", worst, 1e-10)
    values = rng.exponential(size=10)
    p = APCBasis(3).fit(column(values)).univariate(column(values))[:, :, 0].numpy()
    worst = np.abs(p - by_moments(values, 3)).max()
    result.check("P_k of 10 values off raw moments in fractions, k <= 3", worst, 1e-9)


def column(values: Array) -> Tensor:
    """Return (N, 1) float64."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)[:, None])


def by_moments(values: Array, degree: int) -> Array:
    """Return P_0 … P_d (N, d + 1) at the values, by Hankel systems of their moments, exactly.

    Oladyshkin and Nowak 2012: rows (m_i, …, m_{i+k}) for i < k, last row (0 … 0, 1).
    """
    exact = [Fraction(float(value)) for value in values]
    zero = Fraction(0)
    moments = [sum((x**i for x in exact), zero) / len(exact) for i in range(2 * degree)]
    columns = []
    for k in range(degree + 1):
        rows = [[*moments[i : i + k + 1], zero] for i in range(k)]
        rows.append([zero] * k + [Fraction(1), Fraction(1)])
        c = _solve(rows)
        p = [sum((c[i] * x**i for i in range(k + 1)), zero) for x in exact]
        norm = math.sqrt(sum(value**2 for value in p) / len(p))
        columns.append([float(value) / norm for value in p])
    return np.array(columns).T


def _solve(rows: list[list[Fraction]]) -> list[Fraction]:
    """Return the solution of rows (matrix, right side) by Gauss and Jordan's elimination."""
    for i in range(len(rows)):
        pivot = next(j for j in range(i, len(rows)) if rows[j][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(len(rows)):
            if j != i:
                factor = rows[j][i]
                rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]


# ------------------------------------------------------------------------------------- Ishigami


def inputs(runs: int, seed: int) -> Data:
    """Return x (runs, 3) uniform on [-π, π] and Ishigami's values (runs,), float64."""
    generator = torch.Generator().manual_seed(seed)
    x = math.pi * (2 * torch.rand(runs, 3, generator=generator, dtype=torch.float64) - 1)
    return x, ishigami(x)


def off(predicted: Tensor, y: Tensor) -> float:
    """Return the root mean square error over the deviation of y (N,)."""
    return float((predicted.flatten() - y).square().mean().sqrt() / y.std(correction=0))


def perceptrons(
    sets: Sequence[Data], hidden: Sequence[int], seed: int
) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Train a tanh perceptron on each data set, all of one size, side by side.

    Adam at 1e-2, as a half wave of a cosine to 0, 2,000 steps; float32, standardised data, weights
    as `torch.nn.Linear` draws them.
    """
    x = torch.stack([x for x, _ in sets])
    y = torch.stack([y for _, y in sets])[..., None]
    (x_scale, x_mean), (y_scale, y_mean) = (torch.std_mean(v, 1, keepdim=True) for v in (x, y))
    widths = [x.shape[2], *hidden, 1]
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for before, after in zip(widths, widths[1:], strict=False):
        drawn = 2 * torch.rand(len(sets), before + 1, after, generator=generator) - 1
        drawn /= math.sqrt(before)
        layers.append((drawn[:, 1:].clone(), drawn[:, :1].clone()))
    parameters = [p.requires_grad_() for pair in layers for p in pair]

    def forward(values: Tensor) -> Tensor:
        h = ((values - x_mean) / x_scale).float()
        for number, (weight, bias) in enumerate(layers):
            h = torch.baddbmm(bias, h, weight)
            h = h.tanh() if number < len(layers) - 1 else h
        return h

    target = ((y - y_mean) / y_scale).float()
    optimizer = torch.optim.Adam(parameters, PERCEPTRON_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PERCEPTRON_STEPS)
    for _ in range(PERCEPTRON_STEPS):
        optimizer.zero_grad()
        (forward(x) - target).square().mean((1, 2)).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()

    def predict(tests: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(forward(torch.stack(list(tests))) * y_scale + y_mean)

    return predict


def perceptron_errors(
    sets: Sequence[Data], tests: Sequence[Data], hidden: Sequence[int], seed: int
) -> list[float]:
    """Return the test error of a perceptron trained on each set."""
    predicted = perceptrons(sets, hidden, seed)([x for x, _ in tests])
    return [off(values, y) for values, (_, y) in zip(predicted, tests, strict=True)]


def _ishigami(result: Result, seed: int, quick: bool) -> tuple[DaPCNN, Data]:
    seeds = range(seed, seed + (1 if quick else SEEDS))
    sets, tests = [inputs(RUNS, s) for s in seeds], [inputs(TEST, 10_000 + s) for s in seeds]
    errors: dict[str, list[float]] = {}
    models: dict[str, list[DaPCNN]] = {}
    for basis in ("joint",) if quick else ("joint", "product"):
        models[basis] = []
        for s, (x, y) in zip(seeds, sets, strict=True):
            model = DaPCNN(3, HIDDEN, basis=basis)
            model.fit(x, y, seed=s)
            models[basis].append(model)
        errors[f"DaPC, {basis} basis"] = [
            off(model.predict(x), y) for model, (x, y) in zip(models[basis], tests, strict=True)
        ]
    for degree in (4,) if quick else (4, 6):
        fits = [
            fit_apc(x, y, degree).predict(x_t) for (x, y), (x_t, _) in zip(sets, tests, strict=True)
        ]
        errors[f"aPC, degree {degree}"] = [
            off(values, y) for values, (_, y) in zip(fits, tests, strict=True)
        ]
    if not quick:
        for hidden in PERCEPTRONS:
            name = "3-" + "-".join(map(str, hidden)) + "-1"
            errors[f"perceptron {name}"] = perceptron_errors(sets, tests, hidden, seed)
        errors["perceptron 3-16-1 by L-BFGS"] = [
            _by_lbfgs(data, test, s)
            for s, data, test in zip(seeds[:LBFGS_SEEDS], sets, tests, strict=False)
        ]
    for name, values in errors.items():
        result.metrics[f"Ishigami, N = 300, {name}: mean error"] = fmean(values)
        result.metrics[f"Ishigami, N = 300, {name}: worst error"] = max(values)
    mean = fmean(errors.pop("DaPC, joint basis"))
    if not quick:
        result.check("Ishigami, 300 runs, 8 seeds: mean error", mean, 0.18)
    for name, values in errors.items():
        if name.startswith(("aPC", "perceptron")) and "BFGS" not in name:
            result.check(f"Ishigami: mean error over that of {name}", mean / fmean(values), 1.0)
    if not quick:
        x, _ = sets[0]
        model = models["product"][0]
        gram = _last_gram(model, x)
        name = "product basis after training: largest entry of the Gram matrix off I"
        result.metrics[name] = float((gram - torch.eye(len(gram))).abs().max())
        with torch.no_grad():
            hidden_signals = model.activation(model.layers[0](x))
        correlation = torch.corrcoef(hidden_signals.mT) - torch.eye(HIDDEN[0])
        result.metrics["… largest correlation of hidden signals"] = float(correlation.abs().max())
    return models["joint"][0], sets[0]


def _by_lbfgs(data: Data, test: Data, seed: int) -> float:
    """Return the test error of scikit-learn's perceptron, the second-order peer."""
    x, y = data
    scale, mean = torch.std_mean(y, 0)
    peer = MLPRegressor(
        hidden_layer_sizes=(16,), activation="tanh", solver="lbfgs", alpha=1e-3, max_iter=2000,
        random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops at its 2,000 iterations
        peer.fit((x / math.pi).numpy(), ((y - mean) / scale).numpy())
    return off(torch.from_numpy(peer.predict((test[0] / math.pi).numpy())) * scale + mean, test[1])


@torch.no_grad()
def _last_gram(model: DaPCNN, x: Tensor) -> Tensor:
    psi = model.features(x).numpy()
    return torch.from_numpy(psi.T @ psi / len(psi))


def _orthonormal(result: Result, model: DaPCNN, data: Data) -> None:
    x, y = data
    # An error of the Gram matrix enters orthonormality by as much as its inverse is large, and
    # whitening rounds once more.
    sensitivity = math.ceil(2 * float(torch.linalg.matrix_norm(model.last.whiten, 2)) ** 2)
    gram = _last_gram(model, x)
    worst = float((gram - torch.eye(len(gram))).abs().max())
    result.metrics["joint basis: 1 / least eigenvalue of the product basis' Gram matrix"] = (
        sensitivity / 2
    )
    bound = product_bound(1e-5, sensitivity)
    result.check("joint basis after training: Gram matrix off I", worst, bound)
    bound = product_bound(1e-6, sensitivity)
    worst = abs(float(model.mean() - y.mean()))
    result.check("mean by coefficients off the sample's", worst, bound)
    worst = abs(float(model.variance()) / float(model.predict(x).var(correction=0)) - 1)
    result.check("variance by coefficients over the outputs', off 1", worst, bound)


def _sobol(result: Result, seed: int) -> Moments:
    x, y = inputs(1000, seed)
    model, exact = fit_apc(x, y, 10), ishigami_moments()
    found = model.sobol()
    result.metrics["aPC, degree 10, N = 1000: error"] = off(
        model.predict(inputs(TEST, 10_000 + seed)[0]), inputs(TEST, 10_000 + seed)[1]
    )
    result.metrics["aPC, degree 10: mean (3.5)"] = found.mean
    result.metrics["aPC, degree 10: variance (13.844588)"] = found.variance
    for kind in ("first", "total"):
        values, true = getattr(found, kind), getattr(exact, kind)
        for j in range(3):
            name = f"aPC, degree 10: {kind} index of input {j + 1} ({float(true[j]):.4f})"
            result.metrics[name] = float(values[j])
        worst = float((values - true).abs().max())
        result.check(f"aPC, degree 10, 1000 runs: {kind} Sobol indices off", worst, 0.03)
    return found


# --------------------------------------------------------------------- reported, and not judged


def _borehole(result: Result, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, u_test = (torch.rand(n, 8, generator=generator, dtype=torch.float64) for n in (200, TEST))
    data, test = (u, borehole(u)), (u_test, borehole(u_test))
    for degree in (2, 3):
        model = fit_apc(*data, degree)
        name = f"borehole, 200 runs, aPC, degree {degree}: error"
        result.metrics[name] = off(model.predict(test[0]), test[1])
    deep = DaPCNN(8, HIDDEN, basis="joint")
    deep.fit(*data, seed=seed)
    result.metrics["borehole, 200 runs, DaPC: error"] = off(deep.predict(test[0]), test[1])
    (error,) = perceptron_errors([data], [test], PERCEPTRONS[0], seed)
    result.metrics["borehole, 200 runs, perceptron 8-10-6-1: error"] = error


def _diabetes(result: Result, seed: int) -> None:
    x, y = (torch.from_numpy(values).double() for values in load_diabetes(return_X_y=True))
    squares: dict[str, list[float]] = {"DaPC, ridge 0.1": [], "DaPC, ridge 0.3": [], "linear": []}
    for train, test in KFold(5, shuffle=True, random_state=seed).split(x.numpy()):
        for ridge in (0.1, 0.3):
            model = DaPCNN(10, (3,))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # one input is binary
                model.fit(x[train], y[train], ridge=ridge, seed=seed)
            predicted = model.predict(x[test])[:, 0]
            squares[f"DaPC, ridge {ridge}"].append(float((predicted - y[test]).square().mean()))
        linear = Ridge(1e-2).fit(x[train].numpy(), y[train].numpy())
        wrong = linear.predict(x[test].numpy()) - y[test].numpy()
        squares["linear"].append(float(np.square(wrong).mean()))
    for name, values in squares.items():
        result.metrics[f"diabetes, 5 folds, {name}: RMSE"] = math.sqrt(fmean(values))


def _patterns(result: Result, seed: int) -> None:
    """Train with N:M weights along the terms: 16 nodes of 152 terms and the constant each."""
    data, test = inputs(RUNS, seed), inputs(TEST, 10_000 + seed)
    for pattern in ("dense", "2:4", "2:8"):
        model = DaPCNN(3, WIDE)
        if pattern != "dense":
            sat.sparsify_(model, "srste", pattern, filter_fn=_wide)
        model.fit(*data, steps=WIDE_STEPS, lr=WIDE_RATE, solver="adam", seed=seed)
        name = f"Ishigami, 3-16-1 by Adam, output layer {pattern}: error"
        result.metrics[name] = off(model.predict(test[0]), test[1])


def _wide(_: str, layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.in_features % 8 == 0


def _sizes(seed: int) -> dict[str, list[float]]:
    errors: dict[str, list[float]] = {
        name: [] for name in ("DaPC", "aPC, degree 4", "aPC, degree 6", "perceptron 3-10-6-1")
    }
    test = inputs(TEST, 10_000 + seed)
    for size in SIZES:
        data = inputs(size, seed)
        model = DaPCNN(3, HIDDEN, basis="joint")
        model.fit(*data, seed=seed)
        errors["DaPC"].append(off(model.predict(test[0]), test[1]))
        for degree in (4, 6):
            error = off(fit_apc(*data, degree).predict(test[0]), test[1])
            errors[f"aPC, degree {degree}"].append(error)
        errors["perceptron 3-10-6-1"] += perceptron_errors([data], [test], PERCEPTRONS[0], seed)
    return errors
