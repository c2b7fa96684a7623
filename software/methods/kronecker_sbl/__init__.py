"""Sparse Bayesian learning for supports that are Kronecker products: AM-KroSBL and SVD-KroSBL.

Source: He, Joseph 2023, arXiv 2307.14719.
"""

from sat.methods.kronecker_sbl.dictionary import KroneckerDictionary
from sat.methods.kronecker_sbl.greedy import kron_omp, omp
from sat.methods.kronecker_sbl.posterior import Posterior, posterior
from sat.methods.kronecker_sbl.problems import (
    IRSProblem,
    KroneckerProblem,
    irs_mimo_problem,
    kronecker_problem,
    nmse,
    steering_dictionary,
    support_recovery_rate,
)
from sat.methods.kronecker_sbl.solver import KroSBLResult, kron_sbl, sbl
from sat.methods.kronecker_sbl.updates import am_update, svd_update

__all__ = [
    "IRSProblem",
    "KroSBLResult",
    "KroneckerDictionary",
    "KroneckerProblem",
    "Posterior",
    "am_update",
    "irs_mimo_problem",
    "kron_omp",
    "kron_sbl",
    "kronecker_problem",
    "nmse",
    "omp",
    "posterior",
    "sbl",
    "steering_dictionary",
    "support_recovery_rate",
    "svd_update",
]
