"""Schedules run on the RTL: scaled-down networks' training steps, golden's bits, their cycles."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from sat.cli import main
from sat.devices.rtl import RtlDevice
from sat.networks import zoo
from sat.networks.capture import capture
from sat.rtl.config import SatConfig
from sat.schedules.files import BadSchedule, save
from sat.schedules.machine import Machine
from sat.schedules.running import run_schedule
from sat.schedules.scheduler import make_schedule
from sat.sim.memory import MemoryTiming
from sat.sparsity.pattern import Pattern
from sat.training.models import build_model

EIGHT = Machine(SatConfig(), MemoryTiming())


def small(name: str):
    """Return a network of the paper with a few channels and pixels, and its input."""
    makers = {
        "resnet9": lambda: (zoo.resnet9(width=8), (2, 3, 16, 16)),
        "vit": lambda: (zoo.vit(width=16, depth=1, heads=2), (1, 3, 32, 32)),
        "vgg19": lambda: (zoo.vgg19(width=8), (1, 3, 32, 32)),
        "resnet18": lambda: (zoo.resnet18(width=8), (1, 3, 16, 16)),
        # At batch 1 its last normalisation would have one value a channel.
        "resnet50": lambda: (zoo.resnet50(width=8), (2, 3, 32, 32)),
    }
    with torch.device("meta"):
        model, shape = makers[name]()
        return model, torch.zeros(shape)


def schedule_of(name: str):
    model, x = small(name)
    return make_schedule(capture(model, x, name=name), EIGHT, Pattern(2, 8))


@pytest.mark.xdist_group("8x8")
@pytest.mark.parametrize("name", zoo.PAPER)
def test_a_training_step_is_as_scheduled(name):
    schedule = schedule_of(name)
    stages = {entry.stage for entry in schedule.entries}
    assert stages == {"ff", "bp", "wu", "update"}
    assert {str(entry.pattern) for entry in schedule.of("ff")} == {"dense", "2:8"}
    together = {tuple(e.stage for e in entries[:2]) for entries in schedule.programs}
    assert {("bp", "wu"), ("update", "update")} <= together
    compared = 0
    with RtlDevice(config=EIGHT.config, memory=EIGHT.timing) as device:
        for ran in run_schedule(schedule, device):
            assert ran.right, ran
            compared += ran.compared
    assert compared > 10_000


@pytest.mark.xdist_group("8x8")
def test_the_command_runs_a_file(tmp_path, capsys):
    model = torch.nn.Linear(24, 16)
    schedule = make_schedule(capture(model, torch.zeros(8, 24)), EIGHT, Pattern(2, 8))
    file = str(tmp_path / "s.json")
    save(schedule, file)
    assert main(["simulate", "--schedule", file, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["cycles"] == values["scheduled_cycles"] == schedule.cycles()
    assert values["bit_exact"] and values["compared"] == 8 * 16 + 16 * 24 * 3
    # A schedule that says something else than what the device does.
    entry = schedule.entries[0]
    wrong = replace(entry, cost=replace(entry.cost, cycles=entry.cycles + 1))
    save(replace(schedule, entries=(wrong, *schedule.entries[1:])), file)
    assert main(["simulate", "--schedule", file]) == 1
    assert f"{entry.cycles} cycles, scheduled {entry.cycles + 1}" in capsys.readouterr().out


def test_what_cannot_run_is_told(tmp_path, capsys):
    schedule = schedule_of("vit")
    other = RtlDevice(config=replace(SatConfig(), rows=4), memory=EIGHT.timing)
    with pytest.raises(BadSchedule, match=r"rows=4 \(schedule: 8\)"), other:
        next(run_schedule(schedule, other))
    file = tmp_path / "s.json"
    save(schedule, file)
    file.write_text(file.read_text()[:-9])
    for args, message in (
        (["--schedule", str(file)], "is broken JSON"),
        (["--schedule", str(tmp_path / "none.json")], "cannot be read"),
        (["--schedule", str(file), "--layer", "conv"], "a schedule says what runs"),
    ):
        assert main(["simulate", *args]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_a_device_from_a_file(tmp_path, capsys):
    file = tmp_path / "device.json"
    file.write_text(SatConfig(rows=4, cols=4).to_json())
    (tmp_path / "broken.json").write_text('{"rows": 4, "wheels": 4}')
    args = ["schedule", "vit", "--batch", "1", "--memory", "narrow", "--json", "--config"]
    assert main([*args, str(tmp_path / "broken.json")]) == 2
    assert "wheels" in capsys.readouterr().err
    assert main([*args, str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.xdist_group("8x8")
def test_a_training_takes_a_schedules_plans(tmp_path, capsys):
    """The trainer's own model, captured: each stage that runs is one of the schedule's."""
    network = capture(build_model("mlp", 10, 0), torch.zeros(16, 1, 8, 8), name="mlp")
    schedule = make_schedule(network, EIGHT, Pattern(2, 8))
    file = str(tmp_path / "s.json")
    save(schedule, file)
    args = ["train", "--model", "mlp", "--steps", "1", "--batch", "16", "--json"]
    assert main([*args, "--device", "rtl", "--schedule", file]) == 0
    values = json.loads(capsys.readouterr().out)
    assert len(schedule.entries) == 11  # the first layer has no BP; three are updates
    assert values["scheduled_stages"] == 8
    assert values["array"] == "8x8" and values["steps"] == 1
    # The bits are those of any other mapping.
    assert main([*args, "--device", "golden"]) == 0
    assert json.loads(capsys.readouterr().out)["losses"] == values["losses"]
    for more, message in (
        (["--schedule", file], "only --device rtl takes one"),
        (["--schedule", file, "--device", "rtl", "--array", "4x4"], "rows=4 (schedule: 8)"),
        (["--schedule", file, "--device", "rtl", "--ranks", "2"], "one rank takes it"),
        (["--schedule", file + "x", "--device", "rtl"], "cannot be read"),
    ):
        assert main([*args, *more]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    assert main([*args[:-2], "8", "--json", "--device", "rtl", "--schedule", file]) == 2
    assert "no stage of mlp" in capsys.readouterr().err
