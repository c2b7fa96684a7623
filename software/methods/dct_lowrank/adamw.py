"""AdamW whose moments live in few columns of a fixed orthogonal basis, chosen at each refresh."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sat.methods.dct_lowrank.base import (
    add_rows,
    as_rows,
    index_dtype,
    layers_of,
    tall,
    working_dtype,
)
from sat.methods.dct_lowrank.feedback import BITS, decode, encode
from sat.methods.dct_lowrank.transform import (
    BASES,
    basis_matrix,
    choose,
    power_of_two,
    require_norm,
    require_rank,
    transform_rows,
)
from sat.methods.problems.optimizer import CheckedOptimizer
from sat.methods.problems.parameters import name_parameter, require_momentum

RESIDUALS = ("drop", "feedback", "sign")
TRANSFORMS = ("product", "fft")
MAX_SHAPE = 32_000


class DCTAdamW(CheckedOptimizer):
    """AdamW on ``rank`` of n coordinates of each matrix's gradient, n its shorter side.

    A is the gradient, transposed if it is wide, so that its n columns are the shorter side (from
    the right if rows equal columns); with feedback, plus what the last step left out. Where the
    step is the first or ``gap`` divides its number, the ``rank`` columns of ``S = A D`` with the
    largest norms are chosen; low = S[:, chosen] is what Adam sees, and its update goes back through
    the same columns of D. A layer keeps two moments of rows x rank and ``rank`` indices; bases are
    shared.

    With ``rotate``, moments follow their index: those of an index that stays stay, a new one
    begins at 0. Late in training such an index takes a first step of
    ``(1 - b1) / sqrt(1 - b2)`` learning rates, 3.2 with the default betas. Without it a slot hands
    its moments to whatever index comes into it.

    Parameters of one axis, those with a side of at least ``max_shape``, and groups with
    ``rank=None`` take plain AdamW. More than two axes are flattened from axis 1 on. A rank above n
    means n: `describe` says so.

    Parameters
    ----------
    params : iterable
        Parameters or groups; a group may have options of its own.
    lr : float
    rank : int or None
        At least 1; None for plain AdamW.
    basis : str
        As `basis_matrix`; or ``"svd"``, the leading right singular vectors of A, which is no
        fixed basis: the baseline. Each layer then keeps n x rank numbers more.
    transform : str
        ``"product"``; ``"fft"`` (``"dct2"`` only): the same numbers, on the host.
    norm : int
        1 or 2, of the columns.
    gap : int
        Steps between choices, at least 1.
    rotate : bool
    residual : str
        What becomes of ``A - low Pᵀ``: ``"drop"``; ``"feedback"``: added to the next gradient;
        ``"sign"``: the weights move by its sign times lr.
    feedback_bits : int or None
        8 or 4: the kept residual is rounded as `encode` does.
    betas : tuple of float
        Within [0, 1).
    eps, weight_decay : float
        Not negative; decay is decoupled.
    max_shape : int

    Attributes
    ----------
    kept_energy : dict
        Parameter to ``‖low‖² / ‖A‖²`` of its last step; not part of the state.

    Raises
    ------
    ValueError
        If an option breaks its rule.

    Source
    ------
    arXiv 2505.17967; ``fft_low_rank/dct_adamw.py`` of IST-DASLab/ISTA-DASLab-Optimizers.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        rank: int | None,
        basis: str = "dct2",
        transform: str = "product",
        norm: int = 1,
        gap: int = 1,
        rotate: bool = True,
        residual: str = "drop",
        feedback_bits: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_shape: int = MAX_SHAPE,
    ) -> None:
        self.kept_energy: dict[Tensor, float] = {}
        defaults = {
            "lr": lr, "rank": rank, "basis": basis, "transform": transform, "norm": norm,
            "gap": gap, "rotate": rotate, "residual": residual, "feedback_bits": feedback_bits,
            "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_shape": max_shape,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check(self, number: int) -> None:
        group = self.param_groups[number]
        if group["rank"] is not None:
            require_rank(group["rank"])
        require_norm(group["norm"])
        for option, choices in (
            ("basis", (*BASES, "svd")), ("transform", TRANSFORMS), ("residual", RESIDUALS)
        ):  # fmt: skip
            if group[option] not in choices:
                raise ValueError(
                    f"{option}={group[option]!r}: must be one of {', '.join(choices)}; choose one"
                )
        if group["transform"] == "fft" and group["basis"] != "dct2":
            raise ValueError(
                f"transform='fft' with basis={group['basis']!r}: is the DCT-II's; set "
                "basis='dct2' or transform='product'"
            )
        for option in ("gap", "max_shape"):
            value = group[option]
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{option}={value!r}: must be an int of at least 1; raise it")
        bits = group["feedback_bits"]
        if bits is not None and bits not in BITS:
            raise ValueError(f"feedback_bits={bits!r}: must be None, 4 or 8; choose one")
        if bits is not None and group["residual"] != "feedback":
            raise ValueError(
                f"feedback_bits={bits} with residual={group['residual']!r}: nothing is fed back; "
                "set residual='feedback' or feedback_bits=None"
            )
        for i, beta in enumerate(group["betas"]):
            require_momentum(f"betas[{i}]", beta)
        if not 0 <= group["eps"] < math.inf:
            raise ValueError(f"eps={group['eps']}: must be finite and not negative; 1e-8 is usual")

    def describe(self) -> str:
        """Return a line for each parameter: how it is projected, and its rank."""
        lines = []
        for number, place, parameter, group in layers_of(self):
            shape = "x".join(map(str, parameter.shape)) or "scalar"
            text = f"{name_parameter(group, number, place)}: {shape}, "
            if self._low_rank(parameter, group):
                n, rank = _columns(parameter), _rank(parameter, group)
                side = "right" if tall(parameter) else "left"
                text += f"{group['basis']} from the {side}, rank {rank} of {n}"
                if group["rank"] > n:
                    text += f" (asked for {group['rank']})"
            else:
                text += "plain AdamW"
            lines.append(text)
        return "\n".join(lines)

    @staticmethod
    def _low_rank(parameter: Tensor, group: dict[str, Any]) -> bool:
        small = parameter.ndim > 1 and max(parameter.flatten(1).shape) < group["max_shape"]
        return small and group["rank"] is not None

    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        assert parameter.grad is not None
        if not self._low_rank(parameter, group):
            gradient = parameter.grad.to(working_dtype(parameter))
            update, rate = _adam(state, gradient, group)
            parameter.add_(update.to(parameter.dtype), alpha=-rate)
            return
        a = as_rows(parameter.grad, parameter)
        if "feedback" in state:
            a = a + _load(state["feedback"], a.shape[1])
        low, back, moved = self._project(a, parameter, group)
        residual = None
        if group["residual"] != "drop":
            residual = a - back(low)
            # A full rank leaves nothing out but rounding, whose sign would be a step.
            if _rank(parameter, group) == a.shape[1]:
                residual.zero_()
        if group["residual"] == "feedback":
            assert residual is not None
            bits = group["feedback_bits"]
            state["feedback"] = residual if bits is None else encode(residual, bits)
        if moved is not None and group["rotate"]:
            state["m"], state["v"] = moved(state["m"], False), moved(state["v"], True)
        update, rate = _adam(state, low, group)
        add_rows(parameter, back(update), -rate)
        if group["residual"] == "sign":
            assert residual is not None
            add_rows(parameter, residual.sign(), -group["lr"])

    def _project(self, a: Tensor, parameter: Tensor, group: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Return low, the way back from it, and how moments move (None if they need not)."""
        state = self.state[parameter]
        refresh = state["step"] == 1 or state["step"] % group["gap"] == 0
        project = self._project_svd if group["basis"] == "svd" else self._project_columns
        low, back, moved = project(a, state, _rank(parameter, group), refresh, group)
        whole = float(torch.linalg.vector_norm(a, dtype=torch.float64)) ** 2
        part = float(torch.linalg.vector_norm(low, dtype=torch.float64)) ** 2
        self.kept_energy[parameter] = part / whole if whole else 1.0
        return low, back, moved if refresh and state["step"] > 1 else None

    def _select(self, s: Tensor, rank: int, group: dict[str, Any]) -> Tensor:
        """Return the columns of ``s = A D`` to work on, (rank,) int64 ascending."""
        return choose(s, rank, group["norm"])

    def _project_columns(
        self, a: Tensor, state: dict[str, Any], rank: int, refresh: bool, group: dict[str, Any]
    ) -> tuple[Any, Any, Any]:
        n, basis = a.shape[1], group["basis"]
        old = state["indices"].long() if "indices" in state else None
        if refresh:
            s = transform_rows(a, basis, group["transform"])
            indices = self._select(s, rank, group)
            state["indices"] = indices.to(index_dtype(n))
            low = s[:, indices]
        else:
            assert old is not None
            indices = old
            low = (
                transform_rows(a, basis, group["transform"])[:, indices]
                if group["transform"] == "fft" or basis == "identity"
                else _scaled(a, basis_matrix(basis, n, a.dtype)[:, indices])
            )

        def back(x: Tensor) -> Tensor:
            if basis == "identity":
                return x.new_zeros(len(x), n).index_copy(1, indices, x)
            return _scaled(x, basis_matrix(basis, n, x.dtype)[:, indices].mT)

        def moved(moment: Tensor, _: bool) -> Tensor:
            assert old is not None
            stays = torch.isin(indices, old)
            out = torch.zeros_like(moment)
            out[:, stays] = moment[:, torch.searchsorted(old, indices[stays])]
            return out

        return low, back, moved

    def _project_svd(
        self, a: Tensor, state: dict[str, Any], rank: int, refresh: bool, group: dict[str, Any]
    ) -> tuple[Any, Any, Any]:
        old = state.get("vectors")
        if refresh:
            state["vectors"] = torch.linalg.svd(a, full_matrices=False)[2][:rank].mT.contiguous()
        vectors = state["vectors"]

        def moved(moment: Tensor, second: bool) -> Tensor:
            assert old is not None
            turned = _scaled(moment, old.mT @ vectors)
            return turned.abs() if second else turned

        return _scaled(a, vectors), lambda x: _scaled(x, vectors.mT), moved


def _columns(parameter: Tensor) -> int:
    return min(parameter.flatten(1).shape)


def _rank(parameter: Tensor, group: dict[str, Any]) -> int:
    return min(int(group["rank"]), _columns(parameter))


def _scaled(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``, a scaled by a power of two for the product: float16 holds it then."""
    scale = power_of_two(a)
    return (a / scale) @ b * scale


def _load(feedback: Tensor | dict[str, Tensor], cols: int) -> Tensor:
    return feedback if isinstance(feedback, Tensor) else decode(feedback, cols)


def _adam(state: dict[str, Any], g: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
    """Move a state's moments by g; return the update and the rate it takes."""
    if "m" not in state:
        state["m"], state["v"] = torch.zeros_like(g), torch.zeros_like(g)
    first, second = group["betas"]
    m, v, step = state["m"], state["v"], state["step"]
    m.lerp_(g, 1 - first)
    v.mul_(second).addcmul_(g, g, value=1 - second)
    root = math.sqrt(1 - second**step)
    update = m / (v.sqrt() + group["eps"] * root)
    return update, group["lr"] * root / (1 - first**step)
