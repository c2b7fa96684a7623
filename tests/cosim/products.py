"""Random products with awkward numbers, and how to run one on the simulated device."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from sat.dataflow.compile import compile_product
from sat.dataflow.cycles import predict
from sat.dataflow.host import read_result, write_product
from sat.dataflow.mapping import Mapping
from sat.dataflow.products import Product, StartShape
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden import sore, stce

SPECIAL = np.array(
    [0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 65504, -65504, np.inf, -np.inf, np.nan, 1, -1], np.float16
)
CANARY = 0xA5


def halves(rng: np.random.Generator, shape, specials: float = 0.0) -> np.ndarray:
    """Return FP16 values over the whole range of exponents, a share of them special."""
    bits = rng.integers(0, 1 << 16, shape, dtype=np.uint16)
    near_one = rng.standard_normal(shape).astype(np.float16)
    wide = bits.view(np.float16)
    values = np.where(np.isfinite(wide) & (rng.random(shape) < 0.3), wide, near_one)
    return np.where(rng.random(shape) < specials, rng.choice(SPECIAL, shape), values)


def random_product(rng: random.Random, config: SatConfig) -> Product:
    """Return a product of 1 to 70 rows, columns and depth under any pattern of the device."""
    m = rng.choice([1, *(m for m in (2, 4, 8, 16) if m <= config.max_m)])
    return Product(
        *(rng.randint(1, 70) for _ in range(3)),
        rng.randint(1, m),
        m,
        rng.choice(list(StartShape)),
    )


@dataclass
class Case:
    """A product's numbers, and the result that the golden model gives."""

    product: Product
    a: np.ndarray
    values: np.ndarray
    indices: np.ndarray | None
    start: np.ndarray | None
    want: np.ndarray


def make_case(product: Product, seed: int, specials: float = 0.0) -> Case:
    """Return random numbers for a product."""
    rng = np.random.default_rng(seed)
    stack = () if product.count == 1 else (product.count,)
    a = halves(rng, (*stack, product.rows, product.depth), specials)
    b = halves(rng, (*stack, product.depth, product.cols), specials)
    start = first = None
    if product.start is not StartShape.ZERO:
        shape = (*stack, product.cols)
        if product.start is StartShape.MATRIX:
            shape = (*stack, product.rows, product.cols)
        start = rng.standard_normal(shape).astype(np.float32)
        start[rng.random(shape) < 0.1] = -0.0
        first = start
        if stack and product.start is StartShape.ROW:
            first = np.broadcast_to(start[:, None], (*stack, product.rows, product.cols))
    if product.dense:
        return Case(product, a, b, None, start, stce.matmul(a, b, first))
    values, indices = sore.select(b, product.n, product.m, axis=-2)
    pattern = (product.n, product.m)
    want = stce.matmul(a, stce.NMOperand(values, indices, pattern, product.depth), first)
    return Case(product, a, values, indices, start, want)


@dataclass
class Ran:
    """What the device made of a case."""

    got: np.ndarray
    cycles: int
    predicted: int
    mapping: Mapping


def run_case(device: DeviceRtl, config: SatConfig, case: Case, mapping: Mapping) -> Ran:
    """Run a case under a mapping; check that nothing but the result's region changed."""
    compiled = compile_product(case.product, config, mapping)
    where = compiled.memory
    memory = device.memory
    memory[: where.end + 4096] = CANARY
    write_product(memory, where, compiled.program, case.a, case.values, case.indices, case.start)
    before = memory[: where.end + 4096].copy()
    outcome = device.run(where.program.address, len(compiled.program))
    assert outcome.status is Status.DONE, (case.product, mapping, outcome)
    after = memory[: where.end + 4096].copy()
    result = where.result
    for row in range(result.rows):
        at = result.address + row * result.pitch
        after[at : at + result.row_bytes] = before[at : at + result.row_bytes]
    assert np.array_equal(after, before), "the device wrote outside the result"
    predicted = predict(compiled.program, config, device.timing).cycles
    return Ran(read_result(memory, where), outcome.cycles, predicted, mapping)


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """Assert that two FP32 arrays agree in every bit (NaN is canonical in both)."""
    assert got.dtype == want.dtype == np.float32
    different = got.view(np.uint32) != want.view(np.uint32)
    assert not different.any(), (
        f"{different.sum()} of {got.size} sums differ, first at "
        f"{tuple(np.argwhere(different)[0])}: {got[different][0]!r} != {want[different][0]!r}"
    )
