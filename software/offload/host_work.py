"""Matrix work of torch that a device does not take: why, and how many operations it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor

Count = Callable[[Any, Any], int]
"""Takes the arguments and the result of a call to its floating-point operations."""


def _factor(count: Callable[[int, int], float]) -> Count:
    """Return what counts operations for the first argument: (…, rows, cols)."""

    def flops(args: Any, result: Any) -> int:
        x = next(a for a in args if isinstance(a, Tensor))
        if x.ndim < 2:
            return 0
        scale = 4 if x.is_complex() else 1
        return int(scale * prod(x.shape[:-2]) * count(x.shape[-2], x.shape[-1]))

    return flops


def _first_result(result: Any) -> Tensor:
    made: Tensor = result if isinstance(result, Tensor) else result[0]
    return made


def _solve(matrix: int, recursions: int, factored: bool = False) -> Count:
    """Return what counts triangular solves, of the matrix in one of the arguments."""

    def flops(args: Any, result: Any) -> int:
        a, x = args[matrix], _first_result(result)
        n = a.shape[-1]
        made = recursions * n * x.numel() + (prod(a.shape[:-2]) * 2 * n**3 / 3 if factored else 0)
        return int((4 if x.is_complex() else 1) * made)

    return flops


def _rows(first: int) -> Count:
    """Return what counts a product by its result and the depth of one argument's rows."""

    def flops(args: Any, result: Any) -> int:
        made = _first_result(result)
        return (8 if made.is_complex() else 2) * made.numel() * args[first].shape[-1]

    return flops


_rows_flops = _rows(0)


def _convolution_flops(args: Any, result: Any) -> int:
    """Count a convolution by its result and its weight; as 0 if that is packed for good."""
    x, *rest = args
    weight = next((w for w in rest if isinstance(w, Tensor) and w.ndim == x.ndim), None)
    if weight is None and hasattr(rest[0], "unpack"):
        weight = rest[0].unpack()[0]
    return 0 if weight is None else 2 * result.numel() * prod(weight.shape[1:])


def _transposed_flops(args: Any, result: Any) -> int:
    x, weight = args[:2]
    return 2 * x.numel() * prod(weight.shape[1:])


def _convolution_backward_flops(args: Any, result: Any) -> int:
    dy, _, weight = args[:3]
    return 2 * dy.numel() * prod(weight.shape[1:]) * sum(x is not None for x in result[:2])


def _attention_flops(factor: int) -> Count:
    def flops(args: Any, result: Any) -> int:
        q, k, v = args[:3] if factor == 2 else args[1:4]
        pairs = prod(q.shape[:-1]) * k.shape[-2]
        return int(factor * pairs * (q.shape[-1] + v.shape[-1]))

    return flops


def _encoder_flops(args: Any, result: Any) -> int:
    """Count projections, attention and, in a whole layer, its feed-forward part."""
    src = args[0]
    weights = sum(x.numel() for x in args if isinstance(x, Tensor) and x is not src and x.ndim == 2)
    tokens = src.numel() // src.shape[-1]
    return int(2 * tokens * weights + 4 * src.numel() * src.shape[-2])


def _recurrent(passes: int) -> Count:
    """Return what counts a fused recurrent layer: each step multiplies both weights."""

    def flops(args: Any, result: Any) -> int:
        steps = prod(args[0].shape[:-1])
        return int(2 * passes * steps * (args[1].numel() + args[2].numel()))

    return flops


def _unknown(args: Any, result: Any) -> int:
    return 0


_FACTORED = "a factorisation, not a product"
_RECURSION = "a recursion, not a product"
_FUSED = "torch fuses products that cannot be taken apart"
_CHOSEN = "fused attention, chosen by sdpa_kernel inside the offload"
_SPARSE = "sparse layout of torch"
_KERNEL = "a kernel that the program itself asks for"
_NO_PRODUCT = "distances without a product"
HOST: dict[str, tuple[str, Count]] = {
    # Counts as in Golub and Van Loan, Matrix Computations, to leading order.
    "linalg_cholesky_ex": (_FACTORED, _factor(lambda n, m: n**3 / 3)),
    "cholesky": (_FACTORED, _factor(lambda n, m: n**3 / 3)),
    "linalg_ldl_factor_ex": (_FACTORED, _factor(lambda n, m: n**3 / 3)),
    "linalg_lu_factor_ex": (_FACTORED, _factor(lambda n, m: 2 * n**3 / 3)),
    "linalg_lu": (_FACTORED, _factor(lambda n, m: 2 * n**3 / 3)),
    "_linalg_det": (_FACTORED, _factor(lambda n, m: 2 * n**3 / 3)),
    "_linalg_slogdet": (_FACTORED, _factor(lambda n, m: 2 * n**3 / 3)),
    "_linalg_solve_ex": (_FACTORED, _solve(0, 2, factored=True)),
    "linalg_inv_ex": (_FACTORED, _factor(lambda n, m: 2 * n**3)),
    "cholesky_inverse": (_FACTORED, _factor(lambda n, m: 2 * n**3 / 3)),
    "linalg_qr": (_FACTORED, _factor(lambda n, m: 2 * min(n, m) ** 2 * (max(n, m)))),
    "geqrf": (_FACTORED, _factor(lambda n, m: 2 * min(n, m) ** 2 * (max(n, m)))),
    "linalg_householder_product": (_FACTORED, _factor(lambda n, m: 2 * m**2 * n)),
    "ormqr": (_FACTORED, lambda args, made: 4 * made.numel() * args[1].shape[-1]),
    "_linalg_svd": (_FACTORED, _factor(lambda n, m: 14 * max(n, m) * min(n, m) ** 2)),
    "_linalg_eigh": (_FACTORED, _factor(lambda n, m: 9 * n**3)),
    "linalg_eig": (_FACTORED, _factor(lambda n, m: 25 * n**3)),
    "_linalg_eigvals": (_FACTORED, _factor(lambda n, m: 10 * n**3)),
    "linalg_lstsq": (_FACTORED, _factor(lambda n, m: 2 * m**2 * n)),
    "linalg_matrix_exp": (_FUSED, _factor(lambda n, m: 12 * n**3)),
    "linalg_solve_triangular": (_RECURSION, _solve(0, 1)),
    "triangular_solve": (_RECURSION, _solve(1, 1)),
    "cholesky_solve": (_RECURSION, _solve(1, 2)),
    "linalg_lu_solve": (_RECURSION, _solve(0, 2)),
    "linalg_ldl_solve": (_RECURSION, _solve(0, 2)),
    "_scaled_dot_product_flash_attention_for_cpu": (_CHOSEN, _attention_flops(2)),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (_CHOSEN, _attention_flops(5)),
    "_native_multi_head_attention": (_FUSED, _encoder_flops),
    "_transformer_encoder_layer_fwd": (_FUSED, _encoder_flops),
    "mkldnn_rnn_layer": (_FUSED, _recurrent(1)),
    "mkldnn_rnn_layer_backward": (_FUSED, _recurrent(2)),
    "_cdist_forward": (_NO_PRODUCT, _unknown),
    "_cdist_backward": (_NO_PRODUCT, _unknown),
    "_pdist_forward": (_NO_PRODUCT, _unknown),
    "_pdist_backward": (_NO_PRODUCT, _unknown),
    "_int_mm": ("integers", _rows_flops),
    "_weight_int8pack_mm": ("integers", _rows_flops),
    "_weight_int4pack_mm_for_cpu": ("integers", _rows_flops),
    "_dyn_quant_matmul_4bit": ("integers", _rows_flops),
    "fbgemm_linear_int8_weight": ("integers", _rows_flops),
    "fbgemm_linear_int8_weight_fp32_activation": ("integers", _rows_flops),
    "quantized_lstm": ("integers", _unknown),
    "quantized_gru": ("integers", _unknown),
    "_scaled_mm": ("floats of 8 bits", _rows_flops),
    "_scaled_mm_v2": ("floats of 8 bits", _rows_flops),
    "fbgemm_linear_fp16_weight": (_KERNEL, _rows_flops),
    "fbgemm_linear_fp16_weight_fp32_activation": (_KERNEL, _rows_flops),
    "mkldnn_linear": (_KERNEL, _rows_flops),
    "mkldnn_convolution": (_KERNEL, _convolution_flops),
    "_nnpack_spatial_convolution": (_KERNEL, _convolution_flops),
    "_slow_conv2d_forward": (_KERNEL, _convolution_flops),
    "_slow_conv2d_backward": (_KERNEL, _convolution_backward_flops),
    "slow_conv3d_forward": (_KERNEL, _convolution_flops),
    "slow_conv_dilated2d": (_KERNEL, _convolution_flops),
    "slow_conv_dilated3d": (_KERNEL, _convolution_flops),
    "slow_conv_transpose2d": (_KERNEL, _transposed_flops),
    "slow_conv_transpose3d": (_KERNEL, _transposed_flops),
    "_sparse_mm_reduce_impl": (_SPARSE, _rows_flops),
    "_sparse_sparse_matmul": (_SPARSE, _rows_flops),
    "hspmm": (_SPARSE, _rows_flops),
    "sspaddmm": (_SPARSE, _rows(1)),
    "sparse_sampled_addmm": (_SPARSE, _rows(1)),
}
"""Matrix work that a device does not take: reason, and operations of a call (as if dense)."""

_LIBRARIES = {
    "_quantized": "integers",
    "mkl": _KERNEL,
    "mkldnn": _KERNEL,
    "mkldnn_prepacked": _KERNEL,
    "onednn": "integers",
    "quantized": "integers",
    "sparse": "integers",
}
"""Namespaces of torch whose operations hide what they compute, and why they stay."""

_MULTIPLIES = re.compile(r"linear|conv")
_PREPARES = re.compile(r"pack(?!ed)|params|reorder")


def host_work(namespace: str, name: str) -> tuple[str, Count] | None:
    """Return why an operation stays on the host, and its count; None if it is no such work."""
    if namespace == "aten":
        return HOST.get(name)
    reason = _LIBRARIES.get(namespace)
    if reason is None or not _MULTIPLIES.search(name) or _PREPARES.search(name):
        return None
    return reason, _convolution_flops if "conv" in name else _rows_flops
