"""The store engine alone: memory as the golden device has it, times as predicted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.dataflow.cycles import EngineTiming
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.isa import Format, Instruction, Opcode, Source
from sat.rtl.store import StoreEngine
from sat.sim.golden.check import GatherState, check, store_element
from sat.sim.golden.device import GoldenDevice

sys.path.insert(0, str(Path(__file__).parent))
from engine_bench import TIMINGS, Port, compare_times, run

MEMORY = 1 << 14
SMALL = {"a_words": 32, "b_words": 32, "sum_words": 64, "update_words": 32, "copy_words": 32}
WIDE = {**SMALL, "b_words": 128}
CONFIGS = [
    SatConfig(rows=3, cols=5, **SMALL, axi=AxiConfig(outstanding=2)),
    SatConfig(rows=1, cols=1, **SMALL, update_lanes=1, axi=AxiConfig(data_bits=64)),
    SatConfig(
        rows=4, cols=12, max_m=16, **SMALL, update_lanes=4,
        axi=AxiConfig(data_bits=32, burst_beats=4),
    ),
    SatConfig(rows=2, cols=8, **SMALL),
    SatConfig(rows=2, cols=5, **SMALL, axi=AxiConfig(data_bits=256, burst_beats=4)),
    SatConfig(rows=2, cols=20, **WIDE, axi=AxiConfig(data_bits=128, ports=4, outstanding=2)),
    SatConfig(
        rows=2, cols=3, max_m=16, **WIDE, update_lanes=8, axi=AxiConfig(data_bits=512, ports=2)
    ),
]  # fmt: skip


def random_sums(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return FP32 bits: of any kind, FP16-sized, halfway cases, zeros, infinities, NaNs."""
    anything = rng.integers(0, 1 << 32, shape, dtype=np.uint32)
    moderate = (rng.standard_normal(shape) * 2.0 ** rng.integers(-26, 17, shape)).astype(np.float32)
    special = np.array([0, -0.0, np.inf, -np.inf, 2.0**-25, -(2.0**-25), 65520], np.float32)
    return np.select(
        [rng.random(shape) < 0.2, rng.random(shape) < 0.8],
        [anything, moderate.view(np.uint32)],
        rng.choice(special, shape).view(np.uint32),
    )


@st.composite
def stores(draw):
    """Draw a configuration and legal STOREs."""
    config = draw(st.sampled_from(CONFIGS))
    made = []
    for _ in range(draw(st.integers(1, 4))):
        source = draw(st.sampled_from([Source.OUTPUT] * 5 + list(Source)))
        body = {"source": source, "stride": draw(st.integers(1, 3))}
        if source is Source.OUTPUT:
            format = draw(st.sampled_from(Format))
            body["format"] = format
            body["relu"] = format is Format.FP16 and draw(st.booleans())
            body["masked"] = format in (Format.FP16, Format.FP32) and draw(st.booleans())
            body["check"] = format is Format.FP32 and draw(st.booleans())
        size, word = store_element(Instruction(Opcode.STORE, body), config)
        row_bytes = size * draw(st.integers(1, word * body["stride"] // size))
        body |= {
            "address": draw(st.integers(0, 6000)),
            "pitch": draw(st.integers(row_bytes, row_bytes + 40)),
            "rows": draw(st.integers(1, 8)),
            "row_bytes": row_bytes,
            "base": draw(st.integers(0, 4)),
        }
        instruction = Instruction(Opcode.STORE, body)
        if check(instruction.encode(), config, (0, MEMORY), GatherState()) is None:
            made.append(instruction)
    gaps = [draw(st.sampled_from([0, 0, 1, 5, 40])) for _ in made]
    return config, draw(st.sampled_from(TIMINGS)), made, gaps, draw(st.integers(0, 1 << 32))


@settings(max_examples=100)
@given(stores())
def test_stores(case):
    config, memory_timing, instructions, gaps, seed = case
    if not instructions:
        return
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, MEMORY, dtype=np.uint8)
    sums = random_sums(rng, (config.cols, config.sum_words))
    masks = rng.integers(0, 2, (config.sum_words, config.cols)).astype(bool)
    golden = GoldenDevice(config, memory.copy())
    golden._output[:] = sums.view(np.float32)
    golden._mask[:] = masks
    for made in golden._made.values():
        made[:] = rng.integers(0, 256, made.shape)
    engine = StoreEngine(config)
    beat = config.axi.beat_bytes
    port = Port(memory, memory_timing, beat)
    address = found = 0

    def cycle_of_port(ctx, now):
        nonlocal address, found
        bus = engine.port
        if ctx.get(engine.source) == Source.OUTPUT:
            ctx.set(engine.row, [int(column[address]) for column in sums])
            ctx.set(engine.mask, sum(int(bit) << n for n, bit in enumerate(masks[address])))
        else:
            banks = golden._made[Source(ctx.get(engine.source))]
            # Words from the address on, each at the place of its sub-bank.
            together, depth = config.beat_words, banks.shape[1]
            at = [address + (n - address) % together for n in range(together)]
            words = [
                int.from_bytes(bank[np.array(at) % depth].tobytes(), "little") for bank in banks
            ]
            for number, word in enumerate(words):
                ctx.set(engine.made[number], word)
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
            at = ctx.get(bus.awaddr) * config.axi.ports
            port.pending.append([at, ctx.get(bus.awlen) + 1, now + 1])
        address = ctx.get(engine.address)
        found = ctx.get(engine.non_finite)

    observed = run(engine, instructions, gaps, cycle_of_port)
    compare_times(EngineTiming("store", config, memory_timing), instructions, observed)
    for instruction in instructions:
        golden.step(instruction)
    assert np.array_equal(memory, golden.memory)
    assert found == golden._non_finite
