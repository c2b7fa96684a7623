"""A scene that is known as a formula, cameras around it, and its pictures; numpy alone.

A striped sphere, a chequered box and a disc with rings, soft at their surfaces, before white.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NEAR, FAR, BACKGROUND = 1.3, 4.7, 1.0
DISTANCE, ANGLE = 3.0, math.radians(40)
"""Of cameras from the middle, and of what they see."""
DENSITY, EDGE = 60.0, 0.015
SPHERE, RADIUS = np.array([-0.35, -0.1, 0.05]), 0.38
BOX, HALF = np.array([0.38, 0.25, -0.05]), np.array([0.24, 0.3, 0.32])
DISC, REACH, THICK = np.array([0.0, 0.0, -0.45]), 0.9, 0.06


def _distances(points: Array) -> Array:
    """Return how far points (…, 3) are outside of sphere, box and disc (3, …); negative inside."""
    sphere = np.linalg.norm(points - SPHERE, axis=-1) - RADIUS
    box = (np.abs(points - BOX) - HALF).max(-1)
    across = np.hypot(points[..., 0], points[..., 1]) - REACH
    return np.stack([sphere, box, np.maximum(across, np.abs(points[..., 2] - DISC[2]) - THICK)])


def density(points: Array) -> Array:
    """Return (…) of points (…, 3)."""
    nearest = _distances(points).min(0)
    return np.asarray(DENSITY / (1 + np.exp(np.clip(nearest / EDGE, -50, 50))))


def colour(points: Array) -> Array:
    """Return (…, 3) of points (…, 3)."""
    x, y, z = np.moveaxis(points, -1, 0)
    stripes = 0.5 + 0.5 * np.sin(24 * z + 6 * x)
    squares = 0.5 + 0.5 * np.tanh(4 * np.sin(14 * x) * np.sin(14 * y) * np.sign(np.sin(14 * z)))
    rings = 0.5 + 0.5 * np.sin(20 * np.hypot(x, y))
    red, green, blue = (np.ones_like(x) for _ in range(3))
    painted = np.stack([
        np.stack([0.9 * red, 0.2 + 0.6 * stripes, 0.1 + 0.2 * stripes], -1),
        np.stack([0.1 + 0.5 * squares, 0.3 + 0.5 * squares, 0.85 * blue], -1),
        np.stack([0.25 + 0.5 * rings, 0.6 * green - 0.2 * rings, 0.3 + 0.2 * rings], -1),
    ])  # fmt: skip
    which = _distances(points).argmin(0)
    return np.take_along_axis(painted, which[None, ..., None], 0)[0]


def camera(azimuth: float, elevation: float, size: int) -> tuple[Array, Array]:
    """Return origins and unit vectors (size², 3) of a camera that looks at the middle.

    Parameters
    ----------
    azimuth, elevation : float
        Radians.
    size : int
        Pixels of an axis; row by row, from above.
    """
    up = np.array([0.0, 0.0, 1.0])
    origin = DISTANCE * np.array([
        math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth),
        math.sin(elevation),
    ])  # fmt: skip
    ahead = -origin / DISTANCE
    right = np.cross(ahead, up)
    right /= np.linalg.norm(right)
    above = np.cross(right, ahead)
    steps = math.tan(ANGLE / 2) * (2 * (np.arange(size) + 0.5) / size - 1)
    rays = ahead + steps[None, :, None] * right - steps[:, None, None] * above
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    dirs = rays.reshape(-1, 3)
    return np.tile(origin, (len(dirs), 1)), dirs


def render(origins: Array, dirs: Array, samples: int) -> Array:
    """Return colours (rays, 3) of the scene by sums over a ray's sections, one after another."""
    delta = (FAR - NEAR) / samples
    left = np.ones(len(origins))
    total = np.zeros((len(origins), 3))
    for i in range(samples):
        points = origins + (NEAR + (i + 0.5) * delta) * dirs
        passed = np.exp(-density(points) * delta)
        total += (left * (1 - passed))[:, None] * colour(points)
        left *= passed
    return total + BACKGROUND * left[:, None]


@dataclass(frozen=True)
class Views:
    """Pictures and their rays.

    Attributes
    ----------
    origins, dirs, colours : numpy.ndarray
        (views, size², 3) float64.
    size : int
    """

    origins: Array
    dirs: Array
    colours: Array
    size: int

    @property
    def images(self) -> Array:
        """(views, size, size, 3)."""
        return self.colours.reshape(len(self.colours), self.size, self.size, 3)


def orbit(views: int, size: int, samples: int, turn: float = 0.0) -> Views:
    """Return pictures from around the scene, by turns from 20 and from 40 degrees above.

    Parameters
    ----------
    views, size, samples : int
        Samples of a ray, as `render`.
    turn : float
        Of all cameras, in steps from one to the next.
    """
    rays = [
        camera(2 * math.pi * (i + turn) / views, math.radians(20 + 20 * (i % 2)), size)
        for i in range(views)
    ]
    origins, dirs = (np.stack(part) for part in zip(*rays, strict=True))
    colours = np.stack([render(o, d, samples) for o, d in rays])
    return Views(origins, dirs, colours, size)
