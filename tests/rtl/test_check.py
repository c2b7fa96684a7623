"""The check in hardware and the rules in Python give one verdict on every instruction.

Instructions of compiled products are moved to the very edge of what is legal: each field to the
last legal value and to the first illegal one, up and down; others are disturbed at random.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from amaranth.sim import Simulator

from sat.dataflow.compile import compile_product
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product, StartShape
from sat.rtl.check import CHECK_CYCLES, Checker
from sat.rtl.config import AxiConfig, FpTiming, SatConfig
from sat.rtl.isa import BODIES, Buffer, Format, Instruction, Opcode, Source, Status, field_range
from sat.sim.golden.check import GatherState, check

CONFIGS = {
    "1x1": SatConfig(rows=1, cols=1, a_words=32, b_words=32, sum_words=32),
    "3x5": SatConfig(rows=3, cols=5, a_words=64, b_words=64, sum_words=128),
    "8x8": SatConfig(),
    "4x4 of 16": SatConfig(
        rows=4, cols=4, max_m=16, max_n=4, interleave=8, a_words=32, b_words=32,
        fp=FpTiming(adder_stages=7), axi=AxiConfig(data_bits=256),
    ),
    "2x3 of 4, narrow": SatConfig(
        rows=2, cols=3, max_m=4, max_n=2, a_words=32, b_words=16, sum_words=32,
        axi=AxiConfig(data_bits=32),
    ),
    "4x3, wide": SatConfig(
        rows=4, cols=3, a_words=64, b_words=64, update_lanes=32,
        axi=AxiConfig(data_bits=256, ports=2),
    ),
    "5x8 that prunes": SatConfig(rows=5, cols=8, a_words=64, b_words=64, prune_gathers=True),
    "3x7 of 2 that prunes": SatConfig(
        rows=3, cols=7, max_m=2, max_n=2, a_words=32, b_words=32, prune_gathers=True,
    ),
    "2x8 of 2 that prunes two groups": SatConfig(
        rows=2, cols=8, max_m=2, max_n=2, a_words=32, b_words=64, prune_gathers=True,
        axi=AxiConfig(data_bits=256),
    ),
    "5x2, no interleave": SatConfig(
        rows=5, cols=2, interleave=1, a_words=32768, b_words=32768, sum_words=32768,
        fp=FpTiming(adder_stages=1), axi=AxiConfig(address_bits=48),
    ),
}  # fmt: skip
BASE = 4096


def legal_instructions(config: SatConfig, rng: random.Random) -> tuple[list[Instruction], int]:
    """Return different instructions of compiled products, and the end of what they touch."""
    found: dict[bytes, Instruction] = {}
    end = 0
    for product in (
        Product(30, 33, 50),
        Product(9, 14, 40, 1, 2, StartShape.MATRIX),
        Product(20, 11, 70, 3, 4, StartShape.ROW),
        Product(26, 7, 45, 4, 4),
    ):
        if product.m > config.max_m:
            continue
        every = legal_mappings(product, config)
        for dataflow in ("os", "ws"):
            mappings = [mapping for mapping in every if mapping.dataflow == dataflow]
            for mapping in rng.sample(mappings, min(2, len(mappings))):
                compiled = compile_product(product, config, mapping, base=BASE)
                end = max(end, compiled.memory.end)
                kinds: Counter[Opcode] = Counter()
                for i in compiled.program:
                    kinds[i.opcode] += 1
                    if kinds[i.opcode] <= 4:
                        found[i.encode()] = i
    more = other_instructions(config, end)
    return list(found.values()) + more, end


def tensor_and_window(config: SatConfig) -> list[Instruction]:
    """Return what the GATHERs of `other_instructions` depend on."""
    pixel = max(3 * config.word_bytes, (config.b_groups > 1) * config.axi.beat_bytes)
    shape = {"images": 3, "lines": 5, "pixels": 4, "pixel_pitch": pixel}
    pitches = {"line_pitch": 4 * pixel, "image_pitch": 20 * pixel}
    window = {"lines": 4, "pixels": 3, "step_y": 1, "step_x": 2, "tap_y": -1, "tap_x": 1}
    if config.prune_gathers:
        window |= {"n": 1, "log2_m": config.lane_bits}
    return [
        Instruction(Opcode.TENSOR, {"address": BASE, **shape, **pitches}),
        Instruction(Opcode.WINDOW, window),
    ]


def state_after(config: SatConfig) -> GatherState:
    state = GatherState()
    for i in tensor_and_window(config):
        state.follow(i)
    return state


def other_instructions(config: SatConfig, end: int) -> list[Instruction]:
    """Return a legal instruction of each kind that compiled products do not use."""
    c, word, beat = config, config.word_bytes, config.granule_bytes
    gather = {"line": 2, "pixel": 1, "y": -1, "x": -2, "rows": 5, "offset": beat, "stride": 4}
    made = tensor_and_window(config)
    made.append(
        Instruction(
            Opcode.GATHER,
            {**gather, "taps_y": 2, "taps_x": 2, "segment_bytes": word, "groups": -(-5 // c.rows)},
        )
    )
    for buffer, banks in ((Buffer.A, c.rows), (Buffer.B, c.cols)):
        groups = -(-beat // 2 // banks)
        size = {"segment_bytes": beat, "groups": groups, "destination": buffer}
        one = {"taps_y": 1, "taps_x": 1, "transpose": 1}
        if config.prune_gathers and buffer is Buffer.B:
            one["rows"] = 3 * config.max_m
        made.append(Instruction(Opcode.GATHER, {**gather, **size, **one, "stride": 1}))
        if config.prune_gathers and buffer is Buffer.B and config.b_groups > 1:
            whole = {"segment_bytes": 2 * c.cols * c.b_groups, "groups": c.b_groups, "offset": 0}
            stride = config.wide_stride(c.cols)
            made.append(
                Instruction(Opcode.GATHER, {**gather, **size, **one, **whole, "stride": stride})
            )
    by_word = {"by_word": 1, "words_per_pass": 1, "copies": c.rows, "groups": 4, "stride": 5}
    taps = {"taps_y": 2, "taps_x": 2, "segment_bytes": word}
    made.append(Instruction(Opcode.GATHER, {**gather, **taps, **by_word}))
    rows = {"address": BASE, "pitch": 2 * beat, "rows": 4}
    mask = {"row_bytes": 2 * c.mask_bytes, "stride": 2, "groups": 4, "destination": Buffer.MASK}
    made.append(Instruction(Opcode.LOAD, {**rows, **mask}))
    lines = -(-4 // c.update_lanes)
    for buffer in (Buffer.WEIGHT, Buffer.MOMENTUM, Buffer.GRADIENT):
        body = {"row_bytes": 2 * beat, "stride": 2, "groups": lines, "destination": buffer}
        made.append(Instruction(Opcode.LOAD, {**rows, **body}))
    for format, flags in (
        (Format.FP32, {"masked": 1, "check": 1}),
        (Format.FP16, {"relu": 1, "masked": 1}),
        (Format.MASK, {}),
        (Format.ZERO, {}),
    ):
        body = {"row_bytes": 4 * c.mask_bytes, "stride": 4, "format": format, **flags}
        made.append(Instruction(Opcode.STORE, {**rows, **body}))
    for source in list(Source)[1:]:
        body = {"row_bytes": beat, "stride": 4, "source": source}
        made.append(Instruction(Opcode.STORE, {**rows, **body}))
    made.append(Instruction(Opcode.RATES, {"momentum": 0x3F666666}))
    m = c.max_m
    size = {"rows": m, "columns": max(m, c.granule_weights), "stride": 4}
    copies = {"ff_n": 1, "ff_log2_m": 1, "bp_n": m, "bp_log2_m": m.bit_length() - 1}
    made.append(Instruction(Opcode.UPDATE, {**size, **copies, "ff_stride": 3, "bp_stride": 1}))
    state = state_after(config)
    for i in made:
        fault = check(i.encode(), config, (0, max(end, BASE + 64 * 60)), state)
        assert fault is None, fault
    return made


def edges(i: Instruction, config: SatConfig, window: tuple[int, int]) -> Iterator[Instruction]:
    """Yield the instruction with one field at the edge of what is legal, and just beyond it."""

    def moved(name: str, value: int) -> Instruction:
        return Instruction(i.opcode, {**i.body, name: value})

    state = state_after(config)
    for name, start in i.body.items():
        legal_range = field_range(BODIES[i.opcode], name)
        for limit in (legal_range.start, legal_range.stop - 1):
            legal, illegal = start, limit
            if check(moved(name, limit).encode(), config, window, state) is None:
                yield moved(name, limit)
                continue
            while abs(illegal - legal) > 1:
                middle = (legal + illegal) // 2
                if check(moved(name, middle).encode(), config, window, state) is None:
                    legal = middle
                else:
                    illegal = middle
            yield moved(name, legal)
            yield moved(name, illegal)


def disturbed(i: Instruction, rng: random.Random) -> bytes:
    """Return the instruction with up to three fields changed, at times with a bit flipped."""
    layout, body = BODIES[i.opcode], dict(i.body)
    for name in rng.sample(list(body), min(len(body), rng.randint(0, 3))):
        width = layout[name].width
        near = [body[name] + 1, body[name] - 1, 2 * body[name], body[name] // 2]
        any_size = rng.getrandbits(rng.randint(1, width))
        start = field_range(layout, name).start
        body[name] = (rng.choice([*near, 0, 1, any_size]) - start) % (1 << width) + start
    raw = bytearray(Instruction(i.opcode, body, *(rng.getrandbits(16) for _ in range(3))).encode())
    if rng.random() < 0.1:
        bit = rng.randrange(256)
        raw[bit // 8] ^= 1 << bit % 8
    return bytes(raw)


def cases(config: SatConfig, seed: int) -> list[tuple[bytes, bool, tuple[int, int]]]:
    """Return instructions, whether each is its program's last, and windows."""
    rng = random.Random(seed)
    legal, end = legal_instructions(config, rng)
    end = max(end, BASE + 64 * 60 * 4)
    whole, tight = (0, 1 << config.axi.address_bits), (BASE, end)
    unknown = [n for n in range(256) if n not in [opcode.value for opcode in Opcode]]
    found = [(bytes([n]) + rng.randbytes(31), False, whole) for n in rng.sample(unknown, 10)]
    state = state_after(config)
    new = other_instructions(config, end)
    for i in new + rng.sample(legal[: -len(new)], 24):
        for window in (tight, whole):
            if check(i.encode(), config, window, state) is None:
                found += [(near.encode(), False, window) for near in edges(i, config, window)]
    for _ in range(600):
        window = rng.choice([tight, whole, (rng.randrange(end), rng.randrange(2 * end))])
        found.append((disturbed(rng.choice(legal), rng), rng.random() < 0.1, window))
    return found


def wanted(raw: bytes, last: bool, config: SatConfig, window: tuple[int, int]) -> Status:
    """Return the verdict by the rules in Python."""
    fault = check(raw, config, window, state_after(config))
    if fault is not None:
        return fault.status
    ends = Instruction.decode(raw).opcode is Opcode.END
    return Status.NO_END if last and not ends else Status.IDLE


@pytest.mark.parametrize("name", CONFIGS)
def test_same_verdict(name):
    config = CONFIGS[name]
    todo = cases(config, seed=len(name))
    seen: Counter[Status] = Counter()
    checker = Checker(config)

    async def testbench(ctx):
        for i in tensor_and_window(config):
            ctx.set(checker.word, int.from_bytes(i.encode(), "little"))
            for follow in (1, 0):
                ctx.set(checker.follow, follow)
                await ctx.tick()
        for raw, last, window in todo:
            ctx.set(checker.coming, raw[0])
            await ctx.tick()
            ctx.set(checker.coming, ~raw[0] & 0xFF)
            ctx.set(checker.word, int.from_bytes(raw, "little"))
            ctx.set(checker.last, last)
            ctx.set(checker.window_base, window[0])
            ctx.set(checker.window_end, window[1])
            ctx.set(checker.valid, 1)
            await ctx.tick().repeat(CHECK_CYCLES)
            assert ctx.get(checker.decided)
            want = wanted(raw, last, config, window)
            got = Status(ctx.get(checker.status))
            assert got is want, (raw.hex(), last, window)
            seen[want] += 1
            ctx.set(checker.valid, 0)

    sim = Simulator(checker)
    sim.add_clock(1e-6)
    sim.add_testbench(testbench)
    sim.run()
    assert seen.total() == len(todo) > 1000
    for status in (Status.IDLE, Status.BAD_FIELD, Status.BAD_ADDRESS, Status.NO_END):
        assert seen[status] >= 10, seen
    assert seen[Status.BAD_OPCODE] >= 10


def test_verdict_needs_exactly_its_cycles():
    """A cycle too early the verdict may still be that of the instruction before."""
    config = CONFIGS["3x5"]
    checker = Checker(config)
    body = {"rows": 3, "groups": 3, "row_bytes": 40, "stride": 4, "destination": Buffer.START}
    good = Instruction(Opcode.LOAD, body)
    # What is wrong shows only in a product of the second slot: where the last row begins.
    bad = Instruction(Opcode.LOAD, {**body, "pitch": 2040})

    async def testbench(ctx):
        ctx.set(checker.window_end, 1 << 12)
        for instruction, before, after in (
            (good, None, Status.IDLE),
            (bad, Status.IDLE, Status.BAD_ADDRESS),
            (good, Status.BAD_ADDRESS, Status.IDLE),
        ):
            ctx.set(checker.coming, instruction.opcode.value)
            await ctx.tick()
            ctx.set(checker.word, int.from_bytes(instruction.encode(), "little"))
            ctx.set(checker.valid, 1)
            await ctx.tick().repeat(CHECK_CYCLES - 1)
            assert not ctx.get(checker.decided)
            if before is not None:
                assert ctx.get(checker.status) == before
            await ctx.tick()
            assert ctx.get(checker.decided)
            assert ctx.get(checker.status) == after
            ctx.set(checker.valid, 0)

    sim = Simulator(checker)
    sim.add_clock(1e-6)
    sim.add_testbench(testbench)
    sim.run()
