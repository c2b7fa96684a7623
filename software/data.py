"""Data sets that need no download."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TEST_SHARE = 0.25
_SPLIT_SEED = 0


@dataclass(frozen=True)
class DataSet:
    """Labelled pictures, split for training and for testing.

    Parameters
    ----------
    name : str
    train_x, test_x : torch.Tensor
        (samples, channels, height, width) float32, standardised.
    train_y, test_y : torch.Tensor
        (samples,) int64: classes from 0.
    classes : int
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    def steps(self, batch: int) -> int:
        """Return how many batches `batches` gives."""
        return len(self.train_x) // batch

    def batches(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training samples once in random order, as (inputs, classes).

        All batches are full; what is left over at the end sits out this time.

        Parameters
        ----------
        batch : int
            Samples in a batch.
        generator : torch.Generator
            Source of the order.
        """
        order = torch.randperm(len(self.train_x), generator=generator)
        for first in range(0, len(order) - batch + 1, batch):
            chosen = order[first : first + batch]
            yield self.train_x[chosen], self.train_y[chosen]


def _digits() -> DataSet:
    # Imported here, for the library works without scikit-learn.
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "the digits data come with scikit-learn, which is not installed; "
            "run `pip install scikit-learn`, or `make setup`"
        ) from error
    bunch = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        bunch.images,
        bunch.target,
        test_size=TEST_SHARE,
        stratify=bunch.target,
        random_state=_SPLIT_SEED,
    )
    # Whole pictures share one mean and deviation, those of the training part.
    mean, deviation = train_x.mean(), train_x.std()

    def inputs(images: object) -> Tensor:
        return ((torch.tensor(images) - mean) / deviation).float()[:, None]

    return DataSet(
        "digits",
        inputs(train_x),
        torch.tensor(train_y, dtype=torch.int64),
        inputs(test_x),
        torch.tensor(test_y, dtype=torch.int64),
        10,
    )


def _mnist1d() -> DataSet:
    try:
        from mnist1d.data import make_dataset
    except ImportError as error:
        raise ImportError(
            "the MNIST-1D data are made by the package mnist1d, which is not installed; "
            "run `pip install mnist1d`, or `make setup`"
        ) from error
    # It seeds everybody's random numbers.
    held = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        made = make_dataset()
    finally:
        random.setstate(held[0])
        np.random.set_state(held[1])
        torch.random.set_rng_state(held[2])

    def lines(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).float()[:, None, None]

    def classes(values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).long()

    return DataSet(
        "mnist1d",
        lines(made["x"]),
        classes(made["y"]),
        lines(made["x_test"]),
        classes(made["y_test"]),
        10,
    )


_SETS = {"digits": _digits, "mnist1d": _mnist1d}


def data_sets() -> list[str]:
    """Return the names that `load_data` knows."""
    return list(_SETS)


def load_data(name: str) -> DataSet:
    """Return a data set; its split does not depend on any seed.

    ``"digits"``: 1797 handwritten digits of 8 x 8 pixels (UCI, inside scikit-learn).
    ``"mnist1d"``: 5000 lines of 40 numbers, digits drawn by a procedure (Greydanus and Kobak,
    "Scaling down deep learning with MNIST-1D", 2024): a task that tells networks apart.

    Raises
    ------
    ValueError
        If there is no such data set.
    ImportError
        If what it comes with is not installed.
    """
    if name not in _SETS:
        raise ValueError(f"data {name!r}: there is no such set; choose {', '.join(_SETS)}")
    return _SETS[name]()
