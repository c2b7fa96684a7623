"""Online orthogonal dictionary learning by Frank-Wolfe steps over the spectral ball.

Source: Xue, Lau 2021, arXiv 2103.01484.
"""

from sat.methods.odl_fw.baselines import dct_dictionary, msp, pca_dictionary
from sat.methods.odl_fw.data import bernoulli_gaussian, dictionary_error
from sat.methods.odl_fw.dictionary import OnlineODL, gradient, objective
from sat.methods.odl_fw.oracle import polar

__all__ = [
    "OnlineODL",
    "bernoulli_gaussian",
    "dct_dictionary",
    "dictionary_error",
    "gradient",
    "msp",
    "objective",
    "pca_dictionary",
    "polar",
]
