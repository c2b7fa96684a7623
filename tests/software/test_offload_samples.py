"""PyTorch's own operator samples under `sat.offload`, forward and gradient.

Torch tests its operators with these. Matrix work is held to plain float64, within what plain
float32 and one rounding of the operands make of it; everything else is as it is without offload.
`python tests/software/test_offload_samples.py` counts all samples of all operators.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import sat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about what its samples do

WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
SHARE = 12
"""Samples of an operator and type, at most, that are not left to the long run."""

BOUND = 1e-5
"""Of an error against float64, times the largest number; or …"""
FACTOR = 10
"""… this often the error of plain float32, or that of operands off by one rounding."""

# fmt: off
MATRIX = {
    "__rmatmul__", "addbmm", "addmm", "addmm_decomposed", "addmv", "addr", "baddbmm", "bmm",
    "bmm_triton_optimized", "cdist", "cholesky", "cholesky_inverse", "cholesky_solve", "corrcoef",
    "cov", "dot", "einsum", "geqrf", "inner", "linalg_cholesky", "linalg_cholesky_ex",
    "linalg_cond", "linalg_det", "linalg_eig", "linalg_eigh", "linalg_eigvals", "linalg_eigvalsh",
    "linalg_householder_product", "linalg_inv", "linalg_inv_ex", "linalg_ldl_factor",
    "linalg_ldl_factor_ex", "linalg_ldl_solve", "linalg_lstsq", "linalg_lstsq_grad_oriented",
    "linalg_lu", "linalg_lu_factor", "linalg_lu_factor_ex", "linalg_lu_solve",
    "linalg_matrix_norm", "linalg_matrix_power", "linalg_matrix_rank",
    "linalg_matrix_rank_hermitian", "linalg_multi_dot", "linalg_norm",
    "linalg_norm_subgradients_at_zero", "linalg_pinv", "linalg_pinv_hermitian",
    "linalg_pinv_singular", "linalg_qr", "linalg_slogdet", "linalg_solve", "linalg_solve_ex",
    "linalg_solve_triangular", "linalg_svd", "linalg_svdvals", "linalg_tensorinv",
    "linalg_tensorsolve", "linalg_vecdot", "logdet", "lu", "lu_solve", "matmul", "matrix_exp",
    "mm", "mv", "nn_functional_bilinear", "nn_functional_conv1d", "nn_functional_conv2d",
    "nn_functional_conv3d", "nn_functional_conv_transpose1d", "nn_functional_conv_transpose2d",
    "nn_functional_conv_transpose3d", "nn_functional_linear",
    "nn_functional_linear_cross_entropy", "nn_functional_linear_cross_entropy_chunked",
    "nn_functional_linear_cross_entropy_chunked_none",
    "nn_functional_multi_head_attention_forward", "nn_functional_pdist",
    "nn_functional_scaled_dot_product_attention", "norm_nuc", "ormqr", "pca_lowrank", "pinverse",
    "qr", "sparse_mm_reduce", "sparse_sampled_addmm", "svd", "svd_lowrank", "tensordot",
    "triangular_solve", "vdot",
}
# fmt: on
"""Operators with matrix work in a sample, forward or backward, on the device or the host."""

NOT_DEFINED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty"}
NOT_DEFINED |= {"new_empty_strided"}
"""Operators whose results are whatever the memory held."""

UP_TO_PHASES = {"pca_lowrank", "svd_lowrank"}
"""Operators whose complex vectors have phases that rounding decides: magnitudes are compared."""


def seed(number):
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def samples(op, dtype):
    """Return an operator's samples, those of types that have gradients with them."""
    seed(0)
    grad = op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")
    return list(op.sample_inputs("cpu", dtype, requires_grad=grad))


def entries(names):
    return [
        (op, dtype)
        for op in op_db
        for dtype in WIDE
        if names(op.formatted_name) and dtype in op.supported_dtypes("cpu")
    ]


def name(entry):
    op, dtype = entry
    return f"{op.formatted_name}-{str(dtype).removeprefix('torch.')}"


def computed(op, sample, change=lambda x: x, dtypes=None):
    """Return an operator's results and the gradients of what it was given, all dense.

    Parameters
    ----------
    change : callable
        Takes what a tensor of the sample holds to what the operator is given.
    dtypes : dict, optional
        Other types for those that are arguments.
    """

    def leaf(x):
        if isinstance(x, torch.dtype):
            return (dtypes or {}).get(x, x)
        if not isinstance(x, torch.Tensor):
            return x
        return change(x.detach().clone()).requires_grad_(x.requires_grad)

    first, args, kwargs = tree_map(leaf, (sample.input, sample.args, sample.kwargs))
    given = [x for x in tree_leaves((first, args, kwargs)) if isinstance(x, torch.Tensor)]
    seed(1)
    made = op(first, *args, **kwargs)
    if op.formatted_name in UP_TO_PHASES:
        made = tree_map(torch.abs, made)
    process = sample.output_process_fn_grad
    results = [x for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
    to_grad = made if process is None else process(made)
    roots = [x for x in tree_leaves(to_grad) if isinstance(x, torch.Tensor) and x.requires_grad]
    leaves = [x for x in given if x.requires_grad]
    gradients = []
    if roots and leaves:
        generator = torch.Generator().manual_seed(2)
        wide = [torch.complex128 if x.is_complex() else torch.float64 for x in roots]
        cotangents = [
            torch.randn(x.shape, dtype=dtype, generator=generator).to(x.dtype)
            for x, dtype in zip(roots, wide, strict=True)
        ]
        torch.autograd.backward(roots, cotangents)
        gradients = [x.grad for x in leaves]
    return [None if x is None else dense(x.detach()) for x in (*results, *gradients)]


def dense(x):
    if x.layout is not torch.strided:
        return x.to_dense()
    x = x.resolve_conj().resolve_neg()
    return x.to(torch.complex64) if x.dtype is torch.complex32 else x


def looks(x):
    """Return what must not change: type, shape, and strides that mean anything."""
    if x is None:
        return None
    strides = [step for step, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    return x.dtype, x.shape, strides if x.numel() else []


def error(got, want):
    """Return the largest difference over the largest number; infinite if not comparable."""
    if got is None or want is None:
        return 0.0 if got is want else np.inf
    if got.shape != want.shape:
        return np.inf
    if not (got.is_floating_point() or got.is_complex()):
        return 0.0 if torch.equal(got, want.to(got.dtype)) else np.inf
    got, want = (x.to(torch.complex128 if x.is_complex() else torch.float64) for x in (got, want))
    finite = torch.isfinite(want)
    if not torch.equal(torch.isfinite(got), finite) or not finite.any():
        return 0.0 if torch.equal(torch.isfinite(got), finite) else np.inf
    return ((got - want).abs()[finite].max() / want.abs()[finite].max().clamp_min(1e-30)).item()


def widened(x):
    return x.to(WIDE.get(x.dtype, x.dtype))


def nudged(number, wide):
    """Return what moves each number of float32 by up to one unit in the last place."""
    generator = torch.Generator().manual_seed(number)

    def change(x):
        x = widened(x) if wide else x
        if x.layout is not torch.strided or not (x.is_floating_point() or x.is_complex()):
            return x
        noise = torch.rand(x.shape, dtype=torch.float64, generator=generator) * 2 - 1
        return (x * (1 + 2.0**-23 * noise)).to(x.dtype)

    return change


def attempt(function):
    """Return a result, or the error that it ends in."""
    try:
        return function()
    except Exception as error:
        return error


def check(op, sample):
    """Compare a sample under offload with plain torch; return what it was, or raise.

    Returns ``"same"``: bit for bit plain torch's; ``"near"``: within the bound of float64; or
    ``"error"``: torch's own.
    """
    plain = attempt(lambda: computed(op, sample))
    with sat.offload("golden", precision="fp32") as report:
        got = attempt(lambda: computed(op, sample))
    if isinstance(plain, Exception) or isinstance(got, Exception):
        assert type(got) is type(plain), (plain, got)
        return "error"
    assert [looks(x) for x in got] == [looks(x) for x in plain]
    assert list(report) == [] or op.formatted_name in MATRIX
    apart = [error(x, y) for x, y in zip(got, plain, strict=True)]
    if op.formatted_name in NOT_DEFINED or not any(apart):
        return "same"
    if report.calls == 0:
        # Kernels that oneDNN has, too, round otherwise; it is off inside.
        assert max(apart) <= 5e-7, apart
        return "near"
    exact = attempt(lambda: computed(op, sample, widened, WIDE))
    if isinstance(exact, Exception) or max(map(error, plain, exact)) > 1e-2:
        # Nothing to compare with: other random numbers, or a factor that is not unique.
        within(apart, spread(op, sample, plain, wide=False))
        return "near"
    ours, theirs = ([error(x, y) for x, y in zip(z, exact, strict=True)] for z in (got, plain))
    if any(a > BOUND + FACTOR * b for a, b in zip(ours, theirs, strict=True)):
        within(ours, spread(op, sample, exact, wide=True))
    return "near"


def within(errors, bounds):
    pairs = zip(errors, bounds, strict=True)
    assert all(a <= BOUND + FACTOR * b for a, b in pairs), (errors, bounds)


def spread(op, sample, results, *, wide):
    """Return how far results move with what an operator is given, by its last place."""
    moved = [
        computed(op, sample, nudged(number, wide), WIDE if wide else None) for number in range(3)
    ]
    return [max(error(x, y) for x in each) for *each, y in zip(*moved, results, strict=True)]


MATRIX_ENTRIES = entries(lambda name: name in MATRIX)


@pytest.mark.parametrize("entry", MATRIX_ENTRIES, ids=name)
def test_a_share_of_the_samples_of_matrix_operators(entry):
    chosen = samples(*entry)
    for sample in random.Random(name(entry)).sample(chosen, min(SHARE, len(chosen))):
        check(entry[0], sample)


@pytest.mark.long
@pytest.mark.parametrize("entry", entries(lambda name: True), ids=name)
def test_all_samples_of_all_operators(entry):
    for sample in samples(*entry):
        check(entry[0], sample)


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for title, names in (("matrix", MATRIX.__contains__), ("other", lambda n: n not in MATRIX)):
        for dtype in WIDE:
            found, operators = Counter(), 0
            for op, kind in entries(names):
                if kind is not dtype:
                    continue
                operators += 1
                for number, sample in enumerate(samples(op, dtype)):
                    try:
                        found[check(op, sample)] += 1
                    except AssertionError as wrong:
                        found["failed"] += 1
                        print(f"{name((op, dtype))} {number}: {wrong}", flush=True)
            print(f"{title} {dtype}: {operators} operators, {found.total()} samples, {dict(found)}")


if __name__ == "__main__":
    main()
