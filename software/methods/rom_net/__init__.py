"""ROM-net: a dictionary of local reduced-order models, and a network that recommends one.

Solutions are clustered by the angle between them, each cluster has a basis, a classifier chooses
the basis from the input, a Galerkin projection solves in it.

Source: Daniel, Casenave, Akkari, Ketata, Ryckelynck 2022, "Physics-informed cluster analysis and a
priori efficiency criterion for the construction of local reduced-order bases", arXiv 2103.13683;
Daniel, Casenave, Akkari, Ryckelynck 2020, "Model order reduction assisted by deep neural networks
(ROM-net)", doi 10.1186/s40323-020-00153-6.
"""

from sat.methods.problems.diffusion import NonlinearDiffusion1D, Snapshots
from sat.methods.rom_net.bases import LocalBases, pod_basis, projection_error
from sat.methods.rom_net.classifier import Classifier, cnn, mlp
from sat.methods.rom_net.clustering import KMedoids, k_medoids
from sat.methods.rom_net.criterion import efficiency_criterion
from sat.methods.rom_net.dissimilarity import (
    euclidean_dissimilarity,
    sine_dissimilarity,
    subspace_dissimilarity,
)
from sat.methods.rom_net.net import GalerkinProblem, ROMNet, ROMSolution

__all__ = [
    "Classifier",
    "GalerkinProblem",
    "KMedoids",
    "LocalBases",
    "NonlinearDiffusion1D",
    "ROMNet",
    "ROMSolution",
    "Snapshots",
    "cnn",
    "efficiency_criterion",
    "euclidean_dissimilarity",
    "k_medoids",
    "mlp",
    "pod_basis",
    "projection_error",
    "sine_dissimilarity",
    "subspace_dissimilarity",
]
