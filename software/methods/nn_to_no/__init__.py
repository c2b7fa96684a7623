"""Neural networks made neural operators: the same parameters on every discretisation.

Source: Berner, Liu-Schiaffini, Kossaifi, Duruisseaux, Bonev, Azizzadenesheli, Anandkumar,
"Principled approaches for extending neural architectures to function spaces for operator learning",
2025, arXiv 2506.10973.
"""

from sat.methods.nn_to_no.convert import to_operator
from sat.methods.nn_to_no.convolutions import (
    DifferentialConv,
    InterpolatedConv,
    LocalIntegralConv,
    PatchIntegral,
    ResampledLayer,
    SpectralConv,
)
from sat.methods.nn_to_no.integrals import (
    KernelIntegral,
    LowRankIntegral,
    QuadratureAttention,
    QuadratureNorm,
    quadrature_attention,
)
from sat.methods.nn_to_no.mesh import QuadratureMesh, l2
from sat.methods.nn_to_no.resample import FunctionPool, fourier_resample, in_out_interpolation

__all__ = [
    "DifferentialConv",
    "FunctionPool",
    "InterpolatedConv",
    "KernelIntegral",
    "LocalIntegralConv",
    "LowRankIntegral",
    "PatchIntegral",
    "QuadratureAttention",
    "QuadratureMesh",
    "QuadratureNorm",
    "ResampledLayer",
    "SpectralConv",
    "fourier_resample",
    "in_out_interpolation",
    "l2",
    "quadrature_attention",
    "to_operator",
]
