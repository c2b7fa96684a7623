"""The Verilated device as a library: a memory, registers, and one call that runs a program."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sat.rtl import csr
from sat.rtl.config import SatConfig
from sat.rtl.device import Device
from sat.rtl.isa import Status
from sat.rtl.verilog import emit
from sat.sim.memory import MemoryTiming
from sat.sim.verilator import verilate

DRIVER = Path(__file__).parent / "native" / "device.cpp"

OPTIMISATION = "-O1"
"""Flags for the generated C++: -O2 takes three times as long to compile and runs no faster."""

FAULTS = {"fetch": 0, "read": 1, "write": 2}


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Parameters
    ----------
    status : Status
    error_pc : int
        For an error: number of the instruction that caused it.
    cycles : int
        The device's own count, from start to end.
    beats_read, beats_written : int
        Data beats on the memory port.
    compute_cycles : int
        Cycles in which the array took operands.
    non_finite : int
        Gradients that a STORE found infinite or NaN.
    skipped : int
        UPDATEs that were skipped because of them.
    """

    status: Status
    error_pc: int
    cycles: int
    beats_read: int
    beats_written: int
    compute_cycles: int
    non_finite: int = 0
    skipped: int = 0


def build(config: SatConfig, waves: bool = False, verilog: str | None = None) -> Path:
    """Return the shared library of a device, built if this configuration is new.

    Parameters
    ----------
    waves : bool
        With support for waveforms (slower).
    verilog : str, optional
        Verilog text to build instead of the configuration's own: how tests plant faults.
    """
    return verilate(
        _verilog(config) if verilog is None else verilog,
        "top",
        DRIVER,
        defines={"AXI_DATA_BITS": str(config.axi.data_bits)},
        opt=OPTIMISATION,
        trace=waves,
        name=f"sat_{config.array}",
    )


@functools.lru_cache(maxsize=32)
def _verilog(config: SatConfig) -> str:
    return emit(Device(config))


@functools.lru_cache(maxsize=32)
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    u64, u32, handle = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p
    library.device_new.restype = handle
    library.device_new.argtypes = [u64, u64, u64, u64, ctypes.c_char_p]
    library.device_delete.argtypes = [handle]
    library.device_delete.restype = None
    library.device_memory.restype = ctypes.POINTER(ctypes.c_uint8)
    library.device_memory.argtypes = [handle]
    library.device_write.argtypes = [handle, u32, u32]
    library.device_read.argtypes = [handle, u32, ctypes.POINTER(u32)]
    library.device_run.argtypes = [handle, u64]
    library.device_now.restype = u64
    library.device_now.argtypes = [handle]
    library.device_fail.argtypes = [handle, ctypes.c_int, u64]
    library.device_fail.restype = None
    return library


class DeviceRtl:
    """A simulated device with a memory of its own.

    Parameters
    ----------
    config : SatConfig
    timing : MemoryTiming, optional
        How long its memory takes.
    memory_bytes : int
        Size of the memory, from address 0; also the window of addresses that programs may use.
    waves : path, optional
        Write a waveform (FST) of everything that runs to this file.
    verilog : str, optional
        Verilog text in place of the configuration's own.

    Attributes
    ----------
    memory : ndarray of uint8
        The memory itself, not a copy.

    Raises
    ------
    sat.sim.build.BuildError
        The model cannot be built.
    """

    def __init__(
        self,
        config: SatConfig,
        timing: MemoryTiming | None = None,
        *,
        memory_bytes: int = 1 << 26,
        waves: str | Path | None = None,
        verilog: str | None = None,
    ):
        if not 4096 <= memory_bytes <= 1 << config.axi.address_bits:
            raise ValueError(
                f"memory_bytes={memory_bytes}: must be 4096 to "
                f"2**{config.axi.address_bits} (the device's addresses)"
            )
        self.config = config
        self.timing = timing or MemoryTiming()
        self._lib = _library(build(config, waves is not None, verilog))
        self._handle = self._lib.device_new(
            memory_bytes,
            self.timing.read_latency,
            self.timing.write_latency,
            self.timing.cycles_per_beat,
            None if waves is None else str(waves).encode(),
        )
        raw = self._lib.device_memory(self._handle)
        self.memory = np.ctypeslib.as_array(raw, (memory_bytes,))

    def run(self, address: int, length: int, max_cycles: int = 1 << 40) -> Outcome:
        """Run ``length`` instructions at byte ``address``.

        Raises
        ------
        TimeoutError
            The device did not end within ``max_cycles``; it was reset.
        """
        self.write("PROGRAM_ADDRESS", address)
        self.write("PROGRAM_LENGTH", length)
        self.write("WINDOW_BASE", 0)
        self.write("WINDOW_SIZE", len(self.memory))
        self.write("CONTROL", csr.CONTROL_START)
        if not self._lib.device_run(self._require(), max_cycles):
            self.soft_reset()
            raise TimeoutError(
                f"the program at {address:#x} did not end in {max_cycles} cycles; the device was "
                "reset"
            )
        return Outcome(
            status=Status(self.read("STATUS")),
            error_pc=self.read("ERROR_PC"),
            cycles=self.read("CYCLES"),
            beats_read=self.read("BEATS_READ"),
            beats_written=self.read("BEATS_WRITTEN"),
            compute_cycles=self.read("COMPUTE_CYCLES"),
            non_finite=self.read("NON_FINITE"),
            skipped=self.read("SKIPPED"),
        )

    def soft_reset(self) -> None:
        """Stop whatever runs and make the device ready: what is on its way to memory arrives.

        Raises
        ------
        TimeoutError
            The device does not come to rest.
        """
        self.write("CONTROL", csr.CONTROL_RESET)
        for _ in range(4 * self.config.watchdog_cycles):
            if self.read("STATUS") != Status.RUNNING.value:
                return
        raise TimeoutError("the device does not come to rest after a soft reset; make a new one")

    def fail(self, port: str, nth: int = 0) -> None:
        """Let memory answer the nth burst from now with an error: "fetch", "read" or "write"."""
        self._lib.device_fail(self._require(), FAULTS[port], nth)

    @property
    def simulated_cycles(self) -> int:
        """Cycles simulated so far, in and between programs."""
        return self._lib.device_now(self._require())

    def write(self, name: str, value: int) -> None:
        """Write a register over AXI4-Lite; a 64-bit one in two halves."""
        for register in csr.parts(name):
            part = value >> (32 * register.word) & 0xFFFFFFFF
            response = self._lib.device_write(self._require(), register.offset, part)
            if response != 0:
                raise OSError(f"write of {value:#x} to {name} was answered with {response}")

    def read(self, name: str) -> int:
        """Read a register over AXI4-Lite; a 64-bit one in two halves."""
        value = 0
        for register in csr.parts(name):
            part = ctypes.c_uint32()
            response = self._lib.device_read(self._require(), register.offset, ctypes.byref(part))
            if response != 0:
                raise OSError(f"read of {name} was answered with {response}")
            value |= part.value << (32 * register.word)
        return value

    def close(self) -> None:
        """Free the model and its memory; views of the memory must not be used any more."""
        if self._handle is not None:
            self._lib.device_delete(self._handle)
            self._handle = None

    def _require(self) -> int:
        if self._handle is None:
            raise ValueError("the simulated device is closed; make a new one")
        return self._handle

    def __enter__(self) -> DeviceRtl:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()
