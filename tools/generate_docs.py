"""Write the generated pages of docs/: the instruction set and the register map.

``--check`` writes nothing and fails if a page is not up to date.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from pathlib import Path

from sat.rtl import csr, isa

DOCS = Path(__file__).resolve().parent.parent / "docs"
MARK = "<!-- Written by tools/generate_docs.py: change the source it names, then `make docs`. -->"

ACTIONS = {
    isa.Opcode.END: "Wait until every engine is idle, then end the program with status DONE.",
    isa.Opcode.FENCE: "Wait until every engine is idle.",
    isa.Opcode.LOAD: "Read rows of memory and spread them over the banks of an on-chip buffer.",
    isa.Opcode.TENSOR: "Say where the activations lie that later GATHERs read.",
    isa.Opcode.WINDOW: "Say how later GATHERs step over them.",
    isa.Opcode.GATHER: (
        "Read the taps of a convolution at a run of positions (implicit im2col), zeros outside "
        "the tensor, and spread them over the banks of A; or, transposed, a run of positions of "
        "one tap into the lanes of A or B. Into B under a WINDOW with a pattern N:M, the N largest "
        "magnitudes of every M positions of a channel are kept (ties: the earlier; NaN is the "
        "largest): channel c's k-th in B bank c mod C at element (base + (c div C) * stride) * "
        "max_m + k, its place in its group in INDEX bank c mod C at the index of that number; "
        "indices are written by fours, zeros behind the last. As many channels are pruned together "
        "as there are columns, or where beats hold several groups of these (`SatConfig.b_groups`) "
        "and `stride` is `SatConfig.wide_stride` modulo `beat_words`, as many as these have."
    ),
    isa.Opcode.MULTIPLY: "Run one tile of a product on the array.",
    isa.Opcode.STORE: (
        "Write rows to memory: sums of the output buffer through the epilogue, or what UPDATE made."
    ),
    isa.Opcode.RATES: "Set the numbers of later UPDATEs.",
    isa.Opcode.UPDATE: (
        "Update a tile of weights and momenta and prune the new weights both ways. If a STORE with "
        "`check` has counted anything in this program, weights and momenta stay as they are."
    ),
}
CYCLES = {
    isa.Opcode.END: "from its dispatch until the engines are idle",
    isa.Opcode.FENCE: "from its dispatch until the engines are idle",
    isa.Opcode.LOAD: "`dataflow/cycles/load.h`",
    isa.Opcode.TENSOR: "1, in its turn among the loads",
    isa.Opcode.WINDOW: "1, in its turn among the loads",
    isa.Opcode.GATHER: "`dataflow/cycles/load.h`",
    isa.Opcode.MULTIPLY: "`dataflow/cycles/compute.h`",
    isa.Opcode.STORE: "`dataflow/cycles/store.h`",
    isa.Opcode.RATES: "1, when the update engine is idle",
    isa.Opcode.UPDATE: "`dataflow/cycles/update.h`",
}

MEANINGS = {
    isa.Buffer.A: "Left operand: a bank a row (OS), or a bank a word of the depth (WS).",
    isa.Buffer.B: "Right operand: its values; compact ones for N:M.",
    isa.Buffer.INDEX: "4-bit indices of compact values.",
    isa.Buffer.START: "FP32 numbers that sums start from.",
    isa.Buffer.MASK: "ReLU's mask, one bit a sum.",
    isa.Buffer.WEIGHT: "FP32 weights, for UPDATE.",
    isa.Buffer.MOMENTUM: "FP32 momenta, for UPDATE.",
    isa.Buffer.GRADIENT: "FP32 gradients, for UPDATE.",
    isa.Source.FF_VALUES: "FP16 values of the copy for FF.",
    isa.Source.FF_INDICES: "Their indices.",
    isa.Source.BP_VALUES: "FP16 values of the copy for BP.",
    isa.Source.BP_INDICES: "Their indices.",
    isa.Format.FP32: "As it is.",
    isa.Dataflow.OS: "Output stationary: the sums stay.",
    isa.Dataflow.WS: "Weight stationary: the weights stay.",
    isa.Status.IDLE: "No program since reset.",
    isa.Status.RUNNING: "A program is under way.",
    isa.Status.DONE: "The last program has ended without an error.",
}
"""Of members that say nothing about themselves where they are defined."""


def field_comments(name: str) -> dict[str, str]:
    """Return what the source says beside each field of a layout of `sat.rtl.isa`."""
    lines = inspect.getsource(isa).splitlines()
    start = lines.index(f"{name} = data.StructLayout(")
    found: dict[str, str] = {}
    current = ""
    for line in lines[start + 1 :]:
        if line == ")":
            break
        code, _, comment = line.partition("#")
        if '"' in code:
            current = code.split('"')[1]
            found[current] = comment.strip()
        elif comment and current:
            found[current] += " " + comment.strip()
    return found


def member_docs(cls: type) -> dict[str, str]:
    """Return the text under each member of an enumeration."""
    tree = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    last = ""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            last = node.targets[0].id
            found[last] = ""
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and last:
            found[last] = " ".join(str(node.value.value).split())
    return found


def isa_page() -> str:
    """Return docs/isa.md."""
    out = [MARK, "", "# Instruction set", "", inspect.getdoc(isa) or "", ""]
    out += ["## Header", "", "| bits | field |", "| --- | --- |"]
    at = 0
    for name in dict(isa.HEADER.members):
        width = isa.HEADER[name].width
        out.append(f"| {at + width - 1}:{at} | `{name}` |")
        at += width
    for opcode, layout in isa.BODIES.items():
        out += ["", f"## {opcode.name} (`{opcode.value:#04x}`)", ""]
        out += [f"*Action.* {ACTIONS[opcode]}", "", f"*Cycles.* {CYCLES[opcode]}.", ""]
        if not dict(layout.members):
            out += ["*Format.* No body.", ""]
            continue
        comments = field_comments(opcode.name)
        out += ["*Format.*", "", "| bits | field | meaning |", "| --- | --- | --- |"]
        for name in dict(layout.members):
            low = isa.HEADER_BITS + layout[name].offset
            high = low + layout[name].width - 1
            meaning = comments.get(name, "").replace("|", "\\|")
            out.append(f"| {high}:{low} | `{name}` | {meaning} |")
        out += [
            "",
            (
                "*Errors.* BAD_FIELD or BAD_ADDRESS before anything of it is done; the rules, with "
                "their messages, are in `sat.sim.golden.check`."
            ),
        ]
    out += ["", "## Field values", ""]
    for cls in (
        isa.Buffer,
        isa.Source,
        isa.Format,
        isa.Dataflow,
        isa.Start,
        isa.Status,
    ):
        out += [f"### {cls.__name__}", "", (inspect.getdoc(cls) or "").splitlines()[0], ""]
        out += ["| value | name | meaning |", "| --- | --- | --- |"]
        docs = member_docs(cls)
        out += [f"| {m.value:#x} | {m.name} | {docs[m.name] or MEANINGS[m]} |" for m in cls]
        out.append("")
    return "\n".join(out).rstrip() + "\n"


def csr_page() -> str:
    """Return docs/csr.md."""
    out = [MARK, "", "# Registers", "", inspect.getdoc(csr) or "", ""]
    out += ["| offset | name | access | meaning |", "| --- | --- | --- | --- |"]
    access = {
        csr.Access.READ: "read",
        csr.Access.WRITE: "read, write between programs",
        csr.Access.CONTROL: "write",
    }
    for r in csr.REGISTERS.values():
        out.append(f"| `{r.offset:#04x}` | {r.name} | {access[r.access]} | {r.doc} |")
    out += [
        "",
        (
            "An access to no register, or one that its access column does not allow, is answered "
            "with SLVERR and changes nothing. CYCLES counts from the cycle after the one in which "
            "the start takes effect to the one in which STATUS leaves RUNNING."
        ),
    ]
    return "\n".join(out) + "\n"


PAGES = {"isa.md": isa_page, "csr.md": csr_page}


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = 0
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if check and (not path.exists() or path.read_text() != text):
            print(f"docs/{name} is not up to date: run `make docs`")
            stale = 1
        elif not check:
            path.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main())
