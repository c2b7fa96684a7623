"""The Verilated update engine: every bank bit for bit, every cycle as predicted, by the thousand.

Banks, a queue of commands and a way to load and read both from outside stand around the engine in
one component with the ports of an adder, which `sat.sim.fp_bulk` runs at full speed. The expected
banks are built here, element by element, from the layout that `sat.rtl.isa.UPDATE` describes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from sat.dataflow.cycles import EngineTiming
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.isa import HEADER_BITS, Instruction, Opcode
from sat.rtl.layouts import any_command_layout
from sat.rtl.streams import Queue
from sat.rtl.update import UpdateEngine
from sat.rtl.verilog import emit
from sat.sim import fp_bulk
from sat.sim.golden.update import Rates, update_tile

pytestmark = pytest.mark.xdist_group("arithmetic")

SMALL = {"update_words": 64, "copy_words": 64, "tile_weights": 512}
CONFIGS = {
    "2 lanes": SatConfig(update_lanes=2, **SMALL),
    "4 lanes, M to 16": SatConfig(update_lanes=4, max_m=16, axi=AxiConfig(data_bits=64), **SMALL),
    "8 lanes, one weight a word": SatConfig(
        update_lanes=8, max_m=2, max_n=2, cols=4, axi=AxiConfig(data_bits=32), **SMALL
    ),
    "1 lane": SatConfig(update_lanes=1, **SMALL),
    "8 lanes, wide words": SatConfig(
        update_lanes=8, max_m=16, axi=AxiConfig(data_bits=256), **SMALL
    ),
}
LOAD, PART, PUSH, READ = 1, 2, 3, 4
UNTOUCHED = 0xA5
QUEUED = 16

BANKS = ("w_out", "v_out", "ff_value", "ff_index", "bp_value", "bp_index")


class Bench(wiring.Component):
    """An engine among its banks.

    ``a`` has the operation in its top 4 bits, below it an address; ``b`` is data. LOAD writes a
    number into an input bank, PART shifts 32 bits into the command, PUSH queues it (bit 0 of
    ``b``: ``skip``), READ gives 32 bits of an output bank a cycle later. Otherwise ``total`` has
    release and signal (8 bits each), then take, done, busy, skipped.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__({"a": In(32), "b": In(32), "total": Out(32)})

    def elaborate(self, platform):
        m = Module()
        config = self.config
        lanes, per_beat, halves = config.update_lanes, config.granule_weights, config.granule_halves
        m.submodules.engine = engine = UpdateEngine(config)
        operation, address = self.a[28:], self.a[:28]

        # Commands.
        command = any_command_layout()
        parts = -(-command.size // 32)
        shift = Signal(32 * parts)
        item = data.StructLayout({"skip": 1, "command": command})
        m.submodules.queue = queue = Queue(item, QUEUED)
        with m.If(operation == PART):
            m.d.sync += shift.eq(Cat(shift[32:], self.b))
        m.d.comb += [
            queue.i.valid.eq(operation == PUSH),
            queue.i.p.skip.eq(self.b),
            Value.cast(queue.i.p.command).eq(shift),
            engine.i.valid.eq(queue.o.valid),
            engine.i.p.eq(queue.o.p.command),
            engine.skip.eq(queue.o.p.skip),
            queue.o.ready.eq(engine.i.ready),
        ]

        # Input banks: number, word, lane, buffer, from the low bits of the address up.
        def number_of(values: int, start: int) -> tuple[Value, int]:
            bits = (values - 1).bit_length()
            return address[start : start + bits], start + bits

        number, at = number_of(per_beat, 0)
        word, at = number_of(config.update_words, at)
        lane, at = number_of(lanes, at)
        buffer = address[at:]
        for index, port in enumerate((engine.w_data, engine.v_data, engine.g_data)):
            for n in range(lanes):
                bank = memory.Memory(
                    shape=data.ArrayLayout(32, per_beat), depth=config.update_words, init=[]
                )
                m.submodules[f"in_{index}_{n}"] = bank
                write, read = bank.write_port(granularity=1), bank.read_port()
                here = (operation == LOAD) & (buffer == index) & (lane == n if lanes > 1 else 1)
                m.d.comb += [
                    write.addr.eq(word),
                    Value.cast(write.data).eq(self.b.replicate(per_beat)),
                    write.en.eq(Mux(here, 1 << number if per_beat > 1 else 1, 0)),
                    read.addr.eq(engine.in_address),
                    port[n].eq(read.data),
                ]

        # Output banks: 32-bit part, word, lane, bank.
        was_read, which, part_was = Signal(), Signal(8), Signal(8)
        m.d.sync += was_read.eq(operation == READ)
        readers = []
        for index, name in enumerate(BANKS):
            if name in ("w_out", "v_out"):
                depth, width, count = config.update_words, 32, per_beat
            else:
                depth, width, count = config.copy_words, 16 if "value" in name else 4, halves
            for n in range(lanes):
                layout = data.ArrayLayout(width, count)
                init = [[UNTOUCHED * 0x01010101 & (1 << width) - 1] * count] * depth
                bank = memory.Memory(shape=layout, depth=depth, init=init)
                m.submodules[f"{name}_{n}"] = bank
                write, read = bank.write_port(granularity=1), bank.read_port()
                m.d.comb += read.addr.eq(address[4:12])
                readers.append((index * lanes + n, Value.cast(read.data)))
                if name in ("w_out", "v_out"):
                    m.d.comb += [
                        write.addr.eq(engine.out_address),
                        write.data.eq(getattr(engine, name)[n]),
                        write.en.eq(engine.out_write[n].replicate(count)),
                    ]
                else:
                    copy, what = name.split("_")
                    m.d.comb += [
                        write.addr.eq(getattr(engine, f"{copy}_address")[n]),
                        Value.cast(write.data).eq(getattr(engine, name)[n].replicate(count)),
                        write.en.eq(
                            Mux(
                                getattr(engine, f"{copy}_write")[n],
                                1 << getattr(engine, f"{copy}_lane")[n],
                                0,
                            )
                        ),
                    ]
        m.d.sync += [which.eq(address[12:]), part_was.eq(address[:4])]
        with m.If(was_read), m.Switch(which):
            for key, value in readers:
                with m.Case(key):
                    m.d.comb += self.total.eq(value >> (part_was[:3] << 5))
        with m.Else():
            m.d.comb += self.total.eq(
                Cat(
                    engine.release[:8],
                    engine.signal[:8],
                    queue.o.valid & queue.o.ready,
                    engine.done,
                    engine.busy,
                    engine.skipped,
                )
            )
        return m


@functools.cache
def bench(name: str) -> str:
    return emit(Bench(CONFIGS[name]))


def word_shape(config: SatConfig, name: str) -> tuple[int, int, int]:
    """Return words of a bank, elements of a word, bits of an element."""
    if name in ("w_out", "v_out"):
        return config.update_words, config.granule_weights, 32
    return config.copy_words, config.granule_halves, 16 if "value" in name else 4


@dataclass
class Case:
    """A program for the engine alone."""

    instructions: list[Instruction]
    skips: list[bool]
    gaps: list[int]
    inputs: np.ndarray  # (3, lanes, update_words, granule_weights) uint32


def random_numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return bits of FP32 numbers: moderate, ties and specials, anything."""
    moderate = rng.standard_normal(shape).astype(np.float32).view(np.uint32)
    few = np.array([0, -0.0, 1, -1, 0.5, 1e-40, 6e-8, np.inf, np.nan], np.float32).view(np.uint32)
    kind = rng.random(shape)
    anything = rng.integers(0, 1 << 32, shape, dtype=np.uint32)
    chosen = np.select([kind < 0.6, kind < 0.9], [moderate, rng.choice(few, shape)], anything)
    return chosen.astype(np.uint32)


def random_update(rng: np.random.Generator, config: SatConfig) -> Instruction:
    """Return a legal UPDATE; small tiles and tiles of every shape up to the largest."""
    lanes, per_beat, halves = config.update_lanes, config.granule_weights, config.granule_halves
    logs = rng.integers(0, config.max_m.bit_length(), 2)
    ff_m, bp_m = (1 << int(x) for x in logs)
    ff_n, bp_n = (int(rng.integers(1, m + 1)) for m in (ff_m, bp_m))
    while True:
        columns = max(ff_m, per_beat) * int(2 ** rng.uniform(0, 6))
        rows = bp_m * int(2 ** rng.uniform(0, 6))
        row_groups, column_groups = -(-rows // lanes), -(-columns // lanes)
        words = columns // per_beat
        ff_words = -(-(columns * ff_n // ff_m) // halves)
        bp_words = -(-(rows * bp_n // bp_m) // halves)
        room = [
            config.update_words - row_groups * words,
            config.copy_words - row_groups * ff_words,
            config.copy_words - column_groups * bp_words,
        ]
        if row_groups * lanes * columns <= config.tile_weights and min(room) >= 0:
            break

    def stride(words: int, groups: int, spare: int) -> tuple[int, int]:
        """Return a stride and the room that is left for a base."""
        wider = int(rng.integers(0, spare // groups + 1)) if rng.random() < 0.5 else 0
        return words + wider, spare - wider * groups

    step, left = stride(words, row_groups, room[0])
    ff_step, ff_left = stride(ff_words, row_groups, room[1])
    bp_step, bp_left = stride(bp_words, column_groups, room[2])
    body = {
        "rows": rows,
        "columns": columns,
        "in_base": rng.integers(0, left + 1),
        "out_base": rng.integers(0, left + 1),
        "stride": step,
        "ff_n": ff_n,
        "ff_log2_m": logs[0],
        "ff_base": rng.integers(0, ff_left + 1),
        "ff_stride": ff_step,
        "bp_n": bp_n,
        "bp_log2_m": logs[1],
        "bp_base": rng.integers(0, bp_left + 1),
        "bp_stride": bp_step,
    }
    return Instruction(Opcode.UPDATE, {k: int(v) for k, v in body.items()})


def random_rates(rng: np.random.Generator) -> Instruction:
    sensible = np.array([0.0, 0.9, 1e-3, 0.1, 1.0, 2.0**-12, 3e38], np.float32)
    names = ("learning_rate", "momentum", "decay", "decay_pruned", "unscale")
    chosen = rng.choice(sensible, 5).view(np.uint32)
    return Instruction(Opcode.RATES, dict(zip(names, map(int, chosen), strict=True)))


def random_case(rng: np.random.Generator, config: SatConfig) -> Case:
    count = int(rng.integers(1, QUEUED))
    made = [
        random_rates(rng) if n == 0 or rng.random() < 0.2 else random_update(rng, config)
        for n in range(count)
    ]
    made = [
        Instruction(i.opcode, i.body, 0, *(int(x) for x in rng.integers(1, 256, 2))) for i in made
    ]
    gaps = [int(rng.choice([0, 0, 0, 1, 40, 300, 2000])) for _ in made]
    skips = [bool(x) for x in rng.random(count) < 0.3]
    shape = (3, config.update_lanes, config.update_words, config.granule_weights)
    return Case(made, skips, gaps, random_numbers(rng, shape))


def expected_banks(config: SatConfig, case: Case) -> dict[str, np.ndarray]:
    """Return each output bank as (lanes, words, elements), and ``skipped``."""
    lanes = config.update_lanes
    banks = {}
    for name in BANKS:
        words, count, width = word_shape(config, name)
        fill = UNTOUCHED * 0x01010101 & (1 << width) - 1
        banks[name] = np.full((lanes, words, count), fill, np.uint32)
    rates = Rates()
    for i, skip in zip(case.instructions, case.skips, strict=True):
        if i.opcode is Opcode.RATES:
            rates = Rates.of(i)
            continue
        row, column = np.mgrid[: i.rows, : i.columns]
        word = row // lanes * i.stride + column // config.granule_weights
        place = column % config.granule_weights
        w, v, g = (x[row % lanes, i.in_base + word, place].view(np.float32) for x in case.inputs)
        ff, bp = ((i.ff_n, 1 << i.ff_log2_m), (i.bp_n, 1 << i.bp_log2_m))
        made = update_tile(w, v, g, ff, bp, rates, skip)
        for name, x in (("w_out", made.w), ("v_out", made.v)):
            banks[name][row % lanes, i.out_base + word, place] = x.view(np.uint32)
        for name, copy, base, stride in (
            ("ff", made.ff, i.ff_base, i.ff_stride),
            ("bp", made.bp, i.bp_base, i.bp_stride),
        ):
            line, k = np.mgrid[: copy.values.shape[0], : copy.values.shape[1]]
            at = (
                line % lanes,
                base + line // lanes * stride + k // config.granule_halves,
                k % config.granule_halves,
            )
            banks[f"{name}_value"][at] = copy.values.view(np.uint16)
            banks[f"{name}_index"][at] = copy.indices
    return banks


def run_case(name: str, case: Case) -> tuple[dict[str, np.ndarray], np.ndarray, list[int]]:
    """Return the banks, what ``total`` shows in each cycle while it runs, and the pushes."""
    config = CONFIGS[name]
    a, b = [], []
    bits = [(n - 1).bit_length() for n in (config.granule_weights, config.update_words)]
    lane_bits = (config.update_lanes - 1).bit_length()
    buffer, lane, word, number = np.indices(case.inputs.shape).reshape(4, -1)
    address = number | word << bits[0] | lane << sum(bits) | buffer << sum(bits) + lane_bits
    a.append(address | LOAD << 28)
    b.append(case.inputs.ravel())
    cycle = case.inputs.size
    layout = any_command_layout()
    pushes = []
    worst = 300
    for pc, (i, skip, gap) in enumerate(zip(case.instructions, case.skips, case.gaps, strict=True)):
        raw = int.from_bytes(i.encode(), "little") >> HEADER_BITS
        command = layout.const(
            {
                "opcode": i.opcode.value,
                "pc": pc,
                "release": i.release | i.release << 8,
                "signal": i.signal | i.signal << 8,
                "body": raw,
            }
        )
        value = Const.cast(command).value
        parts = [value >> 32 * n & 0xFFFFFFFF for n in range(-(-layout.size // 32))]
        a.append(np.array([0] * gap + [PART << 28] * len(parts) + [PUSH << 28], np.int64))
        b.append(np.array([0] * gap + parts + [int(skip)], np.int64))
        cycle += gap + len(parts) + 1
        pushes.append(cycle - 1)
        if i.opcode is Opcode.UPDATE:
            groups = -(-i.rows // config.update_lanes) * config.update_lanes
            column_groups = -(-i.columns // config.update_lanes)
            worst += groups * i.columns + groups * column_groups + 200
    a.append(np.zeros(worst, np.int64))
    b.append(np.zeros(worst, np.int64))
    first_read = cycle + worst
    for index, bank in enumerate(BANKS):
        words, count, width = word_shape(config, bank)
        parts = -(-count * width // 32)
        lane, word, part = np.indices((config.update_lanes, words, parts)).reshape(3, -1)
        a.append(part | word << 4 | index * config.update_lanes + lane << 12 | READ << 28)
        b.append(np.zeros(len(part), np.int64))
    a_all, b_all = (np.concatenate(x).astype(np.uint32) for x in (a, b))
    out = fp_bulk.run("adder", a_all, b_all, text=bench(name), stages=1)
    banks = {}
    at = first_read
    for bank in BANKS:
        words, count, width = word_shape(config, bank)
        parts = -(-count * width // 32)
        size = config.update_lanes * words * parts
        raw = out[at : at + size].reshape(config.update_lanes, words, parts, 1)
        split = raw >> np.arange(0, 32, width, dtype=np.uint32) & np.uint32((1 << width) - 1)
        banks[bank] = split.reshape(config.update_lanes, words, -1)[:, :, :count]
        at += size
    shown = np.zeros(first_read, np.uint32)
    shown[1:] = out[: first_read - 1]
    return banks, shown, pushes


def check_case(name: str, case: Case) -> int:
    """Run a program and compare; return its cycles."""
    config = CONFIGS[name]
    banks, shown, pushes = run_case(name, case)
    timing = EngineTiming("update", config)
    accepts, releases, signals, want = [], [], [], np.zeros_like(shown)
    before = 0
    for i, skip, push in zip(case.instructions, case.skips, pushes, strict=True):
        times = timing.run(i, max(push + 1, before + 1))
        before = times.accept
        accepts.append(times.accept)
        releases.append(times.release)
        signals.append(times.signal)
        want[times.accept] |= 1 << 16
        want[times.accept + 1] |= (skip and i.opcode is Opcode.UPDATE) << 19
        want[times.release] |= i.release
        want[times.signal] |= i.signal << 8 | 1 << 17
        want[times.accept + 1 : times.signal + 1] |= 1 << 18
    assert timing.idle == max(signals) + 1 < len(shown)
    assert sorted(signals) == signals
    wrong = np.flatnonzero(shown != want)
    assert not wrong.size, (
        f"cycle {wrong[0]}: {shown[wrong[0]]:#x}, want {want[wrong[0]]:#x}; "
        f"accepts {accepts}, releases {releases}, signals {signals}; {case.instructions}"
    )
    golden = expected_banks(config, case)
    for bank in BANKS:
        places = np.argwhere(banks[bank] != golden[bank])
        assert not places.size, (
            f"{bank}: {len(places)} wrong, the first at {places[0]}: "
            f"{banks[bank][tuple(places[0])]:#x}, want {golden[bank][tuple(places[0])]:#x}; "
            f"{case.instructions}"
        )
    return signals[-1]


@pytest.mark.parametrize(
    "name",
    [
        # Each configuration is a build; the first three differ in all that matters.
        pytest.param(name, marks=pytest.mark.long if number > 2 else ())
        for number, name in enumerate(CONFIGS)
    ],
)
def test_random_programs(name):
    cycles = 0
    for seed in range(40):
        rng = np.random.default_rng([seed, len(name)])
        cycles += check_case(name, random_case(rng, CONFIGS[name]))
    assert cycles > 10_000
