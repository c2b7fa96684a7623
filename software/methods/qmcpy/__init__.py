"""Randomized low-discrepancy sequences, and kernels whose Gram matrices are fast on them.

Source: Sorokin 2025, arXiv 2502.14256 (QMCPy). The released package of the same name on PyPI is
another one, and not needed.
"""

from sat.methods.qmcpy.construction import cbc_lattice
from sat.methods.qmcpy.digits import interlace, linear_matrix_scramble
from sat.methods.qmcpy.gram import FastGram, Interpolant, kernel_interpolate
from sat.methods.qmcpy.integration import (
    Estimate,
    bayesian_mean,
    cubature,
    gaussian,
    replicated_mean,
    truncated_exponential,
    uniform,
)
from sat.methods.qmcpy.kernels import DSIKernel, SIKernel
from sat.methods.qmcpy.sequences import DigitalNet, Halton, Lattice, PointSequence
from sat.methods.qmcpy.transforms import fftbr, fwht, ifftbr

__all__ = [
    "DSIKernel",
    "DigitalNet",
    "Estimate",
    "FastGram",
    "Halton",
    "Interpolant",
    "Lattice",
    "PointSequence",
    "SIKernel",
    "bayesian_mean",
    "cbc_lattice",
    "cubature",
    "fftbr",
    "fwht",
    "gaussian",
    "ifftbr",
    "interlace",
    "kernel_interpolate",
    "linear_matrix_scramble",
    "replicated_mean",
    "truncated_exponential",
    "uniform",
]
