"""Devices made of others: a pool that shares each product, and one that changes after a while."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sat.dataflow.products import Product
from sat.devices.account import Run, Slowest, in_turn, sum_known
from sat.devices.base import Device
from sat.devices.operand import RightOperand
from sat.sim.threads import side_by_side


class PoolDevice(Device):
    """Several devices that share the rows of each product, side by side in threads.

    A row of a result does not depend on the others, so a pool has the bits of one device. Of a
    stack with enough products for all devices, each takes whole ones. Its devices are closed with
    it.

    Parameters
    ----------
    devices : sequence of Device
        At least one, with equal configurations.

    Raises
    ------
    ValueError
        If there is none, one is there twice, or configurations differ.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        if not devices:
            raise ValueError("devices is empty: a pool has at least one; give some")
        if len({id(device) for device in devices}) != len(devices):
            raise ValueError("devices holds one twice: each part of a pool is a device of its own")
        for device in devices[1:]:
            if device.config != devices[0].config:
                raise ValueError(
                    f"devices have arrays {devices[0].config.array} and {device.config.array}, or "
                    "other differences: a pool's have one configuration; make them with the same "
                    "options"
                )
        super().__init__(devices[0].config)
        self.devices = tuple(devices)
        self.name = ",".join(device.name for device in devices)
        self.any_pattern = all(device.any_pattern for device in devices)

    def _shares(self, length: int, step: int) -> list[tuple[Device, slice]]:
        """Return what each device takes of a length: as even as multiples of a step allow."""
        blocks, count = -(-length // step), len(self.devices)
        ends = [min(length, blocks * (i + 1) // count * step) for i in range(count)]
        starts = [0, *ends[:-1]]
        pairs = zip(self.devices, starts, ends, strict=True)
        return [(device, slice(start, end)) for device, start, end in pairs if start < end]

    def predict(self, product: Product, dataflow: str = "auto") -> int:
        """Return the cycles until the slowest share is done."""
        if product.count >= len(self.devices):
            axis, shares = "count", self._shares(product.count, 1)
        else:
            axis, shares = "rows", self._shares(product.rows, self.config.rows)
        return max(
            device.predict(replace(product, **{axis: part.stop - part.start}), dataflow)
            for device, part in shares
        )

    def _matmul(
        self,
        a: NDArray[np.float16],
        b: RightOperand,
        start: NDArray[np.float32] | None,
        dataflow: str,
    ) -> tuple[NDArray[np.float32], Run]:
        # A device keeps a resident operand as a whole: of such a stack it takes rows.
        whole = b.count is not None and b.count >= len(self.devices) and not b.resident
        axis = 0 if whole else a.ndim - 2
        jobs = []
        for device, part in self._shares(a.shape[axis], 1 if whole else self.config.rows):
            mine = (slice(None),) * axis + (part,)
            right = b.part(part) if whole else b
            first = None if start is None else start[mine]
            jobs.append(partial(device.compute, a[mine], right, first, dataflow))
        made = side_by_side(jobs)
        runs = [run for _, run in made]
        cycles = [run.cycles for run in runs]
        counted = None if None in cycles else max(c for c in cycles if c is not None)
        macs = sum(run.macs for run in runs)
        size = self.config.rows * self.config.cols * len(self.devices)
        return np.concatenate([result for result, _ in made], axis), Run(
            macs=macs,
            cycles=counted,
            predicted_cycles=Slowest(tuple(runs)),
            bound=any(run.bound for run in runs),
            utilisation=None if counted is None else macs / (counted * size),
            bytes_read=sum_known([run.bytes_read for run in runs]),
            bytes_written=sum_known([run.bytes_written for run in runs]),
            bytes_host=sum(run.bytes_host for run in runs),
            bytes_kept=sum(run.bytes_kept for run in runs),
            wall_seconds=max(run.wall_seconds or 0.0 for run in runs),
        )

    def close(self) -> None:
        """Close all devices, whatever one of them says to it."""
        super().close()
        with contextlib.ExitStack() as stack:
            for device in self.devices:
                stack.callback(device.close)


class FirstDevice(Device):
    """Compute the first products on one device and all others on a second.

    What a slow simulator is to show of a long program: its first products. Each `Run` names the
    device that ran. Neither is closed with this one.

    Parameters
    ----------
    first, then : Device
    count : int
        Products for the first device, at least 1; each of a stack counts.

    Attributes
    ----------
    left : int
        Products that are still for the first device.
    """

    def __init__(self, first: Device, then: Device, count: int) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"count={count!r}: must be an int of at least 1")
        super().__init__(first.config)
        self.name = f"{first.name}, then {then.name}"
        self.any_pattern = first.any_pattern and then.any_pattern
        self.first, self.then, self.left = first, then, count

    def predict(self, product: Product, dataflow: str = "auto") -> int:
        """Return what the device that is next predicts."""
        return (self.first if self.left else self.then).predict(product, dataflow)

    def _matmul(
        self,
        a: NDArray[np.float16],
        b: RightOperand,
        start: NDArray[np.float32] | None,
        dataflow: str,
    ) -> tuple[NDArray[np.float32], Run]:
        count = b.count or 1
        if 0 < self.left < count:
            # A stack across the change: two devices compute it.
            made = []
            for part in (slice(0, self.left), slice(self.left, count)):
                first = None if start is None else start[part]
                made.append(self._matmul(a[part], b.part(part), first, dataflow))
            return np.concatenate([result for result, _ in made]), in_turn([run for _, run in made])
        device = self.first if self.left else self.then
        result, run = device.compute(a, b, start, dataflow)
        self.left = max(0, self.left - count)
        run.device = device.name
        return result, run


def parse_pool(spec: str) -> list[str]:
    """Return the single devices of ``"rtl*2"`` or ``"golden,rtl*3"``, in order.

    Raises
    ------
    ValueError
        If a part is empty or a count is no number of at least 1.
    """
    found: list[str] = []
    for part in spec.split(","):
        name, star, count = part.strip().partition("*")
        if not name or (star and not (count.isdecimal() and int(count) >= 1)):
            raise ValueError(
                f"device {spec!r}: {part!r} is no device; write a name, or name*count, such as "
                "'rtl*2', and commas between"
            )
        found += [name] * (int(count) if star else 1)
    return found
