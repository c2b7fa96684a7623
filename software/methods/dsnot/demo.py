"""DSnoT judged: against an interpreter of its rules, on data with known means, and on a small GPT.

Exchanges repair what inputs' means carry, and no more: with zero means they harm, and on layers as
narrow as these one exchange a row is enough. The metrics show both.
"""

from __future__ import annotations

import copy
import time
from statistics import mean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import sat
from sat.methods import Result
from sat.methods.dsnot.interpreter import exchange_row
from sat.methods.dsnot.masks import initial_mask, score
from sat.methods.dsnot.model import PruningReport, bake, prune_model
from sat.methods.dsnot.search import DSnoTResult, dsnot, output_error, scaled_cycles
from sat.methods.dsnot.statistics import ColumnStatistics
from sat.methods.problems.gpt import CONTEXT, GPT, Training, held_out_loss, make_gpt, train_gpt
from sat.methods.problems.parameters import split_parameters
from sat.methods.problems.text import load_text

STEPS, QUICK_STEPS, MUON_LR = 800, 60, 0.03
NETWORKS, CALIBRATION, CALIBRATION_SEEDS = 3, 32, 3
RATIOS = (0.4, 0.5, 0.6, 0.7, 0.8)
PATTERNS = ((2, 4), (4, 8), (2, 8))
EXCHANGES = (0, 1, 2, 4, 8, 16, 32, 50)
METHODS = {"magnitude": "magnitude", "wanda": "Wanda"}


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Judge the search exactly, then on known data, then on a GPT that is pruned.

    Parameters
    ----------
    seed : int
        Of the rows, the data and the first of three GPTs; the first of three of calibration.
    quick : bool
        Train one GPT for 60 steps instead of three for 800, and leave out what is judged on them,
        all ratios but 60 % and 70 %, and all patterns but 2:8.
    """
    result = Result()
    trained = _train(seed, QUICK_STEPS if quick else STEPS)
    result.metrics["GPT, dense: test loss"] = trained.loss
    _rules(result, seed)
    _known(result, seed)
    curves = _ratios(result, trained.model, seed, quick)
    if quick:
        result.left_out += [
            f"{QUICK_STEPS} steps of training of {STEPS}, and what is judged on trained GPTs",
            "ratios but 60 % and 70 %, patterns but 2:8",
        ]
    else:
        more = (_train(seed + i, STEPS).model for i in range(1, NETWORKS))
        _judge(result, [trained.model, *more], seed)
        _harm(result, trained.model, seed)
    _patterns(result, trained.model, seed, quick)
    _cost(result)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_losses(left, curves, trained.loss)
    _draw_parts(right, parts_by_exchanges(trained.model, seed))
    result.figures["pruning"] = figure
    return result


# --------------------------------------------------------------------------------------- rules


def _layer(rows: int, columns: int, seed: int, q: float = 1.0) -> tuple[Tensor, ColumnStatistics]:
    weight, draw = known_layer(rows, columns, seed, q)
    stats = ColumnStatistics(columns)
    stats.add(draw(512).view(16, 32, columns))
    return weight, stats


def _rules(result: Result, seed: int) -> None:
    wrong = 0
    for pattern in (None, (2, 4)):
        weight, stats = _layer(200, 8, seed)
        rule = _rule(pattern, 0.5)
        mask = initial_mask(weight, stats, **rule)
        found = _exchange(weight, stats, mask, pattern, cycles=50)
        scores = score(weight, stats, "wanda").tolist()
        for row in range(len(weight)):
            expected, *_ = exchange_row(
                weight[row].double().tolist(), stats.total.tolist(), stats.variance.tolist(),
                stats.norm2.tolist(), mask[row].tolist(), cycles=50, scores=scores[row],
                m=pattern and pattern[1],
            )  # fmt: skip
            wrong += found.mask[row].tolist() != expected
    result.check("masks unlike the interpreter's, of 400 rows", wrong, 0)
    worse, counts = -1.0, 0
    for pattern in (None, (2, 4), (2, 8)):
        weight, stats = _layer(256, 512, seed)
        mask = initial_mask(weight, stats, **_rule(pattern, 0.6))
        found = _exchange(weight, stats, mask, pattern, cycles=50)
        rise = found.error_after.abs() - found.error_before.abs()
        groups = pattern[1] if pattern else 512
        before, after = (x.view(256, -1, groups).sum(-1) for x in (mask, found.mask))
        counts += int((before != after).sum())
        if pattern is None:
            worse = float(rise.max())
        else:
            text = f"{pattern[0]}:{pattern[1]}: share of rows whose error rises"
            result.metrics[text] = float((rise > 0).double().mean())
    result.check("largest rise of a row's error, unstructured", worse, 0)
    result.check("rows and groups whose count of weights changes", counts, 0)


def _rule(pattern: tuple[int, int] | None, ratio: float) -> dict[str, Any]:
    return {"ratio": ratio} if pattern is None else {"n": pattern[0], "m": pattern[1]}


def _exchange(
    weight: Tensor, stats: ColumnStatistics, mask: Tensor, pattern: tuple[int, int] | None,
    **options: Any,
) -> DSnoTResult:  # fmt: skip
    groups: dict[str, Any] = {} if pattern is None else {"n": pattern[0], "m": pattern[1]}
    return dsnot(weight, stats, mask, **groups, **options)


# ---------------------------------------------------------------------------------- known data


def known_layer(rows: int, columns: int, seed: int, q: float) -> tuple[Tensor, Any]:
    """Return a normal weight, and what draws tokens ``mu + sigma z``, mu q times a normal one."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    sigma = 0.5 + torch.rand(columns, generator=generator)
    mu = q * torch.randn(columns, generator=generator)
    return weight, lambda n: mu + sigma * torch.randn(n, columns, generator=generator)


def known_errors(
    q: float, seed: int, pattern: tuple[int, int] | None, cycles: int
) -> tuple[float, float]:
    """Return relative mean square errors of a layer's output before and after DSnoT.

    64 x 512 weights, 16 x 32 tokens of calibration, 2048 others to measure; 60 % or a pattern, by
    Wanda's score; the sign rule is off where there is no pattern.
    """
    weight, draw = known_layer(64, 512, seed, q)
    stats = ColumnStatistics(512)
    stats.add(draw(512).view(16, 32, 512))
    x = draw(2048)
    mask = initial_mask(weight, stats, **_rule(pattern, 0.6))
    found = _exchange(weight, stats, mask, pattern, cycles=cycles, same_sign=False)
    whole = float((x @ weight.mT).square().mean())
    before, after = (sum(output_error(weight, each, x)) for each in (mask, found.mask))
    return before / whole, after / whole


def _known(result: Result, seed: int) -> None:
    few, many = scaled_cycles(512), 50
    for q in (0.0, 0.5, 1.0, 3.0):
        for pattern, text, judged in ((None, "60 %", few), ((2, 4), "2:4", many)):
            name = f"known data, q = {q:g}, {text}: relative error"
            for cycles in (few, many):
                pairs = [known_errors(q, seed + i, pattern, cycles) for i in range(3)]
                before, after = (mean(values) for values in zip(*pairs, strict=True))
                result.metrics[f"{name}, Wanda"] = before
                result.metrics[f"{name}, and DSnoT of {cycles} cycles"] = after
                if q == 1 and cycles == judged:
                    fall = 1 - after / before
                    result.check(f"{name} falls by, {cycles} cycles", fall, 0.2, at_least=True)


# ------------------------------------------------------------------------------------- the GPT


def _train(seed: int, steps: int) -> Training:
    """Train a GPT whose normalisations have biases: exchanges repair what inputs' means carry."""
    return train_gpt(
        lambda m: torch.optim.Muon(m, lr=MUON_LR, weight_decay=0.0, momentum=0.95),
        seed=seed, steps=steps, model=make_gpt(seed, init="linear", norm_bias=True),
    )  # fmt: skip


def calibration(seed: int) -> list[Tensor]:
    """Return one batch of 32 x 64 characters of the training text."""
    order = torch.Generator().manual_seed(1000 + seed)
    return [load_text().batch(CALIBRATION, CONTEXT, order)[0]]


def pruned(model: GPT, seed: int, **options: Any) -> tuple[GPT, PruningReport]:
    """Return a pruned copy of a model, its zeros in its weights, and the report."""
    model = copy.deepcopy(model)
    report = prune_model(model, calibration(seed), **options)
    bake(model)
    return model, report


def pruned_loss(model: GPT, seed: int, **options: Any) -> float:
    """Return the test loss of `pruned`."""
    return held_out_loss(pruned(model, seed, **options)[0], load_text())


def _ratios(
    result: Result, model: GPT, seed: int, quick: bool
) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for method, text in METHODS.items():
        for repair in (False, True):
            name = f"{text} and DSnoT" if repair else text
            for ratio in RATIOS[2:4] if quick else RATIOS:
                loss = pruned_loss(
                    model, seed, method=method, ratio=ratio, dsnot=repair,
                    **({"cycles": 1} if repair else {}),
                )  # fmt: skip
                curves.setdefault(name, []).append((ratio, loss))
                result.metrics[f"GPT, {name}, {ratio:.0%}: test loss"] = loss
    return curves


def _judge(result: Result, models: list[GPT], seed: int) -> None:
    """Judge the loss by the mean over networks and calibrations: each swings by 0.05 nats."""
    for method, bound in (("magnitude", 0.04), ("wanda", 0.01)):
        falls = []
        for number, model in enumerate(models):
            for i in range(CALIBRATION_SEEDS):
                rule = {"method": method, "ratio": 0.7}
                before = pruned_loss(model, seed + i, dsnot=False, **rule)
                after = pruned_loss(model, seed + i, cycles=1, **rule)
                falls.append(before - after)
                text = f"GPT {seed + number}, {METHODS[method]} 70 %, calibration {seed + i}"
                result.metrics[f"{text}: test loss falls by"] = falls[-1]
        name = f"{len(models)} GPTs, {CALIBRATION_SEEDS} calibrations, {METHODS[method]} 70 %"
        result.check(f"{name}: test loss falls by, nats", mean(falls), bound, at_least=True)
    model = models[0]
    for cycles in (1, 4):
        _, report = pruned(model, seed, ratio=0.6, cycles=cycles)
        before, after = (
            sum(row.shape[0] * getattr(row, name) for row in report.layers)
            for name in ("error_before", "error_after")
        )
        name = f"GPT, Wanda 60 %, {cycles} cycles: squared mean error falls by"
        result.metrics[name] = 1 - after / before
    result.check(name, 1 - after / before, 0.7, at_least=True)


def _harm(result: Result, model: GPT, seed: int) -> None:
    loss = pruned_loss(model, seed, ratio=0.6, cycles=50, same_sign=False)
    result.metrics["GPT, Wanda 60 % and DSnoT, 50 cycles without the sign rule: test loss"] = loss
    for repair in (False, True):
        options = {"cycles": 1} if repair else {}
        loss = pruned_loss(model, seed, method="sparsegpt", ratio=0.6, dsnot=repair, **options)
        text = "SparseGPT's mask and DSnoT" if repair else "SparseGPT's mask"
        result.metrics[f"GPT, {text}, 60%: test loss"] = loss


def _patterns(result: Result, model: GPT, seed: int, quick: bool) -> None:
    """Prune to N:M, and run 2:8 from its compact copies."""
    for n, m in PATTERNS[2:] if quick else PATTERNS:
        losses = {"Wanda": pruned_loss(model, seed, n=n, m=m, dsnot=False)}
        repaired, _ = pruned(model, seed, n=n, m=m, cycles=1)
        losses["Wanda and DSnoT"] = held_out_loss(repaired, load_text())
        if not quick:
            losses["Wanda and DSnoT of 50 cycles"] = pruned_loss(model, seed, n=n, m=m, cycles=50)
        for text, loss in losses.items():
            result.metrics[f"GPT, {text}, {n}:{m}: test loss"] = loss
    report = sat.sparsify_(repaired.blocks, "srste", f"{n}:{m}")
    assert all(layer.pattern == f"{n}:{m}" for layer in report.layers)
    compact = held_out_loss(repaired, load_text())
    apart = abs(compact - losses["Wanda and DSnoT"])
    result.check(
        f"GPT, {n}:{m}: loss from compact copies off the masked model's, nats", apart, 0.01
    )


# ---------------------------------------------------------------------------------------- cost


def _cost(result: Result) -> None:
    """Time the search on a 512 x 512 layer against a pass of 128 samples of 2048 tokens."""
    weight, draw = known_layer(512, 512, 0, 1.0)
    stats = ColumnStatistics(512)
    x = draw(4 * 2048).view(4, 2048, 512)
    began = time.process_time()
    for _ in range(128 // len(x)):
        stats.add(x)
        x @ weight.mT
    calibration = time.process_time() - began
    began = time.process_time()
    dsnot(weight, stats, initial_mask(weight, stats, ratio=0.6))
    search = time.process_time() - began
    result.metrics["512 x 512: calibration pass, seconds"] = calibration
    result.metrics["512 x 512: mask and search, seconds"] = search
    result.check("512 x 512: mask and search over the calibration pass", search / calibration, 0.2)


# ------------------------------------------------------------------------------------- picture


def parts_by_exchanges(model: GPT, seed: int) -> dict[str, list[tuple[float, float]]]:
    """Return mean and variance part of all layers' output errors by `EXCHANGES`, on other text.

    Wanda 60 %, each layer with the dense model's inputs; over the mean square outputs; with the
    sign rule and without it.
    """
    gathered: dict[nn.Linear, list[Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, inputs: gathered.setdefault(layer, []).append(inputs[0])  # type: ignore[arg-type]
        )
        for layer in model.blocks.modules()
        if isinstance(layer, nn.Linear)
    ]
    with torch.no_grad():
        for batch in (*calibration(seed), *calibration(seed + 100)):
            model(batch)
    for hook in hooks:
        hook.remove()
    assert len(gathered) == len(split_parameters(model)[0])
    parts = {}
    for text, same_sign in (("with the sign rule", True), ("without", False)):
        rows = []
        for cycles in EXCHANGES:
            sums, whole = [0.0, 0.0], 0.0
            for layer, (seen, other) in gathered.items():
                weight = layer.weight.detach()
                stats = ColumnStatistics(weight.shape[1])
                stats.add(seen)
                mask = initial_mask(weight, stats, ratio=0.6)
                if cycles:
                    mask = dsnot(weight, stats, mask, cycles=cycles, same_sign=same_sign).mask
                for i, part in enumerate(output_error(weight, mask, other)):
                    sums[i] += len(weight) * part
                whole += len(weight) * float((other @ weight.mT).detach().square().mean())
            rows.append((sums[0] / whole, sums[1] / whole))
        parts[text] = rows
    return parts


def _draw_losses(axes: Axes, curves: dict[str, list[tuple[float, float]]], dense: float) -> None:
    for (text, points), style in zip(curves.items(), ("C0--", "C0-", "C1--", "C1-"), strict=True):
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=text)
    axes.axhline(dense, color="black", linewidth=0.8, label="dense")
    axes.set(xlabel="share of weights pruned", ylabel="test loss, nats a character")
    axes.set_title("GPT, one exchange a row", fontsize=10)
    axes.legend(fontsize=8)


def _draw_parts(axes: Axes, parts: dict[str, list[tuple[float, float]]]) -> None:
    for (text, rows), style in zip(parts.items(), ("-", "--"), strict=True):
        means, variances = zip(*rows, strict=True)
        sums = [sum(row) for row in rows]
        for name, values, colour in (
            ("mean part", means, "C0"), ("variance part", variances, "C1"), ("sum", sums, "C2")
        ):  # fmt: skip
            axes.plot(EXCHANGES, values, style, color=colour, label=f"{name}, {text}")
        least = sums.index(min(sums))
        axes.plot(EXCHANGES[least], sums[least], "o", color="C2")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(EXCHANGES, [str(n) for n in EXCHANGES])
    axes.minorticks_off()
    axes.set(xlabel="exchanges a row, at most", ylabel="squared output error over squared output")
    axes.set_title("GPT, Wanda 60 %, other text: all layers", fontsize=10)
    axes.legend(fontsize=8)
