"""The matrix work of an ONNX file: sizes from ONNX' own shape inference, nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from sat.networks.build import Operand, convolve, multiply, numbered
from sat.networks.network import CannotCapture, Elementwise, Network, Operation

FREE = {
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Constant",
    "Slice", "Split", "Expand", "Cast", "ConstantOfShape", "Dropout",
}  # fmt: skip
"""Nodes that compute nothing."""

HIDDEN = {"LSTM", "GRU", "RNN", "Attention", "If", "Loop", "Scan", "QLinearConv", "QLinearMatMul"}
"""Nodes that multiply matrices which their sizes alone do not show."""


def network_of(path: str | Path, batch: int | None = None) -> Network:
    """Return the matrix work of a training step of an ONNX model.

    Initializers are parameters and trained; a result needs a gradient if a parameter is before it.

    Parameters
    ----------
    path : path of the ``.onnx`` file
    batch : int, optional
        In place of the first size of every input, which files often leave open.

    Raises
    ------
    CannotCapture
        No such file, no ONNX file, a size that stays unknown, a node that hides its products, or
        nothing to multiply. ``onnx`` is not installed.
    """
    try:
        import onnx
        from onnx import shape_inference
    except ImportError as error:
        raise CannotCapture(
            f"{path}: reading ONNX files needs the package onnx: pip install 'sat[networks]'"
        ) from error
    path = Path(path)
    if not path.is_file():
        raise CannotCapture(f"{path}: no such file")
    try:
        # Weights may lie in files beside it, which sizes do not need.
        model = onnx.load(str(path), load_external_data=False)
        if batch is not None:
            for value in model.graph.input:
                if value.type.tensor_type.shape.dim:
                    value.type.tensor_type.shape.dim[0].dim_value = batch
            # What the file says of later sizes holds for its own batch.
            del model.graph.value_info[:]
            for value in model.graph.output:
                value.type.tensor_type.ClearField("shape")
        model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:
        raise CannotCapture(f"{path}: not a sound ONNX model ({error})") from error
    return _Reader(path, model.graph).network()


class _Reader:
    """Goes through the nodes of a graph, in their order."""

    def __init__(self, path: Path, graph: Any) -> None:
        self.path, self.graph = path, graph
        self.parameters = {x.name: tuple(x.dims) for x in graph.initializer}
        self.shapes: dict[str, tuple[int | None, ...]] = dict(self.parameters)
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.name not in self.shapes and value.type.HasField("tensor_type"):
                dims = value.type.tensor_type.shape.dim
                sizes = (d.dim_value if d.HasField("dim_value") else None for d in dims)
                self.shapes[value.name] = tuple(sizes)
        self.needing: set[str] = set()
        self.elementwise: dict[str, Elementwise] = {}
        self.operations: list[Operation] = []

    def network(self) -> Network:
        builders: dict[str, Callable[[Any, dict[str, Any]], Operation | None]] = {
            "MatMul": self._matmul,
            "Gemm": self._gemm,
            "Conv": self._conv,
            "ConvTranspose": self._conv,
        }
        for node in self.graph.node:
            if node.op_type in HIDDEN:
                raise CannotCapture(
                    f"{self.path}: node {node.name or node.op_type} is a {node.op_type}, whose "
                    "products its sizes do not show: capture the model from Python instead"
                )
            if node.op_type in builders:
                operation = builders[node.op_type](node, self._attributes(node))
                if operation is not None:
                    self.operations.append(operation)
            elif node.op_type not in FREE:
                self._other(node)
            if any(name in self.needing or name in self.parameters for name in node.input):
                self.needing.update(node.output)
        if not self.operations:
            raise CannotCapture(
                f"{self.path}: multiplies no matrices, so there is nothing to schedule"
            )
        given = [x.name for x in self.graph.input if x.name not in self.parameters]
        first = self.shapes[given[0]] if given else ()
        return Network(
            name=self.path.stem,
            batch=first[0] or 1 if first else 1,
            operations=numbered(self.operations),
            elementwise=dict(sorted(self.elementwise.items(), key=lambda item: -item[1].elements)),
            parameters=sum(prod(shape) for shape in self.parameters.values()),
        )

    def _attributes(self, node: Any) -> dict[str, Any]:
        from onnx.helper import get_attribute_value

        return {a.name: get_attribute_value(a) for a in node.attribute}

    def _shape(self, name: str, node: Any) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        known = () if shape is None else tuple(size for size in shape if size is not None)
        if shape is None or len(known) < len(shape):
            raise CannotCapture(
                f"{self.path}: the size of {name!r}, an operand of {node.name or node.op_type}, is "
                "unknown: give the batch, or export the model with fixed sizes"
            )
        return known

    def _operand(self, name: str, shape: tuple[int, ...]) -> Operand:
        parameter = name if name in self.parameters else None
        return Operand(shape, parameter is not None or name in self.needing, parameter)

    def _other(self, node: Any) -> None:
        shape = self.shapes.get(node.output[0]) or ()
        before = self.elementwise.get(node.op_type, Elementwise(calls=0, elements=0))
        elements = before.elements + prod(tuple(size or 1 for size in shape))
        self.elementwise[node.op_type] = Elementwise(calls=before.calls + 1, elements=elements)

    def _matmul(self, node: Any, attributes: dict[str, Any]) -> Operation | None:
        left, right = (self._shape(name, node) for name in node.input)
        if len(left) == 1:
            left = (1, *left)
        if len(right) == 1:
            right = (*right, 1)
        if len(right) == 2:
            left = (prod(left[:-1]), left[-1])
        elif len(left) == 2:
            left = (*right[:-2], *left)
        return multiply(
            node.name or node.output[0],
            left=self._operand(node.input[0], left),
            right=self._operand(node.input[1], right),
        )

    def _gemm(self, node: Any, attributes: dict[str, Any]) -> Operation | None:
        left, right = (self._shape(name, node) for name in node.input[:2])
        if attributes.get("transA"):
            left = left[::-1]
        if attributes.get("transB"):
            right = right[::-1]
        return multiply(
            node.name or node.output[0],
            left=self._operand(node.input[0], left),
            right=self._operand(node.input[1], right),
            bias=len(node.input) > 2,
        )

    def _conv(self, node: Any, attributes: dict[str, Any]) -> Operation | None:
        x, weight = (self._shape(name, node) for name in node.input[:2])
        axes = len(x) - 2
        ones = [1] * axes
        stride = attributes.get("strides", ones)
        dilation = attributes.get("dilations", ones)
        before_and_after = attributes.get("pads", [0] * (2 * axes))
        automatic = attributes.get("auto_pad", b"NOTSET")
        if automatic not in (b"NOTSET", b"VALID"):
            reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight[2:], strict=True)]
            made = [-(-n // s) for n, s in zip(x[2:], stride, strict=True)]
            total = [
                max(0, (m - 1) * s + r - n)
                for m, s, r, n in zip(made, stride, reach, x[2:], strict=True)
            ]
            before_and_after = [t // 2 for t in total] + [t - t // 2 for t in total]
        before, after = before_and_after[:axes], before_and_after[axes:]
        if before != after:
            # The array pads alike on both sides: as an image that is larger by the difference.
            x = (
                *x[:2],
                *(n + b + a - 2 * min(b, a) for n, b, a in zip(x[2:], before, after, strict=True)),
            )
            before = [min(b, a) for b, a in zip(before, after, strict=True)]
        return convolve(
            node.name or node.output[0],
            x=self._operand(node.input[0], x),
            weight=self._operand(node.input[1], weight),
            bias=len(node.input) > 2,
            stride=stride,
            padding=before,
            dilation=dilation,
            transposed=node.op_type == "ConvTranspose",
            groups=attributes.get("group", 1),
        )
