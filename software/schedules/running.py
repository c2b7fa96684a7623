"""A schedule's stages on a device, under their plans, compared with golden bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sat.dataflow.compile.step import Sgd
from sat.dataflow.products import Product
from sat.devices.base import Tensors
from sat.devices.golden import GoldenDevice
from sat.devices.rtl import RtlDevice
from sat.devices.stages import READS, count_different, random_tensors
from sat.schedules.files import check_device
from sat.schedules.schedule import Entry, Schedule
from sat.sparsity.tensor import prune

SGD = Sgd(learning_rate=0.05, momentum=0.9, weight_decay=5e-4)


@dataclass(frozen=True)
class Ran:
    """A program that ran; of stages whose products are sent, all of these.

    Attributes
    ----------
    entries : tuple of Entry
        The stages that it is made of.
    cycles : int
        That the device counted; the schedule's are the entries'.
    compared, mismatches : int
        Numbers compared with golden's, and how many differ in a bit.
    """

    entries: tuple[Entry, ...]
    cycles: int
    compared: int
    mismatches: int

    @property
    def scheduled(self) -> int:
        """Cycles that the schedule says."""
        return sum(entry.cycles for entry in self.entries)

    @property
    def right(self) -> bool:
        """Whether every bit and every cycle is as it should be."""
        return not self.mismatches and self.cycles == self.scheduled


def run_schedule(schedule: Schedule, device: RtlDevice, seed: int = 0) -> Iterator[Ran]:
    """Run all programs of a schedule, as the plans of their stages give them.

    Numbers are random; within an operation WU's gradient goes into the update. What is not on the
    array, between layers, is left out.

    Parameters
    ----------
    device : RtlDevice
        Of the schedule's machine.

    Raises
    ------
    BadSchedule
        The schedule is for another device.
    DeviceError
        A program did not end well.
    """
    check_device(schedule, device.config, device.memory_timing)
    device.use_plans(schedule.plans)
    golden = GoldenDevice(device.config)
    rng = np.random.default_rng(seed)
    made: dict[str, Tensors] = {}
    number = 0
    for entries in schedule.programs:
        first = entries[0]
        if first.layer is None:
            yield _products(first, device, golden, rng)
        else:
            for n, entry in enumerate(entries, number):
                if entry.layer is not None and entry.operation not in made:
                    made[entry.operation] = random_tensors(entry.layer, seed + n)
            yield _stages(entries, device, golden, made)
        number += len(entries)


def _stages(
    entries: tuple[Entry, ...], device: RtlDevice, golden: GoldenDevice, made: dict[str, Tensors]
) -> Ran:
    """Run stages as one program: of a layer, or the updates of several."""
    names = tuple(entry.stage for entry in entries)
    layers = [entry.layer for entry in entries if entry.layer is not None]
    given = [
        {name: made[e.operation][name] for name in _reads(names) if name in made[e.operation]}
        for e in entries
    ]
    wanted: list[Tensors]
    if len(entries) > 1 and names[0] == "update":
        results, run = device.run_updates(layers, given, SGD)
        wanted = [
            golden.run_stages(("update",), layer, tensors, SGD)[0]
            for layer, tensors in zip(layers, given, strict=True)
        ]
    else:
        one, run = device.run_stages(names, layers[0], given[0], SGD)
        results, wanted = [one], [golden.run_stages(names, layers[0], given[0], SGD)[0]]
    if "g" in results[0]:
        made[entries[0].operation]["g"] = results[0]["g"]
    counts = [_compare(got, want) for got, want in zip(results, wanted, strict=True)]
    assert run.cycles is not None
    return Ran(entries, run.cycles, *(sum(values) for values in zip(*counts, strict=True)))


def _reads(names: tuple[str, ...]) -> list[str]:
    """Return the tensors that stages read, but what an earlier one makes."""
    extra = {"ff": ("bias",), "bp": ("in_mask",)}
    return [name for stage in names for name in (*READS[stage], *extra.get(stage, ()))]


def _compare(results: Tensors, wanted: Tensors) -> tuple[int, int]:
    """Return how many numbers there are, and how many differ in a bit."""
    return (
        sum(values.size for values in wanted.values()),
        sum(count_different(results[name], values) for name, values in wanted.items()),
    )


def _products(
    entry: Entry, device: RtlDevice, golden: GoldenDevice, rng: np.random.Generator
) -> Ran:
    runs = [run_product(product, device, golden, rng) for product in entry.products]
    return Ran((entry,), *(sum(values) for values in zip(*runs, strict=True)))


def run_product(
    product: Product, device: RtlDevice, golden: GoldenDevice, rng: np.random.Generator
) -> tuple[int, int, int]:
    """Run a product of random matrices on a device, and on golden.

    Returns
    -------
    cycles, compared, mismatches : int
        As of `Ran`.
    """
    a = rng.standard_normal(_shape(product, product.rows, product.depth)).astype(np.float16)
    b = rng.standard_normal(_shape(product, product.depth, product.cols)).astype(np.float16)
    right = b if product.dense else prune(b, f"{product.n}:{product.m}", axis=b.ndim - 2)
    got, want = device.matmul(a, right), golden.matmul(a, right)
    run = device.last_run
    assert run is not None and run.cycles is not None
    return run.cycles, want.size, count_different(got, want)


def _shape(product: Product, rows: int, cols: int) -> tuple[int, ...]:
    return (rows, cols) if product.count == 1 else (product.count, rows, cols)
