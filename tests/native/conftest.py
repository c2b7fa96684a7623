"""A cache of its own for each test, a source to compile, and a count of compilations."""

import stat

import pytest

from sat.sim import build


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAT_CACHE", str(folder))
    return folder


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


@pytest.fixture
def compiler_log(tmp_path, monkeypatch):
    """Put a script in front of the compiler that writes down each library it is asked for."""
    log = tmp_path / "compilations"
    log.touch()
    script = tmp_path / "logging-g++"
    # It takes a while, so that processes that should wait for each other have to.
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) echo one >> "{log}"; sleep 0.5;; esac\n'
        f'exec {build.compiler()} "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    return lambda: len(log.read_text().splitlines())
