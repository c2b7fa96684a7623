"""Training over ranks: the losses of one rank with the whole batch, as far as sums allow."""

from __future__ import annotations

import json

import numpy as np
import pytest
from torch import nn

from sat.cli import main
from sat.distributed import globalise_, train_ranks


def relative(one, two):
    one, two = np.array(one.losses), np.array(two.losses)
    return np.abs(one - two) / one


@pytest.mark.parametrize(
    "model, steps, close, within",
    [
        # Only WU's sums differ: nothing rounds otherwise for a while.
        ("mlp", 10, 10, 1e-6),
        # Normalisation hands differences of the last place on, and FP16 rounds some of them up.
        ("cnn", 8, 3, 1e-6),
    ],
)
def test_two_ranks_have_the_losses_of_one(model, steps, close, within):
    arguments = {"model": model, "scheme": "bdwp", "pattern": "2:8", "steps": steps, "seed": 0}
    one, one_state = train_ranks(1, **arguments)
    two, two_state = train_ranks(2, **arguments)
    apart = relative(one, two)
    assert len(apart) == steps
    assert apart[:close].max() <= within
    assert apart.max() <= 0.05
    assert one.losses[0] != one.losses[-1]
    for name, x in one_state.items():
        if x.is_floating_point():
            assert (x - two_state[name]).abs().max() <= 0.02 * max(1.0, float(x.abs().max()))


def test_command_trains_over_ranks(capsys):
    arguments = ["--model", "mlp", "--ranks", "2", "--steps", "3", "--json"]
    assert main(["train", *arguments]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["ranks"] == 2 and len(values["losses"]) == values["steps"] == 3


def test_bad_arguments_are_refused(capsys):
    with pytest.raises(ValueError, match="ranks=0"):
        train_ranks(0, model="mlp")
    with pytest.raises(ValueError, match="batch=32: must be a multiple of the 3 ranks"):
        train_ranks(3, model="mlp")
    assert main(["train", "--ranks", "3"]) == 2
    assert "multiple of the 3 ranks" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'0' is a BatchNorm1d"):
        globalise_(nn.Sequential(nn.BatchNorm1d(3)))
