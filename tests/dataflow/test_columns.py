"""Instructions as columns: the bytes that single ones have; fills and orders of a program."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat.dataflow.columns import Block, encode, owned, read, spread, write
from sat.dataflow.compile import native
from sat.dataflow.compile.patches import run_begins
from sat.dataflow.program import Program
from sat.rtl import isa
from sat.rtl.isa import Buffer, Instruction, Opcode

MASKS = st.integers(0, 0xFFFF)


@st.composite
def instructions(draw) -> list[Instruction]:
    """Draw instructions of one opcode, any fields of it."""
    opcode = draw(st.sampled_from(list(isa.PLACES)))
    legal = {name: place[2] for name, place in isa.PLACES[opcode].items()}
    names = draw(st.lists(st.sampled_from(sorted(legal)), unique=True)) if legal else []
    one = st.builds(
        lambda values, masks: Instruction(opcode, dict(zip(names, values, strict=True)), *masks),
        st.tuples(*(st.integers(legal[n].start, legal[n].stop - 1) for n in names)),
        st.tuples(MASKS, MASKS, MASKS),
    )
    return draw(st.lists(one, min_size=1, max_size=5))


@given(instructions())
def test_columns_are_encoded_as_instructions_are(made):
    opcode, count = made[0].opcode, len(made)
    fields = {name: np.array([i.body[name] for i in made]) for name in made[0].body}
    masks = (np.array([getattr(i, n) for i in made]) for n in ("wait", "release", "signal"))
    words = encode(opcode, count, fields, *masks)
    assert Program.of(words).encode() == b"".join(i.encode() for i in made)
    assert list(Program.of(words)) == made
    # One number for all is as good as a column.
    alike = encode(opcode, count, {name: int(value[0]) for name, value in fields.items()})
    assert alike.tobytes() == Instruction(opcode, made[0].body).encode() * count
    for name, (_, _, legal) in isa.PLACES[opcode].items():
        if legal.start == 0:
            assert np.array_equal(read(words, opcode, name), fields[name])
            changed = words.copy()
            rows = np.arange(0, count, 2)
            write(changed, rows, opcode, name, fields[name][rows] * 0 + legal.stop - 1)
            other = [
                Instruction(opcode, {**i.body, name: legal.stop - 1} if n % 2 == 0 else i.body,
                            i.wait, i.release, i.signal)
                for n, i in enumerate(made)
            ]  # fmt: skip
            assert Program.of(changed).encode() == b"".join(i.encode() for i in other)


def test_what_no_instruction_has_is_named():
    with pytest.raises(ValueError, match=r"LOAD\.rows=65536: must be 0 to 65535"):
        encode(Opcode.LOAD, 2, {"rows": np.array([1, 65536])})
    with pytest.raises(ValueError, match=r"LOAD\.rows=-1: must be"):
        encode(Opcode.LOAD, 1, {"rows": -1})
    with pytest.raises(ValueError, match="LOAD has no field 'lanes'"):
        encode(Opcode.LOAD, 1, {"lanes": 1})
    words = encode(Opcode.LOAD, 1, {"destination": Buffer.A})
    with pytest.raises(ValueError, match=r"LOAD\.rows: must be 0 to 65535"):
        write(words, np.array([0]), Opcode.LOAD, "rows", np.array([70000]))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=30))
def test_owners_come_in_order(pairs):
    first, second = sorted(pairs[::2]), sorted(pairs[1::2])
    made = [
        Block(Opcode.LOAD, {}, *np.array(part, np.int64).reshape(-1, 2).T)
        for part in (first, second)
    ]
    owner, order = owned(made)
    both = [*first, *second]
    assert owner.tolist() == [pair[0] for pair in both]
    assert [both[n] for n in order] == sorted(both)
    counts = np.bincount(owner, minlength=7)
    whose, place = spread(counts)
    assert whose.tolist() == sorted(owner.tolist())
    assert place.tolist() == [n for count in counts for n in range(count)]


@given(st.lists(st.integers(-1, 5), max_size=40), st.integers(1, 4))
def test_slots_are_filled_in_turn(keys, slots):
    made = native.fills(np.array(keys, np.int64), slots, 6)
    held: list[int] = []  # keys, the oldest first
    for step, key in enumerate(keys):
        fill = made.of_step[step]
        if key < 0:
            assert fill == -1
            continue
        if key not in held:
            held = [*held, key][-slots:]
            assert made.first_use[fill] == step
        assert made.key[fill] == key and made.last_use[fill] >= step
    assert len(made.key) == len(set(made.of_step.tolist()) - {-1})


@given(
    st.lists(
        st.tuples(*(st.integers(0, most) for most in (300, 80, 4, 40))).map(
            lambda store: dict(
                zip(("address", "pitch", "rows", "row_bytes"), store, strict=True),
                rows=store[2] + 1,
                row_bytes=store[3] + 1,
            )
        ),
        max_size=5,
    ),
    st.integers(0, 20),
)
def test_what_stores_write_is_told(stores, gap):
    program = Program([Instruction(Opcode.STORE, fields) for fields in stores])
    bytes_written = {
        fields["address"] + row * fields["pitch"] + byte
        for fields in stores
        for row in range(fields["rows"])
        for byte in range(fields["row_bytes"])
    }
    spans = program.written(gap)
    covered = {byte for span in spans for byte in span}
    assert bytes_written <= covered
    # Between spans more bytes than the gap are missing; within them at most so many in a row.
    assert all(b.start - a.stop > gap for a, b in zip(spans, spans[1:], strict=False))
    for span in spans:
        assert {span.start, span.stop - 1} <= bytes_written
        there = sorted(bytes_written & set(span))
        assert all(b - a - 1 <= gap for a, b in zip(there, there[1:], strict=False))


@given(
    st.integers(1, 12).flatmap(
        lambda rows: st.tuples(
            st.lists(st.booleans(), min_size=rows, max_size=rows),
            st.lists(st.integers(0, 5), min_size=rows, max_size=rows),
        )
    )
)
def test_runs_of_pixels_are_as_long_as_can_be(case):
    there, apart = case
    pixel = np.cumsum(apart)
    begins = run_begins(np.array(there)[:, None], pixel[:, None])[:, 0]
    wanted, run = [], []
    for row, is_there in enumerate(there):
        steps = [pixel[row] - pixel[run[-1]]] if run else []
        steps += [pixel[b] - pixel[a] for a, b in zip(run, run[1:], strict=False)]
        if is_there and run and run[-1] == row - 1 and len(set(steps)) <= 1:
            run.append(row)
        else:
            run = [row] if is_there else []
            wanted += run
    assert np.flatnonzero(begins).tolist() == wanted
