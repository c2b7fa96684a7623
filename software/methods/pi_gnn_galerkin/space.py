"""Finite-element spaces as tables of quadrature: residuals of weak forms, differentiable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from skfem import Basis, FacetBasis
from skfem.assembly.basis import AbstractBasis
from torch import Tensor

from sat.methods.pi_gnn_galerkin.graph import scaled_laplacian

Form = Callable[..., Any]
"""Values u, gradients du, places x and parameters to (flux, source)."""

EVERYWHERE = "boundary"
"""The name of the whole boundary."""


class Table:
    """Quadrature on elements or facets.

    Attributes
    ----------
    phi : torch.Tensor
        (elements, q, i), or (1, q, i) where all are alike.
    dphi : torch.Tensor
        (elements, q, i, dim): derivatives in space.
    w : torch.Tensor
        (elements, q): weights times the size of the element.
    dofs : torch.Tensor
        (elements, i) int64.
    x : torch.Tensor
        (elements, q, dim).
    """

    def __init__(self, basis: AbstractBasis) -> None:
        values = np.stack([np.asarray(one[0]) for one in basis.basis], -1)
        if (values == values[:1]).all():
            values = values[:1]
        slopes = np.stack([one[0].grad for one in basis.basis], -1)
        self.phi = torch.from_numpy(values)
        self.dphi = torch.from_numpy(np.moveaxis(slopes, 0, -1).copy())
        self.w = torch.from_numpy(np.array(basis.dx))
        self.dofs = torch.from_numpy(basis.element_dofs.T.astype(np.int64))
        places = np.moveaxis(np.asarray(basis.global_coordinates()), 0, -1)
        self.x = torch.from_numpy(places.copy())

    def interpolate(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (e, q, …) and gradients (e, q, …, dim) of coefficients u (n, …)."""
        # Sums, not products: K's condition number is that of h^-2, and the loss squares it.
        local = u[self.dofs].unsqueeze(1)
        tail = (1,) * (u.ndim - 1)
        phi = self.phi.reshape(*self.phi.shape, *tail)
        dphi = self.dphi.reshape(*self.dphi.shape[:3], *tail, -1)
        return (phi * local).sum(2), (dphi * local.unsqueeze(-1)).sum(2)

    def scatter(self, parts: Tensor, n: int) -> Tensor:
        """Return sums (n, …) of what elements, quadrature nodes and functions (e, q, i, …) have."""
        weighted = (self.w.reshape(*self.w.shape, *(1,) * (parts.ndim - 2)) * parts).sum(1)
        out = weighted.new_zeros(n, *weighted.shape[2:])
        return out.index_add(0, self.dofs.flatten(), weighted.flatten(0, 1))

    def against_values(self, source: Tensor) -> Tensor:
        """Return source · phi (e, q, i, …) of source (e, q, …)."""
        tail = (1,) * (source.ndim - 2)
        return source.unsqueeze(2) * self.phi.reshape(*self.phi.shape, *tail)


class FemSpace:
    """Scalar Lagrange elements; vector fields are columns of coefficients.

    Parameters
    ----------
    basis : skfem.Basis

    Attributes
    ----------
    n : int
        Nodes.
    nodes : torch.Tensor
        (n, dim) float64.
    phi : torch.Tensor
        (q, i) float64: basis functions at quadrature nodes.
    dphi, w, dofs, x : torch.Tensor
        As of `Table`.

    Raises
    ------
    ValueError
        If the element is no scalar one with a value at each node.
    """

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        first = basis.basis[0][0]
        if np.asarray(first).ndim != 2 or first.grad is None or not hasattr(basis, "doflocs"):
            raise ValueError(
                f"{type(basis.elem).__name__}: must be a scalar Lagrange element (P1, P2, Q1, Q2, "
                "…); components of a vector are columns of its coefficients"
            )
        self.n = int(basis.N)
        self.nodes = torch.from_numpy(basis.doflocs.T.copy())
        self._cells = Table(basis)
        if len(self._cells.phi) != 1:
            raise ValueError(
                f"{type(basis.elem).__name__}: its functions differ from element to element; use "
                "Lagrange elements"
            )
        self.phi, self.dphi, self.w = self._cells.phi[0], self._cells.dphi, self._cells.w
        self.dofs, self.x = self._cells.dofs, self._cells.x
        self._facets: dict[str, Table] = {}

    @classmethod
    def from_skfem(cls, basis: Basis) -> FemSpace:
        """Return the space of a scikit-fem basis, with its quadrature.

        Order p elements want ``intorder`` 2p for linear forms, 3p and more for others.
        """
        return cls(basis)

    @cached_property
    def lhat(self) -> Tensor:
        """The operator (n, n) of `scaled_laplacian`, float64."""
        return scaled_laplacian(self.dofs.numpy(), self.n)

    def where(self, place: str) -> Tensor:
        """Return the nodes (k,) int64 of a boundary, or of the whole one, ``"boundary"``.

        Raises
        ------
        ValueError
            If the mesh has no boundary of that name.
        """
        self._require_place(place)
        chosen = self.basis.get_dofs() if place == EVERYWHERE else self.basis.get_dofs(place)
        return torch.from_numpy(np.sort(chosen.flatten()).astype(np.int64))

    def nearest(self, point: tuple[float, ...]) -> int:
        """Return the node nearest to a point (dim,)."""
        target = torch.tensor(point, dtype=self.nodes.dtype)
        return int((self.nodes - target).square().sum(1).argmin())

    def interpolate(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (e, q, …) and gradients (e, q, …, dim) of coefficients u (n, …)."""
        if u.shape[0] != self.n:
            raise ValueError(f"coefficients of shape {tuple(u.shape)}: must be ({self.n}, …)")
        return self._cells.interpolate(u)

    def integrate(self, flux: Tensor, source: Tensor) -> Tensor:
        """Return ∫ flux · ∇φ_i + source φ_i, (n, …), of flux (e, q, …, dim), source (e, q, …).

        Raises
        ------
        ValueError
            If shapes do not fit one another or the quadrature.
        """
        tail = tuple(source.shape[2:])
        wanted = (*self.w.shape, *tail)
        if tuple(source.shape[:2]) != tuple(self.w.shape) or tuple(flux.shape) != (
            *wanted,
            self.nodes.shape[1],
        ):
            raise ValueError(
                f"form returned flux {tuple(flux.shape)} and source {tuple(source.shape)}: must be "
                f"{(*wanted, self.nodes.shape[1])} and {wanted}, as du and u are"
            )
        dphi = self.dphi.reshape(*self.dphi.shape[:3], *(1,) * len(tail), -1)
        parts = (flux.unsqueeze(2) * dphi).sum(-1) + self._cells.against_values(source)
        return self._cells.scatter(parts, self.n)

    def residual(self, form: Form, u: Tensor, **params: Any) -> Tensor:
        """Return R_i = ∫ F · ∇φ_i + S φ_i for (F, S) = form(u, du, x, params).

        Parameters
        ----------
        form : callable
            Of u (e, q, …), du (e, q, …, dim), x (e, q, dim), and a dict of parameters.
        u : torch.Tensor
            (n,), or (n, components) of a vector field.
        params
            Handed to the form.

        Returns
        -------
        torch.Tensor
            Of u's shape.

        Raises
        ------
        ValueError
            If sizes do not fit, or the form returns others than it was given.
        """
        values, slopes = self.interpolate(u)
        flux, source = form(values, slopes, self.x, params)
        if tuple(flux.shape) != tuple(slopes.shape) or tuple(source.shape) != tuple(values.shape):
            raise ValueError(
                f"form returned flux {tuple(flux.shape)} and source {tuple(source.shape)}: must be "
                f"{tuple(slopes.shape)} and {tuple(values.shape)}, as du and u are"
            )
        return self.integrate(flux, source)

    def boundary(self, place: str, flux: Any, params: Mapping[str, Any], components: int) -> Tensor:
        """Return ∫ g φ_i over a boundary, (n,) or (n, components).

        Parameters
        ----------
        place : str
        flux : float, sequence of float, or callable
            g: a number or one a component, or a function of x (f, q, dim) and parameters.
        params : mapping
        components : int

        Raises
        ------
        ValueError
            If there is no such boundary, or g has another shape.
        """
        self._require_place(place)
        if place not in self._facets:
            basis = FacetBasis(
                self.basis.mesh,
                self.basis.elem,
                facets=None if place == EVERYWHERE else place,
                intorder=self.basis.elem.maxdeg * 2,
            )
            self._facets[place] = Table(basis)
        table = self._facets[place]
        tail = () if components == 1 else (components,)
        given = flux(table.x, params) if callable(flux) else flux
        value = torch.as_tensor(given, dtype=torch.float64)
        wanted = (*table.w.shape, *tail)
        if value.ndim < len(wanted) and value.shape in ((), tail):
            value = value.expand(wanted)
        if tuple(value.shape) != wanted:
            raise ValueError(
                f"boundary {place!r}: its flux has shape {tuple(value.shape)}: must be a number, "
                f"{tail or 'one'}, or {wanted}"
            )
        return table.scatter(table.against_values(value), self.n)

    def _require_place(self, place: str) -> None:
        known = {EVERYWHERE, *(self.basis.mesh.boundaries or {})}
        if place not in known:
            raise ValueError(f"{place!r}: the mesh has no such boundary; it has {sorted(known)}")


class MixedSpace:
    """Several unknowns on one mesh, each in its own space: velocities and pressure.

    Parameters
    ----------
    unknowns : mapping
        Name to (space, components), of one quadrature (scikit-fem's ``intorder``).

    Raises
    ------
    ValueError
        If there is none, or their quadratures differ.
    """

    def __init__(self, unknowns: Mapping[str, tuple[FemSpace, int]]) -> None:
        if not unknowns:
            raise ValueError("a mixed space needs unknowns: give name to (space, components)")
        self.unknowns = dict(unknowns)
        (first, _), *others = self.unknowns.values()
        for name, (space, _) in self.unknowns.items():
            if space.x.shape != first.x.shape or not torch.allclose(space.x, first.x):
                raise ValueError(f"{name}: has another quadrature; give all bases one intorder")
        self.x = first.x

    def residual(self, form: Form, u: Mapping[str, Tensor], **params: Any) -> dict[str, Tensor]:
        """Return the residuals of all unknowns, each of its coefficients' shape.

        Parameters
        ----------
        form : callable
            Of dicts of values and of gradients, x and parameters, to name to (flux, source).
        u : mapping
            Name to coefficients (n,) or (n, components).
        params
            Handed to the form.

        Raises
        ------
        ValueError
            If an unknown is missing, or shapes do not fit.
        """
        pairs = {name: space.interpolate(u[name]) for name, (space, _) in self.unknowns.items()}
        values = {name: pair[0] for name, pair in pairs.items()}
        slopes = {name: pair[1] for name, pair in pairs.items()}
        made = form(values, slopes, self.x, params)
        if set(made) != set(self.unknowns):
            raise ValueError(
                f"form returned {sorted(made)}: must be of the unknowns, {sorted(self.unknowns)}"
            )
        out = {}
        for name, (space, _) in self.unknowns.items():
            if tuple(made[name][1].shape) != tuple(values[name].shape):
                raise ValueError(
                    f"form returned source {tuple(made[name][1].shape)} of {name}: must be "
                    f"{tuple(values[name].shape)}"
                )
            out[name] = space.integrate(*made[name])
        return out
