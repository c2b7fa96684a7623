"""The sequencer: takes a program from memory, checks it and hands it to the engines."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.check import Checker
from sat.rtl.config import SEMAPHORES, SatConfig
from sat.rtl.fetch import FETCHED
from sat.rtl.isa import ENGINES, Opcode, Status
from sat.rtl.layouts import PC_BITS, any_command_layout, command_layout
from sat.rtl.semaphores import Semaphores
from sat.rtl.streams import Queue


def engine_layout(opcodes: tuple[Opcode, ...]) -> data.StructLayout:
    """Return what the engine of these instructions receives."""
    return any_command_layout() if len(opcodes) > 1 else command_layout(isa.BODIES[opcodes[0]])


class Sequencer(wiring.Component):
    """Check and dispatch instructions; order the engines by semaphores; stop on errors.

    An instruction taken from the fetch unit in cycle p is dispatched in cycle
    p + 1 + `CHECK_CYCLES` or as soon as its engine's queue has room; the next is taken from the
    cycle after. It may take its semaphores from the cycle after the dispatch on, when the
    instruction before it has been accepted; from the cycle after that it is offered to its engine.
    FENCE and END are dispatched when all queues are empty and no engine is busy.

    The first error wins. It raises ``halt``: nothing more is dispatched or offered, no further
    address goes to memory; when what is under way has come to rest, ``stopped`` says so.

    Parameters
    ----------
    config : SatConfig

    Members
    -------
    fetched : ``In(stream.Signature(FETCHED))``
    length : ``In``
        Instructions in the program.
    window_base, window_end : ``In``
    load, multiply, store, update : ``Out(stream.Signature(engine_layout(…)))``
    raise_mask : ``In(16).array(8)``
        Releases and signals of the engines.
    busy : ``In(4)``
        The engines, in the order of `ENGINES`.
    moving : ``In(1)``
        Something other than a dispatch or an accept makes progress (for the watchdog).
    load_error, store_error, load_error_pc, store_error_pc : ``In``
    reset_request : ``In(1)``
        Stop as after an error, with status IDLE.
    halt : ``Out(1)``
    ended : ``Out(1)``
        END was reached, all is done: for one cycle.
    status, error_pc : ``Out``
        While ``halt``: why.
    stuck : ``Out(1)``
        Nothing has moved for `SatConfig.watchdog_cycles`.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "fetched": In(stream.Signature(FETCHED)),
                "length": In(PC_BITS),
                "window_base": In(isa.ADDRESS_BITS + 1),
                "window_end": In(isa.ADDRESS_BITS + 1),
                **{
                    name: Out(stream.Signature(engine_layout(opcodes)))
                    for name, opcodes in ENGINES.items()
                },
                "raise_mask": In(SEMAPHORES).array(2 * len(ENGINES)),
                "busy": In(len(ENGINES)),
                "moving": In(1),
                "load_error": In(1),
                "load_error_pc": In(PC_BITS),
                "store_error": In(1),
                "store_error_pc": In(PC_BITS),
                "reset_request": In(1),
                "halt": Out(1),
                "ended": Out(1),
                "status": Out(Status),
                "error_pc": Out(PC_BITS),
                "stuck": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config

        # The instruction under check.
        full = Signal()
        current = Signal(FETCHED)
        header = data.View(isa.HEADER, current.word[: isa.HEADER.size])
        dispatched = Signal()
        m.submodules.checker = checker = Checker(config)
        m.d.comb += [
            checker.word.eq(current.word),
            checker.valid.eq(full),
            checker.coming.eq(self.fetched.p.word[:8]),
            checker.follow.eq(dispatched),
            checker.last.eq(current.pc == self.length - 1),
            checker.window_base.eq(self.window_base),
            checker.window_end.eq(self.window_end),
            self.fetched.ready.eq(~full & ~self.halt),
        ]
        decide = full & checker.decided & ~self.halt
        with m.If(~full):
            m.d.sync += [full.eq(self.fetched.valid & ~self.halt), current.eq(self.fetched.p)]
        with m.If(dispatched):
            m.d.sync += full.eq(0)
        fault = Mux(current.failed, Status.AXI_FETCH, checker.status)
        right = checker.right & ~current.failed
        legal = decide & right

        # A queue and a gate before each engine.
        raisers = 2 * len(ENGINES)
        m.submodules.semaphores = semaphores = Semaphores(len(ENGINES), raisers)
        for number in range(raisers):
            m.d.comb += semaphores.raise_mask[number].eq(self.raise_mask[number])
        empty, accepts = [], []
        for number, (name, opcodes) in enumerate(ENGINES.items()):
            engine = getattr(self, name)
            layout = engine_layout(opcodes)
            queued = data.StructLayout({"wait": SEMAPHORES, "command": layout})
            queue = Queue(queued, config.queue_depth)
            m.submodules[f"queue_{name}"] = queue
            mine = legal & Cat(header.opcode == opcode for opcode in opcodes).any()
            given = queue.i.p.command
            m.d.comb += [
                queue.i.valid.eq(mine),
                queue.i.p.wait.eq(header.wait),
                given.pc.eq(current.pc),
                given.release.eq(header.release),
                given.signal.eq(header.signal),
                Value.cast(given.body).eq(current.word[isa.HEADER_BITS :]),
            ]
            if len(opcodes) > 1:
                m.d.comb += given.opcode.eq(header.opcode)
            with m.If(mine & queue.i.ready):
                m.d.comb += dispatched.eq(1)
            through = Signal(name=f"through_{name}")  # it has its semaphores
            accept = engine.valid & engine.ready
            m.d.comb += [
                semaphores.want[number].eq(queue.o.p.wait),
                semaphores.offered[number].eq(queue.o.valid & ~through),
                engine.valid.eq(through & ~self.halt),
                engine.payload.eq(queue.o.p.command),
                queue.o.ready.eq(accept),
            ]
            m.d.sync += through.eq(semaphores.open[number] | (through & ~accept))
            empty.append(queue.level == 0)
            accepts.append(accept)

        quiet = Cat(empty).all() & ~self.busy.any()
        with m.If(legal & (header.opcode == Opcode.FENCE) & quiet):
            m.d.comb += dispatched.eq(1)

        # The watchdog.
        still = Signal(range(config.watchdog_cycles + 1))
        moves = Signal()  # did, in the cycle before
        m.d.sync += moves.eq(self.moving | dispatched | Cat(accepts).any())
        self.state = (still, moves)  # what proofs speak of (tests/formal)
        m.d.comb += self.stuck.eq(still == config.watchdog_cycles)
        with m.If(moves):
            m.d.sync += still.eq(0)
        with m.Elif(~self.stuck):
            m.d.sync += still.eq(still + 1)

        # The first error wins; then END.
        def stop(status: Status, pc: Value) -> list:
            return [self.halt.eq(1), self.status.eq(status), self.error_pc.eq(pc), still.eq(0)]

        with m.If(~self.halt):
            with m.If(self.reset_request):
                m.d.sync += stop(Status.IDLE, Const(0))
            with m.Elif(self.load_error):
                m.d.sync += stop(Status.AXI_READ, self.load_error_pc)
            with m.Elif(self.store_error):
                m.d.sync += stop(Status.AXI_WRITE, self.store_error_pc)
            with m.Elif(semaphores.overflow):
                m.d.sync += stop(Status.SEMAPHORE, current.pc)
            with m.Elif(decide & ~right):
                m.d.sync += [*stop(Status.IDLE, current.pc), self.status.eq(fault)]
            with m.Elif(self.stuck):
                m.d.sync += stop(Status.WATCHDOG, current.pc)
            with m.Elif(legal & (header.opcode == Opcode.END) & quiet):
                m.d.comb += self.ended.eq(1)
        return m
