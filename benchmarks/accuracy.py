"""What sparsity costs in accuracy: models, schemes, patterns and seeds, on golden's bits.

Each run is what `sat train` does, under one scheme or under several in turn (`phases`); it adds a
line to FILE, and a run that is there already is not repeated, so the sweep may be stopped and goes
on where it was. Then a table: mean and deviation of the test accuracy over seeds, and the speed-up
of a training step on 8x8, dense over sparse, by the cycle model: of all steps together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

import sat
from sat.data import load_data
from sat.dataflow.cost import product_cost, stage_cost
from sat.dataflow.products import Product
from sat.devices.staged import StagedDevice
from sat.layers.schemes import Scheme, get_scheme
from sat.networks.capture import capture
from sat.rtl.config import SatConfig
from sat.schedules.scheduler import sparse_layer
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming
from sat.sparsity.pattern import DENSE, Pattern
from sat.training.models import build_model
from sat.training.trainer import Trainer

SCHEMES = ("bdwp", "bdwp_wu", "bdwp_mvue", "srste", "sdgp", "sdwp")
RECIPES = ("bdwp_decay", "bdwp_late", "bdwp_end", "bdwp_wu_end")
"""What may win back what a pattern costs; see `phases`."""
DECAY = 2e-4
"""SR-STE's, of pruned weights."""
TIMING = MemoryTiming()


@dataclass(frozen=True)
class Task:
    """A model, its data, and how long it is trained."""

    model: str
    data: str
    epochs: int
    batch: int


TASKS = {
    "digits": Task("cnn", "digits", 12, 32),
    "line16": Task("line16", "mnist1d", 20, 50),
    "line32": Task("line32", "mnist1d", 20, 50),
    "line96": Task("line96", "mnist1d", 20, 50),
}


class Phase(NamedTuple):
    """A share of all steps, and what prunes them."""

    share: float
    scheme: Scheme
    pattern: Pattern


def phases(name: str, pattern: Pattern) -> list[Phase]:
    """Return what a scheme or recipe trains with, one after another.

    ``bdwp_decay`` is BDWP with SR-STE's decay of what FF prunes; ``bdwp_late`` has groups half as
    large in the first half of all steps; ``…_end`` has its last fifth dense.
    """
    if name == "bdwp_decay":
        return [Phase(1, replace(get_scheme("bdwp"), name=name, srste_lambda=DECAY), pattern)]
    bdwp, dense = get_scheme("bdwp"), get_scheme("dense")
    if name == "bdwp_late":
        return [
            Phase(0.5, bdwp, Pattern(pattern.n, pattern.m // 2)),
            Phase(0.5, bdwp, pattern),
        ]
    if name in RECIPES:
        return [
            Phase(0.8, get_scheme(name.removesuffix("_end")), pattern),
            Phase(0.2, dense, DENSE),
        ]
    return [Phase(1, get_scheme(name), pattern)]


@dataclass(frozen=True)
class Run:
    """A training: what is trained, how, and from which seed."""

    task: str
    scheme: str
    pattern: str
    seed: int

    def accuracy(self) -> float:
        """Train; return the share of the test set that is right at the end, 0 to 1."""
        task, pattern = TASKS[self.task], Pattern.parse(self.pattern)
        every = phases(self.scheme, pattern)
        with sat.device("golden", config=device(pattern)) as golden:
            trainer = Trainer(
                task.model,
                load_data(task.data),
                scheme=every[0].scheme,
                pattern=every[0].pattern,
                device=StagedDevice(golden),
                epochs=task.epochs,
                batch=task.batch,
                seed=self.seed,
            )
            for done, following in itertools.pairwise(every):
                trainer.fit(round(done.share * trainer.total_steps))
                trainer.switch(following.scheme, following.pattern)
            found = trainer.fit().accuracy
        assert found is not None
        return found


def device(pattern: Pattern) -> SatConfig:
    """Return an 8x8 device that runs a pattern in all stages."""
    return SatConfig(max_m=max(8, pattern.m), prune_gathers=True)


def runs(args: argparse.Namespace) -> Iterator[Run]:
    """Yield what is asked for, a seed of everything before the next seed."""
    for seed in range(args.seeds):
        for task in args.tasks:
            yield Run(task, "dense", "dense", seed)
            for pattern in args.patterns:
                yield from (Run(task, scheme, pattern, seed) for scheme in args.schemes)


def cycles(task: Task, name: str, pattern: Pattern) -> float:
    """Return what a training step takes, of all phases: each layer's stages, pruned as there."""
    model, data = build_model(task.model, 10, 0), load_data(task.data)
    network = capture(model, data.train_x[: task.batch])
    return sum(
        share * of_layer(operation.layer, tuple(operation.products), scheme, of_phase)
        for share, scheme, of_phase in phases(name, pattern)
        for operation in network.operations
        if operation.layer is not None
    )


def of_layer(layer: Layer, stages: tuple[str, ...], scheme: Scheme, pattern: Pattern) -> int:
    """Return the cycles of a layer's stages and its update."""
    pair, config = (pattern.n, pattern.m), device(pattern)
    prunes = scheme.prunes
    if sparse_layer(layer, pattern)[0].ff == (1, 1):
        prunes = {}  # every scheme prunes along channels somewhere: where they do not fit, nothing
    dense = (1, 1)
    chosen = replace(
        layer,
        ff=pair if "FF" in prunes else dense,
        bp=pair if "BP" in prunes and prunes["BP"].axes == ("out",) else dense,
        wu=pair if "WU" in prunes else dense,
    )
    made = 0
    for stage in (*stages, "update"):
        if stage == "bp" and chosen.bp != dense and prunes["BP"].operand == "output_gradient":
            # The compact operand is on the right: the transposed product.
            depth = layer.taps * layer.out_channels
            product = Product(layer.in_channels, layer.in_positions, depth, *pair)
            made += product_cost(product, config, TIMING).cycles
            continue
        made += stage_cost(stage, chosen, config, TIMING).cycles
    return made


def table(found: dict[Run, float]) -> None:
    """Print means and deviations, and speed-ups."""
    print("| model | scheme | pattern | test accuracy, % | seeds | faster on 8x8 |")
    print("| --- | --- | --- | --- | --- | --- |")
    groups: dict[tuple[str, str, str], list[float]] = {}
    order = ("dense", *SCHEMES, *RECIPES)
    for run, accuracy in sorted(
        found.items(),
        key=lambda item: (
            list(TASKS).index(item[0].task),
            order.index(item[0].scheme),
            Pattern.parse(item[0].pattern).m,
        ),
    ):
        groups.setdefault((run.task, run.scheme, run.pattern), []).append(100 * accuracy)
    for (task, scheme, pattern), each in groups.items():
        spread = f" ± {statistics.stdev(each):.2f}" if len(each) > 1 else ""
        dense = cycles(TASKS[task], "dense", DENSE)
        faster = dense / cycles(TASKS[task], scheme, Pattern.parse(pattern))
        mean = statistics.mean(each)
        print(
            f"| {task} | {scheme} | {pattern} | {mean:.2f}{spread} | {len(each)} | {faster:.2f} |"
        )


def main() -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES), choices=(*SCHEMES, *RECIPES))
    parser.add_argument("--patterns", nargs="*", default=["2:4", "2:8", "2:16"])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    try:
        for pattern in args.patterns:
            Pattern.parse(pattern)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    args.file.parent.mkdir(parents=True, exist_ok=True)
    found: dict[Run, float] = {}
    if args.file.exists():
        for line in args.file.read_text().splitlines():
            values = json.loads(line)
            del values["cpu_seconds"]
            found[Run(**{k: v for k, v in values.items() if k != "accuracy"})] = values["accuracy"]
    for run in runs(args):
        if run in found:
            continue
        began = time.process_time()
        found[run] = run.accuracy()
        seconds = time.process_time() - began
        with args.file.open("a") as file:
            values = {**asdict(run), "accuracy": found[run], "cpu_seconds": round(seconds, 1)}
            print(json.dumps(values), file=file, flush=True)
        print(f"{run}: {found[run]:.4f}, {seconds:.0f} CPU s", file=sys.stderr, flush=True)
    table(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
