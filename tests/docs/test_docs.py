"""Generated pages are up to date, tutorials print what they say, Python examples run."""

from __future__ import annotations

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from sat.rtl import isa

ROOT = Path(__file__).resolve().parent.parent.parent
FIGURES = ROOT / "docs" / "figures"
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
REFERENCE = [page for page in PAGES if page not in TUTORIALS]


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


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_print_what_they_say(page):
    tool = str(ROOT / "tools" / "tutorials.py")
    done = subprocess.run(
        [sys.executable, tool, "--check", str(page)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_tutorial_that_prints_something_else_is_found(tmp_path):
    page = tmp_path / "page.md"
    text = (
        "```python\nx = 2\nprint(x * x)\n```\n\n```text\n5\n```\n\n```console\n$ echo a\nb\n```\n"
    )
    page.write_text(text)
    run = [sys.executable, str(ROOT / "tools" / "tutorials.py")]
    done = subprocess.run([*run, "--check", str(page)], capture_output=True, text=True)
    assert done.returncode == 1 and "-5\n+4\n" in done.stdout and "-b\n+a\n" in done.stdout
    assert page.read_text() == text
    assert subprocess.run([*run, str(page)]).returncode == 0
    assert page.read_text() == text.replace("5", "4").replace("\nb\n", "\na\n")
    page.write_text("```console\n$ exit 3\n```\n")
    done = subprocess.run([*run, str(page)], capture_output=True, text=True)
    assert done.returncode == 1 and "exit 3: exit code 3" in done.stderr


def test_every_page_is_in_the_manual_once(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    found = runpy.run_path(str(ROOT / "tools" / "site.py"))["CONTENTS"]
    listed = [page for group in found.values() for page in group]
    docs = ROOT / "docs"
    pages = [page for page in docs.rglob("*.md") if page.parent.name != "bitstreams"]
    assert sorted(listed) == sorted(
        page.relative_to(docs).with_suffix("").as_posix() for page in pages
    )


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page not in TUTORIALS],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_python_examples_run(page, tmp_path):
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S)):
        file = tmp_path / f"example_{number}.py"
        file.write_text(code)
        done = subprocess.run(
            [sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, f"{page.name}, example {number}: {done.stderr}"
