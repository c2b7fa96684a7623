"""From components to Verilog text, with repeated leaves emitted once.

Amaranth writes one Verilog module for each instance of a component. For an array of a thousand
equal elements that is a thousand equal modules. `leaf` makes a component appear as an instance
of a module that is written once; on any other platform (Amaranth's own simulator) it is the
component itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amaranth import *
from amaranth.back import verilog
from amaranth.hdl import Instance, UnusedElaboratable
from amaranth.lib import wiring


class VerilogPlatform:
    """What `emit` elaborates for: it collects the leaves' modules.

    Attributes
    ----------
    leaves : dict of str
        Verilog text of each leaf, by module name.
    """

    def __init__(self) -> None:
        self.leaves: dict[str, str] = {}


class _Leaf:
    """The ports of a leaf as attributes, and ``element``, the submodule to add."""

    element: Elaboratable | Instance

    def __init__(self, element: Any, ports: dict[str, Any]):
        self.element = element
        self.__dict__.update(ports)


def leaf(platform: Any, factory: Callable[[], wiring.Component], name: str) -> Any:
    """Return an instance of a component that is repeated often.

    Parameters
    ----------
    platform
        The platform under elaboration.
    factory : callable
        Makes the component. Its members must be plain ports, not interfaces or arrays.
    name : str
        Name of the Verilog module; components with equal names must be equal.

    Returns
    -------
    object
        The ports as attributes, and ``element``, to be added to ``m.submodules``.
    """
    component = factory()
    members = component.signature.members
    if not isinstance(platform, VerilogPlatform):
        return _Leaf(component, {port: getattr(component, port) for port in members})
    if name not in platform.leaves:
        platform.leaves[name] = ""  # a leaf that contained itself would end here
        platform.leaves[name] = _convert(component, name, platform)
    else:
        component._MustUse__used = True  # only its signature was wanted
    ports, connections = {}, {}
    for port, member in members.items():
        ports[port] = Signal(member.shape, name=port)
        direction = "i" if member.flow == wiring.In else "o"
        connections[f"{direction}_{port}"] = Value.cast(ports[port])
    instance = Instance(name, i_clk=ClockSignal(), i_rst=ResetSignal(), **connections)
    return _Leaf(instance, ports)


def _convert(component: wiring.Component, name: str, platform: VerilogPlatform) -> str:
    return verilog.convert(
        component, name=name, platform=platform, emit_src=False, strip_internal_attrs=True
    )


def _end_yosys() -> None:
    """End what Amaranth started and, interrupted, left to itself."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and b"yosys" in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


_ZEROS = re.compile(
    r"(?P<indent> *)initial begin\n(?: *(?P<name>\S+?) ?\[\d+\] = \d+'[hd]0+;\n)+ *end\n"
)


def _short_zeros(match: re.Match[str]) -> str:
    lines = match[0].count("\n") - 2
    name, indent = match["name"], match["indent"]
    word = "clear_" + re.sub(r"\W", "_", name)
    return (
        f"{indent}integer {word};\n"
        f"{indent}initial for ({word} = 0; {word} < {lines}; {word} = {word} + 1)\n"
        f"{indent}  {name} [{word}] = 0;\n"
    )


def emit(component: wiring.Component, name: str = "top") -> str:
    """Return a component and all its leaves as one Verilog text.

    The text depends on the component alone: no paths, no source lines.
    """
    platform = VerilogPlatform()
    try:
        top = _convert(component, name, platform)
    except KeyboardInterrupt:
        _end_yosys()
        # What was half elaborated is dropped unused, which is no mistake of a component's.
        warnings.simplefilter("ignore", UnusedElaboratable)
        raise
    text = "\n".join([top, *platform.leaves.values()])
    # A cleared memory is written out word by word: half of the text of a device.
    return _ZEROS.sub(_short_zeros, text)
