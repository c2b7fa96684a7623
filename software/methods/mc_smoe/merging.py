"""How many experts each layer keeps, which ones join which, and what becomes of their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.mc_smoe.layer import Expert, MoELayer, moe_layers
from sat.methods.mc_smoe.matching import match_activations, match_permutation, permute_expert
from sat.methods.mc_smoe.measure import stable_rank
from sat.methods.mc_smoe.statistics import RoutingStats, routing_statistics
from sat.methods.problems.counting import count_bytes

ALIGNMENTS = ("first", "group", "dominant", "none")
SIMILARITIES = ("router-logits", "weight", "random")
WEIGHTINGS = ("frequency", "uniform")


def router_similarity(logits: Tensor) -> Tensor:
    """Return how alike experts are to the router: (cosine of their logits over tokens + 1) / 2.

    Parameters
    ----------
    logits : torch.Tensor
        (tokens, experts), at least one token.

    Returns
    -------
    torch.Tensor
        (experts, experts), symmetric, 1 on the diagonal.

    Raises
    ------
    ValueError
        If there is no token.
    """
    if logits.ndim != 2 or not len(logits):
        raise ValueError(
            f"logits are {tuple(logits.shape)}: must be (tokens, experts) of at least one token"
        )
    return _cosines(logits.mT)


def _cosines(rows: Tensor) -> Tensor:
    rows = functional.normalize(rows, dim=1)
    return (rows @ rows.mT + 1) / 2


def dominant_counts(
    frequencies: Mapping[str, Tensor], average: int, merged_layers: Iterable[str]
) -> dict[str, int]:
    """Return how many dominant experts each layer keeps, by one threshold on use in all layers.

    The most used expert of each layer counts as used always, and so do all of layers that are not
    merged. The threshold is the (average · merged layers + experts of the others)-th largest,
    counted from 0; experts above it are dominant. Equal frequencies at the threshold leave fewer.

    Parameters
    ----------
    frequencies : mapping of str to torch.Tensor
        (experts,) shares of tokens, by layer.
    average : int
        Experts a merged layer keeps in the mean; from 1 to below its experts.
    merged_layers : iterable of str

    Returns
    -------
    dict of str to int
        By layer; all experts for layers that are not merged.

    Raises
    ------
    ValueError
        If ``average`` is out of range, a layer is unknown, or one has no dominant expert.

    Source
    ------
    Li et al. 2024, section 3.2; ``merging/grouping.py`` of the authors' code.
    """
    merged = list(dict.fromkeys(merged_layers))
    _require_layers(merged, frequencies)
    for name in merged:
        _require_average(average, len(frequencies[name]))
    used = {}
    for name, frequency in frequencies.items():
        used[name] = frequency.double().clone() if name in merged else torch.ones(len(frequency))
        used[name][used[name].argmax()] = 1.0
    others = sum(len(f) for name, f in frequencies.items() if name not in merged)
    everything = torch.cat([u.double() for u in used.values()]).sort(descending=True).values
    threshold = float(everything[average * len(merged) + others])
    counts = {
        name: int((u > threshold).sum()) if name in merged else len(u) for name, u in used.items()
    }
    for name in merged:
        if not counts[name]:
            raise ValueError(
                f"layer {name!r} has no expert used more than the threshold {threshold:g}: must "
                "keep one; frequencies must be shares of the tokens (routing_statistics)"
            )
    return counts


def group_experts(
    frequency: Tensor, similarity: Tensor, count: int, capacity: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the group of each expert, and the dominant expert of each group.

    The ``count`` most used are dominant. Each other one, in order of use, joins the dominant that
    it is most similar to and whose group is not full.

    Parameters
    ----------
    frequency : torch.Tensor
        (experts,).
    similarity : torch.Tensor
        (experts, experts).
    count : int
        Groups, from 1 to the experts.
    capacity : int, optional
        Most experts of a group.

    Returns
    -------
    labels : torch.Tensor
        (experts,) int64.
    dominant : torch.Tensor
        (count,) int64: experts, most used first.

    Raises
    ------
    ValueError
        If shapes do not fit, ``count`` is out of range, or groups are too small for all.
    """
    experts = len(frequency)
    if similarity.shape != (experts, experts):
        raise ValueError(
            f"similarity is {tuple(similarity.shape)}: must be ({experts}, {experts}), as "
            "frequency has so many experts"
        )
    if not 1 <= count <= experts:
        raise ValueError(f"count={count}: must be from 1 to {experts} experts; change it")
    if capacity is not None and capacity * count < experts:
        raise ValueError(
            f"capacity={capacity}: {count} groups of it hold fewer than {experts} experts; raise it"
        )
    order = frequency.argsort(descending=True, stable=True)
    labels = torch.full((experts,), -1)
    dominant = order[:count]
    labels[dominant] = torch.arange(count)
    sizes = torch.ones(count, dtype=torch.long)
    for expert in order[count:].tolist():
        fits = similarity[expert, dominant].double()
        if capacity is not None:
            fits = fits.masked_fill(sizes >= capacity, -torch.inf)
        labels[expert] = fits.argmax()
        sizes[labels[expert]] += 1
    return labels, dominant


@torch.no_grad()
def merge_experts(
    layer: MoELayer, labels: Tensor, frequency: Tensor, *, align: str = "first",
    matching: str = "weight", inputs: Tensor | None = None,
) -> None:  # fmt: skip
    """Merge each group of a layer's experts into one: the mean of their weights, by their use.

    Experts are aligned first, in place. The router keeps all its rows; ``map`` sends them on. A
    group that no token used takes the plain mean. The authors' code adds 1e-7 to the sum of the
    frequencies instead, which makes such a group zero and seldom used ones smaller.

    Parameters
    ----------
    layer : MoELayer
        Changed in place; not merged before.
    labels : torch.Tensor
        (experts,) int64: groups from 0, none of them empty.
    frequency : torch.Tensor
        (experts,): weights, not negative; ones for the plain mean.
    align : str
        To what hidden channels are brought in order: ``"first"``, expert 0 of the layer;
        ``"group"``, the first expert of the group; ``"dominant"``, its most used one; ``"none"``.
    matching : str
        ``"weight"`` (`match_permutation`), or ``"activation"`` (`match_activations` on the inputs
        that go to either expert).
    inputs : torch.Tensor, optional
        (tokens, d), for ``"activation"``.

    Raises
    ------
    ValueError
        If the layer is merged already, or an argument breaks its rule; nothing has changed then.
    """
    experts = len(layer.map)
    if len(layer.experts) != experts:
        raise ValueError(
            f"the layer has {len(layer.experts)} experts for {experts} of its router: it is merged "
            "already; merge the full model again"
        )
    groups = _require_labels(labels, experts)
    if frequency.shape != labels.shape or not bool((frequency >= 0).all()):
        raise ValueError(
            f"frequency is {frequency.tolist()}: must be {experts} numbers that are not negative"
        )
    if align not in ALIGNMENTS:
        raise ValueError(f"align={align!r}: must be one of {', '.join(ALIGNMENTS)}; choose one")
    if matching not in ("weight", "activation"):
        raise ValueError(f"matching={matching!r}: must be 'weight' or 'activation'; choose one")
    if matching == "activation" and inputs is None:
        raise ValueError("matching='activation' needs inputs: give RoutingStats.inputs")
    if align != "none":
        _align(layer, labels, frequency, align, matching, inputs)
    merged = []
    for group in range(groups):
        members = (labels == group).nonzero()[:, 0].tolist()
        weights = frequency[members].double()
        weights = weights / weights.sum() if bool(weights.sum() > 0) else weights + 1 / len(members)
        first = layer.experts[members[0]]
        for name in ("wi", "wo"):
            parts = [getattr(layer.experts[m], name).weight.double() for m in members]
            mean = sum(w * part for w, part in zip(weights, parts, strict=True))
            getattr(first, name).weight.copy_(mean)
        merged.append(first)
    layer.experts = nn.ModuleList(merged)
    layer.map.copy_(labels)


def _align(
    layer: MoELayer, labels: Tensor, frequency: Tensor, align: str, matching: str,
    inputs: Tensor | None,
) -> None:  # fmt: skip
    if inputs is not None:
        chosen = layer.choices(layer.router(inputs))
    for number, expert in enumerate(layer.experts):
        members = (labels == labels[number]).nonzero()[:, 0]
        dominant = members[frequency[members].argmax()]
        place = {"first": 0, "group": int(members[0]), "dominant": int(dominant)}[align]
        if place == number:
            continue
        ref = layer.experts[place]
        assert isinstance(ref, Expert) and isinstance(expert, Expert)
        wi, wo = expert.wi.weight, expert.wo.weight
        assert isinstance(wi, Tensor) and isinstance(wo, Tensor)
        if matching == "weight":
            perm = match_permutation((ref.wi.weight, ref.wo.weight), (wi, wo))  # type: ignore[arg-type]
        else:
            assert inputs is not None
            tokens = inputs[((chosen == number) | (chosen == place)).any(1)]
            if len(tokens) < 2:
                continue
            perm = match_activations(ref.hidden(tokens), expert.hidden(tokens))
        for weight, permuted in zip((wi, wo), permute_expert(wi, wo, perm), strict=True):
            weight.copy_(permuted)


@dataclass(frozen=True)
class LayerMerge:
    """What became of a layer.

    Parameters
    ----------
    name : str
    labels, dominant : torch.Tensor
        Of `group_experts`.
    frequency : torch.Tensor
        (experts,).
    ranks : tuple of float
        Mean stable rank of ``wi`` before and after.
    """

    name: str
    labels: Tensor
    dominant: Tensor
    frequency: Tensor
    ranks: tuple[float, float]


@dataclass
class MergeReport:
    """What `merge_model` did.

    Parameters
    ----------
    layers : list of LayerMerge
    bytes_before, bytes_after : int
        Of the experts' weights.
    """

    layers: list[LayerMerge] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0

    def __str__(self) -> str:
        lines = [
            f"{row.name}: {len(row.labels)} -> {len(row.dominant)} experts, groups of "
            f"{torch.bincount(row.labels).tolist()}, stable rank {row.ranks[0]:.1f} -> "
            f"{row.ranks[1]:.1f}"
            for row in self.layers
        ]
        lines.append(f"experts: {self.bytes_before:,} -> {self.bytes_after:,} bytes")
        return "\n".join(lines)


def merge_model(
    model: nn.Module, batches: Iterable[Tensor | tuple[Any, ...]], average_groups: int, *,
    global_: bool = True, layers: Sequence[str] | None = None, similarity: str = "router-logits",
    weighting: str = "frequency", align: str = "first", matching: str = "weight",
    capacity: int | None = None, freeze_router: bool = True, seed: int = 0,
) -> MergeReport:  # fmt: skip
    """Merge the experts of a model's mixtures, guided by its routers on calibration samples.

    Parameters
    ----------
    model : nn.Module
        With `MoELayer`; changed in place.
    batches : iterable
        As `routing_statistics`.
    average_groups : int
        Experts that merged layers keep in the mean, from 1 to below their experts.
    global_ : bool
        Whether layers keep as many as their use asks for (`dominant_counts`); else all the same.
    layers : sequence of str, optional
        Names of layers to merge; all if not given.
    similarity : str
        What decides who joins whom: ``"router-logits"``, ``"weight"``, ``"random"``.
    weighting : str
        ``"frequency"`` or ``"uniform"``.
    align, matching
        As `merge_experts`.
    capacity : int, optional
        As `group_experts`.
    freeze_router : bool
        Whether routers of merged layers are not trained any more.
    seed : int
        Of ``similarity="random"``.

    Returns
    -------
    MergeReport

    Raises
    ------
    ValueError
        If an argument breaks its rule, or there is no token; nothing has changed then.
    """
    mixtures = moe_layers(model)
    merged = list(mixtures) if layers is None else list(layers)
    _require_layers(merged, mixtures)
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity={similarity!r}: must be one of {', '.join(SIMILARITIES)}")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r}: must be one of {', '.join(WEIGHTINGS)}")
    for name in merged:
        _require_average(average_groups, len(mixtures[name].map))
    stats = routing_statistics(model, batches)
    counts = (
        dominant_counts({n: s.frequency for n, s in stats.items()}, average_groups, merged)
        if global_ else dict.fromkeys(merged, average_groups)
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    plans = {}
    for name in merged:
        alike = _similarity(similarity, mixtures[name], stats[name], generator)
        plans[name] = group_experts(stats[name].frequency, alike, counts[name], capacity)
    report = MergeReport(bytes_before=_bytes(mixtures, merged))
    for name, (labels, dominant) in plans.items():
        layer, frequency = mixtures[name], stats[name].frequency
        weights = frequency if weighting == "frequency" else torch.ones_like(frequency)
        before = _mean_rank(layer)
        merge_experts(
            layer, labels, weights, align=align, matching=matching, inputs=stats[name].inputs
        )
        layer.router.weight.requires_grad_(layer.router.weight.requires_grad and not freeze_router)
        ranks = before, _mean_rank(layer)
        report.layers.append(LayerMerge(name, labels, dominant, frequency, ranks))
    report.bytes_after = _bytes(mixtures, merged)
    return report


def _similarity(
    kind: str, layer: MoELayer, stats: RoutingStats, generator: torch.Generator
) -> Tensor:
    if kind == "router-logits":
        return router_similarity(stats.logits)
    if kind == "weight":
        weights = torch.cat([layer.wi.flatten(1), layer.wo.flatten(1)], 1).detach()
        return _cosines(weights)
    return torch.rand(2 * (len(layer.map),), generator=generator)


def _bytes(mixtures: Mapping[str, MoELayer], names: Iterable[str]) -> int:
    return sum(count_bytes(mixtures[name].experts) for name in names)


def _mean_rank(layer: MoELayer) -> float:
    ranks = [stable_rank(expert.wi.weight) for expert in layer.experts]  # type: ignore[union-attr, arg-type]
    return sum(ranks) / len(ranks)


def _require_layers(names: Iterable[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"layer {name!r}: there is none; choose of {', '.join(known)}")


def _require_average(average: int, experts: int) -> None:
    if not isinstance(average, int) or not 1 <= average < experts:
        raise ValueError(
            f"average_groups={average!r}: must be an int from 1 to below {experts} experts"
        )


def _require_labels(labels: Tensor, experts: int) -> int:
    """Return the number of groups."""
    counts = torch.bincount(labels) if labels.shape == (experts,) and labels.min() >= 0 else None
    if counts is None or bool((counts == 0).any()):
        raise ValueError(
            f"labels are {labels.tolist()}: must be {experts} numbers of groups from 0, none of "
            "them empty; make them with group_experts"
        )
    return len(counts)
