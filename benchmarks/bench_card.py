"""A training step of the demo on a card behind PCIe, by prediction: what device and link take.

Programs are compiled and sent as they would be, through the driver's files of a card that is not
there: they count what passes; results are zeros, on which nothing here depends. Cycles are those of
one DDR4 channel as `sat.sim.memory.MEMORIES` has it. What PCIe takes is assumed, not measured: a
rate, and a time for each call of the driver that moves memory, or reads or writes a register.
``python benchmarks/bench_card.py [--array 16x16] [--clock 100] [--batch 32]``.
"""

from __future__ import annotations

import argparse
from unittest.mock import patch

from sat.data import load_data
from sat.devices.staged import StagedDevice
from sat.devices.xdma import XdmaDevice
from sat.fpga.card import CARD_CONFIG, GREETING_OFFSET, Card
from sat.fpga.link.xdma import REGISTERS
from sat.rtl import csr
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.sim.memory import MEMORIES
from sat.training.trainer import Trainer


class CountingFiles:
    """The driver's files of a card that has done at once whatever it was given.

    Attributes
    ----------
    sent, fetched : int
        Bytes of memory.
    transfers, accesses : int
        Calls that moved memory; that read or wrote a register.
    """

    def __init__(self, config: SatConfig) -> None:
        greeting = Card(config).greeting.encode()
        known = {GREETING_OFFSET + at: greeting[at : at + 4] for at in range(0, len(greeting), 4)}
        known[csr.REGISTERS["ID"].offset] = csr.ID_VALUE.to_bytes(4, "little")
        known[csr.REGISTERS["STATUS"].offset] = Status.DONE.value.to_bytes(4, "little")
        known[csr.parts("CYCLES")[0].offset] = (1).to_bytes(4, "little")
        self._known = known
        self.clear()

    def clear(self) -> None:
        """Count from zero."""
        self.sent = self.fetched = self.transfers = self.accesses = 0

    def read(self, name: str, size: int, offset: int) -> bytes:
        if name == REGISTERS:
            self.accesses += 1
            return self._known.get(offset, bytes(4))
        self.transfers += 1
        self.fetched += size
        return bytes(size)

    def write(self, name: str, data: bytes | memoryview, offset: int) -> int:
        if name == REGISTERS:
            self.accesses += 1
        else:
            self.transfers += 1
            self.sent += len(data)
        return len(data)

    def close(self) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--array", default="16x16")
    parser.add_argument("--clock", type=float, default=100.0, help="MHz")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=12.0, help="of PCIe, GB/s")
    parser.add_argument("--transfer", type=float, default=30.0, help="us of a call that moves data")
    parser.add_argument("--access", type=float, default=2.0, help="us of a register")
    args = parser.parse_args()
    config = CARD_CONFIG.with_array(args.array)
    files = CountingFiles(config)
    data = load_data("digits")
    steps = data.steps(args.batch)
    with (
        patch("sat.fpga.answers._SOONEST", MEMORIES["ddr4"].timing),
        XdmaDevice("0", config=config, files=files) as device,
    ):
        staged = StagedDevice(device)
        trainer = Trainer(
            "cnn", data, scheme="bdwp", pattern="2:8", device=staged, batch=args.batch
        )
        for number in (1, 2):
            staged.runs.clear()
            files.clear()
            trainer.fit(1)
            cycles = sum(entry.run.predicted_cycles or 0 for entry in staged.runs)
            device_s = cycles / (args.clock * 1e6)
            bytes_s = (files.sent + files.fetched) / (args.rate * 1e9)
            calls_s = (files.transfers * args.transfer + files.accesses * args.access) / 1e6
            print(
                f"step {number}: {len(staged.runs)} programs, {cycles:,} cycles "
                f"({1e3 * device_s:.2f} ms at {args.clock:g} MHz); link: {files.sent:,} bytes "
                f"there, {files.fetched:,} back ({1e3 * bytes_s:.2f} ms), {files.transfers:,} "
                f"transfers and {files.accesses:,} registers ({1e3 * calls_s:.2f} ms)"
            )
    step_s = device_s + bytes_s + calls_s
    print(
        f"epoch of {steps} steps: {steps * step_s:.2f} s: device {device_s / step_s:.1%}, bytes "
        f"{bytes_s / step_s:.1%}, calls {calls_s / step_s:.1%}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
