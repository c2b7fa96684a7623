"""An optimiser's frame: everything is checked before anything changes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sat.methods.problems.parameters import require_gradients, require_options


class CheckedOptimizer(torch.optim.Optimizer, ABC):
    """An optimiser that steps parameter by parameter, after all gradients were checked."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does, after its options and parameters were checked."""
        super().add_param_group(param_group)
        try:
            require_options(self.param_groups[-1])
            self._check(len(self.param_groups) - 1)
        except ValueError:
            self.param_groups.pop()
            raise

    @abstractmethod
    def _check(self, number: int) -> None:
        """Raise ValueError if a group breaks a rule."""

    @abstractmethod
    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Take a parameter's step."""

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
