"""Split weights into low rank plus rows, and lose rows while training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.mc_smoe.layer import Expert, moe_layers

SMOOTHING = 0.85
"""Share of the past in a row's importance."""
RANK, FINAL = 32, 0.10


class LowRankSparseLinear(nn.Module):
    """``y = u (v x) + s x``: low rank, and a matrix that is to keep few rows.

    Parameters
    ----------
    in_features, out_features : int
    rank : int
        From 1 to the smaller of both.

    Attributes
    ----------
    u, v, s : nn.Parameter
        (out, rank), (rank, in), (out, in).

    Raises
    ------
    ValueError
        If ``rank`` is out of range.

    Source
    ------
    Li et al. 2023, "LoSparse", arXiv 2306.11222, equation 4.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        most = min(in_features, out_features)
        if not isinstance(rank, int) or not 1 <= rank <= most:
            raise ValueError(f"rank={rank!r}: must be an int from 1 to {most}; lower it")
        self.u = nn.Parameter(torch.zeros(out_features, rank))
        self.v = nn.Parameter(torch.zeros(rank, in_features))
        self.s = nn.Parameter(torch.zeros(out_features, in_features))

    @classmethod
    def from_linear(cls, weight: Tensor, rank: int) -> LowRankSparseLinear:
        """Return the split of a weight (out, in): its first singular vectors, and what they leave.

        Its product is ``weight`` as long as no row is lost.
        """
        if weight.ndim != 2:
            raise ValueError(f"weight is {tuple(weight.shape)}: must be (out, in)")
        layer = cls(weight.shape[1], weight.shape[0], rank).to(weight.dtype)
        left, values, right = torch.linalg.svd(weight.detach().double(), full_matrices=False)
        root = values[:rank].sqrt()
        with torch.no_grad():
            layer.u.copy_(left[:, :rank] * root)
            layer.v.copy_(root[:, None] * right[:rank])
            layer.s.copy_(weight.detach() - layer.u @ layer.v)
        return layer

    @property
    def kept(self) -> Tensor:
        """Rows of ``s`` that are not zero, (out,) bool."""
        return (self.s.detach() != 0).any(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) for (..., in)."""
        low = functional.linear(functional.linear(x, self.v), self.u)
        return low + functional.linear(x, self.s)

    def compact(self) -> CompactLinear:
        """Return the same function with the rows of ``s`` that are not zero alone."""
        return CompactLinear(self)


class CompactLinear(nn.Module):
    """A `LowRankSparseLinear` that stores the rows that it kept.

    Attributes
    ----------
    u, v, s : nn.Parameter
        (out, rank), (rank, in), (kept, in).
    rows : torch.Tensor
        (kept,) int64: outputs that the rows of ``s`` add to.
    """

    rows: Tensor

    def __init__(self, layer: LowRankSparseLinear) -> None:
        super().__init__()
        self.register_buffer("rows", layer.kept.nonzero()[:, 0])
        self.u, self.v = (nn.Parameter(p.detach().clone()) for p in (layer.u, layer.v))
        self.s = nn.Parameter(layer.s.detach()[self.rows].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) for (..., in)."""
        low = functional.linear(functional.linear(x, self.v), self.u)
        return low.index_add(-1, self.rows, functional.linear(x, self.s))


class RowPruner:
    """Sets more and more rows of all ``s`` to zero, those that matter least.

    A row's importance is the mean of ``|s · gradient|``, smoothed over steps. The share that is
    kept stays 1 for ``warmup`` steps, falls as a cubic, and is ``final`` in the last four warm-ups.

    Parameters
    ----------
    modules : sequence of LowRankSparseLinear
        Ranked together.
    total_steps : int
        More than five warm-ups.
    warmup : int
        At least 1.
    final : float
        Share of all rows that is kept in the end, in [0, 1].

    Raises
    ------
    ValueError
        If there is no module, or an argument breaks its rule.

    Source
    ------
    LoSparse, algorithm 1; ``pruning/losparse.py`` of MC-SMoE's code.
    """

    def __init__(
        self, modules: Sequence[LowRankSparseLinear], total_steps: int, warmup: int,
        final: float = FINAL,
    ) -> None:  # fmt: skip
        self.modules = list(modules)
        if not self.modules:
            raise ValueError("modules is empty: there is nothing to prune; see compress_model")
        if not isinstance(warmup, int) or warmup < 1:
            raise ValueError(f"warmup={warmup!r}: must be an int of at least 1; raise it")
        if total_steps <= 5 * warmup:
            raise ValueError(
                f"total_steps={total_steps}: must be more than 5 warm-ups of {warmup}; raise it, "
                "or lower warmup"
            )
        if not 0 <= final <= 1:
            raise ValueError(f"final={final}: must be a share from 0 to 1; 0.1 keeps a tenth")
        self.total_steps, self.warmup, self.final = total_steps, warmup, final
        self._last = [torch.zeros_like(m.s) for m in self.modules]
        self._mean = [torch.zeros_like(m.s) for m in self.modules]

    def share(self, k: int) -> float:
        """Return the share of rows that is kept after step k, from 1."""
        if k <= self.warmup:
            return 1.0
        if k > self.total_steps - 4 * self.warmup:
            return self.final
        done = (k - self.warmup) / (self.total_steps - 5 * self.warmup)
        return self.final + (1 - self.final) * (1 - done) ** 3

    @torch.no_grad()
    def step(self, k: int) -> int:
        """Set rows to zero, after the optimiser's step k with its gradients still there.

        A module without a gradient, as of an expert that no token was sent to, has gradient 0.

        Returns
        -------
        int
            Rows kept.

        Raises
        ------
        ValueError
            If no module has a gradient.
        """
        if all(module.s.grad is None for module in self.modules):
            raise ValueError(
                f"no module has a gradient at step {k}: importance is |s · gradient|; call step "
                "after backward and the optimiser, before zero_grad"
            )
        for module, last, average in zip(self.modules, self._last, self._mean, strict=True):
            average.mul_(SMOOTHING).add_(last, alpha=1 - SMOOTHING)
            grad = module.s.grad
            last.copy_(torch.zeros_like(last) if grad is None else (module.s * grad).abs())
        scores = torch.cat([average.mean(1) for average in self._mean])
        kept = math.ceil(self.share(k) * len(scores) - 1e-9)
        lost = torch.zeros(len(scores), dtype=torch.bool)
        lost[scores.argsort(stable=True)[: len(scores) - kept]] = True
        parts = lost.split([len(module.s) for module in self.modules])
        for module, mine in zip(self.modules, parts, strict=True):
            module.s[mine] = 0
        return kept


def compress_model(model: nn.Module, rank: int = RANK) -> list[LowRankSparseLinear]:
    """Split the weights of all experts into low rank plus sparse rows, in place.

    Parameters
    ----------
    model : nn.Module
        With `MoELayer`, merged or not; the model computes what it did.
    rank : int

    Returns
    -------
    list of LowRankSparseLinear
        For `RowPruner`.

    Raises
    ------
    ValueError
        If there is no mixture, an expert is compressed already, or ``rank`` is out of range;
        nothing has changed then.
    """
    experts = [e for layer in moe_layers(model).values() for e in layer.experts]
    made = []
    for expert in experts:
        assert isinstance(expert, Expert)
        if not isinstance(expert.wi, nn.Linear) or not isinstance(expert.wo, nn.Linear):
            raise ValueError("an expert has no plain wi and wo: it is compressed already")
        weights = expert.wi.weight, expert.wo.weight
        made.append([LowRankSparseLinear.from_linear(weight, rank) for weight in weights])
    for expert, (wi, wo) in zip(experts, made, strict=True):
        expert.wi, expert.wo = wi, wo
    return [split for pair in made for split in pair]


def compact_model(model: nn.Module) -> nn.Module:
    """Store the kept rows of all compressed experts alone, in place; return the model."""
    for layer in moe_layers(model).values():
        for expert in layer.experts:
            for name in ("wi", "wo"):
                part = getattr(expert, name)
                if isinstance(part, LowRankSparseLinear):
                    setattr(expert, name, part.compact())
    return model
