"""Deep generative neural operators: parametric PDEs without solved examples, and their inverse.

Source: Zang and Koutsourelakis, "DGenNO: a novel physics-aware neural operator for solving forward
and inverse PDE problems based on deep, generative probabilistic modeling", Journal of
Computational Physics 2025, arXiv 2502.06250. Names as there: MultiONet, trunk and branch, virtual
observables, latent beta.
"""

from sat.methods.dgno.inversion import Inversion, invert
from sat.methods.dgno.model import DGNO, fit
from sat.methods.dgno.onet import DeepONet, MultiONet
from sat.methods.dgno.weak import WeakTest, wendland
from sat.methods.problems.darcy import darcy_1d, darcy_2d

__all__ = [
    "DGNO",
    "DeepONet",
    "Inversion",
    "MultiONet",
    "WeakTest",
    "darcy_1d",
    "darcy_2d",
    "fit",
    "invert",
    "wendland",
]
