"""Stochastic dimension gradient descent: physics-informed networks in many dimensions.

Source: Hu, Shukla, Karniadakis, Kawaguchi 2024, Neural Networks 176, arXiv 2307.12306.
"""

from sat.methods.problems.jets import Jet, JetMLP
from sat.methods.sdgd.pdes import (
    AllenCahn,
    DimensionwisePDE,
    HJBLog,
    SineGordon,
    TwoBody,
    TwoBodyPoisson,
)
from sat.methods.sdgd.residual import (
    ConstrainedMLP,
    DimensionSampler,
    laplacian_terms,
    require_independent,
    sdgd_residual,
)
from sat.methods.sdgd.trainer import SDGDTrainer

__all__ = [
    "AllenCahn",
    "ConstrainedMLP",
    "DimensionSampler",
    "DimensionwisePDE",
    "HJBLog",
    "Jet",
    "JetMLP",
    "SDGDTrainer",
    "SineGordon",
    "TwoBody",
    "TwoBodyPoisson",
    "laplacian_terms",
    "require_independent",
    "sdgd_residual",
]
