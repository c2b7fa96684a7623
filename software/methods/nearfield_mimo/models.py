"""Two stages: measurements to a volume by physics or by a learned map, and a network after it."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sat.methods.nearfield_mimo.imaging import adjoint, as_measurements, normalize
from sat.methods.nearfield_mimo.unet import UNet3d
from sat.methods.problems import training
from sat.methods.problems.arguments import require_counts

Shape = tuple[int, int, int]


class TwoStage(nn.Module, ABC):
    """Measurements (batch, Nf, Nt, Nr) complex to magnitudes (batch, nx, ny, nz).

    `first` makes what the network sees; `learned` is whether it has weights to train. In evaluation
    mode a sample's result depends on nothing else in its batch, unless ``whole_batch`` says so.
    """

    learned = False
    network: nn.Module

    @abstractmethod
    def first(self, y: Tensor) -> Tensor:
        """Return the network's input, (batch, channels, nx, ny, nz)."""

    def forward(self, y: Tensor) -> Tensor:
        """Return magnitudes.

        Raises
        ------
        ValueError
            If shapes do not fit, a number is not finite, or a sample is all zero.
        TypeError
            If ``y`` is real.
        """
        out: Tensor = self.network(self.first(y))
        return out

    @torch.no_grad()
    def predict(self, y: Tensor, batch: int = 16) -> Tensor:
        """Return magnitudes in evaluation mode, without gradients, some samples at a time."""
        require_counts(batch=batch)
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            return torch.cat([self(part) for part in y.split(batch)])
        finally:
            for module, mode in modes.items():
                module.training = mode


class Deep2S(TwoStage):
    """|Aᴴ y| divided by its largest value, cleaned by a U-Net.

    Parameters
    ----------
    A : torch.Tensor
        (Nmeas, nx·ny·nz) complex, of `born_matrix`; kept as a buffer, divided by its largest
        magnitude, which the normalisation takes out again and float16 needs.
    shape : tuple of int
        (nx, ny, nz).
    network : nn.Module, optional
        (batch, channels, nx, ny, nz) to (batch, nx, ny, nz); if not given, a `UNet3d` of base 32.
    whole_batch : bool
        Divide by the largest value of the batch, as the released code does.

    Raises
    ------
    ValueError
        If A has not as many columns as there are voxels, or is zero.

    Source
    ------
    arXiv 2312.16959, section 3.
    """

    channels = 1

    def __init__(
        self,
        A: Tensor,
        shape: Shape,
        network: nn.Module | None = None,
        *,
        whole_batch: bool = False,
    ) -> None:
        super().__init__()
        require_counts(nx=shape[0], ny=shape[1], nz=shape[2])
        if A.ndim != 2 or not A.is_complex() or A.shape[1] != math.prod(shape):
            raise ValueError(
                f"A has shape {tuple(A.shape)} and type {A.dtype}: must be complex, with a column "
                f"for each of {math.prod(shape)} voxels"
            )
        peak = float(A.abs().max())
        if not 0 < peak < math.inf:
            raise ValueError(f"A's largest magnitude is {peak}: must be positive and finite")
        self.register_buffer("A", A / peak)
        self.A: Tensor
        self.shape = shape
        self.whole_batch = whole_batch
        self.network = UNet3d(self.channels) if network is None else network

    def back_project(self, y: Tensor) -> Tensor:
        """Return Aᴴ y, normalised, (batch, nx, ny, nz) complex."""
        return normalize(adjoint(self.A, y).unflatten(-1, self.shape), whole_batch=self.whole_batch)

    def first(self, y: Tensor) -> Tensor:
        """Return the magnitude, (batch, 1, nx, ny, nz)."""
        return self.back_project(y).abs()[:, None]


class CVDeep2S(Deep2S):
    """Real and imaginary part of Aᴴ y / max|Aᴴ y| as two channels; parameters as `Deep2S`."""

    channels = 2

    def first(self, y: Tensor) -> Tensor:
        """Return both parts, (batch, 2, nx, ny, nz)."""
        return torch.view_as_real(self.back_project(y)).movedim(-1, 1)


class _Learned(TwoStage):
    """A first stage that multiplies [re y, im y] by a matrix of its own."""

    learned = True

    def __init__(self, measurements: int, shape: Shape, maps: int, network: nn.Module | None):
        super().__init__()
        require_counts(measurements=measurements, nx=shape[0], ny=shape[1], nz=shape[2])
        self.measurements, self.shape = measurements, shape
        self.dense = nn.Linear(2 * measurements, maps * math.prod(shape), bias=False)
        self.network = UNet3d() if network is None else network

    def mapped(self, y: Tensor) -> Tensor:
        """Return the maps of measurements of largest magnitude 1: (batch, maps · voxels)."""
        y = normalize(as_measurements(y, self.measurements))
        out: Tensor = self.dense(torch.cat([y.real, y.imag], -1).to(self.dense.weight.dtype))
        return out


class DeepDI(_Learned):
    """Direct inversion: a fully connected map of measurements to a volume, then a U-Net.

    Parameters
    ----------
    measurements : int
        Nf·Nt·Nr.
    shape : tuple of int
        (nx, ny, nz).
    network : nn.Module, optional
        As of `Deep2S`.

    Raises
    ------
    ValueError
        If a number is no positive int.

    Notes
    -----
    The released code shows its input, [re y, im y] of a sample; not the layers of its first stage.
    """

    def __init__(self, measurements: int, shape: Shape, network: nn.Module | None = None) -> None:
        super().__init__(measurements, shape, 1, network)

    def first(self, y: Tensor) -> Tensor:
        """Return the map's volume, (batch, 1, nx, ny, nz)."""
        return self.mapped(y).unflatten(-1, (1, *self.shape))


class Deep2SPlus(_Learned):
    """Deep2S with a first stage that is trained: a complex volume by a map, its magnitude, a U-Net.

    Parameters
    ----------
    measurements : int
        Nf·Nt·Nr.
    shape : tuple of int
        (nx, ny, nz).
    network : nn.Module, optional
        As of `Deep2S`.
    A : torch.Tensor, optional
        (Nmeas, Nvox) complex; the map then starts as Aᴴ, divided by A's largest magnitude.

    Raises
    ------
    ValueError
        If a number is no positive int, or A does not fit.

    Notes
    -----
    The released code shows its input, (Nf, Nt, Nr) with real and imaginary part; not its layers.
    """

    def __init__(
        self,
        measurements: int,
        shape: Shape,
        network: nn.Module | None = None,
        A: Tensor | None = None,
    ) -> None:
        super().__init__(measurements, shape, 2, network)
        if A is not None:
            if A.shape != (measurements, math.prod(shape)) or not A.is_complex():
                raise ValueError(
                    f"A has shape {tuple(A.shape)} and type {A.dtype}: must be complex, "
                    f"{measurements} x {math.prod(shape)}"
                )
            back = A.mH / A.abs().max()
            rows = [torch.cat([back.real, -back.imag], 1), torch.cat([back.imag, back.real], 1)]
            with torch.no_grad():
                self.dense.weight.copy_(torch.cat(rows))

    def first(self, y: Tensor) -> Tensor:
        """Return the normalised magnitude, (batch, 1, nx, ny, nz)."""
        real, imag = self.mapped(y).unflatten(-1, (2, *self.shape)).unbind(1)
        return normalize(torch.complex(real, imag).abs())[:, None]


def fit(
    model: TwoStage,
    y: Tensor,
    magnitude: Tensor,
    *,
    epochs: int = 15,
    batch: int = 16,
    lr: float = 1e-3,
    schedule: str = "constant",
    validation: tuple[Tensor, Tensor] | None = None,
    patience: int | None = None,
    generator: torch.Generator,
) -> list[float]:
    """Train by Adam on the squared error of magnitudes; return its mean a voxel, by epoch.

    A first stage without weights is computed once. Gradients are of the error summed over a volume
    and averaged over the batch: of the mean over voxels they would be too small for float16, and
    Adam takes the same steps.

    Parameters
    ----------
    model : TwoStage
    y : torch.Tensor
        (samples, Nf, Nt, Nr) complex, or flattened.
    magnitude : torch.Tensor
        (samples, nx, ny, nz), in [0, 1]; never phases, which are noise.
    epochs, batch : int
    lr : float
        The highest of the schedule.
    schedule : str
        As of `sat.methods.problems.training.fit`: ``"constant"``, ``"onecycle"``, …
    validation : pair of torch.Tensor, optional
        Measurements and magnitudes; the weights of the epoch that does best on them are kept.
    patience : int, optional
        Stop after as many epochs without a better one; needs ``validation``.
    generator : torch.Generator
        Of the order of samples.

    Returns
    -------
    list of float

    Raises
    ------
    ValueError
        If magnitudes do not fit or leave [0, 1], or a number is out of its range.
    FloatingPointError
        If the error is not finite.
    """
    _require_magnitude(y, magnitude)
    if patience is not None:
        require_counts(patience=patience)
        if validation is None:
            raise ValueError(f"patience={patience}: stopping early needs validation=(y, magnitude)")
    if validation is not None:
        _require_magnitude(*validation)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr={lr}: must be positive and finite; 1e-3 is Adam's usual one")
    with torch.no_grad():
        inputs = y if model.learned else model.first(y)
    compute = model if model.learned else model.network
    voxels = magnitude[0].numel()
    optimizer = torch.optim.Adam(model.parameters(), lr)

    def loss(places: Tensor) -> Tensor:
        error: Tensor = (compute(inputs[places]) - magnitude[places]).square().sum() / len(places)
        return error

    best, state, waited = math.inf, None, 0

    def judge(_: int) -> bool:
        nonlocal best, state, waited
        if validation is None:
            return False
        error = float((model.predict(validation[0], batch) - validation[1]).square().mean())
        waited += 1
        if error < best:
            best, state, waited = error, copy.deepcopy(model.state_dict()), 0
        return patience is not None and waited >= patience

    model.train()
    curve = training.fit(
        loss, len(y), optimizer, epochs=epochs, batch=batch, generator=generator,
        schedule=schedule, on_epoch=judge,
    )  # fmt: skip
    if state is not None:
        model.load_state_dict(state)
    model.eval()
    return [error / voxels for error in curve]


def _require_magnitude(y: Tensor, magnitude: Tensor) -> None:
    if magnitude.ndim != 4 or len(magnitude) != len(y) or magnitude.is_complex():
        raise ValueError(
            f"magnitude of shape {tuple(magnitude.shape)} and type {magnitude.dtype} for {len(y)} "
            "samples: must be real (samples, nx, ny, nz)"
        )
    low, high = float(magnitude.min()), float(magnitude.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"magnitude from {low:g} to {high:g}: must lie in [0, 1]; divide by what is largest"
        )
