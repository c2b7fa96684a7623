"""Share of the data ports' rate that each kind of LOAD, GATHER and STORE reaches, by width.

Exact cycles of the load and the store engine alone (`sat.dataflow.cycles`), 8 instructions of a
kind one after another, memory latency 40; useful bytes in a cycle, against those of a beat.

    python benchmarks/bench_ports.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from sat.dataflow.cycles import EngineTiming
from sat.dataflow.mapping import ceil_div
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.isa import Buffer, Format, Instruction, Opcode, Source
from sat.sim.golden.check import GatherState, check
from sat.sim.memory import MemoryTiming

PORTS = [(1, 128), (1, 256), (1, 512), (2, 512), (4, 512)]
TIMING = MemoryTiming(read_latency=40, write_latency=40)
REPEATS = 8
CHANNELS = 128


def device(ports: int, bits: int) -> SatConfig:
    """Return a 32x32 device with such data ports."""
    return SatConfig(
        rows=32,
        cols=32,
        a_words=1024,
        b_words=1024,
        sum_words=1024,
        update_lanes=32,
        tile_weights=16384,
        axi=AxiConfig(data_bits=bits, ports=ports, outstanding=64 if ports * bits > 128 else 16),
    )


def kinds(c: SatConfig) -> Iterator[tuple[str, int, list[Instruction]]]:
    """Yield what to measure: a name, useful bytes, instructions (the last is repeated)."""
    rows, depth = 64, 1152
    row = 2 * depth
    words = ceil_div(row, c.word_bytes)

    def load(buffer: Buffer, rows: int, size: int, groups: int, stride: int, **more: int):
        body = {"address": 1 << 16, "pitch": ceil_div(size, 16) * 16, "rows": rows}
        body |= {"row_bytes": size, "groups": groups, "stride": stride, "destination": buffer}
        return [Instruction(Opcode.LOAD, {**body, **more})]

    yield "rows of A, B", rows * row, load(Buffer.A, rows, row, 2, words)
    by_word = {"by_word": 1, "copies": 1, "words_per_pass": 32}
    yield "rows of A by word", 64 * row, load(Buffer.A, 64, row, ceil_div(words, 32), 64, **by_word)
    sparse = depth // 4
    yield (
        "columns of B, 2:8",
        rows * 2 * sparse,
        load(Buffer.B, rows, 2 * sparse, 2, ceil_div(2 * sparse, c.word_bytes)),
    )
    size = sparse // 2
    yield "their indices", rows * size, load(Buffer.INDEX, rows, size, 2, ceil_div(size, 16))
    for channels in (64, CHANNELS):
        pixel = 2 * channels
        setup = [
            Instruction(
                Opcode.TENSOR,
                {"address": 1 << 16, "images": 1, "lines": 28, "pixels": 28, "pixel_pitch": pixel,
                 "line_pitch": 28 * pixel, "image_pitch": 28 * 28 * pixel},
            ),
            Instruction(
                Opcode.WINDOW,
                {"lines": 28, "pixels": 28, "step_y": 1, "step_x": 1, "tap_y": 1, "tap_x": 1},
            ),
        ]  # fmt: skip
        body = {"line": 4, "y": -1, "x": -1, "segment_bytes": pixel}
        span = 9 * ceil_div(pixel, c.word_bytes)
        taps = {"taps_y": 3, "taps_x": 3, "rows": 56, "groups": 2, "stride": min(span, 512)}
        yield (
            f"3x3 taps of {channels} channels",
            56 * 9 * pixel,
            [*setup, Instruction(Opcode.GATHER, {**body, **taps})],
        )
        # Groups of channels are written together, where a beat has several.
        stride = 16 + c.wide_stride(c.rows) % c.beat_words
        turned = {"taps_y": 1, "taps_x": 1, "transpose": 1, "rows": 128, "stride": stride}
        turned["groups"] = ceil_div(channels, 32)
        yield (
            f"… transposed, {channels} channels",
            128 * pixel,
            [*setup, Instruction(Opcode.GATHER, {**body, **turned})],
        )
    yield "START, 128 columns", 64 * 512, load(Buffer.START, 64, 512, 64, 4)
    yield "MASK, 128 columns", 64 * 16, load(Buffer.MASK, 64, 16, 64, 4)
    yield "weights, 256 columns", 32 * 1024, load(Buffer.WEIGHT, 32, 1024, 1, 64)

    def store(source: Source, rows: int, size: int, stride: int, format: Format = Format.FP32):
        body = {"address": 1 << 16, "pitch": size, "rows": rows, "row_bytes": size}
        body |= {"source": source, "format": format, "stride": stride}
        return [Instruction(Opcode.STORE, body)]

    yield "STORE FP16, 64 columns", 64 * 128, store(Source.OUTPUT, 64, 128, 2, Format.FP16)
    yield "STORE FP16, 128 columns", 64 * 256, store(Source.OUTPUT, 64, 256, 4, Format.FP16)
    yield "STORE FP32, 128 columns", 64 * 512, store(Source.OUTPUT, 64, 512, 4)
    yield "STORE weights, 256 columns", 32 * 1024, store(Source.WEIGHT, 32, 1024, 64)
    yield "STORE FF copy, 2:8 of 256", 32 * 128, store(Source.FF_VALUES, 32, 128, 8)


def rate(config: SatConfig, instructions: list[Instruction], size: int) -> float:
    """Return the bytes a cycle, once the first of the repeated instructions is under way."""
    state = GatherState()
    for i in instructions:
        fault = check(i.encode(), config, (0, 1 << 32), state)
        assert fault is None, fault
        state.follow(i)
    engine = "store" if instructions[-1].opcode is Opcode.STORE else "load"
    timing = EngineTiming(engine, config, TIMING)
    times = [timing.run(i, 0) for i in instructions]
    more = [timing.run(instructions[-1], 0) for _ in range(REPEATS)]
    return size * REPEATS / (more[-1].signal - times[-1].signal)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    devices = [device(*ports) for ports in PORTS]
    print(f"{'bytes a cycle':<28}", *(f"{c.axi.ports} x {c.axi.data_bits:<5}" for c in devices))
    names = [name for name, _, _ in kinds(devices[0])]
    for number, name in enumerate(names):
        cells = []
        for c in devices:
            _, size, instructions = list(kinds(c))[number]
            found = rate(c, instructions, size)
            cells.append(f"{found:5.1f} {found / c.axi.beat_bytes:4.2f}")
        print(f"{name:<28}", *(f"{cell:<11}" for cell in cells))


if __name__ == "__main__":
    main()
