"""Structure-preserving operator networks on finite-element spaces.

Source: Bouziani and Boullé 2024, arXiv 2410.01065.
"""

from sat.methods.spon.hierarchy import MeshHierarchy
from sat.methods.spon.network import (
    SPON,
    FeDecoder,
    GraphProcessor,
    LinearProcessor,
    MlpProcessor,
    MultigridProcessor,
    ProjectionEncoder,
)
from sat.methods.spon.space import FeFunction, FeSpace, fe_norm, relative_fe_error
from sat.methods.spon.training import fit

__all__ = [
    "SPON",
    "FeDecoder",
    "FeFunction",
    "FeSpace",
    "GraphProcessor",
    "LinearProcessor",
    "MeshHierarchy",
    "MlpProcessor",
    "MultigridProcessor",
    "ProjectionEncoder",
    "fe_norm",
    "fit",
    "relative_fe_error",
]
