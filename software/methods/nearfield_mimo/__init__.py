"""Near-field MIMO radar imaging in one shot: back-projection by physics, then a network.

Source: Manisali, Oral, Oktem, "Efficient physics-based learned reconstruction methods for real-time
3D near-field MIMO radar imaging", Digital Signal Processing 2024, arXiv 2312.16959. Names as there.
"""

from sat.methods.nearfield_mimo.geometry import MimoArray, VoxelGrid, born_matrix
from sat.methods.nearfield_mimo.imaging import adjoint, l1, normalize, tikhonov
from sat.methods.nearfield_mimo.models import CVDeep2S, Deep2S, Deep2SPlus, DeepDI, fit
from sat.methods.nearfield_mimo.targets import add_noise, random_extended_targets
from sat.methods.nearfield_mimo.unet import ResNet3d, SlicedConv3d, UNet3d, slice_convolutions

__all__ = [
    "CVDeep2S",
    "Deep2S",
    "Deep2SPlus",
    "DeepDI",
    "MimoArray",
    "ResNet3d",
    "SlicedConv3d",
    "UNet3d",
    "VoxelGrid",
    "add_noise",
    "adjoint",
    "born_matrix",
    "fit",
    "l1",
    "normalize",
    "random_extended_targets",
    "slice_convolutions",
    "tikhonov",
]
