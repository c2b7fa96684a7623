"""What a device takes of an UltraScale+: one formula from synthesised devices, and what checks it.

Elements, edges (a row and a column) and update lanes are told apart by synthesising a USPE by
itself and devices that differ in one of them; a device that none of the terms was taken from says
how far the formula is off. Minutes for each device, the first time. Yosys, no Vivado: it pairs no
LUTs, and knows nothing of regions (docs/fpga.md).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from sat.fpga.ultrascale import XCVU9P, UltraArea, ultrascale_area
from sat.rtl.config import SatConfig
from sat.rtl.device import Device
from sat.rtl.uspe import Uspe

SMALL, LARGE, CHECK = 2, 4, 6


def config(n: int, lanes: int) -> SatConfig:
    """Return an array of n x n for 2:8 with the default pipelines."""
    return SatConfig(rows=n, cols=n, update_lanes=lanes)


def device(n: int, lanes: int) -> UltraArea:
    """Return what a device of n x n elements takes, synthesised whole."""
    area = ultrascale_area(Device(config(n, lanes)))
    print(json.dumps({"synthesised": f"{n}x{n}", "lanes": lanes} | asdict(area)), flush=True)
    return area


def main() -> None:
    """Print what was synthesised, the formula's terms, its error, and large arrays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", nargs="+", type=int, default=[16, 32], metavar="n")
    parser.add_argument("--lanes", nargs="+", type=int, default=[2, 8])
    args = parser.parse_args()
    element = ultrascale_area(Uspe(config(SMALL, 1)))
    small, large, lanes = device(SMALL, 1), device(LARGE, 1), device(LARGE, 2)
    edge = (large - small - element * (LARGE**2 - SMALL**2)) * (1 / (LARGE - SMALL))
    lane = lanes - large
    fixed = small - element * SMALL**2 - edge * SMALL - lane
    terms = {"element": element, "edge": edge, "lane": lane, "fixed": fixed}
    for name, area in terms.items():
        print(json.dumps({"term": name} | asdict(area)))

    def formula(n: int, lanes: int) -> UltraArea:
        return element * n**2 + edge * n + lane * lanes + fixed

    found, said = device(CHECK, 1), formula(CHECK, 1)
    off = {name: round(said_of / of - 1, 4) for name, said_of, of in zip(
        ("luts", "ff"), (said.luts, said.ff), (found.luts, found.ff), strict=True)}  # fmt: skip
    print(json.dumps({"checked": f"{CHECK}x{CHECK}", "formula / synthesised - 1": off}))
    for n in args.large:
        for count in args.lanes:
            area = formula(n, count)
            need = {"LUT": area.luts, "FF": area.ff, "DSP": area.dsp, "RAMB36": area.ramb36}
            shares = {what: round(of / XCVU9P[what], 3) for what, of in need.items()}
            print(json.dumps({"array": f"{n}x{n}", "lanes": count} | need | {"share": shares}))


if __name__ == "__main__":
    main()
