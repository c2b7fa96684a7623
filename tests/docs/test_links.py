"""Links of the pages lead to files and headings; addresses elsewhere have a legal form."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from sat import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.fixture
def links(monkeypatch):
    """The module that checks links."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("links")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(links, page):
    assert list(links.broken(page)) == []


def test_addresses_elsewhere_are_collected_once(links):
    found = links.everywhere()
    assert len(found) == len(set(found)) > 10
    assert "https://doi.org/10.1109/TCAD.2023.3317789" in found
    assert "https://arxiv.org/abs/2309.13015" in found
    assert not [address for address in found if links.malformed(address)]


def test_broken_links_are_found(links, tmp_path):
    (tmp_path / "other.md").write_text("# One two\n\n## Same\n\n## Same\n\n## `Code` & [x](y)\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n\n[a](#here) [b](other.md#one-two) [c](other.md#same-1) [d](other.md#code--x)\n"
        "[1](#there) [2](other.md#same-2) [3](none.md) [4](../away.md) ![5](none.png)\n"
        "[6](mailto:nobody) [7](https://example) <https://example.org/%zz> arXiv 2313.01234\n"
        "`[no](link.md)`\n\n```\n[no](link.md)\n```\n"
    )
    found = [line.split(":")[0] for line in links.broken(page, tmp_path)]
    assert found == [
        "#there", "other.md#same-2", "none.md", "../away.md", "none.png", "mailto",
        "https", "https", "https",
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_are_understood(page, tmp_path, monkeypatch, capsys):
    """What blocks tell a reader to type: options and choices exist, nothing is missing."""
    monkeypatch.chdir(tmp_path)
    parser = cli._parser()
    for line in re.findall(
        r"^(?:    |\$ )(?:\w+=\S+ )*(?:\.venv/bin/)?sat (\S.*)$", page.read_text(), re.M
    ):
        words = shlex.split(line.split(" | ")[0], comments=True)
        for word in words:  # what it reads, it finds
            if re.fullmatch(r"[\w./-]+\.(json|bit|onnx)", word):
                Path(word).parent.mkdir(exist_ok=True)
                Path(word).touch()
        try:
            parser.parse_args(words)
        except SystemExit:
            pytest.fail(f"sat {line}: {capsys.readouterr().err}")
