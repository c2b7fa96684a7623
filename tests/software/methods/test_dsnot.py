"""DSnoT: statistics, masks, exchanges against an interpreter of the rules, whole models."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sat
from sat.methods.dsnot import (
    ColumnStatistics,
    bake,
    dsnot,
    initial_mask,
    masks,
    output_error,
    prune_model,
    scaled_cycles,
    score,
)
from sat.methods.dsnot.interpreter import exchange_row
from sat.methods.problems.gpt import GPT


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def layer(rows, columns, seed, *, mean=1.0, hessian=False):
    """A random weight and statistics of inputs with means."""
    x = normal(6, 10, columns, seed=seed + 1) + mean * normal(columns, seed=seed + 2)
    stats = ColumnStatistics(columns, hessian=hessian)
    stats.add(x)
    return normal(rows, columns, seed=seed), stats, x


# ---------------------------------------------------------------------------------- statistics


def test_statistics_by_hand():
    """Two samples, two columns; the variance is that within samples."""
    first = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    second = torch.tensor([[10.0, 0.0], [14.0, 4.0], [12.0, 2.0]])
    stats = ColumnStatistics(2, hessian=True)
    stats.add(first[None])
    stats.add(second)
    assert stats.samples == 2
    assert stats.norm2.tolist() == [(10 + 440) / 2, (8 + 20) / 2]
    assert stats.total.tolist() == [(4 + 36) / 2, (4 + 6) / 2]
    np.testing.assert_allclose(stats.variance.numpy(), [(1 + 8 / 3) / 2, (0 + 8 / 3) / 2])
    both = torch.cat([first, second]).double()
    assert torch.equal(stats.hessian, both.mT @ both)


def test_statistics_do_not_depend_on_batches():
    x = normal(8, 5, 3)
    whole, parts = ColumnStatistics(3), ColumnStatistics(3)
    whole.add(x)
    for part in x.split([1, 4, 3]):
        parts.add(part)
    for name in ("norm2", "total", "variance"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name))
    constant = ColumnStatistics(2)
    constant.add(torch.full((3, 7, 2), 0.1))
    assert constant.variance.tolist() == [0, 0]


def test_statistics_refuse():
    stats = ColumnStatistics(3)
    for name in ("norm2", "total", "variance", "hessian"):
        with pytest.raises(ValueError, match="no sample: call add"):
            getattr(stats, name)
    for bad in (
        torch.ones(2, 4), torch.ones(2, 2, 2, 3), torch.empty(0, 2, 3), torch.ones(2, 0, 3),
        torch.ones(2, 2, 3, dtype=torch.int64), torch.full((1, 2, 3), math.nan),
        torch.full((1, 2, 3), math.inf),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="must be"):
            stats.add(bad)
    assert stats.samples == 0
    stats.add(torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match=r"hessian=True\) before add\(x\), which fills it"):
        stats.hessian.sum()
    for columns in (0, 2.0, True):
        with pytest.raises(ValueError, match="columns="):
            ColumnStatistics(columns)


# --------------------------------------------------------------------------------------- masks


def test_scores_are_their_formulas():
    weight, stats, x = layer(4, 6, 0, hessian=True)
    flat = x.reshape(-1, 6).numpy()
    w = weight.numpy()
    np.testing.assert_allclose(score(weight, None, "magnitude").numpy(), np.abs(w))
    wanda = np.abs(w) * np.sqrt((flat**2).sum(0) / 6)
    np.testing.assert_allclose(score(weight, stats, "wanda").numpy(), wanda, rtol=1e-12)
    # SparseGPT by elimination: d of column j is that of the inverse once columns before it are
    # fixed, 1 / d² = h_jj - h_j,later (h_later)^-1 h_later,j.
    h = flat.T @ flat
    h = h + 0.01 * np.diag(h).mean() * np.eye(6)
    inverse_d2 = [
        h[j, j] - h[j, j + 1 :] @ np.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, j])
        for j in range(6)
    ]
    expected = w**2 * np.array(inverse_d2)
    np.testing.assert_allclose(score(weight, stats, "sparsegpt").numpy(), expected, rtol=1e-5)


@given(
    st.integers(1, 5), st.integers(1, 6), st.sampled_from([(1, 2), (2, 4), (2, 8), (7, 8)]),
    st.floats(0, 0.999), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_masks_keep_the_largest(rows, groups, pattern, ratio, seed):
    n, m = pattern
    weight = normal(rows, groups * m, seed=seed)
    size = weight.abs().numpy()
    kept = initial_mask(weight, None, method="magnitude", ratio=ratio).numpy()
    pruned = int(ratio * groups * m)
    for row in range(rows):
        assert (~kept[row]).sum() == pruned
        if pruned > 0:
            assert size[row][~kept[row]].max() <= size[row][kept[row]].min()
    kept = initial_mask(weight, None, method="magnitude", n=n, m=m)
    assert bool((kept.view(rows, groups, m).sum(-1) == n).all())
    pattern_kept = sat.prune(weight.float(), f"{n}:{m}", axis=1).to_dense() != 0
    assert torch.equal(kept, pattern_kept)


def test_masks_prune_the_first_of_equals():
    kept = initial_mask(torch.ones(1, 8), None, method="magnitude", ratio=0.5)
    assert kept.tolist() == [[False] * 4 + [True] * 4]
    kept = initial_mask(torch.ones(1, 8), None, method="magnitude", n=1, m=4)
    assert kept.tolist() == [[False, False, False, True] * 2]


# ----------------------------------------------------------------------------------- exchanges


def compare_with_interpreter(rows, columns, seed, pattern=None, ratio=0.5, **options):
    weight, stats, _ = layer(rows, columns, seed)
    method = options.pop("initial", "wanda")
    # Ties and constants, as they come from dead channels.
    weight[:, columns // 2] = weight[:, 0]
    stats._variances[1] = 0
    rule = {"ratio": ratio} if pattern is None else {"n": pattern[0], "m": pattern[1]}
    mask = initial_mask(weight, stats, method=method, **rule)
    groups = {} if pattern is None else {"n": pattern[0], "m": pattern[1], "initial": method}
    result = dsnot(weight, stats, mask, **groups, **options)
    scores = score(weight, stats, method).tolist()
    for row in range(rows):
        got, swaps, before, after = exchange_row(
            weight[row].tolist(), stats.total.tolist(), stats.variance.tolist(),
            stats.norm2.tolist(), mask[row].tolist(), scores=scores[row],
            m=None if pattern is None else pattern[1],
            **{"threshold": 0.1, "power": 1.0, "same_sign": True}
            | (options if pattern is None else options | {"same_sign": True}),
        )  # fmt: skip
        assert result.mask[row].tolist() == got
        assert int(result.swaps[row]) == swaps
        assert float(result.error_before[row]) == pytest.approx(before, rel=1e-9, abs=1e-9)
        assert float(result.error_after[row]) == pytest.approx(after, rel=1e-9, abs=1e-9)
    return result


@pytest.mark.parametrize("same_sign", [True, False])
def test_rows_of_eight_are_as_interpreted(same_sign):
    result = compare_with_interpreter(200, 8, 3, cycles=50, same_sign=same_sign)
    assert int(result.swaps.max()) >= 2
    for pattern in ((2, 4), (2, 8), (1, 4), (6, 8)):
        found = compare_with_interpreter(200, 8, 5, pattern, cycles=50, same_sign=same_sign)
        assert int(found.swaps.sum()) > 0


@given(
    st.integers(1, 3), st.sampled_from([8, 16, 40]), st.integers(0, 999),
    st.sampled_from([None, (2, 4), (2, 8), (1, 2), (4, 8)]), st.floats(0, 0.95),
    st.integers(1, 60), st.sampled_from([0.0, 0.1, 5.0]), st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(), st.sampled_from(["wanda", "magnitude"]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_exchanges_are_as_interpreted(
    groups, columns, seed, pattern, ratio, cycles, threshold, power, same_sign, initial
):
    compare_with_interpreter(
        groups, columns, seed, pattern, ratio, cycles=cycles, threshold=threshold, power=power,
        same_sign=same_sign, initial=initial,
    )  # fmt: skip


@given(st.integers(0, 999), st.booleans(), st.sampled_from([None, (2, 4), (2, 8)]))
@settings(max_examples=30, deadline=None)
def test_errors_fall_and_counts_stay(seed, magnitude, pattern):
    weight, stats, _ = layer(12, 32, seed)
    method = "magnitude" if magnitude else "wanda"
    rule = {"ratio": 0.6} if pattern is None else dict(zip("nm", pattern, strict=True))
    mask = initial_mask(weight, stats, method=method, **rule)
    kept = {} if pattern is None else rule | {"initial": method}
    before = mask.clone(), weight.clone()
    result = dsnot(weight, stats, mask, cycles=50, **kept)
    assert torch.equal(mask, before[0]) and torch.equal(weight, before[1])
    d = weight * stats.total
    torch.testing.assert_close(result.error_before, (d * ~mask).sum(1))
    torch.testing.assert_close(result.error_after, (d * ~result.mask).sum(1))
    changed = (mask != result.mask).sum(1)
    assert torch.equal(changed, 2 * result.swaps)
    if pattern is None:
        assert torch.equal(result.mask.sum(1), mask.sum(1))
        assert bool((result.error_after.abs() <= result.error_before.abs()).all())
    else:
        n, m = pattern
        assert bool((result.mask.view(12, -1, m).sum(-1) == n).all())


def test_constant_columns_come_last():
    """No division by their variance: a constant column is grown after all others."""
    stats = ColumnStatistics(4)
    x = torch.tensor([[3.0, 1.0, 1.0, -1.0], [3.0, 1.2, 0.8, -1.1]])
    stats.add(x)
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.5]])
    mask = torch.tensor([[False, False, False, True]])
    result = dsnot(weight, stats, mask, cycles=1, same_sign=False)
    assert result.mask.tolist() == [[False, True, False, False]]
    assert dsnot(weight, stats, mask, cycles=1, power=0, same_sign=False).mask.tolist() == [
        [True, False, False, False]
    ]


def test_scaled_cycles():
    assert [scaled_cycles(n) for n in (8, 64, 256, 4096, 11008)] == [1, 1, 3, 50, 134]
    weight, stats, _ = layer(5, 64, 0)
    mask = initial_mask(weight, stats, ratio=0.5)
    assert int(dsnot(weight, stats, mask).swaps.max()) == 1


def test_output_error_has_two_parts():
    weight, stats, x = layer(5, 12, 1)
    mask = initial_mask(weight, stats, ratio=0.5)
    parts = output_error(weight, mask, x)
    error = x.numpy() @ (weight * ~mask).numpy().T
    assert sum(parts) == pytest.approx((error**2).mean())
    assert parts[0] == pytest.approx((error.reshape(-1, 5).mean(0) ** 2).mean())
    # The mean part is what exchanges measure.
    sums = dsnot(weight, stats, mask).error_before / x.shape[1]
    assert parts[0] == pytest.approx(float(sums.square().mean()))
    assert output_error(weight, torch.ones_like(mask), x) == (0, 0)


# -------------------------------------------------------------------------------- whole models


def tiny_gpt():
    torch.manual_seed(0)
    return GPT(11, width=16, layers=2, heads=2, context=8).eval()


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(11, (4, 8), generator=generator) for _ in range(count)]


@pytest.mark.parametrize("rule", [{"ratio": 0.6}, {"n": 2, "m": 4}, {"n": 2, "m": 8}])
@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
def test_models_are_pruned_in_their_order(rule, method):
    """Against each block by hand: dense statistics of inputs that pruned blocks gave."""
    model, reference = tiny_gpt(), tiny_gpt()
    report = prune_model(model, batches(), method=method, cycles=2, **rule)
    assert [r.name for r in report.layers][:2] == ["blocks.0.query", "blocks.0.key"]
    found = dict(masks(model))
    assert len(found) == len(report.layers) == 12
    with torch.no_grad():
        places = torch.arange(8)
        streams = [reference.token(x) + reference.place(places) for x in batches()]
        for number, block in enumerate(reference.blocks):
            inputs = {name: [] for name, x in block.named_modules() if isinstance(x, nn.Linear)}
            hooks = [
                block.get_submodule(name).register_forward_pre_hook(
                    lambda _, args, seen=inputs[name]: seen.append(args[0])
                )
                for name in inputs
            ]
            for stream in streams:
                block(stream)
            for hook in hooks:
                hook.remove()
            for name, seen in inputs.items():
                weight = block.get_submodule(name).weight
                stats = ColumnStatistics(weight.shape[1], hessian=method == "sparsegpt")
                for x in seen:
                    stats.add(x)
                mask = initial_mask(weight, stats, method=method, **rule)
                pattern = rule if "n" in rule else {}
                mask = dsnot(weight, stats, mask, cycles=2, initial=method, **pattern).mask
                assert torch.equal(found[f"blocks.{number}.{name}"], mask)
                weight.mul_(mask)
            streams = [block(stream) for stream in streams]
        assert torch.equal(model(batches()[0]), reference(batches()[0]))
    assert all(r.kept == int(found[r.name].sum()) for r in report.layers)
    assert report.calibration_seconds > 0 and report.search_seconds > 0
    assert "blocks.1.down  16x64" in str(report)


def test_weights_are_kept_and_masks_can_be_baked():
    model = tiny_gpt().train()
    dense = copy.deepcopy(model.state_dict())
    prune_model(model, batches(), ratio=0.5, skip=("query", "up"), dsnot=False)
    assert model.training and model.blocks[0].training
    assert not any("query" in name or "up" in name for name, _ in masks(model))
    for name, value in model.state_dict().items():
        if not name.endswith("weight_mask"):
            assert torch.equal(value, dense[name.replace("weight_orig", "weight")])
    before = model(batches()[0])
    with pytest.raises(ValueError, match="'blocks.0.key' has a mask already: call bake"):
        prune_model(model, batches(), ratio=0.5)
    assert bake(model) is model and not list(masks(model))
    assert torch.equal(model(batches()[0]), before)
    assert model.state_dict().keys() == dense.keys()
    share = float((model.blocks[0].key.weight == 0).double().mean())
    assert share == 0.5


def test_chains_of_modules_and_arguments():
    chain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    report = prune_model(chain, [torch.randn(2, 3, 4)], ratio=0.5)
    assert [r.name for r in report.layers] == ["0", "2"]

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.h = nn.ModuleList(Half() for _ in range(2))

        def forward(self, x, scale=1.0):
            for block in self.h:
                x, _ = block(x, scale=scale)
            return x

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x, scale):
            return x + scale * self.inner(x), None

    model = Wrapped()
    prune_model(
        model, [{"x": torch.randn(2, 3, 4), "scale": 2.0}, (torch.randn(1, 5, 4), 0.5)], ratio=0.5
    )
    assert len(list(masks(model))) == 2
    named = Wrapped()
    prune_model(named, [torch.randn(2, 3, 4)], layers=[named.h[1]], n=2, m=4)
    assert [name for name, _ in masks(named)] == ["h.1.inner"]

    class Skips(Wrapped):
        def forward(self, x, scale=1.0):
            return self.h[1](self.h[0](x, scale)[0] + x, scale)[0]

    with pytest.raises(ValueError, match="block 1 is not called with what block 0 returned"):
        prune_model(Skips(), [torch.randn(2, 3, 4)], ratio=0.5)


def test_masked_models_run_from_compact_copies():
    """2:8 masks become N:M operands, with the outputs of the masked model."""
    model = tiny_gpt()
    prune_model(model, batches(), n=2, m=8)
    bake(model)
    x = batches()[0]
    with torch.no_grad():
        masked = model(x)
        sat.sparsify_(model.blocks, "srste", "2:8")
        with sat.offload("golden") as report:
            compact = model(x)
    sizes = {work.size for work in report}
    assert "32 x 64 x 16 2:8" in sizes and "32 x 16 x 64 2:8" in sizes
    assert float((compact - masked).abs().max()) < 2e-3 * float(masked.abs().max())


# ---------------------------------------------------------------------------------- bad input


def test_arguments_are_checked():
    weight, stats, x = layer(4, 8, 0)
    mask = initial_mask(weight, stats, ratio=0.5)
    nm = initial_mask(weight, stats, n=2, m=4)
    other, empty = ColumnStatistics(6), ColumnStatistics(8)
    other.add(torch.ones(1, 2, 6))
    nan = weight.clone()
    nan[0, 0] = math.nan
    for call, words in (
        (lambda: initial_mask(weight, stats, ratio=1.0), "ratio=1.0: must be"),
        (lambda: initial_mask(weight, stats, ratio=-0.1), "ratio=-0.1: must be"),
        (lambda: initial_mask(weight, stats, ratio=math.nan), "ratio=nan: must be"),
        (lambda: initial_mask(weight, stats, ratio=0.5, n=2, m=4), "give either ratio or both"),
        (lambda: initial_mask(weight, stats), "give ratio, or both n and m"),
        (lambda: initial_mask(weight, stats, n=2), "m=None"),
        (lambda: initial_mask(weight, stats, n=4, m=4), "n must be below m"),
        (lambda: initial_mask(weight, stats, n=0, m=4), "n=0"),
        (lambda: initial_mask(weight, stats, n=2, m=3), "m=3: must divide the 8 inputs"),
        (lambda: initial_mask(weight, stats, method="random", ratio=0.5), "method='random'"),
        (lambda: initial_mask(weight, stats, method="sparsegpt", ratio=0.5), "which fills it"),
        (lambda: initial_mask(weight, None, ratio=0.5), "only method='magnitude' needs none"),
        (lambda: initial_mask(weight, other, ratio=0.5), "stats have 6 columns: must be 8"),
        (lambda: initial_mask(weight, empty, ratio=0.5), "no sample"),
        (lambda: initial_mask(nan, stats, ratio=0.5), "NaNs or infinities"),
        (lambda: initial_mask(weight[0], stats, ratio=0.5), "must be .outputs, inputs."),
        (lambda: dsnot(weight, stats, mask[:2]), "mask is"),
        (lambda: dsnot(weight, stats, mask.float()), "mask is"),
        (lambda: dsnot(weight, stats, mask, n=2, m=4), "must keep 2 of every 4"),
        (lambda: dsnot(weight, stats, nm, n=2, m=8), "keeps 4 of group 0 in row 0"),
        (lambda: dsnot(weight, stats, nm, n=2), "m=None"),
        (lambda: dsnot(weight, other, mask), "stats have 6 columns"),
        (lambda: dsnot(weight, empty, mask), "no sample"),
        (lambda: dsnot(nan, stats, mask), "NaNs or infinities"),
        (lambda: dsnot(weight, stats, mask, threshold=-1), "threshold=-1"),
        (lambda: dsnot(weight, stats, mask, power=-1), "power=-1"),
        (lambda: dsnot(weight, stats, mask, cycles=0), "cycles=0"),
        (lambda: dsnot(weight, stats, mask, cycles=2.5), "cycles=2.5"),
        (lambda: dsnot(weight, stats, mask, cycles="many"), "cycles='many'"),
        (lambda: dsnot(weight, stats, mask, initial="random"), "initial='random'"),
        (lambda: output_error(weight, mask, x[..., :4]), "x is"),
        (lambda: output_error(weight, mask[:1], x), "mask is"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_models_are_left_alone_where_pruning_fails():
    model = tiny_gpt()
    began = copy.deepcopy(model.state_dict())
    for call, words in (
        (lambda: prune_model(model, [], ratio=0.5), "batches is empty"),
        (lambda: prune_model(model, batches(), ratio=1.5), "'blocks.0.query': ratio=1.5"),
        (lambda: prune_model(model, batches(), n=2, m=3), "must divide the 16 inputs"),
        (lambda: prune_model(model, batches(), ratio=0.5, cycles=0), "cycles=0"),
        (lambda: prune_model(model, batches(), ratio=0.5, skip=["blocks"]), "no nn.Linear"),
        (lambda: prune_model(model, batches(), ratio=0.5, layers=[nn.Linear(2, 2)]), "own blocks"),
        (lambda: prune_model(nn.Linear(4, 4), batches(), ratio=0.5), "name its blocks"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
        assert model.state_dict().keys() == began.keys()
    # Fails in the second block, after the first was masked.
    bad = tiny_gpt()
    bad.blocks[1].down.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="'blocks.1.down': weight has NaNs"):
        prune_model(bad, batches(), ratio=0.5)
    assert not list(masks(bad))
    for name, value in bad.state_dict().items():
        if name != "blocks.1.down.weight":
            assert torch.equal(value, began[name])
    with torch.no_grad():
        bad.blocks[1].down.weight[0, 0] = 0
    prune_model(bad, batches(), ratio=0.5)
