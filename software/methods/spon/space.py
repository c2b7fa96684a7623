"""Finite-element spaces as tensors: Gram matrices, fixed and identified dofs, functions, norms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import scipy.sparse
import torch
from skfem import Basis, BilinearForm
from skfem.helpers import ddot, dot, grad
from torch import Tensor, nn

DENSE = 1024
"""Dofs up to which a matrix of a space multiplies as a dense product; above it, sparse."""

Function = Callable[[Tensor], Tensor]
"""Points (P, dim) of float64 to values (…, P), or (…, P, components) of a vector field."""


class FeSpace:
    """A finite-element space V_h = span{phi_i} with what is known of its functions.

    Parameters
    ----------
    basis : skfem.Basis
    fixed : Tensor
        (dofs,) bool: where a boundary value is set.
    expand : Tensor
        (dofs of the basis,) int64: the space's dof that each is; not one to one where dofs are
        identified.

    Attributes
    ----------
    dofs : int
    mass, stiffness : scipy.sparse.csr_matrix
        float64; of vector fields, the product is that of vectors, and of gradients where the
        element has one.
    points : Tensor
        (dofs, dim) float64: where each dof sits.
    """

    def __init__(self, basis: Basis, fixed: Tensor, expand: Tensor) -> None:
        self.basis, self.fixed, self.expand = basis, fixed, expand
        self.dofs = int(expand.max()) + 1
        self.components = 1 if np.asarray(basis.basis[0][0]).ndim == 2 else basis.mesh.dim()
        self._fold = scipy.sparse.csr_matrix(
            (np.ones(basis.N), (np.arange(basis.N), expand.numpy())), (basis.N, self.dofs)
        )
        first = np.zeros(self.dofs, dtype=np.int64)
        first[expand.numpy()[::-1]] = np.arange(basis.N)[::-1]
        self.points = torch.from_numpy(basis.doflocs.T[first].copy())
        self.mass = self._gram(lambda u, v, w: u * v if self.components == 1 else dot(u, v))
        self._grams: dict[str, tuple[Operator, float]] = {}
        self._stiffness: scipy.sparse.csr_matrix | None = None
        diagonal = self.mass.diagonal()
        if not (np.isfinite(diagonal).all() and diagonal.min() > 0):
            raise ValueError(
                f"the mass matrix of {basis.elem} is singular at dof {int(diagonal.argmin())}: no "
                "function of the space has support there (duplicate nodes, elements of no area); "
                "clean the mesh"
            )

    @classmethod
    def from_skfem(
        cls,
        basis: Basis,
        dirichlet: Any = None,
        periodic: Iterable[tuple[int, int]] = (),
    ) -> FeSpace:
        """Return the space of a scikit-fem basis.

        Parameters
        ----------
        basis : skfem.Basis
            Any element with values of its own: P1, P2, vectors of them, Raviart-Thomas.
        dirichlet : None, True, str, or dofs
            Where boundary values are set: nowhere; on the whole boundary; on the mesh's boundary
            of that name; at these dofs.
        periodic : pairs of int
            Dofs that are one: (kept, replaced).

        Raises
        ------
        ValueError
            An unknown boundary, a dof that there is not, an element without Gram matrix, or a
            singular mass matrix.
        """
        if not hasattr(basis, "doflocs") or np.asarray(basis.basis[0][0]).ndim > 3:
            raise ValueError(
                f"{basis.elem}: has no Gram matrix here; use scalar elements, vectors of them, or "
                "H(div) and H(curl) ones"
            )
        # Order 2p + 2: products of a function with the basis are integrated well, too.
        with np.errstate(all="ignore"):  # a flat element is told by its mass, below
            basis = Basis(basis.mesh, basis.elem, intorder=2 * basis.elem.maxdeg + 2)
        owner = np.arange(basis.N)
        for kept, replaced in periodic:
            for dof in (kept, replaced):
                if not 0 <= dof < basis.N:
                    raise ValueError(f"periodic dof {dof}: the basis has {basis.N} dofs")
            owner[owner == owner[replaced]] = owner[kept]
        _, expand = np.unique(owner, return_inverse=True)
        fixed = np.zeros(int(expand.max()) + 1, dtype=bool)
        fixed[expand[cls._dirichlet(basis, dirichlet)]] = True
        return cls(basis, torch.from_numpy(fixed), torch.from_numpy(expand.astype(np.int64)))

    @staticmethod
    def _dirichlet(basis: Basis, dirichlet: Any) -> np.ndarray:
        if dirichlet is None or dirichlet is False:
            return np.zeros(0, dtype=np.int64)
        if dirichlet is True:
            return np.asarray(basis.get_dofs().flatten())
        if isinstance(dirichlet, str):
            known = basis.mesh.boundaries or {}
            if dirichlet not in known:
                raise ValueError(
                    f"dirichlet={dirichlet!r}: the mesh has no boundary of that name; it has "
                    f"{', '.join(known) or 'none'}"
                )
            return np.asarray(basis.get_dofs(dirichlet).flatten())
        dofs = np.asarray(dirichlet).ravel()
        if dofs.size and not (dofs.min() >= 0 and dofs.max() < basis.N):
            raise ValueError(
                f"dirichlet dofs {dofs.min()} to {dofs.max()}: the basis has {basis.N}"
            )
        return dofs.astype(np.int64)

    def _gram(self, form: Callable[..., Any]) -> scipy.sparse.csr_matrix:
        whole = BilinearForm(form).assemble(self.basis)
        return (self._fold.T @ whole @ self._fold).tocsr()

    @property
    def stiffness(self) -> scipy.sparse.csr_matrix:
        """Products of gradients.

        Raises
        ------
        ValueError
            The element has none.
        """
        if self._stiffness is None:
            if self.basis.basis[0][0].grad is None:
                raise ValueError(
                    f"{self.basis.elem}: has no gradients, so no H1 norm; use kind='l2'"
                )
            product = dot if self.components == 1 else ddot
            self._stiffness = self._gram(lambda u, v, w: product(grad(u), grad(v)))
        return self._stiffness

    def gram(self, kind: str) -> tuple[Operator, float]:
        """Return the matrix of a norm, times a power of two, and that power.

        "l2" is the mass, "h1" mass and stiffness. The power brings the largest entry near 1,
        where float16 is at its best.

        Raises
        ------
        ValueError
            Another kind, or an element without gradients.
        """
        if kind not in ("l2", "h1"):
            raise ValueError(f"kind={kind!r}: must be 'l2' or 'h1'")
        if kind not in self._grams:
            matrix = self.mass if kind == "l2" else self.mass + self.stiffness
            scale = float(2.0 ** round(-np.log2(matrix.diagonal().max())))
            self._grams[kind] = Operator(matrix * scale), scale
        return self._grams[kind]

    def load(self, f: Function) -> Tensor:
        """Return b_i = ∫ f phi_i by quadrature of order 2p + 2.

        Parameters
        ----------
        f : callable
            Points (P, dim) to values (…, P), or (…, P, components) of a vector field.

        Returns
        -------
        Tensor
            (…, dofs) float64.

        Raises
        ------
        ValueError
            The values have another shape, or are not finite.
        """
        basis = self.basis
        where = np.asarray(basis.global_coordinates())
        dim, cells, nodes = where.shape
        values = f(torch.from_numpy(where.reshape(dim, -1).T.copy()))
        values = self.checked(values, cells * nodes)
        lead = values.shape[: -1 if self.components == 1 else -2]
        flat = values.reshape(-1, cells, nodes, self.components).numpy()
        local = np.stack([np.asarray(phi[0]) for phi in basis.basis])
        local = local.reshape(len(local), self.components, cells, nodes)
        parts = np.einsum("bcqk,ikcq,cq->bic", flat, local, basis.dx, optimize=True)
        out = np.zeros((len(flat), basis.N))
        for i, dofs in enumerate(basis.element_dofs):
            for sample, part in zip(out, parts[:, i], strict=True):
                np.add.at(sample, dofs, part)
        return torch.from_numpy(out @ self._fold).reshape(*lead, self.dofs)

    def checked(self, values: Any, points: int) -> Tensor:
        """Return what a function gave as float64, or say what is wrong with it."""
        values = torch.as_tensor(values).detach().to(torch.float64)
        tail = (points,) if self.components == 1 else (points, self.components)
        if tuple(values.shape[values.dim() - len(tail) :]) != tail:
            raise ValueError(
                f"the function returned shape {tuple(values.shape)} for {points} points: must end "
                f"in {tail}"
            )
        if not values.isfinite().all():
            raise ValueError("the function returned NaN or infinite values")
        return values

    def probes(self, points: Tensor) -> scipy.sparse.csr_matrix:
        """Return the matrix (components · P, dofs) from coefficients to values at points.

        Raises
        ------
        ValueError
            A point lies outside the mesh; the first is named.
        """
        at = points.detach().to(torch.float64).cpu().numpy()
        dim = self.basis.mesh.dim()
        if at.ndim != 2 or at.shape[1] != dim:
            raise ValueError(f"points of shape {at.shape}: must be (points, {dim})")
        try:
            return (self.basis.probes(at.T) @ self._fold).tocsr()
        except ValueError as error:
            for point in at:
                try:
                    self.basis.probes(point[:, None])
                except ValueError:
                    raise ValueError(f"point {tuple(point)}: lies outside the mesh") from error
            raise

    def check_coefficients(self, y: Tensor, what: str = "coefficients") -> None:
        """Raise ValueError unless a tensor ends in as many numbers as the space has dofs."""
        if y.dim() < 1 or y.shape[-1] != self.dofs:
            given = y.shape[-1] if y.dim() else "a scalar"
            raise ValueError(f"{what} of length {given}: this space has n={self.dofs} dofs")

    def same_domain(self, other: FeSpace) -> bool:
        """Whether another space lies on the same domain: bounds and area agree."""
        ours, theirs = (np.concatenate([
            space.basis.mesh.p.min(1), space.basis.mesh.p.max(1), [space.basis.dx.sum()],
        ]) for space in (self, other))  # fmt: skip
        return ours.shape == theirs.shape and bool(np.allclose(ours, theirs, rtol=1e-6, atol=1e-9))


class FeFunction:
    """A batch of functions of a space: sum of y_j psi_j.

    Parameters
    ----------
    space : FeSpace
    dofs : Tensor
        (…, dofs).
    """

    def __init__(self, space: FeSpace, dofs: Tensor) -> None:
        space.check_coefficients(dofs)
        self.space, self.dofs = space, dofs

    def at(self, points: Tensor) -> Tensor:
        """Return values (…, P), or (…, P, components), at points (P, dim) of the domain.

        Raises
        ------
        ValueError
            A point lies outside the mesh.
        """
        flat = Operator(self.space.probes(points))(self.dofs.reshape(-1, self.space.dofs))
        lead = self.dofs.shape[:-1]
        if self.space.components == 1:
            return flat.reshape(*lead, len(points))
        # The probes stack components.
        return flat.reshape(*lead, self.space.components, len(points)).transpose(-1, -2)


class Operator(nn.Module):
    """A fixed matrix (m, n) that multiplies coefficients: x (…, n) to x · matrixᵀ (…, m).

    A dense product up to `DENSE` rows and columns, so that it can be offloaded; above that a
    sparse one, on the host.
    """

    transposed: Tensor

    def __init__(self, matrix: scipy.sparse.spmatrix) -> None:
        super().__init__()
        self.rows, self.sparse = matrix.shape[0], max(matrix.shape) > DENSE
        if self.sparse:
            coo = matrix.tocoo()
            index = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
            made = torch.sparse_coo_tensor(
                index, torch.from_numpy(coo.data), matrix.shape, check_invariants=True
            )
        else:
            made = torch.from_numpy(matrix.toarray().T.copy())
        self.register_buffer("transposed", made, persistent=False)
        self._cast: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, m)."""
        if self._cast is None or self._cast.dtype != x.dtype or self._cast.device != x.device:
            self._cast = self.transposed.to(x)
        if not self.sparse:
            return x @ self._cast
        flat = x.reshape(-1, x.shape[-1])
        return (self._cast @ flat.T).T.reshape(*x.shape[:-1], self.rows)


def fe_norm(y: Tensor, space: FeSpace, kind: str = "l2") -> Tensor:
    """Return the norms (…) of functions y (…, dofs): sqrt(yᵀ M y), or sqrt(yᵀ (M + K) y).

    Raises
    ------
    ValueError
        A wrong length, another kind, or an element without gradients.
    """
    space.check_coefficients(y)
    product, scale = space.gram(kind)
    return ((y * product(y)).sum(-1) / scale).clamp_min(0).sqrt()


def relative_fe_error(y: Tensor, target: Tensor, space: FeSpace, kind: str = "l2") -> Tensor:
    """Return the norm of y - target over that of target, for each sample (…)."""
    return fe_norm(y - target, space, kind) / fe_norm(target, space, kind)
