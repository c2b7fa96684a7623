"""SAT layers under torch's compilers and tracers: right results, or a message with the way out."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import sat


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(scheme="bdwp"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8, bias=False))
    sat.sparsify_(net, scheme)
    return net, randn(4, 16)


def convolution(scheme="bdwp"):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 8, 3, stride=2, padding="valid"),
        nn.Flatten(),
        nn.Linear(32, 8),
    )
    sat.sparsify_(net, scheme, "2:4")
    return net, randn(2, 8, 6, 6)


def saved(net, x):
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, x), stream)
    stream.seek(0)
    return torch.jit.load(stream)


TRACERS = {
    "compile": lambda net, x: torch.compile(net, backend="eager"),
    "compile, aot": lambda net, x: torch.compile(net, backend="aot_eager"),
    "fx": lambda net, x: torch.fx.symbolic_trace(net),
    "make_fx": lambda net, x: make_fx(net)(x),
    "export": lambda net, x: torch.export.export(net, (x,)).module(),
    "jit.trace": torch.jit.trace,
    "jit.trace, saved": saved,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [linear, convolution])
@pytest.mark.parametrize("name", TRACERS)
def test_traced_models_compute_as_they_do_untraced(name, make):
    torch._dynamo.reset()
    net, x = make()
    graph = TRACERS[name](net, x)
    for scale in (1, 2):
        with sat.record_products() as log:
            want = net(x * scale)
        assert torch.equal(graph(x * scale), want)
    assert {str(record.pattern) for record in log} <= {"2:8", "2:4"}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["compile", "compile, aot", "fx", "jit.trace"])
@pytest.mark.parametrize("scheme", ["bdwp", "srste"])
def test_traced_models_train_as_they_do_untraced(name, scheme):
    torch._dynamo.reset()
    grads = []
    for trace in (lambda net, x: net, TRACERS[name]):
        net, x = convolution(scheme)
        pictures = x.clone().requires_grad_()
        trace(net, x)(pictures).square().sum().backward()
        grads.append([pictures.grad, *(p.grad for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


# Dynamo looks at every tensor that crosses a break of the graph, plain PyTorch's too.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_whole_step_compiles_with_its_backward_pass_outside():
    torch._dynamo.reset()
    net, x = linear()
    twin = copy.deepcopy(net)

    @torch.compile(backend="eager")
    def loss(y):
        return net(y).square().mean() * 2

    loss(x).backward()
    (twin(x).square().mean() * 2).backward()
    assert all(
        torch.equal(a.grad, b.grad)
        for a, b in zip(net.parameters(), twin.parameters(), strict=True)
    )


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch's own
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_linearize_traces_the_products():
    net, x = linear()
    y, along = torch.func.linearize(net, x)
    assert torch.equal(y, net(x))
    for seed in (1, 2):
        t = randn(4, 16, seed=seed)
        torch.testing.assert_close(along(t), torch.func.jvp(net, (x,), (t,))[1])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("called", [True, False])
def test_compiled_modules_may_read_a_layers_weight(called):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(16, 16)

        def forward(self, x):
            x = x.to(self.proj.weight.dtype)
            return self.proj(x) if called else nn.functional.linear(x, self.proj.weight)

    torch._dynamo.reset()
    net, x = Reader(), randn(4, 16)
    sat.sparsify_(net)
    assert torch.equal(torch.compile(net, backend="eager")(x), net(x))
    with sat.offload("golden") as report:
        torch.compile(net, backend="eager")(x)
    assert any("'proj' (weight read by" in str(work.reason) for work in report) is not called


def test_what_cannot_be_traced_says_what_to_do():
    net, x = linear()
    with pytest.raises(TypeError, match="layer '0' cannot be scripted: .* use torch.jit.trace, to"):
        torch.jit.script(net)
    with pytest.raises(Exception, match=r"export with strict=False, or sat.desparsify_\(model\) f"):
        torch.export.export(net, (x,), strict=True)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="compile without fullgraph"):
        torch.compile(net, backend="eager", fullgraph=True)(x)
    assert torch.equal(net(x), linear()[0](x))  # nothing lost


def test_a_graph_of_another_process_is_refused():
    net, x = linear()
    with pytest.raises(RuntimeError, match="call 999999 of a SAT layer: there is none, for the gr"):
        torch.ops.sat.output(x, net[0].weight, None, 999999)
