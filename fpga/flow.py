"""From a board's gateware to its bitstream: Yosys, nextpnr, ecppack."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import resource
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat.fpga.area import area_of
from sat.fpga.mapping import mapping_files, mapping_script
from sat.fpga.timing import TimingPath, slow_paths
from sat.fpga.wheels import ECPPACK, NEXTPNR, YOSYS, follow, ready, run_wheel, run_yosys
from sat.sim.build import cached, digest

_NETLIST, _PLACED, _CONFIG, _BITSTREAM = "top.json", "placed.json", "top.config", "top.bit"
_TIMING, _DELAYS = "timing.json", "top.sdf"
_KEPT = (_BITSTREAM, _TIMING, _DELAYS)

_PLACER = ("--placer", "static", "--router", "router2")
"""By electrostatics a 4x4 takes 28 % less wire than by nextpnr's default. router2 settles who gets
a wire by cost; router1, the ECP5's default, by ripping up connection after connection."""

_ROUTING = {
    "router2/initCurrCongWeight": "4.0",
    "router2/currCongWeightMult": "0.5",
    "router2/estimateWeight": "1.0",
}
"""What is set between placing and routing; nextpnr has no options for it.

A 4x4 routed by nextpnr's own settings stays at hundreds of wires that are taken twice. The cost of
a taken wire grows so fast from round to round that after fifty of them connections go round by far,
and take wires that others need. And what is critical does not give way: see `_HASTE`."""

_HASTE = 5
"""The router aims for so many times the clock. How critical a connection is, nextpnr counts from
the slowest path on, in periods. Of so short ones, paths within a few ns of the slowest matter, and
all else gives way to them; aimed for the clock itself, half of the design does not give way."""

_ROUTINGS = 3
"""How often a design is routed anew, by chance another way, until it is fast enough: a 4x4 is a
percent faster or slower then."""


@dataclass(frozen=True)
class Seconds:
    """What a tool took: by the wall's clock, and of the processor. 0 for what was there already."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Implementation:
    """What the tools made of a board's gateware.

    Parameters
    ----------
    bitstream : bytes
    gateware : str
        Digest of what it was made from: RTLIL and pins.
    tools : dict of str
        Versions of the wheels that made it.
    netlist : dict
        Yosys' JSON of the module ``top``, flat.
    timing : dict
        nextpnr's report: utilisation, frequencies.
    paths : tuple of TimingPath
        The slowest ones, slowest first.
    seconds : dict of Seconds
        By step: synthesis, place and route.
    """

    bitstream: bytes
    gateware: str
    tools: dict[str, str]
    netlist: dict[str, Any]
    timing: dict[str, Any]
    paths: tuple[TimingPath, ...]
    seconds: dict[str, Seconds]

    @property
    def sha256(self) -> str:
        """Digest of the bitstream."""
        return hashlib.sha256(self.bitstream).hexdigest()


def implement(
    files: Mapping[str, str],
    nextpnr_options: Sequence[str],
    clock_hz: int,
    capacity: Mapping[str, int],
    *,
    seed: int = 1,
    heard: Callable[[str], None] | None = None,
) -> Implementation:
    """Synthesise, place, route and pack; what was made before comes from the cache.

    What is too slow is routed anew; of `_ROUTINGS` the fastest is taken. The same files, options,
    seed and wheels give the same bytes.

    Parameters
    ----------
    files : mapping of str to str
        ``top.il`` and ``top.lpf``: RTLIL with the module ``top``, and its pins.
    nextpnr_options : sequence of str
        The FPGA, its package and speed.
    clock_hz : int
        Frequency to aim for; whether it was reached is for the caller to see.
    capacity : mapping of str to int
        What the FPGA has (`Area.require`).
    seed : int
        Of the placement.
    heard : callable, optional
        Called, in a thread of its own, with what the tools are at.

    Raises
    ------
    BuildError
        A tool is missing or fails; the design does not fit, or cannot be routed.
    """
    seconds: dict[str, Seconds] = {}
    script = mapping_script(clock_hz, _NETLIST)
    with _timed(seconds, "synthesis"):
        sources = {"top.il": files["top.il"], **mapping_files()}
        netlist = run_yosys(sources, script, _NETLIST, _of_yosys(heard))
    text = netlist.read_bytes()
    module = json.loads(text)["modules"]["top"]
    area_of(Counter(cell["type"] for cell in module["cells"].values())).require(capacity)
    options = [*_PLACER, "--freq", f"{clock_hz / 1e6:g}", "--seed", str(seed)]
    given = [files["top.lpf"], *nextpnr_options, *options, *_KEPT]
    given += [json.dumps(_ROUTING), str(_HASTE), str(_ROUTINGS)]
    key = digest([ready(NEXTPNR), text, *given])

    def place(folder: Path) -> Path:
        def nextpnr(name: str, *arguments: str) -> None:
            log = folder / f"{name}.log"
            # Its verdict on timing is in its report.
            more = ["--lpf", "top.lpf", "--timing-allow-fail", "--quiet", "--log", log.name]
            with follow(log, _of_nextpnr(heard)):
                run_wheel(NEXTPNR, [*nextpnr_options, *arguments, *more], folder)

        (folder / _NETLIST).write_bytes(text)
        (folder / "top.lpf").write_text(files["top.lpf"])
        nextpnr("place", *options, "--json", _NETLIST, "--write", _PLACED, "--no-route")
        routed: dict[str, float] = {}
        for number in range(1, _ROUTINGS + 1):
            aim = {"target_freq": f"{_HASTE * clock_hz:.6f}", "seed": f"{number:032b}"}
            _set(folder / _PLACED, _ROUTING | aim)
            at = f"routing{number}"
            (folder / at).mkdir()
            made_by_routing = (
                f"--textcfg={at}/{_CONFIG}", f"--report={at}/{_TIMING}", f"--sdf={at}/{_DELAYS}"
            )  # fmt: skip
            nextpnr(at, "--json", _PLACED, "--no-pack", "--no-place", *made_by_routing)
            routed[at] = fmax_mhz(json.loads((folder / at / _TIMING).read_text()))
            if routed[at] * 1e6 >= clock_hz:
                break
        best = folder / max(routed, key=lambda at: routed[at])
        run_wheel(ECPPACK, ["--compress", "--input", _CONFIG, "--bit", _BITSTREAM], best)
        made = folder / "made.zip"
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in _KEPT:
                archive.write(best / name, name)
        return made

    with _timed(seconds, "place and route"):
        archive = zipfile.ZipFile(cached("bitstream", key, ".zip", place))
    with archive:
        return Implementation(
            bitstream=archive.read(_BITSTREAM),
            gateware=digest([files["top.il"], files["top.lpf"]]),
            tools={program: ready(program) for program in (YOSYS, NEXTPNR)},
            netlist=module,
            timing=json.loads(archive.read(_TIMING)),
            paths=tuple(slow_paths(archive.read(_DELAYS).decode())),
            seconds=seconds,
        )


def fmax_mhz(timing: Mapping[str, Any]) -> float:
    """Return the frequency of nextpnr's report, in MHz: one clock drives all, by many names."""
    return min(clock["achieved"] for clock in timing["fmax"].values())


def _set(placed: Path, settings: Mapping[str, str]) -> None:
    """Change settings that nextpnr wrote with a design: it takes them before those of its call."""
    design = json.loads(placed.read_text())
    design["modules"]["top"]["settings"].update(settings)
    placed.write_text(json.dumps(design))


@contextlib.contextmanager
def _timed(seconds: dict[str, Seconds], step: str) -> Iterator[None]:
    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    wall, before = time.perf_counter(), cpu()
    yield
    seconds[step] = Seconds(time.perf_counter() - wall, cpu() - before)


def _of_yosys(heard: Callable[[str], None] | None) -> Callable[[str], None] | None:
    if heard is None:
        return None

    def line(text: str) -> None:
        found = re.match(r"[\d.]+ Executing (\S+)", text)
        if found:
            heard(f"synthesis: {found[1]}")

    return line


def _of_nextpnr(heard: Callable[[str], None] | None) -> Callable[[str], None] | None:
    if heard is None:
        return None

    def line(text: str) -> None:
        text = text.removeprefix("Info:").strip()
        found = re.match(r"(?:at )?iteration #?(\d+)", text)
        routed = re.match(r"iter=(\d+) wires=\d+ overused=(\d+)", text)
        if routed:
            heard(f"routing: iteration {routed[1]}, {int(routed[2]):,} wires taken twice")
        elif found:
            heard(f"placing: iteration {found[1]}")
        elif re.match(r"Packing|Routing|Placed", text):
            heard(text.rstrip("."))

    return line
