"""Modes of models, and which of them stay from one order to the next."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from sat.methods.next_lf.irf import require_domain
from sat.methods.next_lf.pencil import StateSpace
from sat.methods.problems.scaling import scaled_product

MAX_DAMPING = 0.2
"""Ratios above it are no vibration of a structure."""


@dataclass(frozen=True, eq=False)
class Modes:
    """Modes by rising frequency, one of each conjugate pair.

    Parameters
    ----------
    freq_hz, damping : torch.Tensor
        (m,) float64; damping as a ratio.
    shapes : torch.Tensor
        (m, P) complex128.
    """

    freq_hz: Tensor
    damping: Tensor
    shapes: Tensor

    def __len__(self) -> int:
        return len(self.freq_hz)


@dataclass(frozen=True, eq=False)
class StableMode:
    """What models of several orders agree on.

    Parameters
    ----------
    freq_hz, damping : float
        Medians over the orders.
    shape : torch.Tensor
        (P,) float64, of the middle order, its largest entry 1.
    members : int
        How many orders have it.
    """

    freq_hz: float
    damping: float
    shape: Tensor
    members: int


def mac(a: Tensor, b: Tensor) -> Tensor:
    """Return the modal assurance criterion ``|a^H b|² / (a^H a b^H b)``, 1 if shapes are one.

    Parameters
    ----------
    a, b : torch.Tensor
        (…, P), real or complex; leading axes are broadcast: ``mac(a[:, None], b)`` is the matrix.

    Returns
    -------
    torch.Tensor
        (…) float64.

    Raises
    ------
    ValueError
        If the numbers of channels differ, or a shape is 0 or not finite.
    """
    if a.shape[-1:] != b.shape[-1:] or not a.ndim:
        raise ValueError(
            f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}: both must be (…, P)"
        )
    a, b = a.to(torch.complex128), b.to(torch.complex128)
    norms = [(x.abs().square()).sum(-1) for x in (a, b)]
    if not all(bool((x.isfinite() & (x > 0)).all()) for x in norms):
        raise ValueError("a shape is 0 or not finite: has no direction to compare")
    return (a.conj() * b).sum(-1).abs().square() / (norms[0] * norms[1])


def poles_to_modes(
    system: StateSpace,
    dt: float | None = None,
    *,
    domain: str = "z",
    window_decay: float = 0.0,
    max_damping: float = MAX_DAMPING,
) -> Modes:
    """Return the modes of a model: generalised eigenpairs ``A x = p E x``, shapes ``C x``.

    Poles that do not decay are left out, not mirrored.

    Parameters
    ----------
    system : StateSpace
    dt : float, optional
        Seconds between samples, for ``domain="z"``, whose poles are exp(l dt).
    domain : {"z", "s"}
    window_decay : float
        a, in 1/s, of the window that the responses had; its part of the damping is taken off.
    max_damping : float
        Ratios up to this are kept.

    Returns
    -------
    Modes

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    require_domain(domain)
    if domain == "z" and (dt is None or not 0 < dt < math.inf):
        raise ValueError(f"dt={dt}: must be positive and finite for domain='z', in seconds")
    if not 0 < max_damping < 1:
        raise ValueError(f"max_damping={max_damping}: must be in (0, 1), a ratio")
    (above, below), vectors = linalg.eig(
        system.A.numpy(), system.E.numpy(), homogeneous_eigvals=True
    )
    finite = (below != 0) & (above != 0)
    poles = above[finite] / below[finite]
    if domain == "z":
        poles = np.log(poles) / dt
    poles = poles + window_decay
    freq = abs(poles) / (2 * math.pi)
    damping = -poles.real / np.maximum(abs(poles), np.finfo(float).tiny)
    kept = (poles.imag > 0) & (damping > 0) & (damping <= max_damping)
    kept = np.flatnonzero(kept)[np.argsort(freq[kept], kind="stable")]
    states = torch.from_numpy(vectors[:, finite][:, kept].astype(complex))
    shapes = scaled_product(system.C.to(torch.complex128), states).mT
    return Modes(torch.from_numpy(freq[kept]), torch.from_numpy(damping[kept]), shapes)


def stable_poles(
    candidates: Sequence[Modes],
    freq_tol: float = 0.01,
    damping_tol: float = 0.1,
    mac_min: float = 0.95,
) -> list[Tensor]:
    """Return which poles the next lower order has, too: (m,) bool of each order.

    Parameters
    ----------
    candidates : sequence of Modes
        By rising order; of the first none is stable.
    freq_tol, damping_tol : float
        Largest relative changes.
    mac_min : float
        Shapes must be above it.
    """
    stable = [torch.zeros(len(modes), dtype=torch.bool) for modes in candidates]
    for lower, upper, mask in zip(candidates, candidates[1:], stable[1:], strict=False):
        if len(lower) and len(upper):
            near = _change(upper.freq_hz, lower.freq_hz) <= freq_tol
            near &= _change(upper.damping, lower.damping) <= damping_tol
            near &= mac(upper.shapes[:, None], lower.shapes) > mac_min
            mask.copy_(near.any(1))
    return stable


def _change(new: Tensor, old: Tensor) -> Tensor:
    return (new[:, None] / old - 1).abs()


def stabilise(
    candidates: Sequence[Modes],
    freq_tol: float = 0.01,
    damping_tol: float = 0.1,
    mac_min: float = 0.95,
    *,
    group_freq: float = 0.02,
    group_mac: float = 0.9,
    min_members: int = 8,
) -> list[StableMode]:
    """Return the modes that enough orders agree on, by rising frequency.

    A stable pole (see `stable_poles`) joins the group whose last member is nearest in frequency
    among those that it fits. An order may have two, where it models noise by a second pole beside a
    mode's; it counts once.

    Parameters
    ----------
    candidates : sequence of Modes
        By rising order.
    freq_tol, damping_tol, mac_min : float
        Of `stable_poles`.
    group_freq, group_mac : float
        Largest relative change from a group's last member, and what shapes must be above.
    min_members : int
        Orders that a mode needs.

    Raises
    ------
    ValueError
        If a tolerance is not positive, or a number of another kind.
    """
    if not isinstance(min_members, int) or min_members < 1:
        raise ValueError(f"min_members={min_members!r}: must be an int of at least 1")
    for name, value in (
        ("freq_tol", freq_tol), ("damping_tol", damping_tol), ("group_freq", group_freq),
    ):  # fmt: skip
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: must be positive and finite, a relative change")
    groups: list[list[Member]] = []
    stable = stable_poles(candidates, freq_tol, damping_tol, mac_min)
    for order, (modes, mask) in enumerate(zip(candidates, stable, strict=True)):
        for i in mask.nonzero().flatten().tolist():
            member = Member(
                order, float(modes.freq_hz[i]), float(modes.damping[i]), modes.shapes[i]
            )
            fitting = [
                (change, g)
                for g, (*_, last) in enumerate(groups)
                if (change := abs(member.freq_hz / last.freq_hz - 1)) <= group_freq
                and float(mac(member.shape, last.shape)) > group_mac
            ]
            if fitting:
                groups[min(fitting)[1]].append(member)
            else:
                groups.append([member])
    found = [_of_group(group) for group in groups]
    found = [mode for mode in found if mode.members >= min_members]
    if not found:
        warnings.warn(
            f"no mode is stable over {min_members} orders: record for longer, or look at the band",
            stacklevel=2,
        )
    return sorted(found, key=lambda mode: mode.freq_hz)


class Member(NamedTuple):
    """A stable pole of a group; of which order, by number."""

    order: int
    freq_hz: float
    damping: float
    shape: Tensor


def _of_group(group: list[Member]) -> StableMode:
    shape = group[len(group) // 2].shape
    shape = (shape / shape[shape.abs().argmax()]).real
    freq = float(np.median([member.freq_hz for member in group]))
    damping = float(np.median([member.damping for member in group]))
    return StableMode(freq, damping, shape, len({member.order for member in group}))
