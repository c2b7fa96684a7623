"""S5: one system with as many inputs and outputs as channels (Smith et al., arXiv 2208.04933)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sat.methods.s4_ptd.diagonalize import (
    Diagonalization,
    diagonalize_legs,
    diagonalize_normal_part,
)
from sat.methods.s4d import S4DModel, initial_modes
from sat.methods.s4d.kernel import DiagonalSystem, draw_log_steps
from sat.methods.s4d.layer import DiagonalLayer

INITS = ("ptd", "normal", "lin")
CHUNK = 16


class S5(DiagonalLayer, DiagonalSystem):
    """x' = A·x + B·u, y = 2·Re(C·x) + D·u, A diagonal, every channel an input and an output.

    Parameters are real: ``log_dt``, ``log_neg_real`` and ``imag`` (modes,), ``b`` (modes,
    d_model, 2) and ``c`` (d_model, modes, 2), the last axis being real and imaginary part, ``d``
    (d_model,). Modes are those of imaginary part 0 or above. B and C start real and normal, of
    variance one over their inputs, in the basis of HiPPO; b and c share each mode's scale evenly.

    States come of products, of chunks of the inputs with powers of the modes.

    Parameters
    ----------
    d_model : int
        Channels.
    d_state : int
        State size, conjugates included.
    blocks : int
        HiPPO matrices of d_state/blocks states on the diagonal.
    init : {"ptd", "normal", "lin"}
        HiPPO-LegS perturbed; its normal part; or S4D-Lin's modes, B and C then normal in the
        basis of the modes.
    eps, perturbation
        For `perturb_then_diagonalize` of a block; all blocks share E.
    dt_min, dt_max : float
        Steps of modes start log-uniform between them, in the system's unit of time per sample.
    chunk : int
        Samples in a chunk, at least 2.

    Attributes
    ----------
    diagonalization : Diagonalization or None
        Of a block, with its condition; its ``b`` is 0. None for "lin".

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        blocks: int = 1,
        init: str = "ptd",
        eps: float = 0.1,
        perturbation: str | Tensor = "gaussian",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("d_model", d_model, 1),
            ("blocks", blocks, 1),
            ("chunk", chunk, 2),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: must be an int of at least {least}; raise it")
        if not isinstance(d_state, int) or d_state % blocks or d_state < 2 * blocks:
            raise ValueError(
                f"d_state={d_state!r}: must be a multiple of blocks={blocks} with two states a "
                "block; change either"
            )
        if init not in INITS:
            raise ValueError(f"init={init!r}: must be one of {', '.join(INITS)}; choose one")
        self.d_model, self.d_state, self.chunk = d_model, d_state, chunk
        self.diagonalization: Diagonalization | None = None
        n, width = d_state // blocks, (d_model, d_state)
        if init == "lin":
            modes = initial_modes("lin", n)
        elif init == "normal":
            self.diagonalization = diagonalize_normal_part(n, torch.zeros(n))
        else:
            self.diagonalization = diagonalize_legs(n, torch.zeros(n), eps, perturbation)
        if self.diagonalization is not None:
            modes = self.diagonalization.modes[self.diagonalization.kept()[0]]
        modes, kind = modes.repeat(blocks), torch.get_default_dtype()
        self.log_dt = nn.Parameter(draw_log_steps(len(modes), dt_min, dt_max))
        self.log_neg_real = nn.Parameter(torch.log(-modes.real).to(kind))
        self.imag = nn.Parameter(modes.imag.to(kind, copy=True))
        self.b = nn.Parameter(torch.empty(len(modes), d_model, 2))
        self.c = nn.Parameter(torch.empty(d_model, len(modes), 2))
        self.d = nn.Parameter(torch.randn(d_model))
        if init == "lin":
            b, c = (torch.randn(len(modes), d_model, dtype=torch.complex128) for _ in width)
            self._share(b / math.sqrt(d_model), c.mT / math.sqrt(d_state))
        else:
            b, c = (torch.randn(d_state, d_model, dtype=torch.float64) for _ in width)
            self.set_system(b / math.sqrt(d_model), c.mT / math.sqrt(d_state))

    @torch.no_grad()
    def set_system(self, b: Tensor, c: Tensor) -> None:
        """Let inputs and outputs be B and C in the basis of HiPPO, as long as modes are as drawn.

        Parameters
        ----------
        b, c : torch.Tensor
            (d_state, d_model) and (d_model, d_state), real; blocks lie one after the other.

        Raises
        ------
        ValueError
            If they have other shapes or are complex, or ``init`` is "lin", which has no such basis.
        """
        start, states, width = self.diagonalization, self.d_state, self.d_model
        if start is None:
            raise ValueError("init='lin': has no basis but its modes; set parameters b and c")
        for name, value, shape in (("b", b, (states, width)), ("c", c, (width, states))):
            if value.shape != shape or value.is_complex():
                raise ValueError(
                    f"{name} is {value.dtype} of shape {tuple(value.shape)}: must be real of "
                    f"{shape}; give it in HiPPO's basis"
                )
        n = len(start.modes)
        chosen, factor = start.kept()
        # Blocks are alike: theirs are further columns of one system's inputs.
        inputs = start.inputs(b.view(-1, n, width).transpose(0, 1).flatten(1))[chosen]
        inputs = (inputs * factor[:, None]).view(len(chosen), -1, width).transpose(0, 1)
        outputs = start.outputs(c.view(width, -1, n))[..., chosen]
        self._share(inputs.flatten(0, 1), outputs.flatten(1))

    @torch.no_grad()
    def _share(self, b: Tensor, c: Tensor) -> None:
        """Make parameters of b (modes, d_model) and c (d_model, modes), of the same size a mode."""
        size_b, size_c = b.abs().square().mean(1).sqrt(), c.abs().square().mean(0).sqrt()
        scale = (size_c / size_b).sqrt()
        scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)
        self.b.copy_(torch.view_as_real(b * scale[:, None]))
        self.c.copy_(torch.view_as_real(c / scale))

    def discretize(self) -> tuple[Tensor, Tensor]:
        """Return the system under a zero-order hold, x_l = Ā·x_{l−1} + B̄·u_l.

        Returns
        -------
        log_a, b : torch.Tensor
            log Ā (modes,) and B̄ (modes, d_model), complex128.
        """
        a = self.a
        z = self.log_dt.double().exp() * a
        return z, (torch.expm1(z) / a)[:, None] * torch.view_as_complex(self.b.double())

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
        batch, _, length = u.shape
        if length < 1:
            raise ValueError("length=0: must be a positive int; give at least one sample")
        log_a, b = self.discretize()
        # Rounded once, as B̄: real parts of all modes, then imaginary parts.
        inputs = torch.cat([b.real, b.imag]).to(u.dtype) @ u.transpose(0, 1).flatten(1)
        states = self._states(log_a, torch.complex(*inputs.view(2, -1, batch, length)))
        parts = torch.cat([states.real, states.imag]).flatten(1)
        y = (self._outputs() @ parts).view(self.d_model, batch, length)
        return y.transpose(0, 1) + self.d[:, None] * u

    def _outputs(self) -> Tensor:
        """Return C for parts of the states, (d_model, 2·modes): of 2·Re(C·x)."""
        return torch.cat([2 * self.c[..., 0], -2 * self.c[..., 1]], 1)

    def _states(self, log_a: Tensor, v: Tensor) -> Tensor:
        """Return x_l = Σ_{j ≤ l} Ā^{l−j}·v_j of (modes, batch, length), by products over chunks."""
        modes, batch, length = v.shape
        size = min(length, self.chunk)
        place = torch.arange(size, device=v.device)
        # Only powers taken in float64 keep their phases in float32.
        power = (place[None, :] - place[:, None]).clamp(min=0)
        passed = torch.exp(log_a[:, None, None] * power).triu().to(v.dtype)
        count = -(-length // size)
        v = nn.functional.pad(v, (0, count * size - length)).view(modes, batch * count, size)
        states = (v @ passed).view(modes, batch, count, size)
        if count > 1:
            # What a chunk leaves behind is the state of a system that steps chunk by chunk.
            carried = self._states(size * log_a, states[..., :-1, -1])
            decay = torch.exp(log_a[:, None] * (place + 1)).to(v.dtype)[:, None, None]
            later = states[..., 1:, :] + carried[..., None] * decay
            states = torch.cat([states[..., :1, :], later], 2)
        return states.flatten(2)[..., :length]

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (len(self.imag),)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the response to one sample: the recurrent form of `forward`.

        Parameters
        ----------
        u : torch.Tensor
            (batch, d_model).
        state : torch.Tensor
            (batch, modes) complex, from `initial_state` or the last step.

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
        log_a, b = self.discretize()
        inputs = u @ torch.cat([b.real, b.imag]).to(u.dtype).mT
        state = log_a.exp() * state + torch.complex(*inputs.chunk(2, 1))
        # Rounding the state is harmless; a rounded Ā would be wrong the same way at every step.
        state = state.to(self.d.dtype.to_complex())
        y = torch.cat([state.real, state.imag], 1) @ self._outputs().mT
        return y + self.d * u, state

    def extra_repr(self) -> str:
        """Return words for how well the layer's basis is conditioned."""
        return "" if self.diagonalization is None else str(self.diagonalization)


class S5Model(S4DModel):
    """`sat.methods.s4d.S4DModel` with layers of `S5`; arguments of both."""

    def __init__(self, d_input: int, d_output: int, n_layers: int = 4, **options: Any) -> None:
        super().__init__(d_input, d_output, n_layers, make_layer=S5, **options)
