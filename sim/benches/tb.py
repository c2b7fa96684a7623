"""The bench around the device's real ports: AXI memories that pause and fail, and a host."""

from __future__ import annotations

import random
from collections.abc import Iterator

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import (
    AxiBus,
    AxiLiteBus,
    AxiLiteMaster,
    AxiRamRead,
    AxiRamWrite,
    AxiReadBus,
    AxiResp,
)

from sat.rtl import csr
from sat.rtl.isa import Status

TIMEOUT_CYCLES = 200_000
CLOCK_NS = 10


class FaultyRead(AxiRamRead):
    """A memory read port that answers chosen reads with an error."""

    fail_at: int | None = None
    """Number of the read that fails, counted from 0."""
    accesses: int = 0
    """Reads until now."""

    async def _read(self, address, length):
        failing, self.fail_at = self.fail_at == 0, _less(self.fail_at)
        self.accesses += 1
        if failing or address + length > self.size:
            raise OSError(f"read of {length} bytes at {address:#x} fails by plan")
        return await super()._read(address, length)


class FaultyWrite(AxiRamWrite):
    """A memory write port that answers chosen writes with an error."""

    fail_at: int | None = None
    accesses: int = 0

    async def _write(self, address, data):
        failing, self.fail_at = self.fail_at == 0, _less(self.fail_at)
        self.accesses += 1
        if failing or address + len(data) > self.size:
            raise OSError(f"write of {len(data)} bytes at {address:#x} fails by plan")
        await super()._write(address, data)


def _less(count: int | None) -> int | None:
    return None if count is None else count - 1


def pauses(rng: random.Random, chance: float) -> Iterator[bool]:
    """Yield, cycle after cycle, whether a channel pauses."""
    while True:
        yield rng.random() < chance


class DeviceBench:
    """The device, its clock, memories behind its AXI ports and a host at the registers.

    Data ports share a memory with instructions if there is one, else each has its own, which
    holds its stripe of every beat (`sat.rtl.stripes`).

    Parameters
    ----------
    dut
        The simulated top.
    size : int
        Bytes of memory.
    rng : random.Random
    """

    def __init__(self, dut, size: int, rng: random.Random):
        self.dut, self.rng = dut, rng
        Clock(dut.clk, CLOCK_NS, unit="ns").start()
        self.instructions = FaultyRead(
            AxiReadBus.from_prefix(dut, "imem_"), dut.clk, dut.rst, size=size
        )
        names = [f"dmem{n}" for n in ("", 0, 1, 2, 3) if hasattr(dut, f"dmem{n}__araddr")]
        self.reads, self.writes = [], []
        for name in names:
            data = AxiBus.from_prefix(dut, f"{name}_")
            own = {"mem": self.instructions.mem} if len(names) == 1 else {}
            read = FaultyRead(data.read, dut.clk, dut.rst, size=size // len(names), **own)
            self.reads.append(read)
            self.writes.append(
                FaultyWrite(data.write, dut.clk, dut.rst, size=read.size, mem=read.mem)
            )
        self.host = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "csr_"), dut.clk, dut.rst)
        self.size = size

    async def reset(self) -> None:
        """Reset the device and everything around it."""
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 4)
        self.dut.rst.value = 0
        await RisingEdge(self.dut.clk)

    def back_pressure(self, chance: float) -> None:
        """Make every channel of every port pause in this share of the cycles."""
        if chance == 0:
            return
        for port in (self.instructions, *self.reads):
            port.ar_channel.set_pause_generator(pauses(self.rng, chance))
            port.r_channel.set_pause_generator(pauses(self.rng, chance))
        for port in self.writes:
            for channel in (port.aw_channel, port.w_channel, port.b_channel):
                channel.set_pause_generator(pauses(self.rng, chance))

    def load(self, image: np.ndarray) -> None:
        """Put ``image`` into memory from address 0."""
        self.instructions.write(0, image.tobytes())
        stripe = self.reads[0].byte_lanes
        whole = np.zeros(-(-len(image) // (stripe * len(self.reads))) * stripe * len(self.reads))
        whole = whole.astype(np.uint8)
        whole[: len(image)] = image
        stripes = whole.reshape(-1, len(self.reads), stripe)
        for number, port in enumerate(self.reads):
            port.write(0, stripes[:, number].tobytes())

    def image(self, size: int) -> np.ndarray:
        """Return the first ``size`` bytes of memory."""
        stripe = self.reads[0].byte_lanes
        beats = -(-size // (stripe * len(self.reads)))
        stripes = [
            np.frombuffer(port.read(0, beats * stripe), np.uint8).reshape(beats, stripe)
            for port in self.reads
        ]
        return np.stack(stripes, axis=1).reshape(-1)[:size]

    async def write(self, name: str, value: int) -> None:
        """Write a register, which must accept it."""
        resp = await self.host.write(csr.REGISTERS[name].offset, value.to_bytes(4, "little"))
        assert resp.resp == AxiResp.OKAY, f"{name}: {resp.resp.name}"

    async def read(self, name: str) -> int:
        """Read a register."""
        resp = await self.host.read(csr.REGISTERS[name].offset, 4)
        assert resp.resp == AxiResp.OKAY, f"{name}: {resp.resp.name}"
        return int.from_bytes(resp.data, "little")

    async def run(self, address: int, length: int) -> tuple[Status, int]:
        """Run a program; return the status it ends with and the error's instruction."""
        await self.write("PROGRAM_ADDRESS_LO", address)
        await self.write("PROGRAM_ADDRESS_HI", 0)
        await self.write("PROGRAM_LENGTH", length)
        await self.write("WINDOW_BASE_LO", 0)
        await self.write("WINDOW_BASE_HI", 0)
        await self.write("WINDOW_SIZE_LO", self.size & 0xFFFFFFFF)
        await self.write("WINDOW_SIZE_HI", self.size >> 32)
        await self.write("CONTROL", 1)
        for _ in range(TIMEOUT_CYCLES // 50):
            await ClockCycles(self.dut.clk, 50)
            status = Status(await self.read("STATUS") & 0xFF)
            if status not in (Status.IDLE, Status.RUNNING):
                return status, await self.read("ERROR_PC")
        raise AssertionError(f"no end after {TIMEOUT_CYCLES} cycles")


def seeded() -> random.Random:
    """Return the bench's random numbers, from cocotb's seed."""
    return random.Random(cocotb.RANDOM_SEED)
