"""Meshes that learned to move, and predictions on them beside the uniform mesh.

Source: Hu, Wang, Ma, "Better neural PDE solvers through data-free mesh movers", ICLR 2024, arXiv
2312.05583. Names as there: data-free mesh mover (DMM), monitor, MM-PDE.
"""

from sat.methods.mm_pde.branches import ArrayBranch, Branch, GraphBranch, MlpBranch
from sat.methods.mm_pde.message_passing import MessageLayer, MessagePassing, nearest, uniform_mesh
from sat.methods.mm_pde.monitor import (
    Fields,
    GridFields,
    determinant,
    equidistribution,
    monitor,
    move_1d,
    sample_points,
)
from sat.methods.mm_pde.mover import MeshMover, refine_last_layer, train_mover
from sat.methods.mm_pde.solver import (
    MMPDE,
    Geometry,
    LearnedInterpolation,
    rollout,
    train_solver,
)
from sat.methods.problems.burgers import burgers_2d

__all__ = [
    "MMPDE",
    "ArrayBranch",
    "Branch",
    "Fields",
    "Geometry",
    "GraphBranch",
    "GridFields",
    "LearnedInterpolation",
    "MeshMover",
    "MessageLayer",
    "MessagePassing",
    "MlpBranch",
    "burgers_2d",
    "determinant",
    "equidistribution",
    "monitor",
    "move_1d",
    "nearest",
    "refine_last_layer",
    "rollout",
    "sample_points",
    "train_mover",
    "train_solver",
    "uniform_mesh",
]
