"""The loss scale and the device's SGD, step for step beside torch's own."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sat
from sat.devices.staged import StagedDevice
from sat.train import DeviceSgd, LossScaler

INF, NAN = math.inf, math.nan


# ------------------------------------------------------------------------------ beside GradScaler


def parts(count):
    """Return ``count`` parameters, each with an optimizer of another kind."""
    kinds = (
        lambda p: torch.optim.SGD(p, lr=0.25, momentum=0.5, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.125),
    )
    parameters = [torch.nn.Parameter(torch.linspace(-1, 1, 3)) for _ in range(count)]
    return parameters, [
        kind([p]) for kind, p in zip(itertools.cycle(kinds), parameters, strict=False)
    ]


ROUND = st.tuples(
    st.lists(st.sampled_from([0.5, 1.0, 3.0, 1e-3, INF, -INF, NAN]), min_size=3, max_size=3),
    st.sampled_from(["none", "unscale", "clip"]),
    st.sampled_from(["once", "apart", "in turn"]),
)


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([2.0, 4.0]),
    st.sampled_from([0.5, 0.25]),
    st.booleans(),
    st.lists(ROUND, min_size=1, max_size=6),
)
def test_scaler_is_torchs(count, interval, growth, backoff, explicit, rounds):
    torchs = torch.amp.GradScaler(
        "cpu", 2.0**10, growth_factor=growth, backoff_factor=backoff, growth_interval=interval
    )
    ours = LossScaler(2.0**10, growth=growth, backoff=backoff, interval=interval)
    theirs, mine = parts(count), parts(count)
    skipped = 0
    for number, (factors, look, order) in enumerate(rounds):
        if order == "in turn" and not (explicit and number):
            order = "apart"  # the end of such a round must be said, and the first is not known yet
        for (parameters, optimizers), scaler in ((theirs, torchs), (mine, ours)):

            def backward(loss, scaler=scaler):
                if scaler is ours:
                    ours.backward(loss)
                else:
                    torchs.scale(loss).backward()

            for optimizer in optimizers:
                optimizer.zero_grad()
            losses = [(f * p * p).sum() for f, p in zip(factors, parameters, strict=False)]
            if order == "once":
                backward(sum(losses))
            elif order == "apart":
                for loss in losses:
                    backward(loss)
            for i, optimizer in enumerate(optimizers):
                if order == "in turn":
                    backward(losses[i])
                if look != "none":
                    scaler.unscale_(optimizer)
                if look == "clip":
                    torch.nn.utils.clip_grad_norm_(parameters[i : i + 1], 0.5)
                taken = scaler.step(optimizer)
                if scaler is ours:
                    skipped += not taken
                    assert taken == bool(torch.isfinite(parameters[i].grad).all()) or look == "clip"
            if scaler is torchs or explicit:
                scaler.update()
        assert ours.scale == torchs.get_scale()
        for a, b in zip(mine[0], theirs[0], strict=True):
            assert torch.equal(a, b) and torch.equal(a.grad.isfinite(), b.grad.isfinite())
    assert ours.skipped == skipped
    for a, b in zip(mine[1], theirs[1], strict=True):
        assert_same_state(a.state_dict(), b.state_dict())


def assert_same_state(a, b):
    assert a["param_groups"] == b["param_groups"] and a["state"].keys() == b["state"].keys()
    for key, values in a["state"].items():
        assert values.keys() == b["state"][key].keys()
        for name, value in values.items():
            other = b["state"][key][name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def one(gradient):
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, gradient])
    return parameter, torch.optim.SGD([parameter], lr=0.5)


def test_a_scale_is_divided_by_once_a_round():
    scaler, (parameter, optimizer) = LossScaler(4.0), one(2.0)
    assert scaler.unscale_(optimizer)
    assert parameter.grad.tolist() == [0.25, 0.5]
    with pytest.raises(RuntimeError, match="divided by the scale already; call it once"):
        scaler.unscale_(optimizer)
    assert scaler.step(optimizer)
    assert parameter.tolist() == [1 - 0.125, 1 - 0.25]
    with pytest.raises(RuntimeError, match="divided by the scale already"):
        scaler.unscale_(optimizer)
    scaler.update()
    assert scaler.unscale_(optimizer) and scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="has stepped already; call update first"):
        scaler.step(optimizer)


def test_accumulated_gradients_are_of_one_scale():
    scaler, parameter = LossScaler(8.0, interval=1), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        before = parameter.item()
        for _ in range(4):
            scaler.backward((2 * parameter).sum())
        assert scaler.step(optimizer)
        assert parameter.item() == before - 8
    assert scaler.scale == 64.0


def test_half_gradients_are_refused():
    scaler, (parameter, optimizer) = LossScaler(4.0), one(1.0)
    parameter.data, parameter.grad = parameter.data.half(), None
    parameter.grad = torch.ones(2).half()
    with pytest.raises(ValueError, match="a gradient is float16.* keep the parameters in float32"):
        scaler.step(optimizer)
    assert parameter.grad.tolist() == [1, 1]


def test_sparse_gradients_are_divided_and_looked_at():
    for value, taken in ((3.0, True), (INF, False)):
        table = torch.nn.Embedding(4, 2, sparse=True)
        optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
        before = table.weight.detach().clone()
        scaler = LossScaler(16.0)
        scaler.backward((table(torch.tensor([1, 1])) * value).sum())
        assert scaler.step(optimizer) == taken
        moved = before - table.weight
        assert moved[1].tolist() == pytest.approx([6.0, 6.0] if taken else [0.0, 0.0])


def test_a_scaler_goes_on_from_its_state():
    first = LossScaler(4.0, growth=4.0, backoff=0.25, interval=3)
    parameter, optimizer = one(1.0)
    for gradient in (1.0, INF, 1.0, 1.0):
        parameter.grad = torch.tensor([1.0, gradient])
        first.step(optimizer)
    state = copy.deepcopy(first.state_dict())
    second = LossScaler()
    second.load_state_dict(state)
    assert second.state_dict() == state and (second.scale, second.skipped) == (1.0, 1)
    for gradient in (1.0, 1.0, INF):
        for scaler in (first, second):
            parameter.grad = torch.tensor([1.0, gradient])
            scaler.step(optimizer)
        assert second.state_dict() == first.state_dict()
    assert second.skipped == 2
    for wrong in ({}, {**state, "more": 1}, {k: v for k, v in state.items() if k != "good"}):
        with pytest.raises(ValueError, match="must have scale, growth"):
            second.load_state_dict(wrong)
    with pytest.raises(ValueError, match="scale=0.0: must be positive"):
        second.load_state_dict({**state, "scale": 0.0})
    assert second.state_dict() == first.state_dict()
    second.scale = 32.0
    assert second.scale == 32.0
    with pytest.raises(ValueError, match="scale=-1.0"):
        second.scale = -1.0


# -------------------------------------------------------------------------------- beside torch SGD


def model():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(8, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(256, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 4),
    )
    sat.sparsify_(net, pattern="2:8")
    return net


def pair(**options):
    """Return (model, optimizer) on the device and by torch."""
    made = []
    for kind in ("device", "torch"):
        net = model()
        if kind == "device":
            groups = [{"params": list(net.parameters()), **options}]
            optimizer = DeviceSgd(groups, 0.125, 0.5, net)
            optimizer.device = StagedDevice(sat.device("golden"))
        else:
            optimizer = torch.optim.SGD(
                [{"params": list(net.parameters()), **options}], lr=0.125, momentum=0.5
            )
        made.append((net, optimizer))
    return made


def give_gradients(net, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        grad = torch.randn(p.shape, generator=generator) / 8
        p.grad = grad if p.grad is None else p.grad.copy_(grad)


def assert_same(mine, theirs):
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("to_none", [True, False])
def test_device_steps_are_torchs(momentum, decay, to_none):
    (mine, ours), (theirs, torchs) = pair(momentum=momentum, weight_decay=decay)
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5) for optimizer in (ours, torchs)]
    for step in range(5):
        for net, optimizer, schedule in zip((mine, theirs), (ours, torchs), schedules, strict=True):
            optimizer.zero_grad(set_to_none=to_none)
            give_gradients(net, step)
            grads = [p.grad for p in net.parameters()]
            optimizer.step()
            schedule.step()
            assert all(p.grad is g for p, g in zip(net.parameters(), grads, strict=True))
        assert_same(mine, theirs)
        assert ours.param_groups[0]["lr"] == torchs.param_groups[0]["lr"]
    assert len(ours.device.runs) == 5 * 3
    a, b = ours.state_dict(), torchs.state_dict()
    assert a["state"].keys() == b["state"].keys()
    for key, values in a["state"].items():
        assert values.keys() == b["state"][key].keys()
        for name, value in values.items():
            torch.testing.assert_close(value, b["state"][key][name], rtol=1e-6, atol=1e-7)


def test_a_closure_gives_the_gradients_of_the_step():
    (mine, ours), (theirs, torchs) = pair()
    for step in range(3):
        losses = []
        for net, optimizer in ((mine, ours), (theirs, torchs)):
            calls = []

            def closure(net=net, optimizer=optimizer, calls=calls, step=step):
                assert torch.is_grad_enabled()
                calls.append(1)
                optimizer.zero_grad()
                give_gradients(net, step)
                return sum(p.detach().square().sum() for p in net.parameters())

            losses.append(optimizer.step(closure))
            assert calls == [1]
        torch.testing.assert_close(*losses)
        assert_same(mine, theirs)


def test_hooks_run_once_a_step():
    (net, optimizer), _ = pair()  # torch's own SGD is made, too: it then hangs hooks on its steps
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    give_gradients(net, 0)
    optimizer.step()
    assert seen == ["before", "after"]


def test_a_run_goes_on_from_its_state():
    (net, optimizer), _ = pair(weight_decay=0.01)
    (other, second), _ = pair(weight_decay=0.01)
    for step in range(2):
        give_gradients(net, step)
        optimizer.step()
    other.load_state_dict(net.state_dict())
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(2, 4):
        for some, one_of in ((net, optimizer), (other, second)):
            give_gradients(some, step)
            one_of.step()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_group_that_is_added_steps_like_the_others():
    made = pair()
    for net, optimizer in made:
        late = optimizer.param_groups[0]["params"].pop(0)
        optimizer.add_param_group({"params": [late], "lr": 0.5, "momentum": 0.25})
        for step in range(2):
            give_gradients(net, step)
            optimizer.step()
    assert_same(made[0][0], made[1][0])
    assert len(made[0][1].device.runs) == 2 * 3


OPTIONS = [
    ("dampening", 0.5),
    ("nesterov", True),
    ("maximize", True),
    ("foreach", True),
    ("differentiable", True),
    ("fused", True),
]


@pytest.mark.parametrize(("name", "value"), OPTIONS)
@pytest.mark.parametrize("where", ["at first", "later", "in a group of its own"])
def test_an_option_that_the_device_has_not_is_refused_before_anything_changes(name, value, where):
    (net, optimizer), _ = pair(**({name: value} if where == "at first" else {}))
    if where == "later":
        optimizer.param_groups[0][name] = value
    elif where == "in a group of its own":
        late = optimizer.param_groups[0]["params"].pop()
        weight = optimizer.param_groups[0]["params"].pop(2)
        optimizer.add_param_group({"params": [late, weight], name: value})
    give_gradients(net, 0)
    before = copy.deepcopy(net.state_dict())
    number = len(optimizer.param_groups) - 1
    with pytest.raises(ValueError, match=rf"group {number} has {name}={value}.*device's update"):
        optimizer.step()
    assert all(torch.equal(before[key], t) for key, t in net.state_dict().items())
    assert optimizer.state_dict()["state"] == {} and optimizer.device.runs == []
    assert all(p.grad is not None for p in net.parameters())
    if name != "differentiable":
        optimizer.device = None
        optimizer.step()
        assert not torch.equal(before["0.weight"], net.state_dict()["0.weight"])


@pytest.mark.parametrize(("name", "value"), [*OPTIONS[:3], ("foreach", True)])
def test_torch_takes_such_options_where_no_device_steps(name, value):
    (mine, ours), (theirs, torchs) = pair(**{name: value})
    ours.device = sat.device("golden")
    for step in range(3):
        for net, optimizer in ((mine, ours), (theirs, torchs)):
            give_gradients(net, step)
            optimizer.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_device_that_fails_changes_nothing(monkeypatch):
    (net, optimizer), _ = pair()
    give_gradients(net, 0)
    optimizer.step()
    before, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    genuine, calls = optimizer.device.stages, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise sat.DeviceError("pulled out")
        return genuine(*arguments)

    monkeypatch.setattr(optimizer.device, "stages", failing)
    give_gradients(net, 1)
    grads = [p.grad for p in net.parameters()]
    with pytest.raises(sat.DeviceError, match="pulled out"):
        optimizer.step()
    assert all(torch.equal(before[key], t) for key, t in net.state_dict().items())
    assert_same_state(optimizer.state_dict(), state)
    assert all(p.grad is g for p, g in zip(net.parameters(), grads, strict=True))
    # What the device holds of the first layer is not what the host has: it is sent anew.
    optimizer.step()
    (other, torchs) = pair()[1]
    for step in range(2):
        give_gradients(other, step)
        torchs.step()
    assert_same(net, other)
