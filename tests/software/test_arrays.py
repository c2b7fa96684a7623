"""A program's tensors stay its own: storages can be resized, lazy bits are read as they mean."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import sat
from sat.arrays import array_of, tensor_of
from sat.devices import GoldenDevice
from sat.devices.staged import StagedDevice

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]


def randn(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(*shape, dtype=wide, generator=generator).to(dtype)


def negated(*shape, dtype=torch.float32):
    """Return a tensor whose memory holds its numbers with the other sign, as `imag` makes them."""
    return torch._neg_view(randn(*shape, dtype=dtype))


def resize(*tensors):
    """Free the memory of tensors and get them new, as FSDP does; raise if one cannot."""
    for x in tensors:
        assert isinstance(x, torch.Tensor)
        storage = x.untyped_storage()
        size = storage.nbytes()
        storage.resize_(0)
        storage.resize_(size)


# --------------------------------------------------------------------------------- conversions


def test_views_are_views_and_tensors_have_memory_of_their_own():
    x = randn(4, 5)
    array = array_of(x.t())
    assert array.shape == (5, 4) and array.strides == (4, 20) and array.dtype == np.float32
    array[1, 2] = 7
    assert x[2, 1] == 7
    made = tensor_of(array)
    array[1, 2] = 8
    assert made[1, 2] == 7
    resize(x, made)


@pytest.mark.parametrize(
    "x",
    [
        negated(3, 4),
        randn(3, 4, dtype=torch.complex64).conj(),
        randn(3, 4, dtype=torch.complex64).mH,
        torch._efficientzerotensor(3, 4),
        randn(3, 4)[1:, ::2],
        randn(1, 4).expand(3, 4),
        nn.Parameter(randn(3)),
        torch.zeros(0, 3),
        torch.tensor(2.5),
        torch.arange(6, dtype=torch.uint8).reshape(2, 3),
    ],
    ids=range(10),
)
def test_arrays_hold_what_tensors_mean(x):
    array = array_of(x)
    assert array.shape == x.shape and array.tolist() == (x + 0).tolist()


@pytest.mark.parametrize("x", [randn(2).bfloat16(), randn(2).to_sparse(), randn(2).to("meta")])
def test_what_is_no_array_is_refused(x):
    with pytest.raises((BufferError, RuntimeError)):
        array_of(x)


# ------------------------------------------------------------------------------------- offload

PROGRAMS = {
    "mm": (torch.mm, [(4, 8), (8, 6)]),
    "mv": (torch.mv, [(4, 8), (8,)]),
    "bmm": (torch.bmm, [(2, 4, 8), (2, 8, 6)]),
    "addmm": (torch.addmm, [(6,), (4, 8), (8, 6)]),
    "baddbmm": (torch.baddbmm, [(2, 4, 6), (2, 4, 8), (2, 8, 6)]),
    "conv2d": (functional.conv2d, [(1, 3, 5, 5), (4, 3, 1, 1), (4,)]),
    "conv_transpose1d": (functional.conv_transpose1d, [(1, 3, 5), (3, 2, 2), (2,)]),
    "cholesky": (lambda x: torch.linalg.cholesky(x @ x.mT + 9 * torch.eye(4).to(x)), [(4, 4)]),
}


@pytest.mark.parametrize("dtype", [*DTYPES, *COMPLEX])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_storages_of_operands_and_results_can_be_resized(name, precision, dtype):
    function, shapes = PROGRAMS[name]
    if name == "cholesky" and dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32  # torch factorises none of these
    tensors = [randn(*shape, dtype=dtype).requires_grad_() for shape in shapes]
    with sat.offload("golden", precision=precision):
        result = function(*tensors)
        cotangent = torch.ones_like(result)
        result.backward(cotangent)
    resize(result, cotangent, *(t.grad for t in tensors), *tensors)


def test_results_may_grow_as_torchs_own():
    a, b = randn(4, 5), randn(5, 6)
    with sat.offload("golden", precision="fp32"):
        y = a @ b
        with pytest.warns(UserWarning, match="An output with one or more elements was resized"):
            torch.cat([b, b], out=y)
    assert torch.equal(y, torch.cat([b, b]))


# --------------------------------------------------------------- devices, pruned tensors, layers


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_pruning_and_products_leave_storages_alone(dtype):
    x = randn(8, 4, dtype=dtype)
    pruned = sat.prune(x, "2:4")
    dense = pruned.to_dense()
    a, start = randn(3, 8, dtype=torch.float16), randn(3, 4)
    with sat.device("golden") as device:
        made = device.matmul(a, pruned.half(), start)
        kept = sat.resident(pruned.half())
        assert torch.equal(device.matmul(a, kept, start), made)
    resize(x, pruned.values, pruned.indices, dense, a, start, made)


LAYERS = [(nn.Linear(8, 8), (4, 8)), (nn.Conv2d(8, 8, 3), (2, 8, 5, 5))]
MAKE = {"golden": GoldenDevice, "staged": lambda: StagedDevice(GoldenDevice())}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("layer, shape", LAYERS, ids=["linear", "conv"])
def test_layers_leave_storages_alone(layer, shape, make):
    model = nn.Sequential(copy.deepcopy(layer))
    sat.sparsify_(model, scheme="bdwp", pattern="2:4")
    x = randn(*shape).requires_grad_()
    with make() as device, sat.use_device(device):
        y = model(x)
        y.sum().backward()
    resize(y, x.grad, x, *(p.grad for p in model.parameters()), *model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_negated_tensors_are_pruned_as_they_mean(dtype):
    x = negated(8, 4, dtype=dtype)
    got, want = (sat.prune(t, "2:4") for t in (x, x.resolve_neg()))
    assert torch.equal(got.values, want.values) and torch.equal(got.indices, want.indices)
    assert torch.equal(sat.prune(x, "dense").to_dense(), x.resolve_neg())


def test_negated_operands_of_a_device():
    a, start = randn(3, 8, dtype=torch.float16), negated(3, 5)
    right = negated(8, 5, dtype=torch.float16)
    plain = right.resolve_neg()
    assert right.is_neg() and not plain.is_neg()
    with sat.device("golden") as device:
        want = device.matmul(a, plain, start.resolve_neg())
        assert torch.equal(device.matmul(a, right, start), want)
        assert torch.equal(device.matmul(a, sat.resident(right), start), want)
        assert torch.equal(device.matmul(right.t(), a.t()), device.matmul(plain.t(), a.t()))


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("layer, shape", LAYERS, ids=["linear", "conv"])
def test_layers_read_negated_tensors_as_they_mean(layer, shape, make):
    x, found = negated(*shape), []
    for resolved in (False, True):
        model = nn.Sequential(copy.deepcopy(layer))
        model[0].weight = nn.Parameter(negated(*layer.weight.shape))
        if resolved:
            model[0].weight = nn.Parameter(model[0].weight.detach().resolve_neg())
        sat.sparsify_(model, scheme="bdwp", pattern="2:4")
        leaf = (x.resolve_neg() if resolved else x).detach().requires_grad_()
        assert leaf.is_neg() != resolved
        with make() as device, sat.use_device(device):
            y = model(leaf)
            dy = negated(*y.shape)
            y.backward(dy.resolve_neg() if resolved else dy)
        found.append([y.detach(), leaf.grad, model[0].weight.grad, model[0].bias.grad])
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)
