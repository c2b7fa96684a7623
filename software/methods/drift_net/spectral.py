"""The spectral branch: low frequencies mixed by one complex matrix, bands weighed by a gate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts

COMPAT = (None, "official")
INITS = ("official", "identity")
DEVIATION = 0.02
LOW_FRACTION = 1 / (1 + math.exp(-0.25))


def radial_bands(height: int, width: int, num_bands: int, compat: str | None = None) -> Tensor:
    """Return the band (height, width // 2 + 1) int64 of each mode of rfft2, by its radius.

    The radius is that of |k| over the largest on each axis, so that bands are of equal width up to
    the corner. "official": rows count from 0 to height - 1, so that negative wave numbers, low ones
    too, lie farthest out.
    """
    require_counts(height=height, width=width, num_bands=num_bands)
    rows = torch.arange(height, dtype=torch.float64)
    if compat is None:
        rows = torch.minimum(rows, height - rows)
    cols = torch.arange(width // 2 + 1, dtype=torch.float64)
    radius = torch.hypot((rows / rows.max().clamp(min=1))[:, None], cols / cols.max().clamp(min=1))
    radius = radius / radius.max()
    return (radius * num_bands).long().clamp(max=num_bands - 1)


def low_modes(height: int, width: int, fraction: float, compat: str | None = None) -> Tensor:
    """Return which modes (height, width // 2 + 1) of rfft2 are low, bool.

    Those of |k| below ``fraction`` of the wave numbers of each axis, of both signs. "official":
    rows below that fraction of all rows, so that negative wave numbers count as high.
    """
    cols = torch.arange(width // 2 + 1) < int(fraction * (width // 2 + 1))
    rows = torch.arange(height)
    if compat == "official":
        return (rows < int(fraction * height))[:, None] & cols
    rows = torch.minimum(rows, height - rows)
    return (rows < int(fraction * (height // 2 + 1)))[:, None] & cols


class RadialBandGate(nn.Module):
    """A weight in (0, 1) for each band of each channel, from the mean amplitudes of all bands.

    Parameters
    ----------
    height, width : int
        Points of the grid, not of its spectrum.
    num_bands : int
    hidden : int
        Width of the perceptron between.
    compat : {None, "official"}
        As `radial_bands`.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 3.3; the authors' ``driftnet/model.py``.
    """

    bands: Tensor
    share: Tensor

    def __init__(
        self,
        height: int,
        width: int,
        num_bands: int = 6,
        hidden: int = 128,
        compat: str | None = None,
    ) -> None:
        super().__init__()
        require_counts(height=height, width=width, num_bands=num_bands, hidden=hidden)
        require_choice("compat", compat, COMPAT)
        bands = radial_bands(height, width, num_bands, compat).flatten()
        member = nn.functional.one_hot(bands, num_bands).double()
        self.register_buffer("bands", bands, persistent=False)
        self.register_buffer("share", member / member.sum(0).clamp(min=1), persistent=False)
        self.num_bands = num_bands
        self.mlp = nn.Sequential(
            nn.Linear(num_bands, hidden), nn.ReLU(), nn.Linear(hidden, num_bands), nn.Sigmoid()
        )

    def by_band(self, amplitude: Tensor) -> Tensor:
        """Return gates (batch, channels, num_bands) for amplitudes (batch, channels, modes)."""
        out: Tensor = self.mlp(amplitude @ self.share.to(amplitude.dtype))
        return out

    def forward(self, amplitude: Tensor) -> Tensor:
        """Return gates (batch, channels, modes) for amplitudes of that shape.

        Raises
        ------
        ValueError
            If there are other modes than those of the grid that the bands were made for.
        """
        if amplitude.shape[-1] != len(self.bands):
            raise ValueError(
                f"{amplitude.shape[-1]} modes: the gate's bands are of {len(self.bands)}; make a "
                "gate for this grid"
            )
        return self.by_band(amplitude)[..., self.bands]


class SpectralMixing(nn.Module):
    """α W x̂ at low frequencies and (1 - α) x̂ at high ones, α a gate of |x̂|.

    W is one complex matrix for all low modes, not one a mode as in an FNO. Shifts of a periodic
    field pass through: α depends on amplitudes alone.

    Parameters
    ----------
    dim : int
        Channels.
    resolution : int or tuple of int
        Points of the grid, height and width; even.
    num_bands, gate_hidden : int
        As `RadialBandGate`.
    low_fraction : float
        As `low_modes`.
    init : {"official", "identity"}
        Of W: complex normal of deviation 0.02, so that low modes start almost gone; or that plus
        the identity.
    compat : {None, "official"}
        Masks and bands of the released code.

    Attributes
    ----------
    weight : torch.nn.Parameter
        (dim, dim, 2): W, real and imaginary parts.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 3.2 and 3.3; the authors' ``driftnet/model.py``.
    """

    low: Tensor

    def __init__(
        self,
        dim: int,
        resolution: int | tuple[int, int],
        num_bands: int = 6,
        gate_hidden: int = 128,
        low_fraction: float = LOW_FRACTION,
        *,
        init: str = "official",
        compat: str | None = None,
    ) -> None:
        super().__init__()
        height, width = (resolution,) * 2 if isinstance(resolution, int) else resolution
        require_counts(dim=dim, height=height, width=width)
        if height % 2 or width % 2:
            raise ValueError(f"resolution={resolution}: must be even; pad the field by a point")
        if not 0 < low_fraction <= 1:
            raise ValueError(f"low_fraction={low_fraction}: must be in (0, 1]")
        require_choice("init", init, INITS)
        require_choice("compat", compat, COMPAT)
        self.dim, self.grid = dim, (height, width)
        weight = DEVIATION * torch.randn(dim, dim, 2)
        if init == "identity":
            weight[..., 0] += torch.eye(dim)
        self.weight = nn.Parameter(weight)
        self.gate = RadialBandGate(height, width, num_bands, gate_hidden, compat)
        low = low_modes(height, width, low_fraction, compat).flatten()
        self.register_buffer("low", low, persistent=False)

    def spectrum(self, x: Tensor) -> Tensor:
        """Return x̂ (batch, dim, modes) complex of x (batch, dim, height, width)."""
        if x.ndim != 4 or x.shape[1] != self.dim or tuple(x.shape[2:]) != self.grid:
            raise ValueError(
                f"input has shape {tuple(x.shape)}: must be (batch, {self.dim}, {self.grid[0]}, "
                f"{self.grid[1]}); bands and mask are of this grid, make a block for another"
            )
        return torch.fft.rfft2(x, norm="forward").flatten(2)

    def gates(self, x: Tensor) -> Tensor:
        """Return α (batch, dim, num_bands) of x (batch, dim, height, width)."""
        return self.gate.by_band(self.spectrum(x).abs())

    def teacher_loss(self, x: Tensor, truth: Tensor) -> Tensor:
        """Return the mean square of gates minus those of what x lacks of the truth.

        Of both, the mean over modes is compared, and the latter are given no gradient.

        Parameters
        ----------
        x, truth : torch.Tensor
            (batch, dim, height, width).
        """
        spectrum = self.spectrum(x)
        with torch.no_grad():
            wanted = self.gate((self.spectrum(truth) - spectrum).abs()).mean(-1)
        found = self.gate(spectrum.abs()).mean(-1)
        return nn.functional.mse_loss(found, wanted)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, dim, height, width) of the same.

        Raises
        ------
        ValueError
            If x is of another shape.
        """
        spectrum = self.spectrum(x)
        # A mode is either low or high, so | |high| - |low| | is |x̂|.
        alpha = self.gate(spectrum.abs())
        low = spectrum[..., self.low]
        # Amplitudes fall by 1e3 and more: a power of two brings the largest near 1, for float16.
        size = torch.view_as_real(low.detach()).abs().max().clamp(min=1e-30)
        scale = torch.exp2(-size.log2().floor())
        mixed = torch.view_as_complex(self.weight) @ (low * scale) / scale
        fused = (1 - alpha) * spectrum
        fused = fused.index_copy(-1, self.low.nonzero()[:, 0], alpha[..., self.low] * mixed)
        height, width = self.grid
        fused = fused.unflatten(-1, (height, width // 2 + 1))
        return torch.fft.irfft2(fused, s=self.grid, norm="forward")


def require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError for a value that is none of some."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")
