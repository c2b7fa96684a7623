"""What passes over the link: frames of requests and responses, stated once for both ends.

A frame is ``FLAG body crc FLAG``: the CRC-32 (ISO-HDLC, little-endian) is over the body; a byte of
body or CRC that equals FLAG or ESCAPE goes as ESCAPE and itself with bit 5 turned (as in HDLC, RFC
1662 section 4). So a FLAG is always the edge of a frame, and after noise, lost bytes or a pulled
cable the next frame is read right. Two FLAGs in a row are nothing.

=========  =======================================================================
request    sequence (1), operation (1), address (4), count (2), data (count bytes
           if it writes); all little-endian
response   sequence (1), operation + 0x80 (1), status (1), 0 (1), data
=========  =======================================================================

One request is under way at a time. The host numbers them; a request of the same number as the one
before is that one again (its response was lost): what writes is then answered, not done twice.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from amaranth.lib.crc.catalog import CRC32_ISO_HDLC

FLAG, ESCAPE, TURN = 0x7E, 0x7D, 0x20
CRC = CRC32_ISO_HDLC(data_width=8)
CRC_BYTES = 4
HEADER_BYTES = 8
RESPONSE_HEADER_BYTES = 4
MOST_BYTES = 1024
"""Data bytes in a frame, at most; a multiple of 4."""

RESPONSE = 0x80
VERSION = 1
IDENTITY = b"SAT link"
"""First bytes of what HELLO answers."""
BUILD_BYTES = 8
"""Bytes that tell one gateware from another: the first of the configuration's digest."""


class Operation(enum.IntEnum):
    """What a request asks for."""

    HELLO = 0
    """Begin anew; answers a `Greeting` and the request's address field, a nonce."""
    READ = 1
    """``count`` bytes of memory."""
    WRITE = 2
    """Write them."""
    READ_REGISTER = 3
    """A register: 4 bytes."""
    WRITE_REGISTER = 4
    """Write it."""


class LinkStatus(enum.IntEnum):
    """How a request went."""

    DONE = 0
    BAD_OPERATION = 1
    """There is no such operation."""
    BAD_COUNT = 2
    """Bytes that are no multiple of 4, too many, or not as many as came."""
    BAD_ADDRESS = 3
    """No multiple of 4, or not all inside memory; a register that the device refuses."""


class MemoryKind(enum.IntEnum):
    """What a board's memory is made of."""

    BLOCK_RAM = 0
    SDRAM = 1
    """16 bits wide."""
    SDRAM_32 = 2
    """32 bits wide."""
    DDR4 = 3


@dataclass(frozen=True)
class Greeting:
    """What a board says of itself.

    Parameters
    ----------
    memory_bytes : int
    build : bytes
        `BUILD_BYTES` of the digest of its configuration.
    version : int
        Of this protocol.
    memory : MemoryKind
    """

    memory_bytes: int
    build: bytes
    version: int = VERSION
    memory: MemoryKind = MemoryKind.BLOCK_RAM

    def encode(self) -> bytes:
        """Return its bytes: identity, build, memory, version, its kind, two zeros; whole words."""
        assert len(self.build) == BUILD_BYTES
        rest = struct.pack("<IBB2x", self.memory_bytes, self.version, self.memory)
        return IDENTITY + self.build + rest

    @classmethod
    def decode(cls, raw: bytes) -> Greeting | None:
        """Return the greeting that some bytes are; None if they are none."""
        if len(raw) != len(IDENTITY) + BUILD_BYTES + 8 or not raw.startswith(IDENTITY):
            return None
        build, rest = raw[len(IDENTITY) :][:BUILD_BYTES], raw[len(IDENTITY) + BUILD_BYTES :]
        memory_bytes, version, kind = struct.unpack("<IBB2x", rest)
        if kind not in set(MemoryKind):
            return None
        return cls(memory_bytes, build, version, MemoryKind(kind))


@dataclass(frozen=True)
class Request:
    """A request, as in the module's table."""

    sequence: int
    operation: int
    address: int = 0
    count: int = 0
    data: bytes = b""

    def encode(self) -> bytes:
        """Return the body of its frame."""
        head = struct.pack("<BBIH", self.sequence, self.operation, self.address, self.count)
        return head + self.data


@dataclass(frozen=True)
class Response:
    """A response, as in the module's table."""

    sequence: int
    operation: int
    status: int
    data: bytes = b""

    def encode(self) -> bytes:
        """Return the body of its frame."""
        head = struct.pack("<BBBB", self.sequence, self.operation | RESPONSE, self.status, 0)
        return head + self.data

    @classmethod
    def decode(cls, body: bytes) -> Response | None:
        """Return the response that a body holds; None if it is none."""
        if len(body) < RESPONSE_HEADER_BYTES or not body[1] & RESPONSE or body[3]:
            return None
        return cls(body[0], body[1] & ~RESPONSE, body[2], body[4:])


def frame(body: bytes) -> bytes:
    """Return the bytes of a frame, flags included."""
    whole = body + CRC.compute(body).to_bytes(CRC_BYTES, "little")
    out = bytearray([FLAG])
    for byte in whole:
        out += bytes([ESCAPE, byte ^ TURN]) if byte in (FLAG, ESCAPE) else bytes([byte])
    out.append(FLAG)
    return bytes(out)


class FrameReader:
    """Takes bytes as they come to the bodies of whole frames; drops what is damaged.

    Attributes
    ----------
    damaged : int
        Frames whose CRC was wrong, or that ended in an escape.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self._body = bytearray()
        self._escaped = self._inside = False

    def read(self, received: Iterable[int]) -> Iterator[bytes]:
        """Yield the bodies of the frames that end in these bytes."""
        for byte in received:
            if byte == FLAG:
                body, whole = bytes(self._body), not self._escaped
                self._body.clear()
                self._escaped, began = False, self._inside
                self._inside = True
                if not began or not body:
                    continue
                data, crc = body[:-CRC_BYTES], body[-CRC_BYTES:]
                if (
                    whole
                    and len(body) > CRC_BYTES
                    and CRC.compute(data) == int.from_bytes(crc, "little")
                ):
                    yield data
                else:
                    self.damaged += 1
            elif not self._inside or len(self._body) > 2 * MOST_BYTES:
                # Noise before any frame, or a FLAG that was lost: wait for the next.
                self._inside = False
            elif byte == ESCAPE and not self._escaped:
                self._escaped = True
            else:
                self._body.append(byte ^ TURN if self._escaped else byte)
                self._escaped = False
