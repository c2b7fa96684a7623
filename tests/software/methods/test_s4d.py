"""S4D: initialisations, discretisations, both modes, convolution, the LegS limit, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.signal import cont2discrete, dlsim
from torch.utils._python_dispatch import TorchDispatchMode

from sat.methods.s4d import (
    S4D,
    S4DKernel,
    S4DModel,
    convolve,
    hippo_legs,
    initial_modes,
    legs_basis,
    normal_basis,
    normal_part,
    parameter_groups,
)
from sat.methods.s4d.demo import (
    GRUModel,
    accuracy,
    build,
    count_parameters,
    dense_kernel,
    kernel_errors,
)

INITS = ("lin", "inv", "legs", "real")
KINDS = ("zoh", "bilinear")
both = pytest.mark.parametrize("kind", KINDS)
every = pytest.mark.parametrize("init", INITS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def respond(layer, u):
    """Step through a sequence."""
    state, outputs = layer.initial_state(len(u)), []
    with torch.no_grad():
        for sample in u.unbind(-1):
            y, state = layer.step(sample, state)
            outputs.append(y)
    return torch.stack(outputs, -1)


# ----------------------------------------------------------------------- matrices, modes


def test_hippo_legs_by_its_definition():
    a = hippo_legs(9)
    assert a.dtype is torch.float64
    for i in range(9):
        for j in range(9):
            root = math.sqrt((2 * i + 1) * (2 * j + 1))
            assert float(a[i, j]) == pytest.approx(-root if i > j else -(i + 1) * (i == j))


@given(st.integers(1, 40))
@settings(max_examples=20)
def test_normal_part_is_normal_and_hippo_plus_rank_one(n):
    normal, eye = normal_part(n), torch.eye(n, dtype=torch.float64)
    skew = normal + eye / 2
    torch.testing.assert_close(skew, -skew.mT, atol=1e-12, rtol=1e-12)
    assert int(torch.linalg.matrix_rank(normal - hippo_legs(n))) == 1
    torch.testing.assert_close(normal @ normal.mT, normal.mT @ normal, atol=1e-8, rtol=1e-10)


def test_modes_are_the_papers_formulas():
    size = 10
    n = np.arange(size // 2)
    expected = {
        "lin": -0.5 + 1j * math.pi * n,
        "inv": -0.5 + 1j * size / math.pi * (size / (2 * n + 1) - 1),
        "real": -(n + 1.0) + 0j,
    }
    for init, modes in expected.items():
        np.testing.assert_allclose(initial_modes(init, size).numpy(), modes, atol=1e-13)
    eigenvalues = np.linalg.eigvals(normal_part(size).numpy())
    upper = sorted(eigenvalues[eigenvalues.imag > 0], key=lambda x: x.imag)
    np.testing.assert_allclose(initial_modes("legs", size).numpy(), upper, atol=1e-12)
    # S4D-Inv approximates LegS's largest frequency, N²/π.
    largest = float(initial_modes("legs", 256).imag.max())
    assert float(initial_modes("inv", 256).imag.max()) == pytest.approx(largest, rel=0.02)


@every
def test_kernel_starts_as_described(init):
    kernel = S4DKernel(2000, 8, init=init, dt_min=1e-3, dt_max=1e-1)
    expected = initial_modes(init, 8).expand(2000, 4)
    torch.testing.assert_close(kernel.a, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(torch.view_as_complex(kernel.b), torch.ones(2000, 4, dtype=torch.complex64))
    c = torch.view_as_complex(kernel.c.detach())
    assert float(c.abs().square().mean()) == pytest.approx(1, abs=0.05)
    assert float((c * c).mean().abs()) < 0.05  # circular: parts alike and uncorrelated
    log_dt = kernel.log_dt.detach()
    assert math.log(1e-3) <= float(log_dt.min()) and float(log_dt.max()) <= math.log(1e-1)
    assert float(log_dt.mean()) == pytest.approx(math.log(1e-2), abs=0.1)
    assert float(log_dt.std()) == pytest.approx(math.log(100) / math.sqrt(12), abs=0.05)


# ---------------------------------------------------------------- discretisation, kernel


@both
def test_discrete_system_is_the_papers_formula(kind):
    kernel = S4DKernel(3, 6, discretization=kind)
    a, dt = kernel.a, kernel.log_dt.double().exp()[:, None]
    log_a, b = kernel.discretize()
    if kind == "zoh":
        expected = torch.exp(dt * a), (torch.exp(dt * a) - 1) / a
    else:
        expected = (1 + dt * a / 2) / (1 - dt * a / 2), dt / (1 - dt * a / 2)
    torch.testing.assert_close(log_a.exp(), expected[0])
    torch.testing.assert_close(b, expected[1])


@both
@every
def test_kernel_is_the_recurrence_and_scipys(init, kind):
    errors = kernel_errors(init, kind, seed=1)
    assert errors["kernel"] < 1e-5 and errors["output"] < 1e-5 and errors["scipy"] < 1e-9


@given(
    half=st.integers(1, 8),
    length=st.integers(1, 40),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 999),
)
@settings(max_examples=25)
def test_kernel_is_the_sum_over_all_modes_and_their_conjugates(half, length, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    real, imag = torch.randn(2, 3, half, generator=generator, dtype=torch.float64)
    a = torch.complex(-real.exp(), 10 * imag)
    kernel = S4DKernel(3, 2 * half, init=a, discretization=kind).double()
    with torch.no_grad():
        kernel.b.normal_(generator=generator)
    log_a, b = (x.detach() for x in kernel.discretize())
    step = torch.cat([log_a.exp(), log_a.exp().conj()], 1)
    weight = b * torch.view_as_complex(kernel.c.detach())
    weight = torch.cat([weight, weight.conj()], 1)
    expected = torch.stack([(weight * step**i).sum(1) for i in range(length)], -1)
    assert float(expected.imag.abs().max()) < 1e-12
    torch.testing.assert_close(kernel(length).detach(), expected.real, atol=1e-11, rtol=1e-9)


def test_bilinear_is_tustins_rule_with_its_output_taken_after_the_sample():
    kernel = S4DKernel(1, 8, init="legs", discretization="bilinear").double()
    k = kernel(64).detach().numpy()[0]
    a = kernel.a[0].detach().numpy()
    dense = np.diag(np.concatenate([a, a.conj()]))
    c = torch.view_as_complex(kernel.c[0].detach()).numpy()
    system = dense, np.ones((8, 1)), np.concatenate([c, c.conj()])[None], np.zeros((1, 1))
    dt = float(kernel.log_dt.detach().exp())
    discrete = cont2discrete(system, dt, "bilinear")
    a, b, c, d = discrete[:4]
    tustin = [complex(d[0, 0])]
    for _ in range(63):
        tustin.append(complex((c @ b)[0, 0]))
        b = a @ b
    # Tustin's output is the mean over the step.
    np.testing.assert_allclose(tustin, (k + np.append(0, k[:-1])) / 2, atol=1e-12)


def test_bilinear_with_a_pole_at_zero_is_finite():
    kernel = S4DKernel(1, 2, init=torch.tensor([-20.0 + 0j]), discretization="bilinear").double()
    with torch.no_grad():
        kernel.log_dt.zero_()
        kernel.log_neg_real.fill_(math.log(2))
    assert float(kernel.a.real.detach()) == -2.0
    k = kernel(4)
    k.sum().backward()
    assert bool(k[0, 1:].abs().max() < 1e-12) and float(k[0, 0].detach().abs()) > 0.01
    assert all(bool(torch.isfinite(p.grad).all()) for p in kernel.parameters())


@both
def test_slow_modes_integrate_their_input(kind):
    kernel = S4DKernel(1, 2, init=torch.tensor([-1e-18 + 0j]), discretization=kind).double()
    dt = kernel.log_dt.detach().exp()
    torch.testing.assert_close(kernel.discretize()[1].detach().real[0], dt, rtol=1e-12, atol=0)


@both
def test_long_kernels_keep_their_phase_in_float32(kind):
    modes = torch.complex(torch.full((4,), -1e-3), torch.linspace(1, 31, 4))
    kernel = S4DKernel(2, 8, init=modes, discretization=kind)
    single = kernel(16384).detach()
    double = kernel.double()(16384).detach()
    assert float((single - double).abs().max() / double.abs().max()) < 1e-5


@given(st.floats(-60, 60), st.floats(-1e3, 1e3), st.sampled_from(KINDS))
@settings(max_examples=30)
def test_whatever_the_parameters_the_system_is_stable(log_neg_real, imag, kind):
    kernel = S4DKernel(1, 2, discretization=kind)
    with torch.no_grad():
        kernel.log_neg_real.fill_(log_neg_real)
        kernel.imag.fill_(imag)
    assert float(kernel.a.real.detach()) < 0
    assert float(kernel.discretize()[0].detach().real) <= 0
    assert bool(torch.isfinite(kernel(200)).all())


@both
def test_gradients_are_right(kind):
    kernel = S4DKernel(2, 4, discretization=kind).double()
    names = [name for name, _ in kernel.named_parameters()]
    assert names == ["log_dt", "log_neg_real", "imag", "b", "c"]

    def call(*values):
        return torch.func.functional_call(kernel, dict(zip(names, values, strict=True)), (7,))

    values = [p.detach().clone().requires_grad_() for p in kernel.parameters()]
    assert torch.autograd.gradcheck(call, values)


class Ops(TorchDispatchMode):
    """Notes which operations run."""

    def __init__(self):
        super().__init__()
        self.shapes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [tuple(x.shape) for x in args if isinstance(x, torch.Tensor)]
        self.shapes.setdefault(func.overloadpacket.__name__, []).append(shapes)
        return func(*args, **(kwargs or {}))


def test_a_state_goes_on_where_it_stopped_in_the_parameters_precision():
    layer, u = S4D(2, d_state=4), torch.randn(1, 2, 3)
    state = layer.initial_state(1)
    assert state.dtype is torch.complex64 and not state.any()
    y = layer(u).detach()
    for i in range(3):
        out, state = layer.step(u[..., i], state)
        assert state.dtype is torch.complex64 and out.dtype is torch.float32
        torch.testing.assert_close(out.detach(), y[..., i], atol=1e-5, rtol=1e-5)
    assert layer.double().initial_state(1).dtype is torch.complex128


def test_the_kernel_is_one_product_and_dft_leaves_no_fft():
    layer = S4D(3, d_state=8, conv="dft")
    with Ops() as ops, torch.no_grad():
        layer(torch.randn(2, 3, 5))
    assert ops.shapes["bmm"][0] == [(3, 1, 8), (3, 8, 5)]
    assert not any("fft" in name for name in ops.shapes)
    with Ops() as ops, torch.no_grad():
        S4D(3, d_state=8)(torch.randn(2, 3, 5))
    assert len(ops.shapes["bmm"]) == 1 and "_fft_r2c" in ops.shapes


# --------------------------------------------------------------------------- convolution


@given(
    length=st.integers(1, 33),
    batch=st.integers(1, 3),
    method=st.sampled_from(("fft", "dft")),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_convolution_is_linear_not_circular(length, batch, method, seed):
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(batch, 2, length, generator=generator, dtype=torch.float64)
    kernel = torch.randn(2, length, generator=generator, dtype=torch.float64)
    expected = [[np.convolve(u[i, c], kernel[c])[:length] for c in range(2)] for i in range(batch)]
    np.testing.assert_allclose(convolve(u, kernel, method), expected, atol=1e-12)


@pytest.mark.parametrize("conv", ("fft", "dft"))
def test_outputs_do_not_depend_on_later_inputs(conv):
    layer, u = S4D(4, conv=conv).double(), torch.randn(2, 4, 50, dtype=torch.float64)
    changed = u.clone()
    changed[..., 30:] += 100
    y, other = layer(u).detach(), layer(changed).detach()
    torch.testing.assert_close(y[..., :30], other[..., :30], atol=1e-10, rtol=0)
    assert float((y[..., 30:] - other[..., 30:]).abs().max()) > 1


@both
def test_both_modes_agree_and_skip_the_input_by_d(kind):
    layer, u = S4D(3, d_state=16, init="inv", discretization=kind), torch.randn(2, 3, 256)
    y = layer(u).detach()
    assert y.shape == u.shape and y.dtype is torch.float32
    scale = float(y.abs().max())
    assert float((y - respond(layer, u)).abs().max()) < 1e-5 * scale
    before = y - layer.d.detach()[:, None] * u
    with torch.no_grad():
        layer.d.zero_()
    torch.testing.assert_close(layer(u).detach(), before, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------- LegS limit


def test_legs_basis_is_that_of_the_whole_matrix_averaged():
    dt, size = 0.1, 12
    a, b = hippo_legs(size).numpy(), np.sqrt(2 * np.arange(size) + 1)
    # Simpson's rule for the mean over a step, of kernels that do not depend on the size.
    for column in range(3):
        points = [expm((column + share) * dt * a) @ b for share in (0, 0.5, 1)]
        mean = (points[0] + 4 * points[1] + points[2]) / 6
        np.testing.assert_allclose(legs_basis(3, dt, 5)[:, column], mean[:3], atol=1e-4)
    # e_0 obeys x' = -x.
    closed = (np.exp(-dt * np.arange(5)) - np.exp(-dt * np.arange(1, 6))) / dt
    np.testing.assert_allclose(legs_basis(1, dt, 5)[0], closed, rtol=1e-12)


def test_normal_basis_is_that_of_the_dense_matrix():
    dt, size = 0.1, 8
    a, b = normal_part(size).numpy(), np.sqrt(2 * np.arange(size) + 1) / 2
    first = np.linalg.solve(a, (expm(dt * a) - np.eye(size)) @ b) / dt
    dense = np.stack([(expm(i * dt * a) @ first)[:3] for i in range(6)], 1)
    np.testing.assert_allclose(normal_basis(size, 3, dt, 6), dense, atol=1e-12)


@pytest.mark.parametrize("dt", (0.05, 0.1, 0.2))
def test_normal_basis_tends_to_that_of_legs(dt):
    limit = legs_basis(4, dt, 30)
    gaps = [float((normal_basis(n, 4, dt, 30) - limit).abs().max()) for n in (16, 64, 256)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] and gaps[2] < 0.05


def test_input_b_instead_of_half_of_it_has_another_limit():
    limit = legs_basis(4, 0.1, 30)
    assert float((2 * normal_basis(256, 4, 0.1, 30) - limit).abs().max()) > 0.5


# --------------------------------------------------------------------------------- models


def test_model_shapes_and_every_parameter_learns():
    model = S4DModel(3, 5, 2, d_model=8, d_state=4, dropout=0.1, init="legs")
    assert model(torch.randn(4, 3, 20)).shape == (4, 5)
    outputs = S4DModel(3, 5, 1, d_model=8, d_state=4, pool=False)(torch.randn(4, 3, 20))
    assert outputs.shape == (4, 5, 20)
    model(torch.randn(4, 3, 20)).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and bool(torch.isfinite(p.grad).all()), name
        assert float(p.grad.abs().max()) > 0, name


def test_groups_split_parameters_once():
    model = S4DModel(1, 2, 2, d_model=4, d_state=4)
    slow, rest = parameter_groups(model, 1e-2, ssm_lr=1e-3, weight_decay=0.05)
    assert (slow["lr"], slow["weight_decay"]) == (1e-3, 0.0)
    assert (rest["lr"], rest["weight_decay"]) == (1e-2, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = {names[id(p)].rsplit(".", 1)[1] for p in slow["params"]}
    assert kinds == {"log_dt", "log_neg_real", "imag", "b"} and len(slow["params"]) == 8
    ids = [id(p) for p in slow["params"] + rest["params"]]
    assert sorted(ids) == sorted(names)
    assert {"c", "d"} <= {names[id(p)].rsplit(".", 1)[1] for p in rest["params"]}


def test_gru_is_the_largest_of_no_more_parameters():
    budget, gru = count_parameters(build("lin")), build("gru")
    assert count_parameters(gru) <= budget < count_parameters(GRUModel(gru.gru.hidden_size + 1))
    assert count_parameters(build("random")) == count_parameters(build("uniform")) == budget


def test_training_is_its_seed_and_learns():
    first = accuracy(0, epochs=3)
    assert first == accuracy(0, epochs=3) > 0.4


def test_dense_kernel_is_a_channels_own():
    kernel = S4DKernel(2, 4)
    k = kernel(20).detach().numpy()
    for channel in range(2):
        scale = np.abs(k[channel]).max()
        assert np.abs(dense_kernel(kernel, channel, 20) - k[channel]).max() < 1e-5 * scale


def test_zero_order_hold_is_scipys_delayed_by_one():
    kernel = S4DKernel(1, 2, init=torch.tensor([-1.0 + 2j])).double()
    c = torch.view_as_complex(kernel.c.detach())[0, 0]
    a = np.array([[-1.0, -2.0], [2.0, -1.0]])
    system = a, np.array([[1.0], [0.0]]), 2 * np.array([[float(c.real), -float(c.imag)]]), [[0.0]]
    dt = float(kernel.log_dt.detach().exp())
    impulse = np.eye(1, 10)[0]
    response = dlsim(cont2discrete(system, dt, "zoh"), impulse)[1][:, 0]
    np.testing.assert_allclose(response[1:], kernel(9).detach()[0], atol=1e-14)
    assert response[0] == 0


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: S4DKernel(4, 7), "d_state=7: must be a positive even int"),
        (lambda: S4DKernel(4, 0), "d_state=0: must be a positive even int"),
        (lambda: S4DKernel(4, -2), "d_state=-2: must be a positive even int"),
        (lambda: initial_modes("lin", 3), "d_state=3: must be a positive even int"),
        (lambda: S4DKernel(0), "d_model=0: must be a positive int"),
        (lambda: S4DKernel(4, init="fourier"), "init='fourier': must be one of lin, inv"),
        (lambda: S4DKernel(4, discretization="euler"), "discretization='euler': must be"),
        (lambda: S4DKernel(4, dt_min=0.1, dt_max=0.1), "dt_min=0.1, dt_max=0.1: must be"),
        (lambda: S4DKernel(4, dt_min=0.0), "dt_min=0.0, dt_max=0.1: must be"),
        (lambda: S4DKernel(4, dt_max=math.nan), "dt_max=nan: must be"),
        (lambda: S4DKernel(1, 4, init=torch.tensor([-1.0, 0.0])), "real part of 0.0: modes must"),
        (lambda: S4DKernel(1, 2, init=torch.tensor([0.25j])), "real part of 0.0: modes must"),
        (lambda: S4DKernel(1, 2, init=torch.tensor([math.nan])), "real part of nan: modes must"),
        (lambda: S4DKernel(4, 4, init=-torch.ones(3)), r"shape \(3,\): must be \(2,\) or \(4, 2\)"),
        (lambda: S4DKernel(4)(0), "length=0: must be a positive int"),
        (lambda: S4DKernel(4)(-1), "length=-1: must be a positive int"),
        (lambda: S4D(4)(torch.zeros(1, 4, 0)), "length=0: must be a positive int"),
        (lambda: S4D(4)(torch.zeros(1, 3, 8)), r"\(1, 3, 8\): must be \(batch, d_model, length\)"),
        (lambda: S4D(4)(torch.zeros(4, 8)), r"input has shape \(4, 8\): must be"),
        (lambda: S4D(4, conv="direct"), "conv='direct': must be 'fft' or 'dft'"),
        (lambda: S4D(4).step(torch.zeros(1, 3), torch.zeros(1, 3, 32)), "with d_model=4"),
        (lambda: S4D(4).step(torch.zeros(1, 4), torch.zeros(1, 4, 32)), "state is torch.float32"),
        (
            lambda: S4D(4).step(torch.zeros(2, 4), S4D(4).initial_state(1)),
            r"must be complex of \(2, 4, 32\); begin with initial_state\(2\)",
        ),
        (lambda: convolve(torch.zeros(1, 2, 8), torch.zeros(2, 7)), r"the kernel \(2, 7\): must"),
        (lambda: convolve(torch.zeros(1, 2, 8), torch.zeros(2, 8), "no"), "conv='no': must be"),
        (lambda: S4DModel(1, 0), "d_output=0: must be a positive int"),
        (lambda: S4DModel(2, 3, 1)(torch.zeros(1, 1, 8)), "with d_input=2"),
        (lambda: parameter_groups(S4D(2), 1e-4), "ssm_lr=0.001: must be positive and at most"),
        (lambda: parameter_groups(S4D(2), 1e-4, ssm_lr=0.0), "ssm_lr=0.0: must be positive"),
        (lambda: hippo_legs(0), "n=0: must be a positive int"),
        (lambda: normal_part(-1), "n=-1: must be a positive int"),
        (lambda: legs_basis(2, 0.1, 0), "length=0: must be a positive int"),
        (lambda: legs_basis(2, 0.0, 3), "dt=0.0: must be positive"),
        (lambda: normal_basis(4, 2, -1.0, 3), "dt=-1.0: must be positive"),
        (lambda: normal_basis(4, 5, 0.1, 3), "d_state=4: must be at least count=5"),
    ],
)
def test_bad_input_is_named_with_its_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
