"""Acceptance figures: exact responses, a beam's modes from noisy records beside ERA's and SSI's.

What judges is numpy's, scipy's and scikit-fem's, and shares no code with the method.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, optimize, signal
from skfem import Basis, BilinearForm, ElementLineHermite, MeshLine
from skfem.helpers import dd, ddot

from sat.methods import Result
from sat.methods.next_lf.beams import Structure, cantilever_beam, simulate_ambient
from sat.methods.next_lf.identify import OMAResult, era_modes, lf_modes, ssi_modes
from sat.methods.next_lf.irf import correlation_irf, irf_spectrum
from sat.methods.next_lf.modes import poles_to_modes
from sat.methods.next_lf.pencil import loewner_pencil
from sat.methods.next_lf.picture import draw
from sat.methods.problems.rounding import FLOAT64_PRODUCTS, product_bound, product_error

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]

FS, SECONDS, BAND, N_LAGS = 512.0, 600.0, (0.4, 220.0), 1024
ELEMENTS, N_MODES, DAMPING = 10, 5, 0.02
SNRS, SEEDS = (20.0, 10.0, 0.0), 3
QUICK_SNRS, QUICK_SEEDS = (20.0, 0.0), 1
SSI_LAGS = 120
ERA_LAGS = 300
EXACT_HZ, EXACT_DAMPING = (12.0, 31.0, 58.0, 97.0, 160.0), 0.01
LF, LF_ALL, LF_S, ERA, SSI, CVA = (
    "NExT-LF", "NExT-LF, all references", "NExT-LF in s", "NExT-ERA", "SSI-cov", "SSI-cov, CVA",
)  # fmt: skip


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about a minute on one core.

    Parameters
    ----------
    seed : int
        The first of those of forces and noise.
    quick : bool
        One seed instead of three, 20 and 0 dB alone, no peers at 20 dB, neither s nor CVA.
    """
    result = Result()
    _transfer(result, seed)
    _exact(result, seed)
    _correlations(result, seed)
    beam = cantilever_beam(ELEMENTS, 3.0, DAMPING)
    _beam(result, beam)
    snrs, seeds = (QUICK_SNRS, QUICK_SEEDS) if quick else (SNRS, SEEDS)
    campaign = Campaign(beam, seed)
    for snr in snrs:
        for number in range(seeds):
            campaign.measure(snr, seed + number, quick)
    _judge(result, campaign, snrs)
    _times(result, campaign)
    result.figures["stabilisation"] = draw(
        beam, BAND, campaign.records, [(n, campaign.first[n]) for n in (LF, ERA, SSI)]
    )
    if quick:
        result.left_out.append(
            f"{SEEDS} seeds (here {QUICK_SEEDS}); 10 dB; NExT-ERA and SSI-cov at 20 dB; s and CVA"
        )
    return result


# ------------------------------------------------------------------------------ exact responses


@dataclass(frozen=True)
class Known:
    """Sums of decaying sinusoids of random complex residues (P, M)."""

    poles: Complex
    left: Complex
    right: Complex

    @staticmethod
    def draw(freq_hz: Sequence[float], p: int, m: int, seed: int) -> Known:
        """Return modes of some frequencies, all of one damping."""
        rng = np.random.default_rng(seed)
        omega = 2 * math.pi * np.array(freq_hz)
        poles = omega * complex(-EXACT_DAMPING, math.sqrt(1 - EXACT_DAMPING**2))
        left, right = (rng.standard_normal((len(omega), n, 2)) for n in (p, m))
        return Known(
            poles.astype(np.complex128),
            left[..., 0] + np.complex128(1j) * left[..., 1],
            right[..., 0] + np.complex128(1j) * right[..., 1],
        )

    def responses(self, n: int) -> torch.Tensor:
        """Return (P, M, n + 1), lag 0 first."""
        times = np.exp(self.poles[:, None] * np.arange(n + 1) / FS)
        return torch.from_numpy(
            np.ascontiguousarray(2 * np.einsum("rp,rm,rt->pmt", self.left, self.right, times).real)
        )

    def transfer(self, z: complex, n: int) -> Complex:
        """Return the sum over lags 1 to n of z^-lag times the response, z^n = 1 assumed."""
        both = [(self.poles, self.left, self.right)]
        both.append(tuple(x.conj() for x in both[0]))  # type: ignore[arg-type]
        return np.asarray(
            sum(
                np.einsum("rp,rm,r->pm", a, b, e * (1 - e**n) / (z - e))
                for poles, a, b in both
                for e in [np.exp(poles / FS)]
            )
        )


def _transfer(result: Result, seed: int) -> None:
    """A model of two modes at a point between the lines."""
    n = 64
    known = Known.draw((30.0, 90.0), 3, 2, seed)
    spectrum = irf_spectrum(known.responses(n), 1 / FS)
    generator = torch.Generator().manual_seed(seed)
    model = loewner_pencil(spectrum.points, spectrum.values, generator).realise(4)
    z = np.exp(0.7j)
    found, wanted = model.evaluate(torch.tensor([z]))[..., 0].numpy(), known.transfer(z, n)
    off = float(abs(found - wanted).max() / abs(wanted).max())
    values = torch.linalg.svdvals(model.E)
    amplified = math.ceil(10 * float(values[0] / values[-1]))
    name = "two modes, order 4: H off the closed form at an unseen point"
    result.check(name, off, product_bound(1e-9, amplified))


def _exact(result: Result, seed: int) -> None:
    """Five modes exactly, in z by products and by sums, and in s."""
    known = Known.draw(EXACT_HZ, 4, 2, seed)
    for title, n, domain, order, products in (
        ("z, by products", 256, "z", 10, True),
        ("z, by sums", 256, "z", 10, False),
        ("s, by products", N_LAGS, "s", 12, True),
    ):
        decay = 5 * FS / n
        transform = "products" if products else "fft"
        spectrum = irf_spectrum(known.responses(n), 1 / FS, domain, decay, transform=transform)
        if domain == "s":
            spectrum = spectrum.band(2.0, 200.0)
        generator = torch.Generator().manual_seed(seed)
        pencil = loewner_pencil(spectrum.points, spectrum.values, generator, products=products)
        modes = poles_to_modes(pencil.realise(order), 1 / FS, domain=domain, window_decay=decay)
        freq = damping = shape = 0.0
        for hz, left in zip(EXACT_HZ, known.left, strict=True):
            i = int((modes.freq_hz - hz).abs().argmin())
            freq = max(freq, abs(float(modes.freq_hz[i]) / hz - 1))
            damping = max(damping, abs(float(modes.damping[i]) / EXACT_DAMPING - 1))
            shape = max(shape, 1 - likeness(modes.shapes[i].numpy(), left))
        name = f"exact responses, {title}"
        if domain == "s":
            result.check(f"{name}: frequency off", freq, 1e-4)
            result.check(f"{name}: damping off", damping, 5e-3)
            continue
        values = pencil.singular_values
        # An error of A counts by the largest singular value over the order's last; a pole's
        # becomes a frequency's by 1 / (w dt), a damping ratio's by 1 / ratio of that.
        amplified = 10 * float(values[0] / values[9]) * FS / abs(known.poles).min()
        result.check(f"{name}: frequency off", freq, product_bound(1e-9, math.ceil(amplified)))
        bound = product_bound(1e-8, math.ceil(amplified / EXACT_DAMPING))
        result.check(f"{name}: damping off", damping, bound)
        result.check(f"{name}: 1 - MAC", shape, 1e-9)
        bound = product_bound(1e-12, 100) if products else 1e-12
        ratio = float(values[10] / values[0])
        result.check(f"{name}: 11th singular value over the first", ratio, bound)


def likeness(a: Complex | Array, b: Complex | Array) -> float:
    """Return the modal assurance criterion of two shapes (P,), by numpy."""
    return float(abs(np.vdot(a, b)) ** 2 / (np.vdot(a, a).real * np.vdot(b, b).real))


def _correlations(result: Result, seed: int) -> None:
    """Both ways to sum against scipy's correlate."""
    n, lags = 5000, 200
    y = np.random.default_rng(seed).standard_normal((3, n)).cumsum(1)
    y -= y.mean(1, keepdims=True)
    wanted = np.stack(
        [[signal.correlate(a, y[r], method="direct")[n - 1 :][: lags + 1] for r in (0, 2)]
         for a in y]
    ) / (n - np.arange(lags + 1))  # fmt: skip
    for transform in ("products", "fft"):
        found = correlation_irf(torch.from_numpy(y), (0, 2), lags, transform=transform).numpy()
        off = float(abs(found - wanted).max() / abs(wanted).max())
        bound = product_bound(1e-12, 100) if transform == "products" else 1e-12
        result.check(f"correlations by {transform} off scipy's", off, bound)


# ----------------------------------------------------------------------------------------- beam


def fem_frequencies(elements: int) -> Array:
    """Return a cantilever's frequencies over the first, by scikit-fem's Hermite elements."""
    mesh = MeshLine(np.linspace(0, 1, elements + 1))
    basis = Basis(mesh, ElementLineHermite(), intorder=8)
    stiffness = BilinearForm(lambda u, v, _: ddot(dd(u), dd(v))).assemble(basis).toarray()
    mass = BilinearForm(lambda u, v, _: u * v).assemble(basis).toarray()
    free = basis.complement_dofs(basis.get_dofs(lambda x: x[0] == 0))
    squares = linalg.eigvalsh(stiffness[np.ix_(free, free)], mass[np.ix_(free, free)])
    return np.sqrt(squares / squares[0])


def _beam(result: Result, beam: Structure) -> None:
    freq = beam.freq_hz.numpy()[:N_MODES] / float(beam.freq_hz[0])
    theirs = fem_frequencies(ELEMENTS)[:N_MODES]
    result.check("beam's frequencies off scikit-fem's", max(abs(freq / theirs - 1)), 1e-9)
    roots = [
        optimize.brentq(lambda b: math.cos(b) + 1 / math.cosh(b), (i - 1) * math.pi, i * math.pi)
        for i in range(1, N_MODES + 1)
    ]
    exact = (np.array(roots) / roots[0]) ** 2
    result.check("… off a continuous beam's", max(abs(freq / exact - 1)), 0.003)


# -------------------------------------------------------------------------------------- records


@dataclass
class Verdict:
    """A run beside the truth: errors of the modes found, groups that are none."""

    found: int
    spurious: int
    freq: list[float]
    damping: list[float]
    mac: list[float]
    first: bool


class Campaign:
    """Records of a beam at several noises, what each method makes of them, and how fast."""

    def __init__(self, beam: Structure, seed: int) -> None:
        self.beam, self.seed = beam, seed
        self.verdicts: dict[tuple[str, float], list[Verdict]] = {}
        self.seconds: dict[str, float] = {}
        self.first: dict[str, OMAResult] = {}
        self.records = torch.empty(0)

    def measure(self, snr: float, seed: int, quick: bool) -> None:
        """Simulate a record and identify it by every method."""
        y = simulate_ambient(self.beam, FS, SECONDS, snr, N_MODES, seed)
        tip = correlation_irf(y, [ELEMENTS - 1], N_LAGS)
        shown = snr == SNRS[-1] and seed == self.seed
        if shown:
            self.records = y
        runs = {LF: lambda: lf_modes(tip, FS, BAND)}
        if not quick or snr == SNRS[-1]:
            everything = correlation_irf(y, range(ELEMENTS), N_LAGS)
            near = correlation_irf(y, range(ELEMENTS), SSI_LAGS)
            runs[LF_ALL] = lambda: lf_modes(everything, FS, BAND)
            runs[ERA] = lambda: era_modes(tip[..., : ERA_LAGS + 1], FS)
            runs[SSI] = lambda: ssi_modes(near, FS)
            if not quick and snr == SNRS[-1]:
                runs[LF_S] = lambda: lf_modes(tip, FS, BAND, domain="s")
                runs[CVA] = lambda: ssi_modes(near, FS, weighting="cva")
        for name, identify in runs.items():
            start = time.process_time()
            found = identify()
            self.seconds[name] = self.seconds.get(name, 0) + time.process_time() - start
            self.verdicts.setdefault((name, snr), []).append(self._compare(found))
            if shown:
                self.first[name] = found

    def _compare(self, result: OMAResult) -> Verdict:
        free = list(result.modes)
        verdict = Verdict(0, 0, [], [], [], False)
        for i in range(N_MODES):
            hz, shape = float(self.beam.freq_hz[i]), self.beam.shapes[i].numpy()
            near = [
                (abs(mode.freq_hz / hz - 1), number)
                for number, mode in enumerate(free)
                if likeness(mode.shape.numpy(), shape) > 0.8
            ]
            if near and min(near)[0] < 0.05:
                off, number = min(near)
                mode = free.pop(number)
                verdict.first |= i == 0
                verdict.freq.append(100 * off)
                verdict.damping.append(100 * abs(mode.damping / DAMPING - 1))
                verdict.mac.append(likeness(mode.shape.numpy(), shape))
        verdict.found, verdict.spurious = len(verdict.freq), len(free)
        return verdict


def _judge(result: Result, campaign: Campaign, snrs: Sequence[float]) -> None:
    spurious = {}
    for (name, snr), verdicts in campaign.verdicts.items():
        title = f"{name}, {snr:g} dB"
        spurious[name, snr] = sum(v.spurious for v in verdicts)
        later = [v.freq[v.first :] for v in verdicts]
        result.metrics |= {
            f"{title}: modes found, fewest": min(v.found for v in verdicts),
            f"{title}: spurious groups": spurious[name, snr],
            f"{title}: worst frequency error, %": max(max(v.freq) for v in verdicts),
            f"{title}: … of modes 2 to 5": max(max(freq) for freq in later),
            f"{title}: worst MAC": min(min(v.mac) for v in verdicts),
            f"{title}: median damping error, %": float(
                np.median([each for v in verdicts for each in v.damping])
            ),
        }
    frequency, damping = {20.0: 0.6, 10.0: 0.6, 0.0: 1.5}, {20.0: 6.0, 10.0: 6.0, 0.0: 10.0}
    for snr in snrs:
        title = f"{LF}, {snr:g} dB"
        found = result.metrics[f"{title}: modes found, fewest"]
        result.check(f"{title}: modes found of 5, fewest", found, N_MODES, at_least=True)
        result.check(f"{title}: spurious groups, sum over seeds", spurious[LF, snr], 4)
        for what, bound in (
            ("worst frequency error, %", frequency[snr]),
            ("median damping error, %", damping[snr]),
        ):
            result.check(f"{title}: {what}", result.metrics[f"{title}: {what}"], bound)
        worst = result.metrics[f"{title}: worst MAC"]
        result.check(f"{title}: worst MAC", worst, 0.93, at_least=True)
    name = f"{LF}, 0 dB: … of modes 2 to 5"
    result.check(f"{LF}, 0 dB: modes 2 to 5, worst frequency error, %", result.metrics[name], 0.3)
    over = spurious[LF, 0.0] - spurious[SSI, 0.0]
    result.check("0 dB: spurious groups of NExT-LF over SSI-cov's", over, 0)
    over = spurious[LF, 0.0] - spurious[ERA, 0.0]
    result.check("… over NExT-ERA's", over, 2)
    omega = 2 * math.pi * campaign.beam.freq_hz[:N_MODES].numpy()
    least = 100 / np.sqrt(DAMPING * omega * SECONDS)
    squares = [
        (each / limit) ** 2
        for snr in snrs
        for v in campaign.verdicts[LF, snr]
        if v.found == N_MODES
        for each, limit in zip(v.damping, least, strict=True)
    ]
    result.metrics[f"{LF}: RMS of damping errors over 1 / sqrt(2 pi f T damping)"] = float(
        np.sqrt(np.mean(squares))
    )


def _times(result: Result, campaign: Campaign) -> None:
    runs = {
        name: sum(len(v) for (n, _), v in campaign.verdicts.items() if n == name)
        for name in campaign.seconds
    }
    seconds = {name: total / runs[name] for name, total in campaign.seconds.items()}
    for name in (LF, ERA, SSI):
        result.metrics[f"{name}: CPU seconds from responses to modes"] = seconds[name]
    name, ratio = (
        "CPU time of NExT-LF's pencil and 26 orders over SSI-cov's",
        seconds[LF] / seconds[SSI],
    )
    if product_error() < FLOAT64_PRODUCTS:
        result.check(name, ratio, 3)
    else:
        # Where products run elsewhere, seconds are those of sending them.
        result.metrics[name] = ratio
