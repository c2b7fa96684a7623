"""A simulated board behind a pseudo-terminal: to a host it is a serial port like any other."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import tty

from sat.fpga.simulation import SimulatedBoard

_CYCLES = 256
"""Cycles from one look at the terminal to the next: a look costs less than so many of them."""
_IDLE_LOOKS = 1024
"""Looks without a byte either way after which the board's clock rests until one comes."""


class PtyBoard:
    """Serves a simulated board on a pseudo-terminal, in a thread of its own.

    Parameters
    ----------
    board : SimulatedBoard
        Used by this alone until `close`; not closed by it.

    Attributes
    ----------
    port : str
        Path to open as a serial port.
    connected : threading.Event
        Cleared: bytes are lost both ways, as with the cable pulled.
    """

    def __init__(self, board: SimulatedBoard) -> None:
        self.board = board
        self._ours, self._theirs = os.openpty()
        tty.setraw(self._theirs)
        self.port = os.ttyname(self._theirs)
        self.connected = threading.Event()
        self.connected.set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="sat-board", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        quiet = 0
        while not self._stop.is_set():
            # While nobody talks to it the clock may stand still; a host that waits asks again.
            patience = 0.05 if quiet > _IDLE_LOOKS else 0.0
            ready, _, _ = select.select([self._ours], [], [], patience)
            quiet += 1
            if ready:
                with contextlib.suppress(OSError):
                    data = os.read(self._ours, 4096)
                    quiet = 0
                    if self.connected.is_set():
                        self.board.write(data)
            if patience and not ready:
                continue
            self.board.run(_CYCLES)
            said = self.board.take()
            if said:
                quiet = 0
                if self.connected.is_set():
                    with contextlib.suppress(OSError):
                        os.write(self._ours, said)

    def close(self) -> None:
        """Stop serving and remove the terminal."""
        self._stop.set()
        self._thread.join()
        os.close(self._ours)
        os.close(self._theirs)

    def __enter__(self) -> PtyBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
