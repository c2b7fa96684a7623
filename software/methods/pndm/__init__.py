"""PNDM: pseudo numerical methods, training-free samplers of diffusion models.

Source: Liu, Ren, Lin, Zhao 2022, ICLR, arXiv 2202.09778.
"""

from sat.methods.pndm.denoiser import (
    DenoiserMLP,
    Digits,
    NoisedBatch,
    add_noise,
    fit_average,
    load_digit_vectors,
    train_denoiser,
    velocity_loss,
)
from sat.methods.pndm.sampler import SampleResult, probability_flow, sample, transfer
from sat.methods.pndm.schedule import ContinuousSchedule, NoiseSchedule, Schedule
from sat.methods.problems.mixtures import GaussianMixture, ring

__all__ = [
    "ContinuousSchedule",
    "DenoiserMLP",
    "Digits",
    "GaussianMixture",
    "NoiseSchedule",
    "NoisedBatch",
    "SampleResult",
    "Schedule",
    "add_noise",
    "fit_average",
    "load_digit_vectors",
    "probability_flow",
    "ring",
    "sample",
    "train_denoiser",
    "transfer",
    "velocity_loss",
]
