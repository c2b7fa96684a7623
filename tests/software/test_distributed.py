"""Training over ranks: the bits of one rank with as many shards, within bounds of a whole batch."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import sat.training.distributed
from sat.cli import main
from sat.data import load_data
from sat.training.distributed import compare_ranks, train_ranks
from sat.training.models import build_model
from sat.training.parts import Parts
from sat.training.trainer import Trainer


def assert_same_bits(one, two):
    (result, state), (other, same) = one, two
    assert np.array_equal(result.losses, other.losses)
    assert result.accuracies == other.accuracies and len(result.accuracies) >= 1
    assert state.keys() == same.keys()
    assert all(torch.equal(x, same[name]) for name, x in state.items())


@pytest.mark.parametrize(
    "ranks, options",
    [
        (2, {"model": "cnn", "steps": 12}),
        # The order of three numbers matters, and neither 3 nor 24 is a power of two.
        (3, {"model": "cnn", "steps": 4, "batch": 24, "scheme": "srste"}),
    ],
)
def test_ranks_have_the_bits_of_shards(ranks, options):
    ranked = train_ranks(ranks, **options)
    assert len(ranked[0].losses) == options["steps"]
    assert ranked[0].losses[0] != ranked[0].losses[-1]
    assert_same_bits(ranked, train_ranks(1, shards=ranks, **options))


@pytest.mark.long
@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_whole_curves_are_equal_and_within_the_bounds(model, ranks):
    made = compare_ranks(ranks, model=model, epochs=12)
    assert made.bits_equal and made.passed, str(made)


def test_command_compares_ranks_of_the_perceptron(capsys):
    assert main(["train", "--model", "mlp", "--ranks", "2", "--steps", "45", "--compare"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["epoch", "2", "ranks"]
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "test"]
    assert "bits of ranks and shards equal: yes" in lines and lines[-1] == "passed"


# --- the comparison, ranks played by shards -------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    """A comparison of 45 steps of the perceptron, an epoch and a bit."""

    def play(ranks, device="golden", *, shards=1, **arguments):
        return train_ranks(1, device, shards=max(ranks, shards), **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sat.training.distributed, "train_ranks", play)
        return compare_ranks(2, model="mlp", steps=45)


def test_comparison_passes(made):
    values = json.loads(json.dumps(made.to_dict()))
    assert values["passed"] and values["bits_equal"] and values["steps"] == 45
    assert values["losses"]["ranks"] == values["losses"]["shards"] != values["losses"]["whole"]
    assert 0 < values["first_apart"] < 1e-6 and 0 < values["epochs_apart"] < 1e-4


@pytest.mark.parametrize(
    "step, factor, accuracy, apart",
    [
        (2, 1.002, 1.0, "first_apart"),
        (44, 1.5, 1.0, "epochs_apart"),
        (44, float("nan"), 1.0, "epochs_apart"),
        (44, 1.0, 0.9, "accuracies_apart"),
    ],
)
def test_comparison_fails_beyond_a_bound(made, step, factor, accuracy, apart):
    ranked = made.ranked
    losses = [x * (factor if i == step else 1) for i, x in enumerate(ranked.losses)]
    accuracies = [x * accuracy for x in ranked.accuracies]
    wrong = replace(made, ranked=replace(ranked, losses=losses, accuracies=accuracies))
    values = wrong.to_dict()
    assert values["bits_equal"] and not values["passed"] and str(wrong).endswith("FAILED")
    for name, bound in (
        ("first_apart", "first_bound"),
        ("epochs_apart", "epoch_bound"),
        ("accuracies_apart", "accuracy_bound"),
    ):
        within = values[name] is not None and values[name] <= values[bound]
        assert within == (name != apart)


@pytest.mark.parametrize("what", ["loss", "accuracy", "state"])
def test_command_fails_on_one_wrong_bit(capsys, monkeypatch, what):
    def play(ranks, device="golden", *, shards=1, **arguments):
        result, state = train_ranks(1, device, shards=max(ranks, shards), **arguments)
        if ranks > 1 and what == "loss":
            result.losses[-1] *= 1 + 2**-52
        elif ranks > 1 and what == "accuracy":
            result.accuracies[-1] += 1 / 450
        elif ranks > 1:
            state["fc3.bias"][0] *= 1 + 2**-23
        return result, state

    monkeypatch.setattr(sat.training.distributed, "train_ranks", play)
    arguments = ["train", "--model", "mlp", "--ranks", "2", "--steps", "2", "--compare"]
    assert main([*arguments, "--json"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert not values["passed"] and not values["bits_equal"]
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "bits of ranks and shards equal: NO" in lines and lines[-1] == "FAILED"


def test_command_reports_ranks(capsys, monkeypatch):
    def play(ranks, device, *, shards, **arguments):
        return train_ranks(1, device, **arguments)

    monkeypatch.setattr(sat.training.distributed, "train_ranks", play)
    arguments = ["--model", "mlp", "--ranks", "2", "--steps", "3", "--json"]
    assert main(["train", *arguments]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["ranks"] == 2 and len(values["losses"]) == values["steps"] == 3


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, scheme", [("mlp", "srste"), ("cnn", "bdwp"), ("cnn", "srste")])
def test_shards_have_nearly_the_gradients_of_the_whole_batch(model, scheme):
    data = load_data("digits")
    made = []
    for shards in (1, 4):
        trainer = Trainer(model, data, scheme=scheme, shards=shards)
        loss = trainer.step(data.train_x[:32], data.train_y[:32])
        grads = [p.grad for p in trainer.model.parameters()]
        made.append((loss, grads, dict(trainer.model.named_buffers())))
    (loss, grads, buffers), (other_loss, others, other_buffers) = made
    assert loss == pytest.approx(other_loss, rel=1e-5)
    for grad, other in zip(grads, others, strict=True):
        assert (grad - other).norm() <= 1e-3 * grad.norm()
    for name, buffer in buffers.items():
        assert torch.allclose(buffer.float(), other_buffers[name].float(), rtol=1e-5, atol=1e-6)


def test_the_model_is_its_own_again_after_a_step():
    model = build_model("cnn", 10, 0)
    parts = Parts(model, shards=2)
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    losses = parts.losses(x, y)
    assert losses.shape == (2,) and losses.requires_grad
    assert not any("forward" in vars(layer) for layer in model.modules())
    with pytest.raises(RuntimeError):
        parts.losses(torch.randn(4, 2, 8, 8), y)
    assert not any("forward" in vars(layer) for layer in model.modules())
    # Normalisation that stays as it is takes no sums.
    model.norm1.eval()
    before = model.norm1.running_mean.clone()
    parts.losses(x, y)
    assert torch.equal(model.norm1.running_mean, before)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.inner = nn.Linear(2, 2)


def test_bad_arguments_are_refused(capsys):
    with pytest.raises(ValueError, match="ranks=0"):
        train_ranks(0, model="mlp")
    with pytest.raises(ValueError, match="batch=32: must be a multiple of the 3 ranks"):
        train_ranks(3, model="mlp")
    with pytest.raises(ValueError, match="shards=2: must be 1 with 2 ranks; leave either out"):
        train_ranks(2, model="mlp", shards=2)
    with pytest.raises(ValueError, match="shards=2: ranks take one part each"):
        Parts(nn.Linear(2, 2), shards=2, distributed=True)
    with pytest.raises(ValueError, match="shards=0: must be an int of at least 1"):
        Parts(nn.Linear(2, 2), shards=0)
    with pytest.raises(ValueError, match="batch=3: must be a multiple of the 2 shards"):
        Parts(nn.Linear(2, 2), shards=2).share(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="'0' is a BatchNorm1d: over the parts of a batch only"):
        Parts(nn.Sequential(nn.BatchNorm1d(3)), shards=2)
    with pytest.raises(ValueError, match="'0' is a Scaled: its own parameters cannot"):
        Parts(nn.Sequential(Scaled()), shards=2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--ranks", "3"], "batch=32: must be a multiple of the 3 ranks"),
        (["--shards", "3"], "batch=32: must be a multiple of the 3 shards"),
        (["--ranks", "2", "--shards", "2"], "shards=2: must be 1 with 2 ranks"),
        (["--ranks", "2", "--model", "vgg"], "model 'vgg': there is no such model"),
        (["--compare"], "ranks=1: there is nothing to compare; give at least 2"),
        (["--ranks", "2", "--compare", "--shards", "2"], "--compare: has as many shards as ranks"),
    ],
)
def test_bad_usage_is_reported(capsys, arguments, message):
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err
