"""A board together with the chip at its pins, for simulation."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.board import Board
from sat.fpga.sdram.memory import SdramMemory
from sat.fpga.sdram.model import Rule, SdramChip


class BoardWithSdram(wiring.Component):
    """A board and the chip at its pins, whose clock is half a cycle late.

    A board that breaks one of the chip's rules has lost its link: ``tx`` stays low.

    Parameters
    ----------
    board : Board
        With an SDRAM.

    Raises
    ------
    ValueError
        It has none.
    """

    def __init__(self, board: Board) -> None:
        if not isinstance(board.memory, SdramMemory):
            raise ValueError("the board's memory is block RAM: make it with sdram=Geometry()")
        self.board = board
        self.chip = SdramChip(board.clock_hz, board.memory.controller.geometry)
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.board, m.submodules.chip = self.board, self.chip
        m.domains.sdram = ClockDomain(reset_less=True)
        m.d.comb += [
            ClockSignal("sdram").eq(~ClockSignal()),
            self.board.rx.eq(self.rx),
            self.tx.eq(self.board.tx & (self.chip.broken == Rule.NONE)),
        ]
        wiring.connect(m, self.board.sdram, self.chip.pins)
        return m
