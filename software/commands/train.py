"""``sat train``: a model trained with a sparse scheme, its products on a device."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from dataclasses import replace
from typing import Any

from sat.commands.common import (
    DONE,
    FAILED,
    UsageError,
    add_engine,
    count,
    device_options,
    input_file,
    print_values,
    require_memory,
    seed_number,
    usage,
    use_one_thread,
)

SUMMARY = "train a model, its products on a device"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="cnn", help="cnn (default), mlp; line16, line32, line96")
    parser.add_argument("--data", default="digits", help="digits (default), mnist1d (for line…)")
    parser.add_argument(
        "--scheme", default="bdwp",
        help="bdwp (default), bdwp_wu, bdwp_mvue, dense, srste, sdgp, sdwp",
    )  # fmt: skip
    parser.add_argument(
        "--pattern", default="2:8", help="N:M (default 2:8), or dense; 2:8,wu=2:4 for WU's own"
    )
    parser.add_argument("--device", default="golden", help="golden (default) or rtl")
    parser.add_argument("--array", help="rows x columns (default 8x8)")
    parser.add_argument(
        "--schedule", metavar="FILE.json", type=input_file,
        help="with --device rtl: map stages as a schedule says, on its device",
    )  # fmt: skip
    add_engine(parser)
    parser.add_argument("--epochs", type=count, default=12, help="default 12")
    parser.add_argument("--steps", type=count, help="stop after so many steps")
    parser.add_argument("--batch", type=count, default=32, help="of all ranks (default 32)")
    parser.add_argument(
        "--ranks", type=count, default=1, help="processes, each with its own device (default 1)"
    )
    parser.add_argument(
        "--shards", type=count, default=1,
        help="parts of a batch, one after the other: R have the bits of R ranks (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--compare", action="store_true",
        help="train with the ranks, with as many shards, and whole: print how far apart they are",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed_number, default=0)


def run(args: argparse.Namespace) -> int:
    """Train a model on a data set with a sparse scheme, its products on a device."""
    import sat
    from sat.data import load_data
    from sat.devices.staged import StagedDevice
    from sat.training.trainer import Trainer

    use_one_thread()
    if args.ranks > 1 or args.compare:
        if args.schedule is not None:
            raise UsageError("--schedule: one rank takes it; leave --ranks and --compare out")
        return _train_ranks(args)
    with usage():
        data = load_data(args.data)
        schedule = None if args.schedule is None else _schedule(args)
        if schedule is None:
            device = sat.device(args.device, **_options(args))
        else:
            device = _scheduled(schedule, args)
    with device:
        with usage():
            trainer = Trainer(
                args.model,
                data,
                scheme=args.scheme,
                pattern=args.pattern,
                device=StagedDevice(device),
                epochs=args.epochs,
                steps=args.steps,
                batch=args.batch,
                seed=args.seed,
                shards=args.shards,
            )
        if not args.json:
            print(trainer.result.report)
        with sat.record_products() as log:
            result = trainer.fit(progress=not args.json, title=f"{args.model} on {device.name}")
    more: dict[str, Any] = {
        "array": device.config.array,
        "products": len(log),
        "macs": log.macs,
        "cycles": log.cycles,
        "layers": [vars(layer) for layer in result.report.layers],
    }
    if schedule is not None:
        planned: set[Any] = getattr(device, "planned", set())
        more["scheduled_stages"] = len(planned)
        if not planned:
            raise UsageError(
                f"--schedule {args.schedule}: no stage of {args.model}, pattern {args.pattern}, "
                f"batch {args.batch}, is in it; make it of this model, without the host's patches"
            )
    return _print_training(args, device.name, result, more)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `sat.device` is given: one that prunes in WU itself, for schemes that do.

    Arrays of too few or too many columns for that are sent the pruned gradients, as all are what
    a scheme draws: same bits, other cycles.
    """
    from sat.layers.convert import get_scheme
    from sat.layers.staged import WHOLE
    from sat.rtl.config import SatConfig

    options = device_options(args)
    scheme = get_scheme(args.scheme)
    if scheme.prunes.get("WU") == WHOLE["WU"] and not scheme.draws:
        config = SatConfig()
        if args.array is not None:
            config = config.with_array(args.array)
        with contextlib.suppress(ValueError):
            options["prune_gathers"] = replace(config, prune_gathers=True).prune_gathers
    return options


def _schedule(args: argparse.Namespace) -> Any:
    """Return the schedule that the arguments name.

    Raises
    ------
    ValueError
        It is none, or the device is not one that takes schedules.
    """
    from sat.schedules.files import load_schedule

    if args.device != "rtl":
        raise ValueError(f"--schedule: only --device rtl takes one, not {args.device}")
    return load_schedule(args.schedule)


def _scheduled(schedule: Any, args: argparse.Namespace) -> Any:
    """Return the device that a schedule is for, which maps stages as it says."""
    from sat.devices.rtl import RtlDevice
    from sat.schedules.files import check_device

    machine = schedule.machine
    if args.array is not None:
        check_device(schedule, machine.config.with_array(args.array), machine.timing)
    device = RtlDevice(config=machine.config, memory=machine.timing, engine=args.engine or "auto")
    device.use_plans(schedule.plans)
    return device


def _print_training(
    args: argparse.Namespace, device: str, result: Any, more: dict[str, Any]
) -> int:
    """Print what a training did; return the exit code."""
    import sat

    loss = result.losses[-1]
    good = math.isfinite(loss) and result.skipped < result.steps
    values = {
        "model": args.model,
        "data": args.data,
        "scheme": args.scheme,
        "pattern": str(sat.Patterns.parse(args.pattern)),
        "device": device,
        "ranks": args.ranks,
        "shards": args.shards,
        "seed": args.seed,
        "steps": result.steps,
        "skipped_steps": result.skipped,
        "loss": loss if math.isfinite(loss) else None,
        "test_accuracy": result.accuracy,
        "seconds": result.seconds,
        "losses": result.losses,
        "accuracies": result.accuracies,
        **more,
    }
    print_values(values, args.json, () if good else ["FAILED: the training went out of bounds"])
    return DONE if good else FAILED


def _train_ranks(args: argparse.Namespace) -> int:
    """Train with several ranks, each a process with its own device; compare with one if asked."""
    import sat
    from sat.data import load_data
    from sat.training.distributed import compare_ranks, train_ranks

    with usage():
        options = _options(args)
    arguments = {
        "data": args.data,
        "progress": not args.json,
        "options": options,
        "model": args.model,
        "scheme": args.scheme,
        "pattern": args.pattern,
        "epochs": args.epochs,
        "steps": args.steps,
        "batch": args.batch,
        "seed": args.seed,
    }
    with usage():
        # A process with torch in it.
        require_memory(args.ranks * 200_000_000, f"--ranks {args.ranks}")
        load_data(args.data)
        sat.Patterns.parse(args.pattern)
        sat.device(args.device, **options).close()
        if args.compare and args.shards > 1:
            raise ValueError("--compare: has as many shards as ranks; leave --shards out")
        if args.compare:
            comparison = compare_ranks(args.ranks, args.device, **arguments)
            print(json.dumps(comparison.to_dict()) if args.json else comparison)
            return DONE if comparison.passed else FAILED
        result, _ = train_ranks(args.ranks, args.device, shards=args.shards, **arguments)
    return _print_training(args, args.device, result, {})
