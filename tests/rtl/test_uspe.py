"""A USPE of an FPGA with distributed RAM: its chain is a memory, and gives what registers would."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth import *
from amaranth.sim import Simulator

from sat.fpga.board import BOARD_CONFIG
from sat.rtl.config import FpTiming, SatConfig
from sat.rtl.uspe import Uspe
from sat.rtl.verilog import VerilogPlatform

CONFIGS = {
    "default": SatConfig(),
    "board": BOARD_CONFIG,
    "longer ring": SatConfig(interleave=8, fp=FpTiming(adder_stages=3)),
    "no interleave": SatConfig(interleave=1, fp=FpTiming(multiplier_stages=1, adder_stages=1)),
}


class Made(Elaboratable):
    """A USPE as it is elaborated for an FPGA with distributed RAM."""

    def __init__(self, config: SatConfig):
        self.uspe = Uspe(config)

    def elaborate(self, platform):
        return self.uspe.elaborate(VerilogPlatform(distributed_ram=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_chain_of_memory_gives_what_one_of_registers_does(name):
    config, rng = CONFIGS[name], np.random.default_rng(7)
    registers, memory = Uspe(config), Made(config)
    m = Module()
    m.submodules += [registers, memory]
    # Sums that were under way when the dataflow changed are nobody's.
    delay = config.interleave + 1
    ws = np.repeat([0, 1, 0, 1, 1, 0], 80)
    given, taken = [], []

    async def drive(ctx):
        for cycle, chosen in enumerate(ws):
            words = {"ws": int(chosen)}
            for port in ("a_in", "b_in", "psum_in"):
                bits = len(Value.cast(getattr(registers, port)))
                words[port] = int.from_bytes(rng.bytes(bits // 8 + 1), "little") % (1 << bits)
            for made in (registers, memory.uspe):
                for port, word in words.items():
                    ctx.set(Value.cast(getattr(made, port)), word)
            given.append(words["psum_in"])
            if len(set(ws[max(0, cycle - delay) : cycle + 1])) == 1:
                taken.append(ctx.get(registers.psum_out))
                assert ctx.get(memory.uspe.psum_out) == taken[-1], cycle
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.run()
    # Some come from the north, some from the adder.
    assert len(set(taken) & set(given)) > 50 < len(set(taken) - set(given))
