"""NeuralDEM: fields of granular flows, for any time and place in one evaluation.

Source: Alkin et al., "NeuralDEM: real-time simulation of industrial particulate flows", arXiv
2411.09678. Names as there: hopper, fluidised bed, supernodes, main and auxiliary modalities.
"""

from sat.methods.neuraldem.blocks import CrossDitBlock, DitBlock, MultimodalDitBlock
from sat.methods.neuraldem.embedding import ScalarConditioner
from sat.methods.neuraldem.models import BedModel, FieldDecoder, HopperModel
from sat.methods.neuraldem.particles import (
    SupernodePooling,
    from_logscale,
    mixing,
    occupancy,
    residence_time,
    sample_particles,
    to_logscale,
)
from sat.methods.problems.embedding import SinCosEmbedding
from sat.methods.problems.granular import Dem2d

__all__ = [
    "BedModel",
    "CrossDitBlock",
    "Dem2d",
    "DitBlock",
    "FieldDecoder",
    "HopperModel",
    "MultimodalDitBlock",
    "ScalarConditioner",
    "SinCosEmbedding",
    "SupernodePooling",
    "from_logscale",
    "mixing",
    "occupancy",
    "residence_time",
    "sample_particles",
    "to_logscale",
]
