"""A beam whose modes are known, and what its sensors record when everything shakes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg, signal
from torch import Tensor

from sat.methods.problems.arguments import require_counts


@dataclass(frozen=True, eq=False)
class Structure:
    """Modes of a structure.

    Parameters
    ----------
    freq_hz, damping : torch.Tensor
        (modes,) float64, frequencies rising; damping as a ratio.
    shapes : torch.Tensor
        (modes, P) float64 at the sensors, for modal masses of 1.
    """

    freq_hz: Tensor
    damping: Tensor
    shapes: Tensor


def cantilever_beam(n_elements: int = 10, f1_hz: float = 3.0, damping: float = 0.02) -> Structure:
    """Return the modes of an Euler-Bernoulli cantilever, by Hermite elements of equal length.

    Parameters
    ----------
    n_elements : int
        Elements; a sensor at each free node, the tip last, measures across the beam.
    f1_hz : float
        The first frequency; stiffness is scaled to it.
    damping : float
        Ratio of every mode, in (0, 1).

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    require_counts(n_elements=n_elements)
    if not 0 < f1_hz < math.inf:
        raise ValueError(f"f1_hz={f1_hz}: must be positive and finite")
    if not 0 < damping < 1:
        raise ValueError(f"damping={damping}: must be in (0, 1), a ratio")
    h = 1 / n_elements
    size = 2 * (n_elements + 1)
    mass, stiffness = np.zeros((size, size)), np.zeros((size, size))
    # Deflection and slope at both ends, consistent mass; all per unit of mass and stiffness.
    m = h / 420 * np.array(
        [[156, 22 * h, 54, -13 * h], [22 * h, 4 * h * h, 13 * h, -3 * h * h],
         [54, 13 * h, 156, -22 * h], [-13 * h, -3 * h * h, -22 * h, 4 * h * h]]
    )  # fmt: skip
    k = h**-3 * np.array(
        [[12, 6 * h, -12, 6 * h], [6 * h, 4 * h * h, -6 * h, 2 * h * h],
         [-12, -6 * h, 12, -6 * h], [6 * h, 2 * h * h, -6 * h, 4 * h * h]]
    )  # fmt: skip
    for first in range(0, size - 2, 2):
        mass[first : first + 4, first : first + 4] += m
        stiffness[first : first + 4, first : first + 4] += k
    squares, vectors = linalg.eigh(stiffness[2:, 2:], mass[2:, 2:])
    freq = f1_hz * np.sqrt(squares / squares[0])
    shapes = vectors[::2].T
    return Structure(
        torch.from_numpy(freq),
        torch.full((len(freq),), damping, dtype=torch.float64),
        torch.from_numpy(shapes.copy()),
    )


def simulate_ambient(
    structure: Structure,
    fs: float,
    seconds: float,
    snr_db: float | None = None,
    n_modes: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Return accelerations under independent white forces at all sensors, from rest long before.

    Forces are held over a sample, for which modes are discretised exactly.

    Parameters
    ----------
    structure : Structure
    fs : float
        Samples a second.
    seconds : float
    snr_db : float, optional
        Power of each channel over that of the white noise it gets, in dB; no noise without it.
    n_modes : int, optional
        The first modes that respond, all without it; all of them below fs / 2.
    seed : int
        Of forces and noise.

    Returns
    -------
    torch.Tensor
        (P, fs seconds) float64.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or a mode would alias.
    """
    if not 0 < fs < math.inf or not 0 < seconds < math.inf or round(fs * seconds) < 2:
        raise ValueError(f"fs={fs}, seconds={seconds}: must be positive, two samples or more")
    count = len(structure.freq_hz) if n_modes is None else n_modes
    if not isinstance(count, int) or not 1 <= count <= len(structure.freq_hz):
        raise ValueError(f"n_modes={n_modes}: must be from 1 to {len(structure.freq_hz)}")
    if not float(structure.freq_hz[count - 1]) < fs / 2:
        raise ValueError(
            f"n_modes={count}: mode {count}, at {float(structure.freq_hz[count - 1]):.4g} Hz, "
            f"aliases at fs={fs}; take fewer modes, or sample faster"
        )
    if snr_db is not None and not math.isfinite(snr_db):
        raise ValueError(f"snr_db={snr_db}: must be finite, or None for no noise")
    omega = 2 * math.pi * structure.freq_hz[:count].numpy()
    damping = structure.damping[:count].numpy()
    shapes = structure.shapes[:count].numpy()
    # The slowest mode has forgotten the start, to e^-10.
    warm_up = math.ceil(10 * fs / float((omega * damping).min()))
    n = round(fs * seconds)
    rng = np.random.default_rng(seed)
    forces = shapes @ rng.standard_normal((shapes.shape[1], warm_up + n))
    modal = np.empty((count, n))
    for i, (w, zeta) in enumerate(zip(omega, damping, strict=True)):
        top, bottom, _ = signal.cont2discrete(
            ([1.0, 0.0, 0.0], [1.0, 2 * zeta * w, w * w]), 1 / fs, method="zoh"
        )
        modal[i] = signal.lfilter(top[0], bottom, forces[i])[warm_up:]
    y = shapes.T @ modal
    if snr_db is not None:
        noise = y.std(1, keepdims=True) * 10 ** (-snr_db / 20)
        y = y + noise * rng.standard_normal(y.shape)
    return torch.from_numpy(y)
