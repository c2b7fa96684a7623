"""What every engine's timing model says of an instruction."""

from __future__ import annotations

from typing import NamedTuple


class Times(NamedTuple):
    """Cycles in which an instruction is accepted, releases its inputs, signals its outputs."""

    accept: int
    release: int
    signal: int
