"""`sat.offload` and operators of the program's own: taken apart, or named in the report."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

import sat
from sat.offload.decompositions import OF_TORCH
from sat.offload.report import OWN

Tensor = torch.Tensor


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator)


def custom(name, mutates=()):
    return torch.library.custom_op(f"sat_own::{name}", mutates_args=mutates)


@custom("twice")
def twice(a: Tensor, b: Tensor) -> Tensor:
    return 2 * (a @ b)


twice.register_autograd(
    lambda ctx, g: (2 * g @ ctx.saved_tensors[1].mT, 2 * ctx.saved_tensors[0].mT @ g),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@custom("four_times")
def four_times(a: Tensor, b: Tensor) -> Tensor:
    return 2 * twice(a, b)


@custom("of_a_list")
def of_a_list(each: list[Tensor], bias: Tensor | None = None) -> list[Tensor]:
    made = each[0] @ each[1]
    return [made, made if bias is None else made + bias]


@custom("into", mutates=("out",))
def into(a: Tensor, b: Tensor, out: Tensor) -> None:
    torch.mm(a, b, out=out)


@custom("layer")
def layer(x: Tensor, w: Tensor) -> Tensor:
    return functional.conv2d(x, w).relu()


@custom("in_full")
def in_full(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return torch.einsum("ij,jk->ik", a, b)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx, g):
        return (g + g.mT) @ ctx.saved_tensors[0]


@custom("with_a_function")
def with_a_function(x: Tensor) -> Tensor:
    return Square.apply(x)


@custom("by_numpy")
def by_numpy(a: Tensor, b: Tensor) -> Tensor:
    return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))


@custom("sine")
def sine(x: Tensor) -> Tensor:
    return x.sin()


library = torch.library.Library("sat_own", "FRAGMENT")
FORMS = {"host": "CPU", "explicit": "CompositeExplicitAutograd", "implicit": ""}
for form, key in FORMS.items():
    library.define(f"{form}(Tensor a, Tensor b) -> Tensor")
    library.impl(form, lambda a, b: 2 * (a @ b), key or "CompositeImplicitAutograd")
OPERATORS = {"custom_op": twice, **{form: getattr(torch.ops.sat_own, form) for form in FORMS}}

A, B = (4, 6), (6, 5)


def offloaded(function, **options):
    with sat.offload("golden", **{"precision": "fp32", **options}) as report:
        result = function()
    return result, report


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", OPERATORS)
def test_products_inside_are_taken_in_the_state_that_the_program_left(name, context, autocast):
    operator, a, b = OPERATORS[name], randn(*A).requires_grad_(), randn(*B)
    with context(), torch.autocast("cpu", enabled=autocast):
        want = operator(a, b)
        got, report = offloaded(lambda: operator(a, b))
    assert (report.calls, report.coverage, report.host_reasons()) == (1, 1.0, {})
    assert [work.op for work in report] == ["aten.mm"]
    assert (got.dtype, got.requires_grad) == (want.dtype, want.requires_grad)
    assert got.dtype == (torch.bfloat16 if autocast else torch.float32)
    bound = 2.0**-7 if autocast else 1e-6
    assert ((got - want).abs() <= bound * want.abs() + bound).all()


@pytest.mark.filterwarnings(
    "ignore:sat_own..(host|explicit). an autograd kernel was not registered"
)
@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_flow_as_without(name):
    operator, a, b = OPERATORS[name], randn(*A).requires_grad_(), randn(*B).requires_grad_()
    want = torch.autograd.grad(operator(a, b).square().sum(), (a, b))
    got, report = offloaded(lambda: torch.autograd.grad(operator(a, b).square().sum(), (a, b)))
    assert (report.calls, report.coverage) == (3, 1.0)
    for ours, theirs in zip(got, want, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_operators_inside_operators_lists_and_results_in_place():
    a, b, out = randn(*A), randn(*B), torch.empty(4, 5)
    exact = a.double() @ b.double()
    (nested, listed, _, convolved, squared), report = offloaded(
        lambda: (
            four_times(a, b),
            of_a_list([a, b], bias=randn(5)),
            into(a, b, out),
            layer(randn(1, 2, 4, 4), randn(3, 2, 2, 2)),
            with_a_function(a),
        )
    )
    assert report.coverage == 1.0 and report.host_reasons() == {}
    assert report.calls == 5
    for got, want in (
        (nested, 4 * exact),
        (listed[0], exact),
        (listed[1], exact + randn(5)),
        (out, exact),
        (convolved, functional.conv2d(randn(1, 2, 4, 4), randn(3, 2, 2, 2)).relu()),
        (squared, a.double() @ a.double().mT),
    ):
        assert (got - want).abs().max() < 1e-5


@pytest.mark.parametrize("operator, tensors", [(by_numpy, (A, B)), (sine, (A,))])
def test_operators_that_show_no_product_are_named(operator, tensors):
    tensors = [randn(*shape) for shape in tensors]
    got, report = offloaded(lambda: [operator(*tensors) for _ in range(3)][-1])
    assert torch.equal(got, operator(*tensors))
    (work,) = report
    assert (work.op, work.reason, work.calls, work.flops) == (
        f"sat_own.{operator._opoverload.overloadpacket.__name__}",
        OWN,
        3,
        0,
    )
    assert report.calls == 0 and report.host_reasons() == {OWN: (3, 0)}
    assert f"host: {OWN}" in str(report) and work.op in str(report)
    assert report.to_json()["calls_of_unknown_size"] == 3
    assert "3 calls of unknown size" in str(report)


def test_what_stays_inside_has_its_own_reason():
    _, report = offloaded(lambda: twice(randn(*A), randn(*B)), min_size=10_000)
    assert set(report.host_reasons()) == {"below min_size=10,000"}
    assert report.calls == 0 and report.flops == 2 * 4 * 6 * 5


def test_errors_inside_are_the_operators_own():
    with pytest.raises(RuntimeError) as plain:
        twice(randn(*A), randn(*A))
    with sat.offload("golden") as report, pytest.raises(RuntimeError) as ours:
        twice(randn(*A), randn(*A))
    assert str(ours.value) == str(plain.value) and report.calls == 0


def test_traced_operators_stay_whole():
    from torch.fx.experimental.proxy_tensor import make_fx

    graph, report = offloaded(lambda: make_fx(twice)(randn(*A), randn(*B)))
    assert "sat_own.twice" in graph.code and "aten.mm" not in graph.code
    result, report = offloaded(lambda: graph(randn(*A), randn(*B)))
    assert report.calls == 1 and (result - twice(randn(*A), randn(*B))).abs().max() < 1e-5


def test_the_namespaces_are_all_of_torchs():
    """In a process of its own: here, other tests have operators of theirs."""
    program = """
import torch, torch.nn.attention.flex_attention, torch.distributed, torch.onnx, sat.offload.mode
print(*{name.split("::")[0] for name in torch._C._dispatch_get_all_op_names()})
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    found = set(done.stdout.split())
    assert "aten" in found and found - OF_TORCH <= {"sat"}


COMPOSITES = {
    "einsum": (lambda a, b: torch.einsum("ij,jk->ik", a, b), [A, B]),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 1), [A, B]),
    "affine_grid": (
        lambda t: functional.affine_grid(t, (1, 1, 3, 4), align_corners=False),
        [(1, 2, 3)],
    ),
    "bilinear": (functional.bilinear, [(4, 3), (4, 5), (2, 3, 5)]),
    "cdist": (torch.cdist, [(30, 3), (28, 3)]),
    "pinverse": (torch.pinverse, [A]),
    "multi_dot": (lambda *each: torch.linalg.multi_dot(each), [A, B, (5, 3)]),
    "matrix_power": (lambda a: torch.linalg.matrix_power(a, 3), [(4, 4)]),
    "attention": (functional.scaled_dot_product_attention, [(1, 2, 5, 4)] * 3),
    "conv1d": (functional.conv1d, [(1, 2, 7), (3, 2, 3)]),
}


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", COMPOSITES)
def test_autocasting_reaches_what_it_reaches_without(name, context):
    function, shapes = COMPOSITES[name]
    tensors = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
    with context(), torch.autocast("cpu"):
        want = function(*tensors)
        got, report = offloaded(lambda: function(*tensors))
    assert (got.dtype, got.shape, got.is_inference()) == (
        want.dtype,
        want.shape,
        want.is_inference(),
    )
    assert report.calls and (got - want).abs().max() <= 2.0**-6 * want.abs().max()


def test_an_operator_may_switch_autocasting_off():
    a, b = randn(*A), randn(*B)
    for context in (torch.enable_grad, torch.inference_mode):
        with context(), torch.autocast("cpu"):
            got, report = offloaded(lambda: in_full(a, b))
        assert report.calls == 1 and got.dtype is torch.float32
        assert (got - a.double() @ b.double()).abs().max() < 1e-5
