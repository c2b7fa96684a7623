"""Schematics as SVG files that suit a light and a dark page: boxes, arrows and words, no more."""

from __future__ import annotations

from html import escape

CHARACTER = 0.55
"""Width of a character over its size, about: what keeps words within their boxes."""

STYLE = """
svg { --ink: #24292f; --line: #57606a; --page: #ffffff; --engine: #cfe2f3; --buffer: #d9ead3;
  --outside: #fce5cd; --plain: #eaeef2; --part: #eff6fc; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --line: #9198a1; --page: #0d1117; --engine: #1f3f60; --buffer: #23462b;
    --outside: #5a3d1a; --plain: #30363d; --part: #16304a; }
}
text { fill: var(--ink); font-family: "DejaVu Sans", Helvetica, Arial, sans-serif; }
rect { stroke: var(--line); }
path { stroke: var(--line); fill: none; stroke-width: 1.3; }
marker path { fill: var(--line); stroke: none; }
.frame { fill: none; }
"""

Point = tuple[float, float]


class Drawing:
    """A drawing of boxes, lines and words, in pixels, y downwards.

    Parameters
    ----------
    width, height : float
    title : str
        What a reader who cannot see it is told.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(
        self, x: float, y: float, w: float, h: float, text: str, kind: str = "plain",
        size: float = 13, top: bool = False,
    ) -> None:  # fmt: skip
        """Draw a box with words, in its middle or under its upper edge.

        Parameters
        ----------
        kind : str
            ``"engine"``, ``"part"`` of one, ``"buffer"``, ``"outside"``, ``"plain"``, or
            ``"frame"`` around others.

        Raises
        ------
        ValueError
            If the words are wider than the box.
        """
        for line in text.split("\n"):
            if len(line) * size * CHARACTER > w:
                raise ValueError(f"{line!r} at size {size} does not fit {w} pixels: widen the box")
        fill = "" if kind == "frame" else f' style="fill: var(--{kind})"'
        self.parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{w}" height="{h}" rx="4"{fill}/>'
        )
        lines = text.count("\n") + 1
        middle = y + size + 6 if top else y + h / 2 - (lines - 1) * size * 0.62 + size * 0.35
        self.words(x + w / 2, middle, text, size)

    def words(
        self, x: float, y: float, text: str, size: float = 11, anchor: str = "middle",
        style: str = "",
    ) -> None:  # fmt: skip
        """Write lines; the first one's base is at y."""
        for number, line in enumerate(text.split("\n")):
            self.parts.append(
                f'<text x="{x}" y="{y + 1.24 * size * number:g}" font-size="{size}" '
                f'text-anchor="{anchor}" {style}>{escape(line)}</text>'
            )

    def arrow(
        self, *points: Point, text: str = "", at: Point | None = None, both: bool = False,
        head: bool = True, over: bool = False,
    ) -> None:  # fmt: skip
        """Draw a line through points, with a head at its end, and words above its middle.

        Parameters
        ----------
        over : bool
            Leave a gap in what it crosses.
        """
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        if over:
            self.parts.append(f'<path d="{path}" style="stroke: var(--page); stroke-width: 9"/>')
        heads = ' marker-end="url(#head)"' if head else ""
        heads += ' marker-start="url(#tail)"' if both else ""
        self.parts.append(f'<path d="{path}"{heads}/>')
        if text:
            (x0, y0), (x1, y1) = points[0], points[-1]
            x, y = at or ((x0 + x1) / 2, (y0 + y1) / 2 - 6)
            self.words(x, y, text)

    def text(self) -> str:
        """Return the file's text."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="{turn}"><path d="M0 0.6 L8 4 L0 7.4 z"/></marker>'
            for name, turn in (("head", "auto"), ("tail", "auto-start-reverse"))
        )
        size = f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}"'
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} height="{self.height:g}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n<defs>{heads}</defs>\n"
            f'<rect width="100%" height="100%" style="fill: var(--page); stroke: none"/>\n'
            f"{body}\n</svg>\n"
        )
