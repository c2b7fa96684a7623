"""A stand-in for the simulated RTL: golden bits, made-up cycles, faults on demand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sat.devices.base import Run
from sat.devices.golden import GoldenDevice
from sat.sim.engines import choose

# Test processes run side by side: threads of torch would wait for each other's cores.
torch.set_num_threads(1)


class FakeRtl(GoldenDevice):
    """Counts one cycle for each stored value of the longest dimension; may plant faults.

    Parameters
    ----------
    wrong_product : int, optional
        The product (from 0) whose first result is off by its last bit.
    late : int
        Cycles by which counts exceed predictions.
    """

    name = "rtl"
    any_pattern = False

    def __init__(
        self, *, waves=None, engine="auto", wrong_product=None, late=0, bound=False, **options
    ):
        super().__init__(**options)
        self.waves = waves
        self.engine = choose(engine, self.config, waves is not None)
        self.wrong_product = wrong_product
        self.late, self.bound = late, bound
        self.products = 0

    def _matmul(self, a, b, start, dataflow):
        result, _ = super()._matmul(a, b, start, dataflow)
        macs = len(a) * b.values.size
        if self.products == self.wrong_product:
            result.view(np.uint32)[0, 0] ^= 1
        self.products += 1
        return result, Run(
            macs=macs,
            cycles=macs + self.late,
            predicted_cycles=macs,
            bound=self.bound,
            utilisation=1 / (self.config.rows * self.config.cols),
            bytes_read=2 * a.size,
            bytes_written=4 * result.size,
            wall_seconds=0.5,
        )

    def run_stages(self, names, layer, tensors, rates, owner=None):
        results, run = super().run_stages(names, layer, tensors, rates, owner)
        if self.products == self.wrong_product:
            first = next(iter(results.values()))
            first.view(np.uint8).reshape(-1)[0] ^= 1
        self.products += 1
        # An update has no products: it takes a cycle a weight.
        macs = run.macs or tensors["w"].size
        return results, Run(
            macs=run.macs,
            cycles=macs + self.late,
            predicted_cycles=macs,
            wall_seconds=0.5,
        )


@pytest.fixture
def fake_rtl():
    """The class, to be made with faults."""
    return FakeRtl


@pytest.fixture
def rtl_is_fake(monkeypatch):
    """Make ``sat.device("rtl")`` a `FakeRtl`; keyword arguments for it may be put into the dict."""
    import sat
    import sat.devices

    extra: dict[str, object] = {}
    genuine = sat.device  # resolved now: what monkeypatch restores must not be the fake

    def device(spec, **options):
        return FakeRtl(**options, **extra) if spec == "rtl" else genuine(spec, **options)

    monkeypatch.setattr(sat.devices, "device", device)
    monkeypatch.setattr(sat, "device", device, raising=False)
    return extra
