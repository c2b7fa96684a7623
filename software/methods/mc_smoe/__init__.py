"""MC-SMoE: merge the experts of a mixture by its router's statistics, then compress them.

Source: Li et al., "Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing
Policy", ICLR 2024, arXiv 2310.01334.
"""

from sat.methods.mc_smoe.compress import (
    CompactLinear,
    LowRankSparseLinear,
    RowPruner,
    compact_model,
    compress_model,
)
from sat.methods.mc_smoe.layer import Expert, MoELayer
from sat.methods.mc_smoe.matching import match_activations, match_permutation, permute_expert
from sat.methods.mc_smoe.measure import macs, memory, stable_rank
from sat.methods.mc_smoe.merging import (
    MergeReport,
    dominant_counts,
    group_experts,
    merge_experts,
    merge_model,
    router_similarity,
)
from sat.methods.mc_smoe.recovery import recover, recovery_loss
from sat.methods.mc_smoe.statistics import RoutingStats, routing_statistics

__all__ = [
    "CompactLinear",
    "Expert",
    "LowRankSparseLinear",
    "MergeReport",
    "MoELayer",
    "RoutingStats",
    "RowPruner",
    "compact_model",
    "compress_model",
    "dominant_counts",
    "group_experts",
    "macs",
    "match_activations",
    "match_permutation",
    "memory",
    "merge_experts",
    "merge_model",
    "permute_expert",
    "recover",
    "recovery_loss",
    "router_similarity",
    "routing_statistics",
    "stable_rank",
]
