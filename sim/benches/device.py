"""cocotb bench of the whole device: programs over the real AXI ports, paused and failing.

The scenarios come in a file named by ``SAT_SCENARIOS`` (numpy archive), made by the test that
starts the bench: memory images with programs in them, and what memory must hold afterwards.
"""

from __future__ import annotations

import os

import cocotb
import numpy as np

from sat.rtl.isa import Status
from sat.sim.benches.tb import DeviceBench, seeded


def scenarios():
    """Yield the scenarios' names, images, expected images, program addresses and lengths."""
    with np.load(os.environ["SAT_SCENARIOS"]) as archive:
        for name in archive["names"]:
            image, expected = archive[f"{name}_image"], archive[f"{name}_expected"]
            address, length = archive[f"{name}_program"]
            yield str(name), image, expected, int(address), int(length)


async def make_bench(dut) -> DeviceBench:
    """Return a bench in reset's wake."""
    bench = DeviceBench(dut, 1 << 20, seeded())
    await bench.reset()
    return bench


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(chance=[0.0, 0.3, 0.7])
async def programs_leave_the_expected_memory(dut, chance):
    """Every scenario, back to back on one device, memory equal to the last byte."""
    bench = await make_bench(dut)
    bench.back_pressure(chance)
    for name, image, expected, address, length in scenarios():
        bench.load(image)
        status, _ = await bench.run(address, length)
        assert status is Status.DONE, f"{name}: {status.name}"
        got = bench.image(len(image))
        wrong = np.flatnonzero(got != expected)
        assert len(wrong) == 0, f"{name}: {len(wrong)} bytes differ, first at {wrong[0]:#x}"


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(
    port=["instructions", "reads", "writes"],
    chance=[0.0, 0.4],
)
async def bus_errors_stop_the_program_and_spare_the_next(dut, port, chance):
    """An error answer is reported, nothing wrong is stored, and the next program is right."""
    bench = await make_bench(dut)
    bench.back_pressure(chance)
    expected_status = {
        "instructions": Status.AXI_FETCH,
        "reads": Status.AXI_READ,
        "writes": Status.AXI_WRITE,
    }[port]
    ports = [bench.instructions] if port == "instructions" else getattr(bench, port)
    for number, (name, image, expected, address, length) in enumerate(scenarios()):
        bench.load(image)
        # A port whose stripe of a beat holds nothing to write does not count it.
        faulty = ports[number % len(ports)]
        before = faulty.accesses
        status, _ = await bench.run(address, length)
        assert status is Status.DONE, f"{name}: {status.name}"
        accesses = faulty.accesses - before
        for fail_at in sorted({0, bench.rng.randrange(accesses), bench.rng.randrange(accesses)}):
            bench.load(image)
            faulty.fail_at = fail_at
            status, _ = await bench.run(address, length)
            faulty.fail_at = None
            assert status is expected_status, f"{name}, access {fail_at}: {status.name}"
            got = bench.image(len(image))
            wrong = np.flatnonzero((got != expected) & (got != image))
            assert len(wrong) == 0, f"{name}, access {fail_at}: wrong byte at {wrong[0]:#x}"

            bench.load(image)
            status, _ = await bench.run(address, length)
            assert status is Status.DONE, f"{name} after an error: {status.name}"
            assert np.array_equal(bench.image(len(image)), expected), f"{name} after an error"
