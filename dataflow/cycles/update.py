"""When the update engine does what: the Python side of `sat.rtl.update`'s timing."""

from __future__ import annotations

from sat.dataflow.cycles.timing import Times
from sat.rtl import isa
from sat.rtl.config import SatConfig
from sat.rtl.isa import Opcode
from sat.rtl.update import column_drain, row_drain


class UpdateTiming:
    """Exact timing of a `sat.rtl.update.UpdateEngine`, instruction by instruction.

    Parameters
    ----------
    config : SatConfig

    Attributes
    ----------
    idle : int
        First cycle in which ``busy`` is low after everything accepted so far.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        self.idle = 0
        self._row_free = 0  # first cycle in which an UPDATE may be accepted
        self._column_free = 0  # first cycle in which a column pass may begin

    def run(self, instruction: isa.Instruction, earliest: int) -> Times:
        """Return when an instruction offered from cycle ``earliest`` on is accepted and done."""
        i, lanes = instruction, self.config.update_lanes
        if i.opcode is Opcode.RATES:
            accept = max(earliest, self._row_free, self._column_free)
            self._row_free = max(self._row_free, accept + 1)
            self.idle = max(self.idle, accept + 2)
            return Times(accept, accept + 1, accept + 1)
        accept = max(earliest, self._row_free)
        groups = -(-i.rows // lanes)
        last = accept + groups * i.columns
        column = max(last + row_drain(self.config), self._column_free)
        length = -(-i.columns // lanes) * groups * lanes
        signal = column + length + column_drain(self.config)
        self._row_free = column
        self._column_free = signal
        self.idle = signal + 1
        return Times(accept, last + 1, signal)
