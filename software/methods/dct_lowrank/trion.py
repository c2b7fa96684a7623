"""Trion: Newton-Schulz on the chosen columns of the momentum alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sat.methods.dct_lowrank.base import add_rows, as_rows
from sat.methods.dct_lowrank.transform import (
    basis_matrix,
    power_of_two,
    require_rank,
    select_columns,
)
from sat.methods.problems.optimizer import CheckedOptimizer
from sat.methods.problems.orthogonal import newton_schulz, require_steps
from sat.methods.problems.parameters import name_parameter, require_momentum

SCALES = {
    "kj": lambda rows, cols: math.sqrt(max(1, rows / cols)),
    "kimi": lambda rows, cols: 0.2 * math.sqrt(max(rows, cols)),
    "dion": lambda rows, cols: math.sqrt(rows / cols),
    "none": lambda rows, cols: 1.0,
}


class Trion(CheckedOptimizer):
    """Momentum on all of a matrix, orthogonalised updates in ``rank`` columns of the DCT-II.

    Per matrix, in this order: ``M += G``; low, P = the columns of M that `select_columns` chooses;
    ``M -= (1 - momentum) low Pᵀ``, so that only what was used decays; O = `newton_schulz` of low;
    ``W = (1 - lr weight_decay) W - lr scale O Pᵀ``.

    Parameters
    ----------
    params : iterable
        Parameters of two axes, or groups of them (more axes are flattened from axis 1 on); see
        `sat.methods.auon.split_parameters`.
    lr : float
    rank : int
        At least 1; above the shorter side it means that side.
    momentum, weight_decay : float
        Within [0, 1); not negative.
    scale : str
        By rows R and columns C: ``"kj"`` ``sqrt(max(1, R / C))``, ``"kimi"``
        ``0.2 sqrt(max(R, C))``, ``"dion"`` ``sqrt(R / C)``, ``"none"`` 1.
    ns_steps : int
        At least 1.

    Raises
    ------
    ValueError
        If an option breaks its rule, or a parameter has one axis.

    Source
    ------
    arXiv 2505.17967, later versions; ``fft_low_rank/trion.py`` of the authors, whose release uses
    two names that it does not define.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        *,
        rank: int,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        scale: str = "kj",
        ns_steps: int = 5,
    ) -> None:
        defaults = {
            "lr": lr, "rank": rank, "momentum": momentum, "weight_decay": weight_decay,
            "scale": scale, "ns_steps": ns_steps,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check(self, number: int) -> None:
        group = self.param_groups[number]
        require_rank(group["rank"])
        require_momentum("momentum", group["momentum"])
        require_steps("ns_steps", group["ns_steps"])
        if group["scale"] not in SCALES:
            raise ValueError(
                f"scale={group['scale']!r}: must be one of {', '.join(SCALES)}; choose one"
            )
        for place, parameter in enumerate(group["params"]):
            if parameter.ndim < 2:
                raise ValueError(
                    f"{name_parameter(group, number, place)} has shape {tuple(parameter.shape)}: "
                    "must have two axes or more; give it to AdamW"
                )

    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient = as_rows(parameter.grad, parameter)
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum = state["momentum"]
        momentum += gradient
        n = gradient.shape[1]
        chosen, low = select_columns(momentum, "dct2", min(group["rank"], n))
        back = basis_matrix("dct2", n, low.dtype)[:, chosen].mT
        scale = power_of_two(low)
        momentum -= (1 - group["momentum"]) * scale * ((low / scale) @ back)
        update = newton_schulz(low, group["ns_steps"]) @ back
        rows, cols = parameter.flatten(1).shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        add_rows(parameter, update, -group["lr"] * SCALES[group["scale"]](rows, cols))
