"""DDSL: simplex meshes as exact Fourier coefficients and anti-aliased, differentiable rasters.

Source: Jiang, Lansigan, Marcus, Nießner 2019, arXiv 1901.11082; Jiang, Wang, Huang, Marcus, Nießner
2019, arXiv 1901.02070.
"""

from sat.methods.nuft_ddsl.integrals import simplex_integral
from sat.methods.nuft_ddsl.layers import SimplexFT, SimplexRaster
from sat.methods.nuft_ddsl.meshes import (
    boundary_to_simplices,
    normalize_vertices,
    simplex_content,
)
from sat.methods.nuft_ddsl.models import SpectralLeNet, SpectralResNet3d
from sat.methods.nuft_ddsl.transform import polygon_ft, simplex_ft

__all__ = [
    "SimplexFT",
    "SimplexRaster",
    "SpectralLeNet",
    "SpectralResNet3d",
    "boundary_to_simplices",
    "normalize_vertices",
    "polygon_ft",
    "simplex_content",
    "simplex_ft",
    "simplex_integral",
]
