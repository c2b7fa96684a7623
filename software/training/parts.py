"""A batch cut into parts: shards on one device, one after the other, or one for each rank.

Both add up the same numbers in the same order, so R ranks and R shards give the same bits.

- The loss of a part is its share of the batch's loss, so the parts' gradients only have to be
  added. FF and BP take each sample by itself: what they give does not depend on the cut.
- Each part folds its own samples of WU and of the gradients of biases and normalisation. The
  results are added from the last part to the first: autograd meets the parts in that order.
- Batch normalisation adds the parts' sums, in float64 and in that order, too.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

_Forward = Callable[[Tensor], Tensor]


class Parts:
    """How the batches of a model's training are cut.

    Parameters
    ----------
    model : nn.Module
        In more than one part it may have no batch normalisation but ``nn.BatchNorm2d``, and in
        shards all of its parameters have to belong to layers without layers inside, from one
        tensor to one, samples along the first axis of both. For R shards to have the bits of
        R ranks, a step uses each layer once.
    shards : int
        Parts that this process takes, one after the other; at least 1.
    distributed : bool
        Whether each rank of the process group takes one part; ``shards`` is 1 then. The model
        becomes that of rank 0.

    Attributes
    ----------
    count : int
        Parts of a batch.

    Raises
    ------
    ValueError
        If ``shards`` breaks its rule or the model its own.
    """

    def __init__(self, model: nn.Module, shards: int = 1, distributed: bool = False) -> None:
        if not isinstance(shards, int) or isinstance(shards, bool) or shards < 1:
            raise ValueError(f"shards={shards!r}: must be an int of at least 1")
        if distributed and shards > 1:
            raise ValueError(
                f"shards={shards}: ranks take one part each; leave shards out, or train with one "
                "rank"
            )
        self.model = model
        self.shards = shards
        self.distributed = distributed
        self.count = dist.get_world_size() if distributed else shards
        self._forwards()
        if distributed:
            for tensor in model.state_dict().values():
                sent = tensor.contiguous()
                dist.broadcast(sent, 0)
                tensor.copy_(sent)

    def share(self, x: Tensor) -> Tensor:
        """Return this process's samples of a batch.

        Raises
        ------
        ValueError
            If the parts cannot have as many each.
        """
        check_cut(len(x), self.count, "ranks" if self.distributed else "shards")
        return x.chunk(self.count)[dist.get_rank()] if self.distributed else x

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cross entropy of each part of this process.

        Parameters
        ----------
        x : float32
            This process's samples, the whole batch or `share` of it.
        y : int64
            Their classes.

        Returns
        -------
        (shards,) float32
            Of all processes together they add up to the mean over the batch.
        """
        samples = len(x) * self.count // self.shards
        with self._cut():
            logits = self.model(x)
        pairs = zip(logits.chunk(self.shards), y.chunk(self.shards), strict=True)
        return torch.stack(
            [functional.cross_entropy(a, b, reduction="sum") / samples for a, b in pairs]
        )

    def total(self, parts: Tensor) -> Tensor:
        """Return the sum of (shards, ...) over shards and ranks, from the last to the first."""
        if self.distributed:
            # Not `all_reduce`, whose order of sums hangs on the number of ranks and on the size.
            gathered = [torch.empty_like(parts) for _ in range(self.count)]
            dist.all_gather(gathered, parts)
            parts = torch.cat(gathered)
        return functools.reduce(torch.add, reversed(parts.unbind()))

    def add_gradients(self) -> None:
        """Give the parameters the whole batch's gradients (shards have them after backward)."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.distributed and grads:
            flat = self.total(torch.cat([grad.flatten() for grad in grads])[None])
            for grad, total in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(total.view_as(grad))

    @contextlib.contextmanager
    def _cut(self) -> Iterator[None]:
        """Let the model's layers take a batch in parts, as long as it lasts."""
        forwards = self._forwards()
        for layer, forward in forwards.items():
            # An attribute of the object hides the method of its class.
            object.__setattr__(layer, "forward", forward)
        try:
            yield
        finally:
            for layer in forwards:
                object.__delattr__(layer, "forward")

    def _forwards(self) -> dict[nn.Module, _Forward]:
        """Return what stands in for layers' ``forward``, by layer; raise if one cannot be cut."""
        found: dict[nn.Module, _Forward] = {}
        if self.count == 1:
            return found
        for name, layer in self.model.named_modules():
            where = f"layer {name!r} is a {type(layer).__name__}: "
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                if not _is_plain_norm(layer):
                    raise ValueError(
                        f"{where}over the parts of a batch only nn.BatchNorm2d with weight, bias, "
                        "momentum and running statistics is normalised; use that, or a norm "
                        "without batches"
                    )
                found[layer] = functools.partial(self._normalise, cast(nn.BatchNorm2d, layer))
            elif self.shards > 1 and next(layer.parameters(recurse=False), None) is not None:
                if next(layer.children(), None) is not None:
                    raise ValueError(
                        f"{where}its own parameters cannot be used shard by shard, for it has "
                        "layers inside; move them into a layer of their own, or leave shards out"
                    )
                found[layer] = functools.partial(self._by_shard, layer.forward)
        return found

    def _by_shard(self, forward: _Forward, input: Tensor) -> Tensor:
        return torch.cat([forward(part) for part in input.chunk(self.shards)])

    def _normalise(self, layer: nn.BatchNorm2d, input: Tensor) -> Tensor:
        """Normalise (batch, channels, height, width) over all parts' samples."""
        if not layer.training:
            return self._by_shard(functools.partial(type(layer).forward, layer), input)
        parts = input.chunk(self.shards)
        axes = (0, 2, 3)
        # In float64 a mean of squares less a squared mean loses nothing that float32 would keep.
        wide = [part.double() for part in parts]
        sums = torch.stack([torch.stack([x.sum(axes), x.square().sum(axes)]) for x in wide])
        count = input.numel() // input.shape[1] * (self.count // self.shards)
        shape = (1, -1, 1, 1)
        made = []
        for part, total in zip(parts, cast(Tensor, _Total.apply(sums, self)), strict=True):
            averages = total / count
            mean = averages[0].float()
            variance = (averages[1] - averages[0].square()).float()
            scale = layer.weight * torch.rsqrt(variance + layer.eps)
            made.append((part - mean.view(shape)) * scale.view(shape) + layer.bias.view(shape))
        with torch.no_grad():
            # Mean and variance are the same for all parts.
            assert layer.running_mean is not None and layer.running_var is not None
            assert layer.num_batches_tracked is not None and layer.momentum is not None
            layer.num_batches_tracked.add_(1)
            layer.running_mean.lerp_(mean, layer.momentum)
            layer.running_var.lerp_(variance * (count / (count - 1)), layer.momentum)
        return torch.cat(made)


class _Total(torch.autograd.Function):
    """Give each part, of (shards, ...), the sum over all of them; so does the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        return parts.total(x).expand(x.shape).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.parts.total(grad.contiguous()).expand(grad.shape).clone(), None


def _is_plain_norm(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.BatchNorm2d
        and layer.affine
        and layer.momentum is not None
        and layer.running_mean is not None
    )


def check_cut(batch: int, parts: int, name: str) -> None:
    """Raise ValueError if a batch cannot be cut into parts of as many samples each."""
    if batch % parts:
        raise ValueError(f"batch={batch}: must be a multiple of the {parts} {name}; change either")
