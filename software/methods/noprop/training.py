"""The twin of NoProp-DT that is trained through all blocks, and what a training must remember."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from sat.methods.noprop.blocks import require_labels
from sat.methods.noprop.model import NoPropDT, adamw, require_batches
from sat.methods.problems.training import fit


def train_backprop(
    model: NoPropDT,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 100,
    batch: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 1e-3,
    generator: torch.Generator,
) -> list[float]:
    """Train a chain by the cross-entropy at its end, through all blocks and their noise.

    Parameters
    ----------
    model : NoPropDT
        Left in evaluation mode.
    x, y : torch.Tensor
        (samples, …), and (samples,) integers.
    epochs, batch : int
        An epoch updates each block as often as one of `NoPropDT.fit` does.
    lr, weight_decay : float
        Of AdamW.
    generator : torch.Generator
        Of the order of samples, and of noise.

    Returns
    -------
    list of float
        Mean cross-entropy of each epoch, nats.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or the last batch would have a single sample.
    FloatingPointError
        If a loss is not finite.
    """
    require_labels(y, model.labels.classes, len(x))
    require_batches(len(x), batch)
    model.train()
    curve = fit(
        lambda places: functional.cross_entropy(model(x[places], generator), y[places].long()),
        len(x), adamw(model, lr, weight_decay), epochs=epochs, batch=batch, generator=generator,
        schedule="constant",
    )  # fmt: skip
    model.eval()
    return curve


def saved_activation_bytes(fn: Callable[[], Tensor], exclude: Iterable[Tensor] = ()) -> int:
    """Return how many bytes autograd keeps for the gradient of what a function returns.

    Parameters
    ----------
    fn : callable
        Computes a loss.
    exclude : iterable of torch.Tensor
        Parameters and inputs, which are there anyway. A storage counts once, whole.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    kept: dict[int, Tensor] = {}  # the tensors, so that no address is used again

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            kept.setdefault(place, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fn()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
