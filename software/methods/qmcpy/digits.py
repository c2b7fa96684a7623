"""Digits of points: radical inverses, generating matrices as products, scrambles, interlacing."""

from __future__ import annotations

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts

MAX_BITS = 63
"""Of a point: int64 without its sign."""
FLOAT_BITS = 53
"""Of a point in [0, 1) that float64 holds without rounding up to 1."""
MAX_BASE = 2039
"""Products of digits add up to less than 2^24, where float32 stops being exact, up to it, and
float16 holds them."""

# Odd constants of splitmix64: Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number
# Generators", figure 16; as int64, which wraps around as the paper's arithmetic does.
_STEP, _FIRST, _SECOND = (
    value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def require_power(name: str, n: int) -> int:
    """Return m if n is 2^m, or raise ValueError."""
    if not isinstance(n, int) or n < 1 or n & (n - 1):
        raise ValueError(f"{name}={n!r}: must be a power of two")
    return n.bit_length() - 1


def reverse_bits(i: Tensor, bits: int) -> Tensor:
    """Return integers with their lowest bits in reverse order: 2^bits times the radical inverse."""
    out = torch.zeros_like(i)
    for k in range(bits):
        out |= ((i >> k) & 1) << (bits - 1 - k)
    return out


def gray(i: Tensor) -> Tensor:
    """Return the Gray code of integers."""
    return i ^ (i >> 1)


def to_digits(values: Tensor, base: int, digits: int) -> Tensor:
    """Return the digits of integers below base^digits, most significant first, on a new axis -2.

    Parameters
    ----------
    values : torch.Tensor
        (…, m) int64.

    Returns
    -------
    torch.Tensor
        (…, digits, m) int64.
    """
    out = torch.empty(*values.shape[:-1], digits, values.shape[-1], dtype=torch.int64)
    for k in reversed(range(digits)):
        out[..., k, :] = values % base
        values = values // base
    return out


def from_digits(digits: Tensor, base: int) -> Tensor:
    """Return integers of digits (…, t, m), most significant first, as (…, m) int64."""
    out = torch.zeros(*digits.shape[:-2], digits.shape[-1], dtype=torch.int64)
    for digit in digits.unbind(-2):
        out = out * base + digit
    return out


def digit_product(matrix: Tensor, digits: Tensor, base: int) -> Tensor:
    """Return a matrix product modulo the base, exactly, as a product of float32.

    Parameters
    ----------
    matrix : torch.Tensor
        (…, t, m) int64, from 0 to base - 1.
    digits : torch.Tensor
        (…, m, n) int64, likewise.

    Returns
    -------
    torch.Tensor
        (…, t, n) int64. Operands are exact in float16 and sums in float32, for
        m (base - 1)² < 2^24.

    Raises
    ------
    ValueError
        If sums may not be exact.
    """
    if matrix.shape[-1] * (base - 1) ** 2 >= 2**24 or base > MAX_BASE:
        raise ValueError(
            f"base={base} with {matrix.shape[-1]} digits: sums must stay below 2^24; take fewer "
            "points or dimensions"
        )
    return (matrix.float() @ digits.float()).long() % base


def linear_matrix_scramble(
    columns: Tensor, base: int, bits: int, generator: torch.Generator, replications: int = 1
) -> Tensor:
    """Return generating matrices multiplied by random lower triangular ones, modulo the base.

    Parameters
    ----------
    columns : torch.Tensor
        (d, t, m) int64, digits of each column, most significant first.
    base : int
        Prime, at most 2039.
    bits : int
        Digits of the results, at least t: rows beyond t are random throughout.
    generator : torch.Generator
    replications : int

    Returns
    -------
    torch.Tensor
        (replications, d, bits, m) int64. Diagonals are uniform from 1 to base - 1, what is below
        from 0 to base - 1, one matrix a replication and dimension.

    Raises
    ------
    ValueError
        If there are fewer digits than before.

    Source
    ------
    Matoušek 1998, "On the L2-discrepancy for anchored boxes"; Owen 2003 calls it so.
    """
    require_counts(base=base, bits=bits, replications=replications)
    d, t, _ = columns.shape
    if bits < t:
        raise ValueError(f"bits={bits}: must be at least the {t} digits of columns")
    # Drawn in one piece whatever m is: later points then extend the same scramble.
    below = torch.randint(base, (replications, d, bits, t), generator=generator)
    diagonal = torch.randint(1, base, (replications, d, t), generator=generator)
    lower = below.tril(-1)
    lower.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
    return digit_product(lower, columns, base)


def interlace(columns: Tensor, alpha: int, bits_in: int, bits_out: int) -> Tensor:
    """Return integers whose digits take turns between alpha coordinates.

    Parameters
    ----------
    columns : torch.Tensor
        (…, alpha d, m) int64: columns of generating matrices, or points with m of them.
    alpha : int
    bits_in, bits_out : int
        Digits before, and kept after, at most 63.

    Returns
    -------
    torch.Tensor
        (…, d, m) int64: digit q of coordinate j is digit q // alpha of coordinate
        alpha j + q % alpha; digits beyond ``bits_in`` are zero.

    Raises
    ------
    ValueError
        If alpha does not divide the coordinates, or there are too many digits.

    Source
    ------
    Dick 2011, "Higher order scrambled digital nets achieve the optimal rate", section 2.
    """
    require_counts(alpha=alpha, bits_in=bits_in, bits_out=bits_out)
    if columns.ndim < 2 or columns.shape[-2] % alpha:
        raise ValueError(
            f"columns has shape {tuple(columns.shape)}: alpha={alpha} must divide its axis -2"
        )
    if max(bits_in, bits_out) > MAX_BITS:
        raise ValueError(f"bits_in={bits_in}, bits_out={bits_out}: must be at most {MAX_BITS}")
    parts = columns.unflatten(-2, (-1, alpha))
    out = torch.zeros_like(parts[..., 0, :])
    for q in range(min(bits_out, alpha * bits_in)):
        bit = (parts[..., q % alpha, :] >> (bits_in - 1 - q // alpha)) & 1
        out |= bit << (bits_out - 1 - q)
    return out


def mix(x: Tensor) -> Tensor:
    """Return int64 numbers scrambled by splitmix64's last step: no pattern of x survives."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Return a shift to the right that fills with zeros."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def nested_scramble(digits: Tensor, base: int, keys: Tensor, count: int) -> Tensor:
    """Return digits permuted one by one, each by a permutation of its own for the digits before.

    Parameters
    ----------
    digits : torch.Tensor
        (d, t, n) int64, most significant first.
    base : int
    keys : torch.Tensor
        (R, d) int64: a tree of permutations each.
    count : int
        Digits returned; those beyond t are taken to be zero before.

    Returns
    -------
    torch.Tensor
        (R, d, count, n) int64. A permutation is a function of key and digits before, so more
        points, at any time, meet the same tree, and none is ever stored.

    Source
    ------
    Owen 1995, "Randomly permuted (t, m, s)-nets and (t, s)-sequences".
    """
    d, t, n = digits.shape
    out = torch.empty(len(keys), d, count, n, dtype=torch.int64)
    node = keys[..., None].expand(-1, -1, n)
    choices = torch.arange(base + 1, 2 * base + 1)
    for k in range(count):
        digit = digits[:, k] if k < t else torch.zeros(d, n, dtype=torch.int64)
        if base == 2:
            out[:, :, k] = digit ^ (mix(node) & 1)
        else:
            # The order of as many random numbers is a uniform permutation.
            order = mix(node[..., None] + choices * _STEP).argsort(-1)
            index = digit.expand(len(keys), -1, -1)[..., None]
            out[:, :, k] = order.gather(-1, index)[..., 0]
        node = mix(node + (digit + 1) * _STEP)
    return out
