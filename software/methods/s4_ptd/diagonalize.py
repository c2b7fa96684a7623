"""The method: perturb a state matrix, then diagonalise it. All of it is complex128."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from sat.methods.s4d.hippo import hippo_legs, normal_eigenvectors, normal_part

PERTURBATIONS = ("gaussian", "optimised")
WORST_CONDITION = 1e12
"""Above it, less than four of float64's sixteen digits are left of what goes through V."""
_LR = 0.005


@dataclass(frozen=True)
class Diagonalization:
    """A system x' = (A + E)·x + b·u in the basis of its eigenvectors V.

    Attributes
    ----------
    modes : torch.Tensor
        (n,) complex128: eigenvalues of A + E, per unit of time.
    vectors : torch.Tensor
        (n, n) complex128: V, columns of length 1.
    b : torch.Tensor
        (n,) or (n, inputs) complex128: V⁻¹·b.
    condition : float
        κ(V), spectral: what errors of the basis are multiplied by.
    norm : float
        ‖E‖₂.
    perturbation : torch.Tensor
        (n, n) E, float64 or complex128.
    """

    modes: Tensor
    vectors: Tensor
    b: Tensor
    condition: float
    norm: float
    perturbation: Tensor

    def inputs(self, b: Tensor) -> Tensor:
        """Return V⁻¹·b of (n,) or (n, inputs), complex128 of its shape.

        Raises
        ------
        ValueError
            If its first axis is not n.
        """
        if b.shape[:1] != self.modes.shape:
            raise ValueError(
                f"b has shape {tuple(b.shape)}: its first axis must be the state size "
                f"{len(self.modes)}; give inputs in the basis of A"
            )
        return torch.linalg.solve(self.vectors, b.detach().to(torch.complex128))

    def outputs(self, c: Tensor) -> Tensor:
        """Return c·V of output rows c.

        Parameters
        ----------
        c : torch.Tensor
            (..., n), in the basis of A.

        Returns
        -------
        torch.Tensor
            (..., n) complex128, in that of the modes.

        Raises
        ------
        ValueError
            If its last axis is not n.
        """
        if c.shape[-1:] != self.modes.shape:
            raise ValueError(
                f"c has shape {tuple(c.shape)}: its last axis must be the state size "
                f"{len(self.modes)}; give outputs in the basis of A"
            )
        # Not written as a product: the sum over modes cancels up to κ, and needs all 53 bits.
        return (c.to(torch.complex128)[..., :, None] * self.vectors).sum(-2)

    def __str__(self) -> str:
        return f"n={len(self.modes)}, norm={self.norm:.3g}, condition={self.condition:.3g}"

    def kept(self) -> tuple[Tensor, Tensor]:
        """Return which modes stand for all, and what their weights take, for y = 2·Re Σ.

        Returns
        -------
        chosen : torch.Tensor
            int64: places of modes of imaginary part above 0, ascending, after real ones.
        factor : torch.Tensor
            float64: 1, and a half for real modes, which have no conjugate.

        Raises
        ------
        ValueError
            If A or E was complex: modes do not come in conjugate pairs then.
        """
        if self.perturbation.is_complex():
            raise ValueError(
                "A + E is complex: the modes of a system of real outputs come in conjugate pairs; "
                "give a real matrix and a real perturbation"
            )
        imag = self.modes.imag
        chosen = torch.argsort(imag)[int((imag < 0).sum()) :]
        return chosen, torch.where(imag[chosen] == 0, 0.5, 1.0).to(torch.float64)


def legs_input(n: int) -> Tensor:
    """Return the input of HiPPO-LegS, b_i = √(2i + 1): (n,) float64.

    Raises
    ------
    ValueError
        If ``n`` is no int of at least 2.
    """
    if not isinstance(n, int) or n < 2:
        raise ValueError(f"d_state={n!r}: must be an int of at least 2; use 64, say")
    return (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()


def diagonalize_legs(n: int, b: Tensor, eps: float, perturbation: str | Tensor) -> Diagonalization:
    """Return HiPPO-LegS of n states perturbed and diagonalised; E from torch's random state."""
    return perturb_then_diagonalize(hippo_legs(n), b, eps=eps, perturbation=perturbation)


def diagonalize_normal_part(n: int, b: Tensor) -> Diagonalization:
    """Return the same of its normal part, of which E = P·Pᵀ makes it: S4D-LegS and plain S5."""
    frequencies, vectors = normal_eigenvectors(n)
    # Rounding spoils the symmetry, by which an odd n has one real mode.
    frequencies = (frequencies - frequencies.flip(0)) / 2
    modes = torch.complex(torch.full_like(frequencies, -0.5), frequencies)
    inputs = (vectors.conj()[:, :, None] * b.view(n, 1, -1)).sum(0).view(b.shape)
    e = normal_part(n) - hippo_legs(n)
    return Diagonalization(modes, vectors, inputs, 1.0, float(torch.linalg.matrix_norm(e, 2)), e)


def perturb_then_diagonalize(
    a: Tensor,
    b: Tensor,
    *,
    eps: float = 0.1,
    perturbation: str | Tensor = "gaussian",
    gamma: float = 1e3,
    steps: int = 300,
    generator: torch.Generator | None = None,
) -> Diagonalization:
    """Diagonalise A + E for a small E (section 4 and equation 10).

    The transfer function of e_k is that of A within (2·ln n + 4)·‖E‖₂ at all frequencies, to first
    order, for HiPPO-LegS.

    Parameters
    ----------
    a : torch.Tensor
        (n, n) with eigenvalues left of the imaginary axis; n at least 2.
    b : torch.Tensor
        (n,) or (n, inputs).
    eps : float
        ‖E‖₂; of what "optimised" starts from.
    perturbation : {"gaussian", "optimised"} or torch.Tensor
        Independent normal entries, scaled to ``eps``; the same, then `steps` of Adam on
        κ(V) + gamma·‖E‖₂, the best of which is taken; or a direction (n, n), scaled to ``eps``.
    gamma : float
        What a unit of ‖E‖₂ costs, in units of κ(V).
    steps : int
    generator : torch.Generator, optional
        Source of the entries.

    Returns
    -------
    Diagonalization

    Raises
    ------
    ValueError
        If an argument breaks its rule; if ``eps`` is so large that a mode does not decay, or so
        small that κ(V) exceeds 1e12.
    FloatingPointError
        If the gradient of κ(V) overflows, as float16 products do.

    Warns
    -----
    UserWarning
        If A is normal: its own eigenvectors are the best basis.

    Source
    ------
    arXiv 2310.01698; the weight ``gamma`` and the optimiser are ours.
    """
    _require(a, b, eps, perturbation, gamma, steps)
    kind = torch.complex128 if a.is_complex() else torch.float64
    a = a.detach().to(kind)
    values = torch.linalg.svdvals(a)
    size, total = float(values[0]), float(values.square().sum())
    # Normal matrices, and no others, have eigenvalues as large as their singular values (Schur).
    if total - float(torch.linalg.eigvals(a).abs().square().sum()) <= 1e-9 * total:
        warnings.warn(
            "a is normal: there is nothing to perturb, its eigenvectors are orthogonal; use them",
            stacklevel=2,
        )
    if isinstance(perturbation, Tensor):
        e = perturbation.detach().to(torch.promote_types(kind, perturbation.dtype))
    else:
        e = torch.randn(a.shape, dtype=kind, generator=generator)
    e = e * (eps / torch.linalg.matrix_norm(e, 2))
    if isinstance(perturbation, str) and perturbation == "optimised":
        e = _optimise(a, e, gamma, steps)
    modes, vectors = torch.linalg.eig(a + e)
    slowest = float(modes.real.max())
    if slowest >= 0:
        raise ValueError(
            f"eps={eps}: a mode of A + E has real part {slowest:.3g}, and must decay; ‖A‖₂ is "
            f"{size:.4g}: lower eps, well below a hundredth of it"
        )
    condition = _condition(vectors)
    if condition > WORST_CONDITION:
        raise ValueError(
            f"eps={eps}: the eigenvectors' condition is {condition:.3g}, and must not exceed "
            f"{WORST_CONDITION:g}, where float64's digits are used up; raise eps"
        )
    inputs = torch.linalg.solve(vectors, b.detach().to(torch.complex128))
    norm = float(torch.linalg.matrix_norm(e, 2))
    return Diagonalization(modes, vectors, inputs, condition, norm, e)


def _condition(vectors: Tensor) -> float:
    values = torch.linalg.svdvals(vectors)
    return float(values[0] / values[-1])


def _optimise(a: Tensor, e: Tensor, gamma: float, steps: int) -> Tensor:
    """Return the best of Adam's steps on κ(V) + gamma·‖E‖₂ among those whose modes decay."""
    # κ does not change with the phases of the columns, which alone makes its gradient exist.
    with torch.enable_grad():
        e = e.clone().requires_grad_()
        adam = torch.optim.Adam([e], lr=_LR)
        best, lowest = e.detach().clone(), math.inf
        for step in range(steps + 1):
            modes, vectors = torch.linalg.eig(a + e)
            values = torch.linalg.svdvals(vectors)
            loss = values[0] / values[-1] + gamma * torch.linalg.matrix_norm(e, 2)
            value = float(loss.detach())
            if value < lowest and float(modes.real.detach().max()) < 0:
                best, lowest = e.detach().clone(), value
            if step == steps:
                break
            adam.param_groups[0]["lr"] = _LR * (1 - step / steps)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            assert e.grad is not None
            if not bool(torch.isfinite(e.grad).all()):
                condition = float(values.detach()[0] / values.detach()[-1])
                raise FloatingPointError(
                    f"step {step} of the optimised perturbation: the gradient of the condition, "
                    f"{condition:.3g}, is not finite; compute its products in more digits than "
                    "float16's, or raise eps"
                )
            adam.step()
    return best


def _require(
    a: Tensor, b: Tensor, eps: float, perturbation: str | Tensor, gamma: float, steps: int
) -> None:
    if a.ndim != 2 or a.shape[0] != a.shape[1] or len(a) < 2:
        raise ValueError(f"a has shape {tuple(a.shape)}: must be (n, n), n at least 2")
    if b.ndim not in (1, 2) or len(b) != len(a):
        raise ValueError(
            f"b has shape {tuple(b.shape)}: must be ({len(a)},) or ({len(a)}, inputs), as a has "
            f"{len(a)} states; give one row a state"
        )
    for name, value in (("a", a), ("b", b)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} has infinities or NaNs: must be finite; check its source")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps={eps}: must be positive and finite; 0.1 serves HiPPO-LegS")
    if isinstance(perturbation, Tensor):
        if perturbation.shape != a.shape or not bool(torch.isfinite(perturbation).all()):
            raise ValueError(
                f"perturbation has shape {tuple(perturbation.shape)}: must be {tuple(a.shape)} and "
                "finite, as a"
            )
        if not bool(perturbation.any()):
            raise ValueError("perturbation is 0: it must have a direction; eps is its norm")
    elif perturbation not in PERTURBATIONS:
        raise ValueError(
            f"perturbation={perturbation!r}: must be 'gaussian', 'optimised' or a matrix; choose"
        )
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma={gamma}: must be finite and not negative; raise it")
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps={steps!r}: must be an int of at least 0; 300 serve")
