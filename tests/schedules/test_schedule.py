"""Schedules: costs are the model's, bounds are below them, files and commands say what is wrong."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sat.cli import main
from sat.dataflow import cost
from sat.dataflow.compile.step import STAGES, Sgd, compile_step, compile_updates
from sat.dataflow.cost import product_cost, stage_cost
from sat.dataflow.cycles import predict
from sat.dataflow.products import Product
from sat.dataflow.search import best_mapping
from sat.devices.stages import random_tensors
from sat.networks.capture import capture
from sat.networks.zoo import Attention
from sat.schedules.ablation import ablation
from sat.schedules.files import (
    VERSION,
    BadSchedule,
    check_device,
    from_dict,
    load_schedule,
    save,
    to_dict,
)
from sat.schedules.machine import machine
from sat.schedules.report import Comparison, dense_layers, notes, table
from sat.schedules.roofline import layer_bounds, product_bounds
from sat.schedules.scheduler import laid_out, make_schedule
from sat.sim.golden import layer as golden
from sat.sim.golden.update import Rates
from sat.sim.layer import Layer
from sat.sparsity.pattern import DENSE, Pattern

SMALL = machine("4x4", "narrow", words=128)
SPARSE = Pattern(2, 8)


class Net(nn.Module):
    """A first layer of 3 channels, one layer twice, attention, a classifier."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.again = nn.Linear(16, 16)
        self.attention = Attention(16, 2)
        self.last = nn.Linear(16, 10)

    def forward(self, x):
        x = self.first(x).flatten(2).transpose(1, 2)
        x = self.again(torch.relu(self.again(x)))
        return self.last(self.attention(x).mean(1))


@pytest.fixture(scope="module")
def schedule():
    return make_schedule(capture(Net(), torch.zeros(2, 3, 4, 4), name="net"), SMALL, SPARSE)


def test_a_schedule_is_the_sum_of_what_the_model_says(schedule):
    config, timing = SMALL.config, SMALL.timing
    for entries in schedule.programs:
        first, names = entries[0], tuple(entry.stage for entry in entries)
        cycles = sum(entry.cycles for entry in entries)
        if first.layer is None:
            assert cycles == sum(best_mapping(p, config, timing)[1] for p in first.products)
            continue
        if names[0] == "update":
            step = compile_updates([entry.layer for entry in entries], config, timing)[0]
        else:
            plans = {entry.stage: entry.plan for entry in entries}
            step = compile_step(first.layer, config, timing, names, plans=plans)
        found = predict(step.program, config, timing, step.address)
        assert cycles == found.cycles
        read = sum(entry.cost.bytes_read for entry in entries)
        assert read == found.beats_read * config.axi.beat_bytes
    assert schedule.cycles() == sum(schedule.cycles(stage) for stage in STAGES)
    assert schedule.bound <= schedule.roofline <= schedule.cycles()


def test_what_is_one_program(schedule):
    """BP and WU of a layer, all updates: where the host does nothing between, and it is faster."""
    network = capture(Net(), torch.zeros(2, 3, 4, 4), name="net")
    alone = make_schedule(network, SMALL, SPARSE, prefetch=False)
    assert not any(entry.joined for entry in alone.entries)
    assert len(alone.programs) == len(alone.entries) == len(schedule.entries)
    assert [e.plan for e in alone.entries] == [e.plan for e in schedule.entries]
    each = iter(alone.entries)
    for entries in schedule.programs:
        parts = [next(each) for _ in entries]
        cycles = sum(entry.cycles for entry in entries)
        if len(entries) == 1:
            assert cycles == parts[0].cycles
            continue
        assert cycles < sum(entry.cycles for entry in parts)
        names = [entry.stage for entry in entries]
        assert names in (["bp", "wu"], ["update"] * 5)
        assert names[0] == "update" or len({entry.operation for entry in entries}) == 1
    joined = [entry.operation for entry in schedule.of("wu") if entry.joined]
    assert "last" in joined and "first" not in joined  # it has no BP
    shown = table(schedule)
    assert shown.count("+ WU") == len(joined) and shown.count("+ update") == 4
    assert f"{len(schedule.entries)} stages, {len(schedule.programs)} programs" in "\n".join(
        notes(schedule, 2e8)
    )
    assert "+: in one" not in "\n".join(notes(alone, 2e8))


def test_which_layers_are_sparse_and_what_is_updated(schedule):
    patterns = {(entry.operation, entry.stage): str(entry.pattern) for entry in schedule.entries}
    assert patterns["again", "ff"] == patterns["again#2", "bp"] == "2:8"
    assert patterns["again", "wu"] == patterns["first", "ff"] == patterns["last", "ff"] == "dense"
    assert ("first", "bp") not in patterns  # the picture needs no gradient
    dense = dict(dense_layers(schedule))
    assert dense["first"].startswith("in_channels 3 is no multiple of 8")
    assert dense["last"] == "out_channels 10 is no multiple of 8"
    assert "nothing to prune" in dense["attention"]
    # The shared weight is updated once, the products of attention not at all.
    updated = [entry.operation for entry in schedule.of("update")]
    assert updated == ["first", "again", "attention.qkv", "attention.out", "last"]
    sent = {entry.operation for entry in schedule.entries if entry.products}
    assert sent == {"attention", "attention#2"}


def test_the_dense_twin_and_the_report(schedule):
    network = capture(Net(), torch.zeros(2, 3, 4, 4), name="net")
    dense = make_schedule(network, SMALL)
    both = Comparison(schedule, dense)
    assert all(entry.pattern.dense for entry in dense.entries)
    assert dense.macs() == network.macs()
    assert both.speedup == dense.cycles() / schedule.cycles() > 1
    assert both.arithmetic == network.macs() / schedule.macs()
    shown = table(schedule)
    assert shown.count("\n") == len(schedule.entries)
    assert all(f"{entry.cycles:,}" in shown for entry in schedule.entries)
    said = "\n".join(notes(schedule, 2e8, both))
    assert f"{schedule.cycles():,} cycles" in said and f"{both.speedup:.3f}x" in said
    assert "relu 512" in said and "not on the array" in said


def test_equal_stages_are_costed_once(schedule, monkeypatch):
    def compiled(*args, **options):
        raise AssertionError("every program has been costed")

    for name in ("compile_step", "compile_updates", "fastest"):
        monkeypatch.setattr(cost, name, compiled)
    network = capture(Net(), torch.zeros(2, 3, 4, 4), name="net")
    assert make_schedule(network, SMALL, SPARSE) == schedule


def test_the_host_lays_out_a_first_layer_where_that_is_faster(schedule):
    network = capture(Net(), torch.zeros(2, 3, 4, 4), name="net")
    gathered = make_schedule(network, SMALL, SPARSE, host_patches=False)
    first = {entry.stage: entry for entry in gathered.entries if entry.operation == "first"}
    laid = {entry.stage: entry for entry in schedule.entries if entry.operation == "first"}
    assert first["ff"].layer.kernel == (3, 3) and laid["ff"].layer.in_channels == 27
    assert "the host lays out its patches" in laid["ff"].reason
    assert laid["ff"].macs == first["ff"].macs
    assert sum(laid[s].cycles for s in ("ff", "wu")) < sum(first[s].cycles for s in ("ff", "wu"))
    # No other layer is taken so: their inputs are made on the device.
    same = [e for e in schedule.entries if e.operation != "first"]
    assert same == [e for e in gathered.entries if e.operation != "first"]


@pytest.mark.parametrize("stride, padding", [((1, 1), (1, 1)), ((2, 1), (0, 2))])
def test_laid_out_patches_give_the_same_bits(stride, padding):
    layer = Layer(
        batch=2, lines=6, pixels=5, in_channels=3, out_channels=8, kernel=(3, 2), stride=stride,
        padding=padding, bias=True, relu=True,
    )  # fmt: skip
    tensors = random_tensors(layer, 0)
    x = np.pad(tensors["x"], ((0, 0), *((p, p) for p in padding), (0, 0)))
    lines, pixels = layer.out_size
    patches = np.concatenate(
        [
            x[:, ky : ky + stride[0] * lines : stride[0], kx : kx + stride[1] * pixels : stride[1]]
            [:, :lines, :pixels]
            for ky in range(3) for kx in range(2)
        ], axis=-1,
    )  # fmt: skip
    whole = laid_out(layer)
    assert whole.dense_macs == layer.dense_macs and whole.out_size == layer.out_size
    rates = Rates(**Sgd(momentum=0.9).fields())
    shared = {name: tensors[name] for name in ("dy", "bias")}
    want = golden.step(
        layer, rates, x=tensors["x"], w=tensors["w"], v=tensors["v"],
        in_mask=tensors["in_mask"], **shared,
    )  # fmt: skip
    w, v = (tensors[name].reshape(8, 1, 1, 18) for name in ("w", "v"))
    mask = np.ones(patches.shape, bool)
    got = golden.step(whole, rates, x=patches, w=w, v=v, in_mask=mask, **shared)
    for name in ("y", "g", "w", "v"):
        want_bits = getattr(want, name).ravel().view(np.uint8)
        assert np.array_equal(getattr(got, name).ravel().view(np.uint8), want_bits), name


def test_bounds_by_hand():
    layer = Layer(
        batch=2, lines=8, pixels=8, in_channels=16, out_channels=32, stride=(2, 2), ff=(2, 8),
        bp=(2, 8), bias=True,
    )  # fmt: skip
    ff = layer_bounds(layer, "ff", SMALL)
    # One of four pixels meets the tap; 4 of 16 values and indices of each of 32 rows; the bias.
    assert ff.read == (2 * 16 * 32 + 32 * (8 + 2) + 128) // 16
    assert ff.write == 2 * 16 * 2 * 32 // 16
    assert ff.compute == 32 * 16 * 32 // 4 // 16
    assert layer_bounds(layer, "bp", SMALL).write == 2 * 64 * 2 * 16 // 16
    assert layer_bounds(layer, "wu", SMALL).write == 4 * 16 * 32 // 16
    assert layer_bounds(layer, "update", SMALL).read == 3 * 4 * 16 * 32 // 16
    product = Product(8, 16, 32, 2, 8, count=3)
    bounds = product_bounds(product, SMALL)
    assert bounds.compute == 3 * 8 * 16 * 8 // 16 and bounds.write == 3 * 4 * 8 * 16 // 16
    assert bounds.read == 3 * (2 * 8 * 32 + 16 * (16 + 4)) // 16


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_no_stage_is_faster_than_its_roofline(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    kernel, sparse = draw(1, 2, 3), draw(True, False)
    channels = (8, 16, 24) if sparse else (1, 3, 8, 10, 16)
    pattern = draw((2, 8), (1, 4), (2, 4)) if sparse else (1, 1)
    layer = Layer(
        batch=draw(1, 2, 5),
        lines=draw(3, 6),
        pixels=draw(3, 7),
        in_channels=draw(*channels),
        out_channels=draw(*channels),
        kernel=(kernel, kernel),
        stride=draw((1, 1), (2, 2), (1, 3)),
        padding=draw((0, 0), (1, 1)),
        ff=pattern,
        bp=pattern,
        bias=draw(True, False),
        relu=draw(True, False),
        masked=draw(True, False),
    )
    for stage in STAGES:
        found = stage_cost(stage, layer, SMALL.config, SMALL.timing)
        assert layer_bounds(layer, stage, SMALL).cycles <= found.cycles
    product = Product(draw(1, 9), draw(3, 8), draw(8, 20), *pattern, count=draw(1, 3))
    found = product_cost(product, SMALL.config, SMALL.timing)
    assert product_bounds(product, SMALL).cycles <= found.cycles


def test_a_pattern_needs_its_device():
    with pytest.raises(ValueError, match="pattern 2:16: this device has max_m=8"):
        make_schedule(capture(Net(), torch.zeros(2, 3, 4, 4)), SMALL, Pattern(2, 16))
    with pytest.raises(ValueError, match="memory 'hbm': must be one of narrow, ddr4, ddr4x4"):
        machine("4x4", "hbm")


def test_ablation_takes_one_idea_away_at_a_time(schedule):
    network = capture(Net(), torch.zeros(2, 3, 4, 4), name="net")
    found = {loss.idea: loss for loss in ablation(schedule, network)}
    only = make_schedule(network, SMALL, SPARSE, dataflow="os")
    assert found["output stationary only"].cycles == only.cycles()
    assert {entry.dataflow for entry in only.entries} == {"os", "-"}
    stationary = make_schedule(network, SMALL, SPARSE, dataflow="ws")
    assert found["weight stationary only"].cycles == stationary.cycles()
    assert {e.dataflow for e in stationary.of("ff")} == {"ws"}
    assert all(loss.cycles >= schedule.cycles() for loss in found.values())
    alone = make_schedule(network, SMALL, SPARSE, prefetch=False)
    assert found["no prefetch across stages"].cycles == alone.cycles() > schedule.cycles()
    # The array's own cycles, times the stages of its adder, wherever that is more.
    alone = sum(max(e.cycles, 4 * e.cost.compute_cycles) for e in schedule.entries)
    assert found["no interleave"].cycles == alone and not found["no interleave"].exact


# ------------------------------------------------------------------------------------------ files


def test_a_file_gives_the_schedule_back(schedule, tmp_path):
    save(schedule, tmp_path / "s.json")
    assert load_schedule(tmp_path / "s.json") == schedule
    check_device(schedule, SMALL.config, SMALL.timing)


def test_wu_may_prune_on_a_device_that_does(tmp_path):
    """A step with all three products sparse: its figures, its file, its command, its refusals."""
    device = machine("8x8", "narrow", words=128, prune_gathers=True)
    network = capture(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)),
                      torch.zeros(256, 64))  # fmt: skip
    dense, bdwp = make_schedule(network, device), make_schedule(network, device, SPARSE)
    both = make_schedule(network, device, SPARSE, wu=Pattern(2, 4))
    assert [e.pattern for e in both.of("wu")] == [Pattern(2, 4)] * 2
    assert [e.pattern for e in both.of("ff")] == [SPARSE] * 2
    assert both.macs("wu") * 2 == bdwp.macs("wu") == dense.macs("wu")
    assert both.cycles("ff") == bdwp.cycles("ff")
    assert both.cycles("wu") < 0.8 * bdwp.cycles("wu")
    assert both.sparsity == "2:8, WU 2:4" and "2:8, WU 2:4, on" in notes(both, 2e8)[0]
    apart = make_schedule(network, device, SPARSE, wu=Pattern(2, 4), prefetch=False)
    for entry in apart.of("wu"):
        step = compile_step(entry.layer, device.config, device.timing, ("wu",))
        found = predict(step.program, device.config, device.timing, step.address)
        assert found.cycles == entry.cycles
    save(both, tmp_path / "s.json")
    assert load_schedule(tmp_path / "s.json") == both
    with pytest.raises(ValueError, match="wu=2:4: this device has prune_gathers=False; build it"):
        make_schedule(network, SMALL, SPARSE, wu=Pattern(2, 4))
    with pytest.raises(ValueError, match="pattern 2:16: this device has max_m=8"):
        make_schedule(network, device, SPARSE, wu=Pattern(2, 16))


def test_the_command_prunes_wu(capsys):
    command = ["schedule", "mlp", "--array", "8x8", "--memory", "narrow", "--json", "--wu"]
    from sat.networks.zoo import NETWORKS

    command[1] = next(iter(NETWORKS))
    assert main([*command, "2:8", "--batch", "1", "--compare", "dense"]) == 0
    sparse = json.loads(capsys.readouterr().out)
    assert sparse["wu"] == "2:8" and sparse["speedup"] > 2
    assert main([*command, "2:7", "--batch", "1"]) != 0
    assert "pattern 2:7" in capsys.readouterr().err


def spoil(raw, path, value):
    made = copy.deepcopy(raw)
    at = made
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return made


@pytest.mark.parametrize(
    "path, value, message",
    [
        (["format"], "other", "is no schedule"),
        (["version"], VERSION - 1, f"has version {VERSION - 1}, older than {VERSION}"),
        (["version"], "2", "has version '2', other than"),
        (["cycles"], 5, "contradicts itself"),
        (["stages"], None, "'stages' is missing"),
        (["pattern"], "8:2", "pattern 8:2"),
        (["wu"], "8:2", "pattern 8:2"),
        (["device", "rows"], 65, "rows=65"),
        (["device", "wheels"], 4, "wheels"),
        (["memory", "read_latency"], 0, "read_latency=0"),
        (["stages", 0, "stage"], "fb", "stage 'fb'"),
        (["stages", 0, "layer", "batch"], 0, "batch=0"),
        (["stages", 0, "cost", "cycles"], "many", "'many': must be an integer of at least 0"),
        (["stages", 0, "cost", "cycles"], 0, "0: must be an integer of at least 1"),
        (["stages", 0, "bounds", "read"], -1, "-1: must be an integer"),
        (["stages", 0, "products"], 7, "not iterable"),
        (["stages", 0, "joined"], None, "'joined' is missing"),
        (["stages", 0, "joined"], 1, "1: must be true or false"),
        (["stages", 0, "joined"], True, "first ff: is joined to what is no stage of a layer"),
        (["stages", 1, "joined"], True, "again ff: is joined to first ff; WU may be"),
        (["stages", 0, "plan", "mappings"], [{"kind": "spiral"}], "is no plan of a stage"),
    ],
)
def test_a_broken_file_is_told(schedule, path, value, message):
    with pytest.raises(BadSchedule, match=message) as caught:
        from_dict(spoil(to_dict(schedule), path, value), "s.json")
    assert "'s.json'" in str(caught.value) and "sat schedule MODEL --output" in str(caught.value)


def test_a_schedule_for_another_device_is_told(schedule):
    other = machine("8x8", "narrow", words=128)
    with pytest.raises(BadSchedule, match=r"rows=8 \(schedule: 4\)"):
        check_device(schedule, other.config, other.timing)
    slower = replace(SMALL.timing, read_latency=41)
    with pytest.raises(BadSchedule, match="read_latency=41"):
        check_device(schedule, SMALL.config, slower)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b'{"format": "sat schedule"}'])
def test_what_is_no_schedule_is_told(content, tmp_path):
    file = tmp_path / "s.json"
    file.write_bytes(content)
    with pytest.raises(BadSchedule, match=r"s\.json"):
        load_schedule(file)
    with pytest.raises(BadSchedule, match="cannot be read"):
        load_schedule(tmp_path / "none.json")


# ---------------------------------------------------------------------------------------- command

UNTRACEABLE = """
import torch
class Looks(torch.nn.Module):
    def forward(self, x):
        return x @ x.T if x.sum().item() > 0 else x
def looks():
    return Looks(), torch.zeros(4, 4)
def small():
    return torch.nn.Linear(64, 64), torch.zeros(32, 64)
"""
DEVICE = ("--array", "4x4", "--memory", "narrow", "--words", "128")


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(UNTRACEABLE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command(here, capsys):
    args = ["schedule", "my_networks:small", *DEVICE, "--compare", "dense", "--output", "s.json"]
    assert main([*args, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    found = load_schedule("s.json")
    assert values["cycles"] == found.cycles() == sum(row["cycles"] for row in values["stages"])
    assert values["speedup"] == values["dense_cycles"] / values["cycles"] > 1
    assert found.machine == SMALL and found.pattern == SPARSE and found.batch == 32
    assert main(args) == 0
    out = capsys.readouterr().out
    assert f"{found.cycles():,} cycles a step" in out and "x faster" in out
    assert main(["schedule", "--list"]) == 0
    assert "resnet50" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, message",
    [
        (["resnet81"], "network 'resnet81': not known"),
        ([], "no MODEL"),
        (["my_networks:looks"], "its forward pass failed"),
        (["my_networks:none"], "cannot be imported"),
        (["resnet9", "--pattern", "9:8"], "pattern 9:8"),
        (["resnet9", "--array", "4by4"], "array='4by4'"),
        (["resnet9", "--memory", "tape"], "memory 'tape'"),
        (["resnet9", "--words", "100"], "a_words=100"),
        (["resnet9", "--batch", "0"], "'0': must be an integer"),
        (["timm:resnet18", "--shape", "3x"], "'3x': must be sizes"),
        (["resnet9", "--output", "no/where.json"], "cannot be written"),
    ],
)
def test_the_command_says_what_is_wrong_in_a_line(args, message, here, capsys):
    assert main(["schedule", *args]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_dense_is_a_pattern():
    layer = nn.Linear(16, 16)
    made = make_schedule(capture(layer, torch.zeros(8, 16)), SMALL, DENSE)
    assert [str(entry.pattern) for entry in made.entries] == ["dense"] * 3
    assert not dense_layers(made)
