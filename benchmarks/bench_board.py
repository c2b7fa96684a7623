"""A training step of the demo on a board, by prediction: what device and link take.

Programs are compiled and sent as they would be, to a link without a board behind it that counts
what passes; results are zeros, on which nothing here depends. Cycles are the least that programs
take with SDRAM. ``python benchmarks/bench_board.py [--array 4x4] [--clock 50] [--batch 32]``.
"""

from __future__ import annotations

import argparse
from unittest.mock import patch

from sat.data import load_data
from sat.devices.staged import StagedDevice
from sat.devices.uart import UartDevice
from sat.fpga.board import BOARD_CONFIG, LINK_BAUD, build_of
from sat.fpga.link.client import Link
from sat.fpga.link.protocol import (
    MOST_BYTES,
    Greeting,
    MemoryKind,
    Operation,
    Request,
    Response,
    frame,
)
from sat.fpga.sdram.geometry import Geometry
from sat.rtl import csr
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.training.trainer import Trainer

WIRE_BITS = 10
"""Of a byte: start and stop."""


class CountingLink:
    """A link that nobody is at the end of: it counts bytes on the wire, and requests.

    Attributes
    ----------
    to_board, from_board : int
        Bytes on the wire: frames, whole.
    requests : int
    """

    gap_words = Link.gap_words

    def __init__(self, config: SatConfig) -> None:
        self.config = config
        self.to_board = self.from_board = self.requests = 0

    def _count(
        self, operation: Operation, address: int, count: int, data: bytes, got: bytes
    ) -> None:
        self.requests += 1
        self.to_board += len(frame(Request(0, operation, address, count, data).encode()))
        self.from_board += len(frame(Response(0, operation, 0, got).encode()))

    def hello(self) -> Greeting:
        return Greeting(Geometry().size, build_of(self.config), memory=MemoryKind.SDRAM)

    def read(self, address: int, size: int) -> bytes:
        for at in range(address, address + size, MOST_BYTES):
            count = min(MOST_BYTES, address + size - at)
            self._count(Operation.READ, at, count, b"", bytes(count))
        return bytes(size)

    def write(self, address: int, data: bytes) -> None:
        for at in range(0, len(data), MOST_BYTES):
            part = data[at : at + MOST_BYTES]
            self._count(Operation.WRITE, address + at, len(part), part, b"")

    def read_register(self, offset: int) -> int:
        self._count(Operation.READ_REGISTER, offset, 4, b"", bytes(4))
        # A device that has done at once whatever it was given.
        known = {csr.REGISTERS["ID"]: csr.ID_VALUE, csr.REGISTERS["STATUS"]: Status.DONE.value}
        known[csr.parts("CYCLES")[0]] = 1
        return next((value for register, value in known.items() if register.offset == offset), 0)

    def write_register(self, offset: int, value: int) -> None:
        self._count(Operation.WRITE_REGISTER, offset, 4, bytes(4), b"")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--array", default="4x4")
    parser.add_argument("--clock", type=float, default=50.0, help="MHz")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    config = BOARD_CONFIG.with_array(args.array)
    link = CountingLink(config)
    data = load_data("digits")
    steps = data.steps(args.batch)
    with (
        patch("sat.devices.uart._open", lambda port, baud: _Nothing()),
        patch("sat.devices.uart.Link", lambda port: link),
        UartDevice("counted", config=config) as device,
    ):
        staged = StagedDevice(device)
        trainer = Trainer(
            "cnn", data, scheme="bdwp", pattern="2:8", device=staged, batch=args.batch
        )
        for number in (1, 2):
            staged.runs.clear()
            link.to_board = link.from_board = link.requests = 0
            trainer.fit(1)
            cycles = sum(entry.run.predicted_cycles or 0 for entry in staged.runs)
            wire = link.to_board + link.from_board
            device_s, link_s = cycles / (args.clock * 1e6), wire * WIRE_BITS / LINK_BAUD
            print(
                f"step {number}: {len(staged.runs)} programs, {cycles:,} cycles or more "
                f"({device_s:.3f} s at {args.clock:g} MHz); link: {link.to_board:,} bytes there, "
                f"{link.from_board:,} back, {link.requests:,} requests ({link_s:.1f} s)"
            )
    print(
        f"epoch of {steps} steps: {steps * (device_s + link_s):,.0f} s, of which the device "
        f"{steps * device_s:,.1f} s: {link_s / (device_s + link_s):.1%} is the link's"
    )
    return 0


class _Nothing:
    """A port that is not there."""

    def close(self) -> None:
        pass

    def reset_input_buffer(self) -> None:
        pass


if __name__ == "__main__":
    raise SystemExit(main())
