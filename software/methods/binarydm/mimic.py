"""Low-rank representation mimicking: a student's features held to a teacher's main directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

AXES = ("channel", "width")
Call = Callable[[nn.Module, Tensor, Tensor], Tensor]


class LowRankMimic:
    """Compares features of a frozen teacher and a student, along few directions of the teacher's.

    Parameters
    ----------
    teacher : nn.Module
        In evaluation mode, with parameters of its own.
    student : nn.Module
        With modules of the same names.
    names : sequence of str
        Modules whose outputs are the features, tensors (batch, channels, ...).
    ratio : int
        Directions are channels // ratio, at least 1.
    weight : float
        Of the loss.
    axis : {"channel", "width"}
        What is projected: channels, or, as the released code does, the last axis, there with at
        least 2 directions.
    call : callable, optional
        Of a model, x and t; by default ``model(x, t)``.

    Raises
    ------
    ValueError
        If an argument breaks its rule, the teacher is in training mode, or shares parameters with
        the student.
    KeyError
        If a name is no module of both.

    Source
    ------
    Section 3.3 of the paper; the authors' ``ddpm_ours.py``.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        names: Sequence[str],
        ratio: int = 4,
        weight: float = 1e-4,
        axis: str = "channel",
        call: Call | None = None,
    ) -> None:
        if not isinstance(ratio, int) or ratio < 1:
            raise ValueError(f"ratio={ratio!r}: must be an int of at least 1, which keeps all")
        if not weight >= 0:
            raise ValueError(f"weight={weight}: must not be negative; 0 switches it off")
        if axis not in AXES:
            raise ValueError(f"axis={axis!r}: must be one of {', '.join(AXES)}")
        if not names:
            raise ValueError("names=[]: must name at least one module, a block for instance")
        if any(module.training for module in teacher.modules()):
            raise ValueError("the teacher is in training mode: must be frozen; call .eval()")
        theirs = {p.untyped_storage().data_ptr() for p in teacher.parameters()}
        if any(p.untyped_storage().data_ptr() in theirs for p in student.parameters()):
            raise ValueError(
                "teacher and student share parameters, so the teacher would learn; copy the model "
                "with copy.deepcopy first"
            )
        for model, word in ((teacher, "teacher"), (student, "student")):
            modules = dict(model.named_modules())
            for name in names:
                if name not in modules:
                    raise KeyError(f"{name!r}: is no module of the {word}")
        self.teacher, self.student, self.names = teacher, student, tuple(names)
        self.ratio, self.weight, self.axis = ratio, weight, axis
        self._call: Call = (lambda model, x, t: model(x, t)) if call is None else call
        self.directions: dict[str, Tensor] = {}

    def loss(self, x: Tensor, t: Tensor) -> Tensor:
        """Return weight x the mean over modules of mean((S E - F E)²), both networks at (x, t).

        The first call's features give E of each module, orthonormal columns, fixed from then on.

        Raises
        ------
        ValueError
            If features differ in shape, or have fewer channels than ``ratio``.
        """
        return self.run(x, t)[1]

    def run(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's output and `loss`, of one pass of each network."""
        with torch.no_grad():
            _, theirs = self._features(self.teacher, x, t)
        out, ours = self._features(self.student, x, t)
        losses = []
        for name in self.names:
            if ours[name].shape != theirs[name].shape:
                raise ValueError(
                    f"{name}: features have shape {tuple(ours[name].shape)} of the student and "
                    f"{tuple(theirs[name].shape)} of the teacher: must be alike"
                )
            expected, found = self._vectors(theirs[name]), self._vectors(ours[name])
            if name not in self.directions:
                self.directions[name] = self._principal(name, expected)
            # One product for both: E is linear.
            losses.append(((found - expected) @ self.directions[name]).square().mean())
        return out, self.weight * torch.stack(losses).mean()

    def _features(self, model: nn.Module, x: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            return lambda module, inputs, output: found.__setitem__(name, output)

        hooks = [model.get_submodule(n).register_forward_hook(keep(n)) for n in self.names]
        try:
            return self._call(model, x, t), found
        finally:
            for hook in hooks:
                hook.remove()

    def _vectors(self, features: Tensor) -> Tensor:
        """Return (count, channels): the projected axis last, all others together."""
        last = features.movedim(1, -1) if self.axis == "channel" else features
        return last.reshape(-1, last.shape[-1])

    def _principal(self, name: str, vectors: Tensor) -> Tensor:
        channels = vectors.shape[1]
        if self.ratio > channels:
            raise ValueError(f"ratio={self.ratio}: must be at most {channels}, channels of {name}")
        rank = max(channels // self.ratio, 1 if self.axis == "channel" else min(2, channels))
        apart = vectors.double() - vectors.double().mean(0)
        _, _, axes = torch.linalg.svd(apart.cpu(), full_matrices=False)
        if len(axes) < rank:
            raise ValueError(
                f"{name}: {len(vectors)} feature vectors have no {rank} directions; give a larger "
                "first batch"
            )
        return axes[:rank].mT.to(vectors.dtype)
