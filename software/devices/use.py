"""Which SAT layers multiplied, and who read the weights of those that did not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(eq=False)
class Family:
    """The SAT layers that one `sparsify_` made, by name.

    Attributes
    ----------
    layers : set of str
    called : set of str
        Those that have multiplied since.
    reads : dict
        Where others read the weight of one that had not: a place in a program, and what says
        whether it is the same place.
    """

    layers: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    reads: dict[str, object] = field(default_factory=dict)


class LayerUse:
    """What happened to SAT layers inside a `watch_layers`."""

    def __init__(self) -> None:
        self._called: dict[Family, set[str]] = {}
        self._read: dict[Family, dict[str, str]] = {}

    def note_call(self, family: Family, layer: str) -> None:
        """Say that a layer multiplied."""
        self._called.setdefault(family, set()).add(layer)

    def note_read(self, family: Family, layer: str, place: str) -> None:
        """Say that somebody else read a layer's weight."""
        self._read.setdefault(family, {}).setdefault(layer, place)

    @property
    def idle(self) -> dict[str, str]:
        """Layers that never multiplied, of models that were at work: name to who read the weight.

        An empty text if nobody read it. Those that were read come first.
        """
        found: dict[str, str] = {}
        for family in {**self._read, **self._called}:
            called, read = self._called.get(family, set()), self._read.get(family, {})
            for layer in sorted(family.layers - called, key=lambda name: (name not in read, name)):
                found.setdefault(layer, read.get(layer, ""))
        return found

    def describe(self, most: int = 8) -> str | None:
        """Return one line about the layers that never multiplied; None if all did."""
        idle = self.idle
        if not idle:
            return None
        shown = [
            f"{name!r} (weight read by {by})" if by else repr(name) for name, by in idle.items()
        ]
        more = f" and {len(shown) - most} more" if len(shown) > most else ""
        return f"SAT layers that never multiplied: {', '.join(shown[:most])}{more}"


_watchers: ContextVar[tuple[LayerUse, ...]] = ContextVar("sat_layer_watchers", default=())


def watchers() -> tuple[LayerUse, ...]:
    """Return those who are to know of what happens to SAT layers here."""
    return _watchers.get()


@contextlib.contextmanager
def watch_layers(use: LayerUse | None = None) -> Iterator[LayerUse]:
    """Note which SAT layers multiply inside this context."""
    use = LayerUse() if use is None else use
    token = _watchers.set((*_watchers.get(), use))
    try:
        yield use
    finally:
        _watchers.reset(token)
