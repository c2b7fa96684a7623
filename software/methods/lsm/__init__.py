"""Latent spectral models: PDEs solved in a few latent tokens of every patch, on every scale.

Source: Wu, Hu, Luo, Wang, Long, "Solving high-dimensional PDEs with latent spectral models",
ICML 2023, arXiv 2301.12664. Names as there: tokens, basis operators, patches, heads.
"""

from sat.methods.lsm.block import NeuralSpectralBlock
from sat.methods.lsm.model import LSM, LSM3d
from sat.methods.lsm.points import PointLSM, PointProjection
from sat.methods.problems.darcy import darcy_samples
from sat.methods.problems.fields import relative_l2
from sat.methods.problems.normalizer import FieldNormalizer

__all__ = [
    "LSM",
    "FieldNormalizer",
    "LSM3d",
    "NeuralSpectralBlock",
    "PointLSM",
    "PointProjection",
    "darcy_samples",
    "relative_l2",
]
