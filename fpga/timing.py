"""Which paths of a routed design are slow: static timing analysis of nextpnr's delays.

nextpnr names the one slowest path of a clock. Here every register's slowest path is found, from the
delays that it writes (IEEE 1497, SDF), and paths between the same signals are told as one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_WIRE = re.compile(r"\(INTERCONNECT (\S+)/(\S+) (\S+)/(\S+) \(\d+:\d+:(\d+)\)")
_INSTANCE = re.compile(r"\(INSTANCE (\S*)\)")
_ARC = re.compile(r"\(IOPATH (\S+) (\S+) \(\d+:\d+:(\d+)\)")
_CHECK = re.compile(r"\(SETUPHOLD \(posedge (\S+)\) \((?:pos|neg)edge (\S+)\) \(\d+:\d+:(\d+)\)")

_MADE = re.compile(
    r"_(?:LUT4|PFUMX|L6MUX21|CCU2C|TRELLIS_\w+?|MULT18X18D|DP16KD|PDPW16KD|ALU54B|EHXPLLL)_.*"
)
"""What Yosys adds to a signal's name for the cells around it."""

_PORT = re.compile(r"_(?:D[IO]|AD|R|P)[ABX]?\d*(?:_\d+)?$")
"""A pin of a memory or multiplier, where it names what is behind it."""
_NUMBER = re.compile(r"(?:\[\d+\]|\.\d+|\$\d+|_\d+)+$")

Pin = tuple[str, str]


@dataclass(frozen=True)
class TimingPath:
    """The slowest path between two signals.

    Parameters
    ----------
    start, end : str
        Registers, memories or multipliers, by the project's names.
    ns : float
        From clock to clock: delays and setup.
    logic_ns : float
        Of it in cells; the rest is wires.
    cells : int
        That it passes.
    through : tuple of str
        Signals on its way.
    """

    start: str
    end: str
    ns: float
    logic_ns: float
    cells: int
    through: tuple[str, ...]


def signal_name(cell: str) -> str:
    """Return the project's name for a cell of the netlist: that of the signal that it serves.

    Elements of an array, bits and copies have one name; what nextpnr adds has none.
    """
    name = cell.replace("\\", "").split("$CCU2", 1)[0]
    if name.startswith("$"):
        return ""
    name = _MADE.sub("", name)
    return _NUMBER.sub("", _PORT.sub("", name))


def slow_paths(sdf: str | Iterable[str], count: int = 20) -> list[TimingPath]:
    """Return the slowest paths between different pairs of signals, slowest first.

    Parameters
    ----------
    sdf : str or iterable of str
        Delays as nextpnr writes them, or their lines.
    count : int
        Paths, at most.
    """
    graph = _Graph(sdf.splitlines() if isinstance(sdf, str) else sdf)
    arrival, before = graph.arrivals()
    worst: dict[tuple[str, str], tuple[int, Pin, int]] = {}
    for pin, setup in graph.setup.items():
        if pin not in arrival:
            continue
        total = arrival[pin] + setup
        start = pin
        while start in before:
            start = before[start]
        pair = signal_name(start[0]), signal_name(pin[0])
        if pair not in worst or total > worst[pair][0]:
            worst[pair] = total, pin, setup
    slowest = sorted(worst.items(), key=lambda item: -item[1][0])[:count]
    return [graph.path(pair, pin, setup, arrival, before) for pair, (_, pin, setup) in slowest]


class _Graph:
    """Pins, and the delays between them in ps."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.wires: dict[Pin, list[tuple[Pin, int]]] = defaultdict(list)
        self.setup: dict[Pin, int] = {}
        arcs: list[tuple[str, str, str, int]] = []
        clocks: set[Pin] = set()
        cell = ""
        for line in lines:
            if found := _WIRE.search(line):
                self.wires[found[1], found[2]].append(((found[3], found[4]), int(found[5])))
            elif found := _ARC.search(line):
                arcs.append((cell, found[1], found[2], int(found[3])))
            elif found := _CHECK.search(line):
                self.setup[cell, found[1]] = int(found[3])
                clocks.add((cell, found[2]))
            elif found := _INSTANCE.search(line):
                cell = found[1]
        self.starts: dict[Pin, int] = {}
        self.arcs: dict[Pin, list[tuple[Pin, int]]] = defaultdict(list)
        for cell, entry, out, delay in arcs:
            if (cell, entry) in clocks:
                self.starts[cell, out] = max(delay, self.starts.get((cell, out), 0))
            else:
                self.arcs[cell, entry].append(((cell, out), delay))

    def arrivals(self) -> tuple[dict[Pin, int], dict[Pin, Pin]]:
        """Return when each pin's last change comes, and from which pin."""
        following = {pin: self.wires.get(pin, []) for pin in {*self.wires, *self.starts}}
        for pin, ends in self.arcs.items():
            following[pin] = ends
        waiting: dict[Pin, int] = defaultdict(int)
        reached, look = set(self.starts), list(self.starts)
        while look:
            for pin, _ in following.get(look.pop(), ()):
                waiting[pin] += 1
                if pin not in reached:
                    reached.add(pin)
                    look.append(pin)
        arrival, before = dict(self.starts), {}
        ready = [pin for pin in self.starts if not waiting[pin]]
        while ready:
            here = ready.pop()
            for pin, delay in following.get(here, ()):
                if arrival[here] + delay > arrival.get(pin, -1):
                    arrival[pin], before[pin] = arrival[here] + delay, here
                waiting[pin] -= 1
                if not waiting[pin]:
                    ready.append(pin)
        return arrival, before

    def path(
        self,
        pair: tuple[str, str],
        end: Pin,
        setup: int,
        arrival: dict[Pin, int],
        before: dict[Pin, Pin],
    ) -> TimingPath:
        """Return the path that ends at a pin."""
        pins = [end]
        while pins[-1] in before:
            pins.append(before[pins[-1]])
        pins.reverse()
        wires = sum(
            arrival[there] - arrival[here]
            for here, there in zip(pins, pins[1:], strict=False)
            if here[0] != there[0]
        )
        total = arrival[end] + setup
        names = [name for cell, _ in pins if (name := signal_name(cell))]
        through = [name for k, name in enumerate(names) if k == 0 or name != names[k - 1]]
        return TimingPath(
            start=pair[0],
            end=pair[1],
            ns=total / 1000,
            logic_ns=(total - wires) / 1000,
            cells=len({cell for cell, _ in pins}) - 1,
            through=tuple(through),
        )
