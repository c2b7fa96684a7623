"""Draw the figures of docs/: schematic, from the configuration's own numbers."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from sat.dataflow.compile import compile_product
from sat.dataflow.cycles import Times, predict
from sat.dataflow.mapping import OsMapping
from sat.dataflow.products import Product
from sat.rtl.config import SatConfig
from sat.rtl.isa import Opcode
from sat.sim.memory import MemoryTiming

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
BLUE, GREEN, ORANGE, GREY = "#cfe2f3", "#d9ead3", "#fce5cd", "#eeeeee"


def canvas(width: float, height: float):
    """Return a figure whose unit is a tenth of an inch."""
    figure, axes = plt.subplots(figsize=(width / 10, height / 10), dpi=110)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return figure, axes


def box(axes, x, y, w, h, text, colour=GREY, size=9):
    """Draw a labelled box."""
    shape = FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.2", fc=colour, ec="#444444", lw=1)
    axes.add_patch(shape)
    axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)


def arrow(axes, start, end, text="", both=False, size=8, at=(0.0, 0.8)):
    """Draw a labelled arrow."""
    style = "<|-|>" if both else "-|>"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=9, color="#333333"))
    if text:
        x, y = (start[0] + end[0]) / 2 + at[0], (start[1] + end[1]) / 2 + at[1]
        axes.text(x, y, text, ha="center", fontsize=size)


def save(figure, name: str) -> None:
    """Write a figure."""
    figure.savefig(FIGURES / name, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def device() -> None:
    """Draw the device's blocks."""
    figure, axes = canvas(100, 50)
    box(axes, 2, 38, 14, 8, "Host", ORANGE)
    box(axes, 24, 38, 16, 8, "Registers", GREY)
    box(axes, 50, 38, 24, 8, "Sequencer\nfetch, check, semaphores", BLUE)
    box(axes, 84, 38, 14, 8, "Memory\n(program)", ORANGE)
    box(axes, 2, 20, 14, 10, "Load\nengine", BLUE)
    box(axes, 24, 24, 18, 5, "A, B, index banks", GREEN)
    box(axes, 24, 17, 18, 5, "start banks", GREEN)
    box(axes, 50, 14, 24, 17, "Compute engine\nfeeders\n\nSTCE: R x C USPEs", BLUE)
    box(axes, 50, 3, 24, 6, "output banks", GREEN)
    box(axes, 24, 3, 14, 6, "Store\nengine", BLUE)
    box(axes, 2, 3, 14, 6, "Memory\n(data)", ORANGE)
    arrow(axes, (16.4, 42), (23.6, 42), "AXI4-Lite", both=True)
    arrow(axes, (40.4, 42), (49.6, 42), both=True)
    arrow(axes, (83.6, 42), (74.4, 42), "AXI4")
    arrow(axes, (54, 37.6), (12, 30.6), "LOAD", at=(-6, 1))
    arrow(axes, (62, 37.6), (62, 31.6), "MULTIPLY", at=(6, 0))
    axes.plot([74, 80, 80, 31, 31], [40, 36, 0.5, 0.5, 2.6], color="#333333", lw=1)
    axes.text(82, 20, "STORE", fontsize=8, rotation=90, va="center")
    arrow(axes, (16.4, 26), (23.6, 26))
    arrow(axes, (16.4, 21), (23.6, 20))
    arrow(axes, (42.4, 26), (49.6, 26))
    arrow(axes, (42.4, 20), (49.6, 20))
    arrow(axes, (62, 13.6), (62, 9.4), "sums", both=True, at=(4, -0.4))
    arrow(axes, (49.6, 6), (38.4, 6))
    arrow(axes, (23.6, 6), (16.4, 6), "AXI4 W")
    arrow(axes, (9, 9.4), (9, 19.6), "AXI4 R", at=(5, 0))
    save(figure, "device.png")


def board() -> None:
    """Draw the top of a board's gateware, with its pins and clock."""
    figure, axes = canvas(104, 54)
    box(axes, 1, 24, 13, 8, "USB bridge\nFT231X", ORANGE)
    box(axes, 1, 44, 13, 6, "crystal\n25 MHz", ORANGE)
    box(axes, 1, 36, 13, 5, "button FIRE1", ORANGE)
    box(axes, 1, 4, 13, 6, "8 LEDs", ORANGE)
    shape = FancyBboxPatch((15.5, 1), 87.5, 52, boxstyle="round,pad=0.2", fc="white", ec="#444444")
    axes.add_patch(shape)
    axes.text(18, 2.2, "LFE5U-85F", fontsize=9, style="italic")
    box(axes, 24, 44, 16, 6, "PLL (not at 25 MHz)", GREY)
    box(axes, 48, 44, 18, 6, "reset synchroniser", GREY)
    box(axes, 24, 24, 11, 8, "UART\n3 Mbaud", BLUE)
    box(axes, 41, 24, 13, 8, "framing\nCRC-32", BLUE)
    box(axes, 60, 24, 13, 8, "link server\na request\nat a time", BLUE)
    box(axes, 80, 24, 20, 8, "block RAM, 128 KB\ntwo copies", GREEN)
    box(axes, 60, 8, 13, 7, "register\nbridge", BLUE)
    box(axes, 80, 4, 20, 13, "Device\nSAT, R x C", BLUE)
    arrow(axes, (14.4, 47), (23.6, 47), "clk25, G2", at=(0.8, 0.7))
    arrow(axes, (40.4, 47), (47.6, 47), "locked", at=(0, 0.7))
    axes.plot([14.4, 57, 57], [38.5, 38.5, 43], color="#333333", lw=1)
    axes.text(17, 39.2, "R1", fontsize=8)
    arrow(axes, (57, 42.5), (57, 43.7))
    arrow(axes, (66.4, 47), (76, 47))
    axes.text(77, 47, "clock and reset of all", fontsize=8, va="center")
    arrow(axes, (14.4, 30), (23.6, 30), "rx, M1", at=(0.8, 0.7))
    arrow(axes, (23.6, 26), (14.4, 26), "tx, L4", at=(0.8, -2.2))
    arrow(axes, (35.4, 30), (40.6, 30), "bytes", at=(0, 0.7))
    arrow(axes, (40.6, 26), (35.4, 26))
    arrow(axes, (54.4, 30), (59.6, 30), "bodies", at=(0, 0.7))
    arrow(axes, (59.6, 26), (54.4, 26))
    arrow(axes, (73.4, 28), (79.6, 28), "words", both=True, at=(0, 0.7))
    arrow(axes, (66.5, 23.6), (66.5, 15.4), "words", both=True, at=(4, -0.4))
    arrow(axes, (73.4, 11.5), (79.6, 11.5), "AXI4-Lite", at=(0, 1))
    arrow(axes, (85, 23.6), (85, 17.4), "imem", at=(-4, -0.4))
    arrow(axes, (95, 23.6), (95, 17.4), "dmem", both=True, at=(4, -0.4))
    arrow(axes, (79.6, 6), (14.4, 6), "a program has ended, a request is answered", at=(-10, 0.8))
    save(figure, "board.png")


def uspe() -> None:
    """Draw a USPE's data path."""
    figure, axes = canvas(96, 46)
    box(axes, 4, 30, 14, 7, "A word\nM' lanes", GREEN)
    box(axes, 26, 38, 16, 6, "B value, index", GREEN)
    box(axes, 26, 20, 16, 6, "held weights\n2 sets (WS)", GREEN)
    box(axes, 26, 30, 16, 5, "pick a lane", GREY)
    box(axes, 50, 29, 12, 7, "FP16 x FP16\nexact", BLUE)
    box(axes, 70, 29, 20, 7, "FP32 adder = ring\nof s sums", BLUE)
    box(axes, 70, 6, 20, 7, "chain\ns + 1 registers", GREY)
    arrow(axes, (0, 33.5), (3.6, 33.5), "west", at=(0, 1))
    arrow(axes, (18.4, 33), (25.6, 32.6))
    arrow(axes, (34, 37.6), (34, 35.5))
    arrow(axes, (34, 26.6), (34, 29.5))
    arrow(axes, (42.4, 32.5), (49.6, 32.5))
    arrow(axes, (62.4, 32.5), (69.6, 32.5))
    axes.plot([90, 94, 94, 66, 66], [34, 34, 41, 41, 34.5], color="#333333", lw=1)
    arrow(axes, (66, 34.6), (69.6, 34.2))
    axes.text(80, 42, "back after s cycles", ha="center", fontsize=8)
    arrow(axes, (62, 22), (70.5, 28.6), "sum or start from the north", at=(-14, -3))
    arrow(axes, (80, 28.6), (80, 13.5), "finished", at=(5, 0))
    arrow(axes, (80, 5.6), (80, 0.5), "south", at=(4, -0.6))
    save(figure, "uspe.png")


def dataflows() -> None:
    """Draw what moves and what stays in the two dataflows."""
    figure, axes = canvas(104, 46)
    for x0, name, stay, down in (
        (8, "Output stationary: sums stay", "s sums", "B values, indices"),
        (60, "Weight stationary: weights stay", "weights", "sums"),
    ):
        axes.text(x0 + 18, 44, name, ha="center", fontsize=10, weight="bold")
        for r in range(3):
            for c in range(3):
                colour = BLUE if stay == "s sums" else GREEN
                box(axes, x0 + 4 + 11 * c, 26 - 10 * r, 7, 6, stay, colour, 7)
                if c < 2:
                    arrow(
                        axes, (x0 + 11.4 + 11 * c, 29 - 10 * r), (x0 + 14.6 + 11 * c, 29 - 10 * r)
                    )
                if r < 2:
                    arrow(
                        axes, (x0 + 7.5 + 11 * c, 25.6 - 10 * r), (x0 + 7.5 + 11 * c, 22.6 - 10 * r)
                    )
            late = f"{r}" if stay == "s sums" else f"{r}δ"
            arrow(axes, (x0 - 3, 29 - 10 * r), (x0 + 3.6, 29 - 10 * r), f"A +{late}", size=7)
        for c in range(3):
            arrow(
                axes, (x0 + 7.5 + 11 * c, 38), (x0 + 7.5 + 11 * c, 32.6), f"+{c}", size=7, at=(2, 0)
            )
            arrow(axes, (x0 + 7.5 + 11 * c, 5.6), (x0 + 7.5 + 11 * c, 1))
        axes.text(x0 + 18, 40, f"{down} (cycles late)", ha="center", fontsize=8)
        note = "sums out" if stay == "s sums" else "sums out; δ = s · weights + 1"
        axes.text(x0 + 18, -1, note, ha="center", fontsize=8)
    save(figure, "dataflows.png")


def timeline() -> None:
    """Draw the engines' work on a small product, from the exact cycle model."""
    config = SatConfig()
    product = Product(32, 64, 96, 2, 8)
    mapping = OsMapping(split=1, chunk_words=12, rows_outer=True, row_block=2)
    program = compile_product(product, config, mapping).program
    prediction = predict(program, config, MemoryTiming())
    figure, axes = plt.subplots(figsize=(10, 2.6), dpi=110)
    rows = {Opcode.LOAD: (2, GREEN), Opcode.MULTIPLY: (1, BLUE), Opcode.STORE: (0, ORANGE)}
    for instruction, cycles in zip(program, prediction.times.tolist(), strict=True):
        if instruction.opcode is Opcode.END:
            continue
        times = Times(*cycles)
        y, colour = rows[instruction.opcode]
        end = times.release if instruction.opcode is Opcode.MULTIPLY else times.signal
        axes.barh(y, end - times.accept, left=times.accept, color=colour, ec="#444444", height=0.6)
        if instruction.opcode is Opcode.MULTIPLY:
            axes.barh(
                y - 0.4, times.signal - end, left=end, color="#9fc5e8", ec="#444444", height=0.2
            )
    axes.set_yticks([0, 1, 2], ["store", "compute\n(below: drain)", "load"])
    axes.set_xlabel(f"cycle (of {prediction.cycles}): 32x64x96, 2:8, on 8x8")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save(figure, "timeline.png")


def main() -> None:
    """Draw all figures."""
    FIGURES.mkdir(exist_ok=True)
    for draw in (device, board, uspe, dataflows, timeline):
        draw()


if __name__ == "__main__":
    main()
