"""The clock of a board's gateware: the PLL of an ECP5, set for a frequency."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from amaranth import *
from amaranth.hdl import Instance

MHZ = 1_000_000

_DIVIDERS = range(1, 129)
_PHASE_DETECTOR = (10 * MHZ, 400 * MHZ)
_OSCILLATOR = (400 * MHZ, 800 * MHZ)
_OUTPUT = (Fraction(25, 8) * MHZ, 400 * MHZ)
"""Limits in Hz: Lattice FPGA-DS-02012, table "sysCLOCK PLL Timing"."""


@dataclass(frozen=True)
class Pll:
    """Dividers that make one frequency of another, exactly.

    The oscillator runs at ``input / input_divider * feedback_divider``, and the output at that over
    ``output_divider``.

    Parameters
    ----------
    input_hz, output_hz : int
    input_divider, feedback_divider, output_divider : int
    """

    input_hz: int
    output_hz: int
    input_divider: int
    feedback_divider: int
    output_divider: int

    @classmethod
    def of(cls, input_hz: int, output_hz: int) -> Pll:
        """Return the PLL that makes ``output_hz`` of ``input_hz``.

        Of several the one with the fastest phase detector, then the fastest oscillator: both mean
        less jitter.

        Raises
        ------
        ValueError
            No dividers make exactly that.
        """
        made = _outputs(input_hz)
        if output_hz in made:
            return made[Fraction(output_hz)]
        whole = sorted(int(hz) for hz in made if hz.denominator == 1)
        below = [hz for hz in whole if hz < output_hz][-1:]
        above = [hz for hz in whole if hz > output_hz][:1]
        near = " or ".join(f"{hz / MHZ:.6f}".rstrip("0").rstrip(".") for hz in below + above)
        raise ValueError(
            f"clock={output_hz / MHZ:g} MHz: no PLL of an ECP5 makes exactly that of "
            f"{input_hz / MHZ:g} MHz; take {near}"
        )

    def instance(self, clk: Value, made: Value, locked: Value) -> Instance:
        """Return the PLL's cell, from an input clock to the clock made and its lock."""
        feedback = Signal()
        # CLKOP, a copy of the phase detector's frequency, closes the loop; CLKOS is the output.
        outputs = {"CLKOP": self.feedback_divider, "CLKOS": self.output_divider}
        settings = {
            **{f"p_{name}_ENABLE": "ENABLED" for name in outputs},
            **{f"p_{name}_DIV": divider for name, divider in outputs.items()},
            **{f"p_{name}_CPHASE": divider - 1 for name, divider in outputs.items()},
            **{f"p_{name}_FPHASE": 0 for name in outputs},
        }
        return Instance(
            "EHXPLLL",
            # What Lattice's tools set for the loop filter, whatever the dividers.
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            p_CLKI_DIV=self.input_divider,
            p_CLKFB_DIV=1,
            p_FEEDBK_PATH="CLKOP",
            **settings,
            i_CLKI=clk,
            i_CLKFB=feedback,
            i_RST=C(0),
            i_STDBY=C(0),
            i_PHASESEL0=C(0),
            i_PHASESEL1=C(0),
            i_PHASEDIR=C(0),
            i_PHASESTEP=C(0),
            i_PHASELOADREG=C(0),
            i_PLLWAKESYNC=C(0),
            i_ENCLKOP=C(0),
            i_ENCLKOS=C(0),
            o_CLKOP=feedback,
            o_CLKOS=made,
            o_LOCK=locked,
        )


def _outputs(input_hz: int) -> dict[Fraction, Pll]:
    """Return the frequencies that can be made, each with its best dividers."""
    made: dict[Fraction, Pll] = {}
    for input_divider in _DIVIDERS:
        detector = Fraction(input_hz, input_divider)
        if not _PHASE_DETECTOR[0] <= detector <= _PHASE_DETECTOR[1]:
            continue
        for feedback_divider in reversed(_DIVIDERS):
            oscillator = detector * feedback_divider
            if not _OSCILLATOR[0] <= oscillator <= _OSCILLATOR[1]:
                continue
            for output_divider in _DIVIDERS:
                hz = oscillator / output_divider
                if _OUTPUT[0] <= hz <= _OUTPUT[1] and hz not in made:
                    made[hz] = Pll(
                        input_hz, int(hz), input_divider, feedback_divider, output_divider
                    )
    return made
