"""Capture: from any `torch.nn.Module` and an example input to the products of its training step.

The model's forward pass runs once, on the meta device: no weights, no numbers, no memory. What the
dispatcher is asked to multiply is recorded; the products of the backward pass follow from it
(`sat.networks.build`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from sat.networks.build import Operand, convolve, multiply, numbered
from sat.networks.network import CannotCapture, Elementwise, Network, Operation

aten = torch.ops.aten

MATRIX: dict[Any, tuple[int, int]] = {
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
    aten.addbmm.default: (1, 2),
    aten.mv.default: (0, 1),
    aten.addmv.default: (1, 2),
    aten.dot.default: (0, 1),
    aten.addr.default: (1, 2),
}
"""Operations that multiply matrices, and where their operands stand among the arguments."""

FREE = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "select", "slice", "unsqueeze",
    "squeeze", "detach", "alias", "split", "split_with_sizes", "unsafe_split", "unbind", "chunk",
    "as_strided", "empty", "empty_like", "unfold", "_reshape_alias", "lift_fresh", "diagonal",
}  # fmt: skip
"""Operations that move no element."""


def capture(
    model: nn.Module,
    *inputs: Any,
    name: str | None = None,
    device: str = "meta",
    **named: Any,
) -> Network:
    """Return the matrix work of a model's training step at an example input.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is: a copy runs. Its mode (`train`, `eval`) counts; which of its parameters are
        trained is what ``requires_grad`` says.
    inputs, named
        Arguments of its forward pass: tensors, of which shapes and dtypes count, and whatever else.
    name : str, optional
        The network's name; that of the class if not given.
    device : {"meta", "cpu"}
        Where the forward pass runs: without numbers, or, for models that look at values, with them.

    Raises
    ------
    CannotCapture
        The forward pass fails, or looks at numbers on the meta device; or it multiplies nothing.
    """
    if not isinstance(model, nn.Module):
        raise CannotCapture(
            f"model={model!r}: must be a torch.nn.Module; of a function, make a module"
        )
    if device not in ("meta", "cpu"):
        raise CannotCapture(f"device={device!r}: must be 'meta', or 'cpu' for models of values")
    name = name or type(model).__name__
    model = _moved(model, device)
    arguments = torch.utils._pytree.tree_map_only(
        Tensor, lambda x: x.detach().to(device).requires_grad_(x.requires_grad), (inputs, named)
    )
    recorder = _Recorder(model)
    try:
        with recorder.watching(), torch.enable_grad():
            model(*arguments[0], **arguments[1])
    except Exception as error:
        way_out = "check the example input's shapes and dtypes"
        if device == "meta":
            way_out += "; if the model looks at numbers, capture it with device='cpu'"
        where = f" in {recorder.path}" if recorder.path else ""
        raise CannotCapture(
            f"{name}: its forward pass failed{where} ({type(error).__name__}: {error}): {way_out}"
        ) from error
    if not recorder.operations:
        raise CannotCapture(
            f"{name}: its forward pass multiplies no matrices, so there is nothing to schedule"
        )
    first = next(
        (x for x in torch.utils._pytree.tree_leaves(arguments) if isinstance(x, Tensor)), None
    )
    return Network(
        name=name,
        batch=first.shape[0] if first is not None and first.dim() else 1,
        operations=numbered(recorder.operations),
        elementwise=recorder.elementwise(),
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def _moved(model: nn.Module, device: str) -> nn.Module:
    """Return a copy on a device; parameters that are shared stay shared."""
    if all(x.device.type == device for x in [*model.parameters(), *model.buffers()]):
        return model
    # Copied on the meta device: a model's weights may be larger than what memory has left.
    memo: dict[int, Any] = {}
    if device == "meta":
        for x in [*model.parameters(), *model.buffers()]:
            empty = torch.empty_like(x, device="meta").requires_grad_(x.requires_grad)
            memo[id(x)] = (
                nn.Parameter(empty, x.requires_grad)
                if isinstance(x, nn.Parameter)
                else empty.detach()
            )
        return copy.deepcopy(model, memo)
    return copy.deepcopy(model).to(device)


class _Recorder(TorchDispatchMode):
    """Records what a model's forward pass multiplies."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.operations: list[Operation] = []
        self.path = ""
        self._paths: list[str] = []
        self._calls: Counter[str] = Counter()
        self._elements: Counter[str] = Counter()
        self._parameters = {_storage(p): key for key, p in model.named_parameters() if p.numel()}

    def watching(self) -> ExitStack:
        """Return a context that records, and knows which module runs."""
        stack = ExitStack()
        for path, module in self.model.named_modules():
            for hook in (
                module.register_forward_pre_hook(self._entering(path), prepend=True),
                module.register_forward_hook(self._left),
            ):
                stack.callback(hook.remove)
        # Fused attention would hide its products.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(self)
        return stack

    def _entering(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            self._paths.append(path)
            self.path = path

        return enter

    def _left(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._paths.pop()
        self.path = self._paths[-1] if self._paths else ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in MATRIX:
            left, right = (args[at] for at in MATRIX[func])
            self._product(func, left, right)
        elif func is aten.convolution.default:
            self._convolution(*args)
        else:
            self._other(func, out)
        return out

    def elementwise(self) -> dict[str, Elementwise]:
        """Return the rest, the largest first."""
        return {
            name: Elementwise(calls=self._calls[name], elements=elements)
            for name, elements in self._elements.most_common()
        }

    def _other(self, func: Any, out: Any) -> None:
        name = func.overloadpacket.__name__
        if name in FREE:
            return
        made = [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor)]
        self._calls[name] += 1
        self._elements[name] += sum(x.numel() for x in made[:1])

    def _add(self, build: Callable[..., Operation | None], **sizes: Any) -> None:
        operation = build(self.path or type(self.model).__name__, **sizes)
        if operation is not None:
            self.operations.append(operation)

    def _product(self, func: Any, left: Tensor, right: Tensor) -> None:
        """Record A · B, matrices or stacks."""
        if func is aten.addr.default:
            left, right = left[:, None], right[None, :]
        if left.dim() == 1:
            left = left[None, :]
        if right.dim() == 1:
            right = right[:, None]
        self._add(
            multiply,
            left=Operand(tuple(left.shape), *self._origin(left)),
            right=Operand(tuple(right.shape), *self._origin(right)),
            bias=func is aten.addmm.default,
        )

    def _convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> None:
        """Record a convolution in any number of dimensions."""
        if x.dim() == weight.dim():
            self._add(
                convolve,
                x=Operand(tuple(x.shape), *self._origin(x)),
                weight=Operand(tuple(weight.shape), *self._origin(weight)),
                bias=bias is not None,
                stride=stride,
                padding=padding,
                dilation=dilation,
                transposed=transposed,
                groups=groups,
            )

    def _origin(self, x: Tensor) -> tuple[bool, str | None]:
        return x.requires_grad, self._parameters.get(_storage(x))


def _storage(x: Tensor) -> int:
    """Return what tells tensors that share memory, on the meta device, too."""
    return x.untyped_storage()._cdata
