"""What each block of a device takes of an UltraScale+, and how long its paths are."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from sat.fpga.estimate import Paths, paths_of
from sat.fpga.modules import Modules
from sat.fpga.ultrascale import UltraArea, area_of, pairs_of, synthesis
from sat.fpga.wheels import run_yosys
from sat.rtl.config import SatConfig
from sat.rtl.device import Device
from sat.rtl.verilog import emit

LEAVES = frozenset({"uspe", "wuve", "sore_lane"})
"""Modules that `emit` writes once, however often they are there: synthesised once, too."""


@dataclass(frozen=True)
class Block:
    """A block of a device.

    Parameters
    ----------
    name : str
        Of its module; ``top`` is what is left of the device, with all others taken out.
    count : int
        How often the device has it.
    area : UltraArea
        Of one, without the leaves in it.
    paths : Paths
        Its longest paths, those that pass through leaves included.
    """

    name: str
    count: int
    area: UltraArea
    paths: Paths


class Blocks:
    """The blocks of a device, each synthesised by itself: `emit`, Yosys, a count.

    Parameters
    ----------
    config : SatConfig
    verilog : str, optional
        What `emit` wrote of it, if it is there already: a large device takes minutes.

    Attributes
    ----------
    names : list of str
        Leaves first, the device itself last.
    """

    def __init__(self, config: SatConfig, verilog: str | None = None) -> None:
        self.modules = Modules.of(verilog or emit(Device(config), distributed_ram=True))
        parts = sorted(name for name in self.modules.texts if re.fullmatch(r"top\.\w+", name))
        self._apart = dict.fromkeys((*LEAVES, *parts), LEAVES)
        self._apart["top"] = LEAVES | frozenset(parts)
        self._made: dict[str, Block] = {}
        self.names = [*sorted(LEAVES & set(self.modules.texts)), *parts, "top"]

    def netlist(self, name: str) -> dict[str, Any]:
        """Return Yosys' netlist of a block, flat, with the blocks inside it as cells.

        Raises
        ------
        sat.sim.build.BuildError
            If Yosys is missing or fails.
        """
        names = self.modules.below(name, self._apart[name])
        boxes = sorted(n for n in names if n in self._apart[name] and n != name)
        script = (
            "read_verilog top.v",
            *(f"blackbox {box}" for box in boxes),
            *synthesis(name),
            "clean -purge",
            "delete t:$scopeinfo",
            "write_json netlist.json",
        )
        text = "".join(self.modules.texts[n] for n in names)
        made = json.loads(run_yosys({"top.v": text}, script, "netlist.json").read_text())
        module: dict[str, Any] = made["modules"][name]
        return module

    def block(self, name: str) -> Block:
        """Return a block; minutes, the first time."""
        if name not in self._made:
            netlist = self.netlist(name)
            cells = Counter(cell["type"] for cell in netlist["cells"].values())
            inside = {kind: self.block(kind).paths for kind in cells if kind in self._apart}
            count = 1 if name == "top" else self.modules.count(name, "top")
            area = replace(area_of(cells), pairs=pairs_of(netlist))
            self._made[name] = Block(name, count, area, paths_of(netlist, inside))
        return self._made[name]

    def area(self) -> UltraArea:
        """Return what the whole device takes."""
        blocks = [self.block(name) for name in self.names]
        return sum((block.area * block.count for block in blocks), UltraArea())
