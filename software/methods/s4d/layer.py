"""Sequence layers around the kernel: S4D, the block with its mixing, and a whole model."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.s4d.kernel import DiagonalSystem, S4DKernel

CONVOLUTIONS = ("fft", "dft")


def convolve(u: Tensor, kernel: Tensor, method: str = "fft") -> Tensor:
    """Return y_l = Σ_{j ≤ l} K_j·u_{l−j}, linear: nothing wraps around.

    Parameters
    ----------
    u : torch.Tensor
        (batch, channels, length).
    kernel : torch.Tensor
        (channels, length), of the same dtype.
    method : {"fft", "dft"}
        Fast transforms, or the same as matrix products of length² for short sequences.

    Returns
    -------
    torch.Tensor
        (batch, channels, length).

    Raises
    ------
    ValueError
        If shapes do not fit, or there is no such method.
    """
    if u.ndim != 3 or kernel.shape != u.shape[1:]:
        raise ValueError(
            f"u has shape {tuple(u.shape)} and the kernel {tuple(kernel.shape)}: must be (batch, "
            "channels, length) and (channels, length); make a kernel of the input's length"
        )
    length = u.shape[-1]
    if method == "fft":
        size = 2 * length  # room for the tail, which else would wrap around to the beginning
        spectrum = torch.fft.rfft(u, size) * torch.fft.rfft(kernel, size)
        linear: Tensor = torch.fft.irfft(spectrum, size)[..., :length]
        return linear
    if method != "dft":
        raise ValueError(f"conv={method!r}: must be 'fft' or 'dft'; choose one")
    forward, inverse = _transforms(length, u.dtype, u.device)
    left, right = (torch.complex(*(x @ forward).chunk(2, -1)) for x in (u, kernel))
    product = left * right
    return torch.cat([product.real, product.imag], -1) @ inverse


@functools.lru_cache(maxsize=16)
def _transforms(length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return real DFT matrices of size 2·length, there and back.

    Returns
    -------
    forward : torch.Tensor
        (length, 2·(length + 1)): real parts of the spectrum, then imaginary parts.
    inverse : torch.Tensor
        (2·(length + 1), length).
    """
    size = 2 * length
    sample, bin_ = torch.arange(length), torch.arange(length + 1)
    # Whole turns are dropped while they are integers.
    angle = (torch.outer(sample, bin_) % size).double() * (2 * math.pi / size)
    forward = torch.cat([angle.cos(), -angle.sin()], 1)
    # Bins between the first and the last stand for their conjugates too.
    weight = torch.full((length + 1,), 2.0, dtype=torch.float64)
    weight[0] = weight[-1] = 1
    inverse = (forward * weight.repeat(2) / size).mT.contiguous()
    return forward.to(device, dtype), inverse.to(device, dtype)


class DiagonalLayer(nn.Module, ABC):
    """What layers over diagonal systems share: a state of rest, and the rules of their shapes.

    Attributes
    ----------
    d_model : int
        Channels.
    d : nn.Parameter
        (d_model,): what of the input goes past the system.
    """

    d_model: int
    d: nn.Parameter

    @property
    @abstractmethod
    def state_shape(self) -> tuple[int, ...]:
        """Shape of a sample's state, which is complex."""

    def initial_state(self, batch: int) -> Tensor:
        """Return a state of rest: zeros, complex (batch, …), for `step`."""
        kind = self.d.dtype.to_complex()
        return torch.zeros(batch, *self.state_shape, dtype=kind, device=self.d.device)

    def _require(self, u: Tensor, ndim: int, shape: str) -> None:
        if u.ndim != ndim or u.shape[1] != self.d_model:
            raise ValueError(
                f"input has shape {tuple(u.shape)}: must be {shape} with d_model={self.d_model}; "
                "transpose it or change d_model"
            )

    def _require_state(self, state: Tensor, batch: int) -> None:
        shape = (batch, *self.state_shape)
        if state.shape != shape or not state.is_complex():
            raise ValueError(
                f"state is {state.dtype} of shape {tuple(state.shape)}: must be complex of "
                f"{shape}; begin with initial_state({batch})"
            )


class S4D(DiagonalLayer):
    """A diagonal state space layer: each channel convolved with its kernel, plus D·u.

    Parameters
    ----------
    d_model : int
        Channels.
    conv : {"fft", "dft"}
        See `convolve`.
    **kernel
        For `S4DKernel`: ``d_state``, ``init``, ``discretization``, ``dt_min``, ``dt_max``.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(self, d_model: int, *, conv: str = "fft", **kernel: Any) -> None:
        super().__init__()
        if conv not in CONVOLUTIONS:
            raise ValueError(f"conv={conv!r}: must be 'fft' or 'dft'; choose one")
        self.d_model, self.conv = d_model, conv
        self.kernel = S4DKernel(d_model, **kernel)
        self.d = nn.Parameter(torch.randn(d_model))

    def forward(self, u: Tensor) -> Tensor:
        """Return the response to whole sequences that start from rest.

        Parameters
        ----------
        u : torch.Tensor
            (batch, d_model, length).

        Returns
        -------
        torch.Tensor
            (batch, d_model, length).

        Raises
        ------
        ValueError
            If the channels are not ``d_model``, or there is no sample.
        """
        self._require(u, 3, "(batch, d_model, length)")
        return convolve(u, self.kernel(u.shape[-1]), self.conv) + self.d[:, None] * u

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.d_model, self.kernel.d_state // 2

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response to one sample: the recurrent form of `forward`.

        Parameters
        ----------
        u : torch.Tensor
            (batch, d_model).
        state : torch.Tensor
            (batch, d_model, d_state/2) complex, from `initial_state` or the last step.

        Returns
        -------
        y, state : torch.Tensor
            (batch, d_model) and the next state.

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        self._require(u, 2, "(batch, d_model)")
        self._require_state(state, len(u))
        log_a, b = self.kernel.discretize()
        # Rounding the state is harmless; a rounded Ā would be wrong the same way at every step.
        state = (log_a.exp() * state + b * u[..., None]).to(state.dtype)
        c = torch.view_as_complex(self.kernel.c).to(state.dtype)
        y = 2 * torch.einsum("bhn,hn->bh", state, c).real
        return y.to(u.dtype) + self.d * u, state


class S4DBlock(nn.Module):
    """x + GLU(linear(dropout(GELU(S4D(norm(x)))))), (batch, d_model, length) to the same.

    Parameters
    ----------
    d_model : int
    dropout : float
        Share of activations dropped in training.
    make_layer : callable
        In place of `S4D`: returns a layer of its shapes for ``d_model`` and **layer.
    **layer
        For `S4D`, or what stands in its place.
    """

    def __init__(
        self,
        d_model: int,
        *,
        dropout: float = 0.0,
        make_layer: Callable[..., nn.Module] = S4D,
        **layer: Any,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.layer = make_layer(d_model, **layer)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output of the same shape."""
        y = self.layer(self.norm(x.mT).mT)
        y = self.mix(self.dropout(functional.gelu(y)).mT)
        return x + functional.glu(y, -1).mT


class S4DModel(nn.Module):
    """Encoder, blocks, norm, mean over time, decoder.

    Parameters
    ----------
    d_input, d_output : int
        Channels of the sequences; classes or targets.
    n_layers : int
        Blocks.
    d_model : int
        Channels inside.
    pool : bool
        Whether the outputs are averaged over time; else there is one for each sample.
    **block
        For `S4DBlock`.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        d_input: int,
        d_output: int,
        n_layers: int = 4,
        *,
        d_model: int = 64,
        pool: bool = True,
        **block: Any,
    ) -> None:
        super().__init__()
        for name, value in (("d_input", d_input), ("d_output", d_output), ("n_layers", n_layers)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: must be a positive int; raise it")
        self.d_input, self.pool = d_input, pool
        self.encoder = nn.Linear(d_input, d_model)
        self.blocks = nn.Sequential(*(S4DBlock(d_model, **block) for _ in range(n_layers)))
        self.norm = nn.LayerNorm(d_model)
        self.decoder = nn.Linear(d_model, d_output)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of sequences.

        Parameters
        ----------
        x : torch.Tensor
            (batch, d_input, length).

        Returns
        -------
        torch.Tensor
            (batch, d_output), or (batch, d_output, length) without pooling.

        Raises
        ------
        ValueError
            If the channels are not ``d_input``.
        """
        if x.ndim != 3 or x.shape[1] != self.d_input:
            raise ValueError(
                f"input has shape {tuple(x.shape)}: must be (batch, d_input, length) with "
                f"d_input={self.d_input}; transpose it or change d_input"
            )
        y = self.norm(self.blocks(self.encoder(x.mT).mT).mT)
        out: Tensor = self.decoder(y.mean(1)) if self.pool else self.decoder(y).mT
        return out


def parameter_groups(
    model: nn.Module, lr: float, *, ssm_lr: float = 1e-3, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: A, B and Δ of every system, then the rest.

    The first learn slower and do not decay: they set time scales, which are not to tend to 0.

    Parameters
    ----------
    model : torch.nn.Module
    lr, weight_decay : float
        Of all other parameters.
    ssm_lr : float
        Of A, B and Δ.

    Raises
    ------
    ValueError
        If ``ssm_lr`` is not positive or exceeds ``lr``.
    """
    if not 0 < ssm_lr <= lr:
        raise ValueError(
            f"ssm_lr={ssm_lr}: must be positive and at most lr={lr}; lower it, or give both"
        )
    systems = [module for module in model.modules() if isinstance(module, DiagonalSystem)]
    slow = [p for s in systems for p in (s.log_dt, s.log_neg_real, s.imag, s.b)]
    chosen = {id(p) for p in slow}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        {"params": slow, "lr": ssm_lr, "weight_decay": 0.0},
        {"params": rest, "lr": lr, "weight_decay": weight_decay},
    ]
