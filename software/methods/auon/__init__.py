"""AuON: a scalar in place of Muon's orthogonalisation, and how little it does.

Source: Maity 2025, arXiv 2509.24320; its formulas are those of the first version, its defaults
those of the authors' code (ryyzn9/AuON).
"""

from sat.methods.auon.optimizer import AuON, HybridAuON, auon_direction, hybrid_direction
from sat.methods.auon.scalar import cosh_rms, cosh_rms_bounds, orthogonality
from sat.methods.problems.orthogonal import newton_schulz
from sat.methods.problems.parameters import split_parameters

__all__ = [
    "AuON",
    "HybridAuON",
    "auon_direction",
    "cosh_rms",
    "cosh_rms_bounds",
    "hybrid_direction",
    "newton_schulz",
    "orthogonality",
    "split_parameters",
]
