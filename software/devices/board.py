"""What devices on hardware have in common: the same programs, bits and cycles as in simulation."""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from sat.dataflow.compile import CompiledProduct
from sat.dataflow.cycles import predict
from sat.dataflow.products import Product
from sat.dataflow.program import Program
from sat.dataflow.recent import Recent
from sat.devices.account import Run, in_turn
from sat.devices.operand import RightOperand, product_of
from sat.devices.rtl import RtlDevice
from sat.devices.splitting import cut, halves, in_halves
from sat.errors import DeviceError
from sat.fpga.answers import AnswerTimes
from sat.fpga.link.client import LinkError
from sat.fpga.machine import BoardLink, BoardMachine
from sat.fpga.memory import BLOCK_RAM_TIMING
from sat.rtl.config import SatConfig
from sat.rtl.isa import INSTRUCTION_BYTES
from sat.sim.device_rtl import Outcome

_KEPT = 4096
"""Products whose least cycles are kept."""


def least_cycles(program: Program, config: SatConfig, times: AnswerTimes, address: int = 0) -> int:
    """Return the least cycles that a program takes on a board with such memory.

    Those that it takes by the soonest answers, or those in which its words pass the memory's wires,
    whichever are more.

    Parameters
    ----------
    program : Program
    config : SatConfig
    times : AnswerTimes
    address : int
        Of the program, in bytes.
    """
    found = predict(program, config, times.least, address)
    if times.wires is None:
        return found.cycles
    moved = (found.beats_read + found.beats_written) * config.axi.beat_bytes
    passed = 8 * (moved + len(program) * INSTRUCTION_BYTES) // times.wires
    return max(found.cycles, passed)


class BoardDevice(RtlDevice, abc.ABC):
    """Runs products on a board.

    A product that the board's memory cannot hold is computed in parts. Resident operands and
    weights stay on the board. After an error of the link the next product greets the board anew and
    sends what it needs.

    A board says what its memory is. With block RAM, programs take exactly the predicted cycles;
    with any other these are the least that they can take (`Run.bound`).

    Parameters
    ----------
    spec : str
        What `sat.device` was given.
    link
        The open link to the board: a `sat.fpga.machine.BoardLink`.
    config : SatConfig
        Of the board's gateware.

    Attributes
    ----------
    greeting : Greeting
        What the board says of itself.
    bounded : bool
        Predicted cycles are the least.

    Raises
    ------
    DeviceError
        No board answers, or its gateware is of another configuration. The link is closed.
    """

    def __init__(self, spec: str, link: BoardLink, config: SatConfig) -> None:
        super().__init__(config=config, memory=BLOCK_RAM_TIMING, memory_bytes=4096)
        self.spec, self._link = spec, link
        try:
            with self._told():
                self._board: BoardMachine | None = BoardMachine(link, self.config)
        except BaseException:
            self._close_link()
            raise
        self.greeting = self._board.greeting
        self._memory_bytes = self.greeting.memory_bytes
        self._times = AnswerTimes.of(self.greeting.memory, self.config.axi)
        self.bounded = self._times is not None
        if self._times is not None:
            self.memory_timing = self._times.likely
            self._least: Recent[int] = Recent(_KEPT, lambda cycles: 1)

    @abc.abstractmethod
    def _close_link(self) -> None:
        """Give back what the link goes over."""

    def _forget_link(self) -> None:
        """Drop what is on its way after an error."""

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the link says into the device's own error."""
        try:
            yield
        except LinkError as error:
            raise DeviceError(f"device {self.spec!r}: {error}") from error
        except OSError as error:
            raise DeviceError(
                f"device {self.spec!r}: the port failed ({error}): connect the board again and "
                "make a new device"
            ) from error

    def _simulator(self, need: int, purpose: str) -> Any:
        """Return the board; a program uses what lies below ``need``, and blocks that are kept."""
        if need > self._memory_bytes:
            raise ValueError(
                f"{purpose} needs {need:,} bytes of memory: the board has {self._memory_bytes:,}; "
                "make it smaller, or the gateware's memory larger"
            )
        self._used = [range(need)]
        if self._board is None:
            # The link failed: whatever was there may be gone.
            self._residents.clear()
            with self._told():
                self._forget_link()
                board = BoardMachine(self._link, self.config)
            if board.greeting != self.greeting:
                raise DeviceError(
                    f"device {self.spec!r}: another board is there now, {board.greeting} "
                    f"instead of {self.greeting}: make a new device"
                )
            self._board = board
        return self._board

    def compile(self, product: Product, dataflow: str = "auto") -> tuple[CompiledProduct, int]:
        """Return the program for a product, and the cycles it takes; of a bound, the least."""
        compiled, cycles = super().compile(product, dataflow)
        if self.bounded:
            program, key = compiled.program, (product, dataflow)
            cycles = self._least.get(key, lambda: self._cycles(program, 0))
        return compiled, cycles

    def _cycles(self, program: Program, address: int) -> int:
        if self._times is not None:
            return least_cycles(program, self.config, self._times, address)
        return super()._cycles(program, address)

    def _account(self, outcome: Outcome, *, macs: int, **known: Any) -> Run:
        return super()._account(outcome, macs=macs, bound=self.bounded, **known)

    def _room_beside(self, scratch: int, size: int) -> int | None:
        """Return the memory that a program and a block to keep need; None if it is too much."""
        need = super()._room_beside(scratch, size)
        return need if need is not None and need <= self._memory_bytes else None

    def _run(
        self, device: Any, address: int, program: Program, purpose: str
    ) -> tuple[Outcome, float]:
        """Run a program on the board; return how it ended and the host's seconds."""
        began = time.perf_counter()
        named = program.addresses()
        used = self._used + [
            block
            for block in self._residents.blocks()
            if np.searchsorted(named, block.start) < np.searchsorted(named, block.stop)
        ]
        try:
            with self._told():
                outcome = device.run(address, len(program), used, program.written())
        except BaseException:
            self._board = None
            self._residents.clear()
            raise
        self._require_done(outcome, purpose)
        return outcome, time.perf_counter() - began

    def _fits(self, product: Product, dataflow: str) -> bool:
        """Return whether the board can hold a product."""
        least = 2 * product.count * product.rows * product.depth
        if least > self._memory_bytes:
            return False  # not worth a search of mappings
        return self.compile(product, dataflow)[0].memory.end <= self._memory_bytes

    def _cut(self, product: Product, dataflow: str) -> tuple[str, int] | None:
        if self._fits(product, dataflow):
            return None
        found = cut(product, self.config)
        if found is None:
            raise ValueError(
                f"{product}: the board's {self._memory_bytes:,} bytes of memory cannot hold it"
            )
        return found

    def predict(self, product: Product, dataflow: str = "auto") -> int:
        """Return the cycles that the programs for a product take; of a bound, the least."""
        found = self._cut(product, dataflow)
        if found is None:
            return super().predict(product, dataflow)
        return sum(self.predict(half, dataflow) for half in halves(product, *found))

    def _matmul(
        self,
        a: np.ndarray,
        b: RightOperand,
        start: np.ndarray | None,
        dataflow: str,
    ) -> tuple[np.ndarray, Run]:
        found = self._cut(product_of(a, b, start), dataflow)
        if found is None:
            return super()._matmul(a, b, start, dataflow)
        runs: list[Run] = []

        def compute(a: np.ndarray, b: RightOperand, start: np.ndarray | None) -> np.ndarray:
            made, run = self._matmul(a, b, start, dataflow)
            runs.append(run)
            return made

        return in_halves(a, b, start, *found, compute), in_turn(runs)

    def close(self) -> None:
        """Give the link back."""
        super().close()
        self._close_link()
