"""Denoising MCMC: few evaluations a sample (Kim, Ye 2023, ICML, arXiv 2209.14593).

A Markov chain walks over samples and their levels of noise, close to the data. A short integration
from where it is least noisy makes a clean sample, in place of a long one from pure noise.
"""

from sat.methods.dmcmc.integrators import (
    euler_maruyama,
    geometric_levels,
    kar1,
    kar2,
    karras_levels,
    predictor_corrector,
    probability_flow,
)
from sat.methods.dmcmc.levels import (
    ExactPosterior,
    LevelPosterior,
    NoiseClassifier,
    noise_levels,
    train_classifier,
)
from sat.methods.dmcmc.sampler import (
    DLG,
    CheckedScore,
    Samples,
    denoise,
    dmcmc_sample,
    from_noise,
    from_vp,
)
from sat.methods.problems.mixtures import GaussianMixtureVE

__all__ = [
    "DLG",
    "CheckedScore",
    "ExactPosterior",
    "GaussianMixtureVE",
    "LevelPosterior",
    "NoiseClassifier",
    "Samples",
    "denoise",
    "dmcmc_sample",
    "euler_maruyama",
    "from_noise",
    "from_vp",
    "geometric_levels",
    "kar1",
    "kar2",
    "karras_levels",
    "noise_levels",
    "predictor_corrector",
    "probability_flow",
    "train_classifier",
]
