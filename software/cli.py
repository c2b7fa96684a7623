"""The command ``sat``.

Exit codes: 0 done and equal, 1 a mismatch or a failed run, 2 bad usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from sat.offload.report import OffloadReport

# What a command needs is imported when it runs, so that `sat --help` does not wait for torch.

DONE, FAILED, BAD_USAGE = 0, 1, 2


class _UsageError(Exception):
    """An argument that no parser could refuse alone."""


@contextlib.contextmanager
def _usage() -> Iterator[None]:
    """Turn what the library says about arguments of the user into bad usage."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise _UsageError(str(error)) from error


class _Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer of at least 1")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer of at least 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer from 0 to 2**63 - 1")
    return int(text)


def _json(values: Any) -> str:
    """Return values as JSON, which has no NaN and no infinity: null for them."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: known(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [known(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(values), allow_nan=False)


def _print(values: dict[str, Any], as_json: bool, notes: Sequence[str] = ()) -> None:
    """Print results as one JSON object, or as lines of name and value with notes below."""
    if as_json:
        print(_json(values))
        return
    width = max(map(len, values))
    for name, value in values.items():
        if not isinstance(value, (list, dict)):
            print(f"{name:<{width}}  {_text(value)}")
    for note in notes:
        print(note)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _simulate(args: argparse.Namespace) -> int:
    """Run a product or a layer on random numbers on the simulated RTL; compare with golden."""
    if args.layer is not None:
        return _simulate_layer(args)
    import numpy as np

    import sat
    from sat.devices.compare import ComparingDevice

    began = time.perf_counter()
    rng = np.random.default_rng(args.seed)
    with _usage():
        pattern = sat.Pattern.parse(args.pattern)
        options = {} if args.waves is None else {"waves": args.waves}
        device = sat.device("rtl", array=args.array, max_m=max(8, pattern.m), **options)
    with device:
        a = _operand(rng, (args.rows, args.depth), args.specials)
        dense = _operand(rng, (args.depth, args.cols), args.specials)
        b = dense if pattern.dense else sat.prune(dense, pattern)
        start = None
        if args.start:
            start = rng.standard_normal((args.rows, args.cols)).astype(np.float32)
        checked = ComparingDevice(device)
        if not args.json:
            print(
                f"simulating an array of {args.array} (its first use compiles it: minutes)",
                file=sys.stderr,
                flush=True,
            )
        with _usage():
            checked.matmul(a, b, start=start, dataflow=args.dataflow)
        run = checked.last_run
    assert run is not None, "a product that succeeded leaves its account"
    as_predicted = checked.mispredicted == 0
    rate = None
    if run.cycles is not None and run.wall_seconds:
        rate = run.cycles / run.wall_seconds
    values = {
        "rows": args.rows,
        "cols": args.cols,
        "depth": args.depth,
        "pattern": str(pattern),
        "dataflow": args.dataflow,
        "array": device.config.array,
        "seed": args.seed,
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
        "wall_seconds": time.perf_counter() - began,
    }
    notes = []
    if checked.first is not None:
        values["first_mismatch"] = str(checked.first)
        notes.append(f"MISMATCH: {checked.first}")
    if not as_predicted:
        notes.append(f"MISMATCH: {run.cycles} cycles, predicted {run.predicted_cycles}")
    if args.waves is not None:
        values["waves"] = args.waves
    _print(values, args.json, notes)
    return DONE if checked.mismatches == 0 and as_predicted else FAILED


def _layer(args: argparse.Namespace, pattern: Any) -> Any:
    """Return the layer that the arguments describe."""
    from sat.sim.layer import Layer

    if args.layer == "linear":
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


def _simulate_layer(args: argparse.Namespace) -> int:
    """Run stages of a layer's training step as one program."""
    from dataclasses import asdict

    import sat
    from sat.dataflow.compile.step import STAGES
    from sat.devices.stages import simulate_layer
    from sat.rtl.config import SatConfig
    from sat.sim.memory import MemoryTiming

    stages = STAGES if args.stage == "step" else (args.stage,)
    with _usage():
        pattern = sat.Pattern.parse(args.pattern)
        config = SatConfig(max_m=max(8, pattern.m)).with_array(args.array)
        layer = _layer(args, pattern)
        memory = MemoryTiming(read_latency=args.read_latency, write_latency=args.write_latency)
        if not args.json:
            print(
                f"simulating an array of {args.array} (its first use compiles it: minutes)",
                file=sys.stderr,
                flush=True,
            )
        run = simulate_layer(layer, config, memory, stages, seed=args.seed, waves=args.waves)
    ideal = run.dense_macs / (config.rows * config.cols)
    values = {
        "layer": args.layer,
        "stage": args.stage,
        "pattern": str(pattern),
        "array": config.array,
        "seed": args.seed,
        "bit_exact": run.mismatches == 0,
        **{name: value for name, value in asdict(run).items() if name not in ("stages", "differs")},
        "differs": list(run.differs),
        "dense_cycles_at_best": int(ideal),
        "speedup_over_best_dense": ideal / run.cycles,
        "sim_cycles_per_second": run.cycles / run.wall_seconds,
    }
    notes = []
    if run.mismatches:
        notes.append(f"MISMATCH: {run.mismatches} numbers of {', '.join(run.differs)}")
    if run.cycles != run.predicted_cycles:
        notes.append(f"MISMATCH: {run.cycles} cycles, predicted {run.predicted_cycles}")
    _print(values, args.json, notes)
    return FAILED if notes else DONE


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


def _use_one_thread() -> None:
    """Make sums on the host independent of the number of cores: a seed then fixes the run.

    Costs nothing here: the products, which take the time, are not torch's.
    """
    import torch

    torch.set_num_threads(1)


def _train(args: argparse.Namespace) -> int:
    """Train a model on a data set with a sparse scheme, its products on a device."""
    import sat
    from sat.data import load_data
    from sat.devices.staged import StagedDevice
    from sat.training.trainer import Trainer

    _use_one_thread()
    if args.ranks > 1 or args.compare:
        return _train_ranks(args)
    with _usage():
        data = load_data(args.data)
        options = {} if args.array is None else {"array": args.array}
        device = sat.device(args.device, **options)
    with device:
        with _usage():
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
    more = {
        "array": device.config.array,
        "products": len(log),
        "macs": log.macs,
        "cycles": log.cycles,
        "layers": [vars(layer) for layer in result.report.layers],
    }
    return _print_training(args, device.name, result, more)


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
        "pattern": str(sat.Pattern.parse(args.pattern)),
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
    _print(values, args.json, () if good else ["FAILED: the training went out of bounds"])
    return DONE if good else FAILED


def _train_ranks(args: argparse.Namespace) -> int:
    """Train with several ranks, each a process with its own device; compare with one if asked."""
    import sat
    from sat.data import load_data
    from sat.training.distributed import compare_ranks, train_ranks

    options = {} if args.array is None else {"array": args.array}
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
    with _usage():
        load_data(args.data)
        sat.Pattern.parse(args.pattern)
        sat.device(args.device, **options).close()
        if args.compare and args.shards > 1:
            raise ValueError("--compare: has as many shards as ranks; leave --shards out")
        if args.compare:
            comparison = compare_ranks(args.ranks, args.device, **arguments)
            print(json.dumps(comparison.to_dict()) if args.json else comparison)
            return DONE if comparison.passed else FAILED
        result, _ = train_ranks(args.ranks, args.device, shards=args.shards, **arguments)
    return _print_training(args, args.device, result, {})


def _devices(args: argparse.Namespace) -> int:
    """List the devices."""
    from sat.devices import available

    found = available()
    if args.json:
        print(json.dumps({"devices": [vars(info) for info in found]}))
    else:
        for info in found:
            state = "ready" if info.missing is None else info.missing
            print(f"{info.spec:<8}  {info.summary:<48}  {state}")
    return DONE


def _methods(args: argparse.Namespace) -> int:
    """List the methods."""
    from sat.methods import METHODS

    if args.json:
        print(json.dumps({"methods": [vars(method) for method in METHODS.values()]}))
    else:
        for method in METHODS.values():
            print(f"{method.slug:<10}  {method.title}: {method.summary} ({method.paper})")
    return DONE


def _require_places(args: argparse.Namespace) -> None:
    """Refuse places that results cannot go to, before the work that makes them."""
    from pathlib import Path

    if args.trace is not None and not Path(args.trace).parent.is_dir():
        raise ValueError(f"--trace {args.trace}: its folder must exist; make it or name another")
    if args.figures is not None:
        try:
            Path(args.figures).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--figures {args.figures}: must be a folder that can be made ({error.strerror}); "
                "name another"
            ) from error


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


def _run(args: argparse.Namespace) -> int:
    """Run a method's demo, its matrix work on a device, and judge its acceptance figures."""
    from pathlib import Path

    import sat
    from sat.devices import ComparingDevice, FirstDevice
    from sat.methods import get_method

    _use_one_thread()
    options = {} if args.array is None else {"array": args.array}
    with contextlib.ExitStack() as stack:
        with _usage():
            method = get_method(args.method)
            _require_places(args)
            precision = args.precision or method.precision
            report = checked = None
            if args.device == "host":
                asked = (args.first, args.max_cycles, args.trace, args.array)
                if any(option is not None for option in asked):
                    raise ValueError(
                        "--device host: --array, --first, --max-cycles and --trace need a device; "
                        "leave them out or name one"
                    )
            else:
                device = stack.enter_context(sat.device(args.device, **options))
                if args.first is not None:
                    golden = stack.enter_context(sat.device("golden", config=device.config))
                    checked = ComparingDevice(device, golden)
                    device = FirstDevice(checked, golden, args.first)
                block = sat.offload(
                    device,
                    precision=precision,
                    min_size=args.min_size,
                    max_cycles=args.max_cycles,
                    trace=args.trace is not None,
                )
                report = stack.enter_context(block)
        title = f"{method.slug} on {args.device}"
        stack.enter_context(_progress(report, title, shown=not args.json))
        began = time.perf_counter()
        result = method.run(seed=args.seed)
    values = {
        "method": method.slug,
        "device": args.device,
        "seed": args.seed,
        "seconds": time.perf_counter() - began,
        **result.to_json(),
    }
    notes = [str(check) for check in result.checks]
    if report is not None:
        # Cycles of a long program's many sizes take a while to predict: on request.
        cycles = args.cycles
        values["offload"] = report.to_json(cycles=cycles)
        notes.append(report.table(cycles=cycles))
    good = result.passed
    if checked is not None:
        values["compared"], values["mismatches"] = checked.compared, checked.mismatches
        good &= checked.mismatches == 0
    if args.trace is not None and report is not None:
        report.to_perfetto(args.trace)
    if args.figures is not None:
        folder = Path(args.figures)
        for name, figure in result.figures.items():
            figure.savefig(folder / f"{method.slug}-{name}.png", dpi=150)
    lines = [f"{name}: {_text(value)}" for name, value in result.metrics.items()]
    _print(values, args.json, [*lines, *notes])
    return DONE if good else FAILED


def _demo(args: argparse.Namespace) -> int:
    """Run the demo."""
    from sat.commands.demo import demo

    _use_one_thread()
    with _usage():
        result = demo(
            epochs=args.epochs,
            rtl_steps=args.steps,
            batch=args.batch,
            array=args.array,
            pattern=args.pattern,
            seed=args.seed,
            figure=args.figure,
            progress=True,
        )
    print(_json(result.to_dict()) if args.json else result)
    return DONE if result.passed else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sat", description="N:M sparse training on open hardware.")
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=run.__doc__)
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print one JSON object")
        return added

    sub = command("simulate", _simulate, "a matrix product or a layer on the simulated RTL")
    sub.add_argument(
        "--layer", choices=("conv", "linear"), help="a layer's training step, not one product"
    )
    sub.add_argument(
        "--stage", choices=("ff", "bp", "wu", "update", "step"), default="step",
        help="of the layer: one stage, or the whole step (default)",
    )  # fmt: skip
    sub.add_argument("--batch", type=_count, default=1, help="images (default 1)")
    sub.add_argument("--size", type=_count, default=8, help="lines and pixels (default 8)")
    sub.add_argument("--channels", type=_count, default=64, help="input channels (default 64)")
    sub.add_argument("--out-channels", type=_count, help="as many as in if not given")
    sub.add_argument("--kernel", type=_count, default=3, help="default 3")
    sub.add_argument("--stride", type=_count, default=1, help="default 1")
    sub.add_argument("--padding", type=_natural, help="kernel div 2 if not given")
    sub.add_argument("--dilation", type=_count, default=1, help="default 1")
    sub.add_argument("--groups", type=_natural, default=1, help="default 1; 0: depthwise")
    sub.add_argument("--relu", action="store_true", help="ReLU behind and before the layer")
    sub.add_argument("--read-latency", type=_count, default=20, help="cycles (default 20)")
    sub.add_argument("--write-latency", type=_count, default=8, help="cycles (default 8)")
    for name in ("rows", "cols", "depth"):
        sub.add_argument(f"--{name}", type=_count, default=64, help="default 64")
    sub.add_argument("--pattern", default="dense", help="N:M, or dense (default)")
    sub.add_argument("--dataflow", choices=("auto", "os", "ws"), default="auto")
    sub.add_argument("--array", default="8x8", help="rows x columns (default 8x8)")
    sub.add_argument("--seed", type=_seed, default=0)
    sub.add_argument("--start", action="store_true", help="random start values, not zeros")
    sub.add_argument("--specials", action="store_true", help="mix in inf, NaN and subnormals")
    sub.add_argument("--waves", metavar="FILE.fst", help="write a waveform")

    sub = command("train", _train, "train a model, its products on a device")
    sub.add_argument("--model", default="cnn", help="cnn (default) or mlp")
    sub.add_argument("--data", default="digits", help="digits (default)")
    sub.add_argument("--scheme", default="bdwp", help="bdwp (default), dense, srste, sdgp, sdwp")
    sub.add_argument("--pattern", default="2:8", help="N:M (default 2:8), or dense")
    sub.add_argument("--device", default="golden", help="golden (default) or rtl")
    sub.add_argument("--array", help="rows x columns (default 8x8)")
    sub.add_argument("--epochs", type=_count, default=12, help="default 12")
    sub.add_argument("--steps", type=_count, help="stop after so many steps")
    sub.add_argument("--batch", type=_count, default=32, help="of all ranks (default 32)")
    sub.add_argument(
        "--ranks", type=_count, default=1, help="processes, each with its own device (default 1)"
    )
    sub.add_argument(
        "--shards", type=_count, default=1,
        help="parts of a batch, one after the other: R have the bits of R ranks (default 1)",
    )  # fmt: skip
    sub.add_argument(
        "--compare", action="store_true",
        help="train with the ranks, with as many shards, and whole: print how far apart they are",
    )  # fmt: skip
    sub.add_argument("--seed", type=_seed, default=0)

    command("devices", _devices, "list the devices")

    command("methods", _methods, "list the research methods")

    sub = command("run", _run, "run a method's demo on a device")
    sub.add_argument("method", metavar="METHOD", help="one of `sat methods`")
    sub.add_argument(
        "--device", default="golden", help="golden (default), rtl, …; host: without offload"
    )
    sub.add_argument("--array", help="rows x columns (default 8x8)")
    sub.add_argument("--precision", choices=("fp16", "fp32"), help="the method's own if not given")
    sub.add_argument(
        "--first", type=_count, metavar="K",
        help="only the first K products on the device, compared with golden, which does the rest",
    )  # fmt: skip
    sub.add_argument(
        "--min-size", type=_natural, default=0, help="smaller products (in MACs) stay on the host"
    )
    sub.add_argument("--max-cycles", type=_count, help="stop before products take more")
    sub.add_argument("--cycles", action="store_true", help="predict cycles that are not counted")
    sub.add_argument("--figures", metavar="FOLDER", help="write the figures as PNG")
    sub.add_argument("--trace", metavar="FILE.json", help="write a Perfetto trace")
    sub.add_argument("--seed", type=_seed, default=0)

    sub = command("demo", _demo, "train digits, first steps on the simulated RTL, beside dense")
    sub.add_argument("--epochs", type=_count, default=12, help="default 12")
    sub.add_argument("--steps", type=_count, default=3, help="steps on the RTL (default 3)")
    sub.add_argument("--batch", type=_count, default=32, help="default 32")
    sub.add_argument("--array", default="8x8", help="rows x columns (default 8x8)")
    sub.add_argument("--pattern", default="2:8", help="N:M (default 2:8)")
    sub.add_argument("--seed", type=_seed, default=0)
    sub.add_argument("--figure", default="out/demo.png", help="where the picture goes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``sat``; return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if not given.
    """
    parser = _parser()
    try:
        args = parser.parse_args(argv)
        if args.version:
            import sat

            print(sat.__version__)
            return DONE
        if args.command is None:
            parser.error("no command")
    except SystemExit as stop:
        return int(stop.code or 0)
    from sat.errors import SatError
    from sat.sim.build import BuildError

    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except _UsageError as error:
        print(f"sat {args.command}: error: {error}", file=sys.stderr)
        return BAD_USAGE
    except (SatError, BuildError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader left; nothing more can be said to it, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        print(f"sat {args.command}: failed: {error}", file=sys.stderr)
        return FAILED
