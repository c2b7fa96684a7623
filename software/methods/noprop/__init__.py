"""NoProp: blocks that learn apart, each to denoise a label (Li, Teh, Pascanu 2025, 2503.24322).

In training no signal passes from block to block: each sees the input and a noisy embedding of the
label, drawn from a fixed law, and learns to name the clean one. Chained, they classify.
"""

from sat.methods.noprop.blocks import EMBEDDINGS, DenoiseBlock, LabelSpace, label_embedding
from sat.methods.noprop.continuous import TIME, NoPropCT, NoPropFM
from sat.methods.noprop.levels import DiffusionLevels, LearnedLevels
from sat.methods.noprop.model import BlockOptimizers, NoPropDT
from sat.methods.noprop.training import saved_activation_bytes, train_backprop

__all__ = [
    "EMBEDDINGS",
    "TIME",
    "BlockOptimizers",
    "DenoiseBlock",
    "DiffusionLevels",
    "LabelSpace",
    "LearnedLevels",
    "NoPropCT",
    "NoPropDT",
    "NoPropFM",
    "label_embedding",
    "saved_activation_bytes",
    "train_backprop",
]
