"""The comparison finds a fault of one bit: planted in the adder, in an index, in an address."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from amaranth import Const, Signal, Value

from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product
from sat.rtl import compute, feed
from sat.rtl.config import SatConfig
from sat.rtl.fp import adder
from sat.sim.device_rtl import DeviceRtl
from sat.sim.engines import make_design

sys.path.insert(0, str(Path(__file__).parent))
from products import make_case, run_case

CONFIG = SatConfig(rows=2, cols=2, a_words=32, b_words=32, sum_words=64)
PRODUCT = Product(9, 7, 30, 2, 8)


def mismatches(engine: str) -> int:
    """Return how many sums the device, as it is elaborated now, gets wrong in both dataflows."""
    case = make_case(PRODUCT, 3)
    wrong = 0
    design = make_design(CONFIG, engine)
    with DeviceRtl(CONFIG, memory_bytes=1 << 16, engine=engine, design=design) as device:
        for dataflow in ("os", "ws"):
            mapping = legal_mappings(PRODUCT, CONFIG, dataflow)[0]
            got = run_case(device, CONFIG, case, mapping).got
            wrong += int(np.sum(got.view(np.uint32) != case.want.view(np.uint32)))
    return wrong


def test_the_device_itself_is_right():
    assert mismatches("verilator") == 0


def _wrong_rounding(monkeypatch):
    monkeypatch.setattr(adder, "rounds_up", lambda last, guard, rest: guard & last)


def _wrong_index(monkeypatch):
    right = feed.pick_b

    def wrong(m, config, read, values, indices, link):
        # The lowest bit of every stored index is inverted.
        flipped = indices ^ Const(int("1" * (len(indices) // 4), 16), len(indices))
        right(m, config, read, values, flipped, link)

    monkeypatch.setattr(compute, "pick_b", wrong)


def _wrong_drain(monkeypatch):
    class Wrong(feed.SumWalker):
        """Its base address has the lowest bit inverted."""

        def elaborate(self, platform):
            right, self.command = self.command, Signal(self.command.shape())
            m = super().elaborate(platform)
            bit = 1 << right.shape()["base"].offset
            m.d.comb += Value.cast(self.command).eq(Value.cast(right) ^ bit)
            self.command = right
            return m

    monkeypatch.setattr(compute, "SumWalker", Wrong)


@pytest.mark.parametrize("plant", [_wrong_rounding, _wrong_index, _wrong_drain])
def test_planted_fault_is_found(monkeypatch, plant):
    plant(monkeypatch)
    assert mismatches("verilator") > 0


@pytest.mark.parametrize("plant", [_wrong_rounding, _wrong_index])
def test_planted_fault_is_found_with_the_array_by_lanes(monkeypatch, plant):
    """The first lies in the translated array (and in the rest), the second before its edge."""
    plant(monkeypatch)
    assert mismatches("simd") > 0
