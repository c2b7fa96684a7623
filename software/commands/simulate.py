"""``sat simulate``: a matrix product or a layer on the simulated RTL, compared with golden.

``--predict`` asks the cycle model instead: the same keys, nothing built, nothing computed.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, replace
from typing import Any

from sat.commands.common import (
    DONE,
    FAILED,
    add_engine,
    count,
    input_file,
    natural,
    output_file,
    print_values,
    require_memory,
    seed_number,
    usage,
)

SUMMARY = "a matrix product or a layer on the simulated RTL"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layer", choices=("conv", "linear"), help="a layer's training step, not one product"
    )
    parser.add_argument(
        "--stage", choices=("ff", "bp", "wu", "update", "step"), default="step",
        help="of the layer: one stage, or the whole step (default)",
    )  # fmt: skip
    parser.add_argument(
        "--schedule", metavar="FILE.json", type=input_file,
        help="all stages of a schedule, under its plans, on its device (sat schedule --output)",
    )  # fmt: skip
    parser.add_argument("--batch", type=count, default=1, help="images (default 1)")
    parser.add_argument("--size", type=count, default=8, help="lines and pixels (default 8)")
    parser.add_argument("--channels", type=count, default=64, help="input channels (default 64)")
    parser.add_argument("--out-channels", type=count, help="as many as in if not given")
    parser.add_argument("--kernel", type=count, default=3, help="default 3")
    parser.add_argument("--stride", type=count, default=1, help="default 1")
    parser.add_argument("--padding", type=natural, help="kernel div 2 if not given")
    parser.add_argument("--dilation", type=count, default=1, help="default 1")
    parser.add_argument("--groups", type=natural, default=1, help="default 1; 0: depthwise")
    parser.add_argument("--relu", action="store_true", help="ReLU behind and before the layer")
    parser.add_argument(
        "--predict", action="store_true", help="cycles by the exact model; nothing is built or run"
    )
    parser.add_argument(
        "--memory", choices=("narrow", "ddr4", "ddr4x4"),
        help="a reference memory: 16, 64 or 256 bytes a cycle, latency 40",
    )  # fmt: skip
    parser.add_argument(
        "--read-latency", type=count, help="cycles (the memory's, or 20 if none is named)"
    )
    parser.add_argument(
        "--write-latency", type=count, help="cycles (the memory's, or 8 if none is named)"
    )
    for name in ("rows", "cols", "depth"):
        parser.add_argument(f"--{name}", type=count, default=64, help="default 64")
    parser.add_argument("--pattern", default="dense", help="N:M, or dense (default)")
    parser.add_argument(
        "--wu", default="dense", metavar="PATTERN",
        help="of a layer's output gradients, which WU prunes: N:M, or dense (default)",
    )  # fmt: skip
    parser.add_argument("--dataflow", choices=("auto", "os", "ws"), default="auto")
    parser.add_argument("--array", default="8x8", help="rows x columns (default 8x8)")
    add_engine(parser)
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--start", action="store_true", help="random start values, not zeros")
    parser.add_argument("--specials", action="store_true", help="mix in inf, NaN and subnormals")
    parser.add_argument("--waves", metavar="FILE.fst", type=output_file, help="write a waveform")


def run(args: argparse.Namespace) -> int:
    """Run a product or a layer on random numbers on the simulated RTL; compare with golden."""
    with usage():
        for name in ("waves", "engine"):
            if args.predict and getattr(args, name) is not None:
                raise ValueError(f"--predict runs nothing: leave out --{name}, or --predict")
    if args.schedule is not None:
        return _run_schedule(args)
    if args.layer is not None:
        return _run_layer(args)
    import sat

    began = time.perf_counter()
    with usage():
        pattern = sat.Pattern.parse(args.pattern)
        if args.wu != "dense":
            raise ValueError(f"--wu {args.wu}: a product has no WU; name a layer, or leave it out")
        config, memory = _device(args, pattern, sat.DENSE)
        engine = _engine(args, config)
        operands = (args.rows + args.cols) * args.depth
        if 2 * operands + 4 * args.rows * args.cols > 1 << config.axi.address_bits:
            raise ValueError(
                "--rows, --cols and --depth: operands and result must lie within the device's "
                f"2**{config.axi.address_bits} bytes; choose smaller sizes"
            )
        values, notes = (_predict if args.predict else _multiply)(args, pattern, config, memory)
    values = {
        "rows": args.rows,
        "cols": args.cols,
        "depth": args.depth,
        "pattern": str(pattern),
        "dataflow": args.dataflow,
        "array": config.array,
        "memory": args.memory,
        "engine": engine,
        "seed": args.seed,
        **values,
        "wall_seconds": time.perf_counter() - began,
    }
    if args.waves is not None:
        values["waves"] = args.waves
    print_values(values, args.json, notes)
    return FAILED if notes else DONE


def _device(args: argparse.Namespace, pattern: Any, wu: Any) -> tuple[Any, Any]:
    """Return configuration and memory timing that the arguments describe."""
    from sat.rtl.config import SatConfig
    from sat.sim.memory import MEMORIES, MemoryTiming

    max_m = max(8, pattern.m, wu.m)
    config = SatConfig(max_m=max_m, prune_gathers=not wu.dense).with_array(args.array)
    timing = MemoryTiming()
    if args.memory is not None:
        config = MEMORIES[args.memory].device(config)
        timing = MEMORIES[args.memory].timing
    given = {name: getattr(args, name) for name in ("read_latency", "write_latency")}
    known = {name: value for name, value in given.items() if value is not None}
    return config, replace(timing, **known)


def _engine(args: argparse.Namespace, config: Any) -> str | None:
    """Return the engine that simulates the device; None if nothing is simulated."""
    if args.predict:
        return None
    from sat.sim.engines import choose

    return choose(args.engine or "auto", config, args.waves is not None)


def _say(args: argparse.Namespace) -> None:
    if not args.json:
        print(
            f"simulating an array of {args.array} (its first use compiles it: minutes)",
            file=sys.stderr,
            flush=True,
        )


def _multiply(
    args: argparse.Namespace, pattern: Any, config: Any, memory: Any
) -> tuple[dict[str, Any], list[str]]:
    """Return what running a product gives, and what is wrong with it."""
    import numpy as np

    import sat
    from sat.devices.compare import ComparingDevice

    # Each operand in float64, float16 and the device's memory, the result on two devices.
    operands = (args.rows + args.cols) * args.depth
    require_memory(14 * operands + 16 * args.rows * args.cols, "--rows, --cols and --depth")
    rng = np.random.default_rng(args.seed)
    options = {"waves": args.waves, "engine": args.engine}
    given = {name: value for name, value in options.items() if value is not None}
    device = sat.device("rtl", config=config, memory=memory, **given)
    with device:
        a = _operand(rng, (args.rows, args.depth), args.specials)
        dense = _operand(rng, (args.depth, args.cols), args.specials)
        b = dense if pattern.dense else sat.prune(dense, pattern)
        start = None
        if args.start:
            start = rng.standard_normal((args.rows, args.cols)).astype(np.float32)
        checked = ComparingDevice(device)
        _say(args)
        checked.matmul(a, b, start=start, dataflow=args.dataflow)
        run = checked.last_run
    assert run is not None, "a product that succeeded leaves its account"
    rate = None
    if run.cycles is not None and run.wall_seconds:
        rate = run.cycles / run.wall_seconds
    values: dict[str, Any] = {
        "bit_exact": checked.mismatches == 0,
        "compared": checked.compared,
        "mismatches": checked.mismatches,
        "cycles": run.cycles,
        "predicted_cycles": run.predicted_cycles,
        "macs": run.macs,
        "utilisation": run.utilisation,
        "bytes_read": run.bytes_read,
        "bytes_written": run.bytes_written,
        "sim_cycles_per_second": rate,
    }
    notes = []
    if checked.first is not None:
        values["first_mismatch"] = str(checked.first)
        notes.append(f"MISMATCH: {checked.first}")
    if checked.mispredicted:
        notes.append(f"MISMATCH: {run.cycles} cycles, predicted {run.predicted_cycles}")
    return values, notes


def _predict(
    args: argparse.Namespace, pattern: Any, config: Any, memory: Any
) -> tuple[dict[str, Any], list[str]]:
    """Return what running a product would give, as far as the cycle model knows."""
    from sat.dataflow.cycles import predict
    from sat.dataflow.products import Product, StartShape
    from sat.dataflow.search import best_mapping

    start = StartShape.ZERO
    if args.start:
        # A single row is its own for each column, as on the device.
        start = StartShape.MATRIX if args.rows > 1 else StartShape.ROW
    product = Product(args.rows, args.cols, args.depth, pattern.n, pattern.m, start)
    compiled, _ = best_mapping(product, config, memory, args.dataflow)
    found = predict(compiled.program, config, memory)
    return {**_NOT_RUN, **_known(found, product.macs, config)}, []


_NOT_RUN = {"bit_exact": None, "compared": 0, "mismatches": 0, "sim_cycles_per_second": None}
"""Of a run that was not made."""


def _known(found: Any, macs: int, config: Any) -> dict[str, Any]:
    """Return what a prediction says, by the keys of a run: what the device would count."""
    beat = config.axi.beat_bytes
    return {
        "cycles": found.cycles,
        "predicted_cycles": found.cycles,
        "macs": macs,
        "utilisation": macs / (found.cycles * config.rows * config.cols),
        "bytes_read": found.beats_read * beat,
        "bytes_written": found.beats_written * beat,
    }


_OF_IMAGES = {"size": 8, "kernel": 3, "stride": 1, "padding": None, "dilation": 1, "groups": 1}
"""Options of convolutions alone, and what they are if not given."""


def _layer(args: argparse.Namespace, pattern: Any) -> Any:
    """Return the layer that the arguments describe."""
    from sat.sim.layer import Layer

    if args.layer == "linear":
        for name, default in _OF_IMAGES.items():
            if getattr(args, name) != default:
                raise ValueError(
                    f"--{name} {getattr(args, name)}: a linear layer has none; leave it out, or "
                    "give --layer conv"
                )
        return Layer(
            batch=args.batch,
            in_channels=args.channels,
            out_channels=args.out_channels or args.channels,
            ff=(pattern.n, pattern.m),
            bp=(pattern.n, pattern.m),
            bias=True,
            relu=args.relu,
            masked=args.relu,
        )
    groups = args.channels if args.groups == 0 else args.groups
    padding = args.kernel // 2 if args.padding is None else args.padding
    return Layer(
        batch=args.batch,
        lines=args.size,
        pixels=args.size,
        in_channels=args.channels,
        out_channels=args.out_channels or args.channels,
        kernel=(args.kernel, args.kernel),
        stride=(args.stride, args.stride),
        padding=(padding, padding),
        dilation=(args.dilation, args.dilation),
        groups=groups,
        ff=(pattern.n, pattern.m),
        bp=(pattern.n, pattern.m),
        bias=True,
        relu=args.relu,
        masked=args.relu,
    )


def _run_layer(args: argparse.Namespace) -> int:
    """Run stages of a layer's training step as one program."""
    import sat
    from sat.dataflow.compile.step import STAGES
    from sat.devices.stages import simulate_layer

    began = time.perf_counter()
    stages = STAGES if args.stage == "step" else (args.stage,)
    notes = []
    with usage():
        pattern, wu = sat.Pattern.parse(args.pattern), sat.Pattern.parse(args.wu)
        config, memory = _device(args, pattern, wu)
        engine = _engine(args, config)
        layer = replace(_layer(args, pattern), wu=(wu.n, wu.m))
        if args.predict:
            values = _predict_layer(layer, stages, config, memory)
            values["wall_seconds"] = time.perf_counter() - began
        else:
            # Activations and weights: FP32, FP16, on two devices.
            activations = layer.batch * layer.lines * layer.pixels * layer.in_channels
            activations += layer.out_positions * layer.out_channels
            weights = layer.out_channels * layer.taps * layer.in_per_group
            require_memory(12 * activations + 24 * weights, "--batch, --size, --channels, --kernel")
            _say(args)
            run = simulate_layer(
                layer, config, memory, stages, seed=args.seed, waves=args.waves,
                engine=args.engine or "auto",
            )  # fmt: skip
            if run.mismatches:
                notes.append(f"MISMATCH: {run.mismatches} numbers of {', '.join(run.differs)}")
            if run.cycles != run.predicted_cycles:
                notes.append(f"MISMATCH: {run.cycles} cycles, predicted {run.predicted_cycles}")
            values = {"bit_exact": run.mismatches == 0, **asdict(run)}
            values["differs"] = list(run.differs)
            values["sim_cycles_per_second"] = run.cycles / run.wall_seconds
            del values["stages"]
    ideal = values["dense_macs"] / (config.rows * config.cols)
    values = {
        "layer": args.layer,
        "stage": args.stage,
        "pattern": str(pattern),
        "wu": str(wu),
        "array": config.array,
        "memory": args.memory,
        "engine": engine,
        "seed": args.seed,
        **values,
        "dense_cycles_at_best": int(ideal),
        "speedup_over_best_dense": ideal / values["cycles"],
    }
    print_values(values, args.json, notes)
    return FAILED if notes else DONE


def _run_schedule(args: argparse.Namespace) -> int:
    """Run all stages of a schedule; compare bits with golden and cycles with the schedule."""
    from sat.devices.rtl import RtlDevice
    from sat.schedules.files import load_schedule
    from sat.schedules.report import SHOWN
    from sat.schedules.running import run_schedule

    began = time.perf_counter()
    with usage():
        for name in ("layer", "predict"):
            if getattr(args, name):
                raise ValueError(f"--{name}: a schedule says what runs; leave it or --schedule out")
        schedule = load_schedule(args.schedule)
        device = RtlDevice(
            config=schedule.machine.config,
            memory=schedule.machine.timing,
            waves=args.waves,
            engine=args.engine or "auto",
        )
    if not args.json:
        print(f"simulating an array of {device.config.array}", file=sys.stderr, flush=True)
    compared = cycles = 0
    notes: list[str] = []
    with device:
        for ran in run_schedule(schedule, device, args.seed):
            what = ", ".join(f"{e.operation} {SHOWN[e.stage]}" for e in ran.entries)
            cycles, compared = cycles + ran.cycles, compared + ran.compared
            if ran.mismatches:
                notes.append(f"MISMATCH: {what}: {ran.mismatches} of {ran.compared} numbers")
            if ran.cycles != ran.scheduled:
                notes.append(f"MISMATCH: {what}: {ran.cycles} cycles, scheduled {ran.scheduled}")
    values = {
        "network": schedule.network,
        "batch": schedule.batch,
        "pattern": str(schedule.pattern),
        "array": device.config.array,
        "memory": schedule.machine.memory,
        "engine": device.engine,
        "seed": args.seed,
        "programs": len(schedule.programs),
        "bit_exact": not any("numbers" in note for note in notes),
        "compared": compared,
        "cycles": cycles,
        "scheduled_cycles": schedule.cycles(),
        "wall_seconds": time.perf_counter() - began,
    }
    print_values(values, args.json, notes)
    return FAILED if notes else DONE


def _predict_layer(layer: Any, stages: tuple[str, ...], config: Any, memory: Any) -> dict[str, Any]:
    """Return what running a layer's stages would give, as far as the cycle model knows."""
    from sat.dataflow.compile.step import compile_step
    from sat.dataflow.cycles import predict
    from sat.devices.stages import stage_macs

    step = compile_step(layer, config, memory, stages)
    found = predict(step.program, config, memory, step.address)
    return {
        **_NOT_RUN,
        "differs": [],
        "non_finite": None,
        "skipped": None,
        "dense_macs": layer.dense_macs * sum(stage != "update" for stage in stages),
        "instructions": len(step.program),
        **_known(found, stage_macs(layer, stages), config),
    }


def _operand(rng: Any, shape: tuple[int, int], specials: bool) -> Any:
    """Return (shape) float16: normal deviates, one in eight a special value if wanted."""
    import numpy as np

    x = rng.standard_normal(shape).astype(np.float16)
    if specials:
        # Zeros, subnormals, the largest finite values, infinities and NaN, of both signs.
        bits = np.array([0x0000, 0x0001, 0x03FF, 0x0400, 0x7BFF, 0x7C00, 0x7E00], np.uint16)
        chosen = rng.choice(np.concatenate([bits, bits | 0x8000]), shape).view(np.float16)
        x = np.where(rng.random(shape) < 1 / 8, chosen, x)
    return x
