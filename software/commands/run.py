"""``sat run``: a method's demo on a device, judged."""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sat.commands.common import (
    DONE,
    FAILED,
    add_engine,
    count,
    device_options,
    natural,
    output_file,
    output_folder,
    print_values,
    seed_number,
    text,
    usage,
    use_one_thread,
)

if TYPE_CHECKING:
    from sat.offload.report import OffloadReport

SUMMARY = "run a method's demo on a device"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="one of `sat methods`")
    parser.add_argument(
        "--device", default="golden", help="golden (default), rtl, …; host: without offload"
    )
    parser.add_argument("--array", help="rows x columns (default 8x8)")
    add_engine(parser)
    parser.add_argument(
        "--precision", choices=("fp16", "fp32"), help="the method's own if not given"
    )
    parser.add_argument(
        "--float64", choices=("device", "host"), default="device",
        help="where products of float64 operands are computed; a device keeps 33 bits",
    )  # fmt: skip
    parser.add_argument(
        "--first", type=count, metavar="K",
        help="only the first K products on the device, compared with golden, which does the rest",
    )  # fmt: skip
    parser.add_argument(
        "--min-size", type=natural, default=0, help="smaller products (in MACs) stay on the host"
    )
    parser.add_argument("--max-cycles", type=count, help="stop before products take more")
    parser.add_argument("--cycles", action="store_true", help="predict cycles that are not counted")
    parser.add_argument(
        "--figures", metavar="FOLDER", type=output_folder, help="write the figures as PNG"
    )
    parser.add_argument(
        "--trace", metavar="FILE.json", type=output_file, help="write a Perfetto trace"
    )
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument(
        "--quick", action="store_true",
        help="a size that ends within a minute on golden, with the checks that hold there",
    )  # fmt: skip


@contextlib.contextmanager
def _progress(report: OffloadReport | None, title: str, *, shown: bool) -> Iterator[None]:
    """Show how many operations a device has done, or just the time, while a demo runs."""
    from sat.training.trainer import progress_bar

    done = threading.Event()
    with progress_bar(None, title, " operations", shown) as bar:
        if report is None:
            bar.bar_format = "{desc}: {elapsed}"

        def watch() -> None:
            while not done.wait(0.5):
                bar.update(0 if report is None else report.calls - bar.n)

        thread = threading.Thread(target=watch, daemon=True)
        if shown:
            thread.start()
        try:
            yield
        finally:
            done.set()
            if shown:
                thread.join()


def run(args: argparse.Namespace) -> int:
    """Run a method's demo, its matrix work on a device, and judge its acceptance figures."""
    from pathlib import Path

    import sat
    from sat.devices import ComparingDevice, FirstDevice
    from sat.methods import get_method

    use_one_thread()
    with contextlib.ExitStack() as stack:
        with usage():
            method = get_method(args.method)
            precision = args.precision or method.precision
            report = checked = None
            if args.device == "host":
                asked = (args.first, args.max_cycles, args.trace, args.array, args.engine)
                if any(option is not None for option in asked):
                    raise ValueError(
                        "--device host: --array, --engine, --first, --max-cycles and --trace need "
                        "a device; leave them out or name one"
                    )
            else:
                device = stack.enter_context(sat.device(args.device, **device_options(args)))
                if args.first is not None:
                    golden = stack.enter_context(sat.device("golden", config=device.config))
                    checked = ComparingDevice(device, golden)
                    device = FirstDevice(checked, golden, args.first)
                block = sat.offload(
                    device,
                    precision=precision,
                    min_size=args.min_size,
                    float64=args.float64,
                    max_cycles=args.max_cycles,
                    trace=args.trace is not None,
                )
                report = stack.enter_context(block)
        title = f"{method.slug} on {args.device}"
        stack.enter_context(_progress(report, title, shown=not args.json))
        began = time.perf_counter()
        result = method.run(seed=args.seed, quick=args.quick)
    values = {
        "method": method.slug,
        "device": args.device,
        "seed": args.seed,
        "quick": args.quick,
        "seconds": time.perf_counter() - began,
        **result.to_json(),
    }
    notes = [str(check) for check in result.checks]
    if args.quick:
        notes += [f"quick: {part}" for part in result.left_out]
    if report is not None:
        # Cycles of a long program's many sizes take a while to predict: on request.
        cycles = args.cycles
        values["offload"] = report.to_json(cycles=cycles)
        notes.append(report.table(cycles=cycles))
    good = result.passed
    if checked is not None:
        for name in ("compared", "mismatches", "mispredicted"):
            values[name] = getattr(checked, name)
        good &= checked.mismatches == 0 and checked.mispredicted == 0
        counted, least = checked.bounded
        wrong = (
            "products took fewer cycles than the least"
            if least
            else "products' cycles mispredicted"
        )
        notes.append(
            f"first {args.first} products: {checked.compared:,} numbers compared with golden, "
            f"{checked.mismatches} differ; {checked.mispredicted} {wrong}"
        )
        if least:
            values["bounded"] = {"cycles": counted, "least_cycles": least}
            notes.append(
                f"this memory allows no exact prediction: {counted:,} cycles counted, {least:,} "
                f"the least, {counted / least:.2f} times as many"
            )
    if args.trace is not None and report is not None:
        report.to_perfetto(args.trace)
    if args.figures is not None:
        folder = Path(args.figures)
        for name, figure in result.figures.items():
            figure.savefig(folder / f"{method.slug}-{name}.png", dpi=150)
    lines = [f"{name}: {text(value)}" for name, value in result.metrics.items()]
    print_values(values, args.json, [*lines, *notes])
    return DONE if good else FAILED
