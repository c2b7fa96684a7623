"""Training by fresh points and fresh terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts
from sat.methods.problems.scaling import power_of_two
from sat.methods.problems.training import descend
from sat.methods.sdgd.pdes import DimensionwisePDE
from sat.methods.sdgd.residual import MODES, DimensionSampler, require_independent, sdgd_residual

_GRADIENT = 2.0**4
"""What gradients that enter a network are scaled to, roughly: float16 has room on both sides."""


class SDGDTrainer:
    """Adam with a learning rate that falls linearly to 0; points and terms are new at each step.

    Parameters
    ----------
    model : nn.Module
        (points, inputs) to (points,), such as `ConstrainedMLP`.
    pde : DimensionwisePDE
    n_points : int
        Points of a step.
    dim_batch : int
        Terms of a step, of I and of J.
    lr : float
    steps : int
    mode : {"shared", "alg1", "alg2", "full"}
        As `sdgd_residual`. "shared" is what the released code runs, and biased.
    accumulate : int
        Draws of terms, whose gradients are averaged, one graph after the other.
    seed : int
        Of the terms.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        model: nn.Module,
        pde: DimensionwisePDE,
        n_points: int = 100,
        dim_batch: int = 16,
        lr: float = 1e-3,
        steps: int = 10_000,
        *,
        mode: str = "shared",
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        require_counts(n_points=n_points, steps=steps, accumulate=accumulate)
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
        self.model, self.pde = model, pde
        self.n_points, self.lr, self.steps = n_points, lr, steps
        self.mode, self.accumulate = mode, accumulate
        self.forward, self.backward = (
            DimensionSampler(pde.d, dim_batch, torch.Generator().manual_seed(2 * seed + i))
            for i in range(2)
        )

    def losses(self, step: int) -> Iterator[Tensor]:
        """Yield the losses of a step, whose gradients add up."""
        x = self.pde.sample(self.n_points)
        for _ in range(self.accumulate):
            idx_fwd = self.forward.draw() if self.mode in ("alg2", "shared") else None
            idx_bwd = self.backward.draw() if self.mode in ("alg1", "alg2") else None
            loss = sdgd_residual(self.model, x, self.pde, idx_fwd, idx_bwd, self.mode)
            yield loss / self.accumulate

    def train(self, on_step: Callable[[int], None] | None = None) -> list[float]:
        """Train; return the loss of each step. ``on_step`` is called after each with its number.

        Raises
        ------
        ValueError
            If I and J of "alg2" would be the same.
        FloatingPointError
            If a residual is not finite.
        """
        if self.mode == "alg2":
            require_independent(self.forward, self.backward)
        terms = self.pde.d if self.mode == "full" else self.forward.batch
        weight = self.pde.d / terms / self.n_points / self.accumulate

        def scale(loss: float) -> float:
            # A residual of its root mean square, times the weight of one term at one point.
            return power_of_two(_GRADIENT / (weight * (2 * self.accumulate * loss) ** 0.5 or 1.0))

        return descend(
            self.model, self.losses, steps=self.steps, lr=self.lr, scale=scale, on_step=on_step
        )
