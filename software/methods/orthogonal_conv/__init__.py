"""Orthogonal convolutions by a regulariser: L_orth, its laws, and what exists.

Source: Achour, Malgouyres, Mamalet 2022, JMLR 23 (22-0026).
"""

from sat.methods.orthogonal_conv.existence import ExistenceReport, orth_conv_exists
from sat.methods.orthogonal_conv.layers import OrthConv2d, OrthLinear, orth_regularizer
from sat.methods.orthogonal_conv.loss import dense_orth, l_orth, spectral_bound
from sat.methods.orthogonal_conv.operator import conv_orth_residual, conv_singular_values

__all__ = [
    "ExistenceReport",
    "OrthConv2d",
    "OrthLinear",
    "conv_orth_residual",
    "conv_singular_values",
    "dense_orth",
    "l_orth",
    "orth_conv_exists",
    "orth_regularizer",
    "spectral_bound",
]
