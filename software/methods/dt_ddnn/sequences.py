"""Sequences of 5G's synchronisation signals: PSS, SSS and the demodulation reference of PBCH."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts

LENGTH = 127
"""Of PSS and SSS: a maximum-length sequence of a register of seven bits."""
DMRS = 144
"""Reference elements of a block's PBCH: every fourth one."""
CELLS, BLOCKS = 1008, 8
"""Cells that can be told apart; block indices that a reference can carry."""
ADVANCE = 1600
"""How many numbers of a Gold sequence are left out (TS 38.211, section 5.2.1)."""


def _register(start: tuple[int, ...], taps: tuple[int, ...]) -> Tensor:
    """Return the 127 bits of x(i + 7) = sum over taps of x(i + tap), modulo 2."""
    bits = list(start)
    while len(bits) < LENGTH:
        bits.append(sum(bits[tap - 7] for tap in taps) % 2)
    return torch.tensor(bits)


_ONE = (1, 0, 0, 0, 0, 0, 0)
_PSS = _register((0, 1, 1, 0, 1, 1, 1), (4, 0))
_SSS = _register(_ONE, (4, 0)), _register(_ONE, (1, 0))


def pss(n2: int | Tensor) -> Tensor:
    """Return the primary synchronisation signal.

    Parameters
    ----------
    n2 : int or torch.Tensor
        Which of three; int64 of any shape.

    Returns
    -------
    torch.Tensor
        (…, 127) float32, of 1 and -1.

    Raises
    ------
    ValueError
        If a number is outside 0 to 2.

    Source
    ------
    3GPP TS 38.211, section 7.4.2.2.
    """
    which = within("n2", n2, 3)
    places = (torch.arange(LENGTH) + 43 * which[..., None]) % LENGTH
    return 1.0 - 2.0 * _PSS[places]


def sss(n1: int | Tensor, n2: int | Tensor) -> Tensor:
    """Return the secondary synchronisation signal of cell 3 n1 + n2.

    Parameters
    ----------
    n1, n2 : int or torch.Tensor
        0 to 335 and 0 to 2; int64 of one shape.

    Returns
    -------
    torch.Tensor
        (…, 127) float32, of 1 and -1.

    Raises
    ------
    ValueError
        If a number is outside its range.

    Source
    ------
    3GPP TS 38.211, section 7.4.2.3.
    """
    one, two = within("n1", n1, CELLS // 3), within("n2", n2, 3)
    n = torch.arange(LENGTH)
    first = 15 * one.div(112, rounding_mode="floor") + 5 * two
    signs = [
        1.0 - 2.0 * bits[(n + shift[..., None]) % LENGTH]
        for bits, shift in zip(_SSS, (first, one % 112), strict=True)
    ]
    return signs[0] * signs[1]


def gold_sequence(c_init: int | Tensor, n: int) -> Tensor:
    """Return pseudo-random bits: two registers of 31 bits, added.

    Parameters
    ----------
    c_init : int or torch.Tensor
        Start of the second register, 0 to 2³¹ - 1; int64 of any shape.
    n : int
        How many bits.

    Returns
    -------
    torch.Tensor
        (…, n) int64, of 0 and 1.

    Raises
    ------
    ValueError
        If ``c_init`` is outside its range, or ``n`` no int of at least 1.

    Source
    ------
    3GPP TS 38.211, section 5.2.1.
    """
    require_counts(n=n)
    start = within("c_init", c_init, 2**31)
    flat = start.reshape(-1)
    ends = ADVANCE + n
    # Numbers lie along the first axis, so that a run of them is one operation for all starts.
    first, second = torch.zeros(2, ends + 31, len(flat), dtype=torch.int8).unbind()
    first[0] = 1
    second[:31] = (flat >> torch.arange(31)[:, None]) & 1
    for i in range(0, ends, 28):  # the next 28 are made of numbers that are there
        run = min(28, ends - i)
        back = [slice(i + lag, i + lag + run) for lag in range(4)]
        first[i + 31 : i + 31 + run] = first[back[3]] ^ first[back[0]]
        second[i + 31 : i + 31 + run] = (
            second[back[3]] ^ second[back[2]] ^ second[back[1]] ^ second[back[0]]
        )
    bits = (first ^ second)[ADVANCE:ends]
    return bits.long().mT.reshape(*start.shape, n)


def pbch_dmrs(cell_id: int | Tensor, issb: int | Tensor) -> Tensor:
    """Return PBCH's demodulation reference signal.

    Parameters
    ----------
    cell_id : int or torch.Tensor
        0 to 1007; int64 of any shape.
    issb : int or torch.Tensor
        The block's index, 0 to 7, of that shape.

    Returns
    -------
    torch.Tensor
        (…, 144) complex64, QPSK of power 1, in the order of symbols, then of subcarriers.

    Raises
    ------
    ValueError
        If a number is outside its range.

    Source
    ------
    3GPP TS 38.211, section 7.4.1.4.1.
    """
    cell, index = within("cell_id", cell_id, CELLS), within("issb", issb, BLOCKS) + 1
    start = 2048 * index * (cell.div(4, rounding_mode="floor") + 1) + 64 * index + cell % 4
    bits = gold_sequence(start, 2 * DMRS)
    signs = (1.0 - 2.0 * bits) * math.sqrt(0.5)
    return torch.complex(signs[..., 0::2].contiguous(), signs[..., 1::2].contiguous())


def within(name: str, value: int | Tensor, end: int) -> Tensor:
    """Return value as int64; raise ValueError unless all of it is from 0 to end - 1."""
    given = torch.as_tensor(value)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {given.dtype}: must be integers; use .long()")
    wrong = given[(given < 0) | (given >= end)]
    if len(wrong):
        raise ValueError(
            f"{name}={int(wrong[0])}: must be from 0 to {end - 1}; there are no others"
        )
    return given.long()
