"""The update engine alone: banks as the golden model has them, times as predicted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from amaranth import Value
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.dataflow.cycles import EngineTiming
from sat.rtl.config import AxiConfig, FpTiming, SatConfig
from sat.rtl.isa import Buffer, Instruction, Opcode, Source
from sat.rtl.update import UpdateEngine
from sat.sim.golden.check import UPDATED, GatherState, check
from sat.sim.golden.device import GoldenDevice

sys.path.insert(0, str(Path(__file__).parent))
from engine_bench import any_payload, compare_times, run

SMALL = {"update_words": 64, "copy_words": 64, "tile_weights": 256}
CONFIGS = [
    SatConfig(update_lanes=1, **SMALL),
    SatConfig(update_lanes=2, **SMALL),
    SatConfig(update_lanes=4, max_m=16, axi=AxiConfig(data_bits=64), **SMALL),
    SatConfig(
        update_lanes=2,
        max_m=4,
        max_n=4,
        interleave=8,
        axi=AxiConfig(data_bits=32),
        **SMALL,
        fp=FpTiming(adder_stages=8, update_multiplier_stages=5, prune_stages=3),
    ),
    SatConfig(update_lanes=16, axi=AxiConfig(data_bits=256), **SMALL),
]


def bits(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


@st.composite
def updates(draw):
    """Draw a configuration and legal RATES and UPDATEs."""
    config = draw(st.sampled_from(CONFIGS))
    made = []
    number = st.sampled_from([0.0, 0.9, 1e-3, 0.1, 1.0, 2.0**-12, 3e38])
    patterns = [(0, 1)] + [
        (log2_m, n)
        for log2_m in range(1, config.max_m.bit_length())
        for n in range(1, (1 << log2_m) + 1)
    ]
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.integers(0, 3)) == 0 or not made:
            names = ("learning_rate", "momentum", "decay", "decay_pruned", "unscale")
            made.append(Instruction(Opcode.RATES, {name: bits(draw(number)) for name in names}))
            continue
        (ff_log2_m, ff_n), (bp_log2_m, bp_n) = (draw(st.sampled_from(patterns)) for _ in range(2))
        unit = max(1 << ff_log2_m, config.granule_weights)
        columns = unit * draw(st.integers(1, max(1, 24 // unit)))
        rows = (1 << bp_log2_m) * draw(st.integers(1, max(1, 9 >> bp_log2_m)))
        body = {
            "rows": rows,
            "columns": columns,
            "in_base": draw(st.integers(0, 3)),
            "out_base": draw(st.integers(0, 3)),
            "stride": columns // config.granule_weights + draw(st.integers(0, 1)),
            "ff_n": ff_n,
            "ff_log2_m": ff_log2_m,
            "ff_base": draw(st.integers(0, 3)),
            "ff_stride": -(-columns // config.granule_halves),
            "bp_n": bp_n,
            "bp_log2_m": bp_log2_m,
            "bp_base": draw(st.integers(0, 3)),
            "bp_stride": -(-rows // config.granule_halves),
        }
        instruction = Instruction(Opcode.UPDATE, body)
        if check(instruction.encode(), config, (0, 1), GatherState()) is None:
            made.append(instruction)
    gaps = [draw(st.sampled_from([0, 0, 1, 5, 90])) for _ in made]
    return config, made, gaps, draw(st.booleans()), draw(st.integers(0, 1 << 32))


def random_numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return FP32 numbers: mostly moderate, ties, zeros, subnormals, infinities, NaN, any bits."""
    few = np.array([0, -0.0, 1, -1, 0.5, 1e-40, 6e-8, np.inf, np.nan], np.float32)
    kind = rng.random(shape)
    made = np.select(
        [kind < 0.6, kind < 0.9],
        [
            rng.standard_normal(shape).astype(np.float32).view(np.uint32),
            rng.choice(few, shape).view(np.uint32),
        ],
        rng.integers(0, 1 << 32, shape, dtype=np.uint32),
    )
    return made.astype(np.uint32).view(np.float32)


@settings(max_examples=10)
@given(updates())
def test_updates(case):
    config, instructions, gaps, skip, seed = case
    rng = np.random.default_rng(seed)
    c, lanes = config, config.update_lanes
    golden = GoldenDevice(config, np.zeros(64, np.uint8))
    inputs = []
    for buffer in UPDATED:
        banks = golden._banks[buffer]
        numbers = random_numbers(rng, (lanes, c.update_words, c.granule_weights))
        banks[:] = numbers.view(np.uint16).reshape(banks.shape)
        inputs.append(numbers.view(np.uint32))
    golden._non_finite = int(skip)
    got = {source: np.zeros_like(banks) for source, banks in golden._made.items()}
    engine = UpdateEngine(config)
    address = skipped = 0

    def cycle_of_port(ctx, now):
        nonlocal address, skipped
        ctx.set(engine.skip, skip)
        for port, banks in zip((engine.w_data, engine.v_data, engine.g_data), inputs, strict=True):
            for lane in range(lanes):
                ctx.set(port[lane], [int(x) for x in banks[lane, address]])
        address = ctx.get(engine.in_address)
        skipped += ctx.get(engine.skipped)
        for lane in range(lanes):
            if ctx.get(engine.out_write[lane]):
                for source, port in (
                    (Source.WEIGHT, engine.w_out),
                    (Source.MOMENTUM, engine.v_out),
                ):
                    word = ctx.get(Value.cast(port[lane])).to_bytes(c.granule_bytes, "little")
                    got[source][lane, ctx.get(engine.out_address)] = list(word)
            for name in ("ff", "bp"):
                if ctx.get(getattr(engine, f"{name}_write")[lane]):
                    word = ctx.get(getattr(engine, f"{name}_address")[lane])
                    place = ctx.get(getattr(engine, f"{name}_lane")[lane])
                    value = ctx.get(getattr(engine, f"{name}_value")[lane])
                    index = ctx.get(getattr(engine, f"{name}_index")[lane])
                    values = got[Source[f"{name.upper()}_VALUES"]][lane, word]
                    values[2 * place : 2 * place + 2] = value & 255, value >> 8
                    packed = got[Source[f"{name.upper()}_INDICES"]][lane, word]
                    byte, shift = place // 2, 4 * (place % 2)
                    packed[byte] = packed[byte] & (0xF0 >> shift) | index << shift

    observed = run(engine, instructions, gaps, cycle_of_port, any_payload)
    compare_times(EngineTiming("update", config), instructions, observed)
    for instruction in instructions:
        golden.step(instruction)
    for source, banks in golden._made.items():
        assert np.array_equal(got[source], banks), source
    assert skipped == golden._skipped
    assert Buffer.WEIGHT in UPDATED
