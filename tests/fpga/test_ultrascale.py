"""Cells of an UltraScale+ as LUTs, flip-flops, multipliers and block RAMs."""

from __future__ import annotations

import pytest

from sat.fpga.card import CARD_CONFIG
from sat.fpga.ultrascale import UltraArea, area_of, pairs_of, ultrascale_area
from sat.rtl.fp.adder import Adder
from sat.rtl.uspe import Uspe


def test_cells_are_counted_as_the_luts_that_they_take():
    """By hand, of each kind; a carry chain takes no LUT of its own."""
    cells = {
        "LUT1": 1, "LUT6": 2, "INV": 3, "SRL16E": 4, "RAM32M16": 2, "RAM64X1D": 1, "FDRE": 5,
        "FDSE": 1, "DSP48E2": 2, "RAMB36E2": 1, "RAMB18E2": 3, "CARRY4": 9, "MUXF7": 9,
    }  # fmt: skip
    area = area_of(cells)
    assert area == UltraArea(lut=6, memory_lut=22, ff=6, dsp=2, ramb36=2.5)
    assert area.luts == 28
    assert area * 2 - area == area + UltraArea()
    assert UltraArea(lut=6, memory_lut=22, pairs=2).shared_luts == 26


@pytest.mark.parametrize(
    "inputs, pairs",
    [
        ((), 0),
        (("ab",), 0),
        (("ab", "ba"), 1),
        (("ab", "ab", "ab"), 1),
        # Among the other's; not where each has one of its own, though they are four in all.
        (("ab", "abc"), 1),
        (("abc", "bcd"), 0),
        # A LUT of six inputs has one function.
        (("abcdef", "ab"), 0),
        (("abcdef", "abcdef"), 0),
        (("abcde", "abcde"), 1),
        # Two of three go with one; the third has nobody left.
        (("abcde", "abc", "bc"), 1),
        (("abcde", "abc", "bc", "c"), 2),
        (("a", "b"), 0),
    ],
)
def test_functions_of_the_same_inputs_share_a_lut(inputs, pairs):
    """Whatever order they are in; a constant is no input, and memory shares nothing."""
    cells = {
        n: {
            "type": "INV" if len(names) == 1 else f"LUT{len(names) + 1}",
            "connections": {
                **{f"I{at}": [ord(name)] for at, name in enumerate(names)}, "K": ["1"], "O": [n],
            },
            "port_directions": dict.fromkeys(["K", *(f"I{at}" for at in range(6))], "input")
            | {"O": "output"},
        }
        for n, names in enumerate(inputs, 1000)
    }  # fmt: skip
    memory = {
        "type": "SRL16E", "connections": {"D": [97], "Q": [1]},
        "port_directions": {"D": "input", "Q": "output"},
    }  # fmt: skip
    for order in (list(cells), list(reversed(cells))):
        assert pairs_of({"cells": {n: cells[n] for n in order} | {"m": memory}}) == pairs


def test_an_adder_goes_through_yosys():
    area = ultrascale_area(Adder(4))
    assert 400 < area.luts < 450 and area.ff == 173 and area.dsp == 0


def test_an_element_of_a_card_takes_640_luts():
    """With its chain in registers it is 682; with Yosys' own prices of LUTs 708."""
    area = ultrascale_area(Uspe(CARD_CONFIG))
    assert area.luts <= 640 and area.dsp == 1 and area.ramb36 == 0
    assert area.memory_lut >= 16 + 16  # weights, and a chain of two bits a LUT
