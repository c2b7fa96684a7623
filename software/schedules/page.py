"""A schedule as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from sat.schedules import pictures
from sat.schedules.energy import SOURCE, estimate
from sat.schedules.report import HEAD, Comparison, cells, notes
from sat.schedules.schedule import Schedule

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }
table { border-collapse: collapse; font-size: 13px; }
td, th { padding: 2px 10px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
td:nth-child(-n+5), th:nth-child(-n+5) { text-align: left; }
img { max-width: 100%; } .wide { overflow-x: auto; }
"""


def page(schedule: Schedule, clock_hz: float, comparison: Comparison | None = None) -> str:
    """Return the page.

    Parameters
    ----------
    clock_hz : float
        Of the device, for seconds.
    comparison : Comparison, optional
        With the dense twin.
    """
    title = f"{schedule.network}, batch {schedule.batch}, {schedule.sparsity}"
    said = "".join(f"<p>{escape(note)}</p>" for note in notes(schedule, clock_hz, comparison))
    shown = [
        ("Where the time goes", pictures.time_bars(schedule, comparison)),
        ("Utilisation of the array", pictures.heat_map(schedule)),
        ("Roofline", pictures.roofline(schedule)),
    ]
    images = "".join(f"<h2>{name}</h2>{_image(name, png)}" for name, png in shown)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{said}{images}"
        f"<h2>Energy, an estimate</h2>{_energy(schedule, comparison)}"
        f'<h2>Stages</h2><div class="wide">{_table(HEAD, cells(schedule))}</div></body></html>\n'
    )


def _image(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], kind: str) -> str:
        return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"


def _energy(schedule: Schedule, comparison: Comparison | None) -> str:
    made = [estimate(schedule)] + ([estimate(comparison.dense)] if comparison else [])
    head = ["action", schedule.sparsity, *(["dense"] if comparison else [])]
    rows = [
        [name, *(f"{energy.picojoules[name] / 1e9:.3g} mJ" for energy in made)]
        for name in made[0].actions
    ]
    rows.append(["together", *(f"{1e3 * energy.joules:.3g} mJ" for energy in made)])
    source = (
        f"Actions of the schedule times {SOURCE}: arithmetic, banks and memory, without clock, "
        "control and leakage. For comparing schedules; nothing was measured."
    )
    return f"<p>{escape(source)}</p>{_table(head, rows)}"
