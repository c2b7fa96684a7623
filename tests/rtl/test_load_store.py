"""Load and store engines alone: contents as the golden device has them, times as predicted."""

from __future__ import annotations

from collections import deque

import numpy as np
from amaranth import Value
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.dataflow.cycles_load import LoadTiming
from sat.dataflow.cycles_store import StoreTiming
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.fp.operand import operand_of
from sat.rtl.isa import Buffer, Instruction, Opcode
from sat.rtl.load import LoadEngine
from sat.rtl.store import StoreEngine
from sat.sim.golden.check import check
from sat.sim.golden.device import GoldenDevice
from sat.sim.memory import MemoryTiming

MEMORY = 1 << 14
CONFIGS = [
    SatConfig(rows=3, cols=5, a_words=32, b_words=32, sum_words=32, axi=AxiConfig(outstanding=2)),
    SatConfig(rows=1, cols=1, a_words=64, b_words=64, sum_words=64, axi=AxiConfig(data_bits=64)),
    SatConfig(rows=4, cols=8, max_m=16, a_words=32, b_words=32, sum_words=64,
              axi=AxiConfig(data_bits=32, burst_beats=4)),
]  # fmt: skip
TIMINGS = [
    MemoryTiming(),
    MemoryTiming(read_latency=1, write_latency=1),
    MemoryTiming(read_latency=7, write_latency=30, cycles_per_beat=3),
]


class Port:
    """Memory behind an engine's port, with the documented timing."""

    def __init__(self, memory: np.ndarray, timing: MemoryTiming, beat: int):
        self.memory, self.timing, self.beat = memory, timing, beat
        self.pending: deque[list[int]] = deque()  # [beat address, beats left, due]
        self.answers: deque[int] = deque()
        self.free = 0

    def ready(self, now: int) -> bool:
        """Whether a beat may move in this cycle."""
        return bool(self.pending) and now >= max(self.pending[0][2], self.free)

    def take(self, now: int) -> int:
        """Move a beat; return its address."""
        burst = self.pending[0]
        at = burst[0]
        burst[0], burst[1] = at + self.beat, burst[1] - 1
        self.free = now + self.timing.cycles_per_beat
        if burst[1] == 0:
            self.pending.popleft()
            self.answers.append(now + self.timing.write_latency)
        return at


def run(engine, instructions, gaps, cycle_of_port):
    """Offer instructions and follow the port; return offers, accepts, releases, signals, idle."""
    offered, accepted, released, signalled, idle = [], [], [], [], 0

    async def drive(ctx):
        nonlocal idle
        offer_at = gaps[0]
        for cycle in range(20_000):
            number = len(accepted)
            waiting = number < len(instructions) and cycle >= offer_at
            ctx.set(engine.i.valid, waiting)
            if waiting:
                if len(offered) == number:
                    offered.append(cycle)
                i = instructions[number]
                payload = {"pc": number, "release": 1, "signal": 1, "body": dict(i.body)}
                ctx.set(engine.i.payload, payload)
                if ctx.get(engine.i.ready):
                    accepted.append(cycle)
                    offer_at = cycle + 1 + (gaps + [0])[number + 1]
            cycle_of_port(ctx, cycle)
            if ctx.get(engine.release):
                released.append(cycle)
            if ctx.get(engine.signal):
                signalled.append(cycle)
            if len(signalled) == len(instructions) and not ctx.get(engine.busy):
                idle = cycle
                return
            await ctx.tick()
        raise AssertionError("the engine hangs")

    sim = Simulator(engine)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.run()
    return offered, accepted, released, signalled, idle


def compare_times(timing, instructions, observed) -> None:
    """Assert that the timing model gives the observed cycles."""
    offered, accepted, released, signalled, idle = observed
    times = [timing.run(i, at) for i, at in zip(instructions, offered, strict=True)]
    assert accepted == [t.accept for t in times]
    assert released == [t.release for t in times]
    assert signalled == [t.signal for t in times]
    assert idle == timing.idle


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@st.composite
def loads(draw):
    """Draw a configuration and legal LOADs."""
    config = draw(st.sampled_from(CONFIGS))
    beat = config.axi.beat_bytes
    made = []
    for _ in range(draw(st.integers(1, 4))):
        buffer = draw(st.sampled_from(list(Buffer)))
        if buffer is Buffer.START:
            stride = draw(st.integers(1, 3))
            rows = draw(st.integers(1, config.sum_words // stride // 2))
            body = {
                "address": 4 * draw(st.integers(0, 900)),
                "pitch": 4 * draw(st.integers(0, 20)),
                "rows": rows,
                "row_bytes": 4 * draw(st.integers(1, config.cols * stride)),
                "stride": stride,
                "groups": rows,
                "base": draw(st.integers(0, 3)),
            }
        else:
            words = draw(st.integers(1, 5))
            row_bytes = draw(
                st.integers((words - 1) * config.word_bytes + 1, words * config.word_bytes)
            )
            rows = draw(st.integers(1, 6))
            body = {
                "address": beat * draw(st.integers(0, 300)),
                "pitch": beat * draw(st.integers(0, 20)),
                "rows": rows,
                "row_bytes": row_bytes,
                "base": draw(st.integers(0, 2)),
            }
            if buffer is Buffer.A and draw(st.booleans()):
                copies = draw(st.integers(1, config.rows))
                per_pass = draw(st.integers(1, config.rows // copies))
                groups = ceil_div(words, per_pass)
                body |= {"by_word": 1, "copies": copies, "words_per_pass": per_pass}
                body |= {"groups": groups, "stride": rows}
            else:
                banks = config.rows if buffer is Buffer.A else config.cols
                body |= {"groups": ceil_div(rows, banks), "stride": words}
        instruction = Instruction(Opcode.LOAD, {**body, "destination": buffer})
        if check(instruction.encode(), config, (0, MEMORY)) is None:
            made.append(instruction)
    gaps = [draw(st.sampled_from([0, 0, 1, 5, 40])) for _ in made]
    return config, draw(st.sampled_from(TIMINGS)), made, gaps, draw(st.integers(0, 1 << 32))


@settings(max_examples=30)
@given(loads())
def test_loads(case):
    config, memory_timing, instructions, gaps, seed = case
    if not instructions:
        return
    memory = np.random.default_rng(seed).integers(0, 256, MEMORY, dtype=np.uint8)
    engine = LoadEngine(config)
    beat = config.axi.beat_bytes
    port = Port(memory, memory_timing, beat)
    c = config
    got = {
        "a": np.zeros((c.rows, c.a_words, c.max_m), np.uint32),
        "b": np.zeros((c.cols, c.b_words, c.max_m), np.uint32),
        "i": np.zeros((c.cols, c.i_words, c.max_m), np.uint32),
    }
    starts = np.zeros((c.cols, c.sum_words), np.uint32)

    def cycle_of_port(ctx, now):
        bus = engine.port
        ready = port.ready(now)
        ctx.set(bus.arready, 1)
        ctx.set(bus.rvalid, ready)
        if ready:
            at, left, _ = port.pending[0]
            ctx.set(bus.rdata, int.from_bytes(memory[at : at + beat].tobytes(), "little"))
            ctx.set(bus.rlast, left == 1)
            if ctx.get(bus.rready):
                port.take(now)
        if ctx.get(bus.arvalid):
            due = now + memory_timing.read_latency
            port.pending.append([ctx.get(bus.araddr), ctx.get(bus.arlen) + 1, due])
        for name, banks in got.items():
            write = getattr(engine, f"{name}_write")
            mask = ctx.get(write.banks)
            for bank in range(len(banks)):
                if mask >> bank & 1:
                    for lane in range(c.max_m):
                        if ctx.get(write.lanes) >> lane & 1:
                            value = ctx.get(Value.cast(write.data[lane]))
                            banks[bank, ctx.get(write.address), lane] = value
        mask = ctx.get(engine.s_write.banks)
        for bank in range(c.cols):
            if mask >> bank & 1:
                starts[bank, ctx.get(engine.s_write.address)] = ctx.get(engine.s_write.data[bank])

    observed = run(engine, instructions, gaps, cycle_of_port)
    compare_times(LoadTiming(config, memory_timing), instructions, observed)
    golden = GoldenDevice(config, memory)
    for instruction in instructions:
        golden.step(instruction)
    assert np.array_equal(got["a"], operand_of(golden._banks[Buffer.A]))
    assert np.array_equal(got["b"], operand_of(golden._banks[Buffer.B]))
    assert np.array_equal(got["i"], golden._banks[Buffer.INDEX])
    assert np.array_equal(starts, golden._start.view(np.uint32))


@st.composite
def stores(draw):
    """Draw a configuration and legal STOREs."""
    config = draw(st.sampled_from(CONFIGS))
    made = []
    for _ in range(draw(st.integers(1, 4))):
        stride = draw(st.integers(1, 3))
        columns = draw(st.integers(1, config.cols * stride))
        body = {
            "address": 4 * draw(st.integers(0, 1500)),
            "pitch": 4 * draw(st.integers(columns, columns + 9)),
            "rows": draw(st.integers(1, 8)),
            "columns": columns,
            "stride": stride,
            "base": draw(st.integers(0, 4)),
        }
        made.append(Instruction(Opcode.STORE, body))
    gaps = [draw(st.sampled_from([0, 0, 1, 5, 40])) for _ in made]
    return config, draw(st.sampled_from(TIMINGS)), made, gaps, draw(st.integers(0, 1 << 32))


@settings(max_examples=30)
@given(stores())
def test_stores(case):
    config, memory_timing, instructions, gaps, seed = case
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, MEMORY, dtype=np.uint8)
    sums = rng.integers(0, 1 << 32, (config.cols, config.sum_words), dtype=np.uint32)
    golden = GoldenDevice(config, memory.copy())
    golden._output[:] = sums.view(np.float32)
    engine = StoreEngine(config)
    beat = config.axi.beat_bytes
    port = Port(memory, memory_timing, beat)
    address = 0

    def cycle_of_port(ctx, now):
        nonlocal address
        bus = engine.port
        ctx.set(engine.row, [int(column[address]) for column in sums])
        ctx.set(bus.awready, 1)
        ready = port.ready(now)
        ctx.set(bus.wready, ready)
        answer = bool(port.answers) and now >= port.answers[0]
        ctx.set(bus.bvalid, answer)
        if answer:
            port.answers.popleft()
        if ready and ctx.get(bus.wvalid):
            strobes, data = ctx.get(bus.wstrb), ctx.get(bus.wdata).to_bytes(beat, "little")
            assert ctx.get(bus.wlast) == (port.pending[0][1] == 1)
            at = port.take(now)
            for n in range(beat):
                if strobes >> n & 1:
                    memory[at + n] = data[n]
        if ctx.get(bus.awvalid):
            port.pending.append([ctx.get(bus.awaddr), ctx.get(bus.awlen) + 1, now + 1])
        address = ctx.get(engine.address)

    observed = run(engine, instructions, gaps, cycle_of_port)
    compare_times(StoreTiming(config, memory_timing), instructions, observed)
    for instruction in instructions:
        golden.step(instruction)
    assert np.array_equal(memory, golden.memory)
