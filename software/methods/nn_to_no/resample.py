"""One function on another grid: by Fourier series, or by straight lines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts

WAYS = ("fourier", "linear")


def fourier_resample(x: Tensor, size: int | Sequence[int]) -> Tensor:
    """Return a periodic function's trigonometric interpolant on another grid.

    Exact for what both grids can hold; going coarser, shorter waves are cut off.

    Parameters
    ----------
    x : torch.Tensor
        (batch, channels, *grid) real, points i / n of each axis.
    size : int or sequence of int
        Points of each axis.

    Returns
    -------
    torch.Tensor
        (batch, channels, *size).

    Raises
    ------
    ValueError
        If sizes are not positive or of another number.
    """
    for axis, target in enumerate(_sizes(x, size), start=2):
        n = x.shape[axis]
        if n == target:
            continue
        spectrum = torch.fft.rfft(x, dim=axis, norm="forward").movedim(axis, -1)
        kept = spectrum[..., : min(n, target) // 2 + 1].clone()
        if min(n, target) % 2 == 0:
            # The shortest wave of the coarser grid stands for both of its signs: half to each.
            kept[..., -1] = kept[..., -1] * (0.5 if n < target else 2)
            if n > target:
                kept[..., -1] = kept[..., -1].real.to(kept.dtype)
        x = torch.fft.irfft(kept, target, norm="forward").movedim(-1, axis)
    return x


def linear_resample(x: Tensor, size: int | Sequence[int]) -> Tensor:
    """Return a periodic function's piecewise linear interpolant on another grid.

    A product with one small matrix an axis. Parameters, result and errors as `fourier_resample`.
    """
    for axis, target in enumerate(_sizes(x, size), start=2):
        if x.shape[axis] != target:
            matrix = _lines(x.shape[axis], target).to(x.device, x.dtype)
            x = (x.movedim(axis, -1) @ matrix).movedim(-1, axis)
    return x


def resample(x: Tensor, size: int | Sequence[int], how: str) -> Tensor:
    """Return `fourier_resample` or `linear_resample`."""
    if how not in WAYS:
        raise ValueError(f"how={how!r}: must be 'fourier' or 'linear'; choose one")
    return fourier_resample(x, size) if how == "fourier" else linear_resample(x, size)


class FunctionPool(nn.Module):
    """A function on a fixed coarser grid, whatever grid it came on.

    Parameters
    ----------
    size : int or sequence of int
        Points of each axis.
    how : {"fourier", "linear"}
        Of periodic functions.

    Raises
    ------
    ValueError
        If there is no such way, or a size is not positive.
    """

    def __init__(self, size: int | Sequence[int], how: str = "fourier") -> None:
        super().__init__()
        if how not in WAYS:
            raise ValueError(f"how={how!r}: must be 'fourier' or 'linear'; choose one")
        require_counts(**{"size": min([size] if isinstance(size, int) else size)})
        self.size, self.how = size, how

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, *size) for x (batch, channels, *grid)."""
        return resample(x, self.size, self.how)


class _Interpolated(nn.Module):
    def __init__(self, model: nn.Module, base_res: int, how: str) -> None:
        super().__init__()
        self.model, self.base_res, self.how = model, base_res, how

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[2:]
        y: Tensor = self.model(resample(x, self.base_res, self.how))
        # Of the size that the model gives its base resolution.
        size = [m * k // self.base_res for m, k in zip(y.shape[2:], n, strict=True)]
        return resample(y, size, self.how)


def in_out_interpolation(model: nn.Module, base_res: int, how: str = "fourier") -> nn.Module:
    """Return a model that runs at ``base_res`` alone, its inputs and outputs resampled.

    The baseline of every conversion: what is finer than the base grid is lost.

    Parameters
    ----------
    model : nn.Module
        (batch, channels, *grid) to the same.
    base_res : int
        Points of each axis.
    how : {"fourier", "linear"}

    Returns
    -------
    nn.Module
        It shares the model.

    Raises
    ------
    ValueError
        If there is no such way, or ``base_res`` is not positive.
    """
    require_counts(base_res=base_res)
    if how not in WAYS:
        raise ValueError(f"how={how!r}: must be 'fourier' or 'linear'; choose one")
    return _Interpolated(model, base_res, how)


def _sizes(x: Tensor, size: int | Sequence[int]) -> list[int]:
    axes = x.ndim - 2
    sizes = [size] * axes if isinstance(size, int) else list(size)
    if axes < 1 or len(sizes) != axes:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and size={size}: must be (batch, channels, *grid) and "
            "one number an axis of the grid"
        )
    require_counts(**{f"size[{axis}]": value for axis, value in enumerate(sizes)})
    return sizes


@lru_cache(maxsize=64)
def _lines(n: int, target: int) -> Tensor:
    """Return (n, target) float64: what each old point gives each new one."""
    place = torch.arange(target, dtype=torch.float64) * n / target
    left = place.floor().long()
    share = place - left
    matrix = torch.zeros(n, target, dtype=torch.float64)
    columns = torch.arange(target)
    matrix[left % n, columns] += 1 - share
    matrix[(left + 1) % n, columns] += share
    return matrix
