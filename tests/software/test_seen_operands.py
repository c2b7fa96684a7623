"""Operands that offload keeps: the same bits, and nothing stale, whatever the program does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sat


def product(a, b):
    with sat.offload("golden"):
        return a @ b


def kept(report):
    return report.devices["golden"].bytes_kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"prune_right": "2:8"}], ids=str)
def test_an_unchanged_weight_is_sent_once(dtype, options):
    weight = torch.randn(48, 96).to(dtype)
    inputs = [torch.randn(3, 96).to(dtype) for _ in range(4)]
    wants = []
    for x in inputs:
        with sat.offload("golden", **options):
            wants.append(x @ weight.t())
    with sat.offload("golden", **options) as report:
        for x, want in zip(inputs, wants, strict=True):
            assert torch.equal(x @ weight.t(), want)
    size = 96 * 48 * 2 if not options else 24 * 48 * 3
    assert kept(report) == 2 * size  # noted, sent to stay, found twice


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.mul_(2),
        lambda w: w.data.mul_(2),  # past the version counter
        lambda w: w.numpy().__setitem__((0, 0), 7.0),
        lambda w: w.detach().neg_(),
    ],
)
def test_changes_are_seen_however_they_are_made(change):
    weight, x = torch.randn(96, 48), torch.randn(3, 96)
    with sat.offload("golden"):
        for _ in range(3):
            x @ weight
        change(weight)
        got = [x @ weight for _ in range(3)]
    want = product(x, weight)
    assert all(torch.equal(one, want) for one in got)


def test_memory_that_is_used_again_for_another_tensor():
    x = torch.randn(3, 96)
    memory = np.empty((96, 48), np.float32)
    with sat.offload("golden") as report:
        for seed in range(4):
            for _ in range(3):
                memory[:] = np.random.default_rng(seed).standard_normal(memory.shape)
                weight = torch.from_numpy(memory)  # a new tensor in the same place
                want = x.half().float() @ weight.half().float()
                assert torch.allclose(x @ weight, want, atol=1e-3)
    assert kept(report) > 0


def test_what_rounding_loses_is_counted_each_time():
    weight, x = torch.full((96, 48), 1e6), torch.ones(2, 96)
    with sat.offload("golden") as report:
        for _ in range(5):
            x @ weight
    assert report.lost.overflowed == 5 * weight.numel()


def test_old_operands_make_room(monkeypatch):
    from sat.offload.residents import SeenOperands

    monkeypatch.setattr(SeenOperands, "LARGEST", 3 * 96 * 48 * 4)
    weights, x = [torch.randn(96, 48) for _ in range(5)], torch.randn(2, 96)
    wants = [product(x, weight) for weight in weights]
    with sat.offload("golden"):
        for _ in range(4):
            for weight, want in zip(weights, wants, strict=True):
                assert torch.equal(x @ weight, want)


def test_a_step_of_training_keeps_nothing_stale():
    torch.manual_seed(0)
    model = torch.nn.Linear(96, 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(8, 96), torch.randn(8, 64)
    losses = []
    for whole in (True, False):
        torch.manual_seed(0)
        model.reset_parameters()
        outer = sat.offload("golden") if whole else None
        if outer is not None:
            outer.__enter__()
        for _ in range(4):
            inner = None if whole else sat.offload("golden")
            if inner is not None:
                inner.__enter__()
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            if inner is not None:
                inner.__exit__(None, None, None)
            optimizer.step()
            losses.append(loss.item())
        if outer is not None:
            outer.__exit__(None, None, None)
    assert losses[:4] == losses[4:]


@pytest.mark.xdist_group("4x4")
def test_a_kept_weight_stays_in_the_simulated_memory():
    weight, x = torch.randn(96, 48), torch.randn(3, 96)
    want = product(x, weight)
    with sat.offload("rtl", array="4x4") as report:
        for _ in range(3):
            assert torch.equal(x @ weight, want)
    assert report.devices["rtl"].bytes_kept == 96 * 48 * 2


def test_steps_of_a_layer_compare_its_weight_once_and_the_next_call_again(monkeypatch):
    from sat.offload import residents

    compared = []
    still = residents._is_still
    monkeypatch.setattr(residents, "_is_still", lambda *of: compared.append(1) or still(*of))
    lstm = torch.nn.LSTM(64, 64)
    x = torch.randn(12, 4, 64)
    with torch.no_grad(), sat.offload("golden") as report:
        first, _ = lstm(x)
        # Noted, kept, then compared once for the ten steps that are left.
        assert len(compared) == 1
        lstm.weight_hh_l0.data[0, 0] += 1  # past the version counter
        second, _ = lstm(x)
        assert len(compared) >= 2
    want = torch.nn.LSTM(64, 64)
    want.load_state_dict(lstm.state_dict())
    with torch.no_grad(), sat.offload("golden") as alone:
        assert torch.equal(want(x)[0], second)
    assert not torch.equal(first, second)
    assert alone.devices["golden"].products * 2 == report.devices["golden"].products
