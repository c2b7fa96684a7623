"""MC-SMoE: routing, matching, grouping, merging, compression, recovery, what it refuses."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import sat
from sat.methods.mc_smoe import (
    LowRankSparseLinear,
    MoELayer,
    RowPruner,
    compact_model,
    compress_model,
    dominant_counts,
    group_experts,
    macs,
    match_activations,
    match_permutation,
    memory,
    merge_experts,
    merge_model,
    permute_expert,
    recover,
    recovery_loss,
    router_similarity,
    routing_statistics,
    stable_rank,
)
from sat.methods.mc_smoe.demo import DigitsMoE, merging_error, planted_expert, planted_layer


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Two(nn.Module):
    """Two mixtures, one after the other."""

    def __init__(self, d=6, f=10, experts=5, **options):
        super().__init__()
        self.first, self.second = (MoELayer(d, f, experts, **options) for _ in range(2))

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(x)


def tokens(count=40, d=6, seed=0):
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------- layer


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_layer_by_an_explicit_loop(activation, top_k):
    layer = MoELayer(6, 10, 5, activation=activation, aux=0.5, top_k=top_k, allow_top_k=True)
    layer.map.copy_(torch.tensor([0, 1, 1, 3, 0]))
    x = tokens(20).view(4, 5, 6)
    act = getattr(functional, activation)
    y, flat = layer(x), x.reshape(-1, 6)
    p = torch.softmax(flat @ layer.router.weight.T, -1)
    counts = torch.zeros(5)
    for t, token in enumerate(flat):
        expected = torch.zeros(6)
        for e in p[t].argsort(descending=True)[:top_k].tolist():
            counts[e] += 1
            expected = expected + p[t, e] * (layer.wo[e] @ act(layer.wi[e] @ token))
        torch.testing.assert_close(y.reshape(-1, 6)[t], expected)
    balance = 0.5 * 5 * sum(counts / (20 * top_k) * p.mean(0))
    torch.testing.assert_close(layer.load_balance, balance)
    assert layer.wi.shape == (5, 10, 6) and layer.wo.shape == (5, 6, 10)
    (y.sum() + layer.load_balance).backward()
    assert layer.router.weight.grad.abs().sum() > 0
    assert copy.deepcopy(layer).router.weight.equal(layer.router.weight)


def test_experts_start_as_those_of_switch_transformers():
    """Normal, of deviation 1/sqrt(inputs): both moments within 4 standard errors."""
    layer = MoELayer(40, 90, 6)
    for weights, inputs in ((layer.wi, 40), (layer.wo, 90)):
        z = weights.detach() * math.sqrt(inputs)
        assert abs(float(z.std()) - 1) < 4 / math.sqrt(2 * z.numel())
        assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / z.numel())


def test_uniform_routing_is_balanced():
    layer = MoELayer(6, 10, 4, aux=1.0)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer(tokens())
        assert float(layer.load_balance) == pytest.approx(1)
        # All tokens to one expert with certainty: as many times worse as there are experts.
        layer.router.weight[2] = 1e3
        layer(tokens().abs())
        assert float(layer.load_balance) == pytest.approx(4)
    assert layer(tokens(0)).shape == (0, 6)


def test_statistics_count_choices():
    model = Two()
    x = tokens(64).view(8, 8, 6)
    stats = routing_statistics(model, [x[:4], (x[4:],)])
    with torch.no_grad():
        logits = x.reshape(-1, 6) @ model.first.router.weight.T
    found = stats["first"]
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.inputs, x.reshape(-1, 6))
    counts = np.bincount(logits.argmax(1).numpy(), minlength=5)
    assert found.frequency.tolist() == pytest.approx((counts / 64).tolist())
    assert set(stats) == {"first", "second"} and model.training
    assert not model.first.router._forward_hooks


# ------------------------------------------------------------------------------------ matching


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 999), st.booleans())
@settings(max_examples=50, deadline=None)
def test_permutations_change_no_function_and_are_undone(f, d, seed, output):
    generator = torch.Generator().manual_seed(seed)
    wi, wo = planted_expert(generator, d, f)
    perm = torch.randperm(f, generator=generator)
    moved = permute_expert(wi, wo, perm)
    x = torch.randn(5, d, generator=generator, dtype=torch.float64)
    before, after = (functional.gelu(x @ a.T) @ b.T for a, b in ((wi, wo), moved))
    torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-12)
    back = permute_expert(*moved, match_permutation((wi, wo), moved, include_output=output))
    assert torch.equal(back[0], wi) and torch.equal(back[1], wo)
    hidden = torch.randn(40, f, generator=generator)
    assert torch.equal(match_activations(hidden, hidden[:, perm]), perm.argsort())


def test_matching_is_the_best_of_all_permutations():
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        (ri, ro), (ei, eo) = (planted_expert(generator, 4, 5) for _ in range(2))
        fits = {
            p: float((ri * ei[list(p)]).sum() + (ro * eo[:, list(p)]).sum())
            for p in itertools.permutations(range(5))
        }
        found = tuple(match_permutation((ri, ro), (ei, eo)).tolist())
        assert fits[found] == pytest.approx(max(fits.values()), abs=1e-12)
        # Correlations, by numpy.
        a, b = (torch.randn(30, 4, generator=generator) for _ in range(2))
        r = np.corrcoef(a.T.numpy(), b.T.numpy())[:4, 4:]
        best = max(
            itertools.permutations(range(4)), key=lambda p, r=r: sum(r[i, p[i]] for i in range(4))
        )
        assert tuple(match_activations(a, b).tolist()) == best


# ------------------------------------------------------------------------------------ grouping


def test_router_similarity_by_hand():
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.0], [0.0, 0.0, 0.0, 3.0]])
    expected = torch.tensor(
        [[1, 1, 0, 0.5], [1, 1, 0, 0.5], [0, 0, 1, 0.5], [0.5, 0.5, 0.5, 1]]
    )  # fmt: skip
    torch.testing.assert_close(router_similarity(logits), expected)


def test_counts_by_one_threshold_over_layers():
    """By hand: most used become 1; of (1, .3, .1, 0) and (1, .25, .2, .15) four are kept."""
    frequencies = {
        "a": torch.tensor([0.3, 0.6, 0.1, 0.0]), "b": torch.tensor([0.15, 0.2, 0.25, 0.4]),
    }  # fmt: skip
    assert dominant_counts(frequencies, 2, ["a", "b"]) == {"a": 2, "b": 2}
    assert dominant_counts(frequencies, 1, ["a", "b"]) == {"a": 1, "b": 1}
    # Fifth and sixth: .2 and .15 of b.
    assert dominant_counts(frequencies, 3, ["a", "b"]) == {"a": 2, "b": 4}
    # One layer alone; the other keeps all.
    assert dominant_counts(frequencies, 3, ["b"]) == {"a": 4, "b": 3}
    assert frequencies["a"][1] == 0.6  # as it was
    # Ties at the threshold leave fewer, one in each layer at least.
    tied = {"a": torch.tensor([0.5, 0.5, 0, 0]), "b": torch.tensor([1.0, 0, 0, 0])}
    assert dominant_counts(tied, 2, ["a", "b"]) == {"a": 2, "b": 1}


def test_groups_by_hand_and_with_capacity():
    frequency = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    alike = torch.eye(5)
    for i, j, value in (
        (4, 1, 0.9),
        (4, 3, 0.2),
        (0, 1, 0.8),
        (0, 3, 0.7),
        (2, 1, 0.1),
        (2, 3, 0.6),
    ):
        alike[i, j] = alike[j, i] = value
    labels, dominant = group_experts(frequency, alike, 2)
    assert dominant.tolist() == [1, 3] and labels.tolist() == [0, 0, 1, 1, 0]
    # 4 fills the first group, so 0 goes to its next best.
    labels, _ = group_experts(frequency, alike, 2, capacity=2 + 1)
    assert labels.tolist() == [0, 0, 1, 1, 0]
    labels, _ = group_experts(frequency[:4], alike[:4, :4], 2, capacity=2)
    assert labels.tolist() == [0, 0, 1, 1]
    labels, dominant = group_experts(frequency, alike, 5)
    assert dominant.tolist() == [1, 3, 4, 0, 2] and labels[dominant].tolist() == [0, 1, 2, 3, 4]


@given(st.integers(2, 9), st.integers(0, 999), st.data())
@settings(max_examples=40, deadline=None)
def test_groups_are_whole(experts, seed, data):
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.rand(experts, generator=generator)
    alike = torch.rand(experts, experts, generator=generator)
    count = data.draw(st.integers(1, experts))
    capacity = data.draw(st.none() | st.integers(math.ceil(experts / count), experts))
    labels, dominant = group_experts(frequency, alike, count, capacity)
    sizes = torch.bincount(labels, minlength=count)
    assert len(sizes) == count and int(sizes.min()) >= 1
    assert capacity is None or int(sizes.max()) <= capacity
    assert labels[dominant].tolist() == list(range(count))
    assert float(frequency[dominant].min()) >= float(frequency[labels >= 0].sort().values[-count])


# ------------------------------------------------------------------------------------- merging


@pytest.mark.parametrize("align", ["first", "group", "dominant", "none"])
def test_merged_weights_are_means_by_use(align):
    layer = MoELayer(6, 10, 4)
    wi, wo = layer.wi.detach().double(), layer.wo.detach().double()
    labels, frequency = torch.tensor([1, 0, 1, 0]), torch.tensor([0.2, 0.1, 0.6, 0.0])
    reference = {"first": [0, 0, 0, 0], "group": [0, 1, 0, 1], "dominant": [2, 1, 2, 1]}
    aligned = []
    for e in range(4):
        r = reference.get(align, [e] * 4)[e]
        perm = torch.arange(10)
        if r != e:
            # Aligned in place: the reference may have been brought in order before.
            ref = aligned[r] if r < e else (wi[r], wo[r])
            perm = match_permutation(ref, (wi[e], wo[e]))
        aligned.append(permute_expert(wi[e], wo[e], perm))
    merge_experts(layer, labels, frequency, align=align)
    assert layer.map.tolist() == [1, 0, 1, 0] and len(layer.experts) == 2
    for group, members in ((0, (1, 3)), (1, (0, 2))):
        weights = frequency[list(members)].double() / frequency[list(members)].sum()
        for part, name in enumerate(("wi", "wo")):
            mean = sum(w * aligned[m][part] for w, m in zip(weights, members, strict=True))
            found = getattr(layer.experts[group], name).weight
            torch.testing.assert_close(found.double(), mean, rtol=1e-6, atol=1e-7)
    assert layer.router.weight.shape == (4, 6)
    assert torch.equal(layer.wi[0], layer.wi[2]) and not torch.equal(layer.wi[0], layer.wi[1])


def test_groups_without_use_take_the_plain_mean():
    layer = MoELayer(3, 4, 3)
    wi = layer.wi.detach().clone()
    merge_experts(layer, torch.tensor([0, 1, 1]), torch.tensor([1.0, 0, 0]), align="none")
    torch.testing.assert_close(layer.wi[1], (wi[1] + wi[2]) / 2)
    assert torch.equal(layer.wi[0], wi[0]) and bool(torch.isfinite(layer.wo).all())


@pytest.mark.parametrize("matching", ["weight", "activation"])
def test_merged_copies_compute_what_they_did(matching):
    model = Two(experts=6)
    for layer in (model.first, model.second):
        for i in range(3):
            perm = torch.randperm(10)
            with torch.no_grad():
                for name, axis in (("wi", 0), ("wo", 1)):
                    weight = getattr(layer.experts[i], name).weight
                    getattr(layer.experts[i + 3], name).weight.copy_(
                        weight.index_select(axis, perm)
                    )
    x = tokens(300)
    with torch.no_grad():
        before = model(x)
        for name, layer in (("first", model.first), ("second", model.second)):
            stats = routing_statistics(model, [x])[name]
            merge_experts(
                layer, torch.arange(6) % 3, stats.frequency, align="group", matching=matching,
                inputs=stats.inputs,
            )  # fmt: skip
        torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-6)


def test_planted_errors():
    assert merging_error(0.0, 0, align="group") < 1e-12
    aligned, uniform, unaligned = (
        merging_error(0.1, 0, align="group"), merging_error(0.1, 0, align="group", uniform=True),
        merging_error(0.1, 0, align="none"),
    )  # fmt: skip
    assert aligned < uniform < 0.03 and unaligned > 0.3
    # Merging experts that differ cancels, which is what makes fewer dimensions.
    layer, labels, frequency = planted_layer(0.1, 0)
    single = stable_rank(layer.wi[0])
    merge_experts(layer, labels, frequency, align="none")
    assert stable_rank(layer.wi[0]) < 0.9 * single


def test_whole_models_are_merged():
    model = Two(experts=6)
    full = copy.deepcopy(model)
    before = memory(nn.ModuleList([model.first.experts, model.second.experts]))
    report = merge_model(model, [tokens(997)], 2)
    kept = [len(model.first.experts), len(model.second.experts)]
    assert sum(kept) == 4 and [len(row.dominant) for row in report.layers] == kept
    assert report.bytes_before == before == 3 * report.bytes_after
    stats = routing_statistics(full, [tokens(997)])
    for row in report.layers:
        frequency = stats[row.name].frequency
        assert torch.equal(row.frequency, frequency)
        most = frequency.argsort(descending=True, stable=True)[: len(row.dominant)]
        assert torch.equal(row.dominant, most)
        layer = model.get_submodule(row.name)
        assert torch.equal(layer.map, row.labels)
        assert torch.equal(layer.router.weight, full.get_submodule(row.name).router.weight)
        assert not layer.router.weight.requires_grad
    assert "first: 6 -> " in str(report)
    model = copy.deepcopy(full)
    report = merge_model(
        model, [tokens(200)], 3, global_=False, layers=["second"], similarity="weight",
        weighting="uniform", align="dominant", freeze_router=False, capacity=3,
    )  # fmt: skip
    assert len(model.first.experts) == 6 and len(model.second.experts) == 3
    assert model.second.router.weight.requires_grad
    with pytest.raises(ValueError, match="merged already"):
        merge_model(model, [tokens(200)], 2, layers=["second"])
    two = [copy.deepcopy(full) for _ in range(2)]
    reports = [
        merge_model(m, [tokens(200)], 2, similarity="random", seed=s) for s, m in enumerate(two)
    ]
    assert not torch.equal(reports[0].layers[0].labels, reports[1].layers[0].labels)


# --------------------------------------------------------------------------------- compression


def test_splits_start_exact_and_rows_are_lost_by_importance():
    weight = torch.randn(12, 8, dtype=torch.float64)
    split = LowRankSparseLinear.from_linear(weight, 3)
    torch.testing.assert_close(split.u @ split.v + split.s, weight, rtol=1e-12, atol=1e-12)
    u, s, v = np.linalg.svd(weight.numpy())
    torch.testing.assert_close((split.u @ split.v).detach().numpy(), (u[:, :3] * s[:3]) @ v[:3])
    torch.testing.assert_close(split.u.square().sum(0), split.v.square().sum(1))
    x = torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(split(x), x @ weight.T, rtol=1e-12, atol=1e-12)


def test_pruner_follows_its_schedule():
    modules = [LowRankSparseLinear.from_linear(torch.randn(n, 6), 2) for n in (9, 11)]
    pruner = RowPruner(modules, total_steps=40, warmup=5, final=0.1)
    averages = [np.zeros((len(m.s), 6)) for m in modules]
    last = [a.copy() for a in averages]
    for k in range(1, 41):
        for i, module in enumerate(modules):
            # Now and then an expert has no token: its gradient is 0.
            module.s.grad = None if i and k % 3 == 0 else torch.randn_like(module.s)
            with torch.no_grad():
                module.s.add_(1e-3 * torch.randn_like(module.s))
        expected = []
        for i, module in enumerate(modules):
            averages[i] = 0.85 * averages[i] + 0.15 * last[i]
            grad = 0 if module.s.grad is None else module.s.grad.numpy()
            last[i] = np.abs(module.s.detach().numpy() * grad)
            expected.append(averages[i].mean(1))
        kept = pruner.step(k)
        share = 1 if k <= 5 else 0.1 if k > 20 else 0.1 + 0.9 * (1 - (k - 5) / 15) ** 3
        assert kept == math.ceil(share * 20 - 1e-9)
        rows = torch.cat([m.kept for m in modules])
        assert int(rows.sum()) == kept
        order = np.concatenate(expected).argsort()
        assert k <= 5 or set(rows.nonzero()[:, 0].tolist()) == set(order[20 - kept :].tolist())
    assert kept == 2


def test_models_are_compressed_and_stored():
    model = Two(experts=4)
    merge_model(model, [tokens()], 2)
    x = tokens(50, seed=1)
    before = model(x)
    splits = compress_model(model, 3)
    assert len(splits) == 2 * 4
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="compressed already"):
        compress_model(model, 3)
    for i, split in enumerate(splits):
        with torch.no_grad():
            split.s[: i + 1] = 0
    masked = model(x)
    whole = memory(model)
    assert compact_model(model) is model
    torch.testing.assert_close(model(x), masked, rtol=1e-6, atol=1e-6)
    lost = sum(min(i + 1, len(s.s)) * s.s.shape[1] for i, s in enumerate(splits))
    assert whole - memory(model) == 4 * lost
    model(x).sum().backward()


def test_macs_follow_the_tokens():
    layer = MoELayer(6, 10, 4)
    assert macs(layer, tokens(7)) == 7 * (6 * 4 + 2 * 60)
    layer = MoELayer(6, 10, 4, top_k=2, allow_top_k=True)
    assert macs(layer, tokens(7)) == 7 * (6 * 4 + 4 * 60)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_stable_rank_by_numpy(rows, cols, seed):
    w = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    s = np.linalg.norm(w.numpy(), 2)
    assert stable_rank(w) == pytest.approx((w.numpy() ** 2).sum() / s**2, rel=1e-5)
    assert stable_rank(torch.zeros(2, 3)) == 0 and stable_rank(torch.eye(4)) == pytest.approx(4)


# ------------------------------------------------------------------------------------ recovery


def test_recovery_loss_by_its_formula():
    student, teacher, y = torch.randn(7, 4), torch.randn(7, 4), torch.randint(4, (7,))
    q, p = (torch.softmax(x / 2, -1) for x in (student, teacher))
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = functional.cross_entropy(student, y) + 0.2 * divergence
    torch.testing.assert_close(recovery_loss(student, teacher, y), expected)


def test_recovery_trains_and_leaves_routers():
    full = nn.Sequential(MoELayer(6, 10, 5), nn.Linear(6, 3))
    x = tokens(200)
    y = full(x).detach().argmax(1)
    model = copy.deepcopy(full)
    merge_model(model, [x], 2)
    router = model[0].router.weight.clone()
    before = copy.deepcopy(full.state_dict())
    splits = compress_model(model, 2)
    pruner = RowPruner(splits, 60, 5, 0.5)
    losses = recover(model, full, [(x, y)] * 60, steps=60, lr=1e-2, pruner=pruner)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert torch.equal(model[0].router.weight, router)
    assert all(torch.equal(before[k], v) for k, v in full.state_dict().items())
    kept = sum(int(split.kept.sum()) for split in splits)
    assert kept == sum(len(split.s) for split in splits) // 2
    with pytest.raises(ValueError, match="batches has 3: must have at least steps=9"):
        recover(model, full, [(x, y)] * 3, steps=9, lr=1e-2)


def test_merged_experts_run_from_compact_copies():
    model = DigitsMoE()
    x = torch.randn(16, 1, 8, 8)
    merge_model(model, [x], 4)
    for layer in model.mixtures:
        report = sat.sparsify_(layer.experts, "bdwp", "2:8")
        assert all(row.pattern == "2:8" for row in report.layers)
    with sat.offload("golden") as report:
        model(x).sum().backward()
    assert any(work.size.endswith("2:8") and "FF" in work.op for work in report)
    assert report.coverage == 1


# ----------------------------------------------------------------------------------- bad input


def test_arguments_are_checked():
    layer, model = MoELayer(6, 10, 5), Two()
    labels, ones = torch.tensor([0, 1, 0, 1, 1]), torch.ones(5)
    wi, wo = torch.randn(10, 6), torch.randn(6, 10)
    split = LowRankSparseLinear.from_linear(wi, 2)
    x = [tokens()]
    for call, words in (
        (lambda: MoELayer(0, 10, 5), "d=0"),
        (lambda: MoELayer(6, 10, 5, activation="glu"), "must act on each hidden channel alone"),
        (lambda: MoELayer(6, 10, 5, top_k=2), "allow_top_k=True takes more"),
        (lambda: MoELayer(6, 10, 5, top_k=6, allow_top_k=True), "top_k=6: must be from 1 to"),
        (lambda: layer.load_balance, "known after a forward pass"),
        (lambda: routing_statistics(nn.Linear(3, 3), x), "has no MoELayer"),
        (lambda: routing_statistics(model, []), "'first' saw no token"),
        (lambda: routing_statistics(model, [tokens(0)]), "saw no token"),
        (lambda: merge_model(model, x, 0), "average_groups=0"),
        (lambda: merge_model(model, x, 5), "average_groups=5: must be an int from 1 to below 5"),
        (lambda: merge_model(model, x, 2, layers=["third"]), "'third': there is none"),
        (lambda: merge_model(model, x, 2, similarity="taste"), "similarity='taste'"),
        (lambda: merge_model(model, x, 2, weighting="gate"), "weighting='gate'"),
        (lambda: merge_model(model, x, 2, capacity=2, global_=False), "capacity=2: 2 groups"),
        (lambda: dominant_counts({"a": ones, "b": ones}, 2, ["a", "b"]), "no expert used more"),
        (lambda: dominant_counts({"a": ones}, 2, ["b"]), "'b': there is none"),
        (lambda: router_similarity(torch.ones(0, 4)), "at least one token"),
        (lambda: group_experts(ones, torch.eye(4), 2), "similarity is .4, 4."),
        (lambda: group_experts(ones, torch.eye(5), 0), "count=0"),
        (lambda: group_experts(ones, torch.eye(5), 6), "count=6"),
        (lambda: group_experts(ones, torch.eye(5), 2, 2), "capacity=2"),
        (lambda: merge_experts(layer, labels[:4], ones), "labels are"),
        (lambda: merge_experts(layer, labels * 2, ones), "none of them empty"),
        (lambda: merge_experts(layer, labels - 1, ones), "labels are"),
        (lambda: merge_experts(layer, labels, ones[:4]), "frequency is"),
        (lambda: merge_experts(layer, labels, -ones), "not negative"),
        (lambda: merge_experts(layer, labels, ones, align="last"), "align='last'"),
        (lambda: merge_experts(layer, labels, ones, matching="taste"), "matching='taste'"),
        (lambda: merge_experts(layer, labels, ones, matching="activation"), "needs inputs"),
        (lambda: match_permutation((wi, wo), (wi[:9], wo[:, :9])), "must have equal shapes"),
        (lambda: match_permutation((wi, wo), (wi, wi)), "must be .f, d. and .d, f."),
        (lambda: permute_expert(wi, wo[:, :9], torch.arange(10)), "must be .f, d. and .d, f."),
        (lambda: permute_expert(wi, wo, torch.zeros(10, dtype=torch.long)), "once"),
        (lambda: match_activations(wi, wi[:4]), "both alike"),
        (lambda: match_activations(wi[:1], wi[:1]), "at least 2 tokens"),
        (lambda: LowRankSparseLinear(6, 10, 0), "rank=0"),
        (lambda: compress_model(Two(), 7), "rank=7: must be an int from 1 to 6"),
        (lambda: RowPruner([], 100, 5), "modules is empty"),
        (lambda: RowPruner([split], 25, 5), "total_steps=25: must be more than 5 warm-ups of 5"),
        (lambda: RowPruner([split], 25, 0), "warmup=0"),
        (lambda: RowPruner([split], 100, 5, 1.5), "final=1.5"),
        (lambda: RowPruner([split], 100, 5).step(1), "no module has a gradient at step 1"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert len(layer.experts) == 5 and len(model.first.experts) == 5
