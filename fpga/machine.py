"""A board as the host uses it: an image of its memory, and programs that run on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from sat.fpga.board import build_of
from sat.fpga.link.client import LinkError
from sat.fpga.link.protocol import Greeting
from sat.rtl import csr
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.sim.device_rtl import Outcome


class BoardLink(Protocol):
    """What a host needs of a link to a board; every method raises `LinkError` when it fails.

    Attributes
    ----------
    gap_words : int
        Words between two changes that are sent along: a request of their own would cost more.
    """

    gap_words: int

    def hello(self) -> Greeting:
        """Return what the board says of itself."""

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes of memory; address and size are multiples of 4."""

    def write(self, address: int, data: bytes) -> None:
        """Write bytes to memory; address and size are multiples of 4."""

    def read_register(self, offset: int) -> int:
        """Return a register."""

    def write_register(self, offset: int, value: int) -> None:
        """Write a register."""


class BoardMachine:
    """A device behind a link.

    `memory` is the host's image of the board's memory. Before a program runs, what it uses is sent
    as far as it changed since it was sent last; afterwards what it wrote is fetched.

    Parameters
    ----------
    link : BoardLink
    config : SatConfig
        Of the board's gateware.
    clock : callable
        Tells seconds, for ``limit_seconds``.

    Attributes
    ----------
    greeting : Greeting
        What the board says of itself.
    memory : ndarray of uint8
    bytes_sent, bytes_fetched : int
        Of memory, so far.

    Raises
    ------
    LinkError
        No board answers, or its gateware is of another configuration.
    """

    def __init__(
        self, link: BoardLink, config: SatConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.link, self.config, self.clock = link, config, clock
        self.bytes_sent = self.bytes_fetched = 0
        self.greeting = greeting = link.hello()
        if greeting.build != build_of(config):
            raise LinkError(
                f"the board's gateware {greeting.build.hex()} is of another configuration than "
                f"this host's {build_of(config).hex()} (array {config.array}): name the "
                "configuration that it was made from, or program the board anew"
            )
        if link.read_register(csr.REGISTERS["ID"].offset) != csr.ID_VALUE:
            raise LinkError("the board's link answers, but its device does not: reset the board")
        # Of a large memory the host holds no more pages than are used.
        self.memory = np.zeros(greeting.memory_bytes, np.uint8)
        self._there = np.zeros(greeting.memory_bytes, np.uint8)
        self._known = np.zeros(len(self.memory) // 4, bool)  # words that are there as in _there
        self.soft_reset()

    def run(
        self,
        address: int,
        length: int,
        used: Iterable[range],
        written: Iterable[range],
        *,
        limit_seconds: float = 60.0,
    ) -> Outcome:
        """Run ``length`` instructions at byte ``address``.

        Parameters
        ----------
        used : iterable of range
            Byte addresses of the program and of all that it may read; what is not there yet, or has
            changed in `memory`, is sent.
        written : iterable of range
            Byte addresses of all that the program may write; `memory` has it afterwards.
        limit_seconds : float

        Raises
        ------
        TimeoutError
            The device did not end in time; it was reset.
        LinkError
            The link failed; the next run sends everything again.
        """
        try:
            self._send(used)
            self._write("PROGRAM_ADDRESS", address)
            self._write("PROGRAM_LENGTH", length)
            self._write("WINDOW_BASE", 0)
            self._write("WINDOW_SIZE", len(self.memory))
            self._write("CONTROL", csr.CONTROL_START)
            until = self.clock() + limit_seconds
            while (status := Status(self._read("STATUS"))) is Status.RUNNING:
                if self.clock() > until:
                    self.soft_reset()
                    raise TimeoutError(
                        f"the program at {address:#x} did not end in {limit_seconds} s; the "
                        "device was reset"
                    )
            for span in written:
                self._fetch(span)
            names = ("CYCLES", "BEATS_READ", "BEATS_WRITTEN", "COMPUTE_CYCLES")
            counted = {name.lower(): self._read(name) for name in names}
            return Outcome(
                status=status,
                error_pc=self._read("ERROR_PC"),
                non_finite=self._read("NON_FINITE"),
                skipped=self._read("SKIPPED"),
                **counted,
            )
        except (LinkError, TimeoutError):
            # Whatever arrived: nothing is sure to be there.
            self._known[:] = False
            raise

    def soft_reset(self) -> None:
        """Stop whatever runs.

        Raises
        ------
        LinkError
            The link failed.
        """
        self._write("CONTROL", csr.CONTROL_RESET)

    def _send(self, used: Iterable[range]) -> None:
        """Send the words that are not there as the image has them."""
        words, there = self.memory.view(np.uint32), self._there.view(np.uint32)
        for span in _joined(used):
            part = slice(span.start, span.stop)
            changed = np.flatnonzero((words[part] != there[part]) | ~self._known[part])
            if not len(changed):
                continue
            cuts = np.flatnonzero(np.diff(changed) > self.link.gap_words)
            firsts = span.start + changed[np.concatenate([[0], cuts + 1])]
            lasts = span.start + changed[np.concatenate([cuts, [len(changed) - 1]])]
            for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
                piece = slice(4 * first, 4 * (last + 1))
                self.link.write(piece.start, self.memory[piece].tobytes())
                self.bytes_sent += piece.stop - piece.start
                self._there[piece] = self.memory[piece]
                self._known[first : last + 1] = True

    def _fetch(self, span: range) -> None:
        first, last = span.start // 4 * 4, -(-span.stop // 4) * 4
        raw = np.frombuffer(self.link.read(first, last - first), np.uint8)
        self.memory[first:last] = self._there[first:last] = raw
        self._known[first // 4 : last // 4] = True
        self.bytes_fetched += last - first

    def _write(self, name: str, value: int) -> None:
        for register in csr.parts(name):
            part = value >> (32 * register.word) & 0xFFFFFFFF
            self.link.write_register(register.offset, part)

    def _read(self, name: str) -> int:
        return sum(
            self.link.read_register(register.offset) << (32 * register.word)
            for register in csr.parts(name)
        )


def _joined(spans: Iterable[range]) -> Iterator[range]:
    """Yield the words that spans of bytes cover, ascending, none twice."""
    first = end = 0
    for span in sorted((span for span in spans if span), key=lambda span: span.start):
        start, stop = span.start // 4, -(-span.stop // 4)
        if start > end:
            if end > first:
                yield range(first, end)
            first = start
        end = max(end, stop)
    if end > first:
        yield range(first, end)
