"""A WUVE lane: the golden arithmetic, one weight a cycle, the documented latency."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.sim import Simulator

from sat.rtl.config import FpTiming
from sat.rtl.wuve import Wuve, wuve_latency
from sat.sim.golden.update import Rates, sgd

COUNT = 400


def bits(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


def numbers(rng: np.random.Generator) -> np.ndarray:
    """Return FP32 numbers: moderate ones, specials, any bits."""
    special = np.array([0, -0.0, 1, 1e-40, -3e-39, 1e38, np.inf, -np.inf, np.nan], np.float32)
    kind = rng.random(COUNT)
    made = np.select(
        [kind < 0.7, kind < 0.85],
        [
            rng.standard_normal(COUNT).astype(np.float32).view(np.uint32),
            rng.choice(special, COUNT).view(np.uint32),
        ],
        rng.integers(0, 1 << 32, COUNT, dtype=np.uint32),
    )
    return made.astype(np.uint32).view(np.float32)


TIMINGS = [FpTiming(), FpTiming(adder_stages=8, update_multiplier_stages=5)]


@pytest.mark.parametrize("fp", TIMINGS, ids=["short", "long"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "rates",
    [
        Rates(bits(0.05), bits(0.9), bits(5e-4), bits(7e-4), bits(2.0**-12)),
        Rates(bits(0.05), 0, 0, bits(2e-4), bits(1)),
        Rates(bits(-1e30), bits(1), bits(3), 0, bits(1e-30)),
        Rates(),
    ],
)
def test_lane(rates, skip, fp):
    rng = np.random.default_rng([rates.learning_rate, skip])
    w, v, g = (numbers(rng) for _ in range(3))
    pruned = rng.random(COUNT) < 0.5
    lane, latency = Wuve(fp), wuve_latency(fp)
    got: list[tuple[int, int]] = []

    async def drive(ctx):
        for name in ("learning_rate", "momentum", "decay", "decay_pruned", "unscale"):
            ctx.set(lane.rates[name], getattr(rates, name))
        ctx.set(lane.skip, skip)
        for cycle in range(COUNT + latency):
            if cycle < COUNT:
                for name, values in (("w", w), ("v", v), ("g", g)):
                    ctx.set(getattr(lane, name), int(values[cycle].view(np.uint32)))
                ctx.set(lane.pruned, bool(pruned[cycle]))
            if cycle >= latency:
                got.append((ctx.get(lane.w_out), ctx.get(lane.v_out)))
            await ctx.tick()

    sim = Simulator(lane)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.run()
    want = (w, v) if skip else sgd(w, v, g, pruned, rates)
    for number, name in enumerate(("w", "v")):
        made = np.array([pair[number] for pair in got], np.uint32)
        wrong = np.nonzero(made != want[number].view(np.uint32))[0]
        assert not len(wrong), (name, len(wrong), w[wrong[0]], v[wrong[0]], g[wrong[0]])
