"""The golden weight update against torch's optimizer and exact rationals."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat.rtl.fp.formats import FP32
from sat.rtl.isa import Instruction, Opcode
from sat.sim.golden import sore
from sat.sim.golden.update import Rates, narrow, non_finite, sgd, update_tile

NAN = FP32.canonical_nan
Float32 = np.ndarray


def bits(x: float) -> int:
    """Return the bits of an FP32 number."""
    with np.errstate(over="ignore"):
        return int(np.float32(x).view(np.uint32))


def rates_of(lr: float, momentum: float, decay: float, unscale: float = 1.0) -> Rates:
    return Rates(bits(lr), bits(momentum), bits(decay), bits(decay), bits(unscale))


def same(a: Float32, b: Float32) -> bool:
    """Whether all bits are equal, whatever the payload of a NaN."""
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


def torch_step(w, v, g, lr: float, momentum: float, decay: float, **options):
    """Return w' and v' of one step of `torch.optim.SGD`; without v it is the first step."""
    p = torch.nn.Parameter(torch.from_numpy(w.copy()))
    p.grad = torch.from_numpy(g.copy())
    optimizer = torch.optim.SGD([p], lr=lr, momentum=momentum, weight_decay=decay, **options)
    if v is not None:
        optimizer.state[p]["momentum_buffer"] = torch.from_numpy(v.copy())
    optimizer.step()
    after = optimizer.state[p].get("momentum_buffer")
    return p.detach().numpy(), None if after is None else after.numpy()


def fma(a: float, x: Float32, y: Float32) -> Float32:
    """Return a * x + y of FP32 numbers, rounded once, for moderate numbers.

    The product is exact in binary64. Their sum is rounded to odd there, which a second rounding,
    to at most 53 - 2 bits, cannot make wrong.
    """
    product, addend = np.float64(np.float32(a)) * x.astype(np.float64), y.astype(np.float64)
    total = product + addend
    of_addend = total - product
    error = (product - (total - of_addend)) + (addend - of_addend)
    to_odd = (error != 0) & (total.view(np.int64) & 1 == 0)
    odd = np.where(to_odd, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    return odd.astype(np.float32)


def two_roundings(a: float, x: Float32, y: Float32) -> Float32:
    return y + np.float32(a) * x


def emulate(w, v, g, lr: float, momentum: float, decay: float, scaled_add):
    """Return what torch's sequence of operations gives with one kind of ``y + alpha * x``."""
    d = scaled_add(decay, w, g) if decay else g
    v = np.float32(momentum) * v + d if momentum else d
    return scaled_add(-lr, v, w), v


def moderate(seed: int, count: int = 20_000) -> list[Float32]:
    """Return weights, momenta and gradients."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(count).astype(np.float32) for _ in range(3)]


def with_specials(seed: int, count: int = 20_000) -> list[Float32]:
    rng = np.random.default_rng(seed)
    corners = np.array([0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, NAN])
    made = []
    for x in moderate(seed, count):
        few = rng.choice(np.concatenate([corners, corners | 0x80000000]), count).astype(np.uint32)
        made.append(np.where(rng.random(count) < 0.5, few.view(np.float32), x))
    return made


PLAIN = [(0.1, 0.9, 5e-4), (0.1, 0.9, 0.0), (0.05, 0.0, 1e-2), (0.3, 0.0, 0.0)]
OPTIONS = [{"foreach": False}, {"foreach": True}]


@pytest.mark.parametrize("options", OPTIONS + [{"fused": True}])
@pytest.mark.parametrize("momentum, decay", [(0.9, 0.25), (0.9, 0.0), (0.0, 0.25), (0.0, 0.0)])
@pytest.mark.parametrize("data", [moderate, with_specials])
def test_equals_torch_where_products_are_exact(options, momentum, decay, data):
    """With powers of two as rates a fused multiply-add rounds as often as two operations."""
    w, v, g = data(1)
    w_torch, v_torch = torch_step(w, v if momentum else None, g, 0.125, momentum, decay, **options)
    with np.errstate(all="ignore"):
        w_new, v_new = sgd(w, v, g, np.zeros(w.shape, bool), rates_of(0.125, momentum, decay))
    # A subnormal product is not exact: there, and only there, a fused one may differ.
    with np.errstate(all="ignore"):
        exact = np.abs(np.float64(decay) * w) >= 2.0**-126 if decay else np.ones(w.shape, bool)
        exact |= w == 0
        exact &= (np.abs(0.125 * v_new.astype(np.float64)) >= 2.0**-126) | (v_new == 0)
        exact |= np.isnan(w) | np.isnan(v_new)
    assert exact.mean() > 0.6
    assert same(w_new[exact], w_torch[exact])
    if momentum:
        assert same(v_new[exact], v_torch[exact])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lr, momentum, decay", PLAIN)
def test_torch_rounds_each_operation_or_fuses_all(options, lr, momentum, decay):
    """What the golden model's docstring says of torch's kernels, on this processor."""
    w, v, g = moderate(2)
    got = torch_step(w, v if momentum else None, g, lr, momentum, decay, **options)[0]
    twice = emulate(w, v, g, lr, momentum, decay, two_roundings)[0]
    once = emulate(w, v, g, lr, momentum, decay, fma)[0]
    assert np.count_nonzero(once != twice) > 1000  # the two can be told apart
    assert same(got, once) or same(got, twice)
    golden = sgd(w, v, g, np.zeros(w.shape, bool), rates_of(lr, momentum, decay))[0]
    assert same(golden, twice)
    # One rounding more or less: mostly a unit in the last place of the largest number met.
    assert np.abs(golden - got).max() <= 2 * np.spacing(np.float32(np.abs([w, v, g]).max()))


SCRIPT = """
import numpy as np, sys, torch
lr, momentum, decay = map(float, sys.argv[2:])
w, v, g = np.load(sys.argv[1])
p = torch.nn.Parameter(torch.from_numpy(w.copy()))
p.grad = torch.from_numpy(g)
optimizer = torch.optim.SGD([p], lr=lr, momentum=momentum, weight_decay=decay)
optimizer.state[p]["momentum_buffer"] = torch.from_numpy(v)
optimizer.step()
np.save(sys.argv[1], np.stack([p.detach().numpy(), v]))
"""


def test_equals_torch_without_vector_instructions(tmp_path):
    """Any rates: torch's plain kernels round every operation, as the device does."""
    w, v, g = moderate(3)
    file = tmp_path / "tensors.npy"
    np.save(file, np.stack([w, v, g]))
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file), "0.1", "0.9", "5e-4"],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        check=True,
    )
    want = np.load(file)
    got = sgd(w, v, g, np.zeros(w.shape, bool), rates_of(0.1, 0.9, 5e-4))
    assert np.array_equal(np.stack(got).view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("options", OPTIONS)
def test_first_step_differs_from_torch_in_a_sign_of_zero_only(options):
    w, _, g = with_specials(4)
    zeros = np.zeros_like(w)
    w_torch, v_torch = torch_step(w, None, g, 0.125, 0.5, 0.0, **options)
    w_new, v_new = sgd(w, zeros, g, np.zeros(w.shape, bool), rates_of(0.125, 0.5, 0.0))
    same_bits = (v_new.view(np.uint32) == v_torch.view(np.uint32)) | np.isnan(v_new)
    differ = ~same_bits
    assert differ.sum() > 100
    assert (g[differ] == 0).all() and np.signbit(g[differ]).all()
    assert not np.signbit(v_new[differ]).any()
    assert np.array_equal(w_new[w != 0], w_torch[w != 0], equal_nan=True)


def test_unscale_equals_a_gradient_scaler():
    w, v, g = moderate(5)
    inv = torch.tensor(1 / 1024.0)
    unscaled = torch.from_numpy(g.copy())
    torch._amp_foreach_non_finite_check_and_unscale_([unscaled], torch.zeros(1), inv)
    rates = rates_of(0.1, 0.9, 0.0, 1 / 1024.0)
    whole = sgd(w, v, g, np.zeros(w.shape, bool), rates)
    apart = sgd(w, v, unscaled.numpy(), np.zeros(w.shape, bool), rates_of(0.1, 0.9, 0.0))
    assert all(same(a, b) for a, b in zip(whole, apart, strict=True))


def exact_add(x: int, y: int) -> int:
    a, b = FP32.decode(x), FP32.decode(y)
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and a == -b):
        return NAN
    if math.isinf(a) or math.isinf(b):
        return x if math.isinf(a) else y
    return FP32.encode(Fraction(a) + Fraction(b), negative_zero=x >> 31 & y >> 31 == 1)


def exact_multiply(x: int, y: int) -> int:
    a, b = FP32.decode(x), FP32.decode(y)
    negative = (x ^ y) >> 31
    if math.isnan(a) or math.isnan(b) or {abs(a), abs(b)} == {0.0, math.inf}:
        return NAN
    if math.isinf(a) or math.isinf(b):
        return FP32.infinity | negative << 31
    return FP32.encode(Fraction(a) * Fraction(b), negative_zero=bool(negative))


CORNERS = [0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x3F800001, 0x7F7FFFFF, 0x7F800000]
CORNERS += [0x7F800001, NAN]
NUMBER = st.integers(0, (1 << 32) - 1) | st.builds(
    lambda x, sign: x | sign << 31, st.sampled_from(CORNERS), st.integers(0, 1)
)


@given(st.lists(NUMBER, min_size=3, max_size=3), st.lists(NUMBER, min_size=5, max_size=5), NUMBER)
def test_every_operation_is_rounded_once(weight, settings, other):
    """Against rationals, with the zeros of decay and momentum as the docstring has them."""
    w, v, g = weight
    rates = Rates(*settings)
    pruned = bool(other & 1)
    rate = rates.decay_pruned if pruned else rates.decay
    d = exact_multiply(g, rates.unscale)
    if rate & 0x7FFFFFFF:
        d = exact_add(d, exact_multiply(rate, w))
    new = d
    if rates.momentum & 0x7FFFFFFF:
        new = exact_add(exact_multiply(rates.momentum, v), d)
    want = exact_add(w, exact_multiply(rates.learning_rate ^ 1 << 31, new)), new
    arrays = (np.array([x], np.uint32).view(np.float32) for x in weight)
    got = sgd(*arrays, np.array([pruned]), rates)
    assert tuple(int(x.view(np.uint32)[0]) for x in got) == want


def tile(rows: int = 16, columns: int = 32) -> list[Float32]:
    return [x.reshape(rows, columns) for x in moderate(6, rows * columns)]


@pytest.mark.parametrize("ff, bp", [((2, 8), (2, 8)), ((1, 1), (2, 4)), ((5, 16), (1, 1))])
@pytest.mark.parametrize("skip", [False, True])
def test_copies_are_the_prunings_of_the_updated_weights(ff, bp, skip):
    w, v, g = tile()
    rates = Rates(bits(0.1), bits(0.9), bits(1e-3), bits(0.5), bits(1.0))
    made = update_tile(w, v, g, ff, bp, rates, skip)
    if skip:
        assert same(made.w, w) and same(made.v, v)
    half = torch.from_numpy(made.w).half().numpy()
    for copy, pattern, axis in ((made.ff, ff, 1), (made.bp, bp, 0)):
        lines = w.shape[1 - axis]
        kept = w.shape[axis] * pattern[0] // pattern[1]
        assert copy.values.shape == copy.indices.shape == (lines, kept)
        values, indices = (x if axis == 1 else np.ascontiguousarray(x.T) for x in copy)
        dense = sore.expand(values, indices, *pattern, w.shape[axis], axis)
        assert np.array_equal(dense, np.where(sore.mask(half, *pattern, axis), half, 0))


def test_pruned_weights_decay_by_their_own_rate():
    """Which weights are pruned is told by the old weights, as FP16, along the rows."""
    w, v, g = tile()
    g = g * 0
    rates = Rates(bits(1.0), 0, 0, bits(0.5), bits(1.0))
    made = update_tile(w, v, g, (2, 8), (2, 8), rates)
    groups = np.abs(w.astype(np.float16)).reshape(16, 4, 8)
    ranks = (-groups).argsort(axis=2, kind="stable").argsort(axis=2, kind="stable")
    pruned = (ranks >= 2).reshape(w.shape)
    assert pruned.mean() == 0.75
    assert np.array_equal(made.w, np.where(pruned, w * np.float32(0.5), w))


def test_ties_are_those_of_fp16():
    """Weights that FP32 tells apart and FP16 does not: the lower index is kept."""
    w = np.array([[1.0, 1.0 + 2.0**-20]], np.float32)
    zero = np.zeros_like(w)
    rates = Rates(bits(1.0), 0, 0, bits(0.5), bits(1.0))
    made = update_tile(w, zero, zero, (1, 2), (1, 1), rates)
    assert made.w.tolist() == [[1.0, 0.5 * (1.0 + 2.0**-20)]]
    assert made.ff.values.tolist() == [[1.0]] and made.ff.indices.tolist() == [[0]]


def test_skip_keeps_payloads_of_nan():
    w = np.array([[0x7F800001, 0xFFC12345]], np.uint32).view(np.float32)
    made = update_tile(w, w.copy(), w, (1, 1), (1, 1), rates_of(0.1, 0.9, 0.1), skip=True)
    assert made.w.view(np.uint32).tolist() == made.v.view(np.uint32).tolist()
    assert made.w.view(np.uint32).tolist() == [[0x7F800001, 0xFFC12345]]
    assert made.ff.values.view(np.uint16).tolist() == [[0x7E00, 0x7E00]]


def test_non_finite_counts():
    x = np.array([0, 1, np.inf, -np.inf, np.nan, 3e38, 1e-45], np.float32)
    assert non_finite(x) == 3
    assert non_finite(x[:2]) == 0


def test_rates_of_an_instruction():
    fields = {"learning_rate": 1, "momentum": 2, "decay": 3, "decay_pruned": 4, "unscale": 5}
    assert Rates.of(Instruction(Opcode.RATES, fields)) == Rates(**fields)
    assert Rates(unscale=bits(0.25)).number("unscale") == np.float32(0.25)


def test_narrow_agrees_with_torch():
    x = np.concatenate(with_specials(7))
    half = torch.from_numpy(x).half().numpy()
    assert np.array_equal(narrow(x), half, equal_nan=True)
    assert np.array_equal(np.signbit(narrow(x)), np.signbit(half) & ~np.isnan(x))
