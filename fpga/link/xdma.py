"""The host's end of a card: the files of AMD's XDMA driver.

The kernel module ``xdma`` of AMD's ``dma_ip_drivers`` gives card N three files: what is written to
``/dev/xdmaN_h2c_0`` goes to the card's memory, the file's offset being the address there; what is
read from ``/dev/xdmaN_c2h_0`` comes from it; ``/dev/xdmaN_user`` is the bus of its registers, 32
bits at a time. What it says when a card no longer answers is PCIe's: all ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Protocol

from sat.fpga.card import GREETING_OFFSET
from sat.fpga.link.client import LinkError, greeting_of, require_words
from sat.fpga.link.protocol import IDENTITY, Greeting

TO_CARD, FROM_CARD, REGISTERS = "h2c_0", "c2h_0", "user"
MOST_BYTES = 1 << 26
"""Bytes of one call: the kernel moves no more than 2 GiB less a page in one, and says so."""
_DEAD = 0xFFFFFFFF
_DRIVER = "load the xdma driver of AMD's dma_ip_drivers"


class Files(Protocol):
    """What the link needs of the driver: `CardFiles` has it."""

    def read(self, name: str, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes of a file from ``offset`` on."""

    def write(self, name: str, data: bytes | memoryview, offset: int) -> int:
        """Write to a file at ``offset``; return how many bytes went."""

    def close(self) -> None:
        """Give the files back."""


class CardFiles:
    """The driver's files of a card, for this process alone.

    Parameters
    ----------
    number : int
        Of the card, as the driver counts them.
    folder : str
        Where the files are.

    Raises
    ------
    LinkError
        There is no such card, or no driver; somebody else has it; this user may not use it.
    """

    def __init__(self, number: int, folder: str = "/dev") -> None:
        self._files: dict[str, int] = {}
        try:
            for name, how in (
                (REGISTERS, os.O_RDWR),
                (TO_CARD, os.O_WRONLY),
                (FROM_CARD, os.O_RDONLY),
            ):
                path = Path(folder, f"xdma{number}_{name}")
                try:
                    self._files[name] = os.open(path, how | os.O_CLOEXEC)
                except FileNotFoundError:
                    raise LinkError(_missing(path)) from None
                except PermissionError as error:
                    raise LinkError(
                        f"{path}: {error.strerror}: run as a user who may use the card, or let a "
                        "udev rule give its files to yours"
                    ) from error
                except OSError as error:
                    raise LinkError(
                        f"{path}: {error.strerror}: is the card still there? `lspci -d 10ee:` "
                        "lists it; after programming it the host must start anew"
                    ) from error
            try:
                fcntl.flock(self._files[REGISTERS], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LinkError(
                    f"{Path(folder, f'xdma{number}_{REGISTERS}')}: another program uses the card: "
                    "end it, or name another card"
                ) from None
        except BaseException:
            self.close()
            raise

    def read(self, name: str, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes of a file from ``offset`` on."""
        return os.pread(self._files[name], size, offset)

    def write(self, name: str, data: bytes | memoryview, offset: int) -> int:
        """Write to a file at ``offset``; return how many bytes went."""
        return os.pwrite(self._files[name], data, offset)

    def close(self) -> None:
        """Give the files back."""
        while self._files:
            with contextlib.suppress(OSError):
                os.close(self._files.popitem()[1])


def cards(folder: str = "/dev") -> list[str]:
    """Return the files of the cards that the driver has found."""
    return sorted(str(path) for path in Path(folder).glob(f"xdma*_{REGISTERS}"))


def _missing(path: Path) -> str:
    others = cards(str(path.parent))
    if others:
        return f"{path}: there is no such file: name a card that is there ({', '.join(others)})"
    return f"{path}: there is no such file, and none of another card: {_DRIVER}"


class XdmaLink:
    """Memory and registers of a card.

    Parameters
    ----------
    files : Files
        Open, and closed by whoever opened them.

    Attributes
    ----------
    gap_words : int
        Words that cost as much as a transfer: some ten microseconds at some GB/s.

    Raises
    ------
    LinkError
        From any method: the card does not answer, or a transfer stopped.
    """

    gap_words = 1 << 15

    def __init__(self, files: Files) -> None:
        self.files = files

    def hello(self) -> Greeting:
        """Return what the card says of itself.

        Raises
        ------
        LinkError
            What is there is no card of this project, or does not answer.
        """
        size = len(Greeting(0, bytes(8)).encode())
        words = [self.read_register(GREETING_OFFSET + at) for at in range(0, size, 4)]
        raw = b"".join(word.to_bytes(4, "little") for word in words)
        if all(word == _DEAD for word in words):
            raise LinkError(
                "the card does not answer (all ones): its bitstream is no card of SAT's, or PCIe "
                "has lost it: program it, then start the host anew"
            )
        if not raw.startswith(IDENTITY):
            raise LinkError(
                f"the card says {raw[: len(IDENTITY)]!r} and not {IDENTITY!r}: its bitstream is no "
                "card of SAT's: program it, or name another card"
            )
        return greeting_of(raw)

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes of memory; address and size are multiples of 4."""
        require_words(address, size)
        parts, left = [], size
        while left:
            at = address + size - left
            part = self.files.read(FROM_CARD, min(left, MOST_BYTES), at)
            if not part:
                raise LinkError(
                    f"of {size} bytes of the card's memory at {address:#x}, {size - left} came: "
                    "the transfer stopped"
                )
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Write bytes to memory; address and size are multiples of 4."""
        require_words(address, len(data))
        view, done = memoryview(data), 0
        while done < len(data):
            went = self.files.write(TO_CARD, view[done : done + MOST_BYTES], address + done)
            if went < 1:
                raise LinkError(
                    f"of {len(data)} bytes for the card's memory at {address:#x}, {done} went: "
                    "the transfer stopped"
                )
            done += went

    def read_register(self, offset: int) -> int:
        """Return a register."""
        raw = self.files.read(REGISTERS, 4, offset)
        if len(raw) != 4:
            raise LinkError(f"register {offset:#x}: {len(raw)} bytes came instead of 4")
        return int.from_bytes(raw, "little")

    def write_register(self, offset: int, value: int) -> None:
        """Write a register."""
        went = self.files.write(REGISTERS, value.to_bytes(4, "little"), offset)
        if went != 4:
            raise LinkError(f"register {offset:#x}: {went} bytes went instead of 4")
