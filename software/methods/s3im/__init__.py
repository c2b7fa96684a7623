"""A loss that compares random rays by structure, and a small radiance field to train with it.

Source: Xie et al., "S3IM: stochastic structural similarity and its unreasonable effectiveness for
neural fields", ICCV 2023, arXiv 2308.07032.
"""

from sat.methods.s3im.quality import psnr, ssim
from sat.methods.s3im.radiance import RadianceField, VoxelRadianceField, render_rays
from sat.methods.s3im.similarity import S3IMLoss, gaussian_window, s3im, ssim_map

__all__ = [
    "RadianceField",
    "S3IMLoss",
    "VoxelRadianceField",
    "gaussian_window",
    "psnr",
    "render_rays",
    "s3im",
    "ssim",
    "ssim_map",
]
