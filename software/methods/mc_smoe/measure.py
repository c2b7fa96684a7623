"""What a model costs, and how many dimensions a weight has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sat.methods.problems.counting import count_bytes, count_macs


def memory(model: nn.Module) -> int:
    """Return the bytes of a model's parameters."""
    return count_bytes(model)


def macs(model: nn.Module, tokens: Tensor) -> int:
    """Return the multiplications of a forward pass.

    Parameters
    ----------
    model : nn.Module
    tokens : torch.Tensor
        What the model is given: where tokens are sent decides what compressed experts cost.
    """
    return count_macs(model, tokens)


def stable_rank(w: Tensor) -> float:
    """Return the squared Frobenius norm over the squared largest singular value; 0 for zeros."""
    s = torch.linalg.svdvals(w.detach().double())
    return float(s.square().sum() / s[0].square()) if bool(s[0] > 0) else 0.0
