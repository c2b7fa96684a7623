"""Transformer blocks whose norms and sums are modulated by a condition."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.problems.arguments import require_counts


class Modulation(nn.Linear):
    """A condition to ``count`` vectors of width d.

    Parameters
    ----------
    d, count : int
    zero_init : bool
        Whether all are 0 at the start, so that a block is the identity; the released code means to,
        and does not.
    """

    def __init__(self, d: int, count: int, zero_init: bool) -> None:
        super().__init__(4 * d, count * d)
        self.count = count
        if zero_init:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    def parts(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Return ``count`` tensors (batch, 1, d) of conditions (batch, 4 d)."""
        return self(condition)[:, None].chunk(self.count, -1)


def modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """Return LN(x) (1 + scale) + shift over the last axis; the norm has no weights."""
    return functional.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def perceptron(d: int) -> nn.Sequential:
    """Return d → 4 d → d with GELU."""
    return nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))


def require_heads(d: int, heads: int) -> None:
    """Raise ValueError unless heads divide d."""
    require_counts(d=d, heads=heads)
    if d % heads:
        raise ValueError(f"heads={heads}: must divide d={d}; choose another number of heads")


def split(x: Tensor, heads: int) -> Tensor:
    """Return (batch, heads, tokens, d / heads) of (batch, tokens, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return (batch, tokens, d): scaled attention of (batch, heads, tokens, d / heads)."""
    weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
    return (weights @ v).transpose(1, 2).flatten(2)


class DitBlock(nn.Module):
    """x += g₁ Attn(LN(x)(1 + s₁) + b₁), then x += g₂ MLP(LN(x)(1 + s₂) + b₂).

    Parameters
    ----------
    d, heads : int
    zero_init : bool
        As `Modulation`.

    Source
    ------
    Peebles, Xie, arXiv 2212.09748; the authors' ``src/neural_dem``.
    """

    def __init__(self, d: int, heads: int, zero_init: bool = False) -> None:
        super().__init__()
        require_heads(d, heads)
        self.heads = heads
        self.modulation = Modulation(d, 6, zero_init)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = perceptron(d)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return (batch, tokens, d) for x of that shape and conditions (batch, 4 d)."""
        s1, b1, g1, s2, b2, g2 = self.modulation.parts(condition)
        q, k, v = (split(y, self.heads) for y in self.qkv(modulated(x, s1, b1)).chunk(3, -1))
        x = x + g1 * self.out(attend(q, k, v))
        return x + g2 * self.mlp(modulated(x, s2, b2))


class CrossDitBlock(nn.Module):
    """A `DitBlock` whose keys and values are other tokens: eight modulations."""

    def __init__(self, d: int, heads: int, zero_init: bool = False) -> None:
        super().__init__()
        require_heads(d, heads)
        self.heads = heads
        self.modulation = Modulation(d, 8, zero_init)
        self.query, self.out = nn.Linear(d, d), nn.Linear(d, d)
        self.key_value = nn.Linear(d, 2 * d)
        self.mlp = perceptron(d)

    def forward(self, x: Tensor, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return (batch, queries, d) for x of that shape, tokens (batch, tokens, d)."""
        qs, qb, ks, kb, g1, s2, b2, g2 = self.modulation.parts(condition)
        q = split(self.query(modulated(x, qs, qb)), self.heads)
        k, v = (
            split(y, self.heads) for y in self.key_value(modulated(tokens, ks, kb)).chunk(2, -1)
        )
        x = x + g1 * self.out(attend(q, k, v))
        return x + g2 * self.mlp(modulated(x, s2, b2))


class MultimodalDitBlock(nn.Module):
    """Main modalities attend to all main tokens; auxiliary ones to themselves and those, detached.

    Weights are each modality's own. No gradient of an auxiliary output reaches a main branch.

    Parameters
    ----------
    d, heads : int
    main, auxiliary : sequence of str
    zero_init : bool
    """

    def __init__(
        self,
        d: int,
        heads: int,
        main: tuple[str, ...],
        auxiliary: tuple[str, ...],
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        require_heads(d, heads)
        self.heads, self.main, self.auxiliary = heads, main, auxiliary
        names = (*main, *auxiliary)
        self.modulation = nn.ModuleDict({name: Modulation(d, 6, zero_init) for name in names})
        self.qkv = nn.ModuleDict({name: nn.Linear(d, 3 * d) for name in names})
        self.out = nn.ModuleDict({name: nn.Linear(d, d) for name in names})
        self.mlp = nn.ModuleDict({name: perceptron(d) for name in names})

    def forward(self, x: dict[str, Tensor], condition: Tensor) -> dict[str, Tensor]:
        """Return tokens (batch, tokens, d) of each modality for the same."""
        parts = {name: self.modulation[name].parts(condition) for name in x}  # type: ignore[operator]
        qkv = {
            name: [
                split(y, self.heads)
                for y in self.qkv[name](modulated(x[name], *parts[name][:2])).chunk(3, -1)
            ]
            for name in x
        }
        keys, values = (torch.cat([qkv[name][i] for name in self.main], 2) for i in (1, 2))
        out = {}
        for name, (q, k, v) in qkv.items():
            if name in self.main:
                seen = attend(q, keys, values)
            else:
                both = (
                    torch.cat([own, main.detach()], 2) for own, main in ((k, keys), (v, values))
                )
                seen = attend(q, *both)
            y = x[name] + parts[name][2] * self.out[name](seen)
            s2, b2, g2 = parts[name][3:]
            out[name] = y + g2 * self.mlp[name](modulated(y, s2, b2))
        return out
