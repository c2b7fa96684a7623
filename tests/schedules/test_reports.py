"""Reports of a schedule: the page, the pictures, the timeline, the energy's count."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from sat.cli import main
from sat.networks.capture import capture
from sat.schedules import energy, pictures
from sat.schedules.machine import machine
from sat.schedules.page import page
from sat.schedules.report import Comparison
from sat.schedules.scheduler import make_schedule
from sat.schedules.trace import trace
from sat.sparsity.pattern import Pattern

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def both():
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1))
    network = capture(model, torch.zeros(2, 8, 6, 6), name="two <layers>")
    small = machine("4x4", "narrow", words=128)
    return Comparison(make_schedule(network, small, Pattern(2, 8)), make_schedule(network, small))


def test_the_page_needs_nothing_else(both):
    made = page(both.schedule, 2e8, both)
    assert len(re.findall(r'src="data:image/png;base64,iVBORw0KGgo', made)) == 3
    assert not re.search(r'(src|href)="(?!data:)', made) and "http" not in made
    assert "two &lt;layers&gt;" in made and "<layers>" not in made
    assert all(f"{entry.cycles:,}" in made for entry in both.schedule.entries)
    assert f"{both.speedup:.3f}x faster" in made and "estimate" in made and energy.SOURCE in made


def test_pictures_are_pictures(both):
    for made in (
        pictures.roofline(both.schedule),
        pictures.heat_map(both.schedule),
        pictures.time_bars(both.schedule),
        pictures.time_bars(both.schedule, both),
    ):
        assert made.startswith(PNG) and len(made) > 5000
    # The same schedule gives the same bytes.
    assert pictures.heat_map(both.schedule) == pictures.heat_map(both.schedule)


def test_pictures_of_large_networks_name_what_takes_longest(both, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_ROWS", 1)
    slowest = {"0": 0, "2": 0}
    for entry in both.schedule.entries:
        slowest[entry.operation] += entry.cycles
    assert pictures._operations(both.schedule) == [max(slowest, key=lambda name: slowest[name])]


def test_the_timeline_is_the_step(both):
    clock = 2e8
    events = trace(both.schedule, clock)["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert [e["args"]["cycles"] for e in slices] == [e.cycles for e in both.schedule.entries]
    at = 0.0
    for event in slices:
        assert event["ts"] == pytest.approx(at)
        at += event["dur"]
    assert at == pytest.approx(1e6 * both.schedule.cycles() / clock)
    json.dumps(events, allow_nan=False)


def test_energy_counts_actions(both):
    found = energy.estimate(both.dense)
    macs = 2 * 36 * (9 * 8 * 16 * 2 + 16 * 16 * 3)
    weights = 9 * 8 * 16 + 16 * 16
    assert found.actions["FP16 multiply"] == macs
    assert found.actions["FP32 multiply"] == 4 * weights
    assert found.actions["FP32 add"] == macs + 3 * weights
    assert found.actions["DRAM byte"] == both.dense.bytes_moved
    assert found.joules == pytest.approx(sum(found.picojoules.values()) * 1e-12)
    assert energy.estimate(both.schedule).joules < found.joules


def test_the_command_writes_reports(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_reported.py").write_text(
        "import torch\ndef small():\n    return torch.nn.Linear(16, 16), torch.zeros(8, 16)\n"
    )
    monkeypatch.chdir(tmp_path)
    device = ("--array", "4x4", "--memory", "narrow", "--words", "128")
    files = ("--html", "s.html", "--trace", "t.json")
    assert main(["schedule", "my_reported:small", *device, *files]) == 0
    assert (tmp_path / "s.html").read_text().startswith("<!DOCTYPE html>")
    assert len(json.loads((tmp_path / "t.json").read_text())["traceEvents"]) > 8
