"""What both low-rank optimisers share: their checks, and states that keep their types."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sat.methods.problems.parameters import require_gradients, require_options


class LowRankOptimizer(torch.optim.Optimizer):
    """An optimiser that steps parameter by parameter, after all gradients were checked.

    Subclasses have ``_check(number)``, which raises ValueError for a group that breaks a rule, and
    ``_step_one(parameter, group)``.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does, after its options and parameters were checked."""
        super().add_param_group(param_group)
        try:
            require_options(self.param_groups[-1])
            self._check(len(self.param_groups) - 1)
        except ValueError:
            self.param_groups.pop()
            raise

    def _check(self, number: int) -> None:
        raise NotImplementedError

    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; gradients are not changed.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and gradients anew.

        Returns
        -------
        float or None
            What ``closure`` returned.

        Raises
        ------
        TypeError
            If a gradient is sparse, complex or integer.
        ValueError
            If one is not finite; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        require_gradients(self.param_groups)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, as torch does, but for types: it would make indices and codes floats."""
        super().load_state_dict(state_dict)
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for place, parameter in zip(places, parameters, strict=True):
            if place in state_dict["state"]:
                self.state[parameter] = copy.deepcopy(state_dict["state"][place])


def working_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type of moments: float64 for float64 parameters, else float32."""
    return torch.float64 if parameter.dtype is torch.float64 else torch.float32


def tall(parameter: Tensor) -> bool:
    """Return whether rows, flattened from axis 1 on, are at least as many as columns."""
    return len(parameter) ** 2 >= parameter.numel()


def as_rows(x: Tensor, like: Tensor) -> Tensor:
    """Return a parameter's gradient as a matrix with its shorter side as columns."""
    matrix = x.flatten(1).to(working_dtype(like))
    return matrix if tall(like) else matrix.mT


def add_rows(parameter: Tensor, rows: Tensor, alpha: float) -> None:
    """Add ``alpha`` times what `as_rows` would make of it to a parameter."""
    update = rows if tall(parameter) else rows.mT
    parameter.add_(update.reshape(parameter.shape).to(parameter.dtype), alpha=alpha)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of an optimiser's state: tensors, and 8 for each number besides.

    Bases, of which there is one a size for all layers, are no state: they are computed anew.
    """
    return sum(_nbytes(value) for value in optimizer.state.values())


def _nbytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_nbytes(part) for part in value.values())
    return 8 if isinstance(value, (int, float)) else 0


def index_dtype(n: int) -> torch.dtype:
    """Return the smallest type that holds places in n columns."""
    return torch.int16 if n <= 2**15 else torch.int32


def layers_of(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[int, int, Tensor, dict[str, Any]]]:
    """Yield each parameter as (group's number, place in it, parameter, group)."""
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            yield number, place, parameter, group
