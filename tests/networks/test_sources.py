"""Where networks come from: names, Python, ONNX files; and what is said of those that are none."""

from __future__ import annotations

import sys
import textwrap

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional as F

from sat.networks.capture import capture
from sat.networks.network import CannotCapture
from sat.networks.onnx_file import network_of
from sat.networks.sources import load


def save(path, nodes, inputs, outputs, weights):
    """Write an ONNX model of nodes; sizes of inputs may be names."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in outputs.items()],
        [
            helper.make_tensor(k, TensorProto.FLOAT, v, [0.0] * torch.Size(v).numel())
            for k, v in weights.items()
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return path


def test_an_onnx_file_is_the_network_that_it_was_made_of(tmp_path):
    path = save(
        tmp_path / "small.onnx",
        [
            helper.make_node("Conv", ["x", "w0", "b0"], ["a"], "c0", pads=[1] * 4),
            helper.make_node("Relu", ["a"], ["r"], "relu"),
            helper.make_node("Conv", ["r", "w1"], ["c"], "c1", strides=[2, 2], group=4),
            helper.make_node("Flatten", ["c"], ["f"], "flat"),
            helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], "fc", transB=1),
        ],
        {"x": ["batch", 3, 8, 8]},
        {"y": ["batch", 10]},
        {"w0": [8, 3, 3, 3], "b0": [8], "w1": [8, 2, 3, 3], "w2": [10, 72], "b2": [10]},
    )
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, groups=4, bias=False),
        nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip
    read, captured = load(str(path), batch=5), capture(model, torch.zeros(5, 3, 8, 8))
    assert [op.layer for op in read.operations] == [op.layer for op in captured.operations]
    assert [op.products for op in read.operations] == [op.products for op in captured.operations]
    assert [op.name for op in read.operations] == ["c0", "c1", "fc"]
    assert read.batch == 5 and read.parameters == captured.parameters
    assert read.elementwise["Relu"].elements == 5 * 8 * 8 * 8
    with pytest.raises(CannotCapture, match="the size of 'x'.*give the batch"):
        load(str(path))


def test_products_and_padding_in_onnx(tmp_path):
    path = save(
        tmp_path / "products.onnx",
        [
            helper.make_node("MatMul", ["x", "w"], ["q"], "q"),
            helper.make_node("Transpose", ["q"], ["k"], "t", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["q", "k"], ["s"], "s"),
            helper.make_node("Conv", ["s", "v"], ["y"], "same", auto_pad="SAME_UPPER"),
            helper.make_node("Conv", ["y", "v"], ["z"], "one-sided", pads=[0, 1]),
        ],
        {"x": [2, 6, 4]},
        {"z": [2, 6, 6]},
        {"w": [4, 8], "v": [6, 6, 2]},
    )

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4, 8))
            self.v = nn.Parameter(torch.zeros(6, 6, 2))

        def forward(self, x):
            q = x @ self.w
            s = q @ q.transpose(1, 2)
            y = F.conv1d(F.pad(s, (0, 1)), self.v)
            return F.conv1d(F.pad(y, (0, 1)), self.v)

    read, captured = network_of(path), capture(Same(), torch.zeros(2, 6, 4))
    assert [op.products for op in read.operations] == [op.products for op in captured.operations]
    assert [op.kind for op in read.operations] == [op.kind for op in captured.operations]


def test_python_gives_a_module_or_a_module_and_its_input(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            import torch
            def plain():
                return torch.nn.Linear(4, 5)
            def whole():
                return torch.nn.Linear(4, 5), torch.zeros(3, 4)
            def wrong():
                return 7
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert load("mine:whole").batch == 3
    assert load("mine:whole", batch=9).operations[0].layer.batch == 9
    assert load("mine:plain", shape=(4,), batch=2).macs("ff") == 2 * 4 * 5
    with pytest.raises(CannotCapture, match="no example input"):
        load("mine:plain")
    with pytest.raises(CannotCapture, match="returned int; it must return"):
        load("mine:wrong")
    with pytest.raises(CannotCapture, match="cannot be imported.*nobody"):
        load("mine:nobody")
    assert "" not in sys.path[:1]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("resnet19", "Did you mean 'resnet9'"),
        ("no.such.module:make", "cannot be imported"),
        ("json:loads", "called without arguments"),
        ("none.onnx", "no such file"),
    ],
)
def test_sources_that_are_none(source, said):
    with pytest.raises(CannotCapture, match=said):
        load(source)
    with pytest.raises(CannotCapture, match="batch=0"):
        load("resnet9", batch=0)


def test_onnx_files_that_are_none(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(CannotCapture, match="not a sound ONNX model"):
        network_of(tmp_path / "text.onnx")
    sizes = {"x": [2, 3]}, {"y": [2, 3]}, {}
    relu = save(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])], *sizes)
    with pytest.raises(CannotCapture, match="multiplies no matrices"):
        network_of(relu)
    weights = {"w": [1, 8, 3], "r": [1, 8, 2]}
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], "cell", hidden_size=2)
    lstm = save(tmp_path / "lstm.onnx", [node], {"x": [5, 2, 3]}, {"y": [5, 1, 2, 2]}, weights)
    with pytest.raises(CannotCapture, match="node cell is a LSTM"):
        network_of(lstm)


def test_a_package_that_is_missing_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CannotCapture, match="pip install transformers"):
        load("transformers:bert")


def test_transformers_by_type():
    pytest.importorskip("transformers", reason="an extra, sat[networks]")
    bert = load("transformers:bert", batch=2, tokens=16)
    assert bert.macs("ff") == 2 * 16 * 12 * (12 * 768 * 768 + 2 * 16 * 768) + 2 * 768 * 768
    with pytest.raises(CannotCapture, match="no such type"):
        load("transformers:no-such-type")
