"""S4-PTD: the S4D layer with modes, inputs and outputs of a perturbed HiPPO-LegS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sat.methods.s4_ptd.diagonalize import diagonalize_legs, legs_input
from sat.methods.s4d import S4D, S4DModel


class S4PTD(S4D):
    """An S4D layer whose systems start as HiPPO-LegS plus a perturbation, in its own basis.

    Modes, products c̃·b̃ and their split are formed in float64 and rounded once. Outputs start
    normal on the first half of the states, 0 above: products of the last ones cancel beyond what
    float32 holds. E is drawn once, and not learned.

    Parameters
    ----------
    d_model : int
        Channels.
    d_state : int
        State size n of each channel's system. The kernel's own ``d_state`` is n plus the number
        of real modes, each of which takes a place of its own.
    eps, perturbation
        For `perturb_then_diagonalize`; the perturbation must be real.
    dt_min, dt_max : float
        Steps start log-uniform between them, in the system's unit of time per sample.
    conv : {"fft", "dft"}
        See `sat.methods.s4d.convolve`.

    Attributes
    ----------
    diagonalization : Diagonalization
        Where the layer starts, with its condition.

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
        eps: float = 0.1,
        perturbation: str | Tensor = "gaussian",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        conv: str = "fft",
    ) -> None:
        start = diagonalize_legs(d_state, legs_input(d_state), eps, perturbation)
        chosen, _ = start.kept()
        super().__init__(
            d_model, conv=conv, d_state=2 * len(chosen), init=start.modes[chosen],
            dt_min=dt_min, dt_max=dt_max,
        )  # fmt: skip
        self.diagonalization = start
        c = torch.randn(d_model, d_state, dtype=torch.float64)
        c[:, (d_state + 1) // 2 :] = 0
        self.set_outputs(c)

    @torch.no_grad()
    def set_outputs(self, c: Tensor) -> None:
        """Let the channels put out c·x, x the state of HiPPO-LegS, as long as modes are as drawn.

        A mode's root mean square over channels of c̃·b̃ goes into ``kernel.b``, the rest into
        ``kernel.c``.

        Parameters
        ----------
        c : torch.Tensor
            (d_model, d_state) real.

        Raises
        ------
        ValueError
            If it has another shape, or is complex.
        """
        start = self.diagonalization
        shape = self.d_model, len(start.modes)
        if c.shape != shape or c.is_complex():
            raise ValueError(
                f"c is {c.dtype} of shape {tuple(c.shape)}: must be real of {shape}, a row a "
                "channel in HiPPO's basis"
            )
        chosen, factor = start.kept()
        weights = start.outputs(c)[:, chosen] * start.b[chosen] * factor
        size = weights.abs().square().mean(0).sqrt()
        size = torch.where(size == 0, 1.0, size)
        kernel = self.kernel
        kernel.b.copy_(torch.view_as_real(size.expand(shape[0], -1).to(torch.complex128)))
        kernel.c.copy_(torch.view_as_real(weights / size))

    def extra_repr(self) -> str:
        """Return words for how well the layer's basis is conditioned."""
        return str(self.diagonalization)


class S4PTDModel(S4DModel):
    """`sat.methods.s4d.S4DModel` with layers of `S4PTD`; arguments of both."""

    def __init__(self, d_input: int, d_output: int, n_layers: int = 4, **options: Any) -> None:
        super().__init__(d_input, d_output, n_layers, make_layer=S4PTD, **options)
