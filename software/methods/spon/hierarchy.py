"""Nested meshes: prolongations, restrictions and adjacencies of their P1 spaces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from skfem import Basis, ElementTetP1, ElementTriP1, Mesh, MeshTet, MeshTri

_P1 = {MeshTri: ElementTriP1, MeshTet: ElementTetP1}


class MeshHierarchy:
    """Meshes from coarse to fine, each a refinement of the one before.

    Parameters
    ----------
    meshes : sequence of skfem.Mesh
        Triangles or tetrahedra, coarse first; the nodes of one come first in the next, as
        scikit-fem's ``refined`` leaves them, or anywhere in it.

    Attributes
    ----------
    points : list of ndarray
        (nodes of level l, dim).
    adjacency : list of csr_matrix
        (n_l, n_l): a node, and those that share a triangle; rows sum to 1.
    prolongation : list of csr_matrix
        [l] from level l - 1 to level l, (n_l, n_{l-1}): the coarse basis at the fine nodes; rows
        sum to 1. [0] is empty.
    restriction : list of csr_matrix
        [l] from level l to level l - 1: its transpose, rows normalised to 1.

    Raises
    ------
    ValueError
        No mesh, another kind of mesh, or meshes that are not nested.
    """

    def __init__(self, meshes: Sequence[Mesh]) -> None:
        if not meshes:
            raise ValueError("meshes=[]: a hierarchy has at least one level")
        self.meshes = list(meshes)
        self.points = [mesh.p.T.copy() for mesh in self.meshes]
        self.adjacency = [_adjacency(mesh) for mesh in self.meshes]
        empty = scipy.sparse.csr_matrix((0, 0))
        self.prolongation, self.restriction = [empty], [empty]
        for level, (coarse, fine) in enumerate(zip(meshes, meshes[1:], strict=False), 1):
            _check_nested(level, coarse, fine)
            prolong = _basis(coarse).probes(fine.p).tocsr()
            prolong.data[np.abs(prolong.data) < 1e-12] = 0
            prolong.eliminate_zeros()
            self.prolongation.append(prolong)
            self.restriction.append(_averages(prolong.T.tocsr()))

    @classmethod
    def from_skfem(cls, mesh: Mesh, levels: int) -> MeshHierarchy:
        """Return a mesh and its uniform refinements, ``levels`` in all.

        Raises
        ------
        ValueError
            Fewer than one level.
        """
        if levels < 1:
            raise ValueError(f"levels={levels}: a hierarchy has at least one level")
        return cls([mesh.refined(i) if i else mesh for i in range(levels)])

    def __len__(self) -> int:
        return len(self.meshes)


def _basis(mesh: Mesh) -> Basis:
    for kind, element in _P1.items():
        if isinstance(mesh, kind):
            return Basis(mesh, element())
    raise ValueError(f"{type(mesh).__name__}: a hierarchy is of triangles or tetrahedra")


def _adjacency(mesh: Mesh) -> scipy.sparse.csr_matrix:
    corners, nodes = mesh.t, mesh.p.shape[1]
    pairs = [(a, b) for a in range(len(corners)) for b in range(len(corners))]
    row = np.concatenate([corners[a] for a, _ in pairs])
    col = np.concatenate([corners[b] for _, b in pairs])
    matrix = scipy.sparse.csr_matrix((np.ones(len(row)), (row, col)), (nodes, nodes))
    matrix.data[:] = 1
    return _averages(matrix)


def _averages(matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    sums = np.asarray(matrix.sum(1)).ravel()
    return (scipy.sparse.diags(1 / sums) @ matrix).tocsr()


def _check_nested(level: int, coarse: Mesh, fine: Mesh) -> None:
    known = {tuple(np.round(point, 9) + 0.0) for point in fine.p.T}
    for node, point in enumerate(coarse.p.T):
        if tuple(np.round(point, 9) + 0.0) not in known:
            raise ValueError(
                f"level {level}: not nested, node {node} of the coarse mesh at {tuple(point)} is "
                "no node of the fine one; make levels with mesh.refined()"
            )
