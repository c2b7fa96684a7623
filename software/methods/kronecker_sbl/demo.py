"""Acceptance figures: laws against dense numpy, recovery beside SBL and greedy ones, a channel."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import reduce
from statistics import fmean

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from sat.methods import Result
from sat.methods.kronecker_sbl.dictionary import kron
from sat.methods.kronecker_sbl.greedy import kron_omp, omp
from sat.methods.kronecker_sbl.posterior import posterior
from sat.methods.kronecker_sbl.problems import (
    KroneckerProblem,
    irs_mimo_problem,
    kronecker_problem,
    nmse,
    support_recovery_rate,
)
from sat.methods.kronecker_sbl.solver import PRUNE, kron_sbl, sbl
from sat.methods.kronecker_sbl.updates import am_update, svd_update
from sat.methods.problems.rounding import FLOAT64_PRODUCTS, product_bound, product_error

Array = NDArray[np.complex128]

SNRS = (20.0, 30.0)
TRIALS, QUICK_TRIALS = 40, 2
NONZEROS = 8
EASY_ROWS, EASY_NONZEROS, EASY_TRIALS = (6, 7, 8), 3, 3
IRS_SNRS, QUICK_IRS_SNRS, IRS_TRIALS, QUICK_IRS_TRIALS = (4.0, 8.0, 12.0, 16.0, 20.0), (20.0,), 8, 2
METHODS = ("SVD-KroSBL", "AM-KroSBL", "SBL", "OMP", "Kronecker-OMP")


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about a minute on one core.

    Parameters
    ----------
    seed : int
        Trials have this seed and those that follow it.
    quick : bool
        Two trials at each noise instead of 40, two channels at one noise, no steering vectors.
    """
    result = Result()
    _posterior(result, seed)
    _updates(result, seed)
    _limits(result, seed)
    trials = _recovery(result, seed, quick)
    _against_classic(result, seed)
    if not quick:
        _easy(result, seed)
    channels = _channels(result, seed, quick)
    result.figures["recovery"] = _figure(seed, trials, channels)
    if quick:
        result.left_out += [
            f"{TRIALS} trials (here {QUICK_TRIALS}) and their bounds; steering vectors",
            f"{IRS_TRIALS} channels at {len(IRS_SNRS)} signal-to-noise ratios",
        ]
    return result


# ------------------------------------------------------------------------------------ exact laws


def dense_posterior(
    y: Array, a: Array, g: Array, noise: float
) -> tuple[Array, NDArray[np.float64], float]:
    """Return mean, variances and cost by numpy's dense solves, everything formed."""
    sigma = (a * g) @ a.conj().T + noise * np.eye(len(y))
    gain = g[:, None] * np.linalg.solve(sigma, a).conj().T
    variance = np.diag(g) - gain @ (a * g)
    cost = np.linalg.slogdet(sigma)[1] + (y.conj() @ np.linalg.solve(sigma, y)).real
    return gain @ y, np.diag(variance).real, float(cost)


def draw_gammas(sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Return positive vectors that range over two decades."""
    return [10 ** (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1) for n in sizes]


def relative(a: Array | NDArray[np.float64], b: Array | NDArray[np.float64]) -> float:
    """Return the largest difference over the largest b."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def _posterior(result: Result, seed: int) -> None:
    """Mean, variances and cost against dense solves; axes in another order."""
    off = turned = 0.0
    for trial, rows in enumerate(((4, 5, 6), (6, 3), (2, 3, 4, 2))):
        columns = 7 if len(rows) < 4 else 4
        p = kronecker_problem(seed + trial, 20.0, rows, columns)
        gammas = draw_gammas([columns] * len(rows), torch.Generator().manual_seed(seed + trial))
        y = p.y.reshape(rows)
        found = posterior(y, p.factors, gammas, p.noise_var)
        a = reduce(np.kron, [factor.numpy() for factor in p.factors])
        g = reduce(np.kron, [gamma.numpy() for gamma in gammas])
        mean, variance, cost = dense_posterior(p.y.numpy(), a, g, p.noise_var)
        off = max(
            off,
            relative(found.mean.flatten().numpy(), mean),
            relative(found.variance.flatten().numpy(), variance),
            abs(found.cost - cost) / abs(cost),
        )
        order = list(reversed(range(len(rows))))
        back = posterior(y.permute(order), p.factors[::-1], gammas[::-1], p.noise_var).mean.permute(
            order
        )
        turned = max(turned, relative(back.numpy(), found.mean.numpy()))
    # Rounding of the products is passed on by 1 / noise, a hundred times the signal's here.
    name = "posterior and cost off dense solves, worst of 3"
    result.check(name, off, product_bound(1e-10, 1000))
    result.check("… mean off that of axes in reverse order", turned, product_bound(1e-10, 1000))


def _updates(result: Result, seed: int) -> None:
    """What EM may not do, and what the updates must find."""
    rise = -math.inf
    for trial in range(3):
        p = kronecker_problem(seed + trial, 20.0)
        costs = kron_sbl(p.y, p.factors, p.noise_var, "am", prune=0.0, max_iter=40).cost_history
        rise = max(rise, max(b - a for a, b in zip(costs, costs[1:], strict=False)))
    name = "AM, 40 steps of 3 problems without pruning: highest rise of the cost"
    result.check(name, rise, product_bound(1e-9, 1000))
    generator = torch.Generator().manual_seed(seed)
    gammas = draw_gammas((4, 5, 6), generator)
    moments = kron(gammas)
    ones = [torch.ones_like(g) for g in gammas]
    for name, made in (("SVD", svd_update(moments)), ("AM", am_update(moments, ones))):
        off = relative(kron(made).numpy(), moments.numpy())
        result.check(f"{name} update of a Kronecker product, off it", off, product_bound(1e-12, 8))


def _limits(result: Result, seed: int) -> None:
    """Cases whose answer is known: no noise and full rank, one factor, two in another order."""
    p = kronecker_problem(seed, 200.0, (6, 7), 4, 4)
    noise = 1e-10
    found = kron_sbl(p.y, p.factors, noise, prune=0.0)
    a = reduce(np.kron, [factor.numpy() for factor in p.factors])
    best = np.linalg.lstsq(a, p.y.numpy(), rcond=None)[0]
    off = relative(found.x.numpy(), best)
    # Off A's range D is 1 / noise, and two products that would be zero there meet before and after.
    bound = max(product_bound(1e-8, 100), 10 * product_error() ** 2 / noise)
    result.check("no noise, full rank: x off least squares", off, bound)
    p = kronecker_problem(seed, 20.0, (30,), 60, 5)
    one, classic = kron_sbl(p.y, p.factors, p.noise_var), sbl(p.y, p.factors[0], p.noise_var)
    off = relative(one.x.numpy(), classic.x.numpy())
    result.check("one factor: x off classic SBL's", off, product_bound(1e-8, 1000))
    p = kronecker_problem(seed, 20.0, (8, 6))
    straight = kron_sbl(p.y, p.factors, p.noise_var).x
    y = p.y.reshape(8, 6).mT.flatten()
    swapped = kron_sbl(y, p.factors[::-1], p.noise_var).x.reshape(10, 10).mT.flatten()
    off = relative(swapped.numpy(), straight.numpy())
    result.check("two factors: x off that of the other order", off, product_bound(1e-8, 1000))


# -------------------------------------------------------------------------------------- recovery

Trials = dict[str, dict[float, list[tuple[float, float, float]]]]
"""NMSE, support recovery rate and CPU seconds, by method and signal-to-noise ratio in dB."""


def solvers(p: KroneckerProblem, nonzeros: int, each: int) -> dict[str, Callable[[], Tensor]]:
    """Return what recovers x, by name; greedy ones are told how many entries there are."""
    a = reduce(torch.kron, p.factors)
    return {
        "SVD-KroSBL": lambda: kron_sbl(p.y, p.factors, p.noise_var).x,
        "AM-KroSBL": lambda: kron_sbl(p.y, p.factors, p.noise_var, "am").x,
        "SBL": lambda: sbl(p.y, a, p.noise_var).x,
        "OMP": lambda: omp(p.y, a, nonzeros),
        "Kronecker-OMP": lambda: kron_omp(p.y, p.factors, [each] * len(p.factors)),
    }


def decibels(values: Sequence[float]) -> float:
    """Return the mean in dB."""
    return 10 * math.log10(fmean(values))


def _recovery(result: Result, seed: int, quick: bool) -> Trials:
    count = QUICK_TRIALS if quick else TRIALS
    trials: Trials = {name: {snr: [] for snr in SNRS} for name in METHODS}
    unknown = []
    for snr in SNRS:
        for trial in range(count):
            p = kronecker_problem(seed + trial, snr)
            for name, solve in solvers(p, NONZEROS, 2).items():
                start = time.process_time()
                x = solve()
                seconds = time.process_time() - start
                trials[name][snr].append((nmse(x, p.x), support_recovery_rate(x, p.x), seconds))
            if snr == SNRS[-1]:
                unknown.append(nmse(kron_sbl(p.y, p.factors).x, p.x))
    for name in METHODS:
        for snr in SNRS:
            errors, rates, times = zip(*trials[name][snr], strict=True)
            title = f"{name}, {snr:g} dB"
            result.metrics[f"{title}: NMSE, dB"] = decibels(errors)
            result.metrics[f"{title}: NMSE, dB, median"] = 10 * math.log10(np.median(errors))
            result.metrics[f"{title}: support recovery rate"] = fmean(rates)
            result.metrics[f"{title}: CPU seconds"] = fmean(times)
    result.metrics["SVD-KroSBL, 30 dB, noise not known: NMSE, dB"] = decibels(unknown)

    def mean(name: str, snr: float) -> float:
        return result.metrics[f"{name}, {snr:g} dB: NMSE, dB"]

    if quick:
        result.check(f"SVD, 30 dB, {count} trials: NMSE, dB", mean("SVD-KroSBL", 30), -30)
        return trials
    for snr in SNRS:
        gain = mean("SBL", snr) - mean("SVD-KroSBL", snr)
        result.check(f"{snr:g} dB: SVD below SBL, dB", gain, 10, at_least=True)
    gain = mean("SBL", 30) - mean("AM-KroSBL", 30)
    result.check("30 dB: AM below SBL, dB", gain, 5, at_least=True)
    rate = result.metrics["SVD-KroSBL, 30 dB: support recovery rate"]
    result.check("30 dB: SVD's support recovery rate", rate, 0.9, at_least=True)
    return trials


def whole_sbl(y: Array, a: Array, noise: float) -> Array:
    """Return x by classic SBL as it is usually written, with all of Σ, N x N, in numpy."""
    full = np.zeros(a.shape[1], dtype=a.dtype)
    kept, g = np.arange(a.shape[1]), np.ones(a.shape[1])
    for _ in range(150):
        before = np.zeros(len(full))
        before[kept] = g
        stays = g >= PRUNE["svd"] * g.max()
        kept, g, a = kept[stays], g[stays], a[:, stays]
        sigma = np.linalg.inv((a * g) @ a.conj().T + noise * np.eye(len(y)))
        covariance = np.diag(g) - g[:, None] * (a.conj().T @ sigma @ a) * g
        mean = covariance @ (a.conj().T @ y) / noise
        g = np.diag(covariance).real + np.abs(mean) ** 2
        after = np.zeros(len(full))
        after[kept] = g
        if np.linalg.norm(after - before) < 1e-4 * np.linalg.norm(before):
            break
    sigma = np.linalg.inv((a * g) @ a.conj().T + noise * np.eye(len(y)))
    full[kept] = g * (a.conj().T @ (sigma @ y))
    return full


def _against_classic(result: Result, seed: int) -> None:
    """Classic SBL as it is usually written: the same x as ours, and how long it takes."""
    p = kronecker_problem(seed, 30.0)
    a = reduce(torch.kron, p.factors)
    start = time.process_time()
    theirs = whole_sbl(p.y.numpy(), a.numpy(), p.noise_var)
    middle = time.process_time()
    kron_sbl(p.y, p.factors, p.noise_var)
    ratio = (middle - start) / (time.process_time() - middle)
    ours = sbl(p.y, a, p.noise_var).x.numpy()
    # EM stops by a change of 1e-4, so fewer bits may end it some steps earlier or later, and the
    # slowest variances then are some changes apart.
    bound = 1e-6 if product_error() < FLOAT64_PRODUCTS else 1e-2
    result.check("classic SBL: x off numpy's, with all of Σ", relative(ours, theirs), bound)
    name = "CPU time of numpy's, with all of Σ, over SVD's"
    if product_error() < FLOAT64_PRODUCTS:
        result.check(name, ratio, 20, at_least=True)
    else:
        # numpy's products stay on the host: elsewhere there is nothing to compare them with.
        result.metrics[name] = ratio


def _easy(result: Result, seed: int) -> None:
    """Steering vectors and many measurements: all find the support."""
    errors: dict[str, list[float]] = {}
    for trial in range(EASY_TRIALS):
        p = kronecker_problem(seed + trial, 20.0, EASY_ROWS, nonzeros=EASY_NONZEROS, steering=True)
        runs = solvers(p, EASY_NONZEROS**3, EASY_NONZEROS)
        for name in METHODS[:3]:
            errors.setdefault(name, []).append(nmse(runs[name](), p.x))
    levels = {name: decibels(each) for name, each in errors.items()}
    for name, level in levels.items():
        result.metrics[f"{name}, steering vectors, 20 dB: NMSE, dB"] = level
    result.check("steering vectors, 336 measurements: worst NMSE, dB", max(levels.values()), -25)


# --------------------------------------------------------------------------------------- channel


def _channels(result: Result, seed: int, quick: bool) -> dict[str, dict[float, float]]:
    """Return NMSE in dB of channels over a surface, by method and signal-to-noise ratio."""
    snrs, count = (QUICK_IRS_SNRS, QUICK_IRS_TRIALS) if quick else (IRS_SNRS, IRS_TRIALS)
    p = irs_mimo_problem(seed, 20.0)
    wanted = p.channels
    off = relative(p.channels_of(p.x).numpy(), wanted.numpy())
    # Either side is three products, the dictionaries of the surface are a fourth.
    result.check("channels of the true x off those by matrices", off, product_bound(1e-12, 32))
    levels: dict[str, dict[float, float]] = {}
    for snr in snrs:
        errors: dict[str, list[float]] = {}
        for trial in range(count):
            p = irs_mimo_problem(seed + trial, snr)
            wanted = p.channels
            for name, solve in {
                "SVD-KroSBL": lambda p=p: kron_sbl(p.y, p.factors, p.noise_var, init=None).x,
                "AM-KroSBL": lambda p=p: kron_sbl(p.y, p.factors, p.noise_var, "am", init=None).x,
                "Kronecker-OMP": lambda p=p: kron_omp(p.y, p.factors, (3, 1, 3)),
            }.items():
                errors.setdefault(name, []).append(nmse(p.channels_of(solve()), wanted))
        for name, each in errors.items():
            levels.setdefault(name, {})[snr] = decibels(each)
            result.metrics[f"{name}, channel, {snr:g} dB: NMSE, dB"] = levels[name][snr]
    return levels


# --------------------------------------------------------------------------------------- picture


def _figure(seed: int, trials: Trials, channels: dict[str, dict[float, float]]) -> Figure:
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    (spread, where), (cost, channel) = figure.subplots(2, 2)
    for number, (name, by_snr) in enumerate(trials.items()):
        for place, snr in enumerate(SNRS):
            errors = np.sort([10 * math.log10(each[0]) for each in by_snr[snr]])
            share = (np.arange(len(errors)) + 1) / len(errors)
            style = ("--", "-")[place]
            label = name if place else None
            spread.step(errors, share, style, where="post", color=f"C{number}", label=label)
    spread.set(xlabel="NMSE, dB (dashed at 20 dB, solid at 30)", ylabel="share of trials")
    spread.legend(fontsize=8)
    p = kronecker_problem(seed, 20.0)
    histories = {}
    for number, method in reversed(list(enumerate(PRUNE))):
        found = kron_sbl(p.y, p.factors, p.noise_var, method)
        size = found.x.abs().numpy()
        style = ("^", ".")[number]
        where.semilogy(size, style, markersize=4, color=f"C{number}", label=METHODS[number])
        histories[METHODS[number]] = found.cost_history
    where.semilogy(p.x.abs().numpy(), "ko", markersize=9, fillstyle="none", label="true")
    where.set(xlabel="place in x, a trial at 20 dB", ylabel="magnitude", ylim=(1e-4, 10))
    where.legend(fontsize=8, loc="lower right")
    histories["SBL"] = sbl(p.y, reduce(torch.kron, p.factors), p.noise_var).cost_history
    for name, history in histories.items():
        cost.plot(history, color=f"C{METHODS.index(name)}", label=name)
    cost.set(xlabel="step of EM", ylabel="cost, the same trial")
    cost.legend(fontsize=8)
    for name, levels in channels.items():
        color = f"C{METHODS.index(name)}"
        channel.plot(list(levels), list(levels.values()), "o-", color=color, label=name)
    channel.set(xlabel="signal-to-noise ratio, dB", ylabel="NMSE of channels over a surface, dB")
    channel.legend(fontsize=8)
    return figure
