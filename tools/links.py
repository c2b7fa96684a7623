"""Check the manual's links: files and headings here, the form of addresses elsewhere.

    python tools/links.py             # what needs no network; the tests run it
    python tools/links.py --external  # ask for every address, of papers too

Papers are named as "arXiv 2309.13015" and "doi 10.1109/…": those are addresses, too.
"""

from __future__ import annotations

import argparse
import re
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = (ROOT / "CITATION.cff", ROOT / "pyproject.toml", ROOT / "software/methods/__init__.py")

FENCE = re.compile(r"^(```+|~~~+).*?^\1[ \t]*$", re.M | re.S)
CODE = re.compile(r"(`+).+?\1", re.S)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
ADDRESS = re.compile(r"https?://[^\s<>\"'`)\]]+")
ARXIV = re.compile(r"\barXiv[ :]+([\w./-]*\d)(?:v\d+)?", re.I)
DOI = re.compile(r"\bdoi[: ]+\"?(10\.\S*[\w)])", re.I)


def prose(text: str) -> str:
    """Return a page without its code."""
    return CODE.sub("", FENCE.sub("", text))


def headings(text: str) -> set[str]:
    """Return what a page's headings are called in addresses, as GitHub makes it of them."""
    found: Counter[str] = Counter()
    names = set()
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", text), re.M):
        plain = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(name if not found[name] else f"{name}-{found[name]}")
        found[name] += 1
    return names


def broken(page: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield what is wrong with a page's links to files and headings, and with its addresses."""
    text = prose(page.read_text())
    for target in LINK.findall(text):
        if target.startswith(("http:", "https:")):
            continue
        if target.startswith("mailto:"):
            if not re.fullmatch(r"mailto:[^@\s]+@[\w-]+(\.[\w-]+)+", target):
                yield f"{target}: no address of mail"
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        if not file.is_relative_to(root):
            yield f"{target}: leads out of the project"
        elif not file.exists():
            yield f"{target}: there is no such file"
        elif anchor and file.suffix == ".md" and anchor not in headings(file.read_text()):
            yield f"{target}: {file.name} has no such heading"
    for address in addresses(text):
        wrong = malformed(address)
        if wrong:
            yield f"{address}: {wrong}"


def addresses(text: str) -> list[str]:
    """Return the addresses in a text, those of papers included, in order."""
    found = [match.rstrip(".,;:") for match in ADDRESS.findall(text)]
    found += [f"https://arxiv.org/abs/{number}" for number in ARXIV.findall(text)]
    return found + [f"https://doi.org/{number}" for number in DOI.findall(text)]


def malformed(address: str) -> str:
    """Return what is wrong with an address's form; nothing if nothing is."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?\.[a-z]{2,}", host) or ".." in host:
        return f"{host!r} is no host"
    if re.search(r"%(?![0-9A-Fa-f]{2})", address):
        return "% without two hexadecimal digits"
    if host == "arxiv.org" and not re.fullmatch(
        r"/abs/(\d{2}(0[1-9]|1[0-2])\.\d{4,5}|[a-z-]+/\d{7})", parts.path
    ):
        return "arXiv numbers are YYMM.NNNNN"
    if host == "doi.org" and not re.fullmatch(r"/10\.\d{4,9}/\S+", parts.path):
        return "a DOI is 10.NUMBER/NAME"
    return ""


def everywhere() -> list[str]:
    """Return each address of the pages and sources once."""
    texts = [prose(page.read_text()) for page in PAGES] + [path.read_text() for path in SOURCES]
    return sorted({address for text in texts for address in addresses(text)})


def answer(address: str) -> str:
    """Ask for an address; return what is wrong, nothing if it is there."""
    headers = {"User-Agent": "Mozilla/5.0 (link check of SAT's manual)"}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30):
            return ""
    except urllib.error.HTTPError as error:
        # A site that will not talk to programs is there.
        return "" if error.code in (401, 403, 405, 418, 429) else f"HTTP {error.code}"
    except OSError as error:
        return str(error)


def main() -> int:
    """Check all pages; return 1 if a link is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--external", action="store_true", help="ask for every address")
    external = parser.parse_args().external
    wrong = [f"{page.relative_to(ROOT)}: {text}" for page in PAGES for text in broken(page)]
    found = everywhere()
    for address in found if external else ():
        problem = answer(address)
        print(f"{'BROKEN' if problem else 'ok':<6} {address} {problem}".rstrip(), flush=True)
        if problem:
            wrong.append(f"{address}: {problem}")
    print(f"{len(PAGES)} pages, {len(found)} addresses elsewhere, {len(wrong)} broken")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
