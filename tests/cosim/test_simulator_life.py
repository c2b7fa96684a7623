"""A simulated device's life: stopped, grown, shared, closed and forked; its waveform."""

import gc
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

import sat
from sat.devices import resident
from sat.rtl.config import AxiConfig, SatConfig
from sat.sim.device_rtl import DeviceRtl
from sat.sim.engines import build, choose
from sat.sim.memory import MemoryTiming

A = np.ones((64, 512), np.float16)
SMALL = {"array": "4x4", "memory_bytes": 1 << 16}
# One model with waveforms, and with few addresses, for all the tests that want either.
WAVES = {"array": "2x2", "memory_bytes": 1 << 16, "axi": AxiConfig(address_bits=17)}


def right(device):
    """Whether a small product is right."""
    return bool((device.matmul(A[:8, :16], A.T[:16, :8]) == 16).all())


@pytest.fixture(scope="module")
def slow_memory():
    """With this timing a product that is compiled at once takes hundreds of thousands of cycles."""
    return MemoryTiming(read_latency=1024, write_latency=1024, cycles_per_beat=64)


def in_thread(work):
    """Start work in a thread; return it and the list that its error is put into."""
    errors = []

    def run():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


# ---------------------------------------------------------------------------------------- stopped


@pytest.mark.parametrize("spec", ["rtl", "rtl*2"])
def test_ctrl_c_ends_a_simulation_and_leaves_the_device_ready(spec, slow_memory):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    held = resident(A.T[:, :8])
    with sat.device(spec, array="4x4", memory_bytes=1 << 20, memory=slow_memory) as device:
        assert (device.matmul(A[:8], held) == 512).all()
        for _ in range(3):
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            began = time.process_time()  # others may want the processor, too
            with pytest.raises(KeyboardInterrupt):
                while True:
                    device.matmul(A, held)
            assert time.process_time() - began < 3
        # What was resident is there, and right.
        assert (device.matmul(A[:8], held) == 512).all()
        assert device.last_run.bytes_kept == held.nbytes * len(getattr(device, "devices", "1"))


def test_ctrl_c_in_the_middle_of_stopping_leaves_the_device_ready(slow_memory, monkeypatch):
    config = SatConfig().with_array("4x4")
    with sat.device("rtl", config=config, memory=slow_memory, memory_bytes=1 << 16) as device:
        assert right(device)
        simulator = device._device
        genuine = DeviceRtl.soft_reset

        def twice(self):
            monkeypatch.setattr(DeviceRtl, "soft_reset", genuine)
            raise KeyboardInterrupt

        monkeypatch.setattr(DeviceRtl, "soft_reset", twice)
        monkeypatch.setattr("sat.sim.device_rtl.check_stop", interrupt)
        monkeypatch.setattr("sat.sim.device_rtl.SLICE_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            right(device)
        assert simulator._running
        monkeypatch.setattr("sat.sim.device_rtl.check_stop", lambda: None)
        assert right(device)
        assert device._device is simulator and not simulator._running


def interrupt():
    raise KeyboardInterrupt


def test_the_native_loop_comes_back_while_a_program_runs(slow_memory):
    with sat.device("rtl", **SMALL, memory=slow_memory) as device:
        assert right(device)
        simulator, slices = device._device, []
        genuine = simulator._lib.device_run

        class Timed:
            def __getattr__(self, name):
                return getattr(genuine_library, name)

            def device_run(self, *arguments):
                began = time.thread_time()
                try:
                    return genuine(*arguments)
                finally:
                    slices.append(time.thread_time() - began)

        genuine_library, simulator._lib = simulator._lib, Timed()
        device.matmul(A, A.T[:, :8])
        simulator._lib = genuine_library
    assert len(slices) > 2 and max(slices) < 0.1


# ------------------------------------------------------------------------------ grown and closed


def test_memory_grows_with_all_that_is_in_it():
    held = resident(sat.prune(A.T[:, :16], "2:8"))
    with sat.device("rtl", array="4x4", memory_bytes=1 << 15) as device:
        first = device.matmul(A[:4], held)
        before = device._device.memory
        kept = before.copy()
        assert (device.matmul(A[:4, :4], np.ones((4, 4096), np.float16)) == 4).all()
        grown = device._device.memory
        assert len(grown) > len(before)
        np.testing.assert_array_equal(before, kept)  # an old view is memory still
        np.testing.assert_array_equal(device.matmul(A[:4], held), first)


@pytest.mark.parametrize("fault", ["address space", "machine"])
def test_growth_that_fails_changes_nothing(fault, monkeypatch):
    config = SatConfig().with_array("4x4")
    with DeviceRtl(config, memory_bytes=1 << 16) as device:
        device.memory[:] = 7
        view = device.memory
        if fault == "machine":
            monkeypatch.setattr(np, "zeros", out_of_memory)
            kind, size, message = sat.DeviceError, 1 << 40, "cannot hold it"
            monkeypatch.setattr("sat.sim.device_rtl.check_memory_bytes", lambda size, config: size)
        else:
            kind, size, message = ValueError, 1 << 99, r"must be 4096 to 2\*\*"
        for _ in range(2):
            with pytest.raises(kind, match=message):
                device.grow(size)
        with pytest.raises(ValueError, match="only grows"):
            device.grow(1 << 12)
        assert device.memory is view and (view == 7).all()


def out_of_memory(*_):
    raise MemoryError


def test_a_product_that_does_not_fit_leaves_the_device_usable(tmp_path):
    with sat.device("rtl", **WAVES, waves=tmp_path / "w.fst") as device:
        assert right(device)
        for _ in range(3):
            with pytest.raises((ValueError, sat.DeviceError)):
                device.matmul(np.ones((2000, 64), np.float16), np.ones((64, 64), np.float16))
            assert right(device)


def test_closed_means_closed():
    config = SatConfig().with_array("4x4")
    device = DeviceRtl(config, memory_bytes=1 << 16)
    memory = device.memory
    device.close()
    device.close()
    memory[:] = 1  # not the device's any more, but memory
    uses = [
        lambda: device.memory,
        lambda: device.run(0, 1),
        lambda: device.grow(1 << 20),
        lambda: device.read("STATUS"),
        lambda: device.write("CONTROL", 1),
        lambda: device.fail("read"),
        lambda: device.simulated_cycles,
        device.soft_reset,
    ]
    for use in uses:
        with pytest.raises(sat.DeviceClosedError, match="simulated device is closed"):
            use()


def test_a_simulator_that_nobody_holds_is_freed():
    device = DeviceRtl(SatConfig().with_array("4x4"), memory_bytes=1 << 16)
    memory, other = device.memory, weakref.ref(device)
    del device
    gc.collect()
    assert other() is None
    memory[:] = 1


@pytest.mark.parametrize("spec", ["rtl", "rtl*2"])
def test_closing_ends_a_simulation_in_another_thread(spec, slow_memory):
    device = sat.device(spec, **SMALL, memory=slow_memory)
    assert right(device)
    thread, errors = in_thread(lambda: [device.matmul(A, A.T[:, :64]) for _ in range(1000)])
    time.sleep(0.2)
    began = time.process_time()
    device.close()
    device.close()
    thread.join()
    assert time.process_time() - began < 3
    assert isinstance(errors[0], sat.DeviceClosedError), errors
    with pytest.raises(sat.DeviceClosedError):
        right(device)


ENDINGS = {
    "left open": "",
    "in a cycle": "device.me = device; device.also = [device]",
    "used at exit": "import atexit; atexit.register(use)",
    "in a daemon": "import threading, time; "
    "threading.Thread(target=lambda: [use() for _ in range(10**6)], daemon=True).start(); "
    "time.sleep(0.3)",
    "closed at exit": "import atexit; atexit.register(device.close); atexit.register(device.close)",
    "in a module": "import sys; sys.device = device; "
    "sys.memory = [part._device.memory for part in getattr(device, 'devices', [device])]",
}


@pytest.mark.parametrize("spec", ["rtl", "rtl*2"])
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_an_interpreter_ends_well_with_devices(ending, spec):
    config = SatConfig().with_array("4x4")
    build(config, choose("auto", config))  # once, here
    program = (
        "import numpy as np, sat\n"
        "x = np.ones((8, 8), np.float16)\n"
        f"device = sat.device({spec!r}, array='4x4', memory_bytes=1 << 16)\n"
        "use = lambda: device.matmul(x, x)\n"
        f"use()\n{ending}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


# ------------------------------------------------------------------------------ shared and forked


def test_two_threads_on_one_simulator():
    rng = np.random.default_rng(0)
    pairs = [tuple(rng.standard_normal((24, 24)).astype(np.float16) for _ in "ab") for _ in "xyz"]
    with sat.device("golden") as golden:
        want = [golden.matmul(*pair) for pair in pairs]
    with sat.device("rtl", **SMALL) as device:

        def work(index):
            for _ in range(4):
                np.testing.assert_array_equal(device.matmul(*pairs[index]), want[index])

        together = [in_thread(lambda i=i: work(i)) for i in range(3)]
        for thread, _ in together:
            thread.join()
    assert [errors for _, errors in together] == [[], [], []]


def in_fork(work):
    """Return the exit code of a fork that does some work: what it returns."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_simulator_is_a_copy():
    with sat.device("rtl", **SMALL) as device:
        assert right(device)
        cycles = device._device.simulated_cycles

        def child():
            good = right(device)
            device.close()
            return 3 if good else 4

        assert in_fork(child) == 3
        assert device._device.simulated_cycles == cycles
        assert right(device)


# -------------------------------------------------------------------------------------- waveforms


def cycles_in(path):
    """Return how many cycles a waveform spans, from its header."""
    with open(path, "rb") as file:
        kind, _, begin, end = struct.unpack(">BQQQ", file.read(25))
    assert kind == 0, "no FST"
    return (end - begin) / 10


def test_a_waveform_goes_on_when_memory_grows(tmp_path):
    path = tmp_path / "w.fst"
    with sat.device("rtl", **WAVES | {"memory_bytes": 1 << 13}, waves=path) as device:
        cycles = 0
        for cols in (8, 512, 1024):
            device.matmul(A[:4, :4], np.ones((4, cols), np.float16))
            cycles += device.last_run.cycles
    assert cycles < cycles_in(path) < 1.1 * cycles


def test_each_device_of_a_pool_has_a_waveform(tmp_path):
    path = tmp_path / "w.fst"
    with sat.device("rtl*2", **WAVES, waves=str(path)) as device:
        device.matmul(A[:4, :8], A.T[:8, :4])
        cycles = device.last_run.cycles
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.0.fst", "w.1.fst"]
    for part in tmp_path.iterdir():
        assert cycles <= cycles_in(part) < 2 * cycles


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("no-such-folder/w.fst", "No such file or directory"),
        (".", "Is a directory"),
        ("", "No such file or directory|Is a directory"),
        ("/dev/full", "No space left on device"),
        ("file/w.fst", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
@pytest.mark.parametrize("spec", ["rtl", "rtl*2"])
def test_a_place_for_no_waveform_is_refused_at_once(place, reason, spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(sat.DeviceError, match=rf"cannot be written \(({reason})\); give a file"):
        sat.device(spec, **WAVES, waves=place)


def test_two_devices_do_not_write_one_waveform(tmp_path):
    path = tmp_path / "w.fst"
    with sat.device("rtl", **WAVES, waves=path) as device:
        with pytest.raises(sat.DeviceError, match="another device writes it"):
            sat.device("rtl", **WAVES, waves=path)
        assert right(device)
        cycles = device.last_run.cycles
    assert cycles_in(path) >= cycles
    with pytest.raises(TypeError, match="waves=7: must be the path"):
        sat.device("rtl", **WAVES, waves=7)


def test_a_full_disk_is_an_error_and_the_device_is_freed(tmp_path):
    path = tmp_path / "w.fst"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # SIGXFSZ is ignored by Python
    try:
        device = sat.device("rtl", **WAVES, waves=path)
        assert right(device)
        with pytest.raises(sat.DeviceError, match=r"cannot be written \(File too large\).*not com"):
            device.close()
        device.close()
        with pytest.raises(ZeroDivisionError), sat.device("rtl", **WAVES, waves=path) as device:
            right(device)
            raise ZeroDivisionError("says more than the disk")
        with (
            pytest.raises(sat.DeviceError, match="File too large"),
            sat.device("rtl", **WAVES, waves=path) as device,
        ):
            right(device)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with sat.device("rtl", **WAVES, waves=path) as device:
        assert right(device)
        cycles = device.last_run.cycles
    assert cycles_in(path) >= cycles


def test_a_fork_leaves_the_waveform_to_its_process(tmp_path):
    path = tmp_path / "w.fst"
    with sat.device("rtl", **WAVES, waves=path) as device:
        assert right(device)

        def child():
            try:
                right(device)
            except sat.DeviceError as error:
                device.close()
                return 5 if "which was forked from it" in str(error) else 6
            return 7

        assert in_fork(child) == 5
        assert right(device)
        cycles = 2 * device.last_run.cycles
    assert cycles <= cycles_in(path) < 2 * cycles


@pytest.mark.parametrize("value", [0, -1, 4095, 1 << 60, True, "64M", 1e6])
def test_sizes_of_no_memory_are_refused_at_once(value):
    kind = ValueError if type(value) is int else TypeError
    with pytest.raises(kind, match=rf"memory_bytes={value!r}.* must be"):
        sat.device("rtl", array="4x4", memory_bytes=value)
