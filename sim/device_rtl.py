"""The simulated device as a library: a memory, registers, and one call that runs a program."""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from weakref import WeakSet

import numpy as np

from sat.errors import DeviceClosedError, DeviceError
from sat.rtl import csr
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.sim.engines import Design, build, choose
from sat.sim.memory import MemoryTiming
from sat.sim.threads import Turn, check_stop, unless_exiting

FAULTS = {"fetch": 0, "read": 1, "write": 2}

SLICE_SECONDS = 0.05
"""How long the native loop runs before it comes back: signals and requests to stop wait so long."""


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


@functools.lru_cache(maxsize=32)
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    u64, u32, handle = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p
    library.device_new.restype = handle
    library.device_new.argtypes = [handle, u64, u64, u64, u64, ctypes.c_int]
    library.device_delete.argtypes = [handle]
    library.device_delete.restype = None
    library.device_memory.argtypes = [handle, handle, u64]
    library.device_memory.restype = None
    library.device_waves.argtypes = [handle, ctypes.c_int]
    library.device_write.argtypes = [handle, u32, u32]
    library.device_read.argtypes = [handle, u32, ctypes.POINTER(u32)]
    library.device_run.argtypes = [handle, u64, ctypes.c_double]
    library.device_now.restype = u64
    library.device_now.argtypes = [handle]
    library.device_boundary.restype = u64
    library.device_boundary.argtypes = [handle, ctypes.POINTER(ctypes.POINTER(ctypes.c_uint32))]
    library.device_fail.argtypes = [handle, ctypes.c_int, u64]
    library.device_fail.restype = None
    return library


def check_memory_bytes(memory_bytes: object, config: SatConfig) -> int:
    """Return the size of a device's memory, or raise unless it is one.

    Raises
    ------
    TypeError
        If it is no int.
    ValueError
        If it is below 4096, or above what the device's addresses reach.
    """
    bits = config.axi.address_bits
    if not isinstance(memory_bytes, int) or isinstance(memory_bytes, bool):
        raise TypeError(
            f"memory_bytes={memory_bytes!r} is a {type(memory_bytes).__name__}: must be an int, "
            "such as 64 << 20"
        )
    if not 4096 <= memory_bytes <= 1 << bits:
        raise ValueError(
            f"memory_bytes={memory_bytes}: must be 4096 to 2**{bits}, as far as the device's "
            "addresses reach; choose such a size"
        )
    return memory_bytes


def _zeros(size: int) -> np.ndarray:
    try:
        return np.zeros(size, np.uint8)
    except (MemoryError, ValueError) as error:
        raise DeviceError(
            f"a device memory of {size} bytes: this machine cannot hold it; give less"
        ) from error


class WaveFile:
    """The file of a waveform, open for one device.

    Parameters
    ----------
    path : path
        Made if it does not exist; emptied if it does.

    Raises
    ------
    TypeError
        If it is no path.
    DeviceError
        If it cannot be written, or another device writes it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.fd = -1
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"waves={path!r}: must be the path of a file, such as 'waves.fst'")
        self.path = os.fspath(path)
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A full disk is to show before the work.
            os.pwrite(self.fd, bytes(4096), 0)
            os.ftruncate(self.fd, 0)
        except (OSError, ValueError) as error:
            self.close()
            if isinstance(error, BlockingIOError):
                raise DeviceError(
                    f"waveform {self.path!r}: another device writes it; give each a file of its own"
                ) from error
            raise DeviceError(_cannot_write(self.path, error)) from error

    def check(self, error: int) -> None:
        """Raise if writing has ended with an ``errno``."""
        if error:
            raise DeviceError(
                f"{_cannot_write(self.path, OSError(error, os.strerror(error)))}; "
                "the waveform is not complete"
            )

    def close(self) -> None:
        """Close the file. May be called twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _cannot_write(path: str, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"waveform {path!r}: cannot be written ({reason}); give a file that can"


def _named(offset: int) -> str:
    names = {register.offset: name for name, register in csr.REGISTERS.items()}
    return names.get(offset, f"offset {offset:#x}")


class DeviceRtl:
    """A simulated device with a memory of its own.

    Threads take turns at it. A program that does not run to its end (Ctrl-C, `close` in another
    thread) leaves the device ready for the next one.

    Parameters
    ----------
    config : SatConfig
    timing : MemoryTiming, optional
        How long its memory takes.
    memory_bytes : int
        Size of the memory, from address 0; also the window of addresses that programs may use.
    waves : path or WaveFile, optional
        Write a waveform (FST) of everything that runs to this file. It is complete after `close`.
    engine : str
        How it is simulated, one of `sat.sim.engines.ENGINES`.
    design : Design, optional
        In place of the configuration's own: how tests plant faults.

    Attributes
    ----------
    engine : str
        ``"verilator"`` or ``"simd"``.

    Raises
    ------
    TypeError, ValueError
        If ``memory_bytes`` is no size of a memory, or there is no such engine.
    DeviceError
        If the memory or the waveform's file cannot be had.
    sat.sim.build.BuildError
        The model cannot be built.
    """

    def __init__(
        self,
        config: SatConfig,
        timing: MemoryTiming | None = None,
        *,
        memory_bytes: int = 1 << 26,
        waves: str | Path | WaveFile | None = None,
        engine: str = "verilator",
        design: Design | None = None,
    ):
        self._handle: int | None = None
        self._closing = False
        self._running = False  # a program was started and has not been seen to end
        self.config = config
        self.timing = timing or MemoryTiming()
        self.engine = choose(engine, config, waves is not None)
        self._memory = _zeros(check_memory_bytes(memory_bytes, config))
        file = waves if waves is None or isinstance(waves, WaveFile) else WaveFile(waves)
        self._waves: WaveFile | None = file
        self._process = os.getpid()
        self._turn = Turn()
        self._lib = _library(build(config, self.engine, waves is not None, design))
        self._handle = self._lib.device_new(
            self._memory.ctypes.data,
            len(self._memory),
            self.timing.read_latency,
            self.timing.write_latency,
            self.timing.cycles_per_beat,
            -1 if self._waves is None else self._waves.fd,
        )
        if self._handle is None:
            raise DeviceError("a simulated device: this machine has no memory left for its model")
        _open.add(self)
        self._check_waves()

    @property
    def memory(self) -> np.ndarray:
        """The memory itself, (bytes,) uint8, not a copy.

        `grow` and `close` leave arrays that were taken before as they are: they are then no longer
        the device's.

        Raises
        ------
        DeviceClosedError
            If the device was closed.
        """
        self._require()
        return self._memory

    def grow(self, memory_bytes: int) -> None:
        """Make the memory larger; what is in it stays at its addresses.

        Raises
        ------
        TypeError, ValueError
            If this is no size of a memory, or less than it has: nothing is changed then.
        DeviceError
            If this machine cannot hold it: nothing is changed then.
        """
        with self._turn():
            old = self.memory
            if check_memory_bytes(memory_bytes, self.config) < len(old):
                raise ValueError(f"memory_bytes={memory_bytes}: memory of {len(old)} only grows")
            new = _zeros(memory_bytes)
            new[: len(old)] = old
            self._lib.device_memory(self._require(), new.ctypes.data, len(new))
            self._memory = new

    def run(self, address: int, length: int, max_cycles: int = 1 << 40) -> Outcome:
        """Run ``length`` instructions at byte ``address``.

        Raises
        ------
        TimeoutError
            The device did not end within ``max_cycles``; it was reset.
        DeviceClosedError
            If the device was closed, before or while it ran.
        DeviceError
            If the waveform cannot be written.
        """
        with self._turn():
            if self._running:
                self.soft_reset()
            self.write("PROGRAM_ADDRESS", address)
            self.write("PROGRAM_LENGTH", length)
            self.write("WINDOW_BASE", 0)
            self.write("WINDOW_SIZE", len(self.memory))
            self._running = True
            try:
                self.write("CONTROL", csr.CONTROL_START)
                self._wait(address, max_cycles)
            except (DeviceClosedError, SystemExit):
                raise  # closed: there is nothing to reset
            except BaseException:
                self.soft_reset()
                raise
            self._running = False
            self._check_waves()
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

    def _wait(self, address: int, max_cycles: int) -> None:
        """Simulate until the program ends, in slices: between them Python handles signals."""
        end = self.simulated_cycles + max_cycles
        while (left := end - self.simulated_cycles) > 0:
            if self._lib.device_run(self._require(), left, SLICE_SECONDS):
                return
            if self._closing:
                raise unless_exiting(
                    DeviceClosedError("the simulated device was closed while a program ran")
                )
            check_stop()
        raise TimeoutError(
            f"the program at {address:#x} did not end in {max_cycles} cycles; the device was reset"
        )

    def soft_reset(self) -> None:
        """Stop whatever runs and make the device ready: what is on its way to memory arrives.

        Raises
        ------
        TimeoutError
            The device does not come to rest.
        """
        with self._turn():
            self.write("CONTROL", csr.CONTROL_RESET)
            for _ in range(4 * self.config.watchdog_cycles):
                if self.read("STATUS") != Status.RUNNING.value:
                    self._running = False
                    return
        raise TimeoutError("the device does not come to rest after a soft reset; make a new one")

    def fail(self, port: str, nth: int = 0) -> None:
        """Let memory answer the nth burst from now with an error: "fetch", "read" or "write"."""
        with self._turn():
            self._lib.device_fail(self._require(), FAULTS[port], nth)

    @property
    def simulated_cycles(self) -> int:
        """Cycles simulated so far, in and between programs."""
        with self._turn():
            return self._lib.device_now(self._require())

    def write(self, name: str, value: int) -> None:
        """Write a register over AXI4-Lite; a 64-bit one in two halves."""
        with self._turn():
            for register in csr.parts(name):
                self.write_word(register.offset, value >> (32 * register.word) & 0xFFFFFFFF)

    def read(self, name: str) -> int:
        """Read a register over AXI4-Lite; a 64-bit one in two halves."""
        with self._turn():
            return sum(self.read_word(r.offset) << (32 * r.word) for r in csr.parts(name))

    def write_word(self, offset: int, value: int) -> None:
        """Write 32 bits at a byte offset of the registers' bus.

        Raises
        ------
        OSError
            The bus answers with an error.
        """
        with self._turn():
            response = self._lib.device_write(self._require(), offset, value)
        if response != 0:
            raise OSError(f"write of {value:#x} to {_named(offset)} was answered with {response}")

    def read_word(self, offset: int) -> int:
        """Return the 32 bits at a byte offset of the registers' bus.

        Raises
        ------
        OSError
            The bus answers with an error.
        """
        value = ctypes.c_uint32()
        with self._turn():
            response = self._lib.device_read(self._require(), offset, ctypes.byref(value))
        if response != 0:
            raise OSError(f"read of {_named(offset)} was answered with {response}")
        return value.value

    def advance(self, cycles: int) -> bool:
        """Let the clock run until no program runs, ``cycles`` at most and `SLICE_SECONDS`.

        Returns
        -------
        bool
            Whether no program runs any more.
        """
        with self._turn():
            return bool(self._lib.device_run(self._require(), cycles, SLICE_SECONDS))

    def boundary(self) -> np.ndarray:
        """Return what crossed the array's edge since the last call, as words of 32 bits.

        The words of a cycle are in the order of `sat.sim.simd.stce.boundary_header`; there are
        none unless the design has a ``boundary``.
        """
        words = ctypes.POINTER(ctypes.c_uint32)()
        with self._turn():
            count = self._lib.device_boundary(self._require(), ctypes.byref(words))
            crossed = np.ctypeslib.as_array(words, (count,)) if count else np.zeros(0, np.uint32)
            return crossed.copy()

    def close(self) -> None:
        """Free the model and complete the waveform. May be called twice, and from other threads.

        A program that another thread runs is stopped: `run` raises there.

        Raises
        ------
        DeviceError
            If the waveform could not be written to its end.
        """
        self._closing = True
        if self._process != os.getpid():
            # A fork's copy goes with its process: it may be half changed, the threads that its
            # model would wait for are not here, and the waveform is that of the first process.
            self._handle = None
            if self._waves is not None:
                self._waves.close()
            return
        with self._turn():
            handle, self._handle = self._handle, None
            _open.discard(self)
            if handle is None:
                return
            waves, self._waves = self._waves, None
            error = 0 if waves is None else self._lib.device_waves(handle, True)
            self._lib.device_delete(handle)
            if waves is not None:
                waves.close()
                waves.check(error)

    def _check_waves(self) -> None:
        if self._waves is not None:
            self._waves.check(self._lib.device_waves(self._require(), False))

    def _require(self) -> int:
        if self._handle is None:
            raise unless_exiting(
                DeviceClosedError("the simulated device is closed; make a new one")
            )
        if self._waves is not None and self._process != os.getpid():
            raise DeviceError(
                f"the simulated device writes the waveform {self._waves.path!r} of the process "
                "that made it, not of this one, which was forked from it; make another here"
            )
        return self._handle

    def __enter__(self) -> DeviceRtl:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except DeviceError:
            # The first error says more.
            if kind is None:
                raise

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


_open: WeakSet[DeviceRtl] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Complete waveforms, and stop what daemon threads still run, while Python is whole."""
    for device in list(_open):
        try:
            device.close()
        except DeviceError as error:
            print(error, file=sys.stderr)
