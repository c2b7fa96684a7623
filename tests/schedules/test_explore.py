"""Exploration: the same file however often it was stopped, the front, the area's formula."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from sat.cli import main
from sat.fpga.board import BOARD_CONFIG
from sat.networks.sources import load
from sat.schedules.area import WHOLE, area
from sat.schedules.explore import (
    OBJECTIVES,
    Design,
    NoCluster,
    OtherExploration,
    Space,
    alike,
    evaluate,
    explore,
    front,
)
from sat.schedules.machine import machine
from sat.schedules.scheduler import make_schedule
from sat.sparsity.pattern import Pattern

NETWORK = """
import torch
def small():
    return torch.nn.Linear(16, 24), torch.zeros(8, 16)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explored")
    (folder / "my_explored.py").write_text(NETWORK)
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


SPACE = Space(
    source="my_explored:small",
    arrays=("2x2", "4x4"),
    memories=("narrow", "ddr4"),
    words=(64, 128),
    lanes=(2,),
    patterns=("dense", "2:8"),
    batches=(4, 8),
)


@pytest.fixture
def whole(here):
    path = here / "whole.jsonl"
    if not path.exists():
        explore(SPACE, path, processes=1)
    return path.read_bytes()


def test_a_line_a_design(whole, here):
    head, *lines = map(json.loads, whole.decode().splitlines())
    assert head["source"] == "my_explored:small" and "interpolation" in head["area"]
    assert len(lines) == len(SPACE.designs()) == 32
    row = lines[13]
    design = SPACE.designs()[13]
    device = machine(design.array, design.memory, words=design.words, lanes=design.lanes)
    network = load("my_explored:small", batch=design.batch)
    made = make_schedule(network, device, Pattern.parse(design.pattern))
    assert row["cycles"] == made.cycles()
    assert row["cycles_per_example"] == made.cycles() / design.batch
    assert row["lut4"] == area(device.config).lut4


def test_cut_anywhere_and_resumed_it_is_the_same_file(whole, here):
    path = here / "cut.jsonl"
    head = whole.index(b"\n")
    cuts = [0, 1, head, head + 1, *range(head + 2, len(whole), len(whole) // 9), len(whole)]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        explore(SPACE, path, processes=1)
        assert path.read_bytes() == whole, cut


def test_killed_and_resumed_it_is_the_same_file(whole, here):
    path = here / "killed.jsonl"
    lists = ["--arrays", "2x2,4x4", "--memories", "narrow,ddr4", "--words", "64,128"]
    lists += ["--lanes", "2", "--patterns", "dense,2:8", "--batches", "4,8", "--processes", "2"]
    command = [sys.executable, "-m", "sat", "explore", "my_explored:small", path.name, *lists]
    running = subprocess.Popen(
        command, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < 4:
        assert running.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert whole.startswith(path.read_bytes().rpartition(b"\n")[0])
    explore(SPACE, path, processes=1)
    assert path.read_bytes() == whole


def test_a_cluster_gives_the_same_file(whole, here, capsys):
    pytest.importorskip("ray", reason="the extra sat[ray] is not installed")
    path = here / "ray.jsonl"
    # A part is there already, as after a run that was stopped.
    path.write_bytes(whole[: len(whole) // 3])
    rows = explore(SPACE, path, ray="local")
    assert path.read_bytes() == whole and len(rows) == 32
    # Nothing is left to ask for: no cluster is needed.
    assert explore(SPACE, path, ray="127.0.0.1:1") == rows
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NoCluster, match="ray='127.0.0.1:1': no cluster there"):
        explore(SPACE, path, ray="127.0.0.1:1")


def test_without_ray_it_is_told(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NoCluster, match=r"ray='auto': needs Ray .*sat\[ray\]"):
        explore(SPACE, here / "none.jsonl", ray="auto")


def test_designs_that_share_costs_are_evaluated_together():
    groups = alike(SPACE.designs())
    assert [design for group in groups for design in group] == SPACE.designs()
    assert len(groups) == 8 and {len(group) for group in groups} == {4}


def test_the_front(whole):
    rows = [json.loads(line) for line in whole.decode().splitlines()[1:]]
    chosen = front(rows)
    assert 0 < len(chosen) < len(rows)
    for row in rows:
        alike = [o for o in rows if (o["batch"], o["pattern"]) == (row["batch"], row["pattern"])]
        better = [
            other
            for other in alike
            if all(other[k] <= row[k] for k in OBJECTIVES)
            and any(other[k] < row[k] for k in OBJECTIVES)
        ]
        assert (row in chosen) == (not better)


def test_what_no_device_can_be_is_told():
    design = Design(
        array="64x64", memory="ddr4x4", words=16, lanes=2, pattern="2:8", batch=8
    )  # fmt: skip
    row = evaluate("resnet9", design)
    assert "a_words=16" in row["refused"] and row["array"] == "64x64"
    assert front([row]) == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("no exploration\n", "holds another exploration"),
        ("no exploration", "is no exploration"),
        (json.dumps(replace(SPACE, words=(64,)).head()) + "\n", "holds another exploration"),
        (json.dumps(SPACE.head()) + "\n{]\n", "is broken"),
        (json.dumps(SPACE.head()) + '\n{"array": "9x9"}\n', "is broken"),
        (
            json.dumps(SPACE.head()) + "\n" + json.dumps(asdict(SPACE.designs()[1])) + "\n",
            "its designs are not this exploration's",
        ),
    ],
)
def test_another_file_is_left_alone(text, message, here):
    path = here / "other.jsonl"
    path.write_text(text)
    with pytest.raises(OtherExploration, match=message):
        explore(SPACE, path, processes=1)
    assert path.read_text() == text


def test_area_is_what_was_measured():
    found = area(BOARD_CONFIG)
    assert (found.lut4, found.dsp) == (WHOLE.lut4, WHOLE.dsp)
    # 201 and 171 block RAMs with a memory of 128 (docs/fpga.md, docs/bitstreams): the link's too.
    assert found.ram == 201 - 128
    assert area(BOARD_CONFIG.with_array("2x2")).ram == 171 - 128
    larger = area(replace(BOARD_CONFIG, rows=8, update_lanes=2))
    assert larger.lut4 > found.lut4 and larger.dsp > found.dsp and larger.ram > found.ram


def test_the_command(whole, here, capsys):
    lists = ["--arrays", "2x2,4x4", "--memories", "narrow,ddr4", "--words", "64,128"]
    lists += ["--lanes", "2", "--patterns", "dense,2:8", "--batches", "4,8", "--processes", "1"]
    args = ["explore", "my_explored:small", "whole.jsonl", *lists, "--picture", "front.png"]
    assert main([*args, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["designs"] == 32 and "interpolation" in values["area"]
    assert (here / "front.png").read_bytes().startswith(b"\x89PNG")
    assert main(args) == 0
    assert "32 designs, 0 refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, message",
    [
        (["my_explored:none", "n.jsonl"], "cannot be imported"),
        (["resnet81", "n.jsonl"], "network 'resnet81': not known"),
        (["resnet9", "n.jsonl", "--arrays", "8x8,9by9"], "array='9by9'"),
        (["resnet9", "n.jsonl", "--memories", "tape"], "memory 'tape'"),
        (["resnet9", "n.jsonl", "--patterns", "2:3"], "pattern 2:3"),
        (["resnet9", "n.jsonl", "--words", "100"], "a_words=100"),
        (["resnet9", "n.jsonl", "--lanes", "0"], "'0': must be an integer"),
        (["resnet9", "no/where.jsonl"], "cannot be written"),
        (["my_explored:small", "my_explored.py"], "holds another exploration"),
    ],
)
def test_the_command_says_what_is_wrong_in_a_line(args, message, here, capsys):
    assert main(["explore", *args]) == 2
    said = capsys.readouterr().err
    assert message in said and said.strip().count("\n") == 0, said
    assert not (here / "n.jsonl").exists()
