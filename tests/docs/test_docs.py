"""Generated pages are up to date, links lead somewhere, Python examples run."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sat.rtl import isa

ROOT = Path(__file__).resolve().parent.parent.parent
FIGURES = ROOT / "docs" / "figures"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@pytest.fixture
def figures(monkeypatch):
    """The module that draws the figures."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("figures")


def test_generated_pages_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "generate_docs.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_figures_are_up_to_date(figures):
    for draw in (figures.device, figures.board, figures.uspe, figures.dataflows, figures.timeline):
        drawn = draw().text()
        assert (FIGURES / f"{draw.__name__}.svg").read_text() == drawn, "run `make figures`"


def test_the_figure_of_the_device_shows_all_that_programs_name(figures):
    """Every instruction but the sequencer's own, every buffer, every engine of `sat.rtl.device`."""
    words = " ".join(re.findall(r">([^<]+)</text>", (FIGURES / "device.svg").read_text())).lower()
    for opcode in set(isa.Opcode) - {isa.Opcode.END, isa.Opcode.FENCE}:
        assert re.search(rf"\b{opcode.name.lower()}\b", words), opcode
    for buffer in isa.Buffer:
        assert re.search(rf"\b{buffer.name.lower()}\b", words), buffer
    for source in {source.name.split("_")[0].lower() for source in isa.Source}:
        assert source in words
    source = (ROOT / "rtl" / "device.py").read_text()
    engines = re.findall(r"\b(\w+)Engine\(config\)", source)
    assert sorted(engines) == ["Compute", "Load", "Store", "Update"]
    for name in (*engines, "Sequencer", "fetch", "check", "semaphores", "WUVE", "SORE", "USPE"):
        assert name.lower() in words, name


def test_words_of_figures_fit_their_boxes(figures):
    drawing = figures.Drawing(10, 10, "")
    with pytest.raises(ValueError, match="'words' at size 13 does not fit 30 pixels"):
        drawing.box(0, 0, 30, 10, "words")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_examples_run(page, tmp_path):
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S)):
        file = tmp_path / f"example_{number}.py"
        file.write_text(code)
        done = subprocess.run(
            [sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, f"{page.name}, example {number}: {done.stderr}"
