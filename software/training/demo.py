"""The demo: sparse training of digits, its first steps on the simulated RTL, beside dense."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import sat
from sat.data import DataSet, load_data
from sat.devices.golden import GoldenDevice
from sat.devices.staged import StagedDevice, stages_name
from sat.sparsity.pattern import Pattern
from sat.training.trainer import Trainer, TrainResult, progress_bar

# Far below what either training reaches, far above chance: catches a training that went wrong.
LEAST_ACCURACY = 0.9


@dataclass(frozen=True)
class StageCycles:
    """Cycles of a stage's programs on the RTL, as trained and without pruning."""

    programs: int
    sparse: int
    dense: int


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; printed as a table.

    Attributes
    ----------
    rtl_steps, programs : int
        Steps on the RTL, and programs run in them, dense twins included.
    compared, mismatches : int
        Numbers compared with the golden model, and how many differed.
    first_mismatch : str or None
    mispredicted : int
        Programs whose cycles were not those of the cycle model.
    bytes_host, bytes_kept : int
        Tensors that the host sent and fetched (dense twins left out); weights and momenta that it
        need not send, since the device had kept them.
    stages : dict of str to StageCycles
        What one program does: FF, BP and WU (WU alone in the first layer), update.
    dense_accuracy, sparse_accuracy : float
        On the test set, 0 to 1.
    seconds : float
        Duration of the whole demo.
    """

    array: str
    pattern: str
    rtl_steps: int
    programs: int
    compared: int
    mismatches: int
    first_mismatch: str | None
    mispredicted: int
    bytes_host: int
    bytes_kept: int
    dense_accuracy: float
    sparse_accuracy: float
    skipped_steps: int
    figure: str
    rtl_seconds: float
    seconds: float
    stages: dict[str, StageCycles] = field(default_factory=dict)

    @property
    def sparse_cycles(self) -> int:
        """Cycles of the RTL steps."""
        return sum(stage.sparse for stage in self.stages.values())

    @property
    def dense_cycles(self) -> int:
        """Cycles of the same steps without pruning."""
        return sum(stage.dense for stage in self.stages.values())

    @property
    def bit_exact(self) -> bool:
        """Whether something was compared and nothing differed."""
        return self.compared > 0 and self.mismatches == 0

    @property
    def passed(self) -> bool:
        """Whether bits and cycles were as they must be, and both trainings learnt."""
        learnt = min(self.dense_accuracy, self.sparse_accuracy) >= LEAST_ACCURACY
        return self.bit_exact and self.mispredicted == 0 and learnt

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, ready for JSON."""
        return {
            **asdict(self),
            "bit_exact": self.bit_exact,
            "sparse_cycles": self.sparse_cycles,
            "dense_cycles": self.dense_cycles,
            "speedup": self.dense_cycles / self.sparse_cycles,
            "passed": self.passed,
        }

    def __str__(self) -> str:
        lines = [
            f"First {self.rtl_steps} steps, BDWP {self.pattern}, on the simulated RTL {self.array}",
            f"  programs, and dense twins  {self.programs:>14,}",
            f"  numbers compared           {self.compared:>14,}",
            f"  numbers that differ        {self.mismatches:>14,}",
            f"  cycle counts mispredicted  {self.mispredicted:>14,}",
            f"  bytes to and from the host {self.bytes_host:>14,}",
            f"  … not sent, as weights stay{self.bytes_kept:>14,}",
            "",
            "  stage   programs  cycles, dense  cycles, as trained  speed-up",
        ]
        total = StageCycles(
            sum(stage.programs for stage in self.stages.values()),
            self.sparse_cycles,
            self.dense_cycles,
        )
        for name, stage in {**self.stages, "all": total}.items():
            lines.append(
                f"  {name:<7} {stage.programs:>8,} {stage.dense:>14,} {stage.sparse:>19,} "
                f"{stage.dense / stage.sparse:>8.2f}x"
            )
        lines += [
            "",
            "Test accuracy at the end of training (same seed, same first weights)",
            f"  dense         {self.dense_accuracy:8.2%}",
            f"  BDWP {self.pattern:<8} {self.sparse_accuracy:8.2%}",
            "",
            f"Training curves: {self.figure}",
            f"Time: {self.seconds:.0f} s, of which {self.rtl_seconds:.0f} s on the RTL",
        ]
        if self.first_mismatch is not None:
            lines.append(f"MISMATCH: {self.first_mismatch}")
        lines.append("PASSED" if self.passed else "FAILED")
        return "\n".join(lines)


def demo(
    *,
    epochs: int = 12,
    rtl_steps: int = 3,
    batch: int = 32,
    array: str = "8x8",
    engine: str = "auto",
    pattern: str = "2:8",
    seed: int = 0,
    figure: str | Path = "out/demo.png",
    progress: bool = False,
) -> DemoResult:
    """Train a small CNN on digits with BDWP and dense, the first BDWP steps on the RTL.

    A layer's step is three programs: FF, then BP and WU, then the weight update with both prunings.
    All that they leave is compared with the golden model, bit for bit, and the sparse ones also
    run without pruning on the RTL, to count their cycles.

    Parameters
    ----------
    epochs, rtl_steps, batch : int
        At least 1 each.
    array : str
        Shape of the simulated array.
    engine : str
        How it is simulated (`sat.sim.engines`).
    pattern : str
        N:M, not dense.
    seed : int
    figure : str or Path
        PNG of both training curves.
    progress : bool
        Whether to show bars on standard error.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    DeviceError
        If the device fails.
    """
    began = time.perf_counter()
    chosen = Pattern.parse(pattern)
    if chosen.dense:
        raise ValueError(
            "pattern 'dense': the demo sets a sparse training beside a dense one; "
            "give N:M such as 2:8"
        )
    if rtl_steps < 1:
        raise ValueError(f"rtl_steps={rtl_steps}: must be at least 1; leave it out for 3")
    data = load_data("digits")
    golden = StagedDevice(GoldenDevice())

    def trainer(scheme: str) -> Trainer:
        # Both start from the same weights and see the same batches: they share the seed.
        return Trainer(
            "cnn",
            data,
            scheme=scheme,
            pattern=chosen if scheme == "bdwp" else None,
            device=golden,
            epochs=epochs,
            batch=batch,
            seed=seed,
        )

    sparse, dense = trainer("bdwp"), trainer("dense")
    rtl_steps = min(rtl_steps, sparse.total_steps)
    with sat.device("rtl", array=array, engine=engine, max_m=max(8, chosen.m)) as rtl:
        count = rtl_steps * _programs_per_step(data, chosen, batch)
        with progress_bar(1, f"RTL {array}: compiled on its first use", "device", progress) as bar:
            one = np.ones((1, 1), np.float16)
            rtl.matmul(one, one)
            bar.update()
        rtl_began = time.perf_counter()
        with progress_bar(count, f"{rtl_steps} steps on the RTL", "program", progress) as bar:
            checked = StagedDevice(rtl, compare=True, dense_twins=True, on_program=bar.update)
            sparse.device = checked
            sparse.fit(rtl_steps)
        rtl_seconds = time.perf_counter() - rtl_began
        sparse.device = golden
    tallies: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for entry in checked.runs:
        assert entry.twin_cycles is not None, "dense twins were asked for"
        tally = tallies[stages_name(entry.stages)]
        for i, value in enumerate((1, entry.run.cycles or 0, entry.twin_cycles)):
            tally[i] += value
    sparse_result = sparse.fit(progress=progress, title=f"BDWP {chosen}")
    dense_result = dense.fit(progress=progress, title="dense")
    path = Path(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    _draw(path, {"dense": dense_result, f"BDWP {chosen}": sparse_result}, rtl_steps)
    return DemoResult(
        array=rtl.config.array,
        pattern=str(chosen),
        rtl_steps=rtl_steps,
        programs=count,
        compared=checked.compared,
        mismatches=checked.mismatches,
        first_mismatch=checked.first,
        mispredicted=checked.mispredicted,
        bytes_host=sum(entry.run.bytes_host for entry in checked.runs),
        bytes_kept=sum(entry.run.bytes_kept for entry in checked.runs),
        stages={stage: StageCycles(*tallies[stage]) for stage in tallies},
        dense_accuracy=dense_result.accuracies[-1],
        sparse_accuracy=sparse_result.accuracies[-1],
        skipped_steps=dense_result.skipped + sparse_result.skipped,
        figure=str(path),
        rtl_seconds=rtl_seconds,
        seconds=time.perf_counter() - began,
    )


def _programs_per_step(data: DataSet, pattern: Pattern, batch: int) -> int:
    """Return how many programs a step takes with dense twins, from a throw-away model."""
    device = StagedDevice(GoldenDevice())
    Trainer("cnn", data, pattern=pattern, device=device, batch=batch).fit(1)
    return sum(1 + (entry.layer.ff != (1, 1)) for entry in device.runs)


def _draw(path: Path, results: dict[str, TrainResult], rtl_steps: int) -> None:
    """Write the curves of loss and test accuracy as a PNG."""
    # Drawn without pyplot: no window system is asked, no global state is left behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, result in results.items():
        width = max(1, len(result.losses) // 60)
        means = [
            sum(part) / len(part)
            for part in (result.losses[i : i + width] for i in range(0, len(result.losses), width))
        ]
        left.plot([i * width + 1 for i in range(len(means))], means, label=name)
        right.plot(
            range(1, len(result.accuracies) + 1),
            [100 * accuracy for accuracy in result.accuracies],
            marker="o",
            label=name,
        )
    left.axvspan(0, rtl_steps, alpha=0.25, color="tab:red", label="BDWP on the RTL")
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="test accuracy / %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
