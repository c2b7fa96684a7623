"""How logic is mapped for an ECP5: with the delays that it has once it is placed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from sat.fpga.wheels import run_yosys

WIRE_PS = 1300
"""A wire, on the slow paths of a placed 4x4. Yosys takes 300 ps: paths come out that are many
short steps, and as many wires."""
PERIOD_SHARE = 0.85
"""What of a period paths may take by these delays: placement makes some wires longer. With less a
4x4 has more LUTs, and wires, than can be placed well."""


@dataclass(frozen=True)
class _SlowCell:
    """A cell that Yosys takes to answer at once.

    ``picoseconds`` is what it takes from the clock of its registers or of those in front of it;
    ``pins`` and ``parameters`` match the names of those that Yosys connects and sets.
    """

    picoseconds: int
    pins: str
    parameters: str


_SLOW_CELLS = {
    "DP16KD": _SlowCell(5400, r".*", r"INITVAL_|DATA_|REG|RES|ASYNC|CLK|CSD|WRITE|GSR"),
    "MULT18X18D": _SlowCell(6500, r"[ABCP]\d|SIGNED[AB]|SOURCE", r"$"),
}


def mapping_script(clock_hz: int, netlist: str) -> tuple[str, ...]:
    """Return what Yosys does to make a netlist of ``top.il`` and `mapping_files`.

    Parameters
    ----------
    clock_hz : int
        Frequency to map for.
    netlist : str
        File to write, JSON.
    """
    return (
        "read_rtlil top.il",
        "synth_ecp5 -cmp2softlogic -top top -run :map_luts",
        "read_verilog -lib -specify delays.v",
        *(f"chtype -set SLOW_{cell} t:{cell}" for cell in _SLOW_CELLS),
        "techmap -map slow.v",
        "clean",
        # Without a period abc9 maps for the least delay, at any price.
        f"scratchpad -set abc9.D {round(PERIOD_SHARE * 1e12 / clock_hz)}",
        f"abc9 -W {WIRE_PS}",
        "clean",
        "techmap -map plain.v",
        "clean",
        f"synth_ecp5 -top top -run map_cells: -json {netlist}",
    )


def mapping_files() -> dict[str, str]:
    """Return Verilog that puts boxes of delay behind slow cells, and takes them away.

    Returns
    -------
    dict of str
        ``delays.v``: the boxes. ``slow.v``: cells called ``SLOW_…`` as cells with boxes behind
        their outputs. ``plain.v``: a box as a wire.

    Raises
    ------
    BuildError
        Yosys is missing.
    """
    others = "".join(f" ={cell} %d" for cell in _SLOW_CELLS)
    script = (
        "read_verilog -lib +/lattice/cells_sim_ecp5.v +/lattice/cells_bb_ecp5.v",
        f"delete =*{others}",
        "write_json cells.json",
    )
    cells = json.loads(run_yosys({}, script, "cells.json").read_text())["modules"]
    boxes, slow, plain = [], [], []
    for cell, what in _SLOW_CELLS.items():
        box = f"DELAY_{cell}"
        boxes.append(
            f"(* abc9_box *) module {box} (input I, output O);\n"
            f"specify (I => O) = {what.picoseconds}; endspecify\nendmodule"
        )
        plain.append(
            f'(* techmap_celltype = "{box}" *) module plain_{cell} (input I, output O);\n'
            "assign O = I;\nendmodule"
        )
        ports = {
            name: port["direction"]
            for name, port in cells[cell]["ports"].items()
            if re.match(what.pins, name)
        }
        defaults = cells[cell]["parameter_default_values"]
        parameters = [name for name in defaults if re.match(what.parameters, name)]
        outputs = [name for name, direction in ports.items() if direction == "output"]
        given = ", ".join(f".{name}({name})" for name in parameters)
        values = f"#({given})" if parameters else ""
        pins = ", ".join(f".{name}({'early_' if name in outputs else ''}{name})" for name in ports)
        slow.append(
            "\n".join(
                (
                    f'(* techmap_celltype = "SLOW_{cell}" *) module slow_{cell} (',
                    ", ".join(f"{direction} {name}" for name, direction in ports.items()),
                    ");",
                    *(f"parameter {name} = 0;" for name in parameters),
                    *(f"wire early_{name};" for name in outputs),
                    f"{cell} {values} _TECHMAP_REPLACE_ ({pins});",
                    *(f"{box} box_{name} (.I(early_{name}), .O({name}));" for name in outputs),
                    "endmodule",
                )
            )
        )
    texts = {"delays.v": boxes, "slow.v": slow, "plain.v": plain}
    return {name: "\n".join(modules) + "\n" for name, modules in texts.items()}
