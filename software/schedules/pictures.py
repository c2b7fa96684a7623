"""Pictures of a schedule, as PNG: the roofline, and where time and utilisation go."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sat.schedules.report import SHOWN, Comparison
from sat.schedules.schedule import ALL_STAGES, Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"ff": "#4477aa", "bp": "#ee6677", "wu": "#228833", "update": "#aa8833"}
"""Of the stages; told apart by the colour-blind, too (Paul Tol's bright scheme)."""

MOST_ROWS = 60
"""Operations that a picture names; of more, those that take the most cycles."""


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: that keeps figures, and asks for a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(figure: Figure) -> bytes:
    made = io.BytesIO()
    figure.savefig(made, format="png", metadata={"Software": None})
    return made.getvalue()


def roofline(schedule: Schedule) -> bytes:
    """Return the roofline plot: multiply-accumulates a cycle against those a byte."""
    machine = schedule.machine
    figure = _figure(8, 5)
    axes = figure.subplots()
    points = [entry for entry in schedule.entries if entry.stage != "update"]
    bytes_of = [e.cost.bytes_read + e.cost.bytes_written for e in points]
    intensity = np.array([e.macs / size for e, size in zip(points, bytes_of, strict=True)])
    rate = np.array([e.macs / e.cycles for e in points])
    knee = machine.peak / machine.bytes_per_cycle
    low, high = min(intensity.min(), knee) / 2, max(intensity.max(), knee) * 2
    x = np.geomspace(low, high, 200)
    roof = np.minimum(machine.peak, x * 2 * machine.bytes_per_cycle)
    one_way = np.minimum(machine.peak, x * machine.bytes_per_cycle)
    axes.plot(x, roof, color="#333333", label="roof: reads and writes side by side")
    axes.plot(x, one_way, color="#333333", ls=":", label="one direction alone")
    share = np.array([e.cycles for e in points]) / schedule.cycles()
    for stage in ALL_STAGES[:-1]:
        chosen = [n for n, e in enumerate(points) if e.stage == stage]
        if chosen:
            axes.scatter(
                intensity[chosen], rate[chosen], s=12 + 1500 * share[chosen],
                color=COLOURS[stage], alpha=0.55, label=SHOWN[stage],
            )  # fmt: skip
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="multiply-accumulates a byte moved",
        ylabel="multiply-accumulates a cycle",
        title=f"{schedule.network}, batch {schedule.batch}, {schedule.sparsity}: {machine}\n"
        "area of a circle: share of the step's cycles",
    )
    from matplotlib.collections import PathCollection
    from matplotlib.ticker import StrMethodFormatter

    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    legend = axes.legend(loc="lower right")
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([40])
    axes.grid(alpha=0.3, which="both")
    return _png(figure)


def _operations(schedule: Schedule) -> list[str]:
    """Return the operations that pictures name, in the order of the forward pass."""
    names = list(dict.fromkeys(entry.operation for entry in schedule.entries))
    cycles = dict.fromkeys(names, 0)
    for entry in schedule.entries:
        cycles[entry.operation] += entry.cycles
    kept = set(sorted(names, key=lambda name: -cycles[name])[:MOST_ROWS])
    return [name for name in names if name in kept]


def heat_map(schedule: Schedule) -> bytes:
    """Return utilisation of the array, an operation a row, a stage a column."""
    names = _operations(schedule)
    stages = ALL_STAGES[:-1]
    grid = np.full((len(names), len(stages)), np.nan)
    for entry in schedule.entries:
        if entry.operation in names and entry.stage in stages:
            at = names.index(entry.operation), stages.index(entry.stage)
            grid[at] = entry.utilisation(schedule.machine)
    figure = _figure(6.5, 1.6 + 0.2 * len(names))
    axes = figure.subplots()
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(stages)), [SHOWN[stage] for stage in stages])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for (y, x), value in np.ndenumerate(grid):
        if not np.isnan(value):
            colour = "white" if value < 0.6 else "black"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_title(
        f"{schedule.network}, {schedule.sparsity}: utilisation of the array", fontsize=10
    )
    figure.colorbar(image, ax=axes, shrink=0.8)
    return _png(figure)


def time_bars(schedule: Schedule, comparison: Comparison | None = None) -> bytes:
    """Return the cycles of each operation, its stages side by side; dense behind, if given."""
    names = _operations(schedule)
    figure = _figure(9, 1.6 + 0.2 * len(names))
    axes = figure.subplots()
    if comparison is not None:
        _bars(axes, comparison.dense, names, 0.2, 0.35)
    _bars(axes, schedule, names, -0.2 if comparison else 0, 0.35 if comparison else 0.7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    what = f"{schedule.sparsity} above, dense below" if comparison else schedule.sparsity
    axes.set(xlabel="million cycles")
    axes.set_title(f"{schedule.network}, batch {schedule.batch}: {what}", fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    axes.legend(known.values(), known.keys())
    axes.grid(alpha=0.3, axis="x")
    return _png(figure)


def _bars(axes: Axes, schedule: Schedule, names: list[str], at: float, height: float) -> None:
    left = np.zeros(len(names))
    for stage in ALL_STAGES:
        width = np.zeros(len(names))
        for entry in schedule.of(stage):
            if entry.operation in names:
                width[names.index(entry.operation)] += entry.cycles / 1e6
        axes.barh(
            np.arange(len(names)) + at, width, height, left=left, color=COLOURS[stage],
            label=SHOWN[stage],
        )  # fmt: skip
        left += width


def pareto(rows: Sequence[dict[str, Any]], chosen: Sequence[dict[str, Any]], title: str) -> bytes:
    """Return cycles an example against LUTs: all designs, and those of the front marked."""
    figure = _figure(8.5, 5.5)
    axes = figure.subplots()
    found = [row for row in rows if "refused" not in row]
    patterns = list(dict.fromkeys(row["pattern"] for row in found))
    for number, pattern in enumerate(patterns):
        own = [row for row in found if row["pattern"] == pattern]
        axes.scatter(
            [row["lut4"] for row in own], [row["cycles_per_example"] for row in own],
            s=[8 + row["ram"] / 30 for row in own], color=list(COLOURS.values())[number % 4],
            alpha=0.5, label=pattern,
        )  # fmt: skip
    axes.scatter(
        [row["lut4"] for row in chosen], [row["cycles_per_example"] for row in chosen],
        s=90, facecolors="none", edgecolors="black", label="on the front",
    )  # fmt: skip
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="LUT4 (sums of synthesised blocks: interpolated)",
        ylabel="cycles an example",
        title=f"{title}\nsize of a circle: block RAM",
    )
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    return _png(figure)
