"""Chebyshev convolutions on the graph of a mesh's nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts

DENSE = 2000
"""Nodes up to which the operator multiplies as a dense product; above it, sparse."""

CHANNELS = (2, 32, 64, 128, 256, 128, 64, 32, 1)
"""Of the paper's network, for one unknown in the plane."""


def scaled_laplacian(element_dofs: ArrayLike, n: int, multiplicity: bool = False) -> Tensor:
    """Return 2 L / λ - I of a mesh's graph, λ = 2 and L = I - D^-½ A D^-½: that is -D^-½ A D^-½.

    Two nodes are joined if they are of one element.

    Parameters
    ----------
    element_dofs : array-like
        (elements, nodes of an element) ints.
    n : int
        Nodes.
    multiplicity : bool
        Whether A counts the elements that a pair shares, as the released code does; else 0 and 1.

    Returns
    -------
    torch.Tensor
        (n, n) float64, dense up to 2000 nodes, else sparse.

    Raises
    ------
    ValueError
        If a node there is not is named, or one has no neighbour.

    Source
    ------
    Defferrard, Bresson, Vandergheynst 2016, arXiv 1606.09375, section 2.1.
    """
    cells = np.asarray(element_dofs)
    require_counts(n=n)
    if cells.ndim != 2 or not cells.size or not 0 <= cells.min() <= cells.max() < n:
        raise ValueError(
            f"element_dofs of shape {cells.shape}: must be (elements, nodes of one), 0 to {n - 1}"
        )
    rows = np.repeat(cells, cells.shape[1], axis=1).ravel()
    cols = np.tile(cells, (1, cells.shape[1])).ravel()
    joined = rows != cols
    graph = scipy.sparse.coo_matrix(
        (np.ones(joined.sum()), (rows[joined], cols[joined])), (n, n)
    ).tocsr()
    if not multiplicity:
        graph.data[:] = 1
    degree = np.asarray(graph.sum(1)).ravel()
    if not degree.all():
        raise ValueError(
            f"node {int(degree.argmin())} has no neighbour, so no D^-½: remove it from the mesh"
        )
    root = scipy.sparse.diags_array(degree**-0.5)
    scaled = (-(root @ graph @ root)).tocoo()
    if n <= DENSE:
        return torch.from_numpy(scaled.toarray())
    index = torch.from_numpy(np.stack([scaled.row, scaled.col]).astype(np.int64))
    return torch.sparse_coo_tensor(
        index, torch.from_numpy(scaled.data), (n, n), check_invariants=True
    ).coalesce()


class ChebConv(nn.Module):
    """y = Σ_k T_k(L̂) X W_k + b with Chebyshev polynomials T_0 to T_(order - 1).

    All W_k are one product, of (n, order · c_in).

    Parameters
    ----------
    c_in, c_out : int
    order : int
        Polynomials; a node sees those up to order - 1 edges away.
    gain : float
        Frobenius norm of each W_k at the start; b starts from 0.

    Raises
    ------
    ValueError
        If a number is no positive int.

    Source
    ------
    arXiv 1606.09375, equation 4; arXiv 2107.12146, section 2; how weights start: the released
    ``source/GCNNModel.py``.
    """

    def __init__(self, c_in: int, c_out: int, order: int = 10, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        require_counts(c_in=c_in, c_out=c_out, order=order)
        self.c_in, self.order, self.gain = c_in, order, gain
        self.mix = nn.Linear(order * c_in, c_out)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew.

        All W_k are orthogonal to one another as vectors, and of one length, as in the released
        code: far smaller than if each were an orthogonal matrix, whose sum over k grows.
        """
        with torch.no_grad():
            weight = self.mix.weight
            rows = weight.new_empty(self.order, self.c_in * len(weight))
            nn.init.orthogonal_(rows, self.gain)
            weight.copy_(rows.view(-1, len(weight)).mT)
            self.mix.bias.zero_()

    def forward(self, x: Tensor, lhat: Tensor) -> Tensor:
        """Return (n, c_out) of x (n, c_in) and the operator (n, n), dense or sparse.

        Raises
        ------
        ValueError
            If sizes do not fit.
        """
        if x.ndim != 2 or x.shape[1] != self.c_in or lhat.shape != (len(x), len(x)):
            raise ValueError(
                f"x {tuple(x.shape)} and lhat {tuple(lhat.shape)}: must be (n, {self.c_in}), (n, n)"
            )
        terms = [x]
        if self.order > 1:
            terms.append(lhat @ x)
        while len(terms) < self.order:
            terms.append(2 * (lhat @ terms[-1]) - terms[-2])
        out: Tensor = self.mix(torch.cat(terms, 1))
        return out


class GraphNet(nn.Module):
    """Chebyshev convolutions with ReLU between, none at the end.

    Parameters
    ----------
    channels : sequence of int
        Of the input, of each layer, of the output.
    order : int

    Raises
    ------
    ValueError
        If there are fewer than two numbers, or one is no positive int.

    Source
    ------
    arXiv 2107.12146, section 2; the released ``source/GCNNModel.py``.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS, order: int = 10) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"channels={channels}: must be of input and output at least")
        pairs = list(zip(channels, channels[1:], strict=False))
        gains = [math.sqrt(2)] * (len(pairs) - 1) + [1.0]
        self.layers = nn.ModuleList(
            ChebConv(*pair, order, gain) for pair, gain in zip(pairs, gains, strict=True)
        )

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor, lhat: Tensor) -> Tensor:
        """Return (n, outputs) of nodes' features x (n, inputs) and the operator (n, n)."""
        *first, last = self.layers
        for layer in first:
            x = layer(x, lhat).relu()
        out: Tensor = last(x, lhat)
        return out
