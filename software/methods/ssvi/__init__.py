"""SSVI: Bayesian networks trained in a sparse subspace (Li et al., ICLR 2024, arXiv 2402.11025).

A normal distribution for each of a few weights, from the first step on; which weights is learned
by dropping those whose size is least certain, and adding those with the largest gradients.
"""

from sat.methods.ssvi.layers import SparseBayesConv2d, SparseBayesLayer, SparseBayesLinear
from sat.methods.ssvi.scores import CRITERIA, removal_score, replace_fraction
from sat.methods.ssvi.search import SSVI, LayerUpdate, UpdateReport
from sat.methods.ssvi.training import (
    Fit,
    expected_calibration_error,
    fit,
    negative_log_likelihood,
    predict,
    training_flops,
)

__all__ = [
    "CRITERIA",
    "SSVI",
    "Fit",
    "LayerUpdate",
    "SparseBayesConv2d",
    "SparseBayesLayer",
    "SparseBayesLinear",
    "UpdateReport",
    "expected_calibration_error",
    "fit",
    "negative_log_likelihood",
    "predict",
    "removal_score",
    "replace_fraction",
    "training_flops",
]
