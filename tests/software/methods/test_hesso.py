"""HESSO: groups, scores, schedules, the corrective cycle, extraction, what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from sat.methods.hesso import (
    CRITERIA,
    HESSO,
    HESSOCRIC,
    Entry,
    GroupSpec,
    GroupTable,
    SelfAttention,
    count,
    extract,
    prunable_groups,
    saliency,
)
from sat.methods.hesso.demo import indispensable, numpy_scores, spring_trap, train
from sat.methods.hesso.networks import ResidualCNN, Transformer, make_cnn, make_trap

IMAGE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def counts(groups):
    """Groups by layer."""
    found = {}
    for group in groups:
        found[group.layer] = found.get(group.layer, 0) + 1
    return found


def slices(entries, model):
    """Entries as (name of the tensor, axis, places)."""
    names = {id(t): n for n, t in [*model.named_parameters(), *model.named_buffers()]}
    return {(names[id(e.tensor)], e.axis, tuple(e.places)) for e in entries}


def mlp(hidden=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))


# -------------------------------------------------------------------------------------- groups


def test_groups_of_a_cnn_by_hand():
    model = make_cnn()
    groups = prunable_groups(model, IMAGE)
    assert counts(groups) == {"0": 16, "4": 32, "9": 64}
    assert groups.skipped == {"11": "makes outputs of the model"}
    third = groups[16 + 3]
    assert third.name == "4[3]" and third.size == 16 * 9 + 1 + 2
    assert slices(third.entries, model) == {
        ("4.weight", 0, (3,)), ("4.bias", 0, (3,)), ("5.weight", 0, (3,)), ("5.bias", 0, (3,)),
    }  # fmt: skip
    # Flattening 2 x 2 positions: channel 3 owns columns 12 to 15.
    assert slices(third.dependents, model) == {
        ("5.running_mean", 0, (3,)), ("5.running_var", 0, (3,)), ("9.weight", 1, (12, 13, 14, 15)),
    }  # fmt: skip
    assert slices(groups[-1].dependents, model) == {("11.weight", 1, (63,))}
    assert "9: 64 groups" in str(groups) and "11: not pruned" in str(groups)


def test_additions_share_groups_and_concatenations_shift_them():
    model = ResidualCNN()
    groups = prunable_groups(model, IMAGE)
    assert counts(groups) == {"stem": 16, "conv1": 24, "side": 8, "hidden": 32}
    stem = groups[5]
    named = slices(stem.entries, model)
    # The stem and the end of the branch meet; both go on to a depthwise convolution.
    assert {("stem.weight", 0, (5,)), ("conv2.weight", 0, (5,)), ("norm2.weight", 0, (5,))} <= named
    assert {("depthwise.weight", 0, (5,)), ("norm3.bias", 0, (5,))} <= named
    assert {
        ("conv1.weight", 1, (5,)), ("side.weight", 1, (5,)), ("hidden.weight", 1, (20, 21, 22, 23)),
    } <= slices(stem.dependents, model)  # fmt: skip
    side = next(g for g in groups if g.name == "side[2]")
    assert ("depthwise.weight", 0, (18,)) in slices(side.entries, model)
    assert ("hidden.weight", 1, (72, 73, 74, 75)) in slices(side.dependents, model)


def test_attention_has_groups_of_heads_or_of_channels():
    for by, number, rows in (("head", 4, tuple(range(8, 16))), ("channel", 8, (1, 9, 17, 25))):
        model = Transformer(by=by)
        groups = prunable_groups(model, IMAGE)
        found = counts(groups)
        assert found == {"attention.0": number, "up.0": 64, "attention.1": number, "up.1": 64}
        group = next(g for g in groups if g.name == "attention.0[1]")
        assert slices(group.entries, model) == {
            (f"attention.0.{layer}.{name}", 0, rows)
            for layer in ("query", "key", "value")
            for name in ("weight", "bias")
        }
        assert slices(group.dependents, model) == {("attention.0.out.weight", 1, rows)}
        # Cut channels would be in the statistics of LayerNorm.
        assert any("LayerNorm" in name for name in groups.skipped)
        assert "norms" in groups.skipped["embed"]


class Odd(nn.Module):
    """Linear layers around something odd."""

    def __init__(self, between, width=6):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, width), nn.Linear(width, 5), nn.Linear(5, 2)
        self.between = between

    def forward(self, x):
        return self.c(torch.relu(self.b(self.between(self.a(x)))))


@pytest.mark.parametrize(
    ("between", "free"),
    [
        (torch.sigmoid, False), (lambda h: h + 1, False), (lambda h: 1 - h, False),
        (lambda h: h.softmax(-1), False), (lambda h: h * 2, True), (lambda h: torch.tanh(h), True),
        (lambda h: functional.gelu(h) + h, True), (lambda h: h * torch.relu(h), True),
        (lambda h: torch.cat([h, -h], 1)[:, : h.shape[1]], True),
        (lambda h: h.unsqueeze(2).transpose(1, 2).flatten(1), True),
        (lambda h: h.repeat(1, 1), False),
    ],
)  # fmt: skip
def test_what_keeps_zeros_is_followed_and_other_things_are_kept(between, free):
    torch.manual_seed(0)
    model = Odd(between)
    groups = prunable_groups(model, torch.randn(4, 3))
    assert counts(groups) == ({"a": 6, "b": 5} if free else {"b": 5})
    assert free or "a" in groups.skipped
    cut_is_zeroed(model, torch.randn(7, 3), seed=1)


@pytest.mark.parametrize(
    "between",
    [
        lambda h: h.unflatten(1, (2, 3)).transpose(1, 2).flatten(1),
        lambda h: torch.cat([h[:, 4:], h[:, :4]], 1),
        lambda h: h.view(-1, 3, 2).permute(0, 2, 1).reshape(-1, 6),
    ],
)
def test_sizes_that_are_spelled_out_are_followed_and_extraction_compares(between):
    torch.manual_seed(0)
    model = Odd(between)
    assert counts(prunable_groups(model, torch.randn(4, 3))) == {"a": 6, "b": 5}
    optimizer = HESSO(prunable_groups(model, torch.randn(4, 3)), model, 0.1, steps=1)
    optimizer.pruned[0] = True
    optimizer.table.scale(optimizer.pruned, 0)
    with pytest.raises(ValueError, match="its forward splits channels by numbers"):
        extract(model, optimizer, force=True)
    assert model.training


def test_layers_called_twice_and_sums_with_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.loop, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.relu(self.loop(torch.relu(self.loop(self.first(x))))))

    model = Twice()
    groups = prunable_groups(model, torch.randn(2, 4))
    assert counts(groups) == {"first": 4}
    assert ("loop.weight", 0, (2,)) in slices(groups[2].entries, model)
    assert ("loop.weight", 1, (2,)) in slices(groups[2].dependents, model)
    cut_is_zeroed(model, torch.randn(5, 4), seed=0)

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(self.a(x) + x)

    with pytest.raises(ValueError, match="no prunable groups .*adds what is not pruned"):
        prunable_groups(Skip(), torch.randn(2, 4))


def test_pooling_means_frozen_layers_and_unknown_modules():
    model = nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.PReLU(6), nn.AdaptiveAvgPool1d(2), nn.Conv1d(6, 8, 1, groups=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 1),
    )  # fmt: skip
    groups = prunable_groups(model, torch.randn(3, 2, 9))
    assert counts(groups) == {"6": 4}
    assert groups.skipped["3 (Conv1d)"] == "not known: channels that enter it are kept"
    model[6].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="its parameters are frozen"):
        prunable_groups(model, torch.randn(3, 2, 9))

    class Mean(nn.Module):
        def __init__(self, axis):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5)
            self.head, self.axis = nn.LazyLinear(2), axis

        def forward(self, x):
            return self.head(self.norm(self.conv(x)).mean(self.axis))

    model = Mean((2, 3))
    model(IMAGE)
    assert counts(prunable_groups(model, IMAGE)) == {"conv": 5}
    cut_is_zeroed(model, IMAGE, seed=0)
    model = Mean(1)
    model(IMAGE)
    with pytest.raises(ValueError, match="together with other channels"):
        prunable_groups(model, IMAGE)


# ---------------------------------------------------------------------------------- extraction


def cut_is_zeroed(model, x, seed, share=0.5):
    """Set random groups to zero, cut them, compare; at least one group of each layer stays."""
    groups = prunable_groups(model, x[:1])
    optimizer = HESSO(groups, model, 0.1, steps=1, target=share)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    optimizer.pruned = optimizer.choose(
        torch.rand(len(groups), generator=generator), optimizer.to_prune
    )
    optimizer.table.scale(optimizer.pruned, 0)
    before = copy.deepcopy(model.state_dict())
    small = extract(model, optimizer, force=True)
    model.eval(), small.eval()
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    pruned = sum(groups[i].size for i in optimizer.pruned.nonzero()[:, 0])
    left = sum(p.numel() for p in small.parameters())
    assert left <= sum(p.numel() for p in model.parameters()) - pruned
    small.train()
    small(x).sum().backward()
    return small


@given(
    st.sampled_from([make_cnn, ResidualCNN, Transformer, lambda: Transformer(by="channel")]),
    st.integers(0, 999), st.floats(0.05, 0.95),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_extracted_networks_are_the_zeroed_ones(network, seed, share):
    torch.manual_seed(seed)
    small = cut_is_zeroed(network(), IMAGE, seed, share)
    for module in small.modules():
        if isinstance(module, nn.Linear):
            assert tuple(module.weight.shape) == (module.out_features, module.in_features)
        if isinstance(module, SelfAttention):
            assert len(module.query.weight) % module.heads == 0


def test_counts_by_hand():
    assert count(mlp(), torch.randn(5, 3)) == (6 * 3 + 6 + 2 * 6 + 2, 5 * (18 + 12))
    parameters, macs = count(make_cnn(), IMAGE[:1])
    assert macs == 64 * 9 * 16 + 16 * 9 * 16 * 32 + 128 * 64 + 64 * 10
    assert parameters == 160 + 32 + 4640 + 64 + 8256 + 650


def test_extraction_is_refused():
    model = mlp()
    optimizer = HESSO(prunable_groups(model, torch.randn(2, 3)), model, 0.1, steps=3, target=0.5)
    with pytest.raises(ValueError, match="has not ended after 0 steps"):
        extract(model, optimizer)
    assert extract(model, optimizer, force=True)[0].out_features == 6
    optimizer.pruned[1] = True
    with pytest.raises(ValueError, match=r"group 0\[1\] is pruned, but not zero"):
        extract(model, optimizer, force=True)
    optimizer.table.scale(optimizer.pruned, 0)
    assert extract(model, optimizer, force=True)[0].out_features == 5
    with pytest.raises(ValueError, match="is not of this model"):
        extract(copy.deepcopy(model), optimizer, force=True)


# -------------------------------------------------------------------------------------- scores


def test_scores_are_an_explicit_loop():
    torch.manual_seed(0)
    for model in (make_cnn(), Transformer(by="channel")):
        groups = prunable_groups(model, IMAGE)
        directions = {p: torch.randn_like(p) for p in model.parameters()}
        parts = saliency(groups, directions)
        assert len(parts) == 5 and all(part.shape == (len(groups),) for part in parts)
        ours = torch.stack(parts).sum(0).numpy()
        assert ours == pytest.approx(numpy_scores(groups, directions), abs=1e-6)
    # By hand: x = (3, 4), d = (1, 0); alone, each criterion is its weight.
    p = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    groups = [GroupSpec(f"a[{i}]", [Entry(p, 0, i, i + 1)], 2) for i in range(2)]
    d = {p: torch.tensor([[1.0, 0.0], [0.0, 0.0]])}
    for name, value in (("magnitude", (1, 0)), ("taylor1", (1, 0)), ("taylor2", (1, 0))):
        (score,) = saliency(groups, d, {name: 1.0})
        assert score.tolist() == pytest.approx(value)
    (score,) = saliency(groups, d, {"cosine": 2.0})
    # A pruned group's cosine score is 1, and not the lowest there is.
    length = math.hypot(1.6, 1)
    assert score.tolist() == pytest.approx([2 * 1.6 / length, 2 / length])


# ----------------------------------------------------------------------------------- the steps


def regression(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 3, generator=generator)
        model.zero_grad()
        loss = (model(x) - x[:, :2]).square().mean()
        loss.backward()
        optimizer.step(loss.detach())


@pytest.mark.parametrize(
    ("variant", "reference", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.99), "weight_decay": 0.01}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
def test_without_pruning_it_is_the_base_optimiser(variant, reference, options):
    ours, theirs = mlp(), mlp()
    groups = prunable_groups(ours, torch.randn(2, 3))
    extra = {"sampling_steps": 2, "hybrid_steps": 2}
    optimizer = HESSO(groups, ours, 0.05, variant=variant, target=0, steps=4, **options)
    regression(ours, optimizer, 12)
    base = reference(theirs.parameters(), 0.05, **options)
    base.step_of_torch, base_step = base.step, base.step

    class Loss:
        @staticmethod
        def step(loss):
            base_step()

    regression(theirs, Loss, 12)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    # CRIC's ordinary steps are the same.
    cric, again = mlp(), mlp()
    optimizer = HESSOCRIC(
        prunable_groups(cric, torch.randn(2, 3)), cric, 0.05, variant=variant, start=13,
        **options, **extra,
    )  # fmt: skip
    regression(cric, optimizer, 12)
    for a, b in zip(cric.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again


def test_groups_shrink_linearly_to_exact_zero():
    """Without a learning rate: 8 steps in 2 periods from step 3 on, t from 1."""
    model = mlp(8)
    groups = prunable_groups(model, torch.randn(2, 3))
    optimizer = HESSO(groups, model, 0.0, target=0.5, start=3, steps=10, periods=2)
    whole = optimizer.table.norms()
    seen = []
    for _ in range(14):
        regression(model, optimizer, 1)
        seen.append((optimizer.table.norms() / whole).round(decimals=5))
    assert all(torch.equal(norms, torch.ones(8)) for norms in seen[:3])
    for period in range(2):
        first = seen[3 + 5 * period]
        group = int(((first < 1) & (first > 0)).nonzero()[0])
        path = [float(norms[group]) for norms in seen[3 + 5 * period :][:5]]
        # (L - t - 1) / (L - t) for t = 1 to 4 of L = 5, then committed.
        assert path == pytest.approx([0.75, 0.5, 0.25, 0, 0], abs=1e-5)
        assert int((first < 1).sum()) == 2 * (period + 1)
    assert int(optimizer.pruned.sum()) == 4 == optimizer.to_prune
    assert optimizer.finished and optimizer.sparsity() == 0.5
    assert torch.equal(optimizer.redundant, optimizer.pruned)


def test_pruned_groups_stay_zero_under_momentum():
    model = mlp(8)
    groups = prunable_groups(model, torch.randn(2, 3))
    optimizer = HESSO(groups, model, 0.1, target=0.5, steps=2, periods=2)
    regression(model, optimizer, 30)
    for number in optimizer.pruned.nonzero()[:, 0].tolist():
        for entry in groups[number].entries:
            bits = entry.view().contiguous().view(torch.int32)
            assert not bits.any()
    assert int(optimizer.pruned.sum()) == 4
    assert all(bool(s["buffer"].abs().sum() > 0) for s in optimizer.state.values())


@given(st.integers(1, 9), st.floats(0, 0.99), st.integers(0, 99), st.booleans())
@settings(max_examples=40, deadline=None)
def test_choice_keeps_multiples_and_empties_no_layer(divisible, target, seed, half):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 20), nn.ReLU(),
        nn.Linear(20, 2),
    )  # fmt: skip
    groups = prunable_groups(model, torch.randn(2, 3))
    optimizer = HESSO(groups, model, 0.1, steps=1, target=target, divisible=divisible)
    scores = torch.rand(39, generator=torch.Generator().manual_seed(seed))
    if half:
        optimizer.pruned[:4] = True
    chosen = optimizer.choose(scores, optimizer.to_prune)
    assert int(chosen.sum()) <= optimizer.to_prune and not bool((chosen & optimizer.pruned).any())
    for layer, whole in enumerate((12, 7, 20)):
        inside = optimizer.table.layer_of == layer
        gone = inside & (chosen | optimizer.pruned)
        kept = whole - int(gone.sum())
        if int((chosen & inside).sum()):
            assert kept % divisible == 0 and kept >= 1 and whole > divisible
            # Those of highest score were spared.
            mine = scores[inside & chosen]
            rest = scores[inside & ~chosen & ~optimizer.pruned]
            assert float(mine.max()) <= float(rest.min())
    if divisible == 1 and not half and target < 0.5:
        cut = scores.argsort()[: optimizer.to_prune]
        assert set(chosen.nonzero()[:, 0].tolist()) == set(cut.tolist())


def test_training_goes_on_where_it_was_saved():
    whole, parts = mlp(8), mlp(8)

    def make(model):
        groups = prunable_groups(model, torch.randn(2, 3))
        return HESSO(groups, model, 0.05, variant="adam", target=0.5, start=2, steps=8, periods=2)

    optimizer = make(whole)
    regression(whole, optimizer, 5)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    regression(whole, optimizer, 9, seed=1)
    parts.load_state_dict(saved[0])
    resumed = make(parts)
    resumed.load_state_dict(saved[1])
    regression(parts, resumed, 9, seed=1)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(optimizer.pruned, resumed.pruned) and resumed.finished


# ------------------------------------------------------------------------------------- CRIC


def cric(model, **options):
    groups = prunable_groups(model, torch.randn(2, 3))
    settings_ = {"lr": 0.05, "target": 0.5, "start": 3, "sampling_steps": 4, "hybrid_steps": 5}
    return HESSOCRIC(groups, model, **settings_ | options)


def test_cric_tries_layers_and_puts_parameters_back():
    model = mlp(8)
    optimizer = cric(model)
    regression(model, optimizer, 2)
    began = copy.deepcopy(model.state_dict())
    # Step 3 is the start: a quarter of the layer is zero for the next loss.
    for share in (2, 4, 6):
        regression(model, optimizer, 1)
        assert int((optimizer.table.norms() == 0).sum()) == share
        assert all(torch.equal(began[k], v) for k, v in model.state_dict().items()) is False
        regression(model, optimizer, 1)
        assert all(torch.equal(began[k], v) for k, v in model.state_dict().items())
    assert len(optimizer._ratios[0]) == 3 and optimizer.cycle == 0
    assert optimizer._collected == 6


def test_cric_doubts_shrinks_and_decides():
    model = mlp(8)
    optimizer = cric(model, lr=0.0)
    regression(model, optimizer, 8)
    whole = optimizer.table.norms()
    shares = []
    for _ in range(4):
        regression(model, optimizer, 1)
        doubted = optimizer.doubt
        shares.append(float((optimizer.table.norms() / whole)[doubted].mean()))
    assert optimizer.cycle == 1 and optimizer.doubted == [4]
    assert shares == pytest.approx([0.75, 0.5, 0.25, 0])
    while optimizer.decided_at < 0:
        regression(model, optimizer, 1)
    # All went back before the decision, and no group was in doubt twice.
    torch.testing.assert_close(optimizer.table.norms(), whole)
    assert sum(optimizer.doubted) == int(optimizer.history.sum())
    assert optimizer.doubted[-1] == 0 or optimizer.cycle == 10
    at = optimizer.steps_taken
    with pytest.raises(ValueError, match="has not ended"):
        extract(model, optimizer)
    paths = []
    for _ in range(6):
        regression(model, optimizer, 1)
        paths.append(float((optimizer.table.norms() / whole)[optimizer.redundant].mean()))
    assert paths == pytest.approx([0.8, 0.6, 0.4, 0.2, 0, 0], abs=1e-5)
    assert optimizer.finished and optimizer.decided_at == at
    assert extract(model, optimizer)[0].out_features == 4


def test_cric_adds_what_trials_cost_by_hand():
    model = mlp(8)
    optimizer = cric(model)
    optimizer._ratios = [[1.5, 1.25, 4.5]]
    scores = torch.arange(8, dtype=torch.float64).flip(0)
    # Lowest scores last: 2 of them share 0.5, the next 2 nothing, 2 share 3, the rest costs twice.
    costs = torch.tensor([3, 3, 1.5, 1.5, 0, 0, 0.25, 0.25], dtype=torch.float64)
    torch.testing.assert_close(optimizer._costs(scores), costs / costs.norm())
    optimizer = cric(model, loss_term="layer")
    optimizer._ratios = [[1.5, 1.25, 4.5]]
    assert optimizer._costs(scores).tolist() == pytest.approx([7.25 / 3 / 8] * 8)


def test_cric_stops_at_its_last_cycle_or_within_its_tolerance():
    model = mlp(8)
    optimizer = cric(model, max_cycles=1)
    regression(model, optimizer, 9)
    assert optimizer.cycle == 1 and optimizer.decided_at == 9
    optimizer = cric(mlp(8), tolerance=4)
    regression(optimizer.model, optimizer, 9)
    assert optimizer.decided_at == 9 and optimizer.doubted == [4]


def test_cric_keeps_what_a_trap_makes_small():
    trap = make_trap(0)
    x, _ = trap.batch(9, torch.Generator().manual_seed(0))
    torch.testing.assert_close(trap.model(x), trap.plain(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(indispensable(0), trap.needed) and int(trap.needed.sum()) == 8
    options = {"variant": "sgd", "target": 0.5, "start": 10}
    kept = spring_trap(
        0, lambda g, m: HESSOCRIC(g, m, 1e-8, sampling_steps=10, hybrid_steps=20, **options)
    )
    fallen = spring_trap(
        0, lambda g, m: HESSO(g, m, 1e-8, steps=20, criteria={"magnitude": 1.0}, **options)
    )
    assert kept >= 0.9 and fallen <= 0.25


def test_a_short_training_prunes_and_is_extracted():
    trained = train(
        0,
        lambda g, m: HESSO(
            g, m, 3e-3, variant="adam", target=0.5, start=10, steps=20, periods=2, divisible=8
        ),
        40,
    )
    assert trained.apart <= 1e-5 and trained.optimizer.finished
    assert all(left % 8 == 0 for left in trained.left) and sum(trained.left) <= 112 // 2 + 3 * 7
    assert trained.share < 0.95


# ------------------------------------------------------------------------------------ bad input


def test_arguments_are_checked():
    model = mlp()
    groups = prunable_groups(model, torch.randn(2, 3))

    def make(groups=groups, model=model, **options):
        return HESSO(groups, model, **{"lr": 0.1, "steps": 4} | options)

    other = mlp()
    mixed = [*groups[:2], GroupSpec("both[0]", [Entry(model[0].weight, 1, 0, 1)], 6)]
    for call, words in (
        (lambda: make(target=1.0), "target=1.0: must be a share"),
        (lambda: make(target=-0.1), "target=-0.1"),
        (lambda: make(target=math.nan), "target=nan"),
        (lambda: make(steps=1, periods=2), "steps=1: must be at least periods=2"),
        (lambda: make(periods=0), "periods=0: must be an int"),
        (lambda: make(start=-1), "start=-1"),
        (lambda: make(divisible=0), "divisible=0"),
        (lambda: make(variant="lion"), "variant='lion'"),
        (lambda: make(lr=-1), "lr=-1"),
        (lambda: make(momentum=1.0), "momentum=1.0"),
        (lambda: make(betas=(0.9, 1.0)), "betas=1.0"),
        (lambda: make(criteria={"size": 1.0}), "criteria has 'size'"),
        (lambda: make(criteria={}), "criteria is empty"),
        (lambda: make(groups=[]), "groups is empty"),
        (lambda: make(model=other), r"group 0\[0\] has a parameter that is not"),
        (lambda: GroupTable(mixed), "belongs to another group, of another number of channels"),
        (lambda: GroupTable([*groups, groups[0]]), "belongs to another group"),
        (lambda: cric(mlp(), start=0), "start=0"),
        (lambda: cric(mlp(), sampling_steps=0), "sampling_steps=0"),
        (lambda: cric(mlp(), hybrid_steps=0), "hybrid_steps=0"),
        (lambda: cric(mlp(), max_cycles=0), "max_cycles=0"),
        (lambda: cric(mlp(), tolerance=-1), "tolerance=-1"),
        (lambda: cric(mlp(), loss_term="mean"), "loss_term='mean'"),
        (lambda: prunable_groups(nn.Linear(3, 2), torch.randn(1, 3)), "no prunable groups"),
        (lambda: prunable_groups(model, torch.randn(1, 4)), "example does not pass through '0'"),
        (lambda: SelfAttention(6, 4), "width=6: must be a multiple"),
        (lambda: SelfAttention(6, 3, by="row"), "by='row'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_module_that_cannot_be_traced_is_named():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), Branches()), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"module '1.1' cannot be traced"):
        prunable_groups(model, torch.randn(2, 3))
    assert all(module.training for module in model.modules())


def test_steps_are_refused_before_anything_changes():
    model = mlp()
    optimizer = HESSO(prunable_groups(model, torch.randn(2, 3)), model, 0.1, steps=4)
    regression(model, optimizer, 2)
    began = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="loss=nan at step 3"):
        optimizer.step(torch.tensor(math.nan))
    model[0].weight.grad[0, 0] = math.inf
    with pytest.raises(ValueError, match="infinities or NaNs"):
        optimizer.step(torch.tensor(1.0))
    assert optimizer.steps_taken == 2
    doubting = cric(mlp())
    with pytest.raises(ValueError, match=r"step 1 has no loss: .* call step\(loss\)"):
        doubting.step()
    assert all(torch.equal(began[k], v) for k, v in model.state_dict().items())
    model.zero_grad()
    x = torch.randn(4, 3)

    def closure():
        loss = model(x).square().mean()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) > 0
    assert CRITERIA["cosine"] == 0.2
