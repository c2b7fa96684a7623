"""DSnoT: repair the masks of a pruned network by exchanging weights, without any training.

Source: Zhang et al., "Dynamic Sparse No Training", ICLR 2024, arXiv 2310.08915.
"""

from sat.methods.dsnot.masks import initial_mask, score
from sat.methods.dsnot.model import LayerPruning, PruningReport, bake, masks, prune_model
from sat.methods.dsnot.search import DSnoTResult, dsnot, output_error, scaled_cycles
from sat.methods.dsnot.statistics import ColumnStatistics

__all__ = [
    "ColumnStatistics",
    "DSnoTResult",
    "LayerPruning",
    "PruningReport",
    "bake",
    "dsnot",
    "initial_mask",
    "masks",
    "output_error",
    "prune_model",
    "scaled_cycles",
    "score",
]
