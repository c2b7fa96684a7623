"""DGNO: nets by hand, forward derivatives, test functions, the weak form, inversion, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

from sat.methods.dgno import DGNO, DeepONet, MultiONet, WeakTest, demo, fit, invert, wendland
from sat.methods.dgno.inversion import posterior_covariance
from sat.methods.dgno.onet import ACTIVATIONS

SMALL = {
    "latent": 4, "hidden": (8,), "input_width": 8, "width": 8, "depth": 2, "sum_layers": 2,
    "centers": 6, "radius": 0.05,
}  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def net(kind=MultiONet, in_x=2, in_a=3, width=5, seed=0, **options):
    """A float64 net whose weights of products are not 0."""
    torch.manual_seed(seed)
    made = kind(in_x, in_a, width, **options).double()
    with torch.no_grad():
        if isinstance(made.weight, nn.Parameter):
            made.weight.copy_(torch.randn(made.weight.shape, dtype=torch.float64))
        made.bias.fill_(0.3)
    return made


# ------------------------------------------------------------------------------- operator nets


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_as_written_and_their_slopes_theirs(name):
    act, slope = ACTIVATIONS[name]
    silu = lambda z: z / (1 + math.exp(-z))  # noqa: E731
    expected = {
        "tanh_sin": lambda z: math.tanh(math.sin(math.pi * (z + 1))) + z,
        "silu_sin": lambda z: silu(math.sin(math.pi * (z + 1))) + z,
        "silu_id": lambda z: silu(z) + z,
    }[name]
    x = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    y = act(x)
    torch.testing.assert_close(y.tolist(), [expected(z) for z in x.tolist()])
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope(x.detach()), gradient)


@settings(max_examples=10)
@given(
    depth=st.integers(1, 4), data=st.data(), acts=st.permutations(list(ACTIVATIONS)),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_multionet_is_its_sum_over_the_last_layers(depth, data, acts, seed):
    """Sample by sample, place by place, in numpy."""
    last = data.draw(st.integers(1, depth))
    made = net(depth=depth, sum_layers=last, act_trunk=acts[0], act_branch=acts[1], seed=seed)
    x = torch.rand(4, 2, generator=generator(seed), dtype=torch.float64)
    a = torch.rand(3, 3, generator=generator(seed + 1), dtype=torch.float64)

    def layers(stack, name, values):
        out = []
        for layer in stack:
            w, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            values = ACTIVATIONS[name][0](torch.from_numpy(w @ values + b)).numpy()
            out.append(values)
        return out

    expected = np.full((3, 4), float(made.bias.detach()))
    for i in range(3):
        branch = layers(made.branch, acts[1], a[i].numpy())
        for n in range(4):
            trunk = layers(made.trunk, acts[0], x[n].numpy())
            assert len(trunk) == len(branch) == depth + 1
            for k in range(last):
                weight = float(made.weight.detach()[k])
                expected[i, n] += weight / last * trunk[k - last] @ branch[k - last]
    np.testing.assert_allclose(made(x, a).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [MultiONet, DeepONet])
def test_forward_derivatives_are_autograds(kind):
    made = net(kind, depth=3, sum_layers=2, act_trunk="silu_sin")
    x = torch.rand(5, 2, generator=generator(), dtype=torch.float64)
    a = torch.rand(3, 3, generator=generator(1), dtype=torch.float64)
    value, gradient = made.with_gradient(x, a)
    torch.testing.assert_close(value, made(x, a))
    jacobian = torch.func.jacrev(lambda place: made(place, a))(x)
    for n in range(5):
        torch.testing.assert_close(gradient[:, n], jacobian[:, n, n])
        assert not jacobian[:, n, :n].any()  # another place's value
    gradient.square().sum().backward()
    assert all(p.grad is not None for p in made.trunk.parameters())


def test_deeponet_is_the_last_product_alone():
    made = net(DeepONet, depth=4, sum_layers=4)
    x, a = torch.rand(5, 2).double(), torch.rand(3, 3).double()
    act = ACTIVATIONS["tanh_sin"][0]
    t, b = x, a
    for trunk, branch in zip(made.trunk, made.branch, strict=True):
        t, b = act(trunk(t)), act(branch(b))
    torch.testing.assert_close(made(x, a), b @ t.mT / 4 + 0.3)
    assert [name for name, _ in made.named_parameters() if "." not in name] == ["bias"]


def test_untrained_nets_are_zero_and_sizes_are_the_specs():
    made = MultiONet(1, 64, 64)
    assert not made(torch.rand(5, 1), torch.rand(3, 64)).any()
    assert sum(p.numel() for p in made.parameters()) == 37_573
    mixed = MultiONet(2, 3, [4, 6, 8], 2, 2, branch_width=[5, 6, 8])
    assert mixed(torch.rand(5, 2), torch.rand(3, 3)).shape == (3, 5)


# ------------------------------------------------------------------------------ test functions


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_wendland_and_its_slope(dim):
    """The functions of smoothness 4 in Wendland's table 1; slopes by autograd."""
    r = torch.linspace(0, 1.2, 49, dtype=torch.float64, requires_grad=True)
    v, over_r = wendland(r, dim)
    rest, square = (1 - r.detach()).clamp(min=0), r.detach() ** 2
    if dim == 1:
        expected = rest**5 * (8 * square + 5 * r.detach() + 1)
    else:
        expected = rest**6 * (35 * square + 18 * r.detach() + 3) / 3
    torch.testing.assert_close(v.detach(), expected)
    (slope,) = torch.autograd.grad(v.sum(), r)
    torch.testing.assert_close(over_r.detach() * r.detach(), slope)
    assert v[0].item() == 1 and v[-1].item() == 0
    assert over_r[0].item() == pytest.approx(-14 if dim == 1 else -56 / 3)


def test_places_and_gradients_of_test_functions():
    test = WeakTest(2, 7, 0.1)
    assert len(test.v) == 25  # of 49, as in the authors' code
    x = test.sample(12, generator(), torch.float64)
    assert x.shape == (12, 25, 2)
    centers = x.mean(1)
    assert float(centers.min()) >= 0.1 and float(centers.max()) <= 0.9
    for axis in (0, 1):
        # A Latin hypercube: one in each of twelve intervals of an axis.
        strata = ((centers[:, axis] - 0.1) / 0.8 * 12).floor().sort().values
        assert strata.tolist() == list(range(12))
    at = x[0].clone().requires_grad_()
    v, _ = wendland((at - centers[0]).norm(dim=1) / 0.1, 2)
    keep = (at - centers[0]).norm(dim=1) > 1e-6
    (gradient,) = torch.autograd.grad(v[keep].sum(), at)
    torch.testing.assert_close(test.v, v.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(test.gradient[keep], gradient[keep], atol=1e-9, rtol=0)


def test_weak_residual_is_the_integral():
    """Of s = x³ and f = 2 against quadrature: the mean over a ball is its integral over 2 R."""
    radius = 0.2
    test = WeakTest(1, 4001, radius)
    x = test.sample(3, generator(), torch.float64)
    got = test.residual(x[None] ** 3, 2.0)[0]
    for center, value in zip(x.mean((1, 2)).tolist(), got.tolist(), strict=True):

        def integrand(y, center=center):
            r = torch.tensor(abs(y - center) / radius, dtype=torch.float64)
            v, over_r = wendland(r, 1)
            return y**3 * float(over_r) * (y - center) / radius**2 - 2 * float(v)

        ends = center - radius, center + radius
        expected = quad(integrand, *ends, points=[center])[0] / (2 * radius)
        assert value == pytest.approx(expected, rel=2e-3)  # both ends of the mean are 0
    # By parts: it vanishes where -s' = f, for any constant in s.
    assert float(test.residual((0.7 - 2 * x)[None], 2.0).abs().max()) < 1e-9


# ----------------------------------------------------------------------------------- the model


def test_equations_vanish_for_the_exact_solution():
    """u = x (1 - x), a = 5, f = 10: decoders replaced by functions that are exact."""

    class Exact(nn.Module):
        def __init__(self, u):
            super().__init__()
            self.u = u

        def forward(self, x, a):
            return self.u(x)[:, 0].expand(len(a), -1)

        def with_gradient(self, x, a):
            x = x.detach().requires_grad_()
            y = self.u(x)
            (slope,) = torch.autograd.grad(y.sum(), x)
            return self.forward(x, a).detach(), slope.expand(len(a), -1, -1)

    model = DGNO(8, dim=1, **SMALL | {"n_mesh": 401}).double()
    model.u = Exact(lambda x: x * (1 - x) / torch.sin(math.pi * x))
    model.s[0] = Exact(lambda x: 5 - 10 * x)
    x = model.test.sample(6, generator(), torch.float64)
    beta = torch.zeros(2, 4).double()
    flux, weak = model.residuals(torch.full((2, 6 * 399), 5.0).double(), x, beta, 10.0)
    assert float(flux.max()) < 1e-20 and float(weak.max()) < 1e-14
    flux, _ = model.residuals(torch.full((2, 6 * 399), 10.0).double(), x, beta, 10.0)
    assert float(flux.min()) > 0.1
    _, weak = model.residuals(torch.full((2, 6 * 399), 5.0).double(), x, beta, 9.0)
    assert float(weak.min()) > 1e-3


@pytest.mark.parametrize(("dim", "cells"), [(1, 6), (2, 9)])
def test_solution_and_its_gradient_vanish_where_they_should(dim, cells):
    torch.manual_seed(0)
    model = DGNO(cells, dim=dim, **SMALL).double()
    with torch.no_grad():
        model.u.weight.fill_(1.0)
    x = torch.rand(7, dim, generator=generator(), dtype=torch.float64)
    beta = torch.rand(2, 4, generator=generator(1), dtype=torch.float64)
    u, slope = model.solution_with_gradient(x, beta)
    torch.testing.assert_close(u, model.solution(x, beta))
    jacobian = torch.func.jacrev(lambda place: model.solution(place, beta))(x)
    for n in range(7):
        torch.testing.assert_close(slope[:, n], jacobian[:, n, n])
    for axis in range(dim):
        for end in (0.0, 1.0):
            edge = x.clone()
            edge[:, axis] = end
            assert not model.solution(edge, beta).any()
    assert float(u.detach().abs().min()) > 0


def test_cells_are_the_datas():
    model = DGNO(9, dim=2, **SMALL)
    a = torch.arange(9.0)[None]
    torch.testing.assert_close(model.cell_values(a, model.cells), a)
    places = torch.tensor([[0.0, 0.99], [0.34, 0.1], [1.0, 1.0]])
    assert model.cell_values(a, places).tolist() == [[2.0, 3.0, 8.0]]


def test_two_dimensions_five_steps():
    """The authors' case: 29 x 29 cells, two fluxes, random two-phase media; the loss falls."""
    torch.manual_seed(0)
    model = DGNO(841, **SMALL | {"hidden": (32,)})
    a = torch.where(torch.rand(10, 841, generator=generator()) > 0.4, 10.0, 5.0)
    assert len(model.s) == 2 and len(model.test.v) == 25
    before = [p.detach().clone() for p in model.parameters()]
    losses = fit(model, a, epochs=5, batch=10, lr=1e-2, generator=generator())
    assert len(losses) == 5 and losses[-1] < losses[0] and math.isfinite(losses[-1])
    moved = [bool((p != b).any()) for p, b in zip(model.parameters(), before, strict=True)]
    assert all(moved)
    assert model.flux(model.cells, model.encode(a)).shape == (10, 841, 2)


def test_loss_has_its_parts():
    torch.manual_seed(0)
    model = DGNO(8, dim=1, **SMALL)
    a = torch.where(torch.rand(5, 8, generator=generator()) > 0.5, 10.0, 5.0)
    parts = {name: part.detach() for name, part in model.loss(a, 10.0, generator(3)).items()}
    assert float(parts["data"]) == pytest.approx(math.log(2), rel=1e-5)  # untrained: logits of 0
    assert float(parts["flux"]) == 0 == float(parts["divergence"])
    mean_v = float(model.test.v.mean())
    assert float(parts["weak"]) == pytest.approx(math.sqrt(6) * (10 * mean_v) ** 2, rel=1e-5)
    total = sum(float(v) for name, v in parts.items() if name != "loss")
    assert float(parts["loss"]) == pytest.approx(total)
    smooth = DGNO(8, dim=1, phases=None, **SMALL)
    square = float(smooth.loss(a, 10.0, generator())["data"].detach())
    assert square == pytest.approx(float(a.square().mean()), rel=1e-5)


def test_variational_encoder():
    torch.manual_seed(0)
    model = DGNO(8, dim=1, encoder="vae", **SMALL).double()
    a = torch.where(torch.rand(500, 8, generator=generator()) > 0.5, 10.0, 5.0).double()
    code = model.encoder(a)
    mean, log_variance = code.chunk(2, -1)
    torch.testing.assert_close(model.encode(a), mean)
    drawn = model.encode(a, generator()) - mean
    assert float((drawn / (log_variance / 2).exp()).std().detach()) == pytest.approx(1, rel=0.05)
    normal = torch.distributions.Normal
    there = normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(there, normal(0.0, 1.0)).sum(1).mean() / 8
    torch.testing.assert_close(model.loss(a, 10.0, generator())["divergence"], expected)


def test_exact_solution_between_nodes():
    """The demo's sensors: u by integrating (C - 10 x) / a finely."""
    a = demo.media(1, 3).a[0].double().numpy()
    x = np.array([0.0, 0.013, 0.5, 0.777, 1.0])
    u, flux = demo.darcy_1d(a[None], demo.LOAD)
    for place, got in zip(x, demo._between_nodes(a, x), strict=True):
        expected = quad(
            lambda y: (flux[0, 0] - demo.LOAD * y) / a[min(int(y * 64), 63)], 0, place,
            points=np.arange(1, 64) / 64, limit=300,
        )[0]  # fmt: skip
        assert got == pytest.approx(expected, abs=1e-10)


# ------------------------------------------------------------------------------------ inversion


def trained():
    """A small model after some steps, its media and their codes."""
    torch.manual_seed(0)
    model = DGNO(8, dim=1, **SMALL)
    a = torch.where(torch.rand(40, 1, generator=generator()) > torch.arange(8) / 8, 10.0, 5.0)
    fit(model, a, epochs=30, batch=20, lr=1e-2, generator=generator())
    return model, a, model.encode(a).detach()


def test_inversion_fits_its_sensors_and_keeps_the_model():
    model, _, codes = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x_obs = torch.linspace(0.1, 0.9, 9)[:, None]
    target = torch.tanh(codes[:1].atanh() + 0.3)
    with torch.no_grad():
        y = model.solution(x_obs, target)[0]
        start = float(((model.solution(x_obs, codes) - y).norm(dim=1) / y.norm()).min())
    found = invert(
        model, x_obs, y, 0.01 * float(y.norm()), codes=codes, steps=60, prior=0.01,
        generator=generator(),
    )  # fmt: skip
    assert found.misfit < 0.7 * start
    assert found.a.shape == found.spread.shape == found.a_prob.shape == (8,)
    assert found.draws.shape == (100, 8) and found.u.shape == (8,)
    assert set(found.a.tolist()) <= {5.0, 10.0}
    share = ((found.draws - 5) / 5).mean(0)
    torch.testing.assert_close(found.a_prob, share)
    torch.testing.assert_close(found.spread, 5 * (share * (1 - share)).clamp(min=0).sqrt())
    assert all(bool((model.state_dict()[n] == v).all()) for n, v in before.items())
    assert all(p.grad is None or not p.grad.isnan().any() for p in model.parameters())
    again = invert(
        model, x_obs, y, 0.01 * float(y.norm()), codes=codes, steps=60, prior=0.01,
        generator=generator(),
    )  # fmt: skip
    assert torch.equal(found.beta, again.beta) and torch.equal(found.draws, again.draws)


def test_posterior_of_a_linear_gaussian_model():
    """Against conditioning the joint Gaussian of code and sensors."""
    g = generator(1)
    j = torch.randn(3, 5, generator=g, dtype=torch.float64)
    root = torch.randn(5, 5, generator=g, dtype=torch.float64)
    prior, noise = root @ root.mT + torch.eye(5), 0.3
    sensors = j @ prior @ j.mT + noise**2 * torch.eye(3)
    expected = prior - prior @ j.mT @ torch.linalg.solve(sensors, j @ prior)
    torch.testing.assert_close(posterior_covariance(j, noise, prior), expected)


def test_less_noise_leaves_less_spread():
    model, _, codes = trained()
    x_obs = torch.linspace(0.1, 0.9, 9)[:, None]
    with torch.no_grad():
        y = model.solution(x_obs, codes[:1])[0]
    spreads = [
        float(
            invert(
                model, x_obs, y, noise, codes=codes, steps=5, starts=1, generator=generator()
            ).draws.std(0).mean()
        )
        for noise in (1e-3, 1e-1, 1e1)
    ]  # fmt: skip
    assert spreads[0] < spreads[1] < spreads[2]


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultiONet(1, 1, 4, 2, 3), "sum_layers=3: must be at most depth=2"),
        (lambda: MultiONet(1, 1, 4, 2, 0), "sum_layers=0: must be an int of at least 1"),
        (
            lambda: MultiONet(1, 1, [4, 4, 5], 2, 2, branch_width=4),
            r"trunk widths \[4, 4, 5\] and branch widths \[4, 4, 4\]: must be the same",
        ),
        (lambda: MultiONet(1, 1, [4, 4], 2, 1), "must have depth . 1 = 3 numbers"),
        (lambda: MultiONet(1, 1, 4, 2, 1, "relu"), "act_trunk='relu': must be one of tanh_sin"),
        (
            lambda: MultiONet(2, 1, 4, 1, 1)(torch.zeros(3, 1), torch.zeros(2, 1)),
            r"must be \(places, 2\)",
        ),
        (lambda: wendland(torch.zeros(1), 0), "dim=0"),
        (lambda: WeakTest(1, 7, 0.0), "radius=0.0: must be positive"),
        (lambda: WeakTest(1, 7, 0.6), "radius=0.6: .*2 · radius at most 1"),
        (lambda: WeakTest(1, 2, 0.1), "n_mesh=2: no place is inside"),
        (lambda: WeakTest(1, 7, 1e-5).sample(3, generator()), "radius=1e-05: must be at least"),
        (lambda: DGNO(8), "n_input=8: must be a square number"),
        (lambda: DGNO(8, dim=3), "dim=3: must be 1 or 2"),
        (lambda: DGNO(8, dim=1, phases=(10.0, 5.0)), "phases=.10.0, 5.0.: must be positive"),
        (lambda: DGNO(8, dim=1, encoder="gan"), "encoder='gan'"),
        (lambda: DGNO(8, dim=1).encode(torch.full((2, 7), 5.0)), "n_input=8"),
        (lambda: DGNO(8, dim=1).encode(torch.full((2, 8), 6.0)), "a=6: must be one of phases"),
        (
            lambda: DGNO(8, dim=1, phases=None).encode(torch.zeros(2, 8)),
            "a=0: must be positive",
        ),
    ],
)
def test_bad_nets_and_media(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_obs": torch.zeros(0, 1), "y": torch.zeros(0)}, "at least one"),
        ({"x_obs": torch.tensor([[0.5], [1.5]])}, "x_obs=1.5: must lie within"),
        ({"y": torch.ones(3)}, r"y has shape \(3,\): must be \(2,\)"),
        ({"y": torch.tensor([1.0, math.nan])}, "y has NaNs"),
        ({"noise": 0.0}, "noise=0.0: must be positive"),
        ({"codes": torch.zeros(3, 5)}, "latent=4"),
        ({"starts": 0}, "starts=0"),
        ({"prior": -1.0}, "prior=-1.0"),
    ],
)
def test_bad_inversions(change, message):
    arguments = {
        "x_obs": torch.tensor([[0.5], [0.6]]), "y": torch.ones(2), "noise": 0.1,
        "codes": torch.zeros(3, 4), "generator": generator(),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        invert(DGNO(8, dim=1, **SMALL), **arguments | change)
