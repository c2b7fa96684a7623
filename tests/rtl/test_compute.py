"""The compute engine against a scalar fold, value by value, and against its timing model."""

from __future__ import annotations

import numpy as np
from amaranth import *
from amaranth.lib import memory
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.dataflow.cycles import EngineTiming
from sat.rtl.compute import ComputeEngine
from sat.rtl.config import INDICES_TOGETHER, AxiConfig, FpTiming, SatConfig
from sat.rtl.fp.operand import operand_of
from sat.rtl.isa import Dataflow, Instruction, Opcode, Start


class Bench(Elaboratable):
    """A compute engine with its banks as memories that the test fills and reads."""

    def __init__(self, config: SatConfig, a, b, index, start):
        self.config = config
        self.engine = ComputeEngine(config)
        self.contents = {"a": a, "b": b, "i": index, "s": start}
        self.output = [
            memory.MemoryData(shape=32, depth=config.sum_words, init=[]) for _ in range(config.cols)
        ]

    def elaborate(self, platform):
        m = Module()
        m.submodules.engine = engine = self.engine
        for name, banks in self.contents.items():
            for number, words in enumerate(banks):
                data = getattr(engine, f"{name}_data")[number]
                bank = memory.Memory(shape=len(Value.cast(data)), depth=len(words), init=words)
                m.submodules[f"{name}_{number}"] = bank
                read = bank.read_port()
                m.d.comb += [
                    read.addr.eq(getattr(engine, f"{name}_address")[number]),
                    Value.cast(data).eq(read.data),
                ]
        for c in range(self.config.cols):
            bank = memory.Memory(self.output[c])
            m.submodules[f"o_{c}"] = bank
            write, read = bank.write_port(), bank.read_port()
            m.d.comb += [
                write.en.eq(engine.o_write[c]),
                write.addr.eq(engine.o_write_address[c]),
                write.data.eq(engine.o_write_data[c]),
                read.addr.eq(engine.o_read_address[c]),
                engine.o_read_data[c].eq(read.data),
            ]
        return m


def pack(lanes: np.ndarray, bits: int) -> list[int]:
    """Return words whose lanes are the last axis."""
    return [
        sum(int(v) << (bits * i) for i, v in enumerate(word))
        for word in lanes.reshape(-1, lanes.shape[-1])
    ]


def random_halves(rng: np.random.Generator, shape) -> np.ndarray:
    """Return FP16 values, many of them special."""
    values = rng.standard_normal(shape).astype(np.float16)
    special = np.array(
        [0, -0.0, 6e-8, -6e-8, 6e-5, 65504, -65504, np.inf, -np.inf, np.nan, 1, -1], np.float16
    )
    pick = rng.random(shape) < 0.03
    return np.where(pick, rng.choice(special, shape), values)


class Model:
    """What the instructions should do, with one scalar addition after the other."""

    def __init__(self, config, a, b, index, start):
        self.config, self.a, self.b, self.index, self.start = config, a, b, index, start
        self.output = np.zeros((config.cols, config.sum_words), np.float32)
        self.ring = {}

    def value(self, i, c, word, p):
        config = self.config
        at = (i.b_base + word * i.b_stride) * config.max_m + i.b_skip + p
        stored = 0
        if i.log2_m:
            q = (i.i_base + word * i.i_stride) * config.indices_per_word + i.i_skip + p
            stored = int(self.index[c, q])
        lane = ((p // i.n << i.log2_m) + stored) % config.max_m
        return self.b[c].reshape(-1)[at], lane

    def multiply(self, i):
        config, s = self.config, self.config.interleave
        ws = i.dataflow == Dataflow.WS.value
        per_word = i.n * config.max_m >> i.log2_m
        if ws:
            steps, rows, width = i.count, i.words * s, 1
        else:
            steps = (i.words - 1) * i.values + i.last
            rows, width = config.rows * (s >> i.split), 1 << i.split
        new = {}
        for row in range(rows):
            for col in range(config.cols * width):
                word, c = divmod(col, config.cols)
                place = row * width + word
                total = np.float32(0)
                if i.start == Start.START.value:
                    total = self.start[c, i.s_base + place]
                elif i.start == Start.OUTPUT.value:
                    total = self.output[c, i.s_base + place]
                elif i.start == Start.KEEP.value:
                    total = self.ring[row, col]
                for p in range(steps):
                    value, lane = self.value(i, c, word, p)
                    if ws:
                        bank, where = p // i.values, i.a_base + row
                    else:
                        group, bank = divmod(row, config.rows)
                        where = i.a_base + group * i.a_stride + p // per_word
                    product = np.float32(self.a[bank, where, lane]) * np.float32(value)
                    total = np.float32(total + product)
                new[row, col] = total
                if i.emit:
                    self.pending = getattr(self, "pending", {})
                    self.pending[c, i.o_base + place] = total
        self.ring = new
        for (c, at), total in getattr(self, "pending", {}).items():
            self.output[c, at] = total
        self.pending = {}


def run(config, a, b, index, start, instructions, gaps):
    """Run instructions, each offered ``gap`` cycles after the last accept.

    Returns
    -------
    output : ndarray of uint32, (cols, sum_words)
    offered, accepted, released, signalled : list of int
        Cycle numbers, one for each instruction.
    idle : int
        First cycle without ``busy`` after all that.
    """

    def operand(x):
        return pack(operand_of(x.view(np.uint16)), 17)

    bench = Bench(
        config,
        [operand(bank) for bank in a],
        [operand(bank.reshape(-1, config.granule_halves)) for bank in b],
        [pack(bank.reshape(-1, config.granule_halves * INDICES_TOGETHER), 4) for bank in index],
        [[int(v) for v in bank.view(np.uint32)] for bank in start],
    )
    engine = bench.engine
    offered, accepted, released, signalled = [], [], [], []
    idle = 0
    output = np.zeros((config.cols, config.sum_words), np.uint32)

    async def drive(ctx):
        nonlocal idle
        cycle, offer_at = 0, gaps[0]
        while True:
            assert cycle < 100_000, "the engine hangs"
            number = len(accepted)
            waiting = number < len(instructions) and cycle >= offer_at
            ctx.set(engine.i.valid, waiting)
            if waiting:
                if len(offered) == number:
                    offered.append(cycle)
                    body = dict(instructions[number].body)
                    payload = {"pc": number, "release": 1, "signal": 1, "body": body}
                    ctx.set(engine.i.payload, payload)
                if ctx.get(engine.i.ready):
                    accepted.append(cycle)
                    offer_at = cycle + 1 + (gaps[number + 1] if number + 1 < len(gaps) else 0)
            if ctx.get(engine.release):
                released.append(cycle)
            if ctx.get(engine.signal):
                signalled.append(cycle)
            if len(signalled) == len(instructions) and not ctx.get(engine.busy):
                idle = cycle
                break
            await ctx.tick()
            cycle += 1
        for c in range(config.cols):
            for at in range(config.sum_words):
                output[c, at] = ctx.get(bench.output[c][at])

    sim = Simulator(bench)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.run()
    return output, offered, accepted, released, signalled, idle


CONFIGS = [
    SatConfig(rows=1, cols=1, max_m=2, max_n=2, interleave=1, fp=FpTiming(adder_stages=1),
              a_words=16, b_words=16, sum_words=16, axi=AxiConfig(data_bits=32)),
    SatConfig(rows=2, cols=3, max_m=4, max_n=2, a_words=32, b_words=32, sum_words=64,
              axi=AxiConfig(data_bits=64)),
    SatConfig(rows=3, cols=2, max_m=8, max_n=8, interleave=8,
              fp=FpTiming(multiplier_stages=3, adder_stages=7),
              a_words=64, b_words=32, sum_words=64),
    # Two registers more, one of them where tiles may follow each other cycle by cycle.
    SatConfig(rows=4, cols=2, max_m=2, max_n=2, interleave=1, fp=FpTiming(adder_stages=1),
              a_words=16, b_words=16, sum_words=16, crossings=(1, 3), axi=AxiConfig(data_bits=32)),
    SatConfig(rows=3, cols=2, max_m=4, max_n=4, a_words=32, b_words=32, sum_words=64,
              crossings=(2,), axi=AxiConfig(data_bits=64)),
]  # fmt: skip


def random_tile(draw, config: SatConfig, previous) -> Instruction:
    """Draw a legal MULTIPLY; a KEEP only behind a tile of the same shape."""
    s = config.interleave
    log2_m = draw(st.integers(0, config.max_m.bit_length() - 1))
    n = draw(st.integers(1, 1 << log2_m))
    per_word = n * config.max_m >> log2_m
    body = {"n": n, "log2_m": log2_m}
    holds = [
        h for h in range(1, config.max_n + 1) if per_word % h == 0 and per_word // h <= config.rows
    ]
    if holds and draw(st.booleans()):
        hold = draw(st.sampled_from(holds))
        words = draw(st.integers(1, min(3, config.sum_words // 2 // s)))
        count = draw(st.integers(1, config.rows // (per_word // hold) * per_word))
        start = draw(st.sampled_from([Start.ZERO, Start.START, Start.OUTPUT]))
        place = draw(st.sampled_from([0, config.sum_words // 2]))
        body |= {
            "dataflow": Dataflow.WS, "start": start, "emit": 1, "words": words,
            "values": hold, "last": hold, "count": count,
            "a_base": draw(st.integers(0, config.a_words - words * s)),
            "s_base": place, "o_base": place,
        }  # fmt: skip
        spare = config.b_words * config.max_m - count
        at = draw(st.integers(0, min(spare, 3 * config.max_m)))
    else:
        split = draw(st.integers(0, s.bit_length() - 1))
        words = draw(st.integers(1, min(4, config.a_words // s)))
        last = draw(st.integers(1, per_word))
        steps = (words - 1) * per_word + last
        kinds = [Start.ZERO, Start.START, Start.OUTPUT]
        start = draw(st.sampled_from(kinds))
        if previous is not None and previous.dataflow == 0 and draw(st.booleans()):
            start, split = Start.KEEP, previous.split
        place = draw(st.sampled_from([0, config.sum_words // 2]))
        stride = draw(st.integers(words, config.a_words // s))
        body |= {
            "dataflow": Dataflow.OS, "start": start, "emit": draw(st.integers(0, 1)),
            "split": split, "words": words, "values": per_word, "last": last,
            "a_base": 0, "a_stride": stride, "s_base": place, "o_base": place,
        }  # fmt: skip
        room = config.b_words >> split
        at = draw(st.integers(0, min(room * config.max_m - steps, 3 * config.max_m)))
        body |= {"b_stride": room, "i_stride": config.i_words >> split}
        if log2_m and (config.i_words >> split) * config.indices_per_word < at + steps:
            at = 0
    body |= {"b_base": at // config.max_m, "b_skip": at % config.max_m}
    if log2_m:
        per = config.indices_per_word
        body |= {"i_base": at // per, "i_skip": at % per}
    return Instruction(Opcode.MULTIPLY, body)


@st.composite
def tile_runs(draw):
    """Draw a configuration, a few tiles and the gaps between them."""
    config = draw(st.sampled_from(CONFIGS))
    instructions: list[Instruction] = []
    for _ in range(draw(st.integers(1, 6))):
        instructions.append(random_tile(draw, config, instructions[-1] if instructions else None))
    # A tile that starts from the output buffer waits for what it reads, as programs do by
    # semaphores; consecutive WS passes need not.
    gaps = []
    for before, tile in zip([None, *instructions], instructions, strict=False):
        ws_chain = before is not None and before.dataflow == tile.dataflow == 1
        ws_chain = ws_chain and before.values == tile.values and before.words == tile.words
        patient = tile.start == Start.OUTPUT.value and not ws_chain
        gaps.append(2000 if patient else draw(st.sampled_from([0, 0, 0, 1, 2, 5, 11, 40])))
    return config, instructions, gaps, draw(st.integers(0, 2**32 - 1))


@settings(max_examples=30)  # each elaborates the engine and simulates it in Python
@given(tile_runs())
def test_tiles_match_scalar_fold_and_timing_model(case):
    config, instructions, gaps, seed = case
    rng = np.random.default_rng(seed)
    a = random_halves(rng, (config.rows, config.a_words, config.max_m))
    # Copies of a word in neighbouring banks are the program's business; here each bank has its own.
    b = random_halves(rng, (config.cols, config.b_words, config.max_m))
    index = rng.integers(0, 2, (config.cols, config.i_words * config.indices_per_word))
    start = rng.standard_normal((config.cols, config.sum_words)).astype(np.float32)
    start[rng.random(start.shape) < 0.1] = -0.0
    got, offered, accepted, released, signalled, idle = run(
        config, a, b, index, start, instructions, gaps
    )

    model = Model(config, a, b, index, start)
    with np.errstate(all="ignore"):
        for i in instructions:
            model.multiply(i)
    want = model.output
    got_nan = np.isnan(got.view(np.float32))
    assert np.array_equal(got_nan, np.isnan(want))
    assert np.array_equal(got[~got_nan], want.view(np.uint32)[~got_nan])
    assert set(got[got_nan]) <= {0x7FC00000}

    timing = EngineTiming("multiply", config)
    times = [timing.run(i, at) for i, at in zip(instructions, offered, strict=True)]
    assert accepted == [t.accept for t in times]
    assert released == [t.release for t in times]
    assert signalled == [t.signal for t in times]
    assert idle == timing.idle
