"""Predicted cycles of a step of methods whose products hold no trained weights, so no N:M ones.

    python benchmarks/bench_steps.py [--arrays 8x8 32x32] [--methods kronecker_sbl]

Nothing is simulated: the cycle model, which the RTL agrees with, is asked for each product, with
the default memory and with the precision that the method asks for, and with float16 alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

import sat
from sat.methods import METHODS
from sat.methods.kronecker_sbl import irs_mimo_problem, kronecker_problem, posterior, svd_update
from sat.methods.kronecker_sbl.problems import KroneckerProblem
from sat.methods.next_lf import correlation_irf, irf_spectrum, loewner_pencil
from sat.methods.next_lf.identify import ORDERS
from sat.methods.qmcpy import DigitalNet, Lattice, SIKernel, fftbr, fwht, kernel_interpolate


def em_step(problem: KroneckerProblem) -> None:
    """A step of SVD-KroSBL before anything is pruned."""
    sizes = [factor.shape for factor in problem.factors]
    gammas = [torch.ones(n, dtype=torch.float64) for _, n in sizes]
    y = problem.y.reshape([m for m, _ in sizes])
    found = posterior(y, problem.factors, gammas, problem.noise_var)
    svd_update(found.variance + found.mean.abs().square())


def net_points() -> None:
    """2^12 points in 8 dimensions of 63 digits, LMS + DS."""
    DigitalNet(8).sample(2**12)


def transform(kind: str) -> None:
    """A stack of 64 transforms of 2^12 numbers, as products."""
    x = torch.randn(64, 2**12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (fwht if kind == "walsh" else fftbr)(x, "products")


def predictions() -> None:
    """16 interpolants on 2^12 points, asked at 2^12 others."""
    generator = torch.Generator().manual_seed(0)
    points = Lattice(2).sample(2**12)[0]
    values = torch.randn(16, 2**12, generator=generator, dtype=torch.float64)
    made = kernel_interpolate(SIKernel(1), points, values)
    made(torch.rand(2**12, 2, generator=generator, dtype=torch.float64))


def records() -> torch.Tensor:
    """Ten channels, 600 s at 512 Hz; their values are no matter."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(10, 307_200, generator=generator, dtype=torch.float64)


def models() -> None:
    """Spectra, pencil and 26 models of responses of ten channels to one."""
    generator = torch.Generator().manual_seed(0)
    irf = torch.randn(10, 1, 1025, generator=generator, dtype=torch.float64)
    spectrum = irf_spectrum(irf, 1 / 512).band(0.4, 220.0)
    loewner_pencil(spectrum.points, spectrum.values, generator).realise_all(ORDERS)


CASES: dict[str, list[tuple[str, Callable[[], None]]]] = {
    "kronecker_sbl": [
        ("EM step, 10³ from 4 x 5 x 6", lambda: em_step(kronecker_problem(0, 20.0))),
        (
            "EM step, 15³ from 10 x 12 x 15",
            lambda: em_step(kronecker_problem(0, 20.0, (10, 12, 15), 15)),
        ),
        ("EM step, channel, 18³ from 6 x 3 x 16", lambda: em_step(irs_mimo_problem(0, 20.0))),
        (
            "EM step, 64² from 32 x 32",
            lambda: em_step(kronecker_problem(0, 20.0, (32, 32), 64)),
        ),
    ],
    "next_lf": [
        ("responses to one channel, 1,024 lags", lambda: correlation_irf(records(), [9])),
        ("… of all to all, 120 lags", lambda: correlation_irf(records(), range(10), 120)),
        ("spectra, pencil, 26 models", models),
    ],
    "qmcpy": [
        ("2^12 points of a net in 8 dimensions", net_points),
        ("64 Walsh transforms of 2^12", lambda: transform("walsh")),
        ("64 Fourier transforms of 2^12", lambda: transform("fourier")),
        ("16 interpolants of 2^12, at 2^12 points", predictions),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrays", nargs="+", default=["8x8", "32x32"])
    parser.add_argument("--methods", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'array':<7} {'step':<42} {'precision':<9} {'cycles':>12}")
    for method in args.methods:
        for text, step in CASES[method]:
            for array in args.arrays:
                for precision in sorted({METHODS[method].precision, "fp16"}, reverse=True):
                    with (
                        sat.device("golden", array=array) as device,
                        sat.offload(device, precision=precision) as report,
                    ):
                        step()
                    cycles = report.cycles or 0
                    print(f"{array:<7} {text:<42} {precision:<9} {cycles:>12,}", flush=True)


if __name__ == "__main__":
    main()
