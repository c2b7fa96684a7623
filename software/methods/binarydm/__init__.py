"""BinaryDM: diffusion models of 1-bit weights and few-bit activations.

Source: Zheng et al. 2024, arXiv 2404.05662, first version.
"""

from sat.methods.binarydm.binarize import binarize, initial_scales, quantize
from sat.methods.binarydm.cost import CostReport, LayerCost, cost_report
from sat.methods.binarydm.layers import BinaryConv1d, BinaryConv2d, BinaryLayer, BinaryLinear
from sat.methods.binarydm.mimic import LowRankMimic
from sat.methods.binarydm.plan import (
    ProgressiveSchedule,
    binarize_model,
    default_plan,
    middle_outward,
)
from sat.methods.binarydm.training import BinaryTraining, train_binary

__all__ = [
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryLayer",
    "BinaryLinear",
    "BinaryTraining",
    "CostReport",
    "LayerCost",
    "LowRankMimic",
    "ProgressiveSchedule",
    "binarize",
    "binarize_model",
    "cost_report",
    "default_plan",
    "initial_scales",
    "middle_outward",
    "quantize",
    "train_binary",
]
