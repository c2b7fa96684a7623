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
from sat.devices.stages import count_different, random_tensors
from sat.schedules.files import check_device
from sat.schedules.schedule import Entry, Schedule
from sat.sparsity.tensor import prune

SGD = Sgd(learning_rate=0.05, momentum=0.9, weight_decay=5e-4)


@dataclass(frozen=True)
class Ran:
    """A stage that ran.

    Attributes
    ----------
    entry : Entry
    cycles : int
        That the device counted; the schedule's are the entry's.
    compared, mismatches : int
        Numbers compared with golden's, and how many differ in a bit.
    """

    entry: Entry
    cycles: int
    compared: int
    mismatches: int

    @property
    def right(self) -> bool:
        """Whether every bit and every cycle is as it should be."""
        return not self.mismatches and self.cycles == self.entry.cycles


def run_schedule(schedule: Schedule, device: RtlDevice, seed: int = 0) -> Iterator[Ran]:
    """Run all stages of a schedule, each as the program that its plan gives.

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
    for number, entry in enumerate(schedule.entries):
        if entry.layer is None:
            yield _products(entry, device, golden, rng)
            continue
        if entry.operation not in made:
            made[entry.operation] = random_tensors(entry.layer, seed + number)
        tensors = made[entry.operation]
        names = (entry.stage,)
        reads = {
            "ff": ("x", "w", "bias"),
            "bp": ("dy", "w", "in_mask"),
            "wu": ("x", "dy"),
            "update": ("w", "v", "g"),
        }[entry.stage]
        given = {name: tensors[name] for name in reads if name in tensors}
        results, run = device.run_stages(names, entry.layer, given, SGD)
        wanted, _ = golden.run_stages(names, entry.layer, given, SGD)
        compared, mismatches = _compare(results, wanted)
        if "g" in results:
            tensors["g"] = results["g"]
        assert run.cycles is not None
        yield Ran(entry, run.cycles, compared, mismatches)


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
    return Ran(entry, *(sum(values) for values in zip(*runs, strict=True)))


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
