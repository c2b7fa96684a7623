"""Throughput of a board's link in simulated time: gateware and wire, no USB, no operating system.

Prints a JSON line for each direction. The times are the board's own, whatever the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.board import BOARD_CONFIG, LINK_BAUD
from sat.fpga.link.client import Link
from sat.fpga.link.server import LinkServer
from sat.fpga.memory import BlockMemory
from sat.fpga.simulation import SimulatedBoard


class LinkAndMemory(wiring.Component):
    """A board without a device."""

    def __init__(self, clock_hz: float, baud: float, memory_bytes: int) -> None:
        self.clock_hz, self.baud, self.memory_bytes = clock_hz, baud, memory_bytes
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.link = link = LinkServer(self.clock_hz, self.baud, self.memory_bytes)
        m.submodules.memory = memory = BlockMemory(BOARD_CONFIG.axi, self.memory_bytes)
        wiring.connect(m, link.bus, memory.bus)
        m.d.comb += [link.rx.eq(self.rx), self.tx.eq(link.tx)]
        return m


def measure(clock_hz: float, baud: float, size: int) -> list[dict[str, object]]:
    """Return how fast ``size`` bytes go each way."""
    board = SimulatedBoard(LinkAndMemory(clock_hz, baud, 1 << 17), clock_hz / baud)
    wire = [0]
    with contextlib.closing(board):
        write, take = board.write, board.take

        def counted_write(data: bytes) -> int:
            wire[0] += len(data)
            return write(data)

        def counted_take(most: int = 1 << 16) -> bytes:
            data = take(most)
            wire[0] += len(data)
            return data

        board.write, board.take = counted_write, counted_take  # type: ignore[method-assign]
        link = Link(board, patience=clock_hz, clock=lambda: board.now)
        link.hello()
        data = random.Random(0).randbytes(size)
        results = []
        for direction in ("to the board", "from the board"):
            began, wire[0] = board.now, 0
            if direction == "to the board":
                link.write(0, data)
            elif link.read(0, size) != data:
                raise SystemExit("what came back is not what was sent")
            seconds = (board.now - began) / clock_hz
            results.append(
                {
                    "direction": direction,
                    "baud": baud,
                    "clock_mhz": clock_hz / 1e6,
                    "bytes": size,
                    "bytes_per_second": round(size / seconds),
                    "of_the_wire": round(10 * size / seconds / baud, 4),
                    "bytes_on_the_wire": wire[0],
                    "sent_again": link.sent_again,
                }
            )
    return results


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clock", type=float, default=25.0, help="MHz (default 25)")
    parser.add_argument("--baud", type=float, default=LINK_BAUD, help="default 3000000")
    parser.add_argument("--bytes", type=int, default=1 << 16, help="default 65536")
    arguments = parser.parse_args()
    for line in measure(arguments.clock * 1e6, arguments.baud, arguments.bytes):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
