"""Registers between the steps of an arithmetic unit."""

from __future__ import annotations

from collections.abc import Collection

from amaranth import *


def pass_on(m: Module, cuts: Collection[str], step: str, **values: Signal) -> list[Signal]:
    """Return what goes on to the next step, through registers if they stand here.

    Parameters
    ----------
    m : Module
    cuts : collection of str
        Steps that end in registers.
    step : str
        The one that ends here.
    **values : Signal
        What goes on, by name; registers are named for step and value.
    """
    if step not in cuts:
        return list(values.values())
    registers = []
    for name, value in values.items():
        register = Signal(value.shape(), name=f"{step}_{name}", reset_less=True)
        m.d.sync += register.eq(value)
        registers.append(register)
    return registers
