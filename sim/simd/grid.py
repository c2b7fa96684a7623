"""Equal leaves in rows and columns as one C++ class.

All leaves lie in one line of lanes, row after row, with a margin of one lane before each row: the
western neighbour of lane p is lane p - 1, the northern one lane p - (columns + 1). A row above the
first and the margins hold what enters at the edges. What a leaf shows its neighbours lies in
*planes*, a lane each; what it keeps to itself lies in *blocks* of as many lanes as a register has.

A cycle is one pass from the last block to the first: each block reads its neighbours' planes, which
are still those of this cycle, and then changes its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from sat.rtl.stce import Link
from sat.sim.simd.cells import Assignment
from sat.sim.simd.leaf import Leaf, Register
from sat.sim.simd.netlist import Bits, Netlist, NetlistError
from sat.sim.simd.values import Variable, literal


@dataclass(frozen=True)
class Grid:
    """Leaves in rows and columns.

    Parameters
    ----------
    name : str
        Name of the C++ class.
    leaf : Netlist
    rows, cols : int
    row_links, column_links : sequence of Link
        What passes from west to east, and from north to south.
    uniform : collection of str
        Inputs of one bit that all leaves share.
    """

    name: str
    leaf: Netlist
    rows: int
    cols: int
    row_links: Sequence[Link]
    column_links: Sequence[Link]
    uniform: Collection[str]

    def header(self) -> str:
        """Return the text of a C++ header that defines the class.

        Its members: ``enter_<input>(i, port)`` sets what enters row or column i in this cycle;
        ``settle(uniform…)`` makes the outputs those of this cycle; ``leave_<input>(i, port)``
        gives what leaves it through that link; ``step(uniform…)`` ends the cycle. ``port`` is an
        integer or an array of 32-bit words, lowest first.

        Raises
        ------
        NetlistError
            The leaf cannot be translated.
        """
        return _Writer(self).text()


class _Writer:
    def __init__(self, grid: Grid):
        self.grid = grid
        links = [*grid.row_links, *grid.column_links]
        self.leaf = Leaf(grid.leaf, {link.enters: link.leaves for link in links}, grid.uniform)
        # A register that a neighbour sees as it is lies in a plane, and nowhere else.
        self.planes: dict[str, int] = {}
        self.shown: dict[str, int] = {}
        registers = {register.variable.name: register for register in self.leaf.registers}
        count = 0
        for port, outputs in self.leaf.outputs.items():
            for variable, text in outputs:
                register = registers.get(text)
                whole = register and register.variable.width == variable.width
                if whole and text not in self.shown:
                    self.shown[text] = count
                self.planes[variable.name] = count
                count += 1
            self._check_registered(port)
        self.count = count
        self.held = [r for r in self.leaf.registers if r.variable.name not in self.shown]

    def _check_registered(self, port: str) -> None:
        out = self.leaf.links[port]
        sources, _ = self.leaf.cone(self.leaf.netlist.ports[out].bits)
        direct = sorted(name for name in sources if name.startswith("i_"))
        if direct:
            raise NetlistError(
                f"output {out!r} of {self.leaf.netlist.name} depends on {direct[0]!r} of the same "
                "cycle: put a register between them"
            )

    def text(self) -> str:
        grid, name = self.grid, self.grid.name
        flags = ", ".join(f"bool {port}" for port in grid.uniform)
        size = "BASE + BLOCKS * LANES"
        memories = [f"uint32_t {m.name}[{m.words}][LANES];" for m in self.leaf.memories]
        return "\n".join(
            [
                "#pragma once",
                '#include "lanes.h"',
                "",
                f"class {name} {{",
                "  public:",
                f"    static constexpr int ROWS = {grid.rows}, COLS = {grid.cols};",
                f"    {name}() {{",
                *_indented(8, self._start()),
                "    }",
                *_indented(4, self._edges()),
                f"    void settle({flags}) {{",
                *_indented(8, self._dispatch("settle_all", self._shown_flags(), "uniform")),
                "    }",
                f"    void step({flags}) {{",
                *_indented(8, self._dispatch("step_all", list(grid.uniform), None)),
                "    }",
                "",
                "  private:",
                "    using V = lanes::V;",
                "    using I = lanes::I;",
                "    static constexpr int LANES = lanes::WIDEST, STRIDE = COLS + 1;",
                "    // The first block begins a register's width from the start of a plane.",
                "    static constexpr int BASE = (STRIDE + LANES - 1) / LANES * LANES;",
                "    static constexpr int BLOCKS = (ROWS * STRIDE + LANES - 1) / LANES;",
                "    // An odd number of cache lines: neighbouring planes then share no sets.",
                f"    static constexpr int LINES = ({size} + 15) / 16;",
                "    static constexpr int PLANE = 16 * (LINES + 1 - LINES % 2);",
                "    static int lane(int row, int column) {",
                "        return BASE + row * STRIDE + column + 1;",
                "    }",
                f"    struct Block {{ V q[{max(len(self.held), 1)}]; {' '.join(memories)} }};",
                f"    alignas(64) uint32_t plane[{self.count}][PLANE];",
                "    alignas(64) Block blocks[BLOCKS];",
                "    int uniform = -1;  // under which the planes were made",
                *_indented(4, self._settle_all()),
                *_indented(4, self._step_all()),
                "};",
                "",
            ]
        )

    def _shown_bits(self) -> Bits:
        ports = self.leaf.netlist.ports
        return tuple(bit for out in self.leaf.links.values() for bit in ports[out].bits)

    def _shown_flags(self) -> list[str]:
        """Return the uniform inputs that outputs depend on."""
        sources, _ = self.leaf.cone(self._shown_bits())
        return [port for port in self.grid.uniform if f"u_{port}_0" in sources]

    def _start(self) -> Iterable[str]:
        yield "std::memset(plane, 0, sizeof plane);"
        yield "std::memset((void*)blocks, 0, sizeof blocks);"
        for number, register in enumerate(self.held):
            if register.start:
                start = f"V{{}} + {literal(register.start)}"
                yield f"for (Block& block : blocks) block.q[{number}] = {start};"
        for register in self.leaf.registers:
            if register.start and register.variable.name in self.shown:
                place = f"plane[{self.shown[register.variable.name]}]"
                yield f"for (uint32_t& word : {place}) word = {literal(register.start)};"

    def _edges(self) -> Iterable[str]:
        for links, enters, leaves in (
            (self.grid.row_links, "i, -1", "i, COLS - 1"),
            (self.grid.column_links, "-1, i", "ROWS - 1, i"),
        ):
            for link in links:
                variables = self.leaf.inputs[link.enters]
                words = sum(variable.width for variable in variables) + 31 >> 5
                yield "template <class Port>"
                yield f"void enter_{link.enters}(int i, const Port& port) {{"
                for variable, at in _offsets(variables):
                    place = f"plane[{self.planes[variable.name]}][lane({enters})]"
                    yield f"    {place} = lanes::take<{at}, {variable.width}>(port);"
                yield "}"
                yield "template <class Port>"
                yield f"void leave_{link.enters}(int i, Port& port) const {{"
                yield f"    uint32_t words[{words}] = {{}};"
                for variable, at in _offsets(variables):
                    place = f"plane[{self.planes[variable.name]}][lane({leaves})]"
                    yield f"    lanes::put<{at}, {variable.width}>(words, {place});"
                yield "    lanes::give(port, words);"
                yield "}"

    def _dispatch(self, function: str, flags: Sequence[str], known: str | None) -> Iterable[str]:
        """Call the variant of a function that was compiled for these uniform inputs."""
        key = " | ".join([f"{flag} << {n}" for n, flag in enumerate(flags)] or ["0"])
        yield f"const int key = {key};"
        if known:
            yield f"if (key == {known}) return;"
        yield "switch (key) {"
        for number, values in enumerate(product("01", repeat=len(flags))):
            arguments = ", ".join(reversed(values))
            template = f"<{arguments}>" if flags else ""
            yield f"    case {number}: {function}{template}(); break;"
        yield "}"
        if known:
            yield f"{known} = key;"
        else:
            shown = self._shown_flags()
            kept = " | ".join([f"{flag} << {n}" for n, flag in enumerate(shown)] or ["0"])
            yield f"uniform = {kept};"

    def _function(self, name: str, flags: Sequence[str], body: Iterable[str]) -> Iterable[str]:
        if flags:
            yield f"template <{', '.join(f'bool {flag}' for flag in flags)}>"
        yield f"__attribute__((noinline)) void {name}() {{"
        yield "    using namespace lanes;"
        yield "    for (int number = BLOCKS - 1; number >= 0; --number) {"
        yield "        Block& block = blocks[number];"
        yield "        uint32_t* const at = plane[0] + BASE + number * LANES;"
        for flag in flags:
            yield f"        const V u_{flag}_0 = V{{}} - uint32_t({flag});"
        yield from _indented(8, body)
        yield "    }"
        yield "}"

    def _settle_all(self) -> Iterable[str]:
        body = [
            *(f"const V {r.variable.name} = {self._place(r)};" for r in self.leaf.registers),
            *self._show(),
        ]
        return self._function("settle_all", self._shown_flags(), body)

    def _step_all(self) -> Iterable[str]:
        leaf, body = self.leaf, []
        for links, back in ((self.grid.row_links, "1"), (self.grid.column_links, "STRIDE")):
            for link in links:
                for variable in leaf.inputs[link.enters]:
                    place = f"at + {self.planes[variable.name]} * PLANE - {back}"
                    body.append(f"const V {variable.name} = load({place});")
        body += [f"const V {r.variable.name} = {self._place(r)};" for r in leaf.registers]
        body += [_assign(assignment) for assignment, _ in leaf.statements]
        body += [f"const V n{r.variable.name} = {r.next};" for r in leaf.registers]
        body += [write for memory in leaf.memories for write in memory.writes]
        for number, register in enumerate(self.held):
            body.append(f"block.q[{number}] = n{register.variable.name};")
        for name, plane in self.shown.items():
            body.append(f"store(at + {plane} * PLANE, n{name});")
        body.append("{")
        names = [register.variable.name for register in leaf.registers]
        body += [f"    const V {name} = n{name};" for name in names]
        body += [*_indented(4, self._show()), "}"]
        return self._function("step_all", list(self.grid.uniform), body)

    def _show(self) -> Iterable[str]:
        """Compute what neighbours see from registers, and put it into the planes."""
        _, needed = self.leaf.cone(self._shown_bits())
        yield from (_assign(assignment) for assignment in needed)
        for outputs in self.leaf.outputs.values():
            for variable, text in outputs:
                plane = self.planes[variable.name]
                if self.shown.get(text) != plane:
                    yield f"store(at + {plane} * PLANE, {text});"

    def _place(self, register: Register) -> str:
        name = register.variable.name
        if name in self.shown:
            return f"load(at + {self.shown[name]} * PLANE)"
        return f"block.q[{self.held.index(register)}]"


def _offsets(variables: Sequence[Variable]) -> Iterable[tuple[Variable, int]]:
    at = 0
    for variable in variables:
        yield variable, at
        at += variable.width


def _assign(assignment: Assignment) -> str:
    variable, text = assignment
    return f"const V {variable.name} = {text};"


def _indented(spaces: int, lines: Iterable[str]) -> Iterable[str]:
    return (" " * spaces + line for line in lines)
