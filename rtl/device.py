"""The device: registers, sequencer, engines, buffers, and its three buses."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.axi import Axi4ReadSignature, Axi4Signature, AxiLiteSignature
from sat.rtl.buffers import (
    MadeBuffer,
    MaskBuffer,
    OperandBuffer,
    OutputBuffer,
    StartBuffer,
)
from sat.rtl.compute import ComputeEngine
from sat.rtl.config import SatConfig
from sat.rtl.csr import ADDRESS_BITS as CSR_ADDRESS_BITS
from sat.rtl.csr import ID_VALUE, CsrBlock
from sat.rtl.fetch import Fetch
from sat.rtl.isa import Source, Status
from sat.rtl.layouts import (
    PC_BITS,
    index_groups,
    index_write_layout,
    mask_write_layout,
    operand_groups,
    operand_write_layout,
    start_write_layout,
)
from sat.rtl.load import LoadEngine
from sat.rtl.sequencer import Sequencer
from sat.rtl.store import StoreEngine
from sat.rtl.stripes import Stripes
from sat.rtl.update import UpdateEngine


class Device(wiring.Component):
    """The whole accelerator.

    Between programs everything but the registers is held in reset, so each program starts in
    the same state: cycle 0 is the first in which STATUS is RUNNING. Buffers keep their contents.

    Parameters
    ----------
    config : SatConfig

    Members
    -------
    csr : ``In(AxiLiteSignature)``
        The registers (`sat.rtl.csr`).
    imem : ``Out(Axi4ReadSignature)``
        Instruction fetch.
    dmem : ``Out(Axi4Signature)``
        Data: read by LOAD, written by STORE. Of several ports (`sat.rtl.stripes`): dmem0, dmem1, …
    irq : ``Out(1)``
        A program has ended, well or not; low again when the next starts.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "csr": In(AxiLiteSignature(CSR_ADDRESS_BITS)),
                "imem": Out(Axi4ReadSignature(config.axi.instructions)),
                **{name: Out(Axi4Signature(config.axi.port)) for name in config.axi.data_ports},
                "irq": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        running = Signal()
        status = Signal(Status)
        error_pc = Signal(PC_BITS)

        m.submodules.csr = csr = CsrBlock(config)
        wiring.connect(m, wiring.flipped(self.csr), csr.bus)
        between = ResetInserter(~running)
        fetch, sequencer = Fetch(config), Sequencer(config)
        load, compute, store = LoadEngine(config), ComputeEngine(config), StoreEngine(config)
        m.submodules.fetch = between(fetch)
        m.submodules.sequencer = between(sequencer)
        m.submodules.load = between(load)
        m.submodules.compute = between(compute)
        update = UpdateEngine(config)
        m.submodules.store = between(store)
        m.submodules.update = between(update)

        # Memory ports.
        wiring.connect(m, fetch.port, wiring.flipped(self.imem))
        ports = [getattr(self, name) for name in config.axi.data_ports]
        if len(ports) == 1:
            for engine in (load, store):
                for name, member in engine.port.signature.members.items():
                    ours, its = getattr(ports[0], name), getattr(engine.port, name)
                    m.d.comb += ours.eq(its) if member.flow == Out else its.eq(ours)
        else:
            m.submodules.stripes = stripes = between(Stripes(config.axi))
            wiring.connect(m, load.port, stripes.read)
            wiring.connect(m, store.port, stripes.write)
            for ours, its in zip(ports, stripes.ports, strict=True):
                wiring.connect(m, wiring.flipped(ours), its)

        # Buffers.
        elements = config.axi.beat_bytes // 2
        a, b = (
            OperandBuffer(
                operand_write_layout(config, banks, words),
                words,
                elements=elements,
                groups=operand_groups(config, banks),
                shown=lanes,
            )
            for banks, words, lanes in (
                (config.rows, config.a_words, None),
                (config.cols, config.b_words, config.granule_halves),
            )
        )
        # GATHERs that prune bring a lane of indices at a time, LOADs a granule of them.
        lanes = 1 if config.prune_gathers else config.granule_halves
        index = OperandBuffer(
            index_write_layout(config),
            config.i_words,
            lanes,
            elements,
            index_groups(config),
            config.granule_halves,
        )
        start = StartBuffer(start_write_layout(config), config.sum_words)
        output = OutputBuffer(config.cols, config.sum_words)
        for name, buffer, write, letter in (
            ("a_buffer", a, load.a_write, "a"),
            ("b_buffer", b, load.b_write, "b"),
            ("index_buffer", index, load.i_write, "i"),
            ("start_buffer", start, load.s_write, "s"),
        ):
            m.submodules[name] = buffer
            m.d.comb += buffer.write.eq(write)
            for number in range(buffer.banks):
                m.d.comb += [
                    buffer.address[number].eq(getattr(compute, f"{letter}_address")[number]),
                    getattr(compute, f"{letter}_data")[number].eq(buffer.data[number]),
                ]
        m.submodules.output_buffer = output
        for number in range(config.cols):
            m.d.comb += [
                output.write[number].eq(compute.o_write[number]),
                output.write_address[number].eq(compute.o_write_address[number]),
                output.write_data[number].eq(compute.o_write_data[number]),
                output.address[number].eq(compute.o_read_address[number]),
                compute.o_read_data[number].eq(output.data[number]),
            ]
        m.submodules.mask_buffer = mask = MaskBuffer(mask_write_layout(config), config.sum_words)
        m.d.comb += [
            output.row_address.eq(store.address),
            store.row.eq(output.row_data),
            mask.write.eq(load.m_write),
            mask.address.eq(store.address),
            store.mask.eq(mask.data),
        ]
        self._update_buffers(m, load, update, store)

        # Program and window.
        address, length = csr.value("PROGRAM_ADDRESS"), csr.value("PROGRAM_LENGTH")
        base, size = csr.value("WINDOW_BASE"), csr.value("WINDOW_SIZE")
        window_end = Signal(65)
        program_end = Signal(65)
        m.d.comb += [
            window_end.eq(base + size),
            program_end.eq(address + length * isa.INSTRUCTION_BYTES),
            fetch.address.eq(address),
            fetch.length.eq(length),
            sequencer.length.eq(length),
            sequencer.window_base.eq(base),
            sequencer.window_end.eq(window_end),
        ]
        bad_address = (
            (address[: (isa.INSTRUCTION_BYTES - 1).bit_length()] != 0)
            | (address < base)
            | (program_end > window_end)
            | (window_end > 1 << config.axi.address_bits)
        )
        bad_length = (length == 0) | (length >= 1 << PC_BITS)

        # The host writes a start some cycles after what it starts.
        is_bad_address, is_bad_length = Signal(), Signal()
        m.d.sync += [is_bad_address.eq(bad_address), is_bad_length.eq(bad_length)]

        # Sequencer and engines.
        wiring.connect(m, fetch.o, sequencer.fetched)
        wiring.connect(m, sequencer.load, load.i)
        wiring.connect(m, sequencer.multiply, compute.i)
        wiring.connect(m, sequencer.store, store.i)
        wiring.connect(m, sequencer.update, update.i)
        masks = [load.release, load.signal, compute.release, compute.signal]
        masks += [store.release, store.signal, update.release, update.signal]
        m.d.comb += [
            mask.eq(given) for mask, given in zip(sequencer.raise_mask, masks, strict=True)
        ]
        m.d.comb += [
            sequencer.busy.eq(Cat(load.busy, compute.busy, store.busy, update.busy)),
            sequencer.moving.eq(load.moving | store.beat | fetch.beat | compute.busy | update.busy),
            sequencer.load_error.eq(load.error),
            sequencer.load_error_pc.eq(load.error_pc),
            sequencer.store_error.eq(store.error),
            sequencer.store_error_pc.eq(store.error_pc),
            sequencer.reset_request.eq(csr.reset),
            fetch.halt.eq(sequencer.halt),
            load.halt.eq(sequencer.halt),
            store.halt.eq(sequencer.halt),
        ]

        # Start and end.
        at_rest = ~sequencer.busy.any() & fetch.idle
        with m.If(~running):
            with m.If(csr.start):
                m.d.sync += error_pc.eq(0)
                with m.If(is_bad_length):
                    m.d.sync += status.eq(Status.BAD_FIELD)
                with m.Elif(is_bad_address):
                    m.d.sync += status.eq(Status.BAD_ADDRESS)
                with m.Else():
                    m.d.sync += [status.eq(Status.RUNNING), running.eq(1)]
            with m.Elif(csr.reset):
                m.d.sync += status.eq(Status.IDLE)
        with m.Elif(sequencer.ended):
            m.d.sync += [status.eq(Status.DONE), running.eq(0)]
        # A memory that never answers must not hold the device for ever.
        with m.Elif(sequencer.halt & (at_rest | sequencer.stuck)):
            m.d.sync += [
                status.eq(sequencer.status),
                error_pc.eq(sequencer.error_pc),
                running.eq(0),
            ]
        m.d.comb += self.irq.eq(~running & (status != Status.IDLE))

        # Registers that the device writes.
        def counter(name: str, when: Value) -> None:
            bits = len(csr.value(name))
            count = Signal(bits, name=name.lower())
            with m.If(~running & csr.start):
                m.d.sync += count.eq(0)
            with m.Elif(running & when):
                m.d.sync += count.eq(count + 1)
            m.d.comb += csr.value(name).eq(count)

        counter("CYCLES", Const(1))
        counter("BEATS_READ", load.beat)
        counter("BEATS_WRITTEN", store.beat)
        counter("COMPUTE_CYCLES", compute.busy)
        counter("SKIPPED", update.skipped)
        non_finite = Signal(32)
        with m.If(running):
            m.d.sync += non_finite.eq(store.non_finite)
        m.d.comb += [
            csr.running.eq(running),
            csr.value("ID").eq(ID_VALUE),
            csr.value("CONFIG").eq(
                Cat(
                    Const(config.rows, 8),
                    Const(config.cols, 8),
                    Const(config.max_m, 8),
                    Const(config.max_n, 8),
                )
            ),
            csr.value("NON_FINITE").eq(non_finite),
            update.skip.eq(store.non_finite != 0),
            csr.value("STATUS").eq(status),
            csr.value("ERROR_PC").eq(error_pc),
        ]
        return m

    def _update_buffers(
        self, m: Module, load: LoadEngine, update: UpdateEngine, store: StoreEngine
    ) -> None:
        """Put the banks between the load, update and store engines."""
        config = self.config
        lanes, bits = config.update_lanes, 8 * config.granule_bytes
        together = config.beat_words

        def banks(name: str, words: int, bits: int, part: int) -> MadeBuffer:
            m.submodules[name] = made = MadeBuffer(lanes, words, bits, part, together)
            return made

        write = load.u_write
        for number, (name, data) in enumerate(
            (("weight", update.w_data), ("momentum", update.v_data), ("gradient", update.g_data))
        ):
            buffer = OperandBuffer(write.shape(), config.update_words)
            m.submodules[f"{name}_buffer"] = buffer
            m.d.comb += [
                buffer.write.eq(write),
                buffer.write.banks.eq(Mux(write.buffers[number], write.banks, 0)),
            ]
            for lane in range(lanes):
                m.d.comb += [
                    buffer.address[lane].eq(update.in_address),
                    Value.cast(data[lane]).eq(Value.cast(buffer.data[lane])),
                ]
        made: dict[Source, MadeBuffer] = {}
        for source, values in ((Source.WEIGHT, update.w_out), (Source.MOMENTUM, update.v_out)):
            made[source] = banks(f"{source.name.lower()}_out", config.update_words, bits, bits)
            for lane in range(lanes):
                m.d.comb += [
                    made[source].write[lane].eq(update.out_write[lane]),
                    made[source].write_address[lane].eq(update.out_address),
                    made[source].write_data[lane].eq(Value.cast(values[lane])),
                ]
        for copy in ("ff", "bp"):
            # A value and its index are written together, to the same place.
            for what, bits in (("value", 16), ("index", 4)):
                source = Source[f"{copy}_{'values' if what == 'value' else 'indices'}".upper()]
                whole = config.granule_halves * bits
                buffer = banks(f"{copy}_{what}", config.copy_words, whole, bits)
                made[source] = buffer
                for lane in range(lanes):
                    place = getattr(update, f"{copy}_lane")[lane]
                    value = getattr(update, f"{copy}_{what}")[lane]
                    enable = getattr(update, f"{copy}_write")[lane]
                    m.d.comb += [
                        buffer.write[lane].eq(enable << place),
                        buffer.write_address[lane].eq(getattr(update, f"{copy}_address")[lane]),
                        buffer.write_data[lane].eq(value.replicate(config.granule_halves)),
                    ]
        for source, buffer in made.items():
            m.d.comb += buffer.address.eq(store.address)
            for lane in range(lanes):
                with m.If(store.source == source):
                    m.d.comb += store.made[lane].eq(buffer.data[lane])
