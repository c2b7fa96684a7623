"""A device on a VCU1525's FPGA, block by block, by Yosys: what each takes, and its longest paths.

Tables in Markdown: LUTs, flip-flops, multipliers and block RAMs beside the part's, in all and in
each of its three regions as `sat.fpga.vivado` deals the rows to them; the worst path of each block
by the model of `sat.fpga.estimate`. Half an hour, the first time; no Vivado, which would pair LUTs.
``python benchmarks/bench_vcu1525.py [--array 32x32] [--lanes 8] [--clock 200]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sat.fpga import vcu1525
from sat.fpga.blocks import Blocks
from sat.fpga.card import CARD_CONFIG
from sat.fpga.ultrascale import XCVU9P, UltraArea
from sat.fpga.vivado import ENGINES, rows_of_regions
from sat.sim.build import BuildError

HEAD = ("block", "count", "LUT", "of them memory", "in pairs", "FF", "DSP", "RAMB36")


def row(*values: object) -> str:
    """Return a line of a table."""
    texts = (f"{value:,}" if isinstance(value, int) else str(value) for value in values)
    return f"| {' | '.join(texts)} |"


def cells(area: UltraArea) -> tuple[int, ...]:
    """Return an area as a table has it, rounded up."""
    found = (area.luts, area.memory_lut, area.shared_luts, area.ff, area.dsp, area.ramb36)
    return tuple(int(-(-value // 1)) for value in found)


def share(area: UltraArea, parts: int = 1) -> tuple[str, ...]:
    """Return what an area is of the FPGA, or of one of its regions."""
    whole = [("LUT", area.luts), ("LUT", area.shared_luts), ("FF", area.ff), ("DSP", area.dsp)]
    whole.append(("RAMB36", area.ramb36))
    found = [f"{value * parts / XCVU9P[what]:.1%}" for what, value in whole]
    return (found[0], "", *found[1:])


def areas(blocks: Blocks, names: Iterable[str], rows: int, cols: int) -> None:
    """Print what blocks take, their sum, and that of each region."""
    print(row(*HEAD))
    print(row(*["---"] * len(HEAD)))
    total = UltraArea()
    for name in names:
        block = blocks.block(name)
        print(row(name, block.count, *cells(block.area)))
        total += block.area * block.count
    print(row("**sum**", "", *cells(total)))
    print(row("of the FPGA", "", *share(total)))
    element = blocks.block("uspe").area
    # WUVEs and SORE lanes are the update engine's; banks and all else go where there is room.
    middle = {"wuve", "sore_lane", *(f"top.{engine}" for engine in ENGINES)}
    engines, free = (
        sum((blocks.block(n).area * blocks.block(n).count for n in chosen), UltraArea())
        for chosen in (middle & set(names), set(names) - middle - {"uspe"})
    )
    for number, region in enumerate(rows_of_regions(rows, cols)):
        area = element * (len(region) * cols) + (engines if number == 1 else UltraArea())
        print(row(f"of SLR{number}, {len(region)} rows", "", *share(area, vcu1525.SLRS)))
    print(row("of the FPGA, in any of them", "", *share(free)))
    print()


def paths(blocks: Blocks, names: Iterable[str], period: float) -> None:
    """Print the worst path of each block, and how many ends are later than a period."""
    print(row("block", "worst, ns", "levels + carries", "from → to", f"ends over {period:g} ns"))
    print(row(*["---"] * 5))
    for name in names:
        found = blocks.block(name).paths.inside
        if found:
            worst, late = found[0], sum(path.ns > period for path in found)
            levels = f"{worst.levels} + {worst.carries}"
            ends = f"`{worst.where}` → `{worst.to}`"
            print(row(name, f"{worst.ns:.1f}", levels, ends, f"{late} of {len(found)}"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--array", default="32x32")
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--clock", type=float, default=200.0, help="MHz")
    parser.add_argument("--verilog", type=Path, help="of the device, instead of the project's own")
    parser.add_argument("--blocks", nargs="+", help="only these")
    args = parser.parse_args()
    config = replace(CARD_CONFIG.with_array(args.array), update_lanes=args.lanes)
    blocks = Blocks(config, None if args.verilog is None else args.verilog.read_text())
    names = args.blocks or blocks.names
    unknown = [name for name in names if name not in blocks.names]
    if unknown:
        raise BuildError(f"no block {unknown[0]}: there are {', '.join(blocks.names)}")
    areas(blocks, names, config.rows, config.cols)
    paths(blocks, names, 1e3 / args.clock)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
