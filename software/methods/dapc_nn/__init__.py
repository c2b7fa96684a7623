"""Deep arbitrary polynomial chaos: networks whose nodes are data-driven orthonormal expansions.

Source: Oladyshkin, Praditia, Kroeker, Mohammadi, Nowak, Otte 2023, arXiv 2306.14753; the basis:
Oladyshkin, Nowak 2012, Reliability Engineering & System Safety 106, 179-190.
"""

from sat.methods.dapc_nn.basis import APCBasis, total_degree_indices
from sat.methods.dapc_nn.functions import Moments, borehole, ishigami, ishigami_moments
from sat.methods.dapc_nn.layer import DaPCLayer
from sat.methods.dapc_nn.network import DaPCNN, fit_apc

__all__ = [
    "APCBasis",
    "DaPCLayer",
    "DaPCNN",
    "Moments",
    "borehole",
    "fit_apc",
    "ishigami",
    "ishigami_moments",
    "total_degree_indices",
]
