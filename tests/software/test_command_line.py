"""The command at its edges: encodings, places, sizes, signals, errors of ranks: one line each."""

import argparse
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import sat
from sat import cli
from sat.cli import main
from sat.commands import COMMANDS, common
from sat.errors import DeviceError
from sat.methods import METHODS, Method
from sat.training import distributed

TEMPLATE = Method("template", "Ridge – Größe", "Hoerl & Kennard 1970 «ridge»", "∥w∥² ≤ c", "fp32")


def one_line(capsys):
    """Return what was said on standard error but for what goes on: one line, no traceback."""
    said = re.sub(r"simulating an array of .*\n", "", capsys.readouterr().err)
    assert said.count("\n") == 1 and "Traceback" not in said, said
    return said


# -------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["methods"],
        ["methods", "--json"],
        ["devices"],
        ["devices", "--json"],
        ["--help"],
        *([name, "--help"] for name in COMMANDS),
        ["run", "no-such-methöd"],
        ["run", "template"],
        ["run", "template", "--json"],
        ["train", "--model", "mlp", "--steps", "1"],
    ],
    ids=" ".join,
)
def test_any_encoding_will_do(encoding, arguments, monkeypatch):
    monkeypatch.setitem(METHODS, "template", TEMPLATE)
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    code = main(arguments)
    written = {}
    for name, stream in streams.items():
        stream.flush()
        written[name] = stream.buffer.getvalue().decode(encoding)
    assert code == (2 if "no-such-methöd" in arguments else 0), written["stderr"]
    assert "Traceback" not in written["stderr"]
    assert written["stderr" if code else "stdout"].strip()


def test_a_closed_standard_output_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["devices"]) == 0


# ----------------------------------------------------------------------------------------- places


def options():
    """Yield (command, option, action) of every option of every command."""
    parser = cli._parser()
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, sub in subparsers.choices.items():
        for action in sub._actions:
            for option in action.option_strings[-1:]:
                yield name, option, action


def test_every_option_that_names_a_place_is_checked_when_it_is_read():
    found = 0
    for name, option, action in options():
        kind = getattr(action.type, "func", action.type)
        if str(action.metavar).startswith("FILE") or option in ("--figure", "--out", "--html"):
            reads = option in ("--schedule", "--config")
            assert kind is (common.input_file if reads else common.output_file), (name, option)
            found += 1
        elif action.metavar == "FOLDER":
            assert kind is common.output_folder, (name, option)
            found += 1
    assert found >= 4


@pytest.mark.parametrize(
    ("place", "reason"),
    [("no-such-file", "No such file"), (".", "Is a directory"), ("nul\0", "null")],
)
@pytest.mark.parametrize("command", [["simulate", "--schedule"], ["schedule", "m", "--config"]])
def test_a_file_that_cannot_be_read_is_refused(command, place, reason, capsys):
    assert main([*command, place]) == 2
    error = capsys.readouterr().err
    assert "cannot be read" in error and reason in error and "name a file" in error


BAD_FILES = [
    ("no-such-folder/file", "No such file or directory"),
    (".", "Is a directory"),
    ("", "Is a directory"),
    ("file/below", "Not a directory"),
    ("/dev/full", "No space left on device"),
    ("x" * 300, "File name too long"),
    ("nul\0", "null byte"),
]


@pytest.mark.parametrize(("place", "reason"), BAD_FILES)
def test_a_file_that_cannot_be_written_is_refused(place, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("as it was")
    with pytest.raises(argparse.ArgumentTypeError, match=reason):
        common.output_file(place)
    if place not in ("/dev/full", ".", "no-such-folder/file"):
        with pytest.raises(argparse.ArgumentTypeError):
            common.output_folder(place or "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert Path("file").read_text() == "as it was"


def test_a_file_that_can_be_written_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old").write_text("as it was")
    Path("link").symlink_to("old")
    for place in ("new", "old", "link", str(tmp_path / "new"), "/dev/null"):
        assert common.output_file(place) == place
    assert Path("old").read_text() == "as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "old"]
    assert common.output_file("made/for/new", make_folder=True) == "made/for/new"
    assert list(Path("made/for").iterdir()) == []
    assert common.output_folder("made/it") == "made/it" and list(Path("made/it").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "--waves"],
        ["simulate", "--layer", "conv", "--waves"],
        ["run", "s4d", "--trace"],
        ["run", "s4d", "--json", "--trace"],
        ["demo", "--figure"],
        ["run", "s4d", "--figures"],
    ],
    ids=" ".join,
)
def test_no_work_is_done_for_a_place_that_cannot_be_written(arguments, tmp_path, capsys):
    (tmp_path / "file").touch()
    began = time.process_time()
    assert main([*arguments, str(tmp_path / "file" / "below")]) == 2
    assert time.process_time() - began < 2
    assert re.search(r"error: argument --\w+: .*\((Not a dir|File ex)", one_line(capsys))


# ------------------------------------------------------------------------------------------ sizes


HUGE = "9" * 19


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "--rows", "1000000000000"],
        ["simulate", "--rows", HUGE],
        ["simulate", "--cols", HUGE, "--start"],
        ["simulate", "--depth", HUGE, "--pattern", "2:8", "--specials"],
        ["simulate", "--predict", "--rows", "1000000000000"],
        ["simulate", "--predict", "--rows", HUGE, "--cols", HUGE],
        ["simulate", "--rows", "3000000", "--cols", "3000000"],
        ["simulate", "--rows", "1" + 5000 * "0"],
        ["simulate", "--array", f"{HUGE}x8"],
        ["simulate", "--array", "1" + 5000 * "0" + "x8"],
        ["simulate", "--seed", HUGE],
        *(
            ["simulate", "--layer", layer, f"--{name}", HUGE]
            for layer in ("conv", "linear")
            for name in ("batch", "channels", "out-channels")
        ),
        *(
            ["simulate", "--layer", "conv", f"--{name}", HUGE]
            for name in ("size", "kernel", "stride", "padding", "dilation", "groups")
        ),
        ["simulate", "--layer", "linear", "--batch", "200000000", "--channels", "8"],
        ["simulate", "--layer", "conv", "--read-latency", HUGE],
        ["train", "--model", "mlp", "--batch", HUGE],
        ["train", "--model", "mlp", "--array", f"8x{HUGE}"],
        ["train", "--model", "mlp", "--shards", HUGE],
        ["train", "--model", "mlp", "--ranks", HUGE],
        ["train", "--model", "mlp", "--ranks", "1024", "--batch", "1024"],
        ["train", "--model", "mlp", "--device", f"golden*{HUGE}"],
        ["demo", "--batch", HUGE],
        ["demo", "--array", f"{HUGE}x{HUGE}"],
        ["run", "s4d", "--array", f"{HUGE}x1"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_sizes_that_memory_cannot_hold_are_one_line(arguments, capsys, monkeypatch):
    monkeypatch.setattr(common, "_free_memory", lambda: 64 << 30)
    assert main(arguments) == 2
    one_line(capsys)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 7.28 TiB for an array"),
        OverflowError("Python int too large to convert to C long"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes\nstack"),
        RuntimeError("Storage size calculation overflowed with sizes=[9]"),
    ],
    ids=repr,
)
def test_memory_that_runs_out_is_one_line(error, capsys, monkeypatch):
    def no_memory():
        raise error

    monkeypatch.setattr("sat.devices.available", no_memory)
    assert main(["devices"]) == 2
    assert "this machine cannot hold it" in one_line(capsys)
    monkeypatch.setattr("sat.devices.available", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["devices"])


def test_free_memory_is_a_plausible_number():
    assert 1 << 26 < common._free_memory() < 1 << 50
    with pytest.raises(ValueError, match=r"--rows: needs .* choose smaller sizes"):
        common.require_memory(1 << 60, "--rows")
    common.require_memory(1, "--rows")


# ---------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
@pytest.mark.parametrize("place", ["in the work", "in an import"])
def test_a_signal_ends_a_command_in_one_line(number, code, word, place, capsys, monkeypatch):
    def work():
        timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
        timer.start()
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            if place == "in an import":  # where Python says something else of it
                raise AttributeError("partially initialized module") from None
            raise

    before = signal.getsignal(number)
    monkeypatch.setattr("sat.devices.available", work)
    assert main(["devices"]) == code
    assert one_line(capsys) == f"sat devices: {word}\n"
    assert signal.getsignal(number) is before


def test_ctrl_c_in_the_library_is_the_commands_too(capsys, monkeypatch):
    def work():
        raise KeyboardInterrupt

    monkeypatch.setattr("sat.devices.available", work)
    assert main(["devices"]) == 130
    assert one_line(capsys) == "sat devices: interrupted\n"


def test_ctrl_c_ends_ranks(tmp_path):
    program = "import sys; from sat.cli import main; sys.exit(main())"
    command = ["train", "--model", "mlp", "--ranks", "2", "--epochs", "100000"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        process_group=0,
    ) as process:
        assert process.stderr is not None
        said = b""
        while b"step/s" not in said:
            part = process.stderr.read1(4096)
            assert part, said
            said += part
        os.kill(process.pid, signal.SIGINT)  # to the first process only, as `kill` does
        rest = process.stderr.read()  # until no rank holds it any more
        assert process.wait(30) == 130
    assert b"Traceback" not in said + rest and rest.endswith(b"sat train: interrupted\n")


# ------------------------------------------------------------------------------------------ ranks


def test_what_ranks_refuse_is_said_as_by_one_rank(capsys):
    said = []
    for more in ([], ["--ranks", "2"]):
        assert main(["train", "--model", "mlp", "--device", "golden,golden", *more]) == 2
        said.append(one_line(capsys))
    assert said[0] == said[1]
    assert "only golden and rtl devices run whole stages" in said[0]


def test_the_first_error_of_ranks_is_theirs(tmp_path):
    out = str(tmp_path / "result.pt")
    assert distributed._first_error(out) is None

    class Local(Exception):
        pass

    for second, (rank, error) in enumerate(
        [(1, ValueError("mine")), (0, RuntimeError("Connection closed by peer")), (2, Local("x"))]
    ):
        path = Path(f"{out}.{rank}")
        distributed._leave_error(path, error)
        os.utime(path, ns=(second, second))
    first = distributed._first_error(out)
    assert type(first) is ValueError and str(first) == "mine"
    other = pickle.loads(Path(f"{out}.2").read_bytes())
    assert type(other) is DeviceError and str(other) == "Local: x"


def test_a_rank_that_is_killed_is_an_error_of_the_device(monkeypatch, tmp_path, capsys):
    class Started:
        processes = ()

        def join(self):
            raise distributed.ProcessExitedException("terminated with signal SIGKILL", 0, 1, 0)

    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda *_, **__: Started())
    with pytest.raises(sat.DeviceError, match="a rank ended before its work was done: .*SIGKILL"):
        distributed.train_ranks(2, model="mlp", steps=1)
    assert main(["train", "--model", "mlp", "--ranks", "2", "--steps", "1"]) == 1
    one_line(capsys)
    assert np.isfinite(distributed.train_ranks(1, model="mlp", steps=1)[0].losses).all()
