"""From what a forward pass multiplies to an operation with all products of its training step.

One product of the backward pass for each operand that needs a gradient:

======================= ============================== ===============================
FF                      gradient of the left operand   gradient of the right operand
======================= ============================== ===============================
C = A · B               dA = dC · Bᵀ                   dB = Aᵀ · dC
======================= ============================== ===============================

An operand that is a parameter makes the operation a layer: the gradient of the other operand is BP,
that of the parameter WU. Of a product of two activations both are BP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from sat.dataflow.products import Product
from sat.networks.network import Operation
from sat.sim.layer import Layer


@dataclass(frozen=True)
class Operand:
    """What is multiplied.

    Parameters
    ----------
    shape : tuple of int
        As in torch.
    needs_gradient : bool
    parameter : str or None
        Its name, if it is a parameter.
    """

    shape: tuple[int, ...]
    needs_gradient: bool
    parameter: str | None = None


def multiply(name: str, *, left: Operand, right: Operand, bias: bool = False) -> Operation | None:
    """Return A · B of matrices (rows, depth) and (depth, cols), or of stacks of as many.

    Returns
    -------
    operation : Operation or None
        None if a size is 0.
    """
    count = prod(left.shape[:-2])
    rows, depth = left.shape[-2:]
    cols = right.shape[-1]
    if 0 in (count, rows, cols, depth):
        return None
    if count == 1 and left.parameter is not None and right.parameter is None:
        # W · x: its transpose xᵀ · Wᵀ is the layer.
        rows, cols = cols, rows
        left, right = right, left
    to_left = Product(rows, depth, cols, count=count)
    to_right = Product(depth, cols, rows, count=count)
    needed = [
        ("bp" if operand.parameter is None else "wu", product)
        for operand, product in ((left, to_left), (right, to_right))
        if operand.needs_gradient
    ]
    products: dict[str, tuple[Product, ...]] = {"ff": (Product(rows, cols, depth, count=count),)}
    for stage in ("bp", "wu"):
        of_stage = tuple(product for kind, product in needed if kind == stage)
        if of_stage:
            products[stage] = of_stage
    layer = None
    if count == 1 and right.parameter is not None and left.parameter is None:
        layer = Layer(batch=rows, in_channels=depth, out_channels=cols, bias=bias)
    return Operation(
        name=name,
        kind="product" if layer is None else "linear",
        layer=layer,
        products=products,
        weight=right.parameter or left.parameter,
    )


def convolve(
    name: str,
    *,
    x: Operand,
    weight: Operand,
    bias: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool = False,
    groups: int = 1,
) -> Operation | None:
    """Return a convolution in any number of dimensions, lowered to rows of positions.

    Parameters
    ----------
    x, weight : Operand
        (batch, channels, …) and (out channels, channels / groups, …); of a transposed convolution
        (channels, out channels / groups, …), as in torch.

    Returns
    -------
    operation : Operation or None
        None if a size is 0. A layer of the array has one or two dimensions.
    """
    if 0 in (*x.shape, *weight.shape):
        return None
    batch, channels, *sizes = x.shape
    kernel = weight.shape[2:]
    taps = prod(kernel)
    if transposed:
        # BP of the convolution whose input is this one's output.
        out_channels = weight.shape[1] * groups
        rows, cols, depth = batch * prod(sizes), taps * out_channels, channels
    else:
        out_channels = weight.shape[0]
        made = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(sizes, padding, dilation, kernel, stride, strict=True)
        ]
        rows, cols, depth = batch * prod(made), out_channels, taps * channels
    ff = Product(rows, cols // groups, depth // groups, count=groups)
    products: dict[str, tuple[Product, ...]] = {"ff": (ff,)}
    if x.needs_gradient:
        products["bp"] = (Product(ff.rows, ff.depth, ff.cols, count=groups),)
    if weight.needs_gradient:
        products["wu"] = (Product(ff.depth, ff.cols, ff.rows, count=groups),)
    layer = None
    if not transposed and len(sizes) <= 2 and weight.parameter is not None:
        missing = 2 - len(sizes)

        def pair(values: Sequence[int], fill: int = 1) -> tuple[int, int]:
            first, second = (*(fill,) * missing, *values)
            return first, second

        lines, pixels = pair(sizes)
        layer = Layer(
            batch=batch,
            lines=lines,
            pixels=pixels,
            in_channels=channels,
            out_channels=out_channels,
            kernel=pair(kernel),
            stride=pair(stride),
            padding=pair(padding, 0),
            dilation=pair(dilation),
            groups=groups,
            bias=bias,
        )
    return Operation(
        name=name,
        kind="product" if layer is None else "conv",
        layer=layer,
        products=products,
        weight=weight.parameter,
    )


def numbered(operations: Iterable[Operation]) -> tuple[Operation, ...]:
    """Return operations with names of their own: the second of a module is ``name#2``."""
    seen: Counter[str] = Counter()
    found = []
    for operation in operations:
        seen[operation.name] += 1
        times = seen[operation.name]
        found.append(
            replace(operation, name=f"{operation.name}#{times}") if times > 1 else operation
        )
    return tuple(found)
