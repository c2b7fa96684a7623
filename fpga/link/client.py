"""The host's end of the link: requests that arrive intact, or fail loudly."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Protocol

from sat.fpga.link.protocol import (
    MOST_BYTES,
    VERSION,
    FrameReader,
    Greeting,
    LinkStatus,
    Operation,
    Request,
    Response,
    frame,
)

HELLO_TRIES = 3
"""Times that a board is greeted: with the usual patience the word that there is none takes 2 s."""


class LinkError(Exception):
    """The link failed: nothing there, no answer, or a refusal."""


NO_BOARD = "what answers is no SAT board: name another port"


def greeting_of(raw: bytes) -> Greeting:
    """Return what a board says of itself.

    Raises
    ------
    LinkError
        It is no board of this project, or speaks another version of the link.
    """
    greeting = Greeting.decode(raw)
    if greeting is None:
        raise LinkError(NO_BOARD)
    if greeting.version != VERSION:
        raise LinkError(
            f"the board speaks version {greeting.version} of the link, this host {VERSION}: "
            "program the board anew, or use the release that it was made with"
        )
    return greeting


class Port(Protocol):
    """What the link needs of a serial port: pyserial's `serial.Serial` has it."""

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, as many as came within the port's timeout."""

    def write(self, data: bytes) -> int | None:
        """Send bytes."""


class Link:
    """Memory and registers of a board.

    Every request is sent again until its answer comes whole; the board does a write once, however
    often it was sent. After an error the link can be used again: `hello` begins anew.

    Parameters
    ----------
    port : Port
        Open; its ``read`` must return within a fraction of ``patience``.
    patience : float
        Seconds to wait for an answer before a request is sent again; each time twice as long, and
        from the start at least three times as long as the last answer took: a slow link is not
        flooded.
    tries : int
        Times that a request is sent, at least 1.
    clock : callable
        Tells the seconds that ``patience`` is counted in.

    Attributes
    ----------
    gap_words : int
        Words that cost as much as a request.
    sent_again, damaged : int
        Requests that were repeated; frames that came damaged.

    Raises
    ------
    ValueError
        A number breaks its rule.
    """

    gap_words = 4

    def __init__(
        self,
        port: Port,
        *,
        patience: float = 0.25,
        tries: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if tries < 1 or not patience > 0:
            raise ValueError(
                f"patience={patience}, tries={tries}: must be positive, and at least 1; "
                "leave them out"
            )
        self.port, self.patience, self.tries, self.clock = port, patience, tries, clock
        self.sent_again = 0
        self._wait = patience
        self._reader = FrameReader()
        self._sequence = secrets.randbelow(256)

    @property
    def damaged(self) -> int:
        """Frames that came damaged."""
        return self._reader.damaged

    def hello(self) -> Greeting:
        """Find the board and begin anew; return what it says of itself.

        Raises
        ------
        LinkError
            Nothing there answers as a board does.
        """
        nonce = secrets.randbits(32)
        try:
            answer = self._request(Operation.HELLO, nonce, 0, b"", min(self.tries, HELLO_TRIES))
        except LinkError as error:
            raise LinkError(f"no SAT board answers: {error}") from error
        if answer[-4:] != nonce.to_bytes(4, "little"):
            raise LinkError(NO_BOARD)
        return greeting_of(answer[:-4])

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes of memory; address and size are multiples of 4."""
        require_words(address, size)
        parts = []
        for at in range(address, address + size, MOST_BYTES):
            count = min(MOST_BYTES, address + size - at)
            parts.append(self._request(Operation.READ, at, count, b""))
            if len(parts[-1]) != count:
                raise LinkError(f"{len(parts[-1])} bytes came for {count} asked for")
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Write bytes to memory; address and size are multiples of 4."""
        require_words(address, len(data))
        view = memoryview(data)
        for at in range(0, len(data), MOST_BYTES):
            part = bytes(view[at : at + MOST_BYTES])
            self._request(Operation.WRITE, address + at, len(part), part)

    def read_register(self, offset: int) -> int:
        """Return a register."""
        return int.from_bytes(self._request(Operation.READ_REGISTER, offset, 4, b""), "little")

    def write_register(self, offset: int, value: int) -> None:
        """Write a register."""
        self._request(Operation.WRITE_REGISTER, offset, 4, value.to_bytes(4, "little"))

    def _request(
        self, operation: Operation, address: int, count: int, data: bytes, tries: int | None = None
    ) -> bytes:
        tries = tries or self.tries
        self._sequence = (self._sequence + 1) % 256
        request = Request(self._sequence, operation, address, count, data)
        sending = frame(request.encode())
        began = self.clock()
        for attempt in range(tries):
            self.sent_again += attempt > 0
            self.port.write(sending)
            until = self.clock() + self._wait * 2**attempt
            while self.clock() < until:
                for body in self._reader.read(self.port.read(4096)):
                    answer = Response.decode(body)
                    if answer is None or answer.sequence != request.sequence:
                        continue  # to an earlier request, sent twice
                    if answer.operation != operation:
                        continue
                    if answer.status != LinkStatus.DONE:
                        raise LinkError(
                            f"{operation.name} of {count} bytes at {address:#x}: the board says "
                            f"{LinkStatus(answer.status).name}"
                        )
                    self._wait = max(self.patience, 3 * (self.clock() - began))
                    return answer.data
        self._wait = self.patience
        raise LinkError(
            f"{operation.name} at {address:#x}: no answer to {tries} tries: is the board "
            "connected, programmed and of this baud rate?"
        )


def require_words(address: int, size: int) -> None:
    """Raise ValueError unless both are multiples of 4."""
    if address % 4 or size % 4 or address < 0 or size < 0:
        raise ValueError(
            f"address={address}, size={size}: must be multiples of 4, not negative; the link moves "
            "words"
        )
