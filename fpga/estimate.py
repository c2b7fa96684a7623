"""How long the paths of an UltraScale+ netlist are, by a model of its cells: no place, no route.

The model: 0.40 ns for a wire from one cell to another; 0.10 ns for a LUT, distributed RAM or
shift register; 0.03 ns for four bits of a carry chain, whose own wires take nothing, as those into
the multiplexers behind LUTs (0.10 ns); 1.40 ns through a multiplier, half of it where it has a
register inside; 0.90 ns for a block RAM's word. Registers take nothing, loads count for nothing. It
tells which paths are long and by how much; placed, they are some 30 % off either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sat.sim.build import BuildError

WIRE, LUT, CARRY, MULTIPLY, BLOCK_RAM = 0.40, 0.10, 0.03, 1.40, 0.90
"""Nanoseconds, as the module says."""

_LUTS = ("LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6", "INV")
_WIDE = ("MUXF7", "MUXF8", "MUXF9")
# Of distributed RAM and shift registers: addresses by the outputs that they read.
_READ_PORTS: dict[str, dict[str, tuple[str, ...]]] = {
    "SRL16E": {"Q": ("A0", "A1", "A2", "A3")},
    "SRLC32E": {"Q": ("A",), "Q31": ()},
    **{
        f"RAM{1 << bits}X1D": {
            output: tuple(f"{address}{n}" for n in range(bits))
            for output, address in (("DPO", "DPRA"), ("SPO", "A"))
        }
        for bits in (5, 6)
    },
    **{ram: {f"DO{x}": (f"ADDR{x}",) for x in "ABCD"} for ram in ("RAM32M", "RAM64M")},
    **{ram: {f"DO{x}": (f"ADDR{x}",) for x in "ABCDEFGH"} for ram in ("RAM32M16", "RAM64M8")},
}  # fmt: skip
_DSP_REGISTERS = {"A": "AREG", "B": "BREG", "C": "CREG", "D": "DREG"}


@dataclass(frozen=True)
class Step:
    """The end of a path so far.

    Parameters
    ----------
    ns : float
    levels : int
        LUTs, multiplexers and multipliers on it.
    carries : int
        Carry cells on it.
    where : str
        The register, memory or port where it began.
    """

    ns: float = 0.0
    levels: int = 0
    carries: int = 0
    where: str = ""

    def then(self, ns: float, levels: int = 0, carries: int = 0) -> Step:
        """Return the path with more behind it."""
        return Step(self.ns + ns, self.levels + levels, self.carries + carries, self.where)


@dataclass(frozen=True)
class Path(Step):
    """A whole path."""

    to: str = ""

    def __str__(self) -> str:
        carries = f" + {self.carries}" if self.carries else ""
        return f"{self.ns:.1f} ns, {self.levels}{carries}: {self.where} -> {self.to}"


@dataclass
class Paths:
    """The longest paths of a module.

    Attributes
    ----------
    inside : list of Path
        Between its own registers and memories, the longest of each end, longest first.
    given : dict of Step
        By output: from a register to it.
    taken : dict of Path
        By input: from it to a register.
    through : dict of dict of Step
        By output and input: with no register between.
    """

    inside: list[Path] = field(default_factory=list)
    given: dict[str, Step] = field(default_factory=dict)
    taken: dict[str, Path] = field(default_factory=dict)
    through: dict[str, dict[str, Step]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Arc:
    """What a cell makes of an input bit: an output bit, later."""

    source: int
    target: int
    wire: float
    ns: float
    levels: int
    carries: int


def paths_of(module: Mapping[str, Any], boxes: Mapping[str, Paths] | None = None) -> Paths:
    """Return the longest paths of a flat module.

    Parameters
    ----------
    module : dict
        Of Yosys' JSON: cells of an UltraScale+, and modules that are known by their paths.
    boxes : mapping of str to Paths
        These modules.

    Raises
    ------
    BuildError
        A cell is of another kind, or a loop has no register.
    """
    return _Graph(module, boxes or {}).paths()


class _Graph:
    def __init__(self, module: Mapping[str, Any], boxes: Mapping[str, Paths]) -> None:
        self.boxes = boxes
        self.names = _names(module)
        self.arcs: dict[int, list[_Arc]] = {}  # by target
        self.begins: dict[int, Step] = {}
        self.ends: list[tuple[int, float, int, int, str]] = []  # bit, ns, levels, carries, name
        self.ports = module["ports"]
        for name, cell in module["cells"].items():
            self._add(name, cell)

    def _add(self, name: str, cell: Mapping[str, Any]) -> None:
        kind, wires = cell["type"], cell["connections"]
        ins = {port for port, way in cell["port_directions"].items() if way == "input"}
        if kind in _LUTS or kind in _WIDE:
            wide = kind in _WIDE
            for port in ins:
                # Into a wide multiplexer LUTs have wires of their own, what selects has not.
                near = wide and port != "S"
                self._arc(wires[port], wires["O"], 0.0 if near else WIRE, LUT, 1)
        elif kind == "CARRY4":
            self._carry(wires)
        elif kind.startswith("FD"):
            self._begin(wires["Q"], Step(where=self._named(wires["Q"], name)))
            self._end(wires, ins - {"C"}, self._named(wires["Q"], name))
        elif kind in _READ_PORTS:
            outputs = [port for port in _READ_PORTS[kind] if port in wires]
            label = next((self._named(wires[p], name) for p in outputs if wires[p]), name)
            read = set()
            for output in outputs:
                self._begin(wires[output], Step(LUT, 1, 0, label))
                for port in _READ_PORTS[kind][output]:
                    read.add(port)
                    self._arc(wires.get(port, []), wires[output], WIRE, LUT, 1)
            self._end(wires, ins - {"CLK", "WCLK"}, label)
        elif kind == "DSP48E2":
            self._multiplier(name, cell["parameters"], wires)
        elif kind.startswith("RAMB"):
            outputs = [port for port in wires if port not in ins]
            label = next((self._named(wires[p], name) for p in sorted(outputs) if wires[p]), name)
            for port in outputs:
                self._begin(wires[port], Step(BLOCK_RAM, 0, 0, label))
            self._end(wires, {port for port in ins if not port.startswith("CLK")}, label)
        elif kind in self.boxes:
            self._box(name, self.boxes[kind], wires)
        elif kind not in ("VCC", "GND", "BUFG", "$scopeinfo"):
            raise BuildError(f"cell {name} is a {kind}: the model of paths does not know it")

    def _carry(self, wires: Mapping[str, list[Any]]) -> None:
        # The carry into bit n comes from the bits below; O[n] is of S[n], too.
        for bit in range(4):
            for output, below in (("O", bit), ("CO", bit + 1)):
                target = wires[output][bit : bit + 1]
                self._arc(wires["CI"], target, 0.0, CARRY, 0, 1)
                self._arc(wires["CYINIT"], target, WIRE, CARRY, 0, 1)
                self._arc(wires["S"][: bit + 1], target, WIRE, CARRY, 0, 1)
                self._arc(wires["DI"][:below], target, WIRE, CARRY, 0, 1)

    def _multiplier(self, name: str, how: Mapping[str, Any], wires: Mapping[str, Any]) -> None:
        def registers(parameter: str) -> int:
            value = how.get(parameter, 0)
            return int(value, 2) if isinstance(value, str) else int(value)

        label = self._named(wires["P"], name)
        inner, last = registers("MREG"), registers("PREG")
        outputs = [*wires["P"], *wires.get("PCOUT", [])]
        before = MULTIPLY / 2 if inner else MULTIPLY
        half = MULTIPLY / 2
        for port, parameter in _DSP_REGISTERS.items():
            bits = wires.get(port, [])
            multiplies = port in "AB"
            if registers(parameter):
                self._end_bits(bits, WIRE, 0, 0, label)
            elif multiplies and inner:
                self._end_bits(bits, WIRE + before, 1, 0, label)
            elif last:
                self._end_bits(bits, WIRE + (MULTIPLY if multiplies else half), 1, 0, label)
            else:
                self._arc(bits, outputs, WIRE, MULTIPLY if multiplies else half, 1)
        cascade = wires.get("PCIN", [])
        if last:
            self._end_bits(cascade, half, 1, 0, label)
            self._begin(outputs, Step(where=label))
        else:
            self._arc(cascade, outputs, 0.0, half, 1)
            if inner or registers("AREG") or registers("BREG"):
                self._begin(outputs, Step(half if inner else MULTIPLY, 1, 0, label))
        rest = set(wires) - {*_DSP_REGISTERS, "P", "PCOUT", "PCIN", "CLK"}
        self._end(wires, {port for port in rest if port.startswith(("CE", "RST"))}, label)

    def _box(self, name: str, box: Paths, wires: Mapping[str, list[Any]]) -> None:
        for port, step in box.given.items():
            self._begin(wires[port], Step(step.ns, step.levels, step.carries, f"{name}.{port}"))
        for port, path in box.taken.items():
            end = f"{name}.{port}"
            self._end_bits(wires[port], WIRE + path.ns, path.levels, path.carries, end)
        for output, inputs in box.through.items():
            for port, step in inputs.items():
                self._arc(wires[port], wires[output], WIRE, step.ns, step.levels, step.carries)

    def _arc(
        self,
        sources: Iterable[Any],
        targets: Iterable[Any],
        wire: float,
        ns: float,
        levels: int,
        carries: int = 0,
    ) -> None:
        known = [bit for bit in sources if isinstance(bit, int)]
        for target in targets:
            self.arcs.setdefault(target, []).extend(
                _Arc(source, target, wire, ns, levels, carries) for source in known
            )

    def _begin(self, bits: Iterable[Any], step: Step) -> None:
        for bit in bits:
            if bit not in self.begins or self.begins[bit].ns < step.ns:
                self.begins[bit] = step

    def _end(self, wires: Mapping[str, list[Any]], ports: Iterable[str], label: str) -> None:
        for port in ports:
            self._end_bits(wires.get(port, []), WIRE, 0, 0, label)

    def _end_bits(
        self, bits: Iterable[Any], ns: float, levels: int, carries: int, label: str
    ) -> None:
        self.ends += [(bit, ns, levels, carries, label) for bit in bits if isinstance(bit, int)]

    def _named(self, bits: list[Any], cell: str) -> str:
        return next((self.names[bit] for bit in bits if bit in self.names), cell)

    def _order(self) -> list[int]:
        """Return the bits that arcs lead to, each behind those that it comes from."""
        order: list[int] = []
        state: dict[int, int] = {}
        for root in self.arcs:
            stack = [(root, iter(self.arcs[root]))] if root not in state else []
            state.setdefault(root, 1)
            while stack:
                bit, rest = stack[-1]
                for arc in rest:
                    seen = state.get(arc.source)
                    if seen == 1:
                        raise BuildError(
                            f"{self.names.get(bit, bit)} depends on itself without a register"
                        )
                    if seen is None and arc.source in self.arcs:
                        state[arc.source] = 1
                        stack.append((arc.source, iter(self.arcs[arc.source])))
                        break
                else:
                    state[bit] = 2
                    order.append(bit)
                    stack.pop()
        return order

    def _arrivals(self, begins: Mapping[int, Step], order: list[int]) -> dict[int, Step]:
        found = dict(begins)
        for bit in order:
            best = found.get(bit)
            for arc in self.arcs[bit]:
                before = found.get(arc.source)
                if before is None:
                    continue
                ns = before.ns + arc.wire + arc.ns
                if best is None or ns > best.ns:
                    best = before.then(arc.wire + arc.ns, arc.levels, arc.carries)
            if best is not None:
                found[bit] = best
        return found

    def paths(self) -> Paths:
        order = self._order()
        made = Paths()
        arrived = self._arrivals(self.begins, order)
        made.inside = list(self._ended(arrived))
        inputs = self._bits("input")
        outputs = self._bits("output")
        made.given = _latest(arrived, outputs)
        place = {bit: number for number, bit in enumerate(order)}
        leads: dict[int, list[int]] = {}
        for bit in order:
            for arc in self.arcs[bit]:
                leads.setdefault(arc.source, []).append(bit)
        for port, bits in inputs.items():
            begins = {bit: Step(where=port) for bit in bits}
            reached, rest = set(), list(bits)
            while rest:
                for bit in leads.get(rest.pop(), ()):
                    if bit not in reached:
                        reached.add(bit)
                        rest.append(bit)
            arrived = self._arrivals(begins, sorted(reached, key=place.__getitem__))
            ended = next(self._ended(arrived), None)
            if ended is not None:
                made.taken[port] = ended
            for output, step in _latest(arrived, outputs).items():
                made.through.setdefault(output, {})[port] = step
        return made

    def _ended(self, arrived: Mapping[int, Step]) -> Iterator[Path]:
        """Yield the longest path to each end, longest first."""
        best: dict[str, Path] = {}
        for bit, ns, levels, carries, name in self.ends:
            step = arrived.get(bit)
            if step is None:
                continue
            total = step.ns + ns
            if name not in best or total > best[name].ns:
                best[name] = Path(
                    total, step.levels + levels, step.carries + carries, step.where, name
                )
        yield from sorted(best.values(), key=lambda path: -path.ns)

    def _bits(self, way: str) -> dict[str, list[int]]:
        return {
            name: [bit for bit in port["bits"] if isinstance(bit, int)]
            for name, port in self.ports.items()
            if port["direction"] == way and name not in ("clk",)
        }


def _latest(arrived: Mapping[int, Step], outputs: Mapping[str, list[int]]) -> dict[str, Step]:
    """Return the longest path to each output that there is one to."""
    found = {}
    for port, bits in outputs.items():
        steps = [arrived[bit] for bit in bits if bit in arrived]
        if steps:
            found[port] = max(steps, key=lambda step: step.ns)
    return found


def _names(module: Mapping[str, Any]) -> dict[int, str]:
    """Return the shortest name of each bit that somebody wrote."""
    names: dict[int, str] = {}
    for name, net in module["netnames"].items():
        if net.get("hide_name"):
            continue
        for bit in net["bits"]:
            if isinstance(bit, int) and (
                bit not in names or (len(name), name) < (len(names[bit]), names[bit])
            ):
                names[bit] = name
    return names
