"""A board in simulation, at its pins: the Verilated gateware behind the host's UART."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from amaranth.lib import wiring

from sat.rtl.verilog import emit
from sat.sim.verilator import verilate

DRIVER = Path(__file__).parent / "native" / "board.cpp"


@functools.lru_cache(maxsize=8)
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    handle, u64, pointer = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p
    for name, arguments, result in (
        ("new", [ctypes.c_double, pointer], handle),
        ("delete", [handle], None),
        ("send", [handle, pointer, u64], None),
        ("run", [handle, u64, u64], u64),
        ("hold", [handle, ctypes.c_int, u64], None),
        ("reset", [handle], None),
        ("now", [handle], u64),
        ("framing_errors", [handle], u64),
        ("receive", [handle, pointer, u64], u64),
    ):
        function = getattr(library, f"board_{name}")
        function.argtypes, function.restype = arguments, result
    return library


class SimulatedBoard:
    """A Verilated board, and a UART at its pins.

    It is a port as `sat.fpga.link.client.Link` takes one: what is written goes over the wire bit by
    bit while `read` lets the clock run.

    Parameters
    ----------
    component : wiring.Component or str
        Has ``rx`` and ``tx``, besides clock and reset; or its Verilog.
    cycles_per_bit : float
        Of the host's UART.
    cycles_per_read : int
        Cycles that a `read` waits for bytes, at most.
    waves : str, optional
        File for a waveform (FST).

    Raises
    ------
    sat.sim.build.BuildError
        It cannot be built.
    """

    def __init__(
        self,
        component: wiring.Component | str,
        cycles_per_bit: float,
        *,
        cycles_per_read: int = 20_000,
        waves: str | None = None,
    ) -> None:
        text = component if isinstance(component, str) else emit(component)
        path = verilate(text, "top", DRIVER, opt="-O1", trace=waves is not None, name="board")
        self._library = _library(path)
        self._board = self._library.board_new(cycles_per_bit, (waves or "").encode())
        self.cycles_per_read = cycles_per_read

    def write(self, data: bytes) -> int:
        """Queue bytes for the wire."""
        self._library.board_send(self._board, data, len(data))
        return len(data)

    def read(self, size: int) -> bytes:
        """Run until a byte comes, or in vain; return up to ``size`` bytes."""
        if self._library.board_run(self._board, self.cycles_per_read, 1) == 0:
            return b""
        return self.take(size)

    def take(self, size: int = 1 << 16) -> bytes:
        """Return up to ``size`` bytes that have come already."""
        buffer = ctypes.create_string_buffer(size)
        count = self._library.board_receive(self._board, buffer, size)
        return buffer.raw[:count]

    def run(self, cycles: int) -> None:
        """Let the clock run."""
        self._library.board_run(self._board, cycles, 1 << 62)

    def hold(self, level: int, cycles: int) -> None:
        """Hold the board's ``rx`` at a level."""
        self._library.board_hold(self._board, level, cycles)

    def reset(self) -> None:
        """Press the reset button, and forget what was on its way to the board."""
        self._library.board_reset(self._board)

    @property
    def now(self) -> int:
        """Cycles so far."""
        return int(self._library.board_now(self._board))

    @property
    def framing_errors(self) -> int:
        """Bytes from the board whose start or stop bit was wrong."""
        return int(self._library.board_framing_errors(self._board))

    def close(self) -> None:
        """Free it."""
        if self._board:
            self._library.board_delete(self._board)
            self._board = None
