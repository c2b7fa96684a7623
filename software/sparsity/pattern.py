"""N:M patterns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sat.rtl.config import M_CHOICES


@dataclass(frozen=True)
class Pattern:
    """At most ``n`` non-zeros in every ``m`` consecutive elements; 1:1 (`DENSE`) for no pattern.

    Parameters
    ----------
    n, m : int
        1 <= n <= m, m one of 2, 4, 8, 16; or 1 and 1.

    Raises
    ------
    TypeError
        If ``n`` or ``m`` is no int.
    ValueError
        If n:m is no pattern.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("m", self.m)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(
                    f"{name}={value!r} is a {type(value).__name__}: a pattern has two ints; "
                    "give for instance Pattern(2, 8)"
                )
        if (self.n, self.m) != (1, 1) and (self.m not in M_CHOICES or not 1 <= self.n <= self.m):
            raise ValueError(
                f"pattern {self.n}:{self.m}: N must be from 1 to M and M one of 2, 4, 8, 16; "
                "choose for instance 2:8, or dense"
            )

    @classmethod
    def parse(cls, spec: str | Pattern | None) -> Pattern:
        """Return the pattern that ``spec`` names.

        Parameters
        ----------
        spec : str or Pattern or None
            ``"2:8"``; ``"dense"``, ``"1:1"`` or None for no pattern; a pattern for itself.

        Raises
        ------
        TypeError
            If ``spec`` is none of these types.
        ValueError
            If the text is no pattern.
        """
        if isinstance(spec, Pattern):
            return spec
        if spec is None:
            return DENSE
        if not isinstance(spec, str):
            raise TypeError(
                f"pattern {spec!r} is a {type(spec).__name__}: must be text such as '2:8', "
                "'dense', a Pattern or None"
            )
        text = spec.strip().lower()
        if text == "dense":
            return DENSE
        match = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", text)
        if match is None:
            raise ValueError(
                f"pattern {spec!r}: must be N:M or dense; write for instance '2:8' or 'dense'"
            )
        return cls(int(match[1]), int(match[2]))

    @property
    def dense(self) -> bool:
        """Whether this stands for no pattern."""
        return self.m == 1

    def kept(self, length: int) -> int:
        """Return how many of ``length`` elements are stored; a short last group stores min(n, e).

        Parameters
        ----------
        length : int
            Elements along the axis.
        """
        return length // self.m * self.n + min(self.n, length % self.m)

    def fits(self, channels: Mapping[str, int]) -> tuple[bool, str]:
        """Return whether a layer is sparse if nobody decides otherwise, and why.

        Parameters
        ----------
        channels : mapping of str to int
            The layer's channels along which weights are pruned, each under its name.
        """
        for what, count in channels.items():
            if count % self.m:
                return False, f"{what} {count} is no multiple of {self.m}"
        return True, f"channels are multiples of {self.m}"

    def __str__(self) -> str:
        return "dense" if self.dense else f"{self.n}:{self.m}"


DENSE = Pattern(1, 1)
"""No pattern: every element is stored."""


@dataclass(frozen=True)
class Patterns:
    """The patterns of a layer's three products.

    Parameters
    ----------
    ff, bp, wu : Pattern
        Of what a training scheme prunes in each stage.
    """

    ff: Pattern
    bp: Pattern
    wu: Pattern

    @classmethod
    def parse(cls, spec: str | Pattern | Patterns | None) -> Patterns:
        """Return the patterns that ``spec`` names.

        Parameters
        ----------
        spec : str or Pattern or Patterns or None
            What `Pattern.parse` takes, for all stages; or text with stages of their own behind it:
            ``"2:8,wu=2:4"``.

        Raises
        ------
        TypeError
            If ``spec`` is none of these types.
        ValueError
            If the text names no patterns.
        """
        if isinstance(spec, Patterns):
            return spec
        if not isinstance(spec, str):
            return cls(*3 * (Pattern.parse(spec),))
        first, *others = spec.split(",")
        own: dict[str, Pattern] = {}
        for other in others:
            stage, _, text = other.partition("=")
            name = stage.strip().lower()
            if name not in ("ff", "bp", "wu") or not text.strip():
                raise ValueError(
                    f"pattern {spec!r}: {other!r} is no pattern of a stage; write for instance "
                    "'2:8,wu=2:4'"
                )
            if name in own:
                raise ValueError(
                    f"pattern {spec!r}: names {name} twice; a stage has one pattern, drop the other"
                )
            own[name] = Pattern.parse(text)
        return replace(cls(*3 * (Pattern.parse(first),)), **own)

    def of(self, stage: str) -> Pattern:
        """Return the pattern of stage ``"FF"``, ``"BP"`` or ``"WU"``."""
        pattern: Pattern = getattr(self, stage.lower())
        return pattern

    @property
    def dense(self) -> bool:
        """Whether no stage has one."""
        return self.ff.dense and self.bp.dense and self.wu.dense

    def __str__(self) -> str:
        own = [f",{n}={p}" for n, p in (("bp", self.bp), ("wu", self.wu)) if p != self.ff]
        return f"{self.ff}{''.join(own)}"
