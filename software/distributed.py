"""Data-parallel training: ranks in processes of their own, each with its own device.

``torch.distributed`` (gloo) adds the gradients up. A step is that of one rank with the whole
batch but for the order of sums: each rank folds its samples' part of WU, and the parts are added;
batch normalisation adds sums over ranks. Forward products and BP have the bits of one rank, up to
what those sums changed before (docs/offload.md has figures).
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverRanks(torch.autograd.Function):
    """Add a tensor up over all ranks; so does its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the samples of all ranks (`nn.SyncBatchNorm` runs on GPUs only)."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (batch, channels, height, width) normalised; each rank has as many samples."""
        if not self.training:
            return super().forward(input)
        axes = (0, 2, 3)
        # In float64 a mean of squares less a squared mean loses nothing that float32 would keep.
        wide = input.double()
        sums = torch.stack([wide.sum(axes), wide.square().sum(axes)])
        count = input.numel() // input.shape[1] * dist.get_world_size()
        averages = cast(Tensor, _SumOverRanks.apply(sums)) / count
        mean = averages[0].float()
        variance = (averages[1] - averages[0].square()).float()
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.momentum is not None
            unbiased = variance * (count / (count - 1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        shape = (1, -1, 1, 1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (input - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)


def globalise_(model: nn.Module) -> nn.Module:
    """Make batch normalisation of a model see all ranks' samples; return the model.

    Raises
    ------
    ValueError
        If it has a normalisation over batches that this cannot do.
    """
    for name, layer in model.named_modules():
        if type(layer) is nn.BatchNorm2d and layer.affine and layer.momentum is not None:
            layer.__class__ = GlobalBatchNorm2d
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(
            layer, GlobalBatchNorm2d
        ):
            raise ValueError(
                f"layer {name!r} is a {type(layer).__name__}: over ranks only nn.BatchNorm2d with "
                "weight, bias and momentum is normalised; use that, or a norm without batches"
            )
    return model


def share(x: Tensor) -> Tensor:
    """Return this rank's samples of a batch.

    Raises
    ------
    ValueError
        If the ranks cannot have as many each.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    if len(x) % world:
        raise ValueError(f"batch={len(x)}: must be a multiple of the {world} ranks; change either")
    return x.chunk(world)[rank]


def mean_over_ranks(value: float) -> float:
    """Return the mean of a number over all ranks."""
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def _rank(
    rank: int,
    ranks: int,
    store: str,
    spec: str,
    options: Mapping[str, Any],
    arguments: Mapping[str, Any],
    data: str,
    progress: bool,
    out: str,
) -> None:
    """Train as one of several ranks; rank 0 saves the result."""
    # All ranks are on this machine, whose name need not resolve to an address.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    torch.set_num_threads(1)
    import sat
    from sat.data import load_data
    from sat.devices.staged import StagedDevice
    from sat.train import Trainer

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        with sat.device(spec, **options) as device, sat.record_products() as log:
            trainer = Trainer(
                data=load_data(data), device=StagedDevice(device), distributed=True, **arguments
            )
            result = trainer.fit(progress=progress and rank == 0, title=f"{ranks} ranks on {spec}")
            if rank == 0:
                state = trainer.model.state_dict()
                torch.save({"result": result, "state": state, "macs": log.macs}, out)
    finally:
        dist.destroy_process_group()


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), names[0])


def train_ranks(
    ranks: int,
    device: str = "golden",
    *,
    data: str = "digits",
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Train with several ranks on this machine.

    Parameters
    ----------
    ranks : int
        Processes, at least 1; each makes its own device.
    device : str
        As for `sat.device`.
    data : str
        Name of a data set.
    progress : bool
        Whether rank 0 shows a bar.
    options : mapping, optional
        For `sat.device`.
    **arguments
        For `sat.train.Trainer`; ``model`` by name. ``batch`` is that of all ranks together.

    Returns
    -------
    result : sat.train.TrainResult
        Losses are those of the whole batch.
    state : dict
        The trained model's ``state_dict``.

    Raises
    ------
    ValueError
        If ``ranks`` breaks its rule or does not divide the batch.
    torch.multiprocessing.ProcessRaisedException
        If a rank fails; with its message.
    """
    if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
        raise ValueError(f"ranks={ranks!r}: must be an int of at least 1")
    batch = arguments.get("batch", 32)
    if batch % ranks:
        raise ValueError(f"batch={batch}: must be a multiple of the {ranks} ranks; change either")
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "result.pt")
        torch.multiprocessing.spawn(  # type: ignore[attr-defined]
            _rank,
            (
                ranks,
                str(Path(folder) / "store"),
                device,
                dict(options or {}),
                arguments,
                data,
                progress,
                out,
            ),
            nprocs=ranks,
        )
        made = torch.load(out, weights_only=False)
    return made["result"], made["state"]
