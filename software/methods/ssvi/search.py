"""Which weights are active: drop the least certain, add those with the largest gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sat.methods.ssvi.layers import SparseBayesLayer, rho_of
from sat.methods.ssvi.scores import CRITERIA, removal_score, replace_fraction

GROWTHS, NEW_SIGMAS = ("grad", "grad_mean"), ("mean", "eps")
EPS_SIGMA = 1e-6


@dataclass(frozen=True)
class LayerUpdate:
    """What an update did to a layer.

    Attributes
    ----------
    name : str
    active : int
        Weights, before and after.
    dropped, added : torch.Tensor
        int64 places; one that was dropped may be added again.
    """

    name: str
    active: int
    dropped: Tensor
    added: Tensor


@dataclass(frozen=True)
class UpdateReport:
    """What an update did.

    Attributes
    ----------
    step : int
    layers : list of LayerUpdate
    """

    step: int
    layers: list[LayerUpdate] = field(default_factory=list)

    @property
    def dropped(self) -> int:
        """Weights dropped in all layers."""
        return sum(len(layer.dropped) for layer in self.layers)

    @property
    def added(self) -> int:
        """Weights added in all layers that were not active before."""
        return sum(int((~torch.isin(layer.added, layer.dropped)).sum()) for layer in self.layers)


class SSVI:
    """Updates of the active weights of all `SparseBayesLayer` of a model that are not dense.

    A step is ``updating = search.before_backward(step)``, forward and backward passes, and then
    ``search.update(step)`` if updating, else the optimiser's step.

    Parameters
    ----------
    model : nn.Module
    density : float, optional
        If given, that of every layer that is not dense must be it.
    delta : int
        Steps from one update to the next.
    alpha : float
        Share of weights that the first update would replace at step 0; see `replace_fraction`.
    t_end : int
        Step after which there is no update.
    criterion : str
        See `removal_score`; layers without deviations allow "mean" alone.
    growth : {"grad", "grad_mean"}
        Gradients with noise on, or with weights at their means.
    new_sigma : {"mean", "eps"}
        Deviation of added weights: of mean rho of those kept, or 1e-6.
    optimizer : torch.optim.Optimizer, optional
        Its momenta of weights that are dropped become 0.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or the model has no layer that is sparse.
    """

    def __init__(
        self,
        model: nn.Module,
        density: float | None = None,
        delta: int = 100,
        alpha: float = 0.3,
        *,
        t_end: int,
        criterion: str = "snr_abs",
        growth: str = "grad",
        new_sigma: str = "mean",
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        replace_fraction(0, t_end, alpha)
        if not isinstance(delta, int) or delta < 1:
            raise ValueError(f"delta={delta!r}: must be an int of at least 1; 100 is the authors'")
        for name, value, known in (
            ("criterion", criterion, CRITERIA),
            ("growth", growth, GROWTHS),
            ("new_sigma", new_sigma, NEW_SIGMAS),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(known)}; choose one")
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, SparseBayesLayer) and len(module.places) < module.mask.numel()
        }
        if not self.layers:
            raise ValueError("model has no SparseBayesLayer that is not dense: nothing to update")
        for name, layer in self.layers.items():
            if density is not None and layer.density != density:
                raise ValueError(
                    f"density={density}: layer {name!r} has {layer.density}; give that, or leave "
                    "it out"
                )
            if not layer.bayes and criterion != "mean":
                raise ValueError(
                    f"criterion={criterion!r}: layer {name!r} has no deviations; choose 'mean'"
                )
        self.delta, self.alpha, self.t_end = delta, alpha, t_end
        self.criterion, self.growth, self.new_sigma = criterion, growth, new_sigma
        self.optimizer = optimizer

    def updates(self, step: int) -> bool:
        """Return whether a step updates the active weights, and not their values."""
        return 0 < step < self.t_end and step % self.delta == 0

    def before_backward(self, step: int) -> bool:
        """Prepare layers for a step, before its forward pass; return `updates`."""
        updating = self.updates(step)
        for layer in self.layers.values():
            layer.want_dense_gradient(updating)
            if self.growth == "grad_mean":
                layer.mode = "mean" if updating else "noise"
        return updating

    @torch.no_grad()
    def update(self, step: int) -> UpdateReport:
        """Replace weights, by the gradients of the backward pass before.

        Returns
        -------
        UpdateReport

        Raises
        ------
        RuntimeError
            If there was no backward pass that left dense gradients; nothing has changed then.
        FloatingPointError
            If a mean or deviation is not finite; names the layer.
        """
        for name, layer in self.layers.items():
            layer.require_finite(name)
            if layer.dense_gradient is None:
                raise RuntimeError(
                    f"layer {name!r} has no dense gradient: call before_backward({step}) of a step "
                    f"that updates (a multiple of delta={self.delta} below {self.t_end}), then "
                    "loss.backward(), then update"
                )
        share = replace_fraction(step, self.t_end, self.alpha)
        report = UpdateReport(step)
        for name, layer in self.layers.items():
            report.layers.append(self._replace(name, layer, share))
            layer.want_dense_gradient(False)
        return report

    def _replace(self, name: str, layer: SparseBayesLayer, share: float) -> LayerUpdate:
        places, gradient = layer.places, layer.dense_gradient
        assert gradient is not None
        count = int(share * len(places))
        sigma = layer.sigma if layer.bayes else torch.ones_like(layer.mu)
        worth = removal_score(layer.mu, sigma, self.criterion)
        gone = torch.topk(worth, count, largest=False).indices
        dropped = places[gone]
        kept = torch.ones(len(places), dtype=torch.bool)
        kept[gone] = False
        size = gradient.abs().flatten().double()
        size[places[kept]] = -math.inf
        added = _largest(size, dropped, layer.pattern.m if layer.pattern else size.numel())
        # What was dropped and comes back keeps its slot, its values and its momentum.
        back = torch.isin(dropped, added)
        slots, fresh = gone[~back], added[~torch.isin(added, dropped)]
        places[slots] = fresh
        layer.mu[slots] = 0
        if layer.rho is not None:
            few = self.new_sigma == "eps" or not bool(kept.any())
            layer.rho[slots] = rho_of(EPS_SIGMA) if few else layer.rho[kept].mean()
        self._forget(layer, slots)
        return LayerUpdate(name, len(places), dropped, added)

    def _forget(self, layer: SparseBayesLayer, slots: Tensor) -> None:
        """Let the optimiser forget what it knew of slots."""
        if self.optimizer is None:
            return
        for parameter in (layer.mu, layer.rho):
            for value in self.optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == layer.mu.shape:
                    value[slots] = 0


def _largest(size: Tensor, dropped: Tensor, m: int) -> Tensor:
    """Return as many places as were dropped, in each group of m the largest of as many."""
    if m == size.numel():
        return torch.topk(size, len(dropped)).indices
    groups, lost = torch.unique(dropped // m, return_counts=True)
    order = size.view(-1, m)[groups].argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(m) < lost[:, None]
    return (order + m * groups[:, None])[chosen]
