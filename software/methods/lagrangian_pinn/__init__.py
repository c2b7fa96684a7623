"""Lagrangian PINNs: networks that move along the characteristics of convection.

Source: Mojgani, Balajewicz, Hassanzadeh 2023, Computer Methods in Applied Mechanics and Engineering
404, arXiv 2205.02902.
"""

from sat.methods.lagrangian_pinn.exact import (
    burgers_cole_hopf,
    convection_diffusion,
    kolmogorov_n_width,
)
from sat.methods.lagrangian_pinn.models import (
    EulerianPINN,
    FoldError,
    LagrangianPINN,
    lagrangian_residuals,
)
from sat.methods.lagrangian_pinn.training import RELEASED, fit

__all__ = [
    "RELEASED",
    "EulerianPINN",
    "FoldError",
    "LagrangianPINN",
    "burgers_cole_hopf",
    "convection_diffusion",
    "fit",
    "kolmogorov_n_width",
    "lagrangian_residuals",
]
