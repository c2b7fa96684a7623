"""Adam in few coordinates of a fixed orthogonal basis: low-rank training without an SVD.

Source: arXiv 2505.17967 (2025; later versions: "FFT-based Dynamic Subspace Selection").
"""

from sat.methods.dct_lowrank.adamw import DCTAdamW
from sat.methods.dct_lowrank.base import state_bytes
from sat.methods.dct_lowrank.transform import (
    basis_matrix,
    dct,
    dct_matrix,
    projection_error,
    select_columns,
    svd_error,
)
from sat.methods.dct_lowrank.trion import Trion

__all__ = [
    "DCTAdamW",
    "Trion",
    "basis_matrix",
    "dct",
    "dct_matrix",
    "projection_error",
    "select_columns",
    "state_bytes",
    "svd_error",
]
