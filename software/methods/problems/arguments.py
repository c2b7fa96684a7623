"""Rules that arguments of several methods share."""

from __future__ import annotations


def require_counts(**values: int) -> None:
    """Raise ValueError for a number that is no int of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be an int of at least 1; raise it")
