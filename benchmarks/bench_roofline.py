"""How near each product of a training step comes to its roofline, on devices of four sizes.

For a set of layers, dense and 2:8: the cycles of FF, BP and WU by the exact model, utilisation (of
the array's multipliers), bytes read and written, and which share of the roofline
(`sat.schedules.roofline`) that is.

What leaves the array is a sum a column and cycle, however wide the ports are. Where that takes more
cycles than the roofline, because a sum has fewer products than the array has rows, the row ends
with them and with the share of them that is reached ("drain").
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sat.dataflow.compile.step import Sgd, compile_step
from sat.dataflow.cycles import predict
from sat.rtl.config import AxiConfig, SatConfig
from sat.schedules.machine import Machine
from sat.schedules.roofline import drain_cycles, layer_bounds, layer_macs
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

MEMORY = MemoryTiming(read_latency=40, write_latency=40)
DENSE, SPARSE = (1, 1), (2, 8)
STAGES = ("ff", "bp", "wu")
GOAL = {DENSE: 0.95, SPARSE: 0.90}

DEVICES = {
    "8x8/16B": SatConfig(),
    "16x16/32B": SatConfig(
        rows=16, cols=16, sum_words=1024, axi=AxiConfig(data_bits=256, outstanding=64),
    ),
    "32x32/64B": SatConfig(
        rows=32, cols=32, a_words=1024, b_words=1024, sum_words=2048,
        axi=AxiConfig(data_bits=512, outstanding=64),
    ),
    "32x32/256B": SatConfig(
        rows=32, cols=32, a_words=1024, b_words=1024, sum_words=2048,
        axi=AxiConfig(data_bits=512, ports=4, outstanding=64),
    ),
}  # fmt: skip
"""By name: array / bytes that memory brings in a cycle."""


def conv(size: int, channels: tuple[int, int], kernel: int, batch: int, stride: int = 1) -> Layer:
    """Return a convolution that keeps the image's size, or halves it."""
    return Layer(
        batch=batch,
        lines=size,
        pixels=size,
        in_channels=channels[0],
        out_channels=channels[1],
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(kernel // 2, kernel // 2),
    )


def linear(rows: int, channels: tuple[int, int]) -> Layer:
    """Return a linear layer: positions that are one pixel each."""
    return Layer(batch=rows, in_channels=channels[0], out_channels=channels[1])


# Batches: a dense stage takes at least 200,000 cycles on 32x32.
LAYERS = {
    "conv3x3 64→64 56x56": conv(56, (64, 64), 3, 2),
    "conv3x3 128→128 28x28": conv(28, (128, 128), 3, 2),
    "conv3x3 128→128 28x28 s2": conv(28, (128, 128), 3, 8, 2),
    "conv3x3 256→256 14x14": conv(14, (256, 256), 3, 4),
    "conv3x3 512→512 7x7": conv(7, (512, 512), 3, 8),
    "conv1x1 256→64 56x56": conv(56, (256, 64), 1, 4),
    "conv1x1 64→256 56x56": conv(56, (64, 256), 1, 4),
    "linear 768→3072": linear(1024, (768, 3072)),
    "linear 3072→768": linear(1024, (3072, 768)),
}


@dataclass(frozen=True)
class Row:
    """A stage of a layer on a device; bytes are those that cross the port."""

    device: str
    layer: str
    pattern: str
    stage: str
    cycles: int
    utilisation: float
    read: int
    written: int
    roofline: int
    bound: str
    drain: int
    share: float
    instructions: int
    seconds: float


def measure(device: str, config: SatConfig, name: str, layer: Layer, stage: str) -> Row:
    """Compile a stage and return its figures."""
    began = time.process_time()
    step = compile_step(layer, config, MEMORY, (stage,))
    seconds = time.process_time() - began
    found = predict(step.program, config, MEMORY, step.address)
    machine = Machine(config, MEMORY)
    macs = layer_macs(layer, stage)
    rate = config.axi.beat_bytes
    bounds = layer_bounds(layer, stage, machine)
    return Row(
        device,
        name,
        f"{layer.ff[0]}:{layer.ff[1]}",
        stage,
        found.cycles,
        macs / machine.peak / found.cycles,
        found.beats_read * rate,
        found.beats_written * rate,
        bounds.cycles,
        bounds.by,
        drain_cycles(layer, stage, config),
        bounds.cycles / found.cycles,
        len(step.program),
        seconds,
    )


def rows(devices: list[str], layers: list[str], stages: list[str]) -> Iterator[Row]:
    """Yield the figures, device after device."""
    for device in devices:
        for name in layers:
            for pattern in (DENSE, SPARSE):
                layer = replace(LAYERS[name], ff=pattern, bp=pattern)
                for stage in stages:
                    # WU is dense under every pattern.
                    if stage != "wu" or pattern == DENSE:
                        yield measure(device, DEVICES[device], name, layer, stage)


def training_step(update_lanes: int) -> str:
    """Return what a step (FF, BP, WU, update) of a layer takes on the largest device."""
    device, tile = "32x32/256B", {2: 1024, 32: 16384}[update_lanes]
    config = replace(DEVICES[device], update_lanes=update_lanes, tile_weights=tile)
    cycles = []
    for pattern in (DENSE, SPARSE):
        layer = replace(conv(28, (128, 128), 3, 32), ff=pattern, bp=pattern)
        step = compile_step(layer, config, MEMORY, (*STAGES, "update"), Sgd(momentum=0.9))
        cycles.append(predict(step.program, config, MEMORY, step.address).cycles)
    dense, sparse = cycles
    return (
        f"step of conv3x3 128→128 28x28, batch 32, {device}, {update_lanes} update lanes: dense "
        f"{dense:,}, 2:8 {sparse:,}, {dense / sparse:.3f} x"
    )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", nargs="*", default=list(DEVICES), choices=DEVICES)
    parser.add_argument("--layers", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES)
    parser.add_argument("--json", action="store_true", help="a line of JSON a row")
    args = parser.parse_args()
    chosen = [name for name in LAYERS if any(part in name for part in args.layers)]
    if not args.json:
        print(f"memory {MEMORY}")
        print(
            "device     layer                    N:M stage     cycles   util   MB in  MB out "
            "   roofline bound    share  instr  CPU s"
        )
    met = total = 0
    for row in rows(args.devices, chosen, args.stages):
        total += 1
        goal = GOAL[DENSE if row.pattern == "1:1" else SPARSE]
        met += row.share >= goal
        if args.json:
            print(json.dumps(row.__dict__), flush=True)
            continue
        drain = f"  drain {row.drain:,} {row.drain / row.cycles:.3f}"
        drain = drain if row.drain > row.roofline else ""
        missed = " " if row.share >= goal else "-"
        print(
            f"{row.device:<10} {row.layer:<24} {row.pattern} {row.stage:<3} {row.cycles:>12,} "
            f"{row.utilisation:>6.3f} {row.read / 1e6:>7.2f} {row.written / 1e6:>7.2f} "
            f"{row.roofline:>11,} {row.bound:<7} {row.share:>6.3f}{missed}"
            f"{row.instructions:>6} {row.seconds:>6.2f}{drain}",
            flush=True,
        )
    if not args.json:
        print(f"{met} of {total} stages reach {GOAL[DENSE]} (dense), {GOAL[SPARSE]} (2:8)")
        print(training_step(2), training_step(32), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
