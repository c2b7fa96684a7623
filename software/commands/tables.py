"""Tables that fit the terminal they are printed on."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

NARROWEST = 12
"""Characters that a wrapped column has at least; a terminal that is narrower folds lines itself."""


def fit(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None, wide: int = -1
) -> str:
    """Return a table of which one column is wrapped to what the others leave.

    Parameters
    ----------
    head : sequence of str
    rows : sequence of sequence of str
        As long as ``head``.
    width : int, optional
        Characters of a line; the terminal's if not given, or 80 where there is none.
    wide : int
        The column that is wrapped.
    """
    width = shutil.get_terminal_size().columns if width is None else width
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    wide %= len(head)
    others = sum(widths) - widths[wide] + 2 * (len(head) - 1)
    widths[wide] = min(widths[wide], max(NARROWEST, width - others))
    lines = []
    for row in (head, ["-" * each for each in widths], *rows):
        cells = [
            textwrap.wrap(cell, widths[i]) or [""] if i == wide else [cell]
            for i, cell in enumerate(row)
        ]
        for number in range(max(map(len, cells))):
            parts = (cell[number] if number < len(cell) else "" for cell in cells)
            line = "  ".join(f"{part:<{w}}" for part, w in zip(parts, widths, strict=True))
            lines.append(line.rstrip())
    return "\n".join(lines)
