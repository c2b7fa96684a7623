"""`sat.offload` around all sorts of programs: nothing slips through, nothing breaks."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

import sat

DOUBLE = torch.float64


def randn(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * len(shape) + sum(shape))
    wide = torch.complex128 if dtype.is_complex else DOUBLE
    return torch.randn(*shape, dtype=wide, generator=generator).to(dtype)


def positive(n):
    a = randn(n, n)
    return a @ a.T + n * torch.eye(n)


def offloaded(function, **options):
    """Return a program's result under fp32 precision, and the report."""
    with sat.offload("golden", **{"precision": "fp32", **options}) as report:
        result = function()
    return result, report


def operations(report):
    """Return {operation: (calls, FLOPs, reason)}."""
    found = {}
    for work in report:
        calls, flops, reason = found.get(work.op, (0, 0, work.reason))
        assert reason == work.reason
        found[work.op] = calls + work.calls, flops + work.flops, reason
    return found


# ------------------------------------------------------------------------- what hides products

TAKEN = {
    "bilinear": (
        lambda a, b, w, z: functional.bilinear(a, b, w, z),
        [(4, 3), (4, 5), (2, 3, 5), (2,)],
        # a with w: 4 x 3 x 10; that with b: 8 rows of 5.
        2 * 4 * 3 * 10 + 2 * 8 * 5,
    ),
    "conv_tbc": (
        lambda x, w, z: torch.conv_tbc(x, w, z, 1),
        [(5, 2, 3), (3, 3, 4), (4,)],
        2 * (8 + 10 + 8) * 3 * 4,  # edges of the padding are left out
    ),
    "affine_grid": (
        lambda t: functional.affine_grid(t, (2, 3, 4, 5), align_corners=False),
        [(2, 2, 3)],
        2 * 2 * 20 * 3 * 2,
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_products_inside_other_operations_are_taken(name):
    function, shapes, flops = TAKEN[name]
    tensors = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    result, report = offloaded(lambda: function(*tensors))
    assert report.coverage == 1.0 and report.flops == flops
    exact = [t.detach().double().requires_grad_() for t in tensors]
    want = function(*exact)
    assert (result - want).abs().max() <= 1e-6 * want.abs().max()
    _, report = offloaded(lambda: result.square().sum().backward())
    # The gradient of an affine map is taken with respect to one of two operands.
    assert report.coverage == 1.0 and report.flops >= flops
    want.square().sum().backward()
    for tensor, double in zip(tensors, exact, strict=True):
        assert (tensor.grad - double.grad).abs().max() <= 2e-6 * double.grad.abs().max()


def test_grouped_products_are_taken():
    x, w = randn(8, 16, dtype=torch.bfloat16), randn(2, 16, 16, dtype=torch.bfloat16)
    ends = torch.tensor([3, 8], dtype=torch.int32)
    result, report = offloaded(lambda: functional.grouped_mm(x, w, offs=ends))
    assert (report.calls, report.coverage, report.flops) == (2, 1.0, 2 * 8 * 16 * 16)
    want = torch.cat([x[:3].double() @ w[0].double(), x[3:].double() @ w[1].double()])
    assert ((result - want).abs() <= 2.0**-8 * want.abs()).all()


@pytest.mark.parametrize("hermitian", [False, True])
def test_pseudoinverse_shows_its_factorisation_and_its_product(hermitian):
    a = positive(5) if hermitian else randn(6, 4)
    result, report = offloaded(lambda: torch.linalg.pinv(a, hermitian=hermitian))
    found = operations(report)
    factored = "aten._linalg_eigh" if hermitian else "aten._linalg_svd"
    assert found[factored][2] == "a factorisation, not a product"
    assert report.flops_offloaded == 2 * (5 * 5 * 5 if hermitian else 4 * 4 * 6)
    assert (result - torch.linalg.pinv(a.double(), hermitian=hermitian)).abs().max() < 1e-5


def quantised_linear():
    layer = torch.ao.nn.quantized.dynamic.Linear(4, 5)
    layer.set_weight_bias(torch.quantize_per_tensor(randn(5, 4), 0.1, 0, torch.qint8), None)
    return layer(randn(3, 4))


def float8(x):
    return x.to(torch.float8_e4m3fn)


def prepacked_convolution():
    weight = torch.ops.mkldnn_prepacked.conv2d_prepack(
        randn(3, 2, 2, 2), None, [1, 1], [0, 0], [1, 1], 1, [1, 2, 4, 4], "none"
    )
    return torch.ops.mkldnn_prepacked.conv2d_run(randn(1, 2, 4, 4), weight)


N, N3 = 6, 6**3
HOST_WORK = {
    "geqrf": (lambda: torch.geqrf(randn(8, N)), 2 * N * N * 8),
    "linalg_householder_product": (
        lambda: torch.linalg.householder_product(randn(8, N), randn(N)),
        2 * N * N * 8,
    ),
    "ormqr": (lambda: torch.ormqr(randn(8, N), randn(N), randn(8, 2)), 4 * 8 * 2 * N),
    "linalg_ldl_factor_ex": (lambda: torch.linalg.ldl_factor(A), N3 // 3),
    "linalg_ldl_solve": (lambda: torch.linalg.ldl_solve(*LDL, randn(N, 2)), 2 * N * N * 2),
    "linalg_lu_solve": (lambda: torch.linalg.lu_solve(*LU, randn(N, 2)), 2 * N * N * 2),
    "_linalg_solve_ex": (
        lambda: torch.linalg.solve(A, randn(N, 2)),
        2 * N3 // 3 + 2 * N * N * 2,
    ),
    "cholesky_solve": (lambda: torch.cholesky_solve(randn(N, 2), A.tril()), 2 * N * N * 2),
    "linalg_solve_triangular": (
        lambda: torch.linalg.solve_triangular(A.triu(), randn(2, N), upper=True, left=False),
        N * N * 2,
    ),
    "_int_mm": (
        lambda: torch._int_mm(*(torch.ones(s, dtype=torch.int8) for s in ((17, 16), (16, 8)))),
        2 * 17 * 16 * 8,
    ),
    "_scaled_mm": (
        lambda: torch._scaled_mm(
            float8(randn(16, 32)),
            float8(randn(16, 32)).t(),
            scale_a=torch.ones(()),
            scale_b=torch.ones(()),
            out_dtype=torch.float32,
        ),
        2 * 16 * 32 * 16,
    ),
    "_weight_int8pack_mm": (
        lambda: torch._weight_int8pack_mm(
            randn(4, 32).bfloat16(), torch.ones(16, 32, dtype=torch.int8), randn(16).bfloat16()
        ),
        2 * 4 * 32 * 16,
    ),
    "quantized.linear_dynamic": (quantised_linear, 2 * 3 * 4 * 5),
    "mkldnn._linear_pointwise": (
        lambda: torch.ops.mkldnn._linear_pointwise(
            randn(3, 4), randn(5, 4), randn(5), "none", [], ""
        ),
        2 * 3 * 4 * 5,
    ),
    "mkldnn._convolution_pointwise": (
        lambda: torch.ops.mkldnn._convolution_pointwise(
            *(randn(1, 2, 4, 4), randn(3, 2, 2, 2), None, [0, 0], [1, 1], [1, 1], 1),
            *("none", [], ""),
        ),
        2 * 9 * 8 * 3,
    ),
    "mkldnn_prepacked.conv2d_run": (prepacked_convolution, 0),
    "mkldnn_convolution": (
        lambda: torch.mkldnn_convolution(
            randn(1, 2, 4, 4), randn(3, 2, 2, 2), None, (0, 0), (1, 1), (1, 1), 1
        ),
        2 * 9 * 8 * 3,
    ),
    "_slow_conv2d_forward": (
        lambda: torch._C._nn.thnn_conv2d(randn(1, 2, 4, 4), randn(3, 2, 2, 2), (2, 2)),
        2 * 9 * 8 * 3,
    ),
    "slow_conv_transpose2d": (
        lambda: torch._C._nn.slow_conv_transpose2d(randn(1, 2, 4, 4), randn(2, 3, 2, 2), (2, 2)),
        2 * 16 * 2 * 12,
    ),
    "addmm": (lambda: torch.sparse.mm(randn(4, 5).to_sparse(), randn(5, 3)), 2 * 4 * 5 * 3),
    "_sparse_sparse_matmul": (
        lambda: torch.sparse.mm(randn(4, 5).to_sparse(), randn(5, 3).to_sparse()),
        2 * 4 * 5 * 3,
    ),
    "hspmm": (lambda: torch.hspmm(randn(4, 5).to_sparse(), randn(5, 3)), 2 * 4 * 5 * 3),
    "sspaddmm": (
        lambda: torch.smm(randn(4, 5).to_sparse(), randn(5, 3)),
        2 * 4 * 5 * 3,
    ),
    "sparse_sampled_addmm": (
        lambda: torch.sparse.sampled_addmm(torch.eye(4).to_sparse_csr(), randn(4, 5), randn(5, 4)),
        2 * 4 * 5 * 4,
    ),
    "mv": (lambda: torch.eye(4).to_sparse_csr() @ randn(4), 2 * 4 * 4),
    "mm": (
        lambda: functional.linear(randn(3, 4), torch.eye(4).to_sparse_bsr((2, 2))),
        2 * 3 * 4 * 4,
    ),
    "_pdist_forward": (lambda: functional.pdist(randn(5, 3)), 0),
}
A = positive(N)
LDL, LU = torch.linalg.ldl_factor(A), torch.linalg.lu_factor(A)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HOST_WORK)
def test_matrix_work_of_the_host_is_in_the_report(name):
    function, flops = HOST_WORK[name]
    result, report = offloaded(function)
    op = name if "." in name else f"aten.{name}"
    calls, counted, reason = operations(report)[op]
    assert (calls, counted, bool(reason)) == (1, flops, True)
    assert report.calls == 0
    plain = function()
    for got, want in zip(
        (result,) if isinstance(result, torch.Tensor) else result,
        (plain,) if isinstance(plain, torch.Tensor) else plain,
        strict=True,
    ):
        torch.testing.assert_close(got, want, equal_nan=True)


class Weight(nn.Parameter):
    pass


class Plain(torch.Tensor):
    pass


class Wrapped(torch.Tensor):
    """A tensor that holds another: the kind of torch's own distributed and quantised ones."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args = [x.inner if isinstance(x, cls) else x for x in args]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [Weight, Wrapped, lambda x: x.as_subclass(Plain)])
def test_subclasses_of_tensors(make):
    a, b = randn(3, 4), randn(4, 5)
    result, report = offloaded(lambda: a @ make(b))
    assert (report.calls, report.coverage) == (1, 1.0)
    assert (result - a.double() @ b.double()).abs().max() < 1e-6


# ----------------------------------------------------------------------- transforms and graphs


def test_a_linearised_function_is_linear():
    w, x, t = randn(3, 4), randn(4), randn(4, seed=1)

    def both():
        value, slope = torch.func.linearize(lambda z: torch.tanh(w @ z), x)
        return value, slope(t)

    with pytest.warns(UserWarning, match="get_attr Node"):
        (value, tangent), report = offloaded(both)
    want, exact = torch.func.jvp(lambda z: torch.tanh(w.double() @ z), (x.double(),), (t.double(),))
    assert (value - want).abs().max() < 1e-6 and (tangent - exact).abs().max() < 1e-6
    assert set(report.host_reasons()) == {"traced into a graph"}


def test_traced_graphs_keep_their_products():
    from torch.fx.experimental.proxy_tensor import make_fx

    x, y = randn(3, 3), randn(3, 3, seed=1)
    for mode in ("real", "fake"):
        graph, report = offloaded(lambda mode=mode: make_fx(lambda a: a @ a, tracing_mode=mode)(x))
        assert report.calls == 0
        assert "aten.mm" in graph.code
        result, report = offloaded(lambda graph=graph: graph(y))
        assert report.calls == 1 and (result - y.double() @ y.double()).abs().max() < 1e-6


def test_zeros_of_forward_mode_differentiation():
    """Tangents of constants are zeros without memory."""
    w, x, t = randn(3, 4), randn(4), randn(4, seed=1)
    zeros = torch._efficientzerotensor(3, 4)
    result, report = offloaded(lambda: (torch.mv(zeros, x), torch.addmv(w @ x, zeros, t)))
    assert report.calls == 3
    assert torch.equal(result[0], torch.zeros(3))
    assert (result[1] - w.double() @ x.double()).abs().max() < 1e-6


@pytest.mark.parametrize("reentrant", [False, True])
def test_both_kinds_of_checkpoints(reentrant):
    w, x = randn(6, 6).requires_grad_(), randn(4, 6).requires_grad_()

    def program():
        y = torch.utils.checkpoint.checkpoint(
            lambda z: torch.tanh(z @ w), x, use_reentrant=reentrant
        )
        y.sum().backward()

    _, report = offloaded(program)
    assert (report.calls, report.coverage) == (4, 1.0)
    exact = w.detach().double().requires_grad_()
    torch.tanh(x.detach().double() @ exact).sum().backward()
    assert (w.grad - exact.grad).abs().max() < 1e-5


def test_whole_compiled_graphs_and_control_flow():
    from torch.nn.attention.flex_attention import flex_attention

    a, b = randn(3, 4), randn(4, 5)
    compiled = torch.compile(lambda x, y: torch.relu(x @ y), backend="aot_eager", fullgraph=True)
    result, report = offloaded(lambda: compiled(a, b))
    assert report.calls == 1
    assert (result - torch.relu(a.double() @ b.double())).abs().max() < 1e-6
    square = randn(3, 3)
    result, report = offloaded(
        lambda: torch.cond(torch.tensor(True), lambda x: x @ x, lambda x: x.clone(), (square,))
    )
    assert report.calls == 1
    assert (result - square.double() @ square.double()).abs().max() < 1e-6
    q, k, v = (randn(1, 2, 16, 16, seed=i) for i in range(3))
    with pytest.warns(UserWarning, match="flex_attention called without torch.compile"):
        result, report = offloaded(lambda: flex_attention(q, k, v))
    assert report.calls == 2 and report.flops == 2 * 2 * 2 * 16**3
    want = functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert (result - want).abs().max() < 2e-6


# ---------------------------------------------------------------------------- errors and state


def conv(x, w, *rest, **options):
    return lambda: functional.conv1d(randn(*x), randn(*w), *rest, **options)


def transposed(x, w, *rest, **options):
    return lambda: functional.conv_transpose2d(randn(*x), randn(*w), *rest, **options)


X, W, XT, WT = (2, 4, 7), (3, 4, 2), (2, 4, 5, 5), (4, 3, 2, 2)
WRONG = {
    "negative padding": conv(X, W, padding=-1),
    "no dilation": conv(X, W, dilation=0),
    "no stride": conv(X, W, stride=0),
    "too many strides": conv(X, W, stride=(1, 1)),
    "too much padding": conv(X, W, padding=(1, 1)),
    "kernel above input": conv((1, 4, 2), (3, 4, 5)),
    "bias of one": conv(X, W, torch.ones(1)),
    "bias of two axes": conv(X, W, torch.ones(3, 1)),
    "bias of another type": conv(X, W, torch.ones(3, dtype=torch.float16)),
    "groups": conv(X, W, groups=3),
    "bias, transposed": transposed(XT, WT, torch.ones(4)),
    "output padding as the stride": transposed(XT, WT, stride=2, output_padding=2),
    "negative output padding": transposed(XT, WT, stride=2, output_padding=-1),
    "nothing left": transposed((1, 4, 1, 1), WT, padding=1),
    "addend of another type": lambda: torch.addmm(randn(3, 5).half(), randn(3, 4), randn(4, 5)),
    "addend too long": lambda: torch.addmm(randn(4), randn(3, 4), randn(4, 5)),
    "addend of too many axes": lambda: torch.addmm(randn(1, 3, 5), randn(3, 4), randn(4, 5)),
    "addmv": lambda: torch.addmv(randn(2), randn(3, 4), randn(4)),
    "addbmm": lambda: torch.addbmm(randn(3, 5).half(), randn(2, 3, 4), randn(2, 4, 5)),
    "baddbmm": lambda: torch.baddbmm(randn(4, 5), randn(2, 3, 4), randn(2, 4, 5)),
    "complex factor": lambda: torch.addmm(randn(3, 5), randn(3, 4), randn(4, 5), alpha=1.5j),
    "out of another type": lambda: torch.mm(
        randn(3, 4), randn(4, 5), out=torch.empty(3, 5, dtype=DOUBLE)
    ),
    "in place, base too small": lambda: torch.empty(5).addmm_(randn(3, 4), randn(4, 5)),
    "out with shared places": lambda: torch.mm(
        randn(3, 3), randn(3, 3), out=randn(1, 3).expand(3, 3)
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_torchs_own(name):
    # As inside, without oneDNN: its kernels word some of theirs differently.
    before = torch.backends.mkldnn.set_flags(False)
    try:
        with pytest.raises(RuntimeError) as plain:
            WRONG[name]()
    finally:
        torch.backends.mkldnn.set_flags(before[0])
    with sat.offload("golden", precision="fp32") as report:
        with pytest.raises(RuntimeError) as ours:
            WRONG[name]()
        a, b = randn(3, 4), randn(4, 5)
        assert (a @ b - (a.double() @ b.double())).abs().max() < 1e-6
    assert str(ours.value) == str(plain.value)
    assert report.host_reasons() == {}


def switches():
    cuda = torch.backends.cuda
    return (
        torch._C._get_mkldnn_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


def test_blocks_of_two_threads_overlap():
    """The first to leave must not switch fused kernels on under the other, nor the last off."""
    before = switches()
    entered, both, left = threading.Event(), threading.Event(), threading.Event()
    reports = []

    def first():
        with sat.offload("golden"):
            entered.set()
            assert both.wait(60)
        left.set()

    def second():
        assert entered.wait(60)
        with sat.offload("golden") as report:
            both.set()
            assert left.wait(60)
            nn.LSTM(4, 5)(randn(3, 2, 4))
            functional.scaled_dot_product_attention(*(randn(1, 1, 3, 4),) * 3)
        reports.append(report)

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert reports[0].coverage == 1.0 and reports[0].calls == 1 + 3 + 2
    assert switches() == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_switches_are_back_after_any_error(error):
    before = switches()
    with pytest.raises(error), sat.offload("golden"), sat.offload("golden"):
        raise error
    assert switches() == before and torch._C._len_torch_dispatch_stack() == 0
