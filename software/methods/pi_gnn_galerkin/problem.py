"""A discrete problem: which coefficients are free, which are set, and which rows count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sat.methods.pi_gnn_galerkin.space import FemSpace, Form, MixedSpace

KINDS = ("hard", "soft")
Coefficients = Tensor | dict[str, Tensor]
"""(n,) or (n, components); of a mixed space, by name."""


@dataclass(frozen=True)
class Observations:
    """What is known of a solution.

    Parameters
    ----------
    nodes : sequence of int
    values : sequence of float
        One a node.
    kind : {"hard", "soft"}
        Set exactly, while the rows of these nodes stay in the loss: that is what determines
        unknown parameters. Or a penalty on the mean square of what is off, for noisy data.
    penalty : float
        Of soft ones.
    unknown : str, optional
        Of a mixed space.
    component : int
    """

    nodes: Sequence[int]
    values: Sequence[float]
    kind: str = "hard"
    penalty: float = 1.0
    unknown: str | None = None
    component: int = 0


class GalerkinProblem:
    """R(U; μ) = 0 for the coefficients of a weak form, with values set on parts of the boundary.

    Coefficients of all unknowns are one vector: unknown by unknown, node by node, component by
    component.

    Parameters
    ----------
    space : FemSpace or MixedSpace
    form : callable
    dirichlet : mapping
        Place to value, the place being ``[unknown.]boundary[.component]``, with ``"boundary"`` the
        whole one and ``"node17"`` a single node; the value a number, or a function of nodes
        (k, dim) to (k,). Their rows are no part of the residual. Where places meet, the later one
        holds.
    observed : Observations, optional
    params : mapping, optional
        Parameters that are sought, by name: where to start.
    components : int
        Of a `FemSpace`'s field.
    neumann : mapping, optional
        ``[unknown.]boundary`` to flux · n, as `FemSpace.boundary` takes it; 0 elsewhere.
    features : torch.Tensor, optional
        (n, k) float64 of every node, which networks see beside its coordinates.

    Attributes
    ----------
    rows, held : torch.Tensor
        (size,) bool: rows of the loss; coefficients that are set.

    Raises
    ------
    ValueError
        If a place, a value or an observation breaks its rule, parameters are sought without data,
        or the solution is free up to a constant.

    Source
    ------
    arXiv 2107.12146, section 2; the released ``source/TensorFEMCore.py`` (rows of observations).
    """

    def __init__(
        self,
        space: FemSpace | MixedSpace,
        form: Form,
        dirichlet: Mapping[str, Any],
        observed: Observations | None = None,
        params: Mapping[str, float] | None = None,
        *,
        components: int = 1,
        neumann: Mapping[str, Any] | None = None,
        features: Tensor | None = None,
    ) -> None:
        self.space, self.form, self.observed = space, form, observed
        self.unknowns = (
            space.unknowns if isinstance(space, MixedSpace) else {"": (space, components)}
        )
        self.params, self.neumann = dict(params or {}), dict(neumann or {})
        self.starts: dict[str, int] = {}
        self.size = 0
        for name, (one, count) in self.unknowns.items():
            self.starts[name] = self.size
            self.size += one.n * count
        self.held = torch.zeros(self.size, dtype=torch.bool)
        self.values = torch.zeros(self.size, dtype=torch.float64)
        self.features = features
        for place, value in dirichlet.items():
            self._hold(place, value)
        self.rows = ~self.held
        if self.params and observed is None:
            raise ValueError(
                f"params={self.params} are sought without data: any would do; give observed=..."
            )
        if observed is not None:
            self._observe(observed)
        self._require_finite()
        self._require_pins()

    # -------------------------------------------------------------------------------- coefficients

    def index(self, nodes: Tensor, component: int = 0, unknown: str | None = None) -> Tensor:
        """Return places of nodes' coefficients in the vector of all.

        Raises
        ------
        ValueError
            If there is no such unknown, component or node.
        """
        name = unknown or next(iter(self.unknowns))
        if name not in self.unknowns or (unknown is None and len(self.unknowns) > 1):
            raise ValueError(f"unknown {unknown!r}: must be one of {sorted(self.unknowns)}")
        space, count = self.unknowns[name]
        if not 0 <= component < count:
            raise ValueError(f"component {component}: {name or 'the field'} has {count}")
        if len(nodes) and not 0 <= int(nodes.min()) <= int(nodes.max()) < space.n:
            raise ValueError(
                f"nodes {int(nodes.min())} to {int(nodes.max())}: the space has {space.n}"
            )
        return self.starts[name] + nodes * count + component

    def split(self, flat: Tensor) -> Coefficients:
        """Return the vector of all coefficients (size,) as (n,), (n, components), or by name."""
        out = {}
        for name, (space, count) in self.unknowns.items():
            part = flat[self.starts[name] : self.starts[name] + space.n * count]
            out[name] = part if count == 1 else part.view(space.n, count)
        return out if isinstance(self.space, MixedSpace) else out[""]

    def placed(self, raw: Tensor) -> Tensor:
        """Return raw (size,) with the values that are set in their places: a selection."""
        return torch.where(self.held, self.values, raw)

    # ------------------------------------------------------------------------------------ residual

    def residual(self, flat: Tensor, params: Mapping[str, Any] | None = None) -> Tensor:
        """Return all rows of R (size,) at coefficients (size,) and parameters.

        Raises
        ------
        ValueError
            If the form breaks its rule.
        """
        given = self.params if params is None else params
        u = self.split(flat)
        if isinstance(self.space, MixedSpace):
            assert isinstance(u, dict)
            made = self.space.residual(self.form, u, **given)
        else:
            assert isinstance(u, Tensor)
            made = {"": self.space.residual(self.form, u, **given)}
        for place, flux in self.neumann.items():
            name, boundary = self._named(place)
            space, count = self.unknowns[name]
            made[name] = made[name] - space.boundary(boundary, flux, given, count)
        return torch.cat([made[name].flatten() for name in self.unknowns])

    def loss(self, flat: Tensor, params: Mapping[str, Any] | None = None) -> Tensor:
        """Return ‖R‖₂ of the rows that count, and the penalty of soft observations.

        The norm is not squared, as in the released code.
        """
        return self.residual(flat, params)[self.rows].norm() + self.penalty(flat)

    def energy(self, flat: Tensor, params: Mapping[str, Any] | None = None) -> Tensor:
        """Return ½ Uᵀ K U - Fᵀ U of a linear form, R(U) = K U - F, and the penalty."""
        load = self.residual(torch.zeros_like(flat), params)
        return 0.5 * (flat * (self.residual(flat, params) + load)).sum() + self.penalty(flat)

    def penalty(self, flat: Tensor) -> Tensor:
        """Return the weighted mean square of what is off at soft observations."""
        if self.observed is None or self.observed.kind != "soft":
            return flat.new_zeros(())
        return self.observed.penalty * (flat[self._seen] - self._data).square().mean()

    def require_energy(self) -> None:
        """Raise ValueError unless the form is linear, symmetric, and seeks no parameters."""
        if self.params:
            raise ValueError("loss='energy': has no meaning for sought parameters; use 'residual'")
        generator = torch.Generator().manual_seed(0)
        v, w = torch.randn(2, self.size, generator=generator, dtype=torch.float64)
        zero = self.residual(torch.zeros_like(v))
        kv, kw = self.residual(v) - zero, self.residual(w) - zero
        scale = float(kv.norm() * w.norm())
        linear = (self.residual(2 * v) - zero - 2 * kv).norm() * w.norm()
        symmetric = (v * kw).sum() - (w * kv).sum()
        if float(linear) > 1e-9 * scale or abs(float(symmetric)) > 1e-9 * scale:
            raise ValueError(
                "loss='energy': the form is not linear and symmetric, so it minimises no energy; "
                "use 'residual'"
            )

    # ----------------------------------------------------------------------------------- arguments

    def _named(self, place: str) -> tuple[str, str]:
        """Return the unknown and the rest of a place."""
        if not isinstance(self.space, MixedSpace):
            return "", place
        name, _, rest = place.partition(".")
        if name not in self.unknowns or not rest:
            raise ValueError(
                f"{place!r}: must begin with an unknown and a dot; unknowns are "
                f"{sorted(self.unknowns)}"
            )
        return name, rest

    def _hold(self, place: str, value: Any) -> None:
        name, rest = self._named(place)
        where, _, digits = rest.partition(".")
        space, count = self.unknowns[name]
        if digits and not digits.isdigit():
            raise ValueError(f"{place!r}: component {digits!r} must be a number below {count}")
        if where.startswith("node") and where[4:].isdigit():
            nodes = torch.tensor([int(where[4:])])
        else:
            nodes = space.where(where)
        for component in [int(digits)] if digits else range(count):
            at = self.index(nodes, component, name)
            given = value(space.nodes[nodes]) if callable(value) else value
            values = torch.as_tensor(given, dtype=torch.float64)
            if values.shape not in ((), (len(nodes),)):
                raise ValueError(
                    f"{place!r}: values of shape {tuple(values.shape)}: must be a number or "
                    f"({len(nodes)},)"
                )
            self.held[at], self.values[at] = True, values

    def _observe(self, observed: Observations) -> None:
        if observed.kind not in KINDS:
            raise ValueError(f"kind={observed.kind!r}: must be one of {', '.join(KINDS)}")
        if observed.kind == "soft" and not 0 < observed.penalty < float("inf"):
            raise ValueError(f"penalty={observed.penalty}: must be positive and finite")
        if not len(observed.nodes) or len(observed.nodes) != len(observed.values):
            raise ValueError(
                f"{len(observed.nodes)} nodes and {len(observed.values)} values observed: must be "
                "as many, and one at least"
            )
        nodes = torch.as_tensor(observed.nodes, dtype=torch.int64)
        self._seen = self.index(nodes, observed.component, observed.unknown)
        self._data = torch.as_tensor(observed.values, dtype=torch.float64)
        if not bool(self._data.isfinite().all()):
            raise ValueError("observed values have NaNs or infinities: leave those nodes out")
        clash = self.held[self._seen] & (self.values[self._seen] != self._data)
        if bool(clash.any()):
            first = int(clash.nonzero()[0])
            raise ValueError(
                f"node {int(nodes[first])}: observed {float(self._data[first]):g}, but set to "
                f"{float(self.values[self._seen[first]]):g} on the boundary; drop one of them"
            )
        if observed.kind == "hard":
            self.held[self._seen], self.values[self._seen] = True, self._data
            twice = self.values[self._seen] != self._data
            if bool(twice.any()):
                raise ValueError(
                    f"node {int(nodes[int(twice.nonzero()[0])])}: observed twice, with different "
                    "values; give their mean, or kind='soft'"
                )

    def _require_finite(self) -> None:
        if not bool(self.values.isfinite().all()):
            raise ValueError("dirichlet values have NaNs or infinities: give finite ones")
        for name, value in self.params.items():
            if not -float("inf") < value < float("inf"):
                raise ValueError(f"params: {name}={value} must be finite")
        for name, (space, _) in self.unknowns.items():
            if self.features is not None and (
                self.features.ndim != 2
                or len(self.features) != space.n
                or not bool(self.features.isfinite().all())
            ):
                raise ValueError(
                    f"features of shape {tuple(self.features.shape)}: must be ({space.n}, k) and "
                    f"finite, of every node {('of ' + name) if name else ''}".rstrip()
                )

    def _require_pins(self) -> None:
        """Raise if adding a constant to a component without values changes no row."""
        pinned = self.held.clone()
        if self.observed is not None:  # of soft ones the penalty pins
            pinned[self._seen] = True
        generator = torch.Generator().manual_seed(0)
        flat = torch.randn(self.size, generator=generator, dtype=torch.float64)
        before = self.residual(flat)
        for name, (space, count) in self.unknowns.items():
            for component in range(count):
                at = self.index(torch.arange(space.n), component, name)
                if bool(pinned[at].any()):
                    continue
                moved = flat.clone()
                moved[at] += 1
                change = (self.residual(moved) - before)[self.rows].norm()
                if float(change) < 1e-10 * float(before.norm()):
                    raise ValueError(
                        f"component {component} of {name or 'the field'} is free up to a "
                        "constant: set a value on a boundary, or pin one node ('node0': 0.0)"
                    )
