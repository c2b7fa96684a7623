"""A board behind a serial port."""

from __future__ import annotations

import contextlib
from typing import Any

from sat.devices.base import make_config
from sat.devices.board import BoardDevice
from sat.errors import DeviceError
from sat.fpga.board import BOARD_CONFIG, LINK_BAUD
from sat.fpga.link.client import Link

_READ_SECONDS = 0.02
"""How long a read of the port waits for a byte."""


class UartDevice(BoardDevice):
    """Runs products on a board behind a serial port.

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
        if not isinstance(baud, int) or isinstance(baud, bool) or baud < 1:
            raise ValueError(
                f"baud={baud!r}: must be a positive integer; leave it out for {LINK_BAUD}"
            )
        made = make_config(BOARD_CONFIG if config is None else config, array, **options)
        self.port = port
        self._serial = _open(port, baud)
        super().__init__(f"uart:{port}", Link(_Prompt(self._serial)), made)

    def _forget_link(self) -> None:
        self._serial.reset_input_buffer()

    def _close_link(self) -> None:
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
