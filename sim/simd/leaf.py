"""A leaf's cycle as C++ statements: what it holds, what comes next, what its neighbours see."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain

from sat.sim.simd.cells import Assignment, in_form, translate
from sat.sim.simd.netlist import Bit, Bits, Cell, Netlist, NetlistError
from sat.sim.simd.values import LANE_BITS, Cuts, Values, Variable, low


@dataclass(frozen=True)
class Register:
    """A variable that holds its value from cycle to cycle.

    Parameters
    ----------
    variable : Variable
    start : int
        Its first value, as a lane keeps it.
    next : str
        C++ of its value in the next cycle.
    """

    variable: Variable
    start: int
    next: str


@dataclass(frozen=True)
class Memory:
    """A memory: its name, words, and the C++ statements that write it at the end of a cycle."""

    name: str
    words: int
    writes: tuple[str, ...]


class Leaf:
    """The translation of a netlist with one clock.

    Parameters
    ----------
    netlist : Netlist
    links : mapping of str to str
        Inputs that come from the same leaf next door, each with the output that it comes from.
    uniform : collection of str
        Inputs of one bit that are the same for all leaves.
    clock : str
        The input whose rising edge moves all registers.

    Attributes
    ----------
    inputs : dict of str
        For each link, the variables that its input is cut into.
    outputs : dict of str
        For each link, what the neighbour's input gets: its variables with C++ over registers.
    registers, memories, statements
        What is held, and the assignments of a cycle in their order.

    Raises
    ------
    NetlistError
        A cell has no translation, an input is neither linked nor uniform, a linked output depends
        on the inputs of the same cycle, or logic depends on itself.
    """

    def __init__(
        self,
        netlist: Netlist,
        links: Mapping[str, str],
        uniform: Collection[str],
        clock: str = "clk",
    ):
        self.netlist, self.links, self.uniform, self.clock = netlist, dict(links), uniform, clock
        self._values = Values()
        self._check_ports()
        logic = []
        sources: list[Bits] = [netlist.ports[port].bits for port in links]
        held: list[Cell] = []
        memories: list[Cell] = []
        for cell in netlist.cells:
            if cell.type == "$dff":  # enables and resets are multiplexers before it
                held.append(cell)
                sources.append(cell.connections["Q"])
            elif cell.type == "$mem_v2":
                memories.append(cell)
                sources.append(cell.connections["RD_DATA"])
            else:
                logic.append(cell)
                sources.append(cell.connections.get("Y", ()))
        self._cuts = Cuts(netlist, sources)
        for port in uniform:
            self._values.place(f"u_{port}", [netlist.ports[port].bits])
        self.inputs = {
            port: self._values.place(f"i_{port}", self._cuts.pieces(netlist.ports[port].bits))
            for port in links
        }
        places = [
            self._values.place(f"q{number}", self._cuts.pieces(cell.connections["Q"]))
            for number, cell in enumerate(held)
        ]
        self.statements: list[tuple[Assignment, set[str]]] = []
        self._order(logic, memories)
        self.registers = [
            register
            for cell, variables in zip(held, places, strict=True)
            for register in self._registers(cell, variables)
        ]
        self.memories = [self._memory(f"m{n}", cell) for n, cell in enumerate(memories)]
        self.outputs = {port: self._output(port, links[port]) for port in links}

    def _check_ports(self) -> None:
        ports, known = self.netlist.ports, {self.clock, *self.uniform, *self.links}
        for port in sorted(known - ports.keys()):
            raise NetlistError(f"{self.netlist.name} has no port {port!r}: it has {list(ports)}")
        for name, found in ports.items():
            if found.direction == "input" and name not in known:
                raise NetlistError(
                    f"input {name!r} of {self.netlist.name} is neither linked nor uniform: name "
                    "the neighbour's output that drives it"
                )
        for name in self.uniform:
            if len(ports[name].bits) != 1:
                raise NetlistError(f"uniform input {name!r}: it must have one bit")
        for port, out in self.links.items():
            widths = len(ports[port].bits), len(ports[out].bits)
            if widths[0] != widths[1]:
                raise NetlistError(f"{port!r} has {widths[0]} bits, but {out!r} has {widths[1]}")

    def _order(self, logic: list[Cell], memories: list[Cell]) -> None:
        """Translate combinational cells, each after those that it reads."""
        readers: dict[Bit, list[int]] = {}
        jobs: list[tuple[Cell, Bits, Bits]] = []
        for cell in logic:
            inputs = (bits for port, bits in cell.connections.items() if port != "Y")
            jobs.append((cell, tuple(chain(*inputs)), cell.connections.get("Y", ())))
        for cell in memories:
            self._check_memory(cell)
            jobs.append((cell, cell.connections["RD_ADDR"], cell.connections["RD_DATA"]))
        made_here = {bit for _, _, made in jobs for bit in made}
        missing = []
        for number, (_, reads, _) in enumerate(jobs):
            waits = set(reads) & made_here
            missing.append(len(waits))
            for bit in waits:
                readers.setdefault(bit, []).append(number)
        ready = [number for number, count in enumerate(missing) if count == 0]
        done = 0
        for number in ready:  # grows while it is walked
            cell, reads, made = jobs[number]
            done += 1
            if cell.type == "$mem_v2":
                assignments = self._reads(f"m{memories.index(cell)}", cell, f"w{number}")
            else:
                assignments = translate(cell, self._values, self._cuts, f"w{number}")
            needs = self._values.needs(reads)
            self.statements += [(assignment, needs) for assignment in assignments]
            for bit in set(made):
                for reader in readers.get(bit, ()):
                    missing[reader] -= 1
                    if missing[reader] == 0:
                        ready.append(reader)
        if done < len(jobs):
            stuck = next(job[0] for job, count in zip(jobs, missing, strict=True) if count)
            raise stuck.fail("it depends on its own result within a cycle")

    def _registers(self, cell: Cell, variables: list[Variable]) -> list[Register]:
        taken, clock = cell.connections, self.netlist.ports[self.clock].bits
        if taken["CLK"] != clock or not cell.parameters["CLK_POLARITY"]:
            raise cell.fail(f"it is not clocked by the rising edge of {self.clock!r}")
        made, at = [], 0
        for variable in variables:
            part = slice(at, at + variable.width)
            at += variable.width
            start = sum((bit in self.netlist.ones) << n for n, bit in enumerate(taken["Q"][part]))
            if variable.width == 1:
                start *= low(LANE_BITS)
            made.append(Register(variable, start, in_form(self._values, taken["D"][part])))
        return made

    def _check_memory(self, cell: Cell) -> None:
        given = cell.parameters
        if given["WIDTH"] > LANE_BITS:
            raise cell.fail(f"its words have {given['WIDTH']} bits, a lane has {LANE_BITS}")
        if given["RD_CLK_ENABLE"]:
            raise cell.fail("it has a clocked read port")
        if given["WR_CLK_ENABLE"] != low(given["WR_PORTS"]):
            raise cell.fail("it has a write port without a clock")
        if given["INIT"] or given["OFFSET"]:
            raise cell.fail("it does not start with all words 0 at address 0")
        clocks = set(cell.connections["WR_CLK"][: given["WR_PORTS"]])
        if not clocks <= set(self.netlist.ports[self.clock].bits):
            raise cell.fail(f"it is not clocked by {self.clock!r}")

    def _reads(self, memory: str, cell: Cell, name: str) -> list[Assignment]:
        width, abits = cell.parameters["WIDTH"], cell.parameters["ABITS"]
        data, address = cell.connections["RD_DATA"], cell.connections["RD_ADDR"]
        made = []
        for port in range(cell.parameters["RD_PORTS"]):
            bits = data[port * width : (port + 1) * width]
            (variable,) = self._values.place(f"{name}_{port}", [bits])
            at = self._values.word(address[port * abits : (port + 1) * abits])
            made.append((variable, f"read(block.{memory}, {at})"))
        return made

    def _memory(self, memory: str, cell: Cell) -> Memory:
        width, abits = cell.parameters["WIDTH"], cell.parameters["ABITS"]
        taken, writes = cell.connections, []
        for port in range(cell.parameters["WR_PORTS"]):
            word = slice(port * width, (port + 1) * width)
            at = self._values.word(taken["WR_ADDR"][port * abits : (port + 1) * abits])
            data = in_form(self._values, taken["WR_DATA"][word])
            enable = taken["WR_EN"][word]
            # Almost always all bits at once: then one mask says it.
            bits = enable[:1] if len(set(enable)) == 1 else enable
            enabled = in_form(self._values, bits)
            writes.append(f"write(block.{memory}, {at}, {data}, {enabled});")
        return Memory(memory, 1 << abits, tuple(writes))

    def _output(self, port: str, out: str) -> list[Assignment]:
        """Return what the neighbour's input gets, piece by piece."""
        bits, at, made = self.netlist.ports[out].bits, 0, []
        for variable in self.inputs[port]:
            piece = bits[at : at + variable.width]
            at += variable.width
            made.append((variable, in_form(self._values, piece)))
        return made

    def cone(self, bits: Bits) -> tuple[set[str], list[Assignment]]:
        """Return the variables from which bits are computed, and the assignments it takes."""
        wanted, needed = self._values.needs(bits), []
        for assignment, needs in reversed(self.statements):
            if assignment[0].name in wanted:
                wanted |= needs
                needed.append(assignment)
        wanted -= {variable.name for variable, _ in needed}
        return wanted, needed[::-1]
