"""S4D: diagonal state space models (Gu, Gupta, Goel, Ré 2022, arXiv 2206.11893).

A layer maps each channel of a sequence through a linear system with a diagonal complex state
matrix: as a long convolution in training, step by step when samples come one at a time.
"""

from sat.methods.s4d.hippo import hippo_legs, initial_modes, legs_basis, normal_basis, normal_part
from sat.methods.s4d.kernel import S4DKernel
from sat.methods.s4d.layer import S4D, S4DBlock, S4DModel, convolve, parameter_groups

__all__ = [
    "S4D",
    "S4DBlock",
    "S4DKernel",
    "S4DModel",
    "convolve",
    "hippo_legs",
    "initial_modes",
    "legs_basis",
    "normal_basis",
    "normal_part",
    "parameter_groups",
]
