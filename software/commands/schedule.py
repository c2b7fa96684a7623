"""``sat schedule``: a network's training step on a device, stage by stage, in exact cycles."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat.commands.common import DONE, UsageError, count, input_file, output_file, to_json, usage

if TYPE_CHECKING:
    from sat.schedules.machine import Machine

SUMMARY = "a network's training step, stage by stage, in exact cycles"


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a device and its memory."""
    parser.add_argument("--array", default="32x32", help="rows x columns (default 32x32)")
    parser.add_argument(
        "--memory", default="ddr4", help="ddr4 (default), ddr4x4 or narrow: 64, 256, 16 B a cycle"
    )
    parser.add_argument(
        "--words", type=count, default=1024, help="depth of operand banks (default 1024)"
    )
    parser.add_argument(
        "--lanes", type=count, help="of the update engine (default: columns, up to 32)"
    )
    parser.add_argument(
        "--config", metavar="FILE.json", type=input_file,
        help="a whole device, as SatConfig.to_json writes it; --memory then gives the latency only",
    )  # fmt: skip


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a network."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="a name (--list), pkg.module:factory, timm:NAME, transformers:TYPE, FILE.onnx",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the names and stop")
    parser.add_argument("--batch", type=count, help="the network's usual one if not given")
    parser.add_argument("--shape", type=sizes, help="of one example, such as 3x224x224")
    parser.add_argument("--tokens", type=count, default=128, help="of a text (default 128)")
    parser.add_argument("--pattern", default="2:8", help="N:M (default 2:8), or dense")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    add_machine(parser)
    parser.add_argument(
        "--no-host-patches", action="store_true",
        help="the device gathers the first layer's patches, too",
    )  # fmt: skip
    parser.add_argument(
        "--wu", default="dense", metavar="PATTERN",
        help="N:M of the output gradients that WU prunes (default: dense)",
    )  # fmt: skip
    parser.add_argument("--compare", choices=("dense",), help="beside the dense twin's schedule")
    parser.add_argument(
        "--ablation", action="store_true", help="what the step takes without each idea"
    )
    parser.add_argument(
        "--clock", type=count, default=200, metavar="MHZ", help="for seconds (default 200)"
    )
    parser.add_argument(
        "--output", metavar="FILE.json", type=output_file, help="write the schedule"
    )
    parser.add_argument(
        "--html", metavar="FILE.html", type=output_file, help="write a page with pictures"
    )
    parser.add_argument(
        "--trace", metavar="FILE.json", type=output_file, help="write a timeline for Perfetto"
    )


def sizes(text: str) -> tuple[int, ...]:
    """Return the sizes in a text such as 3x224x224."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: must be sizes, such as 3x224x224")
    return tuple(map(int, parts))


def list_networks(as_json: bool) -> int:
    """Print the networks that are there by name."""
    from sat.networks.zoo import NETWORKS

    if as_json:
        print(to_json({"networks": {name: e.title for name, e in NETWORKS.items()}}))
    else:
        for name, entry in NETWORKS.items():
            print(f"{name:<12}  batch {entry.batch:>3}  {entry.title}")
    return DONE


def network_and_machine(
    args: argparse.Namespace, wu: str = "dense"
) -> tuple[Any, Machine, Any, Any]:
    """Return the network, the machine, the pattern and WU's that arguments describe."""
    from sat.networks.sources import load
    from sat.schedules.machine import machine, machine_of
    from sat.sparsity.pattern import Pattern

    if args.model is None:
        raise UsageError("no MODEL: name one (--list), or give pkg.module:factory, or FILE.onnx")
    with usage():
        pattern, of_wu = Pattern.parse(args.pattern), Pattern.parse(wu)
        if args.config is not None:
            device = machine_of(args.config, args.memory)
        else:
            device = machine(
                args.array,
                args.memory,
                max_m=max(8, pattern.m, of_wu.m),
                words=args.words,
                lanes=args.lanes,
                prune_gathers=not of_wu.dense,
            )
        network = load(args.model, batch=args.batch, shape=args.shape, tokens=args.tokens)
    return network, device, pattern, of_wu


def run(args: argparse.Namespace) -> int:
    """Schedule a network's training step: each stage under its best mapping, in exact cycles."""
    if args.list:
        return list_networks(args.json)
    from sat.schedules.ablation import ablation
    from sat.schedules.files import save
    from sat.schedules.report import Comparison, notes, rows, summary, table
    from sat.schedules.scheduler import make_schedule
    from sat.schedules.trace import trace
    from sat.sparsity.pattern import DENSE

    network, device, pattern, wu = network_and_machine(args, args.wu)
    with usage():
        patches = not args.no_host_patches
        schedule = make_schedule(network, device, pattern, wu=wu, host_patches=patches)
    comparison = None
    if args.compare is not None:
        dense = make_schedule(network, device, DENSE, host_patches=patches)
        comparison = Comparison(schedule, dense)
    hertz = args.clock * 1e6
    if args.output is not None:
        save(schedule, args.output)
    if args.html is not None:
        from sat.schedules.page import page

        Path(args.html).write_text(page(schedule, hertz, comparison), encoding="utf-8")
    if args.trace is not None:
        Path(args.trace).write_text(to_json(trace(schedule, hertz)), encoding="utf-8")
    losses = ablation(schedule, network) if args.ablation else []
    if args.json:
        values = summary(schedule, hertz) | (comparison.to_dict() if comparison else {})
        if args.ablation:
            values["ablation"] = [asdict(loss) for loss in losses]
        print(to_json({**values, "stages": rows(schedule)}))
    else:
        print(table(schedule))
        print("\n".join(notes(schedule, hertz, comparison)))
        for loss in losses:
            least = "" if loss.exact else " or more"
            share = loss.cycles / schedule.cycles()
            print(f"{loss.idea}: {loss.cycles:,} cycles{least}, {share:.3f}x{least}")
    return DONE
