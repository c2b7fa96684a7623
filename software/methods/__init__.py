"""Research methods: ordinary PyTorch programs, each with a demo that judges itself.

A method is a package ``software/methods/<slug>/``. Its ``__init__.py`` is its public API; its
``demo.py`` has one function ``run(*, seed=0) -> Result``. A method never names a device: its
matrix work runs wherever the `sat.offload` around it sends it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Check:
    """One acceptance figure of a method.

    Parameters
    ----------
    name : str
        What was measured, with its unit.
    value : float
    bound : float
    at_least : bool
        Whether ``value`` must reach the bound; else it must not exceed it.
    """

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether the bound is kept; never by a NaN."""
        if math.isnan(self.value):
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        word = "ok" if self.passed else "FAILED"
        return f"{word:<6} {self.name}: {self.value:.6g} ({sign} {self.bound:.6g})"


@dataclass
class Result:
    """What a method's demo found.

    Parameters
    ----------
    metrics : dict
        Numbers worth knowing, by name.
    checks : list of Check
    figures : dict
        Matplotlib figures by name (without suffix).
    left_out : list of str
        What a quick demo does not do of the whole one.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether there are checks and all are kept."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def check(self, name: str, value: float, bound: float, *, at_least: bool = False) -> None:
        """Add an acceptance check."""
        self.checks.append(Check(name, float(value), float(bound), at_least))

    def to_json(self) -> dict[str, Any]:
        """Return metrics and checks as plain values."""
        checks = [{**asdict(check), "passed": check.passed} for check in self.checks]
        return {
            "metrics": self.metrics,
            "checks": checks,
            "passed": self.passed,
            "left_out": self.left_out,
        }


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Parameters
    ----------
    slug : str
        Folder under ``software/methods``, and name on the command line.
    title : str
    paper : str
        Authors, year, identifier.
    summary : str
        What its demo shows, in one line.
    precision : str
        Precision of the offload that its numbers call for, ``"fp16"`` or ``"fp32"``.
    """

    slug: str
    title: str
    paper: str
    summary: str
    precision: str

    @property
    def run(self) -> Callable[..., Result]:
        """The demo: ``run(*, seed=0, quick=False) -> Result``."""
        demo = importlib.import_module(f"sat.methods.{self.slug}.demo")
        run: Callable[..., Result] = demo.run
        return run


_METHODS = (
    Method(
        "s4d",
        "S4D: diagonal state space models",
        "Gu, Gupta, Goel, Ré 2022, arXiv 2206.11893",
        "kernels against scipy, HiPPO-LegS limit, digits as sequences against a GRU",
        "fp32",
    ),
    Method(
        "s4_ptd",
        "S4-PTD and S5-PTD: perturb, then diagonalise",
        "Yu et al. 2024, arXiv 2310.01698",
        "transfer functions at all frequencies against scipy, a tone, S5, digits under tones",
        "fp32",
    ),
    Method(
        "lightsb",
        "LightSB: light Schrödinger bridge",
        "Korotin, Gushchin, Burnaev 2023, arXiv 2310.01174",
        "Gaussian bridges against the closed form, Gaussian to Swiss roll",
        "fp32",
    ),
    Method(
        "auon",
        "AuON: a scalar in place of Muon's products",
        "Maity 2025, arXiv 2509.24320",
        "what the scalar can do, exactly; a small GPT by Muon, Hybrid-AuON, AdamW and AuON",
        "fp16",
    ),
    Method(
        "dct_lowrank",
        "Low-rank AdamW in columns of the DCT",
        "arXiv 2505.17967, 2025",
        "DCT against scipy, the theorem on its choice; a small GPT beside AdamW and the SVD",
        "fp16",
    ),
    Method(
        "ssvi",
        "SSVI: Bayesian networks in a sparse subspace",
        "Li, Miao, Qiu, Zhang 2024, arXiv 2402.11025",
        "scores by Monte Carlo, noise by its law, digits by density and N:M, calibration",
        "fp16",
    ),
    Method(
        "dsnot",
        "DSnoT: dynamic sparse no training",
        "Zhang et al. 2024, arXiv 2310.08915",
        "exchanges against an interpreter, known data, a small GPT by row and N:M",
        "fp16",
    ),
    Method(
        "lsm",
        "LSM: latent spectral models",
        "Wu, Hu, Luo, Wang, Long 2023, arXiv 2301.12664",
        "Darcy flow by LSM and by its U-Net alone; the block by loops, its series by least squares",
        "fp16",
    ),
    Method(
        "dgno",
        "DGNO: deep generative neural operator, MultiONet",
        "Zang, Koutsourelakis 2025, arXiv 2502.06250",
        "two-phase Darcy flow learned without solutions, then inverted; MultiONet and DeepONet",
        "fp32",
    ),
    Method(
        "nn_to_no",
        "From neural networks to neural operators",
        "Berner et al. 2025, arXiv 2506.10973",
        "layers against integrals; a CNN trained at 16 x 16 asked at 32 x 32 and 64 x 64",
        "fp32",
    ),
    Method(
        "mc_smoe",
        "MC-SMoE: merge experts, then compress them",
        "Li et al. 2024, arXiv 2310.01334",
        "planted experts, digits by 16 experts merged to 4, low rank plus rows, N:M",
        "fp16",
    ),
    Method(
        "hesso",
        "HESSO and HESSO-CRIC: structured pruning while training",
        "Chen et al. 2024, arXiv 2409.09085",
        "exact extraction, digits at 70 % and 90 % fewer channels beside N:M, a trap",
        "fp16",
    ),
    Method(
        "mm_pde",
        "MM-PDE: data-free mesh movers",
        "Hu, Wang, Ma 2024, arXiv 2312.05583",
        "moved meshes against exact ones and uniform ones; Burgers' equation on both",
        "fp32",
    ),
    Method(
        "neuraldem",
        "NeuralDEM: fields of granular flows",
        "Alkin et al. 2024, arXiv 2411.09678",
        "a draining hopper by discrete elements, then by a network, for any time and place",
        "fp16",
    ),
    Method(
        "s3im",
        "S3IM: stochastic structural similarity",
        "Xie et al. 2023, arXiv 2308.07032",
        "the loss by loops; a radiance field from noisy pictures, by random rays and by crops",
        "fp16",
    ),
    Method(
        "spon",
        "SPON: structure-preserving operator networks",
        "Bouziani, Boullé 2024, arXiv 2410.01065",
        "boundary values exactly; -Laplace u + u³ = f on the L-shape, multigrid against one level",
        "fp16",
    ),
    Method(
        "drift_net",
        "DRIFT-Net: a spectral-coupled neural operator",
        "ICLR 2026, arXiv 2509.24868",
        "forecasts of a driven flow beside window attention's; the spectral branch on known fields",
        "fp16",
    ),
    Method(
        "pi_gnn_galerkin",
        "PI-GGN: physics-informed graph neural Galerkin networks",
        "Gao, Zahr, Wang 2022, arXiv 2107.12146",
        "residuals by scikit-fem; a disc, a load from one sensor, a nonlinear square, a plate",
        "fp32",
    ),
    Method(
        "rom_net",
        "ROM-net: local reduced-order models and a network that recommends one",
        "Daniel, Casenave, Akkari, Ketata, Ryckelynck 2022, arXiv 2103.13683",
        "bases of clusters by angle against other clusters and one basis; whether they pay",
        "fp32",
    ),
    Method(
        "orthogonal_conv",
        "Orthogonal convolutions by L_orth",
        "Achour, Malgouyres, Mamalet 2022, JMLR 23 (22-0026)",
        "laws against matrices, which kernels exist; digits under attack, weight by weight",
        "fp16",
    ),
    Method(
        "nuft_ddsl",
        "DDSL: simplex meshes by their exact Fourier transforms",
        "Jiang, Lansigan, Marcus, Nießner 2019, arXiv 1901.11082",
        "transforms in closed form; polygons told apart by rasters, and found from them",
        "fp16",
    ),
    Method(
        "sdgd",
        "SDGD: stochastic dimension gradient descent",
        "Hu, Shukla, Karniadakis, Kawaguchi 2024, arXiv 2307.12306",
        "gradients by enumeration; Sine-Gordon in 100 dimensions by one term a step, and by all",
        "fp16",
    ),
    Method(
        "lagrangian_pinn",
        "LPINN: physics-informed networks along characteristics",
        "Mojgani, Balajewicz, Hassanzadeh 2023, arXiv 2205.02902",
        "Burgers' equation carried along at 0 to 50 rad/s, beside the usual PINN, which fails",
        "fp16",
    ),
    Method(
        "pndm",
        "PNDM: pseudo numerical methods for diffusion models",
        "Liu, Ren, Lin, Zhao 2022, arXiv 2202.09778",
        "samplers on flows that are known, by order and evaluations; digits in 59 for 1000",
        "fp32",
    ),
    Method(
        "kronecker_sbl",
        "KroSBL: sparse Bayesian learning with a Kronecker support",
        "He, Joseph 2023, arXiv 2307.14719",
        "1000 unknowns from 120 measurements beside SBL and greedy search; a channel by a surface",
        "fp32",
    ),
    Method(
        "qmcpy",
        "QMCPy: low-discrepancy sequences and fast kernels",
        "Sorokin 2025, arXiv 2502.14256",
        "lattices, nets, Halton by scipy and by counting; rates; Gram matrices by transforms",
        "fp32",
    ),
    Method(
        "dapc_nn",
        "DaPC NN: deep arbitrary polynomial chaos",
        "Oladyshkin et al. 2023, arXiv 2306.14753",
        "bases by exact moments; Ishigami's function by 300 runs, beside perceptrons and chaos",
        "fp32",
    ),
    Method(
        "noprop",
        "NoProp: blocks that learn apart",
        "Li, Teh, Pascanu 2025, arXiv 2503.24322",
        "the chain's law by numpy, its bound by quadrature; digits beside back-propagation",
        "fp16",
    ),
    Method(
        "odl_fw",
        "ODL-FW: online orthogonal dictionaries by Frank-Wolfe",
        "Xue, Lau 2021, arXiv 2103.01484",
        "bases found again from streams, one that changes; patches beside the DCT, PCA and MSP",
        "fp16",
    ),
    Method(
        "binarydm",
        "BinaryDM: diffusion models of 1-bit weights",
        "Zheng et al. 2024, arXiv 2404.05662",
        "gradients and integer products exactly; digits by 1-bit weights, one basis and two",
        "fp16",
    ),
    Method(
        "dnmm",
        "DNMM: deep neural mixture models of densities",
        "Trentin 2023, arXiv 2012.03391",
        "known densities by mixtures of networks, beside Gaussian mixtures and kernel estimates",
        "fp16",
    ),
    Method(
        "dmcmc",
        "DMCMC: denoising Markov chain Monte Carlo",
        "Kim, Ye 2023, ICML, arXiv 2209.14593",
        "samples of digits' exact mixture by 8 evaluations, from chains and from noise",
        "fp16",
    ),
    Method(
        "nearfield_mimo",
        "Deep2S: near-field MIMO radar images in one shot",
        "Manisali, Oral, Oktem 2024, arXiv 2312.16959",
        "volumes from an eighth as many measurements, beside Tikhonov's and sparse solutions; N:M",
        "fp16",
    ),
    Method(
        "next_lf",
        "NExT-LF: modal analysis from vibration alone, by Loewner matrices",
        "arXiv 2603.01359, Aerospace 13(4) 378, 2026",
        "exact responses, a beam's modes under noise beside NExT-ERA and SSI-cov",
        "fp32",
    ),
    Method(
        "dt_ddnn",
        "DT-DDNN: jamming of 5G found from one signal block",
        "Asemian, Amini, Kantarci, Erol-Kantarci 2024, arXiv 2403.02645",
        "sequences by scipy and py3gpp; jammers 15 to 30 dB below the signal, by two thresholds",
        "fp16",
    ),
)

METHODS = {method.slug: method for method in _METHODS}
"""All methods, by slug."""


def get_method(slug: str) -> Method:
    """Return a method.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if slug not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"method {slug!r}: there is no such method; choose one of {known}")
    return METHODS[slug]
