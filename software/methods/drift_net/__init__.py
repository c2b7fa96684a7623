"""DRIFT-Net: forecasts of flows by blocks of a coarse spectral and a fine local branch.

Source: arXiv 2509.24868, ICLR 2026. Names as there: bands, gates, fusion.
"""

from sat.methods.drift_net.blocks import (
    ConditionalLayerNorm,
    ConvBlock,
    DriftBlock,
    WindowAttentionBlock,
)
from sat.methods.drift_net.network import DriftNet
from sat.methods.drift_net.spectral import RadialBandGate, SpectralMixing, low_modes, radial_bands
from sat.methods.drift_net.training import (
    frequency_weighted_loss,
    relative_lp_error,
    rollout,
)
from sat.methods.problems.navier_stokes import navier_stokes_2d

__all__ = [
    "ConditionalLayerNorm",
    "ConvBlock",
    "DriftBlock",
    "DriftNet",
    "RadialBandGate",
    "SpectralMixing",
    "WindowAttentionBlock",
    "frequency_weighted_loss",
    "low_modes",
    "navier_stokes_2d",
    "radial_bands",
    "relative_lp_error",
    "rollout",
]
