"""Bundles that pass between blocks, each defined once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.lib import data

from sat.rtl import isa
from sat.rtl.config import INDICES_TOGETHER, SEMAPHORES, SatConfig

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


@dataclass(frozen=True)
class Groups:
    """Groups of channels, one to each bank, whose words are written in one cycle.

    The groups' words in bank 0 lie in as many sub-banks, in bank b each b further up. Which group
    a sub-bank takes changes from write to write, but not at which of as many *places* it finds it:
    that follows from the sub-bank's number, counted from the bank's own. The word of the next
    group is at the next place.

    Attributes
    ----------
    count : int
        Groups, a power of two.
    apart : int
        Neighbouring sub-banks with the same place.
    """

    count: int = 1
    apart: int = 1

    def place(self, sub_bank: int) -> int:
        """Return at which place a sub-bank of bank 0 finds its group."""
        return sub_bank // self.apart % self.count


ALONE = Groups()
"""One group, at the one place that there is."""


def operand_groups(config: SatConfig, banks: int) -> Groups:
    """Return the groups that a transposed GATHER writes: `apart` is `SatConfig.wide_stride`."""
    return Groups(config.wide_groups(banks), config.wide_stride(banks))


def index_groups(config: SatConfig) -> Groups:
    """Return the groups whose indices a GATHER that prunes writes.

    They are a quarter of B's stride apart. That alone would leave open how many rounds of the
    sub-banks each is further than the last: so places take turns four times as fast as in B.
    """
    if not config.prune_gathers or config.b_groups == 1:
        return ALONE
    return Groups(config.b_groups, config.wide_stride(config.cols) // INDICES_TOGETHER)


def bank_write_layout(
    banks: int, words: int, together: int, lanes: int, lane_bits: int, groups: int = 1
) -> data.StructLayout:
    """Return a write into banks of words, each of so many lanes that can be written apart.

    ``together`` is `SatConfig.beat_words`. If it is 1, the same word, or part of one, goes to the
    same address of each bank of a mask. Else a bank is that many sub-banks, and word ``a`` of
    bank ``b`` lies in row a div together of sub-bank (a + b) mod together: neither words that
    follow each other in a bank nor the same words of neighbouring banks share a sub-bank, so
    that either sort is written in one cycle. Sub-bank x of each bank of the mask is offered row
    ``address[x]`` and word x of ``data``; those that take it are ``enable`` or, if ``diagonal``,
    `enable` turned up by the number of the bank: one word for each bank.

    With several ``groups`` there is a mask of banks for each place of `Groups`, the first lowest,
    and what ``diagonal`` turns up are the rows, too: a word for each bank and place.
    """
    members: dict[str, Any] = {"banks": groups * banks, "lanes": lanes}
    if together == 1:
        members["address"] = (words - 1).bit_length()
    else:
        row_bits = (words // together - 1).bit_length()
        members["address"] = data.ArrayLayout(row_bits, together)
        members |= {"enable": together, "diagonal": 1}
    members["data"] = data.ArrayLayout(lane_bits, lanes * together)
    return data.StructLayout(members)


def operand_write_layout(config: SatConfig, banks: int, words: int) -> data.StructLayout:
    """Return a write into an operand buffer: `bank_write_layout` of decoded operands.

    With ``transpose`` all lanes of a word of bank x are offered one of its elements: number
    (x mod the elements of a beat) div `SatConfig.beat_words`; of several groups, the same number
    at each place, and the elements of one place follow those of the last.
    """
    layout = bank_write_layout(
        banks, words, config.beat_words, config.max_m, OPERAND_BITS, config.wide_groups(banks)
    )
    return data.StructLayout({**dict(layout.members), "transpose": 1})


def index_write_layout(config: SatConfig) -> data.StructLayout:
    """Return a write into the index buffer: 16-bit lanes of packed indices.

    With ``transpose``, where GATHERs prune, it is as in `operand_write_layout`.
    """
    layout = bank_write_layout(
        config.cols, config.i_words, config.beat_words, config.max_m, 16, index_groups(config).count
    )
    transpose = {"transpose": 1} if config.prune_gathers else {}
    return data.StructLayout({**dict(layout.members), **transpose})


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
    layout = bank_write_layout(
        config.update_lanes, config.update_words, config.beat_words, 1, 8 * config.granule_bytes
    )
    # A bit each for weights, momenta, gradients.
    return data.StructLayout({**dict(layout.members), "buffers": 3})
