"""The declared packages are the packages there are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_package_is_declared():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = setuptools["package-dir"]
    found = set()
    for package, folder in folders.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *inside]))
    assert found == set(setuptools["packages"])


def test_the_wheel_works_outside_the_checkout(tmp_path):
    """What it needs at run time, native sources included, is in it; nothing is taken from here."""
    copy = tmp_path / "source"
    kept = ("rtl", "sim", "dataflow", "software", "fpga")
    for folder in kept:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    make = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(copy)]
    subprocess.run(make, check=True)
    (wheel,) = tmp_path.glob("sat-*.whl")
    there = tmp_path / "there"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(there), str(wheel)], check=True)
    shutil.rmtree(copy)

    def sat(*arguments: str) -> dict:
        code = "import sat, sys; assert sat.__file__.startswith(sys.argv.pop(1)); import sat.cli; "
        done = subprocess.run(
            [sys.executable, "-c", code + "sys.exit(sat.cli.main())", str(there), *arguments],
            capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(there)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    product = ("--rows", "8", "--cols", "8", "--depth", "32", "--pattern", "2:8")
    simulated = sat("simulate", *product, "--array", "4x4", "--json")
    assert simulated["mismatches"] == 0 and simulated["cycles"] == simulated["predicted_cycles"]
    assert sat("run", "spon", "--device", "golden", "--quick", "--json")["passed"]
