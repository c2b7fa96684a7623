"""Bring experts' hidden channels into one order, which changes no function."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def match_permutation(
    ref: tuple[Tensor, Tensor], expert: tuple[Tensor, Tensor], *, include_output: bool = True
) -> Tensor:
    """Return the order of an expert's hidden channels that fits a reference best.

    It maximises the sum over channels i of ``wi_ref[i]·wi[perm[i]] + wo_ref[:, i]·wo[:, perm[i]]``,
    a linear assignment.

    Parameters
    ----------
    ref, expert : tuple of torch.Tensor
        (f, d) input and (d, f) output weights.
    include_output : bool
        Whether output weights count, too.

    Returns
    -------
    torch.Tensor
        (f,) int64, for `permute_expert`.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Source
    ------
    Li et al. 2024, section 3.1; ``merging/permutation.py`` of the authors' code.
    """
    for wi, wo in (ref, expert):
        _require_expert(wi, wo)
    if ref[0].shape != expert[0].shape:
        raise ValueError(
            f"ref is {tuple(ref[0].shape)} and expert {tuple(expert[0].shape)}: must have equal "
            "shapes; only experts of equal sizes can be matched"
        )
    fit = ref[0].detach() @ expert[0].detach().mT
    if include_output:
        fit = fit + ref[1].detach().mT @ expert[1].detach()
    return _assign(fit)


def match_activations(ref: Tensor, expert: Tensor) -> Tensor:
    """Return the order of an expert's hidden channels whose activations correlate best.

    Parameters
    ----------
    ref, expert : torch.Tensor
        (tokens, f) hidden activations on the same tokens, at least 2.

    Returns
    -------
    torch.Tensor
        (f,) int64, for `permute_expert`.

    Raises
    ------
    ValueError
        If shapes differ, or there are fewer than 2 tokens.
    """
    if ref.ndim != 2 or ref.shape != expert.shape or len(ref) < 2:
        raise ValueError(
            f"activations are {tuple(ref.shape)} and {tuple(expert.shape)}: must be (tokens, f), "
            "both alike, of at least 2 tokens; give more tokens"
        )
    a, b = (x.detach() - x.detach().mean(0) for x in (ref, expert))
    a, b = (x / (x.square().sum(0).sqrt() + 1e-12) for x in (a, b))
    return _assign(a.mT @ b)


def _assign(fit: Tensor) -> Tensor:
    return torch.from_numpy(linear_sum_assignment(fit.double().cpu().numpy(), maximize=True)[1])


def permute_expert(wi: Tensor, wo: Tensor, perm: Tensor) -> tuple[Tensor, Tensor]:
    """Return an expert's weights with its hidden channels in another order.

    Parameters
    ----------
    wi, wo : torch.Tensor
        (f, d) and (d, f).
    perm : torch.Tensor
        (f,) int64: channel i becomes what channel ``perm[i]`` was.

    Returns
    -------
    tuple of torch.Tensor
        (f, d) and (d, f): of the same function.

    Raises
    ------
    ValueError
        If shapes do not fit, or ``perm`` is no permutation.
    """
    _require_expert(wi, wo)
    if perm.shape != wi.shape[:1] or not torch.equal(perm.sort().values, torch.arange(len(wi))):
        raise ValueError(
            f"perm is {perm.tolist()}: must have each of 0 to {len(wi) - 1} once; make it with "
            "match_permutation"
        )
    return wi[perm], wo[:, perm]


def _require_expert(wi: Tensor, wo: Tensor) -> None:
    if wi.ndim != 2 or wo.shape != (wi.shape[1], wi.shape[0]):
        raise ValueError(
            f"wi is {tuple(wi.shape)} and wo {tuple(wo.shape)}: must be (f, d) and (d, f); "
            "transpose one"
        )
