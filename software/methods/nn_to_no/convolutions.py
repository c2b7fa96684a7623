"""Convolutions whose kernels are functions: interpolated, differential, local, spectral."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.nn_to_no.mesh import QuadratureMesh, scale_of
from sat.methods.nn_to_no.resample import resample
from sat.methods.problems.arguments import require_counts

MODES = ("hat", "authors")
_CONV: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d}
_LINES = {1: "linear", 2: "bilinear"}
_PADDING = {"zeros": "constant", "circular": "circular", "replicate": "replicate",
            "reflect": "reflect"}  # fmt: skip


class InterpolatedConv(nn.Module):
    """A convolution whose taps are samples of a kernel that is as wide on every grid.

    On a grid s times finer than ``base_res`` the kernel is interpolated between its taps; the
    weights are the layer's own, nothing is trained anew. At s = 1 it is the plain layer.

    "hat": κ(y) = Σ_j w_j hat((y - j h₀) / h₀) / h₀, piecewise linear, W(m) = (1/s) Σ_j w_j
    hat(m/s - j). Keeps Σ W = Σ w; converges to ∫ κ(y) f(x + y) dy with order 2. As W is hats around
    taps, the input is smoothed by one hat and the plain taps are applied s points apart: k taps an
    axis on every grid instead of s (k + 1) - 1. That is the layer itself on each of the s x s base
    grids that make the finer one, so N:M weights of it (`sat.sparsify_`) are so on all grids.
    "authors": taps stretched by linear interpolation to s (k - 1) + 1, times k / size an axis, as
    the released code does; Σ W is not Σ w.

    Parameters
    ----------
    conv : nn.Conv1d or nn.Conv2d
        Stride and dilation 1; shared, not copied.
    base_res : int
        Points of each axis of the grid it was trained on.
    mode : {"hat", "authors"}
    dense : bool
        Whether "hat" applies the interpolated kernel as a whole: the same values at more cost.

    Raises
    ------
    TypeError
        If ``conv`` is no such convolution.
    ValueError
        If it has a stride or dilation, or an even kernel with ``padding="same"``, or another
        argument breaks its rule.

    Source
    ------
    Section 4.2; "authors" is ``models/unet_kernel_interp.py``, "hat" is ours.
    """

    def __init__(
        self,
        conv: nn.Conv1d | nn.Conv2d,
        base_res: int,
        mode: str = "hat",
        *,
        dense: bool = False,
    ) -> None:
        super().__init__()
        if type(conv) not in (nn.Conv1d, nn.Conv2d):
            raise TypeError(f"conv is a {type(conv).__name__}: must be an nn.Conv1d or nn.Conv2d")
        require_counts(base_res=base_res)
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: must be 'hat' or 'authors'; choose one")
        for name in ("stride", "dilation"):
            if set(getattr(conv, name)) != {1}:
                raise ValueError(
                    f"{name}={getattr(conv, name)}: must be 1; resample around a layer that has "
                    "another (ResampledLayer)"
                )
        self.conv, self.base_res, self.mode, self.dense = conv, base_res, mode, dense
        self.pads = paddings(conv)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out channels, *grid) for x (batch, in channels, *grid).

        Raises
        ------
        ValueError
            If the grid is no whole multiple of ``base_res`` on each axis (of "authors": if the
            stretched kernel or its padding has no whole size).
        """
        scales = [self._scale(n) for n in x.shape[2:]]
        if all(s == 1 for s in scales):
            out: Tensor = self.conv(x)
            return out
        if self.mode == "authors":
            pads = [self._whole(s * p, "padding") for s, p in zip(scales, self.pads, strict=True)]
            return self._convolve(_pad(self.conv, x, pads), self.kernel(scales))
        whole = [int(s) for s in scales]
        if self.dense:
            pads = [s * p + s - 1 for s, p in zip(whole, self.pads, strict=True)]
            return self._convolve(_pad(self.conv, x, pads), self.kernel(scales))
        sizes = [2 * p + 1 for p in self.pads]
        if self.conv.padding_mode == "circular" and sizes == list(self.conv.kernel_size):
            smooth = _smoothed(_pad(self.conv, x, [s - 1 for s in whole]), whole)
            return self._by_base_grids(smooth, whole)
        pads = [s * p + s - 1 for s, p in zip(whole, self.pads, strict=True)]
        y = self._by_base_grids(_smoothed(_pad(self.conv, x, pads), whole), whole)
        # The layer padded what had been padded already: what comes of that is cut off.
        for axis, (s, p) in enumerate(zip(whole, self.pads, strict=True), start=2):
            y = y.narrow(axis, s * p, y.shape[axis] - 2 * s * p)
        return y

    def _by_base_grids(self, x: Tensor, scales: list[int]) -> Tensor:
        """Apply the layer to every s-th point of each axis, from each of the s first ones."""
        axes, batch = len(scales), len(x)
        for axis, s in enumerate(scales):
            x = x.unflatten(2 + 2 * axis, (-1, s))
        # (batch, C, n1, s1, n2, s2) to (batch · s1 · s2, C, n1, n2), and back
        grids, phases = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
        x = x.permute(0, *phases, 1, *grids).flatten(0, axes)
        y: Tensor = self.conv(x)
        y = y.unflatten(0, (batch, *scales))
        order = [0, axes + 1]
        for axis in range(axes):
            order += [axes + 2 + axis, 1 + axis]
        y = y.permute(order)
        for axis in range(axes):
            y = y.flatten(2 + axis, 3 + axis)
        return y

    def kernel(self, scales: Sequence[float]) -> Tensor:
        """Return the interpolated weights (out, in / groups, *sizes) for a scale an axis."""
        w = self.conv.weight
        if self.mode == "authors":
            sizes = [
                self._whole(s * (k - 1) + 1, "kernel")
                for s, k in zip(scales, w.shape[2:], strict=True)
            ]
            stretched = functional.interpolate(w, sizes, mode=_LINES[len(sizes)])
            share = math.prod(k / size for k, size in zip(w.shape[2:], sizes, strict=True))
            return stretched * share
        for axis, s in enumerate(scales, start=2):
            matrix = hats(w.shape[axis], int(s)).to(w.device, w.dtype)
            w = (w.movedim(axis, -1) @ matrix).movedim(-1, axis)
        return w

    def _convolve(self, x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        conv = _CONV[x.ndim - 2]
        return conv(x, weight, self.conv.bias, groups=self.conv.groups, **options)

    def _scale(self, n: int) -> float:
        if self.mode == "authors" and n < self.base_res:
            return n / self.base_res
        return scale_of(n, self.base_res)

    def _whole(self, value: float, name: str) -> int:
        if not math.isclose(value, round(value)):
            raise ValueError(
                f"the stretched {name} would have {value:g} points: must be whole; choose a grid "
                f"whose ratio to base_res={self.base_res} makes it so"
            )
        return round(value)


def _smoothed(x: Tensor, scales: list[int]) -> Tensor:
    """Return the mean of x by a hat of s points on each side, axis by axis; s - 1 shorter there."""
    axes, channels = len(scales), x.shape[1]
    for axis, s in enumerate(scales):
        hat = (1 - torch.arange(1 - s, s, device=x.device).abs() / s) / s
        shape = [-1 if a == axis else 1 for a in range(axes)]
        taps = hat.to(x.dtype).view(1, 1, *shape).expand(channels, *[-1] * (axes + 1))
        x = _CONV[axes](x, taps, groups=channels)
    return x


def hats(taps: int, s: int) -> Tensor:
    """Return (taps, s (taps + 1) - 1) float64: what each tap gives each finer one."""
    m = torch.arange(1 - s, s * (taps - 1) + s, dtype=torch.float64) / s
    return (1 - (m - torch.arange(taps, dtype=torch.float64)[:, None]).abs()).clamp(min=0) / s


def paddings(conv: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Return a convolution's padding on each axis, the same at both ends."""
    if conv.padding == "same":
        for axis, k in enumerate(conv.kernel_size):
            if k % 2 == 0:
                raise ValueError(
                    f"kernel_size={k} on axis {axis} with padding='same': must be odd, or its ends "
                    "differ; take an odd kernel or a number"
                )
        return [k // 2 for k in conv.kernel_size]
    return (
        [0] * len(conv.kernel_size) if conv.padding == "valid" else [int(p) for p in conv.padding]
    )


def _pad(conv: nn.Conv1d | nn.Conv2d, x: Tensor, pads: list[int]) -> Tensor:
    both = [p for pad in reversed(pads) for p in (pad, pad)]
    return functional.pad(x, both, mode=_PADDING[conv.padding_mode])


class PatchIntegral(nn.Module):
    """The patches of a vision transformer: integrals over cells of a size that does not change.

    Each tap stands for its share of the patch: on a grid s times finer it weighs the mean of s
    points an axis. As many tokens come out on every grid.

    Parameters
    ----------
    conv : nn.Conv1d or nn.Conv2d
        Stride equal to the kernel, no padding or dilation.
    base_res : int

    Raises
    ------
    ValueError
        If the convolution makes no patches.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, base_res: int) -> None:
        super().__init__()
        require_counts(base_res=base_res)
        if conv.stride != conv.kernel_size or any(paddings(conv)) or set(conv.dilation) != {1}:
            raise ValueError(
                f"conv has kernel_size={conv.kernel_size}, stride={conv.stride}, padding="
                f"{conv.padding}: must make patches (stride = kernel, no padding)"
            )
        self.conv, self.base_res = conv, base_res

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (batch, out channels, *patches) for x (batch, in channels, *grid)."""
        scales = [scale_of(n, self.base_res) for n in x.shape[2:]]
        for axis, s in enumerate(scales, start=2):
            x = x.unflatten(axis, (-1, s)).mean(axis + 1)
        out: Tensor = self.conv(x)
        return out


class ResampledLayer(nn.Module):
    """A layer that changes the grid (stride, pooling), between resamplings.

    The input goes to the base grid, through the plain layer, and its output to s times the size it
    has there. How the authors treat strided and transposed convolutions.

    Parameters
    ----------
    layer : nn.Module
    base_res : int or sequence of int
        Points of the grid that reaches the layer at s = 1.
    how : {"fourier", "linear"}
    """

    def __init__(self, layer: nn.Module, base_res: int | Sequence[int], how: str) -> None:
        super().__init__()
        self.layer, self.how = layer, how
        self.base_res = base_res if isinstance(base_res, int) else tuple(base_res)

    def forward(self, x: Tensor) -> Tensor:
        axes = x.ndim - 2
        base = [self.base_res] * axes if isinstance(self.base_res, int) else list(self.base_res)
        scales = [scale_of(n, b) for n, b in zip(x.shape[2:], base, strict=True)]
        out: Tensor = self.layer(resample(x, base, self.how))
        return resample(out, [n * s for n, s in zip(out.shape[2:], scales, strict=True)], self.how)


class DifferentialConv(nn.Module):
    """(conv(f, W) - (Σ W) f) / h: converges to Σ_j W_j (j · ∇f), a derivative.

    Taps j are counted from the middle one, and h is the spacing. Order 1, order 2 if W is odd.

    Parameters
    ----------
    conv : nn.Conv1d or nn.Conv2d
        Odd kernel, stride and dilation 1, "circular" or "replicate" padding by half the kernel;
        shared, not copied.
    length : float
        Of the domain, the same on each axis.

    Raises
    ------
    ValueError
        If the convolution breaks a rule.

    Source
    ------
    Section 4.2; Liu-Schiaffini et al., arXiv 2402.16845.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, length: float = 1.0) -> None:
        super().__init__()
        half = [k // 2 for k in conv.kernel_size]
        if any(k % 2 == 0 for k in conv.kernel_size) or paddings(conv) != half:
            raise ValueError(
                f"kernel_size={conv.kernel_size}, padding={conv.padding}: must be odd, padded by "
                "half of it, or the taps have no middle"
            )
        if set(conv.stride) | set(conv.dilation) != {1}:
            raise ValueError("conv has a stride or dilation: both must be 1")
        if conv.padding_mode not in ("circular", "replicate"):
            raise ValueError(
                f"padding_mode={conv.padding_mode!r}: must be 'circular' or 'replicate'; zeros "
                "would be a jump to differentiate"
            )
        if not 0 < length < math.inf:
            raise ValueError(f"length={length}: must be positive and finite")
        self.conv, self.length = conv, length

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out channels, *grid) for x (batch, in channels, *grid)."""
        n = x.shape[-1]
        if set(x.shape[2:]) != {n}:
            raise ValueError(f"the grid has {tuple(x.shape[2:])} points: must be as many an axis")
        h = self.length / n
        x = _pad(self.conv, x, paddings(self.conv))
        # The sum is taken from the middle tap, so that one product does it all: no difference of
        # two large ones is rounded.
        w = self.conv.weight
        middle = [k // 2 for k in w.shape[2:]]
        shift = torch.zeros_like(w)
        center = shift
        for axis, place in enumerate(middle, start=2):
            center = center.narrow(axis, place, 1)
        center += w.flatten(2).sum(-1).view(center.shape)
        out = _CONV[x.ndim - 2](x, w - shift, groups=self.conv.groups) / h
        if self.conv.bias is not None:
            out = out + self.conv.bias.view(-1, *[1] * (x.ndim - 2))
        return out


class LocalIntegralConv(nn.Module):
    """∫ κ(y - x) f(y) dy over a disc of fixed physical radius, κ = Σ_b θ_b ψ_b.

    ψ_b are piecewise linear in the distance, between rings, and in the angle: one at the centre,
    then one for each ring but the last, where κ is 0, and each direction.

    Parameters
    ----------
    c_in, c_out : int
    radius : float
        In units of the domain.
    shape : tuple of int
        Rings from the centre to the radius, and directions: at least (1, 1).

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 4.2; discrete-continuous convolutions, Ocampo, Price, McEwen, arXiv 2209.13603.
    """

    def __init__(
        self, c_in: int, c_out: int, radius: float, shape: tuple[int, int] = (2, 4)
    ) -> None:
        super().__init__()
        require_counts(c_in=c_in, c_out=c_out, **{"shape[0]": shape[0], "shape[1]": shape[1]})
        if not 0 < radius < math.inf:
            raise ValueError(f"radius={radius}: must be positive and finite")
        self.radius, self.shape = radius, shape
        count = 1 + (shape[0] - 1) * shape[1]
        bound = 1 / math.sqrt(c_in * count)
        theta = torch.empty(count, c_in, c_out).uniform_(-bound, bound)
        # As if the disc had measure 1.
        self.weight = nn.Parameter(theta / (math.pi * radius**2))

    def basis(self, offset: Tensor) -> Tensor:
        """Return ψ (count, …) at offsets (…, 2); they add up to the outermost ring's fall to 0."""
        rings, directions = self.shape
        r = offset.norm(dim=-1) * (rings / self.radius)
        turn = torch.atan2(offset[..., 1], offset[..., 0]) / (2 * math.pi) * directions
        parts = [(1 - r).clamp(min=0)]
        for ring in range(1, rings):
            radial = (1 - (r - ring).abs()).clamp(min=0)
            for direction in range(directions):
                off = (turn - direction + directions / 2).remainder(directions) - directions / 2
                angular = (1 - off.abs()).clamp(min=0) if directions > 1 else torch.ones_like(off)
                parts.append(radial * angular)
        return torch.stack(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, c_out, n, n) for x (batch, c_in, n, n) on the periodic unit square.

        Raises
        ------
        ValueError
            If the grid is not square, or too coarse for the disc to hold a neighbour.
        """
        n = x.shape[-1]
        if x.ndim != 4 or x.shape[-2] != n:
            raise ValueError(f"x has shape {tuple(x.shape)}: must be (batch, channels, n, n)")
        reach = math.ceil(self.radius * n) - 1
        if not 1 <= reach < n / 2:
            raise ValueError(
                f"radius={self.radius} on {n} points an axis: must be more than one spacing and "
                "less than half of the domain"
            )
        axis = torch.arange(-reach, reach + 1, dtype=torch.float64) / n
        offsets = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
        basis = (self.basis(offsets) / n**2).to(x.device, x.dtype)
        taps = torch.einsum("bio,bxy->oixy", self.weight, basis)
        return functional.conv2d(functional.pad(x, [reach] * 4, mode="circular"), taps)

    def on_mesh(self, f: Tensor, mesh: QuadratureMesh, query: Tensor) -> Tensor:
        """Return the integral at other points, for f on any mesh of the plane.

        Parameters
        ----------
        f : torch.Tensor
            (batch, points, c_in).
        mesh : QuadratureMesh
            (points, 2).
        query : torch.Tensor
            (others, 2).

        Returns
        -------
        torch.Tensor
            (batch, others, c_out).
        """
        psi = self.basis(mesh.points - query[:, None]) * mesh.weights
        sums = torch.einsum("bqn,zni->zqbi", psi.to(f.dtype), f)
        return torch.einsum("zqbi,bio->zqo", sums, self.weight)


class SpectralConv(nn.Module):
    """The lowest Fourier modes of a periodic function, each mixed by its own complex matrix.

    Parameters
    ----------
    c_in, c_out : int
    modes : int or sequence of int
        Kept on each axis: wave numbers below it, of both signs on all axes but the last.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Li et al., arXiv 2010.08895, section 4; transforms scaled so that weights do not know n.
    """

    def __init__(self, c_in: int, c_out: int, modes: int | Sequence[int]) -> None:
        super().__init__()
        self.modes = (modes,) if isinstance(modes, int) else tuple(modes)
        require_counts(c_in=c_in, c_out=c_out)
        require_counts(**{f"modes[{axis}]": value for axis, value in enumerate(self.modes)})
        if len(self.modes) > 2:
            raise ValueError(f"modes={modes}: must be of one or two axes")
        count = [2 * m - 1 for m in self.modes[:-1]] + [self.modes[-1]]
        scale = 1 / math.sqrt(c_in * c_out)
        self.weight = nn.Parameter(scale * torch.randn(*count, c_in, c_out, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, c_out, *grid) for x (batch, c_in, *grid).

        Raises
        ------
        ValueError
            If an axis has fewer than two points a mode.
        """
        axes = len(self.modes)
        if x.ndim != axes + 2:
            raise ValueError(f"x has shape {tuple(x.shape)}: must have {axes} axes after channels")
        for axis, (n, m) in enumerate(zip(x.shape[2:], self.modes, strict=True)):
            if m > n / 2:
                raise ValueError(
                    f"modes={m} on axis {axis} of {n} points: must be at most half of them; lower "
                    "it or use a finer grid"
                )
        dims = tuple(range(2, 2 + axes))
        spectrum = torch.fft.rfftn(x, dim=dims, norm="forward")
        weight = torch.view_as_complex(self.weight)
        out = spectrum.new_zeros(len(x), weight.shape[-1], *spectrum.shape[2:])
        places: tuple[Tensor | slice, ...] = (slice(self.modes[-1]),)
        if axes == 2:
            rows = torch.arange(1 - self.modes[0], self.modes[0], device=x.device)
            places = (rows % x.shape[2], *places)
        kept = spectrum[(slice(None), slice(None), *places)]
        mixed = torch.einsum("bi...,...io->bo...", kept, weight)
        out[(slice(None), slice(None), *places)] = mixed
        result: Tensor = torch.fft.irfftn(out, x.shape[2:], dim=dims, norm="forward")
        return result
