"""Blocks that share a frame and differ in how points see one another."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.drift_net.spectral import LOW_FRACTION, SpectralMixing
from sat.methods.problems.arguments import require_counts


def around(conv: nn.Conv2d, periodic: bool) -> nn.Sequential:
    """Return a convolution of odd taps that keeps the grid: what lies around it, or zeros, padded.

    The padding is a layer of its own, so that the convolution may be pruned (`sat.sparsify_`).
    """
    points = conv.kernel_size[0] // 2
    pad = nn.CircularPad2d(points) if periodic else nn.ZeroPad2d(points)
    return nn.Sequential(pad, conv)


class ConditionalLayerNorm(nn.Module):
    """Layer norm over channels whose scale and shift are linear in time.

    Parameters
    ----------
    dim : int
    conditional : bool
        False: learned ones that know no time.
    """

    def __init__(self, dim: int, eps: float = 1e-5, *, conditional: bool = True) -> None:
        super().__init__()
        self.dim, self.eps, self.conditional = dim, eps, conditional
        if conditional:
            self.scale, self.shift = nn.Linear(1, dim), nn.Linear(1, dim)
        else:
            self.norm = nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """Return (batch, …, dim) for x of that shape and time (batch,)."""
        if not self.conditional:
            out: Tensor = self.norm(x)
            return out
        if time is None or time.shape != (len(x),):
            given = None if time is None else tuple(time.shape)
            raise ValueError(f"time has shape {given}: must be ({len(x)},), one a sample")
        t = time.to(x.dtype)[:, None]
        lead = (len(x), *[1] * (x.ndim - 2), self.dim)
        x = functional.layer_norm(x, (self.dim,), eps=self.eps)
        return x * self.scale(t).view(lead) + self.shift(t).view(lead)


class DropPath(nn.Module):
    """Leaves out a branch of whole samples while training, and scales it up where it stays."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path={rate}: must be in [0, 1)")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.rate):
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class Block(nn.Module, ABC):
    """x + norm(mix(x)), then x + norm(MLP(x)): norms come before the residual sums.

    Parameters
    ----------
    dim : int
        Channels.
    resolution : int
        Points of an axis of the grid.
    mlp_ratio : float
        Of the perceptron's width.
    drop_path : float
    time_conditioning : bool
        Whether norms know the time.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        dim: int,
        resolution: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        time_conditioning: bool = True,
    ) -> None:
        super().__init__()
        require_counts(dim=dim, resolution=resolution)
        self.dim, self.resolution = dim, resolution
        self.mix_norm = ConditionalLayerNorm(dim, conditional=time_conditioning)
        self.mlp_norm = ConditionalLayerNorm(dim, conditional=time_conditioning)
        hidden = round(mlp_ratio * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path)

    @abstractmethod
    def mix(self, x: Tensor) -> Tensor:
        """Return (batch, height, width, dim): what points take of one another."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Return (batch, height, width, dim) for x of that shape and time (batch,) in [0, 1].

        Raises
        ------
        ValueError
            If x or time are of other shapes.
        """
        if x.ndim != 4 or x.shape[-1] != self.dim:
            raise ValueError(
                f"input has shape {tuple(x.shape)}: must be (batch, height, width, {self.dim})"
            )
        x = x + self.drop_path(self.mix_norm(self.mix(x), time))
        return x + self.drop_path(self.mlp_norm(self.mlp(x), time))


class DriftBlock(Block):
    """Points see one another through the spectrum, their neighbours and themselves.

    The spectral branch plus a 3 x 3 convolution of each channel plus a linear layer.

    Parameters
    ----------
    dim, resolution : int
    num_bands, gate_hidden, low_fraction, init, compat
        As `SpectralMixing`.
    periodic : bool
        Whether the convolution wraps around; else, and with ``compat``, zeros surround it.
    **options
        Of `Block`.

    Source
    ------
    Section 3; the authors' ``driftnet/model.py``.
    """

    def __init__(
        self,
        dim: int,
        resolution: int,
        num_bands: int = 6,
        gate_hidden: int = 128,
        low_fraction: float = LOW_FRACTION,
        compat: str | None = None,
        *,
        init: str = "official",
        periodic: bool = True,
        **options: float,
    ) -> None:
        super().__init__(dim, resolution, **options)  # type: ignore[arg-type]
        self.spectral = SpectralMixing(
            dim, resolution, num_bands, gate_hidden, low_fraction, init=init, compat=compat
        )
        self.local = around(
            nn.Conv2d(dim, dim, 3, groups=dim, bias=False), periodic and compat is None
        )
        self.linear = nn.Linear(dim, dim)

    def mix(self, x: Tensor) -> Tensor:
        channels_first = x.permute(0, 3, 1, 2)
        y = self.spectral(channels_first) + self.local(channels_first)
        return y.permute(0, 2, 3, 1) + self.linear(x)


class ConvBlock(Block):
    """`DriftBlock` without its spectral branch: neighbours alone."""

    def __init__(
        self, dim: int, resolution: int, *, periodic: bool = True, **options: float
    ) -> None:
        super().__init__(dim, resolution, **options)  # type: ignore[arg-type]
        self.local = around(nn.Conv2d(dim, dim, 3, groups=dim, bias=False), periodic)
        self.linear = nn.Linear(dim, dim)

    def mix(self, x: Tensor) -> Tensor:
        return self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + self.linear(x)


class WindowAttentionBlock(Block):
    """Attention within windows, shifted by half of one in every second block: Swin V2's.

    Cosine similarity over a learned temperature, plus a bias that a small perceptron gives each
    distance on a logarithmic scale.

    Parameters
    ----------
    dim, resolution : int
    heads : int
        Divides ``dim``.
    window : int
        Points of an axis of a window; divides ``resolution``, or is cut down to it.
    shift : int
        Points by which windows are moved.
    periodic : bool
        Whether windows reach around the edges; else what is not beside one another there is masked.
    **options
        Of `Block`.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Liu et al., Swin Transformer V2, arXiv 2111.09883, section 3; what the paper compares with.
    """

    distances: Tensor
    places: Tensor

    def __init__(
        self,
        dim: int,
        resolution: int,
        heads: int = 3,
        window: int = 8,
        shift: int = 0,
        *,
        bias_hidden: int = 512,
        periodic: bool = True,
        **options: float,
    ) -> None:
        super().__init__(dim, resolution, **options)  # type: ignore[arg-type]
        require_counts(heads=heads, window=window, bias_hidden=bias_hidden)
        if dim % heads:
            raise ValueError(f"heads={heads}: must divide dim={dim}; choose another number")
        window = min(window, resolution)
        if resolution % window:
            raise ValueError(f"window={window}: must divide resolution={resolution}")
        if not 0 <= shift < window:
            raise ValueError(f"shift={shift}: must be in 0 … {window - 1}, less than the window")
        # One window sees all: nothing is gained by moving it.
        self.heads, self.window = heads, window
        self.shift = 0 if window == resolution else shift
        self.periodic = periodic
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.bias = nn.Sequential(
            nn.Linear(2, bias_hidden), nn.ReLU(), nn.Linear(bias_hidden, heads, bias=False)
        )
        self.query, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)
        span = torch.arange(1 - window, window, dtype=torch.float32)
        far = 8 * span / max(window - 1, 1)
        far = far.sign() * (far.abs() + 1).log2() / 3
        self.register_buffer("distances", torch.cartesian_prod(far, far), persistent=False)
        axis = torch.arange(window)
        at = torch.cartesian_prod(axis, axis)
        off = at[:, None] - at + window - 1
        self.register_buffer("places", off[..., 0] * (2 * window - 1) + off[..., 1], False)

    def mix(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        if (height, width) != (self.resolution,) * 2:
            raise ValueError(f"input has {height} x {width} points: must be {self.resolution}²")
        w, s = self.window, self.shift
        if s:
            x = x.roll((-s, -s), (1, 2))
        n = self.resolution // w
        x = x.view(batch, n, w, n, w, dim).transpose(2, 3).reshape(batch * n * n, w * w, dim)
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        logits = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT
        logits = logits * self.temperature.clamp(max=math.log(100.0)).exp()
        logits = logits + 16 * torch.sigmoid(self.bias(self.distances))[self.places].permute(
            2, 0, 1
        )
        if s and not self.periodic:
            logits = logits.unflatten(0, (batch, -1)) + self._mask(x)[:, None]
            logits = logits.flatten(0, 1)
        x = (torch.softmax(logits, -1) @ v).transpose(1, 2).flatten(2)
        out: Tensor = self.out(x)
        out = out.view(batch, n, n, w, w, dim).transpose(2, 3).reshape(batch, height, width, dim)
        return out.roll((s, s), (1, 2)) if s else out

    def _mask(self, like: Tensor) -> Tensor:
        """Return (windows, w², w²): -100 between points on two sides of an edge."""
        axis = torch.zeros(self.resolution)
        axis[-self.shift :] = 1
        side = 2 * axis[:, None] + axis
        w, n = self.window, self.resolution // self.window
        side = side.view(n, w, n, w).transpose(1, 2).reshape(n * n, w * w)
        return torch.where(side[:, None] == side[:, :, None], 0.0, -100.0).to(like)
