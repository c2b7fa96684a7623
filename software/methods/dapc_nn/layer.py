"""A layer of nodes, each a polynomial expansion of the layer's inputs."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from sat.methods.dapc_nn.basis import APCBasis, require_signals, total_degree_indices
from sat.methods.problems.arguments import require_counts

BASES = ("product", "joint")
JITTER = 1e-12
"""Added to the diagonal of the Gram matrix, whose entries are of the order of 1."""

FIRST, SECOND = 0.6, 0.1
"""Deviations of a node's start by its terms of degree 1 and of degree 2."""


class DaPCLayer(nn.Module):
    """Expansions z = Ψ(x) W of total degree d, Ψ orthonormal for the data of `refresh`.

    Ψ_α is the product of the signals' own polynomials of degrees α_j, mixed terms included: the
    product basis, orthonormal only for independent signals. The joint one is made of it by
    Gram-Schmidt in the order of the terms, Ψ L⁻ᵀ with L Lᵀ = mean Ψ Ψᵀ + 1e-12 I.

    The statistics are buffers: `refresh` computes them, gradients do not pass through them, and
    ``state_dict`` holds them. The constant's coefficients are the bias of `linear`, where N:M
    pruning never reaches them; its weight is (n_out, T - 1), so M should divide T - 1.

    Parameters
    ----------
    n_in, n_out : int
        Signals in, n, and nodes.
    degree : int
        d, at least 1; T = C(n + d, d) terms.
    basis : {"product", "joint"}
    dtype : torch.dtype
        Of the weights, float32 or float64; signals have the same.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or T is above 5000.

    Source
    ------
    Oladyshkin et al. 2023 (the layer); the joint basis and the start are ours.
    """

    whiten: Tensor
    indices: Tensor
    factors: Tensor

    def __init__(
        self,
        n_in: int,
        n_out: int,
        degree: int = 2,
        basis: str = "product",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        require_counts(n_in=n_in, n_out=n_out, degree=degree)
        if basis not in BASES:
            raise ValueError(f"basis={basis!r}: must be one of {', '.join(BASES)}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype}: must be torch.float32 or torch.float64")
        self.basis = basis
        self.polynomials = APCBasis(degree, n_in)
        self.register_buffer("indices", total_degree_indices(n_in, degree), persistent=False)
        terms = len(self.indices)
        # A term as d places among all polynomials of all signals; P_0 = 1 fills up.
        factors = torch.zeros(terms, degree, dtype=torch.int64)
        for row, alpha in zip(factors, self.indices.tolist(), strict=True):
            places = [k * n_in + signal for signal, k in enumerate(alpha) if k]
            row[: len(places)] = torch.tensor(places)
        self.register_buffer("factors", factors, persistent=False)
        if basis == "joint":
            self.register_buffer("whiten", torch.eye(terms, dtype=torch.float64))
        self.linear = nn.Linear(terms - 1, n_out, dtype=dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights: degree 1 N(0, 0.6²/n), degree 2 N(0, 0.1²/their number), others 0."""
        degrees = self.indices[1:].sum(1)
        spread = torch.zeros(len(degrees), dtype=torch.float64)
        for degree, scale in ((1, FIRST), (2, SECOND)):
            of = degrees == degree
            spread[of] = scale / math.sqrt(max(1, int(of.sum())))
        weight = self.linear.weight
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight.copy_(drawn * spread)
        self.linear.bias.zero_()

    @property
    def coefficients(self) -> Tensor:
        """W (T, n_out), the constant's row first."""
        return torch.cat([self.linear.bias[None], self.linear.weight.mT])

    @torch.no_grad()
    def set_coefficients(self, w: Tensor) -> None:
        """Take W (T, n_out), the constant's row first."""
        self.linear.bias.copy_(w[0])
        self.linear.weight.copy_(w[1:].mT)

    @torch.no_grad()
    def refresh(self, x: Tensor) -> None:
        """Compute the statistics on x (N, n), all training samples.

        Raises
        ------
        TypeError, ValueError
            If ``x`` breaks a rule of `require_signals`; for the joint basis, if there are fewer
            samples than terms, or a term is a combination of those before it.

        Warns
        -----
        UserWarning
            If signals have too few distinct values for degree d: terms that need more are 0.
        """
        require_signals("x", x, self.polynomials.a.shape[1])
        self.polynomials.fit(x)
        degrees = self.polynomials.degrees
        for signal in (degrees < self.polynomials.degree).nonzero().flatten().tolist():
            kept = int(degrees[signal])
            count = "is constant" if not kept else f"has {kept + 1} distinct values, to rounding"
            warnings.warn(
                f"signal {signal} {count}: its terms above degree {kept} are dropped",
                stacklevel=2,
            )
        if self.basis == "joint":
            self._orthonormalise(self._products(x))

    def _orthonormalise(self, psi: Tensor) -> None:
        kept = (self.indices <= self.polynomials.degrees).all(1)
        if len(psi) < int(kept.sum()):
            raise ValueError(
                f"{len(psi)} samples for {int(kept.sum())} terms: the Gram matrix is singular; "
                "give at least as many samples, lower the degree, or take basis='product'"
            )
        psi = psi.double()
        gram = psi.mT @ psi / len(psi)
        # Dropped terms are 0 and stay apart.
        gram.diagonal().add_(torch.where(kept, JITTER, 1.0))
        lower, failed = torch.linalg.cholesky_ex(gram)
        worst = int(lower.diagonal().argmin())
        if int(failed) or float(lower[worst, worst]) ** 2 <= 2 * JITTER:
            alpha = tuple(self.indices[int(failed) - 1 if int(failed) else worst].tolist())
            raise ValueError(
                f"term {alpha} is a combination of those before it on these {len(psi)} samples: "
                "the Gram matrix is not positive definite; give more samples, drop signals that "
                "follow from others, or take basis='product'"
            )
        eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        # Row-major, as `state_dict` gives it back: a product in another order rounds differently.
        self.whiten = torch.linalg.solve_triangular(lower, eye, upper=False).contiguous()

    def features(self, x: Tensor, *, clamp: bool = False) -> Tensor:
        """Return Ψ (N, T) of x (N, n), in its dtype.

        Parameters
        ----------
        x : torch.Tensor
        clamp : bool
            Whether signals are held within 0.1 ranges around those of `refresh`.

        Raises
        ------
        RuntimeError
            Before `refresh`.
        TypeError, ValueError
            If ``x`` breaks a rule of `require_signals`.
        """
        psi = self._products(self.polynomials.clamp(x) if clamp else x)
        return psi @ self.whiten.mT.to(psi.dtype) if self.basis == "joint" else psi

    def _products(self, x: Tensor) -> Tensor:
        flat = self.polynomials.univariate(x).flatten(1)
        psi = flat[:, self.factors[:, 0]]
        for column in self.factors.mT[1:]:
            psi = psi * flat[:, column]
        return psi

    def forward(self, x: Tensor, *, clamp: bool = False) -> Tensor:
        """Return z (N, n_out) of x (N, n); arguments and errors as `features`."""
        z: Tensor = self.linear(self.features(x, clamp=clamp)[:, 1:])
        return z

    def gram(self, x: Tensor) -> Tensor:
        """Return the mean of Ψ Ψᵀ (T, T) over x (N, n): I where the basis is orthonormal."""
        psi = self.features(x)
        return psi.mT @ psi / len(psi)
