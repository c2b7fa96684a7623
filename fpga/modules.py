"""The modules of a Verilog text that `sat.rtl.verilog.emit` wrote, each by itself."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_MODULE = re.compile(r"^module \\?([^\s(]+).*?^endmodule\n", re.MULTILINE | re.DOTALL)
_INSTANCE = re.compile(r"^  \\?([^\s(]+) +\\?\S+ +\(\n", re.MULTILINE)


@dataclass(frozen=True)
class Modules:
    """Modules by name, and what each is made of.

    Parameters
    ----------
    texts : dict of str
        Verilog by module.
    parts : dict of Counter
        How many instances a module has of each other.
    """

    texts: dict[str, str]
    parts: dict[str, Counter[str]]

    @classmethod
    def of(cls, text: str) -> Modules:
        """Return the modules of a text."""
        texts = {found[1]: found[0] for found in _MODULE.finditer(text)}
        parts = {
            name: Counter(n for n in _INSTANCE.findall(body) if n in texts)
            for name, body in texts.items()
        }
        return cls(texts, parts)

    def below(self, name: str, apart: frozenset[str] = frozenset()) -> list[str]:
        """Return a module and all that it is made of, in order of their names.

        Parameters
        ----------
        name : str
        apart : frozenset of str
            Modules that are there, but not what these are made of.
        """
        found, rest = set(), [name]
        while rest:
            one = rest.pop()
            if one not in found:
                found.add(one)
                rest += () if one in apart and one != name else self.parts[one]
        return sorted(found)

    def count(self, name: str, within: str, apart: frozenset[str] = frozenset()) -> int:
        """Return how many instances of a module another has, those in modules ``apart`` not."""
        return sum(
            number * ((part == name) + (0 if part in apart else self.count(name, part, apart)))
            for part, number in self.parts[within].items()
        )
