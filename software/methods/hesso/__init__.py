"""HESSO and HESSO-CRIC: structured pruning while training.

Source: Chen et al. 2024, "HESSO: Towards Automatic Efficient and User Friendly Any Neural Network
Training and Pruning", arXiv 2409.09085.
"""

from sat.methods.hesso.attention import SelfAttention
from sat.methods.hesso.cric import HESSOCRIC
from sat.methods.hesso.extract import count, extract
from sat.methods.hesso.groups import Entry, GroupSpec, GroupTable
from sat.methods.hesso.optimizer import HESSO
from sat.methods.hesso.saliency import CRITERIA, saliency
from sat.methods.hesso.tracing import Groups, prunable_groups

__all__ = [
    "CRITERIA",
    "HESSO",
    "HESSOCRIC",
    "Entry",
    "GroupSpec",
    "GroupTable",
    "Groups",
    "SelfAttention",
    "count",
    "extract",
    "prunable_groups",
    "saliency",
]
