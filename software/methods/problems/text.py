"""Text that needs no download: the help topics that come with Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics

import torch
from torch import Tensor

TEST_SHARE = 0.1


@dataclass(frozen=True)
class Text:
    """Characters as numbers, the end of the text held out.

    Parameters
    ----------
    train, test : torch.Tensor
        (characters,) int64: places in ``symbols``.
    symbols : str
        All characters of the text, ascending.
    """

    train: Tensor
    test: Tensor
    symbols: str

    def batch(self, batch: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random pieces of the training text, and what follows each character.

        Parameters
        ----------
        batch, context : int
            Pieces, and characters in each.
        generator : torch.Generator
            Source of the places.

        Returns
        -------
        tuple of torch.Tensor
            (batch, context) int64 each: characters, and the same one character later.
        """
        starts = torch.randint(len(self.train) - context, (batch, 1), generator=generator)
        pieces = self.train[starts + torch.arange(context + 1)]
        return pieces[:, :-1], pieces[:, 1:]

    def test_batches(self, batch: int, context: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the test text once in its order, as `batch` does; a last short piece is left out.

        Parameters
        ----------
        batch, context : int
            Most pieces at a time, and characters in each.
        """
        pieces = self.test.unfold(0, context + 1, context)
        for part in pieces.split(batch):
            yield part[:, :-1], part[:, 1:]


@cache
def load_text() -> Text:
    """Return the topics of ``pydoc``, as ASCII: Python 3.11's have 464,395 characters of 94 kinds.

    Another version of Python has slightly other topics. The last tenth is for testing.
    """
    text = "".join(topics.values()).encode("ascii", "ignore").decode()
    symbols = "".join(sorted(set(text)))
    places = {symbol: place for place, symbol in enumerate(symbols)}
    numbers = torch.tensor([places[symbol] for symbol in text])
    cut = len(numbers) - int(TEST_SHARE * len(numbers))
    return Text(numbers[:cut], numbers[cut:], symbols)
