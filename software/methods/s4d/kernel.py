"""The convolution kernel of a diagonal state space model, and its discrete system."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sat.methods.s4d.hippo import initial_modes, require_even

DISCRETIZATIONS = ("zoh", "bilinear")


class DiagonalSystem(nn.Module):
    """Modes, steps and inputs of a diagonal system, which learn slower than what is around it.

    Subclasses have the parameters ``log_dt``, ``log_neg_real``, ``imag`` and ``b``.
    """

    log_dt: nn.Parameter
    log_neg_real: nn.Parameter
    imag: nn.Parameter
    b: nn.Parameter

    @property
    def a(self) -> Tensor:
        """Modes of the continuous system, complex128, per unit of time; real parts negative."""
        return torch.complex(-self.log_neg_real.double().exp(), self.imag.double())


def draw_log_steps(count: int, dt_min: float, dt_max: float) -> Tensor:
    """Return logarithms of ``count`` steps, log-uniform, from torch's random state.

    Raises
    ------
    ValueError
        Unless 0 < dt_min < dt_max, finite.
    """
    if not 0 < dt_min < dt_max < math.inf:
        raise ValueError(
            f"dt_min={dt_min}, dt_max={dt_max}: must be 0 < dt_min < dt_max, finite; "
            "swap or spread them"
        )
    log_min, log_max = math.log(dt_min), math.log(dt_max)
    return log_min + (log_max - log_min) * torch.rand(count)


class S4DKernel(DiagonalSystem):
    """Kernels of ``d_model`` systems x' = A·x + B·u, y = 2·Re(C·x) with A diagonal.

    One mode of each conjugate pair is kept; twice the real part of their sum stands for both
    (section 3). Parameters are real: ``log_dt`` (d_model,), ``log_neg_real`` and ``imag``
    (d_model, d_state/2), ``b`` and ``c`` (d_model, d_state/2, 2), the last being real and
    imaginary part. Real parts of A are negative whatever the parameters are.

    Parameters
    ----------
    d_model : int
        Channels, each with a system of its own.
    d_state : int
        State size of each, conjugates included.
    init : {"lin", "inv", "legs", "real"} or torch.Tensor
        Where A starts: see `initial_modes`; or modes, complex (d_state/2,) or
        (d_model, d_state/2).
    discretization : {"zoh", "bilinear"}
        Zero-order hold, or the trapezoidal rule (section 3).
    dt_min, dt_max : float
        Steps start log-uniform between them, in the system's unit of time per sample.

    Raises
    ------
    ValueError
        If an argument breaks its rule: odd ``d_state``, modes whose real part is not negative.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        init: str | Tensor = "lin",
        discretization: str = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__()
        if not isinstance(d_model, int) or d_model < 1:
            raise ValueError(f"d_model={d_model!r}: must be a positive int; give the channels")
        require_even("d_state", d_state)
        if discretization not in DISCRETIZATIONS:
            raise ValueError(
                f"discretization={discretization!r}: must be 'zoh' or 'bilinear'; choose one"
            )
        log_dt = draw_log_steps(d_model, dt_min, dt_max)
        self.d_model, self.d_state, self.discretization = d_model, d_state, discretization
        a = initial_modes(init, d_state) if isinstance(init, str) else self._given(init)
        shape = d_model, d_state // 2
        a, kind = a.expand(shape), torch.get_default_dtype()
        self.log_dt = nn.Parameter(log_dt)
        self.log_neg_real = nn.Parameter(torch.log(-a.real).to(kind))
        self.imag = nn.Parameter(a.imag.to(kind, copy=True))
        self.b = nn.Parameter(torch.tensor([1.0, 0.0]).repeat(*shape, 1))
        # Variance 1 of the complex number: a half for each part.
        self.c = nn.Parameter(torch.randn(*shape, 2) * math.sqrt(0.5))

    def _given(self, a: Tensor) -> Tensor:
        half = self.d_state // 2
        if a.shape not in ((half,), (self.d_model, half)):
            raise ValueError(
                f"init has shape {tuple(a.shape)}: must be ({half},) or ({self.d_model}, {half}), "
                "one mode of each conjugate pair; drop the conjugates or change d_state"
            )
        a = a.detach().to(torch.complex128)
        if not (bool(torch.isfinite(torch.view_as_real(a)).all()) and bool((a.real < 0).all())):
            raise ValueError(
                f"init has a real part of {float(a.real.max())}: modes must be finite with "
                "negative real parts, else the state grows without bound; negate or shift them"
            )
        return a

    def discretize(self) -> tuple[Tensor, Tensor]:
        """Return the discrete system x_l = Ā·x_{l−1} + B̄·u_l, y_l = 2·Re(C·x_l) (section 3).

        Returns
        -------
        log_a, b : torch.Tensor
            log Ā, on some branch, and B̄: (d_model, d_state/2) complex128.
        """
        # float64 whatever the parameters are: errors of log Ā grow with the power it is raised to.
        dt, a = self.log_dt.double().exp()[:, None], self.a
        z, b = dt * a, torch.view_as_complex(self.b.double())
        if self.discretization == "zoh":
            return z, torch.expm1(z) / a * b
        above, below = 1 + z / 2, 1 - z / 2
        # Ā = 0 has no logarithm: one whose exponential is almost 0 serves.
        above = torch.where(above == 0, 1e-300, above)
        return torch.log(above) - torch.log(below), dt / below * b

    def forward(self, length: int) -> Tensor:
        """Return K_l = 2·Re Σ C·B̄·Ā^l, a Vandermonde product (section 3).

        Parameters
        ----------
        length : int
            Samples l = 0 … length − 1.

        Returns
        -------
        torch.Tensor
            (d_model, length), of the parameters' dtype.

        Raises
        ------
        ValueError
            If ``length`` is not a positive int.
        """
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"length={length!r}: must be a positive int; give at least one sample")
        log_a, b = self.discretize()
        kind = self.c.dtype
        weights = 2 * (torch.view_as_complex(self.c.double()) * b)
        position = torch.arange(length, dtype=torch.float64, device=log_a.device)
        # Only phases taken modulo a turn in float64 keep their digits in float32.
        phase = torch.remainder(log_a.imag[..., None] * position, 2 * math.pi).to(kind)
        decay = (log_a.real[..., None] * position).to(kind).exp()
        # The real part of a complex product is one real product of twice the depth.
        powers = torch.cat([decay * phase.cos(), decay * phase.sin()], 1)
        row = torch.cat([weights.real, -weights.imag], 1).to(kind)
        return torch.bmm(row[:, None], powers)[:, 0]
