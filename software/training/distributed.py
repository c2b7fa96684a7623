"""Data-parallel training: ranks in processes of their own, each with its own device.

``torch.distributed`` (gloo) hands gradients and sums of batch normalisation around; every rank
adds them up in the same order. So R ranks have the bits of one rank with R shards
(`sat.training.parts`). One rank with the whole batch adds in another order; docs/offload.md bounds
what comes of it.
"""

from __future__ import annotations

import math
import os
import pickle
import socket
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from tqdm import tqdm

from sat.data import load_data
from sat.errors import DeviceError
from sat.training.parts import check_cut

if TYPE_CHECKING:
    from sat.training.trainer import TrainResult

# docs/offload.md says what was measured for these.
FIRST_STEPS = 4
FIRST_BOUND = 1e-3
EPOCH_BOUND = 0.03
ACCURACY_BOUND = 0.02


def _train(
    ranks: int,
    spec: str,
    options: Mapping[str, Any],
    arguments: Mapping[str, Any],
    data: str,
    progress: bool,
) -> tuple[TrainResult, dict[str, Tensor]]:
    """Train in this process, as one of the ranks."""
    import sat
    from sat.devices.staged import StagedDevice
    from sat.training.trainer import Trainer

    shards = arguments.get("shards", 1)
    cut = f"{ranks} ranks" if ranks > 1 else f"{shards} shards" if shards > 1 else "whole batches"
    with sat.device(spec, **options) as device:
        trainer = Trainer(
            data=load_data(data), device=StagedDevice(device), distributed=ranks > 1, **arguments
        )
        result = trainer.fit(progress=progress, title=f"{cut} on {spec}")
    return result, trainer.model.state_dict()


def _rank(
    rank: int,
    store: str,
    out: str,
    ranks: int,
    spec: str,
    options: Mapping[str, Any],
    arguments: Mapping[str, Any],
    data: str,
    progress: bool,
) -> None:
    """Train as one of several ranks, in a process of its own; rank 0 saves the result."""
    # All ranks are on this machine, whose name need not resolve to an address.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    torch.set_num_threads(1)
    # A bar's own lock is for processes, and would outlive one that is killed.
    tqdm.set_lock(threading.RLock())
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
        try:
            made = _train(ranks, spec, options, arguments, data, progress and rank == 0)
            if rank == 0:
                torch.save(made, out)
        finally:
            dist.destroy_process_group()
    except Exception as error:
        _leave_error(Path(f"{out}.{rank}"), error)
        raise


def _leave_error(path: Path, error: Exception) -> None:
    """Save an error with its time for the process that started the ranks."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        # One that cannot be sent: what it says can.
        data = pickle.dumps(DeviceError(f"{type(error).__name__}: {error}"))
    part = Path(f"{path}.part")
    part.write_bytes(data)
    part.rename(path)


def _first_error(out: str) -> Exception | None:
    """Return what the first rank that failed said: the others then miss it, and fail, too."""
    left = [
        path for path in Path(out).parent.glob(f"{Path(out).name}.*") if path.suffix[1:].isdigit()
    ]
    if not left:
        return None
    error = pickle.loads(min(left, key=lambda path: path.stat().st_mtime_ns).read_bytes())
    assert isinstance(error, Exception)
    return error


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), names[0])


def train_ranks(
    ranks: int,
    device: str = "golden",
    *,
    data: str = "digits",
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> tuple[TrainResult, dict[str, Tensor]]:
    """Train with several ranks on this machine.

    Parameters
    ----------
    ranks : int
        Processes, at least 1; each makes its own device. One rank is this process.
    device : str
        As for `sat.device`.
    data : str
        Name of a data set.
    progress : bool
        Whether rank 0 shows a bar.
    options : mapping, optional
        For `sat.device`.
    **arguments
        For `sat.training.trainer.Trainer`; ``model`` by name. ``batch`` is that of all ranks
        together; ``shards`` are for one rank.

    Returns
    -------
    result : sat.training.trainer.TrainResult
        Losses are those of the whole batch.
    state : dict
        The trained model's ``state_dict``.

    Raises
    ------
    ValueError
        If ``ranks`` breaks its rule, does not divide the batch, or is joined by ``shards``.
    Exception
        What the first rank that failed raised.
    DeviceError
        If a rank ended without a word: somebody killed it, or the machine's memory ran out.
    """
    from sat.training.trainer import Trainer

    if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
        raise ValueError(f"ranks={ranks!r}: must be an int of at least 1")
    if ranks > 1:
        shards = arguments.get("shards", 1)
        if shards != 1:
            raise ValueError(f"shards={shards}: must be 1 with {ranks} ranks; leave either out")
        check_cut(arguments.get("batch", 32), ranks, "ranks")
    # What is wrong with the other arguments is better said here than by a rank.
    Trainer(data=load_data(data), **{**arguments, "shards": max(ranks, arguments.get("shards", 1))})
    job = (ranks, device, dict(options or {}), arguments, data, progress)
    if ranks == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as a rank does: torch's sums depend on it
        try:
            return _train(*job)
        finally:
            torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "result.pt")
        _spawn(ranks, (str(Path(folder) / "store"), out, *job), out)
        result, state = torch.load(out, weights_only=False)
    return result, state


def _spawn(ranks: int, arguments: tuple[Any, ...], out: str) -> None:
    """Run the ranks to their end; whatever ends this ends them."""
    started = torch.multiprocessing.spawn(  # type: ignore[attr-defined]
        _rank, arguments, nprocs=ranks, join=False
    )
    try:
        while not started.join():
            pass
    except (ProcessRaisedException, ProcessExitedException) as failed:
        error = _first_error(out)
        if error is not None:
            raise error from failed
        raise DeviceError(f"a rank ended before its work was done: {failed}") from failed
    finally:
        for process in started.processes:
            process.kill()
            process.join()


@dataclass(frozen=True)
class Comparison:
    """Training by ranks beside training by one rank, with the same batches.

    Parameters
    ----------
    ranks : int
    steps_per_epoch : int
    ranked, sharded, whole : TrainResult
        Of the ranks; of one rank, with as many shards; of one rank with the whole batch.
    bits_equal : bool
        Whether ranks and shards had the same losses, accuracies and final state, bit for bit.
    """

    ranks: int
    steps_per_epoch: int
    ranked: TrainResult
    sharded: TrainResult
    whole: TrainResult
    bits_equal: bool

    @property
    def first_apart(self) -> float:
        """Largest |ranks - whole| / whole of the losses of the first `FIRST_STEPS` steps."""
        ranked, whole = (np.array(r.losses[:FIRST_STEPS]) for r in (self.ranked, self.whole))
        return float((np.abs(ranked - whole) / whole).max())

    @property
    def epochs_apart(self) -> float:
        """Largest |ranks - whole| of an epoch's mean loss."""
        ranked, whole = self._epochs(self.ranked), self._epochs(self.whole)
        return float(np.abs(ranked - whole).max())

    @property
    def accuracies_apart(self) -> float:
        """|ranks - whole| of the accuracy at the end."""
        ranked, whole = self.ranked.accuracy, self.whole.accuracy
        assert ranked is not None and whole is not None, "each training ends with a test"
        return abs(ranked - whole)

    @property
    def passed(self) -> bool:
        """Whether bits are equal and all differences within their bounds."""
        # A NaN is within no bound.
        return (
            self.bits_equal
            and self.first_apart <= FIRST_BOUND
            and self.epochs_apart <= EPOCH_BOUND
            and self.accuracies_apart <= ACCURACY_BOUND
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; those that are not finite are None."""
        runs = {"ranks": self.ranked, "shards": self.sharded, "whole": self.whole}
        return {
            "ranks": self.ranks,
            "steps": self.whole.steps,
            "bits_equal": self.bits_equal,
            "first_steps": FIRST_STEPS,
            "first_apart": _finite(self.first_apart),
            "first_bound": FIRST_BOUND,
            "epochs_apart": _finite(self.epochs_apart),
            "epoch_bound": EPOCH_BOUND,
            "accuracies_apart": self.accuracies_apart,
            "accuracy_bound": ACCURACY_BOUND,
            "passed": self.passed,
            "losses": {name: [_finite(x) for x in run.losses] for name, run in runs.items()},
            "accuracies": {name: run.accuracies for name, run in runs.items()},
            "seconds": {name: run.seconds for name, run in runs.items()},
        }

    def __str__(self) -> str:
        """Return a table of mean losses per epoch, and the verdict."""
        ranked, sharded, whole = map(self._epochs, (self.ranked, self.sharded, self.whole))
        heads = (f"{self.ranks} ranks", f"{self.ranks} shards", "whole", "ranks - whole")
        lines = ["epoch" + "".join(f"{head:>15}" for head in heads)]
        for i, (a, b, c) in enumerate(zip(ranked, sharded, whole, strict=True), 1):
            lines.append(f"{i:>5}{a:>15.9f}{b:>15.9f}{c:>15.9f}{a - c:>15.1e}")
        ends = (run.accuracy or 0.0 for run in (self.ranked, self.sharded, self.whole))
        lines.append(" test" + "".join(f"{end:>15.2%}" for end in ends))
        lines.append("bits of ranks and shards equal: " + ("yes" if self.bits_equal else "NO"))
        for what, apart, bound in (
            (f"first {FIRST_STEPS} losses, relative", self.first_apart, FIRST_BOUND),
            ("mean losses of epochs", self.epochs_apart, EPOCH_BOUND),
            ("accuracy at the end", self.accuracies_apart, ACCURACY_BOUND),
        ):
            lines.append(f"ranks - whole, {what}: at most {apart:.1e}, bound {bound:g}")
        lines.append("passed" if self.passed else "FAILED")
        return "\n".join(lines)

    def _epochs(self, run: TrainResult) -> NDArray[np.float64]:
        """Return the mean loss of each epoch; the last may be shorter."""
        losses, length = run.losses, self.steps_per_epoch
        return np.array([np.mean(losses[i : i + length]) for i in range(0, len(losses), length)])


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def compare_ranks(ranks: int, device: str = "golden", **arguments: Any) -> Comparison:
    """Train three times from one seed: with ranks, with as many shards, and whole on one rank.

    Parameters
    ----------
    ranks : int
        At least 2.
    device : str
    **arguments
        For `train_ranks`; no ``shards``.

    Raises
    ------
    ValueError
        As `train_ranks` does, or for fewer than 2 ranks.
    """
    if ranks == 1:
        raise ValueError("ranks=1: there is nothing to compare; give at least 2")
    ranked, state = train_ranks(ranks, device, **arguments)
    sharded, same = train_ranks(1, device, **arguments, shards=ranks)
    whole, _ = train_ranks(1, device, **arguments)
    bits_equal = (
        np.array_equal(ranked.losses, sharded.losses)
        and ranked.accuracies == sharded.accuracies
        and all(torch.equal(x, same[name]) for name, x in state.items())
    )
    samples = len(load_data(arguments.get("data", "digits")).train_x)
    per_epoch = samples // arguments.get("batch", 32)
    return Comparison(ranks, per_epoch, ranked, sharded, whole, bits_equal)
