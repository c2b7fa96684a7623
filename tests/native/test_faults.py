"""The build cache when things go wrong: interrupted, killed, damaged, without a place."""

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
import time

import pytest

from sat.sim import build, threads


def answer(path):
    return ctypes.CDLL(str(path)).answer()


def test_a_damaged_entry_is_built_anew(cache, source, compiler_log, monkeypatch):
    path = build.compile_library("answer", [source])
    whole = path.read_bytes()
    damages = [whole[: len(whole) // 2], b"", whole[:-1] + b"x", whole + b"\0"]
    for number, damage in enumerate(damages, 2):
        path.unlink()
        path.write_bytes(damage)
        monkeypatch.setattr(build, "_seen_intact", {})
        assert build.compile_library("answer", [source]) == path
        assert (answer(path), compiler_log()) == (42, number)
    path.with_name(path.name + ".sha256").unlink()
    monkeypatch.setattr(build, "_seen_intact", {})
    assert build.compile_library("answer", [source]) == path
    assert compiler_log() == len(damages) + 2


def test_damage_is_seen_by_a_process_that_knew_the_entry(cache, source, compiler_log):
    path = build.compile_library("answer", [source])
    path.write_bytes(path.read_bytes()[:1000])
    build.compile_library("answer", [source])
    assert (answer(path), compiler_log()) == (42, 2)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exec true", "it does not say that it is GCC or Clang"),
        ("exit 1", "compiler failed with status 1"),
        ("exec cat /dev/null", "it does not say that it is GCC or Clang"),
        ("kill -9 $$", "compiler failed with status -9"),
    ],
)
def test_what_is_no_compiler_is_named_in_one_line(
    cache, source, tmp_path, monkeypatch, script, reason
):
    fake = tmp_path / "compiler"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(build.BuildError) as caught:
        build.compile_library("answer", [source])
    said = str(caught.value)
    assert said.startswith(f"{fake} does not work as a C++ compiler ({reason}")
    assert "set CXX to one" in said and "\n" not in said


def test_a_compiler_that_makes_nothing_is_named(cache, source, tmp_path, monkeypatch):
    fake = tmp_path / "compiler"
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) exit 0;; esac\nexec {build.compiler()} "$@"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(build.BuildError, match="ended well but made nothing: set CXX"):
        build.compile_library("answer", [source])
    assert [path for path in cache.iterdir() if path.is_file()] == []


def ended(name):
    """Whether soon no process has a word in its command line: killed ones take a moment."""
    end = time.monotonic() + 10
    while running(name) and time.monotonic() < end:
        time.sleep(0.05)
    return not running(name)


def running(name):
    """Return how many processes have a word in their command line."""
    found = 0
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    found += os.fsencode(name) in file.read()
            except OSError:
                pass
    return found


@pytest.fixture
def slow_compiler(tmp_path, monkeypatch):
    """A compiler whose children outlive it unless they are ended with it."""
    script = tmp_path / "slow-g++"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *dM*|*--version*) '
        f'exec {build.compiler()} "$@";; esac\nsleep 61 "$0" & sleep 62 "$0"; wait\n'
    )
    script.write_text(script.read_text().replace('sleep 61 "$0"', f"sh -c 'sleep 61; : {script}'"))
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return script


PROGRAM = """
import sys
from pathlib import Path
from sat.sim import build
from sat.sim.threads import side_by_side
job = lambda name: build.compile_library(name, [Path(sys.argv[1])])
try:
    if sys.argv[2] == "here":
        job("answer")
    else:
        side_by_side([lambda: job("one"), lambda: job("two"), lambda: job("one")])
except KeyboardInterrupt:
    sys.exit(77)
"""


@pytest.mark.parametrize("where", ["here", "in threads"])
def test_ctrl_c_ends_compilers_and_leaves_a_good_cache(
    cache, source, slow_compiler, where, monkeypatch
):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, source, where])
    end = time.monotonic() + 30
    while not running(f": {slow_compiler}") and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 77
    assert ended(str(slow_compiler))
    assert list((cache / "building").iterdir()) == []
    monkeypatch.delenv("CXX")
    for name in ("answer", "one", "two"):
        assert answer(build.compile_library(name, [source])) == 42


def test_an_error_ends_the_compilers_beside_it(slow_compiler):
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        threads.side_by_side([lambda: build.run_tool([slow_compiler, "some.cpp"]), lambda: 1 / 0])
    assert time.monotonic() - began < 20
    assert ended(str(slow_compiler))


def test_a_compiler_that_outlived_its_build_does_no_harm(cache, source, slow_compiler, monkeypatch):
    """A killed process leaves its compiler at work in a folder that no other build uses."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, source, "here"])
    end = time.monotonic() + 30
    while not running(f": {slow_compiler}") and time.monotonic() < end:
        time.sleep(0.05)
    first = {path.name for path in (cache / "building").iterdir()}
    process.kill()
    process.wait()
    groups = [
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdecimal()
        and os.path.exists(f"/proc/{entry}/cmdline")
        and os.fsencode(slow_compiler) in open_read(f"/proc/{entry}/cmdline")
    ]
    assert groups
    try:
        used, genuine = [], build.run_tool
        monkeypatch.setattr(build, "run_tool", lambda words: used.append(words) or genuine(words))
        monkeypatch.setenv("CXX", "g++")
        assert answer(build.compile_library("answer", [source])) == 42
        places = {word for command in used for word in map(str, command) if "building" in word}
        assert places and not any(name in place for name in first for place in places)
    finally:
        for process_id in groups:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)


def open_read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


@pytest.mark.parametrize("home", ["no passwd", "bad ~user"])
def test_a_user_without_home_is_told_of_sat_cache(home, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "SAT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    if home == "no passwd":

        def nobody(*_):
            raise KeyError("uid not found")

        monkeypatch.setattr(pwd, "getpwuid", nobody)
    else:
        monkeypatch.setenv("SAT_CACHE", "~no-such-user-of-this-machine/cache")
    with pytest.raises(build.BuildError, match="no home folder .* set SAT_CACHE") as caught:
        build.cache_dir()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("obstacle", ["locks", "building", "entry"])
def test_a_cache_that_cannot_be_written_is_told_of_sat_cache(cache, source, obstacle):
    cache.mkdir()
    if obstacle == "entry":
        path = build.compile_library("answer", [source])
        path.unlink()
        path.mkdir()
        (path / "in the way").touch()
    else:
        (cache / obstacle).touch()  # a file where a folder must be
    with pytest.raises(build.BuildError, match="cannot be made or written .* set SAT_CACHE"):
        build.compile_library("answer", [source])


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder nobody can write to")
def test_a_read_only_place_is_told_of_sat_cache(source, monkeypatch):
    monkeypatch.setenv("SAT_CACHE", "/proc/self")
    with pytest.raises(build.BuildError, match="cannot be made or written .* set SAT_CACHE"):
        build.compile_library("answer", [source])


def test_a_fork_during_a_build_does_not_keep_the_lock(cache):
    cache.mkdir()
    with build._locked(cache / "locks" / "some"):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    began = time.monotonic()
    try:
        with build._locked(cache / "locks" / "some"):
            pass
        assert time.monotonic() - began < 10
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
