"""Draw the figures of docs/: schematics of the hardware, and a timeline from the cycle model.

Names in them are those of the sources; tests/docs holds the device's to the instruction set.
"""

from __future__ import annotations

from pathlib import Path

from drawing import Drawing

from sat.dataflow.compile import compile_product
from sat.dataflow.cycles import Times, predict
from sat.dataflow.mapping import OsMapping
from sat.dataflow.products import Product
from sat.rtl.config import SatConfig
from sat.rtl.isa import Opcode
from sat.sim.memory import MemoryTiming

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"


def device() -> Drawing:
    """Draw the device's blocks where the data flow past them: memory, left to right, memory."""
    d = Drawing(
        920, 560, "The device: sequencer above, load, compute, update and store engines below"
    )
    # Control: from the host to the engines.
    d.box(20, 20, 90, 60, "Host", "outside")
    d.box(180, 20, 110, 60, "Registers", "plain")
    d.box(350, 14, 360, 72, "Sequencer", "engine", top=True)
    for x, text in ((362, "fetch"), (478, "check"), (594, "semaphores")):
        d.box(x, 46, 104, 30, text, "part", 12)
    d.box(790, 20, 110, 60, "Memory:\nprogram", "outside")
    d.arrow((112, 50), (178, 50), text="AXI4-Lite", both=True)
    d.arrow((292, 50), (348, 50), both=True)
    d.arrow((788, 50), (712, 50), text="AXI4")
    # A queue of instructions for each engine hangs on one rail.
    d.arrow((530, 88), (530, 112), head=False)
    d.arrow((70, 112), (850, 112), head=False)
    d.words(536, 104, "instructions, a queue for each engine", anchor="start")
    engines = (
        (70, 150, "LOAD, TENSOR,\nWINDOW, GATHER"), (500, 150, "MULTIPLY"),
        (335, 330, "RATES,\nUPDATE"), (850, 150, "STORE"),
    )  # fmt: skip
    for x, y, text in engines:
        d.arrow((x, 112), (x, y - 2))
        d.words(x + 8 if x < 800 else x - 8, 128, text, 11, "start" if x < 800 else "end")
    # Load on the left, store on the right, what works on the data between them.
    d.box(20, 150, 100, 300, "Load\nengine\n\nimplicit\nim2col", "engine")
    d.box(800, 150, 100, 300, "Store\nengine\n\nepilogue:\nReLU, mask,\nFP16, check", "engine")
    d.box(160, 150, 130, 120, "Banks\n\nA, B\nindex\nstart", "buffer")
    d.box(380, 150, 240, 120, "Compute engine", "engine", top=True)
    d.box(396, 186, 68, 70, "feeders", "part", 12)
    d.box(490, 186, 116, 70, "STCE:\nR x C USPEs", "part", 12)
    d.box(660, 150, 100, 120, "Banks\n\noutput\nmask", "buffer")
    d.box(160, 330, 130, 120, "Banks\n\nweight\nmomentum\ngradient", "buffer")
    d.box(320, 330, 300, 120, "Update engine", "engine", top=True)
    for x, w, text in (
        (330, 52, "WUVE"), (396, 60, "SORE,\nrows"), (470, 66, "tile\nmemory"),
        (550, 62, "SORE,\ncolumns"),
    ):  # fmt: skip
        d.box(x, 370, w, 64, text, "part", 11.5)
    d.box(660, 330, 100, 120, "Banks\n\nweights,\nmomenta\nFF, BP copies", "buffer", 12)
    for start, end in (((122, 210), (158, 210)), ((122, 390), (158, 390))):
        d.arrow(start, end)
    d.arrow((292, 221), (366, 221), head=False, over=True)
    d.arrow((366, 221), (394, 221))
    d.arrow((466, 221), (488, 221))
    d.arrow((608, 221), (658, 221), both=True)
    d.words(639, 212, "sums", 10)
    d.arrow((762, 210), (798, 210))
    d.arrow((292, 402), (328, 402))
    for start, end in ((384, 394), (458, 468), (538, 548)):
        d.arrow((start, 402), (end, 402))
    d.arrow((614, 402), (658, 402))
    d.arrow((762, 390), (798, 390))
    # ReLU's mask comes from memory, past the engines.
    d.arrow((122, 300), (700, 300), head=False, over=True)
    d.arrow((700, 300), (710, 300), (710, 272))
    d.words(230, 294, "mask of the layer before")
    d.box(20, 500, 880, 44, "Memory: data", "outside")
    d.arrow((70, 498), (70, 452))
    d.words(80, 480, "AXI4 read", anchor="start")
    d.arrow((850, 452), (850, 498))
    d.words(840, 480, "AXI4 write", anchor="end")
    return d


def board() -> Drawing:
    """Draw the top of a board's gateware, with its pins and clock."""
    d = Drawing(940, 500, "A ULX3S: the host link, block RAM and the device in the FPGA")
    d.box(150, 14, 776, 472, "", "frame")
    d.words(168, 472, "LFE5U-85F", 12, "start", 'font-style="italic"')
    d.box(14, 40, 110, 48, "crystal\n25 MHz", "outside", 12)
    d.box(14, 110, 110, 40, "button FIRE1", "outside", 12)
    d.box(14, 222, 110, 66, "USB bridge\nFT231X", "outside", 12)
    d.box(14, 414, 110, 44, "8 LEDs", "outside", 12)
    d.box(220, 40, 150, 48, "PLL\n(not at 25 MHz)", "plain", 12)
    d.box(440, 40, 150, 48, "reset\nsynchroniser", "plain", 12)
    d.box(220, 222, 100, 66, "UART\n3 Mbaud", "engine", 12)
    d.box(380, 222, 100, 66, "framing\nCRC-32", "engine", 12)
    d.box(540, 222, 116, 66, "link server:\na request\nat a time", "engine", 12)
    d.box(730, 222, 176, 66, "block RAM\ntwo copies", "buffer", 12)
    d.box(540, 350, 116, 56, "register\nbridge", "engine", 12)
    d.box(730, 340, 176, 118, "Device\nSAT, R x C", "engine")
    d.arrow((126, 64), (218, 64), text="clk25, G2")
    d.arrow((372, 64), (438, 64), text="locked")
    d.arrow((126, 130), (515, 130), (515, 90))
    d.words(172, 124, "R1")
    d.arrow((592, 64), (690, 64))
    d.words(698, 68, "clock and reset of all", anchor="start")
    d.arrow((126, 240), (218, 240), text="rx, M1")
    d.arrow((218, 272), (126, 272))
    d.words(172, 286, "tx, L4")
    d.arrow((322, 240), (378, 240), text="bytes")
    d.arrow((378, 272), (322, 272))
    d.arrow((482, 240), (538, 240), text="bodies")
    d.arrow((538, 272), (482, 272))
    d.arrow((658, 255), (728, 255), text="words", both=True)
    d.arrow((598, 290), (598, 348), both=True)
    d.words(606, 324, "words", anchor="start")
    d.arrow((658, 378), (728, 378), text="AXI4-Lite")
    d.arrow((770, 290), (770, 338))
    d.words(762, 318, "imem", anchor="end")
    d.arrow((866, 290), (866, 338), both=True)
    d.words(874, 318, "dmem", anchor="start")
    d.arrow((728, 436), (126, 436), text="a program has ended, a request is answered")
    return d


def uspe() -> Drawing:
    """Draw a USPE's data path."""
    d = Drawing(860, 400, "A USPE: pick a lane, multiply FP16, add FP32 into a ring of sums")
    d.box(60, 140, 110, 60, "A word:\nM' lanes", "buffer")
    d.box(240, 30, 140, 50, "B value, index", "buffer")
    d.box(240, 146, 140, 48, "pick a lane", "plain")
    d.box(240, 260, 140, 56, "held weights,\n2 sets (WS)", "buffer")
    d.box(450, 140, 100, 60, "FP16 x FP16\nexact", "engine")
    d.box(630, 140, 170, 60, "FP32 adder: a ring\nof s sums", "engine")
    d.box(630, 300, 170, 56, "chain of\ns + 1 registers", "plain")
    d.arrow((8, 170), (58, 170), text="west")
    d.arrow((172, 170), (238, 170))
    d.arrow((310, 8), (310, 28))
    d.words(318, 20, "north", anchor="start")
    d.arrow((310, 82), (310, 144))
    d.arrow((310, 258), (310, 196))
    d.arrow((382, 170), (448, 170))
    d.arrow((552, 170), (628, 170))
    d.arrow((802, 170), (836, 170), (836, 96), (590, 96), (590, 150), (628, 150))
    d.words(713, 88, "back after s cycles")
    d.arrow((508, 328), (590, 328), (590, 190), (628, 190))
    d.words(500, 324, "sum or start\nfrom the north", anchor="end")
    d.arrow((715, 202), (715, 298))
    d.words(723, 254, "finished", anchor="start")
    d.arrow((715, 358), (715, 392))
    d.words(723, 382, "south", anchor="start")
    return d


def dataflows() -> Drawing:
    """Draw what moves and what stays in the two dataflows."""
    d = Drawing(940, 440, "Output stationary and weight stationary: what stays, what moves")
    for x0, name, stay, kind, down, note in (
        (60, "Output stationary: sums stay", "s sums", "engine", "B values, indices", "sums out"),
        (530, "Weight stationary: weights stay", "weights", "buffer", "sums",
         "sums out; δ = s · weights + 1"),
    ):  # fmt: skip
        d.words(x0 + 180, 22, name, 14, style='font-weight="bold"')
        d.words(x0 + 180, 48, f"{down} (cycles late)")
        for r in range(3):
            y = 106 + 100 * r
            late = f"{r}" if stay == "s sums" else f"{r}δ"
            d.arrow((x0 - 36, y + 26), (x0 + 38, y + 26), text=f"A +{late}")
            for c in range(3):
                x = x0 + 40 + 110 * c
                d.box(x, y, 72, 52, stay, kind, 12)
                if c < 2:
                    d.arrow((x + 74, y + 26), (x + 108, y + 26))
                d.arrow((x + 36, y + 54), (x + 36, y + 98))
        for c in range(3):
            x = x0 + 76 + 110 * c
            d.arrow((x, 62), (x, 104))
            d.words(x + 8, 84, f"+{c}", anchor="start")
        d.words(x0 + 180, 428, note)
    return d


def timeline() -> Drawing:
    """Draw the engines' work on a small product, from the exact cycle model."""
    config = SatConfig()
    product = Product(32, 64, 96, 2, 8)
    mapping = OsMapping(split=1, chunk_words=12, rows_outer=True, row_block=2)
    program = compile_product(product, config, mapping).program
    prediction = predict(program, config, MemoryTiming())
    left, width, bottom = 90, 830, 190
    d = Drawing(left + width + 20, 250, "Cycles of load, compute and store of a small product")
    scale = width / prediction.cycles
    rows = {
        Opcode.LOAD: (20, "buffer"), Opcode.MULTIPLY: (80, "engine"), Opcode.STORE: (140, "outside")
    }  # fmt: skip
    for name, (y, _) in zip(("load", "compute", "store"), rows.values(), strict=True):
        d.words(left - 10, y + 20, name, 13, "end")
    d.words(left - 10, 118, "drain", 11, "end")
    for instruction, cycles in zip(program, prediction.times.tolist(), strict=True):
        if instruction.opcode is Opcode.END:
            continue
        times = Times(*cycles)
        y, kind = rows[instruction.opcode]
        multiply = instruction.opcode is Opcode.MULTIPLY
        end = times.release if multiply else times.signal
        bars = [(y, 28, times.accept, end)] + [(y + 28, 10, end, times.signal)] * multiply
        for top, height, first, last in bars:
            x, w = round(left + first * scale, 1), round((last - first) * scale, 1)
            d.box(x, top, w, height, "", kind)
    d.arrow((left, bottom), (left + width, bottom), head=False)
    for cycle in range(0, prediction.cycles + 1, 250):
        x = round(left + cycle * scale, 1)
        d.arrow((x, bottom), (x, bottom + 6), head=False)
        d.words(x, bottom + 20, str(cycle))
    d.words(left + width / 2, bottom + 42, f"cycle (of {prediction.cycles}): 32x64x96, 2:8, on 8x8")
    return d


def main() -> None:
    """Draw all figures."""
    FIGURES.mkdir(exist_ok=True)
    for draw in (device, board, uspe, dataflows, timeline):
        (FIGURES / f"{draw.__name__}.svg").write_text(draw().text())


if __name__ == "__main__":
    main()
