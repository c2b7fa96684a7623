"""The board's end of the link: takes requests to memory and registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.link.framing import Deframer, Framer
from sat.fpga.link.protocol import (
    BUILD_BYTES,
    HEADER_BYTES,
    MOST_BYTES,
    RESPONSE,
    RESPONSE_HEADER_BYTES,
    Greeting,
    LinkStatus,
    MemoryKind,
    Operation,
)
from sat.fpga.link.uart import UartReceiver, UartTransmitter

_CRC_WORDS = 1


class WordBusSignature(wiring.Signature):
    """Words of 32 bits, read or written one at a time, from the master's side.

    ``request`` and what goes with it stay until ``done``, which comes for one cycle with what was
    read or whether it was refused.
    """

    def __init__(self, address_bits: int) -> None:
        super().__init__(
            {
                "request": Out(1),
                "write": Out(1),
                "register": Out(1),
                "address": Out(address_bits),
                "data": Out(32),
                "done": In(1),
                "refused": In(1),
                "read_data": In(32),
            }
        )


_STATES = ("IDLE", "JUDGE", "FETCH", "WRITE", "PEEK", "HEAD", "WORD", "BYTES", "DRAIN")


@dataclass(frozen=True)
class _Control:
    """What the control of a `LinkServer` is at: its states, counters, and stream to the framer."""

    at: dict[str, Value]
    out: Any
    accepted: Value
    words: Value
    step: Value
    part: Value
    count: Value
    on_register: Value
    writes: Value
    greets: Value


class LinkServer(wiring.Component):
    """Answer requests that come over a UART.

    A request is looked at when its whole frame is there and its CRC fits, so a damaged one changes
    nothing; what comes while one is answered is dropped, and asked for again by the host.

    Parameters
    ----------
    clock_hz, baud : float
        At least 4 cycles a bit.
    memory_bytes : int
        Size of the memory, from address 0; a multiple of 4.
    build : bytes
        `BUILD_BYTES` that it greets with.
    memory : MemoryKind
        What it greets with, too.

    Members
    -------
    rx, tx : ``In(1)``, ``Out(1)``
        The wires; ``rx`` in the clock's domain already.
    bus : ``Out(WordBusSignature(32))``
        Memory, and with ``register`` the registers.
    busy : ``Out(1)``
        A request is answered.
    """

    def __init__(
        self,
        clock_hz: float,
        baud: float,
        memory_bytes: int,
        build: bytes = bytes(BUILD_BYTES),
        memory: MemoryKind = MemoryKind.BLOCK_RAM,
    ) -> None:
        if memory_bytes % 4 or not 4 <= memory_bytes < 1 << 32:
            raise ValueError(
                f"memory_bytes={memory_bytes}: must be a multiple of 4 from 4 to 2**32 - 4"
            )
        self.clock_hz, self.baud, self.memory_bytes = clock_hz, baud, memory_bytes
        self.greeting = Greeting(memory_bytes, build, memory=memory)
        super().__init__(
            {"rx": In(1), "tx": Out(1), "bus": Out(WordBusSignature(32)), "busy": Out(1)}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(self.clock_hz, self.baud)
        m.submodules.transmitter = transmitter = UartTransmitter(self.clock_hz, self.baud)
        m.submodules.deframer = deframer = Deframer()
        m.submodules.framer = framer = Framer()
        wiring.connect(m, framer.o, transmitter.i)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            deframer.valid.eq(receiver.valid),
            deframer.byte.eq(receiver.data),
        ]

        # What comes in: a header, then data and CRC into a buffer of words.
        most_words = MOST_BYTES // 4
        header = Signal(8 * HEADER_BYTES)
        sequence, operation = header[:8], header[8:16]
        address, count = header[16:48], header[48:64]
        place = Signal(range(HEADER_BYTES + MOST_BYTES + 4 * _CRC_WORDS + 1))
        buffer = memory.Memory(shape=32, depth=most_words + _CRC_WORDS, init=[])
        m.submodules.buffer = buffer
        put, get = buffer.write_port(granularity=8), buffer.read_port()
        idle, listening, too_long = Signal(), Signal(), Signal()
        at = Signal(range(4 * (most_words + _CRC_WORDS)))
        m.d.comb += [
            at.eq(place - HEADER_BYTES),
            put.addr.eq(at >> 2),
            put.data.eq(deframer.o_byte.replicate(4)),
        ]
        with m.If(deframer.first):
            m.d.sync += [place.eq(0), too_long.eq(0), listening.eq(idle)]
        with m.Elif(deframer.o_valid & listening):
            with m.If(place < HEADER_BYTES):
                m.d.sync += header.eq(Cat(header[8:], deframer.o_byte))
            with m.Else():
                m.d.comb += put.en.eq(1 << at[:2])
            with m.If(place == HEADER_BYTES + MOST_BYTES + 4 * _CRC_WORDS):
                m.d.sync += too_long.eq(1)
            with m.Else():
                m.d.sync += place.eq(place + 1)
        with m.If(~idle):
            # What began before the answer was out is not whole: the host sends it again.
            m.d.sync += listening.eq(0)
        came = Signal.like(place)  # data bytes of the frame that is looked at
        whole = deframer.good & listening & idle & ~too_long
        enough = place >= HEADER_BYTES + 4 * _CRC_WORDS

        # What the request is, and whether it can be.
        last, known = Signal(8), Signal()
        again = Signal()
        reads = (operation == Operation.READ) | (operation == Operation.READ_REGISTER)
        writes = (operation == Operation.WRITE) | (operation == Operation.WRITE_REGISTER)
        on_register = (operation == Operation.READ_REGISTER) | (
            operation == Operation.WRITE_REGISTER
        )
        status, final = Signal(LinkStatus), Signal(LinkStatus)
        end = Signal(33)
        m.d.comb += end.eq(address + count)
        with m.If(operation > Operation.WRITE_REGISTER):
            m.d.comb += status.eq(LinkStatus.BAD_OPERATION)
        with m.Elif(
            (count[:2] != 0)
            | (count > MOST_BYTES)
            | (came != Mux(writes, count, 0))
            | (on_register & (count != 4))
            | ((operation == Operation.HELLO) & (count != 0))
        ):
            m.d.comb += status.eq(LinkStatus.BAD_COUNT)
        with m.Elif(
            (reads | writes) & ((address[:2] != 0) | (~on_register & (end > self.memory_bytes)))
        ):
            m.d.comb += status.eq(LinkStatus.BAD_ADDRESS)

        # What goes out: a header, then words.
        out = framer.i
        words = Signal(range(most_words + 1))
        step = Signal(range(most_words + 1))
        word, part = Signal(32), Signal(2)
        head = Signal(8 * RESPONSE_HEADER_BYTES)
        says = self.greeting.encode()
        greeting = Const(int.from_bytes(says, "little"), 8 * len(says))
        greeting_words = len(says) // 4
        m.d.comb += [
            head.eq(Cat(sequence, operation | RESPONSE, final, C(0, 16))),
            self.busy.eq(~idle),
            self.bus.register.eq(on_register),
            self.bus.write.eq(writes),
            self.bus.data.eq(get.data),
            get.addr.eq(step),
        ]
        byte_address = Signal(32)
        m.d.comb += self.bus.address.eq(byte_address)

        with m.FSM() as control:
            with m.State("IDLE"):
                m.d.comb += idle.eq(1)
                with m.If(whole & enough):
                    m.d.sync += [
                        came.eq(place - HEADER_BYTES - 4 * _CRC_WORDS),
                        again.eq(known & (sequence == last)),
                        last.eq(sequence),
                        known.eq(1),
                    ]
                    m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.sync += [step.eq(0), part.eq(0), byte_address.eq(address), words.eq(0)]
                # The answer to a request that was carried out already stays what it was.
                with m.If(~(again & writes)):
                    m.d.sync += final.eq(status)
                m.next = "HEAD"
                with m.If(status == LinkStatus.DONE):
                    m.d.sync += words.eq(count >> 2)
                    with m.If(writes):
                        m.d.sync += words.eq(0)
                        with m.If(~again & (count != 0)):
                            m.next = "FETCH"
                    with m.Elif(operation == Operation.HELLO):
                        m.d.sync += words.eq(greeting_words + 1)
                    with m.Elif(on_register):
                        m.next = "PEEK"
            # Writing: a word a time, from the buffer.
            with m.State("FETCH"):
                m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += self.bus.request.eq(1)
                with m.If(self.bus.done):
                    m.d.sync += [step.eq(step + 1), byte_address.eq(byte_address + 4)]
                    m.next = "FETCH"
                    with m.If(self.bus.refused):
                        m.d.sync += final.eq(LinkStatus.BAD_ADDRESS)
                        m.next = "HEAD"
                    with m.Elif(step + 1 == count >> 2):
                        m.next = "HEAD"
            # A register is read before the header says how that went.
            with m.State("PEEK"):
                m.d.comb += self.bus.request.eq(1)
                with m.If(self.bus.done):
                    m.d.sync += word.eq(self.bus.read_data)
                    with m.If(self.bus.refused):
                        m.d.sync += [final.eq(LinkStatus.BAD_ADDRESS), words.eq(0)]
                    m.next = "HEAD"
            with m.State("HEAD"):
                m.d.comb += [
                    out.valid.eq(1),
                    out.p.byte.eq(head.word_select(part, 8)),
                    out.p.last.eq((part == RESPONSE_HEADER_BYTES - 1) & (words == 0)),
                ]
                with m.If(out.ready):
                    m.d.sync += part.eq(part + 1)
                    with m.If(part == RESPONSE_HEADER_BYTES - 1):
                        m.next = "DRAIN"
                        with m.If(words != 0):
                            m.next = "WORD"
                            with m.If(on_register):
                                m.next = "BYTES"
            with m.State("WORD"):
                with m.If(operation == Operation.HELLO):
                    with m.If(step == greeting_words):
                        m.d.sync += word.eq(address)
                    with m.Else():
                        m.d.sync += word.eq(greeting.word_select(step[:4], 32))
                    m.next = "BYTES"
                with m.Else():
                    m.d.comb += self.bus.request.eq(1)
                    with m.If(self.bus.done):
                        m.d.sync += word.eq(self.bus.read_data)
                        m.next = "BYTES"
            with m.State("BYTES"):
                m.d.comb += [
                    out.valid.eq(1),
                    out.p.byte.eq(word.word_select(part, 8)),
                    out.p.last.eq((part == 3) & (step + 1 == words)),
                ]
                with m.If(out.ready):
                    m.d.sync += part.eq(part + 1)
                    with m.If(part == 3):
                        m.d.sync += [step.eq(step + 1), byte_address.eq(byte_address + 4)]
                        m.next = "WORD"
                        with m.If(out.p.last):
                            m.next = "DRAIN"
            # The framer still sends the CRC; a new request may come meanwhile.
            with m.State("DRAIN"):
                m.next = "IDLE"
        # For proofs that none of this can hang.
        self.state = _Control(
            at={name: control.ongoing(name) for name in _STATES},
            out=out, accepted=whole & enough, words=words, step=step, part=part, count=count,
            on_register=on_register, writes=writes, greets=operation == Operation.HELLO,
        )  # fmt: skip
        return m
