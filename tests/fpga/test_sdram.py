"""The SDRAM controller keeps the data sheet's rules and all words; a model tells who does not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from sat.fpga.boards import M12L64322A
from sat.fpga.sdram.chip import Command, Cycles, cycles
from sat.fpga.sdram.controller import READ_CYCLES, SdramController
from sat.fpga.sdram.geometry import Geometry
from sat.fpga.sdram.memory import SdramMemory
from sat.fpga.sdram.model import Rule
from sat.rtl.axi import Response
from sat.rtl.config import AxiConfig
from tests.fpga.sdram_bench import SMALL, WIDE, WithChip, run, simulate


def test_cycles_of_the_data_sheet():
    """By hand, for periods of 40, 20 and 10 ns."""
    assert [cycles(21, hz) for hz in (25e6, 50e6, 100e6)] == [1, 2, 3]
    at = Cycles.at(50e6, Geometry())
    assert (at.power_up, at.row_cycle, at.row, at.write) == (10_000, 4, 3, 2)
    assert at.refresh_every == 390 - 16  # 64 ms / 8192 rows is 7.8125 us
    assert Geometry().size == 32 << 20


def test_a_chip_with_more_refreshes_than_rows_is_refreshed_as_often():
    """M12L64322A: 2048 rows, a REFRESH each 15.6 us."""
    assert M12L64322A.size == 8 << 20
    assert Cycles.at(50e6, M12L64322A).refresh_every == 781 - 16


@pytest.mark.parametrize("clock_hz", [5e5, 133e6])
def test_a_clock_that_the_chip_cannot_have(clock_hz):
    with pytest.raises(ValueError, match="clock_hz=.* 1 MHz to 100 MHz; choose"):
        SdramController(clock_hz, 32, 1)


@pytest.mark.parametrize(
    "bits",
    [{"rows": 10}, {"columns": 11}, {"banks": 0}, {"data_bits": 8}, {"refreshes": 8191}],
)
def test_a_chip_that_there_is_not(bits):
    (name, value), *_ = bits.items()
    with pytest.raises(ValueError, match=f"{name}={value}: must be"):
        Geometry(**bits)


@pytest.mark.parametrize("bits", [16, 48])
def test_a_word_that_is_no_run_of_columns(bits):
    with pytest.raises(ValueError, match=f"word_bits={bits}: must be a power of two from 32"):
        SdramController(50e6, bits, 1)


# ------------------------------------------------------------------------------------- controller


def with_controller(clock_hz: float, word_bits: int, chip: Geometry = SMALL) -> WithChip:
    return WithChip(SdramController(clock_hz, word_bits, 4, chip), clock_hz, chip)


def ask(ctx, controller, write, address, data=0, lanes=0, tag=0):
    request = controller.request
    values = {"write": write, "address": address, "data": data, "lanes": lanes, "tag": tag}
    ctx.set(request.payload, values)
    ctx.set(request.valid, 1)


@pytest.mark.parametrize(
    "clock_hz, word_bits, chip",
    [
        (3e6, 32, SMALL),
        (50e6, 32, SMALL),
        (100e6, 64, SMALL),
        (3e6, 128, SMALL),
        (3e6, 32, WIDE),
        (25e6, 32, WIDE),
        (100e6, 32, WIDE),
        (50e6, 64, WIDE),
        (3e6, 64, replace(SMALL, masked=False)),
    ],
)
def test_words_come_back_in_order_as_they_were_written(clock_hz, word_bits, chip):
    """Some of their bytes too, where the chip has no masks."""
    rng = random.Random(word_bits)
    bench = with_controller(clock_hz, word_bits, chip)
    controller, lanes = bench.component, word_bits // 8
    words = chip.size // lanes
    homes = [rng.randrange(words - 600) for _ in range(8)]
    content: dict[int, int] = {}
    expected, got = [], []

    async def test(ctx):
        place = 0
        for _ in range(600):
            # Runs in a row, jumps between rows and banks, again and again to the same.
            place = place + 1 if rng.random() < 0.8 else rng.choice(homes)
            write, tag = rng.random() < 0.5, rng.randrange(4)
            value = rng.getrandbits(word_bits)
            mask = rng.choice([rng.getrandbits(lanes), (1 << lanes) - 1])
            if rng.random() < 0.1:
                ctx.set(controller.request.valid, 0)
                await ctx.tick().repeat(rng.randrange(1, 30))
            ask(ctx, controller, write, place, value, mask, tag)
            await ctx.tick().until(controller.request.ready)
            if write:
                bits = sum(0xFF << 8 * lane for lane in range(lanes) if mask >> lane & 1)
                content[place] = content.get(place, 0) & ~bits | value & bits
            else:
                expected.append((tag, content.get(place, 0)))
        ctx.set(controller.request.valid, 0)
        await ctx.tick().repeat(60)
        assert got == expected and len(got) > 200
        assert sum(value != 0 for _, value in got) > 100

    async def listen(ctx):
        reply = controller.reply
        async for *_, replied, tag, value in ctx.tick().sample(
            controller.replied, reply.tag, reply.data
        ):
            if replied:
                got.append((tag, value))

    simulate(bench, test, background=[listen])


@pytest.mark.parametrize("chip", [SMALL, WIDE], ids=["16 bits", "32 bits"])
def test_a_row_gives_a_column_a_cycle(chip):
    """Words of 32 bits of an open row: two cycles or one for each, and the way there and back."""
    bench = with_controller(50e6, 32, chip)
    controller, columns = bench.component, 32 // chip.data_bits
    words = (1 << chip.columns) // columns

    async def test(ctx):
        ask(ctx, controller, 0, 0)
        await ctx.tick().until(controller.replied)  # the row is open now
        ctx.set(controller.request.valid, 0)
        await ctx.tick()
        passed = 0
        for word in range(words):
            ask(ctx, controller, 0, word)
            while not ctx.get(controller.request.ready):
                await ctx.tick()
                passed += 1
            await ctx.tick()
            passed += 1
        assert passed <= columns * words + 1
        ctx.set(controller.request.valid, 0)
        waited = 0
        while not ctx.get(controller.replied):
            await ctx.tick()
            waited += 1
        assert waited <= READ_CYCLES + 2

    simulate(bench, test)


# ------------------------------------------------------------------------------------------ ports

AXI = AxiConfig(data_bits=32, address_bits=20, outstanding=4)
ROOM = SMALL.size


def with_memory(clock_hz: float = 3e6, axi: AxiConfig = AXI, chip: Geometry = SMALL) -> WithChip:
    return WithChip(SdramMemory(axi, clock_hz, chip), clock_hz, chip)


async def read_burst(ctx, port, address, beats):
    """Return the beats of a burst, and their responses."""
    values = {"araddr": address, "arlen": beats - 1, "arvalid": 1}
    for name, value in values.items():
        ctx.set(getattr(port, name), value)
    await ctx.tick().until(port.arready)
    ctx.set(port.arvalid, 0)
    ctx.set(port.rready, 1)
    got = []
    while len(got) < beats:
        value, resp, last = (
            await ctx.tick().sample(port.rdata, port.rresp, port.rlast).until(port.rvalid)
        )
        got.append((value, Response(resp)))
        assert last == (len(got) == beats)
    ctx.set(port.rready, 0)
    return got


async def write_burst(ctx, port, address, values, lanes):
    """Write a burst; return its response."""
    ctx.set(port.awaddr, address)
    ctx.set(port.awlen, len(values) - 1)
    ctx.set(port.awvalid, 1)
    await ctx.tick().until(port.awready)
    ctx.set(port.awvalid, 0)
    for number, (value, mask) in enumerate(zip(values, lanes, strict=True)):
        ctx.set(port.wdata, value)
        ctx.set(port.wstrb, mask)
        ctx.set(port.wlast, number == len(values) - 1)
        ctx.set(port.wvalid, 1)
        await ctx.tick().until(port.wready)
    ctx.set(port.wvalid, 0)
    ctx.set(port.bready, 1)
    (resp,) = await ctx.tick().sample(port.bresp).until(port.bvalid)
    ctx.set(port.bready, 0)
    return Response(resp)


async def link_word(ctx, bus, address, value=None):
    """Write a word over the link's bus, or read one."""
    ctx.set(bus.address, address)
    ctx.set(bus.write, value is not None)
    ctx.set(bus.data, value or 0)
    ctx.set(bus.request, 1)
    (read,) = await ctx.tick().sample(bus.read_data).until(bus.done)
    ctx.set(bus.request, 0)
    await ctx.tick()
    return read


@pytest.mark.parametrize(
    "clock_hz, bits, chip", [(3e6, 32, SMALL), (50e6, 64, SMALL), (25e6, 32, WIDE)]
)
def test_all_sides_at_once_see_what_was_written(clock_hz, bits, chip):
    """Each side in a part of its own: loads see stores that were answered."""
    axi = AxiConfig(data_bits=bits, address_bits=20, outstanding=4)
    bench = with_memory(clock_hz, axi, chip)
    memory, beat = bench.component, bits // 8
    part = ROOM // 4
    ended = []

    async def data(ctx):
        rng, content = random.Random(1), bytearray(part)
        for _ in range(12):
            beats = rng.randrange(1, 20)
            at = rng.randrange(part // beat - beats)
            values = [rng.getrandbits(bits) for _ in range(beats)]
            lanes = [rng.choice([(1 << beat) - 1, rng.getrandbits(beat)]) for _ in range(beats)]
            assert await write_burst(ctx, memory.dmem, at * beat, values, lanes) == Response.OKAY
            for number, (value, mask) in enumerate(zip(values, lanes, strict=True)):
                for lane, byte in enumerate(value.to_bytes(beat, "little")):
                    if mask >> lane & 1:
                        content[(at + number) * beat + lane] = byte
            first = max(0, at - 3)
            got = await read_burst(ctx, memory.dmem, first * beat, 24)
            there = content[first * beat : (first + 24) * beat].ljust(24 * beat, b"\0")
            want = [there[n : n + beat] for n in range(0, 24 * beat, beat)]
            known = min(24, part // beat - first)
            assert [value.to_bytes(beat, "little") for value, _ in got][:known] == want[:known]
        ended.append("data")

    async def link(ctx):
        rng, content = random.Random(2), {}
        for _ in range(40):
            at = part + 4 * rng.randrange(part // 4)
            content[at] = rng.getrandbits(32)
            await link_word(ctx, memory.bus, at, content[at])
            again = rng.choice(list(content))
            assert await link_word(ctx, memory.bus, again) == content[again]
        ended.append("link")

    async def instructions(ctx):
        # What nobody writes: zeros, as the model begins.
        rng = random.Random(3)
        for _ in range(20):
            at = 2 * part + beat * rng.randrange(part // beat - 16)
            got = await read_burst(ctx, memory.imem, at, 16)
            assert got == [(0, Response.OKAY)] * 16
        ended.append("instructions")

    simulate(bench, data, link, instructions)
    assert sorted(ended) == ["data", "instructions", "link"]


def test_addresses_behind_the_chip_are_refused_and_harm_nothing():
    bench = with_memory()
    memory = bench.component
    assert memory.size == ROOM < 1 << 20

    async def test(ctx):
        port = memory.dmem
        assert await write_burst(ctx, port, 0, [7, 8], [15, 15]) == Response.OKAY
        assert await write_burst(ctx, port, ROOM, [1, 2], [15, 15]) == Response.DECERR
        # No burst crosses 4 KiB (AXI4, A3.4.1), so none is half outside.
        assert await write_burst(ctx, port, ROOM - 8, [3, 4], [15, 15]) == Response.OKAY
        got = await read_burst(ctx, port, ROOM - 8, 2)
        assert got == [(3, Response.OKAY), (4, Response.OKAY)]
        got = await read_burst(ctx, port, ROOM, 2)
        assert [answer for _, answer in got] == [Response.DECERR] * 2
        assert [value for value, _ in await read_burst(ctx, port, 0, 2)] == [7, 8]

    simulate(bench, test)


def test_a_reset_loses_requests_but_no_memory():
    """Words that were asked for before a reset come after it: nobody takes them for an answer."""
    bench = with_memory(50e6)
    memory = bench.component

    async def test(ctx):
        port = memory.dmem
        await write_burst(ctx, port, 64, [11, 12, 13, 14], [15] * 4)
        for delay in range(0, 24, 3):
            ctx.set(port.araddr, 64)
            ctx.set(port.arlen, 3)
            ctx.set(port.arvalid, 1)
            await ctx.tick().until(port.arready)
            ctx.set(port.arvalid, 0)
            await ctx.tick().repeat(1 + delay)
            ctx.set(bench.reset, 1)
            await ctx.tick()
            ctx.set(bench.reset, 0)
            got = await read_burst(ctx, port, 68, 2)
            assert [value for value, _ in got] == [12, 13]

    simulate(bench, test)


def test_nobody_waits_for_long_while_others_read():
    """The link has its word while loads and instructions ask without a pause."""
    bench = with_memory(50e6)
    memory = bench.component
    waits = []

    def reader(port, base):
        async def read(ctx):
            while len(waits) < 10:
                await read_burst(ctx, port, base, 64)

        return read

    async def link(ctx):
        await link_word(ctx, memory.bus, 8, 5)
        for _ in range(10):
            waited = 1
            ctx.set(memory.bus.write, 0)
            ctx.set(memory.bus.request, 1)
            while not ctx.get(memory.bus.done):
                await ctx.tick()
                waited += 1
            assert ctx.get(memory.bus.read_data) == 5
            ctx.set(memory.bus.request, 0)
            await ctx.tick()
            waits.append(waited)

    simulate(bench, link, reader(memory.imem, 4096), reader(memory.dmem, 8192))
    # Two others' turns of 32 words of two columns, a change of rows each 16, perhaps a refresh.
    assert max(waits) < 2 * (64 + 5 * 8) + 24


# ------------------------------------------------------------------------------------- the model

PRECHARGE_ALL = (Command.PRECHARGE, 0, 1 << 10)
START = [PRECHARGE_ALL, 5, *[(Command.REFRESH, 0, 0), 8] * 8, (Command.MODE, 0, 0x20), 3]
OPEN = [*START, (Command.ACTIVATE, 1, 4), 5]
READ, WRITE = (Command.READ, 1, 2), (Command.WRITE, 1, 2)


def broken(script, powered=True) -> Rule:
    """Return the first rule that commands (command, bank, address) and pauses break, at 100 MHz.

    A pause of n: the command behind it comes n cycles after the one before it.
    """
    bench = WithChip(None, 100e6, SMALL, powered)
    pins = bench.chip.pins
    found = []

    async def test(ctx):
        ctx.set(pins.cke, 1)
        ctx.set(pins.command, Command.NOP)
        for entry in script:
            if isinstance(entry, int):
                if entry > 1:
                    await ctx.tick("sdram").repeat(entry - 1)
                continue
            command, bank, address = entry
            ctx.set(pins.command.as_value(), getattr(command, "value", command))
            ctx.set(pins.ba, bank)
            ctx.set(pins.a, address)
            ctx.set(pins.dq_oe, command == Command.WRITE)
            await ctx.tick("sdram")
            ctx.set(pins.command, Command.NOP)
            ctx.set(pins.dq_oe, 0)
        await ctx.tick("sdram").repeat(2)
        found.append(Rule(ctx.get(bench.chip.broken)))

    run(bench, test)
    return found[0]


CLOSE = (Command.PRECHARGE, 1, 0)


@pytest.mark.parametrize(
    "rule, script",
    [
        (Rule.NONE, [*OPEN, WRITE, 3, READ, 3, CLOSE, 3, (Command.ACTIVATE, 1, 9), 3, READ]),
        (Rule.NONE, [*START, (0b1100, 0, 0)]),  # not selected
        (Rule.UNKNOWN_COMMAND, [(0b0110, 0, 0)]),
        (Rule.NOT_READY, [PRECHARGE_ALL, 5, (Command.ACTIVATE, 1, 4)]),
        (Rule.NOT_READY, [*START[:-3], (Command.MODE, 0, 0x20), 3, (Command.ACTIVATE, 0, 0)][2:]),
        (Rule.MODE, [*START[:-2], (Command.MODE, 0, 0x30)]),
        (Rule.BANK_OPEN, [*OPEN, 9, (Command.ACTIVATE, 1, 4)]),
        (Rule.BANK_OPEN, [*OPEN, 9, (Command.REFRESH, 0, 0)]),
        (Rule.BANK_CLOSED, [*OPEN, (Command.READ, 2, 0)]),
        (Rule.ROW_CYCLE, [*START, (Command.REFRESH, 0, 0), 6, (Command.ACTIVATE, 1, 4)]),
        (Rule.ROW, [*OPEN[:-1], 4, CLOSE]),
        (Rule.ROW_TO_COLUMN, [*OPEN[:-1], 2, READ]),
        (Rule.PRECHARGE, [*OPEN, 3, CLOSE, 2, (Command.ACTIVATE, 1, 4)]),
        (Rule.BANK_TO_BANK, [*OPEN[:-1], 1, (Command.ACTIVATE, 2, 4)]),
        (Rule.WRITE_RECOVERY, [*OPEN, 3, WRITE, 1, CLOSE]),
        (Rule.MODE_CYCLES, [*START[:-1], 1, (Command.ACTIVATE, 1, 4)]),
        (Rule.ROW_MOST, [*OPEN, *[(Command.NOP, 0, 0), 10_001]]),
        (Rule.REFRESH_LATE, [*START, 30_000]),
        (Rule.CONTENTION, [*OPEN, READ, 2, WRITE]),
        (Rule.CONTENTION, [*OPEN, READ, 3, WRITE]),
        (Rule.AUTO_PRECHARGE, [*OPEN, (Command.READ, 1, 1 << 10)]),
    ],
)
def test_the_model_finds_a_broken_rule(rule, script):
    assert broken(script) == rule


def test_the_model_wants_its_power_up():
    assert broken([PRECHARGE_ALL], powered=False) == Rule.POWER_UP
