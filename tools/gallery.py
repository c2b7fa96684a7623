"""Make the gallery: a picture a method, drawn by its demo, and the page that shows them.

    python tools/gallery.py s4d lsm      # these methods' pictures, then the page
    python tools/gallery.py s4d --quick  # by the quick demo
    python tools/gallery.py --all        # everyone's
    python tools/gallery.py              # the page alone

A picture carries the command that made it, and is made again in the same way unless ``--quick`` or
``--whole`` says otherwise; a new one by the whole demo. All that the page says comes from the
registry and from the pictures.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, PngImagePlugin

from sat.methods import METHODS, Method

DOCS = Path(__file__).resolve().parent.parent / "docs"
PICTURES, PAGE = DOCS / "gallery", DOCS / "gallery.md"
MOST_BYTES, MOST_INCHES = 80_000, 10
DRAWN_DPI, SHOWN_DPI = 150, 96
CHOSEN = {"lightsb": "paths", "s4_ptd": "transfer", "s4d": "legs_limit", "ssvi": "masks"}
"""Of demos that draw several pictures, the one that says most."""

HEAD = """\
<!-- Written by tools/gallery.py: `make gallery`. -->

# Gallery

A picture a method, drawn by its demo; the command under it draws it again, and prints what was
measured. [Methods](methods.md) has the figures; `--quick` leaves out what they rest on.
"""


def command(slug: str, *, quick: bool) -> str:
    """Return what a user types for a method's pictures."""
    return f"sat run {slug} --device host {'--quick ' if quick else ''}--figures out"


def command_of(slug: str) -> str | None:
    """Return the command that made a method's picture; None if it has no picture."""
    path = PICTURES / f"{slug}.png"
    if not path.exists():
        return None
    with Image.open(path) as picture:
        return str(picture.info["Command"])


def page(methods: Iterable[Method]) -> str:
    """Return the page.

    Raises
    ------
    ValueError
        If a method has no picture.
    """
    parts = [HEAD]
    for method in methods:
        made_by = command_of(method.slug)
        if made_by is None:
            raise ValueError(
                f"method {method.slug!r} has no picture: "
                f"python tools/gallery.py {method.slug} --quick (or without --quick)"
            )
        sentence = method.summary[0].upper() + method.summary[1:]
        parts.append(
            f"## {method.title}\n\n{sentence} ({method.paper}).\n\n"
            f"![{method.title}](gallery/{method.slug}.png)\n\n    {made_by}\n"
        )
    return "\n".join(parts)


def shrink(picture: Image.Image, made_by: str) -> bytes:
    """Return a demo's picture as a PNG of 96 dots an inch and at most 80 kB.

    Raises
    ------
    ValueError
        If it is wider than ten inches, so that the page makes its words too small; if 16 colours
        take more bytes.
    """
    if picture.width > MOST_INCHES * DRAWN_DPI:
        raise ValueError(
            f"a figure {picture.width / DRAWN_DPI:g} inches wide: at most {MOST_INCHES}, or its "
            "words are too small on the page"
        )
    width = round(picture.width * SHOWN_DPI / DRAWN_DPI)
    height = round(picture.height * SHOWN_DPI / DRAWN_DPI)
    small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    note = PngImagePlugin.PngInfo()
    note.add_text("Command", made_by)
    for colours in (256, 128, 64, 32, 16):
        file = io.BytesIO()
        # By coverage: a line of its own hue counts as much as a field of many.
        flat = small.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        flat.save(file, "PNG", optimize=True, pnginfo=note)
        if file.tell() <= MOST_BYTES:
            return file.getvalue()
    raise ValueError(f"a picture of {width} x {height} takes {file.tell()} bytes: draw less in it")


def make(slug: str, *, quick: bool) -> Path:
    """Run a method's demo and keep its picture.

    Raises
    ------
    ValueError
        If the demo draws none, or several of which `CHOSEN` names none.
    """
    line = command(slug, quick=quick)
    with tempfile.TemporaryDirectory() as folder:
        arguments = line.split()[1:-1]
        done = subprocess.run([sys.executable, "-m", "sat", *arguments, folder])
        if done.returncode not in (0, 1):
            raise ValueError(f"{line}: exit code {done.returncode}")
        drawn = {path.stem.removeprefix(f"{slug}-"): path for path in Path(folder).glob("*.png")}
        name = CHOSEN.get(slug, next(iter(drawn), "")) if len(drawn) != 1 else next(iter(drawn))
        if name not in drawn or (len(drawn) > 1 and slug not in CHOSEN):
            raise ValueError(f"{line} draws {sorted(drawn)}: name one in CHOSEN of {__file__}")
        with Image.open(drawn[name]) as picture:
            data = shrink(picture, line)
    path = PICTURES / f"{slug}.png"
    path.write_bytes(data)
    print(f"{path.relative_to(DOCS.parent)}: {len(data):,} bytes, by {line}")
    return path


def main() -> int:
    """Make what is named, then the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="one of `sat methods`")
    parser.add_argument("--all", action="store_true", help="everyone's picture")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="by the quick demo")
    size.add_argument("--whole", action="store_true", help="by the whole demo")
    args = parser.parse_args()
    slugs = list(METHODS) if args.all else args.methods
    unknown = set(slugs) - set(METHODS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no such method; `sat methods` lists them")
    for slug in slugs:
        before = command_of(slug) or ""
        make(slug, quick=args.quick or (not args.whole and "--quick" in before))
    PAGE.write_text(page(METHODS.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
