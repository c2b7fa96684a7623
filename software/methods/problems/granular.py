"""Granular flow in two dimensions by the discrete element method: discs, springs and dashpots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Array = NDArray[np.float64]
Wall = tuple[float, float, float, float]
"""x and y of a segment's two ends."""

WIDTH, HEIGHT, OUTLET_HEIGHT = 24.0, 36.0, 4.0
STEPS_PER_CONTACT = 10
"""A contact lasts at least as many time steps, or the integration is not stable."""


class Dem2d:
    """Discs under gravity among walls, with friction and spin.

    Normal force max(k δ - γ v, 0), v the speed of parting; tangential force -γ_t times the sliding
    speed, at most μ times the normal one; a disc of radius r has mass r² and inertia r⁴ / 2.
    Semi-implicit Euler steps; pairs are found anew every 15.

    Parameters
    ----------
    positions : ndarray (n, 2)
    radii : ndarray (n,)
    walls : sequence of Wall
    friction : float
        μ, not negative.
    velocities : ndarray (n, 2), optional
        0 if not given.
    stiffness, damping, tangential : float
        k, γ and γ_t.
    gravity : float
        Downwards.
    dt : float
        Time step, at most a tenth of a contact.

    Attributes
    ----------
    time : float
    positions, velocities : ndarray (n, 2)
    spins : ndarray (n,)

    Raises
    ------
    ValueError
        If an argument breaks its rule, or discs overlap one another or a wall by a fifth of a
        radius.
    """

    def __init__(
        self,
        positions: Array,
        radii: Array,
        walls: Sequence[Wall] = (),
        friction: float = 0.5,
        *,
        velocities: Array | None = None,
        stiffness: float = 500.0,
        damping: float = 10.0,
        tangential: float = 20.0,
        gravity: float = 1.0,
        dt: float = 0.004,
    ) -> None:
        n = len(radii)
        if positions.shape != (n, 2) or n < 1:
            raise ValueError(
                f"positions have shape {positions.shape}: must be ({n}, 2), one a disc"
            )
        if not (radii > 0).all():
            raise ValueError(f"radii: {radii.min():g} must be positive")
        for name, value in (("friction", friction), ("damping", damping), ("gravity", gravity)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: must be finite and not negative")
        lightest = float(radii.min()) ** 2
        most = contact_time(lightest, stiffness) / STEPS_PER_CONTACT
        if not 0 < dt <= most:
            raise ValueError(
                f"dt={dt}: must be positive and at most {most:.4g}, a tenth of a contact of "
                f"stiffness={stiffness}; shorten it"
            )
        self.positions, self.radii = positions.astype(np.float64), radii.astype(np.float64)
        self.velocities = np.zeros((n, 2)) if velocities is None else velocities.astype(np.float64)
        self.spins = np.zeros(n)
        self.walls = np.array(walls, dtype=np.float64).reshape(-1, 4)
        self.friction, self.stiffness, self.damping = friction, stiffness, damping
        self.tangential, self.gravity, self.dt = tangential, gravity, dt
        self.masses, self.inertia = radii**2, radii**4 / 2
        self.time, self._age = 0.0, 0
        self._near = self._pairs()
        depth = self._pair_geometry()[0]
        if depth.size and depth.max() > 0.2 * radii.min():
            raise ValueError(f"discs overlap by {depth.max():g} at the start; place them apart")
        for wall in self.walls:
            inside = float((self.radii - self._to_wall(wall)[1]).max())
            if inside > 0.2 * radii.min():
                raise ValueError(
                    f"a disc reaches {inside:g} into the wall {tuple(wall.tolist())} at the start; "
                    "place it apart"
                )

    @classmethod
    def hopper(
        cls,
        outlet: float,
        angle: float = 60.0,
        friction: float = 0.5,
        n: int = 150,
        seed: int = 0,
        **options: Any,
    ) -> Dem2d:
        """Return a closed hopper, 24 wide, with n discs of radius 1 ± 5 % above its cone.

        Parameters
        ----------
        outlet : float
            Width of the outlet: more than two radii, less than the hopper.
        angle : float
            Of the cone's walls, in degrees above the horizontal.
        friction : float
        n, seed : int
            Of the discs' radii and places.
        **options
            Of `Dem2d`.

        Raises
        ------
        ValueError
            If a number breaks its rule.
        """
        if not 2 * 1.05 < outlet < WIDTH:
            raise ValueError(
                f"outlet={outlet}: must be between 2.1, two radii, and {WIDTH}, the hopper's width"
            )
        if not 0 < angle < 90:
            raise ValueError(f"angle={angle}: must be between 0 and 90 degrees")
        rng = np.random.default_rng(seed)
        left, right = (WIDTH - outlet) / 2, (WIDTH + outlet) / 2
        rise = OUTLET_HEIGHT + left * math.tan(math.radians(angle))
        radii = rng.uniform(0.95, 1.05, n)
        columns = int(WIDTH // 2.2)
        places = np.arange(n)
        x = 1.1 + 2.2 * (places % columns) + (WIDTH - 2.2 * columns) / 2
        y = rise + 1.5 + 2.2 * (places // columns)
        positions = np.stack([x, y], 1) + rng.uniform(-0.04, 0.04, (n, 2))
        top = 1e3
        walls = [
            (0.0, rise, 0.0, top), (WIDTH, rise, WIDTH, top),
            (0.0, rise, left, OUTLET_HEIGHT), (WIDTH, rise, right, OUTLET_HEIGHT),
            (left, OUTLET_HEIGHT, right, OUTLET_HEIGHT),
        ]  # fmt: skip
        return cls(positions, radii, walls, friction, **options)

    def open(self) -> None:
        """Take the outlet's lid away, the last wall, and start the time anew."""
        self.walls, self.time = self.walls[:-1], 0.0

    @property
    def inside(self) -> int:
        """How many discs are above the outlet."""
        return int((self.positions[:, 1] > OUTLET_HEIGHT).sum())

    @property
    def kinetic_energy(self) -> float:
        """Of discs above the outlet, with their spins."""
        return float(self._energies()[self.positions[:, 1] > OUTLET_HEIGHT].sum())

    @property
    def kinetic_energy_of_all(self) -> float:
        """Of all discs, with their spins."""
        return float(self._energies().sum())

    def _energies(self) -> Array:
        speeds = self.masses * (self.velocities**2).sum(1)
        return np.asarray((speeds + self.inertia * self.spins**2) / 2)

    def run(self, until: float) -> None:
        """Go on to a time."""
        for _ in range(round((until - self.time) / self.dt)):
            self._step()
        self.time = until

    def _pairs(self) -> NDArray[np.int64]:
        tree = cKDTree(self.positions)
        return tree.query_pairs(2.4 * float(self.radii.max()), output_type="ndarray")

    def _pair_geometry(self) -> tuple[Array, Array]:
        i, j = self._near.T
        apart = self.positions[j] - self.positions[i]
        distance = np.sqrt((apart**2).sum(1))
        depth = self.radii[i] + self.radii[j] - distance
        return depth, apart / np.maximum(distance, 1e-12)[:, None]

    def _step(self) -> None:
        self._age += 1
        if self._age % 15 == 0:
            self._near = self._pairs()
        force = np.zeros_like(self.positions)
        force[:, 1] = -self.gravity * self.masses
        torque = np.zeros(len(self.radii))
        depth, normal = self._pair_geometry()
        touch = depth > 0
        i, j = self._near[touch].T
        depth, normal = depth[touch], normal[touch]
        tangent = np.stack([-normal[:, 1], normal[:, 0]], 1)
        relative = self.velocities[j] - self.velocities[i]
        sliding = (relative * tangent).sum(1) - (
            self.spins[i] * self.radii[i] + self.spins[j] * self.radii[j]
        )
        push, drag = self._forces(depth, (relative * normal).sum(1), sliding)
        total = push[:, None] * normal - drag[:, None] * tangent
        np.add.at(force, j, total)
        np.add.at(force, i, -total)
        np.add.at(torque, i, drag * self.radii[i])
        np.add.at(torque, j, drag * self.radii[j])
        for wall in self.walls:
            self._against(wall, force, torque)
        self.velocities += self.dt * force / self.masses[:, None]
        self.spins += self.dt * torque / self.inertia
        self.positions += self.dt * self.velocities
        self.time += self.dt

    def _forces(self, depth: Array, parting: Array, sliding: Array) -> tuple[Array, Array]:
        push = np.maximum(self.stiffness * depth - self.damping * parting, 0)
        most = self.friction * push
        return push, np.clip(self.tangential * sliding, -most, most)

    def _to_wall(self, wall: Array) -> tuple[Array, Array]:
        """Return the way (discs, 2) from a wall's nearest place to each disc, and its length."""
        start, along = wall[:2], wall[2:] - wall[:2]
        share = ((self.positions - start) @ along / (along @ along)).clip(0, 1)
        apart = self.positions - start - share[:, None] * along
        return apart, np.sqrt((apart**2).sum(1))

    def _against(self, wall: Array, force: Array, torque: Array) -> None:
        apart, distance = self._to_wall(wall)
        i = np.nonzero(distance < self.radii)[0]
        if not len(i):
            return
        normal = apart[i] / np.maximum(distance[i], 1e-12)[:, None]
        tangent = np.stack([-normal[:, 1], normal[:, 0]], 1)
        sliding = (self.velocities[i] * tangent).sum(1) - self.spins[i] * self.radii[i]
        push, drag = self._forces(
            self.radii[i] - distance[i], (self.velocities[i] * normal).sum(1), sliding
        )
        force[i] += push[:, None] * normal - drag[:, None] * tangent
        torque[i] += drag * self.radii[i]


def contact_time(mass: float, stiffness: float) -> float:
    """Return how long two discs of a mass touch, without damping: π √(m / 2k)."""
    if not 0 < stiffness < math.inf:
        raise ValueError(f"stiffness={stiffness}: must be positive and finite")
    return math.pi * math.sqrt(mass / (2 * stiffness))
