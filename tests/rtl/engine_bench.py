"""Bench for the engines that talk to memory: a port with the documented timing, a driver."""

from __future__ import annotations

from collections import deque

import numpy as np
from amaranth.sim import Simulator

from sat.rtl.isa import HEADER_BITS, Instruction
from sat.sim.memory import MemoryTiming

TIMINGS = [
    MemoryTiming(),
    MemoryTiming(read_latency=1, write_latency=1),
    MemoryTiming(read_latency=7, write_latency=30, cycles_per_beat=3),
]


def typed_payload(number: int, i: Instruction) -> dict:
    """Return a command of an engine with one opcode."""
    return {"pc": number, "release": 1, "signal": 1, "body": dict(i.body)}


def any_payload(number: int, i: Instruction) -> dict:
    """Return a command of an engine with several opcodes."""
    body = int.from_bytes(i.encode(), "little") >> HEADER_BITS
    opcode = i.opcode.value
    return {"opcode": opcode, "pc": number, "release": 1, "signal": 1, "body": body}


class Port:
    """Memory behind an engine's port, with the documented timing."""

    def __init__(self, memory: np.ndarray, timing: MemoryTiming, beat: int):
        self.memory, self.timing, self.beat = memory, timing, beat
        self.pending: deque[list[int]] = deque()  # [beat address, beats left, due]
        self.answers: deque[int] = deque()
        self.free = 0

    def ready(self, now: int) -> bool:
        """Whether a beat may move in this cycle."""
        return bool(self.pending) and now >= max(self.pending[0][2], self.free)

    def take(self, now: int) -> int:
        """Move a beat; return its address."""
        burst = self.pending[0]
        at = burst[0]
        burst[0], burst[1] = at + self.beat, burst[1] - 1
        self.free = now + self.timing.cycles_per_beat
        if burst[1] == 0:
            self.pending.popleft()
            self.answers.append(now + self.timing.write_latency)
        return at


def run(engine, instructions, gaps, cycle_of_port, payload=typed_payload):
    """Offer instructions and follow the port; return offers, accepts, releases, signals, idle."""
    offered, accepted, released, signalled, idle = [], [], [], [], 0

    async def drive(ctx):
        nonlocal idle
        offer_at = gaps[0]
        for cycle in range(20_000):
            number = len(accepted)
            waiting = number < len(instructions) and cycle >= offer_at
            ctx.set(engine.i.valid, waiting)
            if waiting:
                if len(offered) == number:
                    offered.append(cycle)
                i = instructions[number]
                ctx.set(engine.i.payload, payload(number, i))
                if ctx.get(engine.i.ready):
                    accepted.append(cycle)
                    offer_at = cycle + 1 + (gaps + [0])[number + 1]
            cycle_of_port(ctx, cycle)
            if ctx.get(engine.release):
                released.append(cycle)
            if ctx.get(engine.signal):
                signalled.append(cycle)
            if len(signalled) == len(instructions) and not ctx.get(engine.busy):
                idle = cycle
                return
            await ctx.tick()
        raise AssertionError("the engine hangs")

    sim = Simulator(engine)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.run()
    return offered, accepted, released, signalled, idle


def compare_times(timing, instructions, observed) -> None:
    """Assert that the timing model gives the observed cycles."""
    offered, accepted, released, signalled, idle = observed
    times = [timing.run(i, at) for i, at in zip(instructions, offered, strict=True)]
    assert accepted == [t.accept for t in times]
    assert released == [t.release for t in times]
    assert signalled == [t.signal for t in times]
    assert idle == timing.idle
