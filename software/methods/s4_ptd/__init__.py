"""S4-PTD and S5-PTD: perturb, then diagonalise (Yu et al., ICLR 2024, arXiv 2310.01698).

HiPPO-LegS cannot be diagonalised stably. S4D takes its normal part, which some frequencies pass
with a wrong gain however large the state is; this takes the matrix plus a small perturbation, whose
transfer function is close at every frequency. The layers cost what S4D's and S5's do.
"""

from sat.methods.s4_ptd.diagonalize import Diagonalization, perturb_then_diagonalize
from sat.methods.s4_ptd.layer import S4PTD, S4PTDModel
from sat.methods.s4_ptd.s5 import S5, S5Model
from sat.methods.s4_ptd.transfer import diagonal_transfer, legs_transfer, tone_gain, transfer

__all__ = [
    "S4PTD",
    "S5",
    "Diagonalization",
    "S4PTDModel",
    "S5Model",
    "diagonal_transfer",
    "legs_transfer",
    "perturb_then_diagonalize",
    "tone_gain",
    "transfer",
]
