"""The load engine alone: contents as the golden device has them, times as predicted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from amaranth import Shape, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.dataflow.cycles import EngineTiming
from sat.rtl.config import AxiConfig, FpTiming, SatConfig
from sat.rtl.fp.operand import operand_of
from sat.rtl.isa import Buffer, Instruction, Opcode
from sat.rtl.layouts import Groups, index_groups, operand_groups
from sat.rtl.load import LoadEngine
from sat.sim.golden.check import UPDATED, GatherState, check
from sat.sim.golden.device import GoldenDevice

sys.path.insert(0, str(Path(__file__).parent))
from engine_bench import TIMINGS, Port, any_payload, compare_times, run

MEMORY = 1 << 14
SMALL = {"a_words": 64, "b_words": 64, "sum_words": 64, "update_words": 64, "copy_words": 16}
WIDE = {**SMALL, "b_words": 128, "sum_words": 128, "copy_words": 32}
CONFIGS = [
    SatConfig(rows=3, cols=5, **SMALL, axi=AxiConfig(outstanding=2)),
    SatConfig(rows=1, cols=1, **SMALL, update_lanes=1, axi=AxiConfig(data_bits=64)),
    SatConfig(
        rows=4, cols=8, max_m=16, **SMALL, update_lanes=4,
        axi=AxiConfig(data_bits=32, burst_beats=4),
    ),
    SatConfig(rows=8, cols=32, **SMALL),
    SatConfig(rows=5, cols=8, **SMALL, axi=AxiConfig(data_bits=256)),
    SatConfig(rows=11, cols=3, **WIDE, update_lanes=16, axi=AxiConfig(data_bits=512)),
    SatConfig(
        rows=2, cols=7, max_m=4, max_n=4, **WIDE, axi=AxiConfig(data_bits=256, ports=4)
    ),
    SatConfig(
        rows=6, cols=12, max_m=16, **WIDE, update_lanes=32,
        axi=AxiConfig(data_bits=256, ports=2, outstanding=64),
    ),
]  # fmt: skip
PRUNING = [
    SatConfig(rows=2, cols=2, **SMALL, prune_gathers=True, axi=AxiConfig(data_bits=32)),
    SatConfig(
        rows=3, cols=8, **SMALL, prune_gathers=True, fp=FpTiming(prune_stages=3),
        axi=AxiConfig(outstanding=4),
    ),
    SatConfig(rows=3, cols=7, max_m=2, max_n=2, **WIDE, prune_gathers=True),
    SatConfig(
        rows=2, cols=27, max_m=4, max_n=4, **WIDE, prune_gathers=True,
        axi=AxiConfig(data_bits=256, ports=4),
    ),
    SatConfig(
        rows=2, cols=20, max_m=16, **WIDE, prune_gathers=True, fp=FpTiming(prune_stages=3),
        axi=AxiConfig(data_bits=256, ports=2, outstanding=64),
    ),
]  # fmt: skip


# Beats that hold several groups of channels: 2 of A, 2 of B, 4 of B, 2 of each that leave eight
# sub-banks to each.
DEEP = {"a_words": 128, "b_words": 256, "sum_words": 128, "update_words": 64, "copy_words": 32}
GROUPS = [
    SatConfig(rows=8, cols=5, max_m=2, max_n=2, **DEEP, axi=AxiConfig(data_bits=256)),
    SatConfig(
        rows=3, cols=8, max_m=2, max_n=2, **DEEP, prune_gathers=True,
        axi=AxiConfig(data_bits=256, outstanding=4),
    ),
    SatConfig(
        rows=2, cols=16, max_m=4, max_n=4, **DEEP, prune_gathers=True,
        fp=FpTiming(prune_stages=3), axi=AxiConfig(data_bits=256, ports=4),
    ),
    SatConfig(
        rows=16, cols=16, max_m=2, max_n=2, **DEEP, prune_gathers=True,
        axi=AxiConfig(data_bits=512, outstanding=64),
    ),
]  # fmt: skip


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def banks_of(config: SatConfig, buffer: Buffer) -> int:
    if buffer is Buffer.A:
        return config.rows
    return config.update_lanes if buffer in UPDATED else config.cols


def draw_load(draw, config: SatConfig) -> Instruction:
    """Draw a LOAD, mostly legal."""
    beat = config.granule_bytes
    buffer = draw(st.sampled_from(list(Buffer)))
    if buffer in (Buffer.START, Buffer.MASK):
        unit = 4 if buffer is Buffer.START else config.mask_bytes
        stride = draw(st.integers(1, 4))
        rows = draw(st.integers(1, 9))
        room = stride * (config.cols if buffer is Buffer.START else 1)
        body = {
            "address": unit * draw(st.integers(0, 900)),
            "pitch": unit * draw(st.integers(0, 20)),
            "rows": rows,
            "row_bytes": unit * draw(st.integers(1, room)),
            "stride": stride,
            "groups": rows,
            "base": draw(st.integers(0, 3)),
        }
        if buffer is Buffer.MASK and draw(st.booleans()):
            part = draw(st.sampled_from([1, 2, 4]))
            body |= {"row_bytes": part, "address": part * draw(st.integers(0, 900))}
            body["pitch"] = part * draw(st.integers(0, 20))
    else:
        word = beat if buffer in UPDATED else config.word_bytes
        words = draw(st.integers(1, 5))
        rows = draw(st.integers(1, 6))
        body = {
            "address": beat * draw(st.integers(0, 300)),
            "pitch": beat * draw(st.integers(0, 20)),
            "rows": rows,
            "row_bytes": draw(st.integers((words - 1) * word + 1, words * word)),
            "base": draw(st.integers(0, 2)),
        } | draw_banks(draw, config, buffer, rows, words)
    return Instruction(Opcode.LOAD, {**body, "destination": buffer})


def draw_banks(draw, config: SatConfig, buffer: Buffer, rows: int, words: int) -> dict:
    if buffer is Buffer.A and draw(st.booleans()):
        copies = draw(st.integers(1, config.rows))
        per_pass = draw(st.integers(1, config.rows // copies))
        made = {"by_word": 1, "copies": copies, "words_per_pass": per_pass}
        return made | {"groups": ceil_div(words, per_pass), "stride": rows}
    return {"groups": ceil_div(rows, banks_of(config, buffer)), "stride": words}


def draw_gathers(draw, config: SatConfig) -> list[Instruction]:
    """Draw a tensor, a window over it and a gather or two, mostly legal."""
    word, beat = config.word_bytes, config.granule_bytes
    groups = max(config.a_groups, config.b_groups)
    channels = draw(st.integers(1, 3 if groups == 1 else 2 * config.beat_words))
    lines, pixels = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    pixel_pitch = word * channels + beat * draw(st.integers(0, 1))
    line_pitch = pixel_pitch * pixels + beat * draw(st.integers(0, 2))
    out_lines, out_pixels = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    log2_m = draw(st.integers(1, config.lane_bits)) if config.prune_gathers else 0
    n = draw(st.integers(1, 1 << log2_m)) if log2_m else 0
    made = [
        Instruction(
            Opcode.TENSOR,
            {
                "address": beat * draw(st.integers(0, 40)),
                "images": draw(st.integers(1, 3)),
                "lines": lines,
                "pixels": pixels,
                "pixel_pitch": pixel_pitch,
                "line_pitch": line_pitch,
                "image_pitch": line_pitch * lines,
            },
        ),
        Instruction(
            Opcode.WINDOW,
            {
                "lines": out_lines,
                "pixels": out_pixels,
                "step_y": draw(st.integers(0, 3)),
                "step_x": draw(st.integers(0, 3)),
                "tap_y": draw(st.integers(-2, 2)),
                "tap_x": draw(st.integers(-2, 2)),
                "n": n,
                "log2_m": log2_m,
            },
        ),
    ]
    for _ in range(draw(st.integers(1, 2))):
        transpose = draw(st.booleans())
        rows = draw(st.integers(1, 12))
        body = {
            "image": draw(st.integers(0, 2)),
            "line": draw(st.integers(0, out_lines - 1)),
            "pixel": draw(st.integers(0, out_pixels - 1)),
            "y": draw(st.integers(-3, 3)),
            "x": draw(st.integers(-3, 3)),
            "rows": rows,
            "base": draw(st.integers(0, 2)),
            "taps_y": 1,
            "taps_x": 1,
            "transpose": transpose,
        }
        if transpose:
            buffer = draw(st.sampled_from([Buffer.A, Buffer.B]))
            beats = draw(st.integers(1, pixel_pitch // beat))
            if buffer is Buffer.B and log2_m:
                body["rows"] = rows << log2_m
                beats = min(beats, 2 * config.b_groups * config.cols // beat)
            body["segment_bytes"] = beat * beats
            body["offset"] = beat * draw(st.integers(0, pixel_pitch // beat - beats))
            body["groups"] = ceil_div(beat * beats // 2, banks_of(config, buffer))
            body["stride"] = ceil_div(rows, config.max_m)
            if groups > 1 and draw(st.booleans()):  # groups of channels can be written together
                apart = config.wide_stride(banks_of(config, buffer))
                body["stride"] += (apart - body["stride"]) % config.beat_words
        else:
            buffer = Buffer.A
            words = draw(st.integers(1, channels))
            body["segment_bytes"] = words * word
            body["offset"] = beat * draw(st.integers(0, (pixel_pitch - words * word) // beat))
            body["taps_y"], body["taps_x"] = draw(st.integers(1, 3)), draw(st.integers(1, 3))
            words *= body["taps_y"] * body["taps_x"]
            body |= draw_banks(draw, config, buffer, rows, words)
        made.append(Instruction(Opcode.GATHER, {**body, "destination": buffer}))
    return made


@st.composite
def loads(draw, configs: list[SatConfig]):
    """Draw a configuration and legal instructions of the load engine."""
    config = draw(st.sampled_from(configs))
    wanted = []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            wanted.append(draw_load(draw, config))
        else:
            wanted += draw_gathers(draw, config)
    state, made = GatherState(), []
    for instruction in wanted:
        if check(instruction.encode(), config, (0, MEMORY), state) is None:
            state.follow(instruction)
            made.append(instruction)
    gaps = [draw(st.sampled_from([0, 0, 1, 5, 40])) for _ in made]
    return config, draw(st.sampled_from(TIMINGS)), made, gaps, draw(st.integers(0, 1 << 32))


def writes(ctx, config: SatConfig, write, groups: Groups):
    """Yield what a write of this cycle puts where: bank, word, lane (update banks: byte), value.

    The banks of weights, momenta and gradients count as one, one behind the other.
    """
    mask, together = ctx.get(write.banks), config.beat_words
    fields = dict(write.shape().members)
    assert mask < 1 << Shape.cast(fields["banks"]).width
    if not mask:
        return
    lanes, size = ctx.get(write.lanes), Shape.cast(fields["lanes"]).width
    data = [ctx.get(Value.cast(value)) for value in write.data]
    transpose = "transpose" in fields and ctx.get(write.transpose)
    behind = 0
    if "buffers" in fields:
        behind = config.update_words * (ctx.get(write.buffers).bit_length() - 1)
    banks = Shape.cast(fields["banks"]).width // groups.count
    elements = config.axi.beat_bytes // 2 // groups.count  # of a group
    for bank in range(banks):
        for part in range(together):
            number = (part - bank) % together
            place = groups.place(number)
            if not mask >> (place * banks + bank) & 1:
                continue
            if together == 1:
                word = ctx.get(write.address)
            else:
                diagonal = ctx.get(write.diagonal)
                if not ctx.get(write.enable) >> (number if diagonal else part) & 1:
                    continue
                own = number if diagonal and groups.count > 1 else part
                word = together * ctx.get(write.address[own]) + number
            own = data[part * size : (part + 1) * size]
            if "buffers" in fields:
                own = list(own[0].to_bytes(config.granule_bytes, "little"))
            if transpose:
                own = [own[(place * elements + bank % elements) // together]] * size
            for lane, value in enumerate(own):
                if "buffers" in fields or lanes >> lane & 1:
                    yield bank, behind + word, lane, value


@settings(max_examples=60)
@given(loads(CONFIGS))
def test_loads(case):
    check_loads(case)


@settings(max_examples=40)
@given(loads(PRUNING))
def test_loads_of_devices_that_prune(case):
    check_loads(case)


@settings(max_examples=40)
@given(loads(GROUPS))
def test_loads_of_groups_of_channels(case):
    check_loads(case)


def check_loads(case) -> None:
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
        "u": np.zeros((c.update_lanes, 3 * c.update_words, c.granule_bytes), np.uint32),
    }
    groups = {
        "a": operand_groups(c, c.rows),
        "b": operand_groups(c, c.cols),
        "i": index_groups(c),
        "u": Groups(),
    }
    starts = np.zeros((c.cols, c.sum_words), np.uint32)
    masks = np.zeros((c.sum_words, c.cols), bool)

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
            # Ports side by side hold a stripe of each beat: their addresses count less.
            at = ctx.get(bus.araddr) * config.axi.ports
            port.pending.append([at, ctx.get(bus.arlen) + 1, due])
        for name, banks in got.items():
            write = getattr(engine, f"{name}_write")
            for bank, word, lane, value in writes(ctx, config, write, groups[name]):
                banks[bank, word, lane] = value
        mask = ctx.get(engine.s_write.banks)
        for bank in range(c.cols):
            if mask >> bank & 1:
                starts[bank, ctx.get(engine.s_write.address)] = ctx.get(engine.s_write.data[bank])
        if ctx.get(engine.m_write.write):
            bits = ctx.get(engine.m_write.data)
            masks[ctx.get(engine.m_write.address)] = [bits >> n & 1 for n in range(c.cols)]

    observed = run(engine, instructions, gaps, cycle_of_port, any_payload)
    compare_times(EngineTiming("load", config, memory_timing), instructions, observed)
    golden = GoldenDevice(config, memory)
    for instruction in instructions:
        golden.step(instruction)
    assert np.array_equal(got["a"], operand_of(golden._banks[Buffer.A]))
    assert np.array_equal(got["b"], operand_of(golden._banks[Buffer.B]))
    assert np.array_equal(got["i"], golden._banks[Buffer.INDEX])
    assert np.array_equal(starts, golden._start.view(np.uint32))
    assert np.array_equal(masks, golden._mask)
    updates = np.split(got["u"], 3, axis=1)
    for banks, buffer in zip(updates, UPDATED, strict=True):
        assert np.array_equal(banks, golden._banks[buffer].view(np.uint8))
