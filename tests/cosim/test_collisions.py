"""No bank is read in the cycle of its write, but for words that nobody looks at.

What block RAM gives then is undefined (`sat.rtl.buffers.bank_memory`). Here it gives the wrong
number, all bits inverted: the device must not care.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from amaranth import Cat, Elaboratable, Module, Mux, Signal, Value
from amaranth.lib import memory
from amaranth.sim import Simulator

from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product, StartShape
from sat.rtl import buffers, update
from sat.rtl.config import SatConfig
from sat.sim.device_rtl import DeviceRtl
from sat.sim.engines import make_design
from sat.sim.golden.device import GoldenDevice
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parent))
from layers import random_layer, random_sgd, run_on_both
from products import assert_same_bits, make_case, random_product, run_case

CONFIG = SatConfig(rows=3, cols=4, a_words=64, b_words=64, sum_words=128)
FAST = MemoryTiming(read_latency=1, write_latency=1)


class Colliding(Elaboratable):
    """A bank whose reads give the inverted word when they meet a write to their address."""

    def __init__(self, shape: object, words: int) -> None:
        self.memory = memory.Memory(shape=shape, depth=words, init=[])
        self.writes: list = []
        self.reads: list = []
        self.collided = Signal(16)

    def write_port(self, **options: int) -> memory.WritePort:
        self.writes.append(self.memory.write_port(**options))
        return self.writes[-1]

    def read_port(self) -> SimpleNamespace:
        port = self.memory.read_port()
        shown = SimpleNamespace(addr=port.addr, en=port.en, data=Signal(port.data.shape()))
        self.reads.append((port, shown))
        return shown

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = self.memory
        hits = []
        for port, shown in self.reads:
            met = [(w.addr == port.addr) & Value.cast(w.en).any() for w in self.writes]
            hit = Signal()
            m.d.sync += hit.eq(Cat(met).any() & port.en)
            word = Value.cast(port.data)
            m.d.comb += Value.cast(shown.data).eq(Mux(hit, ~word, word))
            hits.append(hit)
        m.d.sync += self.collided.eq(self.collided + Cat(hits).any())
        return m


def test_a_bank_in_collision_lies():
    bank = Colliding(8, 4)
    write, read = bank.write_port(), bank.read_port()
    seen = []

    async def bench(ctx):
        for address, enable in ((1, 1), (2, 1), (1, 0), (3, 1)):
            ctx.set(write.addr, address)
            ctx.set(write.data, 0x10 + address)
            ctx.set(write.en, enable)
            ctx.set(read.addr, 1)
            await ctx.tick()
            seen.append(ctx.get(read.data))

    sim = Simulator(bank)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert seen == [0xFF, 0x11, 0x11, 0x11]


@pytest.fixture(scope="module")
def device():
    """The device with such banks, on a memory that keeps its engines close together."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (buffers, update):
            patch.setattr(module, "bank_memory", Colliding)
        design = make_design(CONFIG, "verilator")
    assert "collided" in design.verilog
    with DeviceRtl(CONFIG, FAST, memory_bytes=1 << 20, engine="verilator", design=design) as made:
        yield made


def test_products_do_not_care(device):
    rng = random.Random(5)
    products = [random_product(rng, CONFIG) for _ in range(20)]
    # Passes and chunks that add to the sums of the last, back to back.
    products += [Product(40, 9, 70, n, m, StartShape.MATRIX) for n, m in ((1, 1), (2, 8), (1, 4))]
    for number, product in enumerate(products):
        case = make_case(product, number)
        for dataflow in ("os", "ws"):
            mapping = rng.choice(legal_mappings(product, CONFIG, dataflow))
            ran = run_case(device, CONFIG, case, mapping)
            assert_same_bits(ran.got, case.want)
            assert ran.cycles == ran.predicted


def test_training_steps_do_not_care(device):
    """FF, BP, WU, update and both prunings: every buffer, and all of memory as golden has it."""
    rng = random.Random(6)
    golden = GoldenDevice(CONFIG, device.memory.copy())
    for number in range(8):
        layer = random_layer(rng, CONFIG, largest=10)
        run_on_both(device, golden, layer, number, 0.0, random_sgd(rng))
