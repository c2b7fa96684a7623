"""From components to Verilog text, with repeated leaves emitted once.

Amaranth writes one Verilog module for each instance of a component. For an array of a thousand
equal elements that is a thousand equal modules. `leaf` makes a component appear as an instance
of a module that is written once; on any other platform (Amaranth's own simulator) it is the
component itself.

A simulator that has something faster than Verilog for a part of the design takes it out: what
lies behind `part` can be left out of the text, and its ports become ports of the top.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from amaranth import *
from amaranth.back import verilog
from amaranth.hdl import Fragment, Instance, UnusedElaboratable
from amaranth.lib import wiring


class VerilogPlatform:
    """What `emit` elaborates for: it collects the leaves' modules and the parts' ports.

    Parameters
    ----------
    outside, shown, distributed_ram
        As for `emit`.

    Attributes
    ----------
    leaves : dict of str
        Verilog text of each leaf, by module name.
    ports : dict of str
        Signals at the parts' edges, by the names that they have as ports of the top.
    """

    def __init__(
        self,
        outside: Collection[str] = (),
        shown: Collection[str] = (),
        distributed_ram: bool = False,
    ) -> None:
        self.outside, self.shown = frozenset(outside), frozenset(shown)
        self.distributed_ram = distributed_ram
        self.leaves: dict[str, str] = {}
        self.ports: dict[str, Value] = {}


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


def part_ports(component: wiring.Component, name: str) -> dict[str, Value]:
    """Return the signals of a component by the names they have when it is taken out as a part.

    Element i of the member ``a`` of the part ``stce`` is ``stce_a_i``.
    """
    return {
        "_".join(map(str, (name, *path))): Value.cast(value)
        for path, _, value in component.signature.flatten(component)
    }


def part(platform: Any, component: wiring.Component, name: str) -> Elaboratable:
    """Return what to add to ``m.submodules`` for a component that `emit` may leave out.

    Parameters
    ----------
    platform
        The platform under elaboration.
    component : Component
        The part; connect its members as usual.
    name : str
        What `emit` calls it.
    """
    if not isinstance(platform, VerilogPlatform):
        return component
    if name in platform.outside | platform.shown:
        platform.ports |= part_ports(component, name)
    if name not in platform.outside:
        return component
    component._MustUse__used = True  # only its signals were wanted
    return Module()


def _convert(
    component: wiring.Component, name: str, platform: VerilogPlatform, parts: bool = False
) -> str:
    fragment = Fragment.get(component, platform)
    ports = {
        "__".join(map(str, path)): Value.cast(value)
        for path, _, value in component.signature.flatten(component)
    }
    if parts:
        ports |= platform.ports
    text, _ = verilog.convert_fragment(
        fragment,
        {port: (value, None) for port, value in ports.items()},
        name,
        emit_src=False,
        strip_internal_attrs=True,
    )
    return text


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


_ELEMENT = re.compile(r"\\\S*\[\S*")


def plain_names(text: str) -> str:
    """Return Verilog or RTLIL without brackets in names.

    Elements of arrays have names such as ``\\x[0]``, which Yosys' abc9 takes for bit 0 of ``x``.
    """
    return _ELEMENT.sub(lambda match: match[0].replace("[", "(").replace("]", ")"), text)


def emit(
    component: wiring.Component,
    name: str = "top",
    *,
    outside: Collection[str] = (),
    shown: Collection[str] = (),
    distributed_ram: bool = False,
) -> str:
    """Return a component and all its leaves as one Verilog text.

    The text depends on the component and the options alone: no paths, no source lines.

    Parameters
    ----------
    component : Component
    name : str
        Name of the module.
    outside : collection of str
        Parts (`part`) that are left out: what they take becomes outputs of the module, what they
        give becomes inputs, named as in `part_ports`.
    shown : collection of str
        Parts that stay, and whose signals are outputs besides.
    distributed_ram : bool
        For an FPGA whose LUTs are memories of 32 words: what would be many registers and a choice
        among them is a small memory. Bits and cycles are the same.

    Raises
    ------
    ValueError
        The component has no such part.
    """
    platform = VerilogPlatform(outside, shown, distributed_ram)
    try:
        top = _convert(component, name, platform, parts=True)
    except KeyboardInterrupt:
        _end_yosys()
        # What was half elaborated is dropped unused, which is no mistake of a component's.
        warnings.simplefilter("ignore", UnusedElaboratable)
        raise
    for wanted in sorted(platform.outside | platform.shown):
        if not any(port.startswith(f"{wanted}_") for port in platform.ports):
            raise ValueError(
                f"{type(component).__name__} has no part {wanted!r}: name one that its elaboration "
                "hands to sat.rtl.verilog.part"
            )
    text = plain_names("\n".join([top, *platform.leaves.values()]))
    # A cleared memory is written out word by word: half of the text of a device.
    return _ZEROS.sub(_short_zeros, text)
