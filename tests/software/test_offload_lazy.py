"""`sat.offload` on tensors that are conjugated or negated in name, or are zeros without memory.

Torch reads those in steps before modes; whatever the mode hands on must be read so, too: kernels
of the host, insides of operations, ``out=``, in-place forms, operators of the program's own.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import sat

TOLERANCE = 2e-5

REAL = {"negated": torch._neg_view}
COMPLEX = {
    "conjugated": torch.conj,
    "negated": torch._neg_view,
    "both": lambda x: torch._neg_view(x.conj()),
    "imaginary": lambda x: torch.complex(x.conj().imag, x.real),
}


def randn(*shape, complex=True, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * len(shape) + sum(shape))
    dtype = torch.complex128 if complex else torch.float64
    return torch.randn(*shape, dtype=dtype, generator=generator)


def narrow(x):
    return x.to(torch.complex64 if x.is_complex() else torch.float32)


def definite(x):
    return x @ x.mH + 5 * torch.eye(x.shape[-1]).to(x)


library = torch.library.Library("sat_lazy", "DEF")  # noqa: TOR901 (for as long as the module)
library.define("scaled(Tensor a, Tensor b) -> Tensor")
library.impl("scaled", lambda a, b: a.conj() * 2 + b.sum().conj(), "CompositeExplicitAutograd")


@torch.library.custom_op("sat_lazy::gram", mutates_args=())
def gram(a: torch.Tensor) -> torch.Tensor:
    return a.mH @ a + torch._neg_view(a).exp().sum()


gram.register_autograd(
    lambda ctx, g: ctx.a @ (g + g.mH) - (torch._neg_view(ctx.a).exp().conj() * g.sum()),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "a", inputs[0]),
)


COMPLEX_OPERATIONS = {
    "mm": (torch.mm, [(4, 5), (5, 3)]),
    "bmm": (torch.bmm, [(2, 4, 5), (2, 5, 3)]),
    "mv": (torch.mv, [(4, 5), (5,)]),
    "dot": (torch.dot, [(5,), (5,)]),
    "vdot": (torch.vdot, [(5,), (5,)]),
    "addmm": (torch.addmm, [(4, 3), (4, 5), (5, 3)]),
    "addmm, scaled": (
        lambda c, a, b: torch.addmm(c, a, b, beta=2 + 1j, alpha=0.5),
        [(4, 3), (4, 5), (5, 3)],
    ),
    "addmm, no depth": (torch.addmm, [(4, 3), (4, 0), (0, 3)]),
    "addmv": (lambda c, a, b: torch.addmv(c, a, b, beta=3), [(4,), (4, 5), (5,)]),
    "baddbmm": (lambda c, a, b: torch.baddbmm(c, a, b, beta=3), [(2, 4, 3), (2, 4, 5), (2, 5, 3)]),
    "addbmm": (lambda c, a, b: torch.addbmm(c, a, b, beta=3), [(4, 3), (2, 4, 5), (2, 5, 3)]),
    "einsum": (lambda a, b: torch.einsum("bij,bkj->bik", a, b.conj()), [(2, 4, 5), (2, 3, 5)]),
    "outer and sum": (lambda a, b: (a[:, None] * b).sum(1) + b.conj().exp().sum(), [(4,), (5,)]),
    "conv1d": (functional.conv1d, [(2, 3, 6), (4, 3, 3)]),
    "conv_transpose2d": (functional.conv_transpose2d, [(1, 3, 4, 4), (3, 2, 2, 2)]),
    "linear": (functional.linear, [(4, 5), (3, 5), (3,)]),
    "pinv": (torch.linalg.pinv, [(5, 3)]),
    "pinv, hermitian": (lambda a: torch.linalg.pinv(definite(a), hermitian=True), [(3, 3)]),
    "pinv, out": (
        lambda a: torch.linalg.pinv(a.detach(), out=a.new_empty(0).conj()).resolve_conj(),
        [(5, 3)],
    ),
    "lstsq": (lambda a, b: torch.linalg.lstsq(a, b).solution, [(5, 3), (5, 2)]),
    "solve": (torch.linalg.solve, [(3, 3), (3, 2)]),
    "inv": (torch.linalg.inv, [(3, 3)]),
    "det": (torch.linalg.det, [(3, 3)]),
    "slogdet": (lambda a: torch.linalg.slogdet(a).logabsdet, [(3, 3)]),
    "cholesky": (lambda a: torch.linalg.cholesky(definite(a)), [(3, 3)]),
    "cholesky_solve": (
        lambda b, a: torch.cholesky_solve(b, torch.linalg.cholesky(definite(a))),
        [(3, 2), (3, 3)],
    ),
    "solve_triangular": (
        lambda a, b: torch.linalg.solve_triangular(definite(a).triu(), b, upper=True),
        [(3, 3), (3, 2)],
    ),
    "lu_solve": (
        lambda a, b: torch.linalg.lu_solve(*torch.linalg.lu_factor(a), b, adjoint=True),
        [(3, 3), (3, 2)],
    ),
    "qr": (lambda a: torch.linalg.qr(a).R.abs(), [(5, 3)]),
    "svd": (lambda a: torch.linalg.svd(a, full_matrices=False).S, [(5, 3)]),
    "eigh": (lambda a: torch.linalg.eigh(definite(a)).eigenvalues, [(3, 3)]),
    "eigvals": (lambda a: torch.linalg.eigvals(a).abs().sort().values, [(3, 3)]),
    "matrix_exp": (torch.linalg.matrix_exp, [(3, 3)]),
    "householder": (
        lambda a: torch.linalg.householder_product(*torch.geqrf(a.detach())), [(4, 3)],
    ),
    "multi_dot": (lambda *each: torch.linalg.multi_dot(each), [(2, 5), (5, 3), (3, 4)]),
    "matrix_power": (lambda a: torch.linalg.matrix_power(a, 3), [(3, 3)]),
    "fft": (lambda a: torch.fft.fft(a.conj()).conj(), [(4, 6)]),
    "own operator": (lambda a, b: torch.ops.sat_lazy.scaled(a.detach(), b.detach()), [(3,), (4,)]),
    "own operator with a product": (gram, [(4, 3)]),
}  # fmt: skip
REAL_OPERATIONS = {
    "mm": (torch.mm, [(4, 5), (5, 3)]),
    "addmm, scaled": (
        lambda c, a, b: torch.addmm(c, a, b, beta=2, alpha=0.5),
        [(4, 3), (4, 5), (5, 3)],
    ),
    "addmm, no depth": (torch.addmm, [(4, 3), (4, 0), (0, 3)]),
    "gelu": (
        lambda c, a, b: torch._addmm_activation(c.detach(), a.detach(), b.detach(), use_gelu=True),
        [(3,), (4, 5), (5, 3)],
    ),
    "linear": (functional.linear, [(4, 5), (3, 5), (3,)]),
    "bilinear": (functional.bilinear, [(4, 3), (4, 5), (2, 3, 5), (2,)]),
    "conv2d": (
        lambda x, w, b: functional.conv2d(x, w, b, 2, 1, groups=2),
        [(2, 4, 5, 5), (6, 2, 3, 3), (6,)],
    ),
    "conv_tbc": (lambda x, w, z: torch.conv_tbc(x, w, z, 1), [(5, 2, 3), (3, 3, 4), (4,)]),
    "affine_grid": (
        lambda t: functional.affine_grid(t, (2, 3, 4, 5), align_corners=False),
        [(2, 2, 3)],
    ),
    "attention": (functional.scaled_dot_product_attention, [(1, 2, 5, 4)] * 3),
    "cdist": (torch.cdist, [(30, 3), (28, 3)]),
    "pinv": (torch.linalg.pinv, [(5, 3)]),
    "lstsq": (lambda a, b: torch.linalg.lstsq(a, b).solution, [(5, 3), (5, 2)]),
    "cholesky": (lambda a: torch.linalg.cholesky(definite(a)), [(3, 3)]),
    "sparse": (lambda a, b: torch.sparse.mm(a.to_sparse(), b), [(4, 5), (5, 3)]),
    "own operator": (lambda a, b: torch.ops.sat_lazy.scaled(a.detach(), b.detach()), [(3,), (4,)]),
    "own operator with a product": (gram, [(4, 3)]),
    "pdist": (functional.pdist, [(5, 3)]),
}
CASES = [
    *((name, lazy, True) for name in COMPLEX_OPERATIONS for lazy in COMPLEX),
    *((name, lazy, False) for name in REAL_OPERATIONS for lazy in REAL),
]


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("name, lazy, complex", CASES)
def test_lazy_tensors_are_read_as_they_mean(name, lazy, complex):
    operation, shapes = (COMPLEX_OPERATIONS if complex else REAL_OPERATIONS)[name]
    view = (COMPLEX if complex else REAL)[lazy]
    exact = [randn(*s, complex=complex, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    want = operation(*(view(x) for x in exact))
    leaves = [narrow(x.detach()).requires_grad_() for x in exact]
    with sat.offload("golden", precision="fp32"):
        got = operation(*(view(x) for x in leaves))
        assert got.requires_grad == want.requires_grad
        if want.requires_grad:
            got.backward(narrow(torch.ones_like(want)))
    scale = max(1.0, want.detach().abs().max().item())
    assert (got.detach() - want.detach()).abs().max() <= TOLERANCE * scale
    if want.requires_grad:
        want.backward(torch.ones_like(want))
        for leaf, double in zip(leaves, exact, strict=True):
            scale = max(1.0, double.grad.abs().max().item()) if double.numel() else 1.0
            assert ((leaf.grad - double.grad).abs() <= TOLERANCE * scale).all()
    for context in (torch.no_grad, torch.inference_mode):
        with context(), sat.offload("golden", precision="fp32"):
            got = operation(*(view(x) for x in leaves))
        scale = max(1.0, want.detach().abs().max().item())
        assert (got - want.detach()).abs().max() <= TOLERANCE * scale


IN_PLACE = {
    "mm, out": lambda c, a, b: torch.mm(a, b, out=c),
    "addmm, out": lambda c, a, b: torch.addmm(c.clone(), a, b, beta=2, out=c),
    "addmm_": lambda c, a, b: c.addmm_(a, b),
    "addmm_, scaled": lambda c, a, b: c.addmm_(a, b, beta=3, alpha=-2),
    "addmm_, no depth": lambda c, a, b: c.addmm_(a[:, :0], b[:0], beta=2),
    "addmv_": lambda c, a, b: c[:, 0].addmv_(a, b[:, 1]),
    "addbmm_": lambda c, a, b: c.addbmm_(a[None], b[None]),
    "baddbmm_": lambda c, a, b: c[None].baddbmm_(a[None], b[None]),
    "mul_": lambda c, a, b: c.mul_(a[:, :1]).add_(b[:1]),
    "sgn, out": lambda c, a, b: torch.sgn(a[:, :3], out=c),
}


@pytest.mark.parametrize("lazy, complex", [*((k, True) for k in COMPLEX), ("negated", False)])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", IN_PLACE)
def test_lazy_tensors_are_written_as_they_mean(name, lazy, precision, complex):
    view = (COMPLEX if complex else REAL)[lazy]
    a, b, c = (randn(*s, complex=complex) for s in ((4, 5), (5, 3), (4, 3)))
    base, target = c.clone(), narrow(c)
    IN_PLACE[name](view(base), view(a), view(b))
    with sat.offload("golden", precision=precision):
        IN_PLACE[name](view(target), view(narrow(a)), view(narrow(b)))
    # Into the memory below the view, too.
    bound = 0.05 if precision == "fp16" else TOLERANCE
    assert (target - base).abs().max() <= bound


@pytest.mark.parametrize(
    "operation",
    [
        lambda z, x: z @ x,
        lambda z, x: torch.addmm(z[:, :1], z, x, beta=2),
        lambda z, x: z.exp() + z.sum(),
        lambda z, x: torch.linalg.lstsq(x, z.T).solution,
        lambda z, x: torch.ops.sat_lazy.scaled(z, x),
        lambda z, x: torch.ops.sat_lazy.scaled(x, z),
    ],
)
def test_zeros_without_memory(operation):
    x = randn(4, 4, complex=False).float()
    zeros = torch._efficientzerotensor(3, 4)
    want = operation(torch.zeros(3, 4), x)
    with sat.offload("golden", precision="fp32"):
        assert (operation(zeros, x) - want).abs().max() < 1e-5


@pytest.mark.parametrize("lazy", COMPLEX)
def test_lazy_tensors_inside_control_flow(lazy):
    """Torch takes none of them as operands of its control flow."""
    x, view = randn(3, 3), COMPLEX[lazy]

    def branch(z):
        return view(z).mH @ view(z).exp()

    with sat.offload("golden", precision="fp32") as report:
        got = torch.cond(torch.tensor(True), branch, lambda z: z.clone(), (narrow(x),))
    assert (got - branch(x)).abs().max() < 1e-4
    assert report.calls == 1
