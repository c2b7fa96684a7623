"""A board behind a serial port: the same programs, bits and cycles as in simulation."""

from __future__ import annotations

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
from sat.devices.base import make_config
from sat.devices.operand import RightOperand, product_of
from sat.devices.rtl import RtlDevice
from sat.devices.splitting import cut, halves, in_halves
from sat.errors import DeviceError
from sat.fpga.board import BOARD_CONFIG, LINK_BAUD
from sat.fpga.link.client import Link, LinkError
from sat.fpga.machine import BoardMachine
from sat.fpga.memory import BLOCK_RAM_TIMING
from sat.fpga.sdram.memory import WIRES, least_timing, likely_timing
from sat.rtl.config import SatConfig
from sat.rtl.isa import INSTRUCTION_BYTES
from sat.sim.device_rtl import Outcome

_READ_SECONDS = 0.02
"""How long a read of the port waits for a byte."""
_KEPT = 4096
"""Products whose least cycles are kept."""


def least_cycles(program: Program, config: SatConfig, wires: int, address: int = 0) -> int:
    """Return the least cycles that a program takes on a board with SDRAM.

    Those that it takes by `least_timing`, or those in which its words pass the chip's wires,
    whichever are more.

    Parameters
    ----------
    program : Program
    config : SatConfig
    wires : int
        Bits of a column of the SDRAM.
    address : int
        Of the program, in bytes.
    """
    found = predict(program, config, least_timing(config.axi, wires), address)
    moved = (found.beats_read + found.beats_written) * config.axi.beat_bytes
    columns = 8 * (moved + len(program) * INSTRUCTION_BYTES) // wires
    return max(found.cycles, columns)


@contextlib.contextmanager
def _told(port: str) -> Iterator[None]:
    """Turn what the link says into the device's own error."""
    try:
        yield
    except LinkError as error:
        raise DeviceError(f"device 'uart:{port}': {error}") from error
    except OSError as error:
        raise DeviceError(
            f"device 'uart:{port}': the port failed ({error}): connect the board again and make a "
            "new device"
        ) from error


class UartDevice(RtlDevice):
    """Runs products on a board.

    A product that the board's memory cannot hold is computed in parts. Resident operands and
    weights stay on the board. After an error of the link the next product greets the board anew and
    sends what it needs.

    A board says what its memory is. With block RAM, programs take exactly the predicted cycles;
    with SDRAM these are the least that they can take (`Run.bound`).

    Parameters
    ----------
    port : str
        Serial port, such as ``/dev/ttyUSB0``; nobody else may have it open.
    array : str, optional
        ``"RxC"``; together with ``config`` and ``options`` what the board's gateware was made from:
        `sat.fpga.board.BOARD_CONFIG` if not given.
    baud : int
        Of the gateware.
    **options
        Further fields of `SatConfig`.

    Attributes
    ----------
    greeting : Greeting
        What the board says of itself.
    bounded : bool
        Predicted cycles are the least.

    Raises
    ------
    TypeError, ValueError
        If an option breaks its rule.
    DeviceError
        The port cannot be opened, no board answers, or its gateware is of another configuration.
    """

    name = "uart"

    def __init__(
        self,
        port: str,
        array: str | None = None,
        *,
        config: Any = None,
        baud: int = LINK_BAUD,
        **options: Any,
    ) -> None:
        if config is None:
            config = BOARD_CONFIG
        if not isinstance(baud, int) or isinstance(baud, bool) or baud < 1:
            raise ValueError(
                f"baud={baud!r}: must be a positive integer; leave it out for {LINK_BAUD}"
            )
        super().__init__(
            config=make_config(config, array, **options), memory=BLOCK_RAM_TIMING, memory_bytes=4096
        )
        self.port = port
        self._serial = _open(port, baud)
        self._link = Link(_Prompt(self._serial))
        try:
            with _told(port):
                self._board: BoardMachine | None = BoardMachine(self._link, self.config)
        except BaseException:
            self._serial.close()
            raise
        self.greeting = self._board.greeting
        self._memory_bytes = self.greeting.memory_bytes
        self.bounded = self.greeting.memory in WIRES
        if self.bounded:
            self._wires = WIRES[self.greeting.memory]
            self.memory_timing = likely_timing(self.config.axi, self._wires)
            self._least: Recent[int] = Recent(_KEPT, lambda cycles: 1)

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
            with _told(self.port):
                self._serial.reset_input_buffer()
                board = BoardMachine(self._link, self.config)
            if board.greeting != self.greeting:
                raise DeviceError(
                    f"device 'uart:{self.port}': another board is there now, {board.greeting} "
                    f"instead of {self.greeting}: make a new device"
                )
            self._board = board
        return self._board

    def compile(self, product: Product, dataflow: str = "auto") -> tuple[CompiledProduct, int]:
        """Return the program for a product, and the cycles it takes; with SDRAM, at the least."""
        compiled, cycles = super().compile(product, dataflow)
        if self.bounded:
            program, key = compiled.program, (product, dataflow)
            cycles = self._least.get(key, lambda: self._cycles(program, 0))
        return compiled, cycles

    def _cycles(self, program: Program, address: int) -> int:
        if self.bounded:
            return least_cycles(program, self.config, self._wires, address)
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
            with _told(self.port):
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
        """Return the cycles that the programs for a product take; with SDRAM, at the least."""
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
        """Give the port back."""
        super().close()
        self._serial.close()


class _Prompt:
    """A serial port that waits for the first byte only: pyserial waits for all it is asked for."""

    def __init__(self, port: Any) -> None:
        self.port = port

    def write(self, data: bytes) -> int | None:
        written: int | None = self.port.write(data)
        return written

    def read(self, size: int) -> bytes:
        first: bytes = self.port.read(1)
        return first + self.port.read(min(size - 1, self.port.in_waiting)) if first else first


def _open(port: str, baud: int) -> Any:
    """Return an open port that nobody else has."""
    try:
        import serial
    except ImportError as error:
        raise DeviceError(
            f"device 'uart:{port}' needs pyserial: pip install 'sat[fpga]'"
        ) from error
    try:
        made = serial.Serial(port, baud, timeout=_READ_SECONDS, exclusive=True)
        # USB bridges keep short answers back for up to 16 ms, unless told not to; what is no bridge
        # cannot be told.
        with contextlib.suppress(AttributeError, NotImplementedError, OSError, ValueError):
            made.set_low_latency_mode(True)
        return made
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"device 'uart:{port}': the port cannot be opened ({error}): connect the board, close "
            "other programs that use it, or name another port"
        ) from error
