"""The bits of `sat.offload`, operation by operation, against a record of them.

`offload_bits.json` holds a digest for each operation, type and precision: of results and gradients
over all sizes, on the golden device. Whatever makes offload faster leaves it as it is; a change of
docs/offload.md's arithmetic writes it anew: ``python tests/software/test_offload_bits.py``. Numbers
are made of integers and powers of two, and nothing but products touches them, so the record holds
on any machine.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import sat

RECORD = Path(__file__).with_name("offload_bits.json")

REALS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
COMPLEX = {"complex64": torch.complex64, "complex128": torch.complex128}
DTYPES = REALS | COMPLEX

SIZES = [(1, 1, 1), (6, 13, 5), (8, 8, 8), (17, 40, 3), (33, 300, 65), (2, 1, 40)]
"""Rows, depth, cols; stacks are of three."""


def products(r, d, c):
    """Return shapes and operation by name."""
    a, b, s = (r, d), (d, c), (r, c)
    return {
        "mm": ((a, b), torch.mm),
        "mm of views": (((d, r), (c, d)), lambda x, y: x.T @ y.T),
        "matmul of 3 and 2 axes": (((2, *a), b), torch.matmul),
        "mv": ((a, (d,)), torch.mv),
        "dot": (((d,), (d,)), torch.dot),
        "vdot": (((d,), (d,)), torch.vdot),
        "bmm": (((3, *a), (3, *b)), torch.bmm),
        "bmm of views": (((3, d, r), (3, c, d)), lambda x, y: x.mT @ y.mT),
        "bmm, one left": (((1, *a), (3, *b)), lambda x, y: torch.bmm(x.expand(3, -1, -1), y)),
        "addmm, row": (((c,), a, b), torch.addmm),
        "addmm, matrix": ((s, a, b), torch.addmm),
        "addmv": (((r,), a, (d,)), torch.addmv),
        "baddbmm": (((3, *s), (3, *a), (3, *b)), torch.baddbmm),
        "baddbmm, row": (((c,), (3, *a), (3, *b)), torch.baddbmm),
        "addbmm": ((s, (3, *a), (3, *b)), torch.addbmm),
        "einsum": (
            ((3, 2, *a), (3, 2, *b)),
            lambda x, y: torch.einsum("hgij,hgjk->ghik", x, y),
        ),
    }


CONVOLUTIONS = {
    "1d": ((2, 3, 9), (4, 3, 3), {"padding": 1}),
    "1d, groups": ((2, 4, 11), (6, 2, 3), {"stride": 2, "dilation": 2, "groups": 2}),
    "2d": ((2, 3, 5, 6), (4, 3, 3, 3), {"padding": 1}),
    "2d, uneven": ((1, 2, 7, 5), (3, 2, 3, 2), {"stride": (2, 3), "padding": (2, 1)}),
    "2d, depthwise": ((2, 20, 5, 4), (20, 1, 3, 3), {"padding": 1, "groups": 20}),
    "2d, depthwise, stride": ((2, 4, 7, 6), (8, 1, 3, 3), {"stride": 2, "groups": 4}),
    "2d, groups": ((2, 12, 5, 5), (6, 4, 3, 3), {"padding": 1, "groups": 3}),
    "3d": ((1, 2, 4, 3, 4), (3, 2, 2, 2, 3), {"padding": (1, 0, 1), "stride": (1, 2, 1)}),
    "transposed 1d": ((2, 4, 6), (4, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed 2d, groups": ((2, 4, 4, 3), (4, 2, 3, 3), {"stride": 2, "groups": 2}),
    "transposed 2d, depthwise": ((2, 6, 4, 3), (6, 1, 3, 3), {"stride": 2, "groups": 6}),
    "transposed 3d": ((1, 2, 3, 2, 2), (2, 3, 2, 3, 2), {"dilation": 2}),
}

SPECIAL = [0.0, -0.0, 6e-8, -3e-5, 70000.0, float("inf"), float("-inf"), float("nan")]


def numbers(shape, dtype, seed, special):
    """Return numbers of 11 to 45 bits over some thirty binades, a few special ones among them."""
    rng = np.random.default_rng([seed, *shape])
    parts = 2 if dtype in COMPLEX.values() else 1
    size = (*shape, parts)
    bits = rng.integers(9, 45, size)
    whole = rng.integers(-(1 << 45), 1 << 45, size) >> (45 - bits) << (45 - bits)
    x = np.ldexp(whole.astype(np.float64), rng.integers(-50, -43, size))
    x = np.where(rng.random(size) < 0.1, np.ldexp(x, -18), x)
    x = np.where(rng.random(size) < 0.05, 0.0, x)
    if special:
        x = np.where(rng.random(size) < 0.04, rng.choice(SPECIAL, size), x)
    made = torch.from_numpy(x)
    made = torch.view_as_complex(made) if parts == 2 else made[..., 0]
    return made.to(dtype)


def digest(tensors):
    """Return a digest of tensors' bits, every NaN the same."""
    found = hashlib.sha256()
    for x in tensors:
        x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
        x = torch.where(x.isnan(), torch.full_like(x, float("nan")), x).contiguous()
        found.update(f"{tuple(x.shape)} {x.dtype}".encode())
        found.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def results(shapes, op, dtype, special, options):
    """Return an operation's result and gradients, but those that are sums of torch's own."""
    leaves = [numbers(s, dtype, i, special).requires_grad_() for i, s in enumerate(shapes)]
    with sat.offload("golden", **options):
        y = op(*leaves)
        y.backward(numbers(y.shape, dtype, 9, special))
    own = [leaf.grad for leaf in leaves if leaf.ndim > 1 and leaf.shape[0] != 1]
    return [y.detach(), *own]


def record():
    """Yield names, and functions that return what is digested under them."""
    ways = {
        "fp16": {},
        "fp32": {"precision": "fp32"},
        "2:8 left": {"prune_left": "2:8"},
        "2:4 right": {"prune_right": "2:4"},
        "both": {"prune_left": "2:4", "prune_right": "2:8"},
    }
    for way, options in ways.items():
        dtypes = DTYPES if "precision" in options or not options else {"float32": torch.float32}
        for dtype_name, dtype in dtypes.items():
            for name in products(1, 1, 1):

                def every_size(name=name, dtype=dtype, options=options):
                    made = []
                    for size in SIZES:
                        for special in (False, True):
                            made += results(*products(*size)[name], dtype, special, options)
                    return made

                yield f"{way}, {dtype_name}, {name}", every_size
            if dtype in COMPLEX.values():
                continue
            for name, (x, w, case) in CONVOLUTIONS.items():

                def convolution(x=x, w=w, case=case, name=name, dtype=dtype, options=options):
                    kind = "conv_transpose" if name.startswith("transposed") else "conv"
                    conv = getattr(functional, f"{kind}{len(x) - 2}d")
                    outs = w[1] * case.get("groups", 1) if "transposed" in name else w[0]
                    made = []
                    for special in (False, True):
                        op = lambda a, b, c: conv(a, b, c, **case)  # noqa: E731
                        made += results((x, w, (outs,)), op, dtype, special, options)
                    return made

                yield f"{way}, {dtype_name}, convolution {name}", convolution


CASES = dict(record())


@pytest.mark.parametrize("way", sorted({name.split(",")[0] for name in CASES}))
def test_bits_are_those_of_the_record(way):
    known = json.loads(RECORD.read_text())
    assert sorted(known) == sorted(CASES), "write the record anew"
    chosen = {name: make for name, make in CASES.items() if name.startswith(f"{way},")}
    found = {name: digest(make()) for name, make in chosen.items()}
    assert found == {name: known[name] for name in chosen}


if __name__ == "__main__":
    RECORD.write_text(
        json.dumps({name: digest(make()) for name, make in CASES.items()}, indent=1) + "\n"
    )
