"""LightSB: a Schrödinger bridge whose potential is a Gaussian mixture; no simulation, no network.

Source: Korotin, Gushchin, Burnaev, "Light Schrödinger Bridge", ICLR 2024 (arXiv 2310.01174).
"""

from sat.methods.lightsb.bridge import LightSB
from sat.methods.lightsb.gaussian import GaussianBridge, gaussian_bridge

__all__ = ["GaussianBridge", "LightSB", "gaussian_bridge"]
