"""Bundles that pass between blocks, each defined once."""

from __future__ import annotations

from amaranth.lib import data

from sat.rtl import isa
from sat.rtl.config import SEMAPHORES, SatConfig

PC_BITS = 24
"""Bits of a program counter: an instruction's number in its program."""

OPERAND_BITS = 17
"""Bits of an operand in its decoded form (`sat.rtl.fp.operand.OPERAND`)."""


def command_layout(body: data.StructLayout) -> data.StructLayout:
    """Return what an engine receives for one instruction: its number, masks and body."""
    return data.StructLayout(
        {"pc": PC_BITS, "release": SEMAPHORES, "signal": SEMAPHORES, "body": body}
    )


def any_command_layout() -> data.StructLayout:
    """Return what an engine with several opcodes receives for one instruction."""
    return data.StructLayout(
        {
            "opcode": 8,
            "pc": PC_BITS,
            "release": SEMAPHORES,
            "signal": SEMAPHORES,
            "body": isa.BODY_BITS,
        }
    )


def operand_write_layout(config: SatConfig, banks: int, words: int) -> data.StructLayout:
    """Return a write into an operand buffer.

    The same part of a word goes into each bank of a mask; or, with ``transpose``, all lanes of
    bank x are offered the element x mod the elements of a beat.
    """
    return data.StructLayout(
        {
            "banks": banks,
            "address": (words - 1).bit_length(),
            "lanes": config.max_m,
            "transpose": 1,
            "data": data.ArrayLayout(OPERAND_BITS, config.max_m),
        }
    )


def index_write_layout(config: SatConfig) -> data.StructLayout:
    """Return a write into the index buffer: 16-bit lanes of packed indices."""
    return data.StructLayout(
        {
            "banks": config.cols,
            "address": (config.i_words - 1).bit_length(),
            "lanes": config.max_m,
            "data": data.ArrayLayout(16, config.max_m),
        }
    )


def start_write_layout(config: SatConfig) -> data.StructLayout:
    """Return a write into the start buffer: one FP32 sum for each column of a mask."""
    return data.StructLayout(
        {
            "banks": config.cols,
            "address": (config.sum_words - 1).bit_length(),
            "data": data.ArrayLayout(32, config.cols),
        }
    )


def mask_write_layout(config: SatConfig) -> data.StructLayout:
    """Return a write into the mask buffer: a bit for each column."""
    return data.StructLayout(
        {"write": 1, "address": (config.sum_words - 1).bit_length(), "data": config.cols}
    )


def update_write_layout(config: SatConfig) -> data.StructLayout:
    """Return a write into the update engine's banks: a beat into one lane's bank of one buffer."""
    return data.StructLayout(
        {
            "banks": config.update_lanes,
            "buffers": 3,  # a bit each for weights, momenta, gradients
            "address": (config.update_words - 1).bit_length(),
            "data": config.axi.data_bits,
        }
    )
