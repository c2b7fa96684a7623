"""Physics-informed graph neural Galerkin networks.

A graph network on the nodes of a mesh gives the coefficients of a finite-element function; what is
trained is the discrete Galerkin residual, without solutions to learn from, and with unknown
parameters if a few values are known.

Source: Gao, Zahr, Wang 2022, "Physics-informed graph neural Galerkin networks: a unified framework
for solving PDE-governed forward and inverse problems", CMAME 390, arXiv 2107.12146; facts from the
authors' code, Jianxun-Wang/graphGalerkin.
"""

from sat.methods.pi_gnn_galerkin.forms import (
    elasticity,
    navier_stokes,
    nonlinear_diffusion,
    poisson,
)
from sat.methods.pi_gnn_galerkin.graph import ChebConv, GraphNet, scaled_laplacian
from sat.methods.pi_gnn_galerkin.problem import GalerkinProblem, Observations
from sat.methods.pi_gnn_galerkin.space import FemSpace, MixedSpace
from sat.methods.pi_gnn_galerkin.training import Fit, fit

__all__ = [
    "ChebConv",
    "FemSpace",
    "Fit",
    "GalerkinProblem",
    "GraphNet",
    "MixedSpace",
    "Observations",
    "elasticity",
    "fit",
    "navier_stokes",
    "nonlinear_diffusion",
    "poisson",
    "scaled_laplacian",
]
