"""Deep neural mixture models: densities as mixtures of networks whose integrals are held at 1.

Source: Trentin 2023, Neural Processing Letters 55, doi 10.1007/s11063-023-11196-2,
arXiv 2012.03391.
"""

from sat.methods.dnmm.integrators import (
    BoxIntegrator,
    ImportancePool,
    TensorTrapezoid,
    Trapezoid1D,
)
from sat.methods.dnmm.model import DNMM, dnmm_loss
from sat.methods.dnmm.selection import Candidate, Score, draw_candidates, select_dnmm
from sat.methods.dnmm.truths import GEVMixture, GumbelMixture, integrated_squared_error

__all__ = [
    "DNMM",
    "BoxIntegrator",
    "Candidate",
    "GEVMixture",
    "GumbelMixture",
    "ImportancePool",
    "Score",
    "TensorTrapezoid",
    "Trapezoid1D",
    "dnmm_loss",
    "draw_candidates",
    "integrated_squared_error",
    "select_dnmm",
]
