"""Output-only modal analysis: the natural excitation technique and the Loewner framework.

Source: arXiv 2603.01359, Aerospace 13(4) 378, 2026; arXiv 2412.09418.
"""

from sat.methods.next_lf.beams import Structure, cantilever_beam, simulate_ambient
from sat.methods.next_lf.identify import (
    DiagramRow,
    OMAResult,
    era_modes,
    lf_modes,
    next_era,
    next_lf,
    ssi_cov,
    ssi_modes,
)
from sat.methods.next_lf.irf import Spectrum, correlation_irf, irf_spectrum
from sat.methods.next_lf.modes import (
    Modes,
    StableMode,
    mac,
    poles_to_modes,
    stabilise,
    stable_poles,
)
from sat.methods.next_lf.pencil import LoewnerPencil, Pencil, StateSpace, loewner_pencil

__all__ = [
    "DiagramRow",
    "LoewnerPencil",
    "Modes",
    "OMAResult",
    "Pencil",
    "Spectrum",
    "StableMode",
    "StateSpace",
    "Structure",
    "cantilever_beam",
    "correlation_irf",
    "era_modes",
    "irf_spectrum",
    "lf_modes",
    "loewner_pencil",
    "mac",
    "next_era",
    "next_lf",
    "poles_to_modes",
    "simulate_ambient",
    "ssi_cov",
    "ssi_modes",
    "stabilise",
    "stable_poles",
]
