"""Central formulas of methods, written anew from their papers, in numpy and loops.

Nothing here is shared with a method: what is compared was read off the papers alone.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from sat.methods.auon import AuON, HybridAuON, cosh_rms_bounds
from sat.methods.dct_lowrank import DCTAdamW
from sat.methods.dsnot import ColumnStatistics, dsnot, initial_mask
from sat.methods.hesso import HESSO, prunable_groups
from sat.methods.mc_smoe import (
    MoELayer,
    dominant_counts,
    group_experts,
    match_permutation,
    merge_experts,
    router_similarity,
)
from sat.methods.mc_smoe.compress import LowRankSparseLinear, RowPruner


def stepped(start, gradients, make):
    """A parameter after steps with given gradients."""
    weight = nn.Parameter(torch.tensor(start))
    optimizer = make([weight])
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    return weight.detach().numpy()


# --------------------------------------------------------------------------------------- AuON


def cosh_of(x):
    return math.sqrt(math.fsum(math.cosh(v) ** 2 for v in x.flat) / x.size)


@pytest.mark.parametrize("shape", ((5, 3), (3, 5), (4, 4)))
@pytest.mark.parametrize("form", ("paper", "code", "hybrid"))
def test_auon_of_four_steps(form, shape):
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(shape), rng.standard_normal((4, *shape))
    lr, beta, decay = 0.1, 0.9, 0.2
    weight, momentum = start.copy(), np.zeros(shape)
    for g in gradients:
        weight = (1 - lr * decay) * weight
        momentum = beta * momentum + (1 - beta) * g
        ahead = (1 - beta) * g + beta * momentum
        unit = ahead / (np.sqrt((ahead**2).sum()) + 1e-7)
        if form == "paper":
            update = unit / (cosh_of(unit) + 1e-8)
        elif form == "code":
            update = ahead / (cosh_of(1.5 * unit) + 1e-8)
        else:
            # One Newton-Schulz step by its singular values.
            left, s, right = np.linalg.svd(unit, full_matrices=False)
            step = (left * (3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5)) @ right
            update = step / (cosh_of(step) + 1e-8)
        weight = weight - lr * update
    options = {"momentum": beta, "weight_decay": decay}
    if form == "hybrid":
        found = stepped(start, gradients, lambda p: HybridAuON(p, lr, **options))
    else:
        found = stepped(start, gradients, lambda p: AuON(p, lr, form=form, **options))
    np.testing.assert_allclose(found, weight, atol=1e-12)


def test_auons_scalar_has_its_extremes_at_flat_and_single_entries():
    """On a fine grid of the sphere in three dimensions."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, 181), np.linspace(0, 2 * np.pi, 361))
    for gamma in (1.0, 1.5):
        x = gamma * np.stack([
            np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)
        ])  # fmt: skip
        r = np.sqrt((np.cosh(x) ** 2).mean(0))
        low, high = cosh_rms_bounds(3, gamma)
        assert low <= r.min() + 1e-12 and r.max() - 1e-12 <= high
        assert r.min() == pytest.approx(low, abs=2e-4) and r.max() == pytest.approx(high, abs=1e-9)


# ------------------------------------------------------------------------------------ the DCT


@pytest.mark.parametrize("shape", ((7, 5), (5, 7), (6, 6)))
@pytest.mark.parametrize("basis", ("dct2", "dct3"))
@pytest.mark.parametrize(("residual", "gap"), (("drop", 1), ("feedback", 1), ("drop", 2)))
def test_low_rank_adamw_of_six_steps(shape, basis, residual, gap):
    rng = np.random.default_rng(1)
    start, gradients = rng.standard_normal(shape), rng.standard_normal((6, *shape))
    lr, b1, b2, eps, decay, rank = 0.01, 0.8, 0.95, 1e-6, 0.1, 3
    n = min(shape)
    q = np.array([
        [math.sqrt((1 if k == 0 else 2) / n) * math.cos(math.pi * k * (2 * j + 1) / (2 * n))
         for j in range(n)]
        for k in range(n)
    ])  # fmt: skip
    d = q.T if basis == "dct2" else q
    weight = start.copy()
    wide = shape[0] < shape[1]
    rows = max(shape)
    m, v, left_out = np.zeros((rows, rank)), np.zeros((rows, rank)), np.zeros((rows, n))
    chosen = None
    for t, g in enumerate(gradients, 1):
        weight = weight * (1 - lr * decay)
        a = (g.T if wide else g) + left_out
        before = chosen
        if t == 1 or t % gap == 0:
            order = sorted(range(n), key=lambda j: -np.abs(a @ d[:, j]).sum())
            chosen = sorted(order[:rank])
        p = d[:, chosen]
        low = a @ p
        if residual == "feedback":
            left_out = a - low @ p.T
        if before is not None and (t % gap == 0):
            # The rotation as a product, which the method does without.
            turn = d[:, before].T @ p
            m, v = m @ turn, np.abs(v @ turn)
        m, v = b1 * m + (1 - b1) * low, b2 * v + (1 - b2) * low**2
        size = math.sqrt(1 - b2**t)
        u = m / (eps * size + np.sqrt(v))
        change = lr * size / (1 - b1**t) * (u @ p.T)
        weight = weight - (change.T if wide else change)
    found = stepped(
        start, gradients,
        lambda params: DCTAdamW(
            params, lr, rank=rank, basis=basis, residual=residual, gap=gap, betas=(b1, b2), eps=eps,
            weight_decay=decay,
        ),
    )  # fmt: skip
    # Both orders of rounding differ where a moment is turned by 1e-16 instead of 0.
    np.testing.assert_allclose(found, weight, atol=1e-8)


# --------------------------------------------------------------------------------------- DSnoT


def known_row(rng, width):
    """A row's weights and calibration samples (samples, tokens, columns) of differing means."""
    x = rng.standard_normal((3, 4, width)) * rng.uniform(0.5, 1.5, width)
    return rng.standard_normal(width), x + rng.standard_normal(width) + rng.standard_normal(
        (3, 1, 1)
    )


def exchanged(w, x, kept, cycles, threshold, power, same_sign, m):
    """The rules for one row, from the paper."""
    samples = len(x)
    norm2 = sum((sample**2).sum(0) for sample in x) / samples
    total = sum(sample.sum(0) for sample in x) / samples
    variance = sum(((s - s.mean(0)) ** 2).mean(0) for s in x) / samples
    d, wanda = w * total, np.abs(w) * np.sqrt(norm2)
    grow_from = [j for j in range(len(w)) if not kept[j]]
    prune_from = [j for j in range(len(w)) if kept[j]]
    kept = list(kept)
    error = sum(d[j] for j in grow_from)
    first = math.copysign(1, error)
    for _ in range(cycles):
        if abs(error) <= threshold:
            break
        sign = math.copysign(1, error)
        while True:
            able = [j for j in grow_from if d[j] * sign > 0]
            if not able:
                return kept
            grown = max(able, key=lambda j: sign * d[j] / variance[j] ** power)
            grow_from.remove(grown)
            if m is None:
                losing = [j for j in prune_from if d[j] * sign < 0]
            else:
                losing = [j for j in prune_from if j // m == grown // m]
            if losing or m is None:
                break
        if not losing:
            return kept
        pruned = min(losing, key=lambda j: wanda[j])
        prune_from.remove(pruned)
        after = error + d[pruned] - d[grown]
        if (same_sign or m is not None) and math.copysign(1, after) != first:
            return kept
        kept[grown], kept[pruned], error = True, False, after
    return kept


@pytest.mark.parametrize("pattern", (None, (2, 4), (2, 8)))
def test_dsnot_of_single_rows(pattern):
    rng = np.random.default_rng(2)
    changed = 0
    for trial in range(60):
        width = 16
        w, x = known_row(rng, width)
        stats = ColumnStatistics(width)
        stats.add(torch.tensor(x))
        norm2 = np.mean([(s**2).sum(0) for s in x], 0)
        np.testing.assert_allclose(stats.norm2, norm2)
        np.testing.assert_allclose(stats.total, np.mean([s.sum(0) for s in x], 0))
        np.testing.assert_allclose(stats.variance, np.mean([s.var(0) for s in x], 0))
        weight = torch.tensor(w)[None]
        score = np.abs(w) * np.sqrt(norm2)
        if pattern is None:
            rule, m, cut = {"ratio": 0.6}, None, np.sort(score)[9]
            expected = score >= cut  # 9 of 16 go
        else:
            (n, m), rule = pattern, {"n": pattern[0], "m": pattern[1]}
            groups = score.reshape(-1, m)
            expected = (groups >= np.sort(groups, 1)[:, -n, None]).reshape(-1)
        mask = initial_mask(weight, stats, **rule)
        assert mask[0].tolist() == expected.tolist()
        same_sign, power = bool(trial % 2), (1.0, 0.0, 0.5)[trial % 3]
        options = {} if pattern is None else rule
        found = dsnot(
            weight, stats, mask, cycles=5, threshold=0.3, power=power, same_sign=same_sign,
            **options,
        )  # fmt: skip
        again = exchanged(w, x, expected, 5, 0.3, power, same_sign, m)
        assert found.mask[0].tolist() == again
        changed += again != expected.tolist()
    assert changed > 20


# -------------------------------------------------------------------------------------- HESSO


def test_hesso_of_sixteen_steps():
    """A hidden layer of ten units, six to go in two periods of five steps, after two steps."""
    rng = np.random.default_rng(3)
    start, length, periods, lr, beta, decay = 2, 5, 2, 0.05, 0.9, 0.01
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    groups = prunable_groups(model, torch.zeros(1, 6, dtype=torch.float64))
    optimizer = HESSO(
        groups, model, lr, variant="sgd", momentum=beta, weight_decay=decay, target=0.6,
        start=start, steps=length * periods, periods=periods,
    )  # fmt: skip
    values = [p.detach().numpy().copy() for p in model.parameters()]
    buffers = [None] * 4
    pruned, active = set(), []
    for k in range(1, 17):
        gradients = [rng.standard_normal(v.shape) for v in values]
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        for i, g in enumerate(gradients):
            g = g + decay * values[i]
            buffers[i] = g if buffers[i] is None else beta * buffers[i] + g
        if k in (start + 1, start + 1 + length):
            pruned |= set(active)
            rows = [np.append(values[0][i], values[1][i]) for i in range(10)]
            along = [np.append(buffers[0][i], buffers[1][i]) for i in range(10)]
            table = np.zeros((5, 10))
            for i, (x, d) in enumerate(zip(rows, along, strict=True)):
                size, other = np.linalg.norm(x), np.linalg.norm(d)
                table[:, i] = (
                    size, size / (7 + 1e-6), x @ d / ((size + 1e-8) * (other + 1e-8)) + 1,
                    abs(x @ d), (x @ d) ** 2 / 2,
                )  # fmt: skip
            score = 0.2 * (table / (np.linalg.norm(table, axis=1, keepdims=True) + 1e-8)).sum(0)
            left = [i for i in np.argsort(score) if i not in pruned]
            active = left[:3]
        values = [v - lr * b for v, b in zip(values, buffers, strict=True)]
        t = (k - start) % length
        if k > start and k <= start + length * periods:
            for i in active:
                factor = (length - t - 1) / (length - t)
                values[0][i] *= factor
                values[1][i] *= factor
            if t == length - 1:
                pruned |= set(active)
        for i in pruned:
            values[0][i] = values[1][i] = 0
        for p, v in zip(model.parameters(), values, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), v, atol=1e-12, err_msg=f"step {k}")
    assert len(pruned) == 6 and optimizer.finished


# ----------------------------------------------------------------------------------- MC-SMoE


@pytest.mark.parametrize("seed", range(5))
def test_matching_is_the_best_of_all_permutations(seed):
    rng = np.random.default_rng(seed)
    f, d = 5, 3
    wi, wo = rng.standard_normal((2, f, d)), rng.standard_normal((2, d, f))
    cost = wi[0] @ wi[1].T + wo[0].T @ wo[1]
    best = max(itertools.permutations(range(f)), key=lambda p: sum(cost[i, p[i]] for i in range(f)))
    found = match_permutation(
        (torch.tensor(wi[0]), torch.tensor(wo[0])), (torch.tensor(wi[1]), torch.tensor(wo[1]))
    )
    assert tuple(found.tolist()) == best
    # The same as the least distance of the permuted expert from the reference.
    nearest = min(
        itertools.permutations(range(f)),
        key=lambda p: (
            ((wi[0] - wi[1][list(p)]) ** 2).sum() + ((wo[0] - wo[1][:, list(p)]) ** 2).sum()
        ),
    )
    assert nearest == best


@pytest.mark.parametrize("seed", range(6))
def test_counts_groups_and_merging(seed):
    rng = np.random.default_rng(seed)
    names, experts, average = ["a", "b", "c"], 6, 3
    use = {n: rng.dirichlet(np.ones(experts)) for n in names}
    merged = ["a", "b"]
    ranked = []
    for n in names:
        row = sorted(use[n], reverse=True)
        ranked += [1.0, *row[1:]] if n in merged else [1.0] * experts
    cut = sorted(ranked, reverse=True)[average * len(merged) + experts]
    expected = {}
    for n in names:
        row = sorted(use[n], reverse=True)
        row = [1.0, *row[1:]] if n in merged else [1.0] * experts
        expected[n] = sum(v > cut for v in row)
    found = dominant_counts({n: torch.tensor(v) for n, v in use.items()}, average, merged)
    assert {n: found[n] for n in found} == {n: expected[n] for n in found} and set(merged) <= set(
        found
    )

    logits = rng.standard_normal((40, experts))
    unit = logits / np.linalg.norm(logits, axis=0)
    near = (unit.T @ unit + 1) / 2
    np.testing.assert_allclose(router_similarity(torch.tensor(logits)), near, atol=1e-12)
    count, frequency = 2, use["a"]
    order = np.argsort(-frequency)
    labels = {int(e): i for i, e in enumerate(order[:count])}
    for e in order[count:]:
        labels[int(e)] = int(np.argmax([near[e, order[i]] for i in range(count)]))
    given, dominant = group_experts(torch.tensor(frequency), torch.tensor(near), count)
    assert given.tolist() == [labels[e] for e in range(experts)]
    assert dominant.tolist() == order[:count].tolist()

    d, f = 3, 4
    layer = MoELayer(d, f, experts).double()
    wi, wo = layer.wi.detach().numpy().copy(), layer.wo.detach().numpy().copy()
    for e in range(1, experts):
        cost = wi[0] @ wi[e].T + wo[0].T @ wo[e]
        perm = max(
            itertools.permutations(range(f)), key=lambda p: sum(cost[i, p[i]] for i in range(f))
        )
        wi[e], wo[e] = wi[e][list(perm)], wo[e][:, list(perm)]
    merge_experts(layer, given, torch.tensor(frequency))
    x = torch.tensor(rng.standard_normal((20, d)))
    p = torch.softmax(x @ layer.router.weight.detach().mT, -1).numpy()
    out = []
    for token, share in zip(x.numpy(), p, strict=True):
        e = int(share.argmax())
        members = [i for i in range(experts) if labels[i] == labels[e]]
        total = sum(frequency[i] for i in members) + 1e-7
        inner = sum(frequency[i] * wi[i] for i in members) / total
        outer = sum(frequency[i] * wo[i] for i in members) / total
        out.append(share[e] * outer @ np.maximum(inner @ token, 0))
    # The 1e-7 in the denominators is the authors alone: seldom used groups shrink by it.
    np.testing.assert_allclose(layer(x).detach().numpy(), out, rtol=1e-5)


def test_the_share_of_rows_and_the_start():
    weight = torch.randn(12, 8, dtype=torch.float64)
    layer = LowRankSparseLinear.from_linear(weight, 3)
    x = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ weight.mT)
    u, s, v = np.linalg.svd(weight.numpy())
    low = (u[:, :3] * s[:3]) @ v[:3]
    torch.testing.assert_close((layer.u @ layer.v).detach(), torch.tensor(low))
    pruner = RowPruner([layer], 100, 5, 0.25)
    for k, share in (
        (1, 1.0),
        (5, 1.0),
        (40, 0.25 + 0.75 * (1 - 35 / 75) ** 3),
        (80, 0.25),
        (100, 0.25),
    ):
        assert pruner.share(k) == pytest.approx(share), k
