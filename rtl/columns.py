"""From memory into the buffers of a word for each column: sums that products start from, and masks.

Parts of the load engine (`sat.rtl.load`), by row. Each returns when it takes the beat at hand.
``load`` is the instruction (`sat.rtl.load.data_command_layout`), ``row`` the row of it whose data
come; ``finish`` is raised with its last word, ``segments`` is done with each segment.
"""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring

from sat.rtl.config import SatConfig


def take_masks(
    m: Module,
    config: SatConfig,
    port: wiring.PureInterface,
    write: data.View,
    load: data.View,
    segments: stream.Interface,
    row: Signal,
    finish: Signal,
) -> Value:
    """Take rows of mask words apart, a word a cycle."""
    size, beat_bytes = config.mask_bytes, config.axi.beat_bytes
    byte_bits = (beat_bytes - 1).bit_length()
    fresh = Signal(init=1)  # no word of the row has come
    begin = Signal(init=1)  # no row of the instruction has begun
    word = Signal(16)
    row_offset = Signal(16)
    row_address = Signal(12)
    at = Signal(12)
    m.d.comb += at.eq(Mux(begin, load.address, row_address))
    later = Signal(byte_bits)
    byte = Signal(byte_bits)  # of the beat, where the word begins
    m.d.comb += byte.eq(Mux(fresh, at[:byte_bits], later))
    # A row shorter than a word is a part of one: its upper bits are of no account.
    last_of_row = word == load.last_word
    last_of_beat = last_of_row | (byte == beat_bytes - size)
    step = load.mask & port.rvalid
    partial = load.row_bytes < size
    bits = Signal(8 * size)
    present = Signal(8 * size)
    m.d.comb += [
        present.eq(Mux(partial, (1 << (load.row_bytes[:3] << 3)) - 1, ~0)),
        bits.eq((port.rdata >> (byte << 3)) & present),
    ]
    with m.If(step):
        m.d.sync += [word.eq(word + 1), fresh.eq(0), later.eq(byte + size)]
        with m.If(last_of_row):
            m.d.comb += segments.ready.eq(1)
            m.d.sync += [
                word.eq(0),
                fresh.eq(1),
                begin.eq(0),
                row.eq(row + 1),
                row_offset.eq(row_offset + load.stride),
                row_address.eq(at + load.pitch),
            ]
            with m.If(row == load.last_row):
                m.d.comb += finish.eq(1)
                m.d.sync += [row.eq(0), row_offset.eq(0), begin.eq(1)]
    m.d.sync += [
        write.write.eq(step),
        write.address.eq(load.base + row_offset + word),
        write.data.eq(bits),
    ]
    return last_of_beat


def take_starts(
    m: Module,
    config: SatConfig,
    port: wiring.PureInterface,
    write: data.View,
    load: data.View,
    segments: stream.Interface,
    row: Signal,
    finish: Signal,
) -> Value:
    """Repack rows of sums from beats to words of C columns."""
    cols = config.cols
    per_beat = config.axi.beat_bytes // 4
    size = cols - 1 + per_beat
    held = Signal(32 * size)
    count = Signal(range(size + 1))
    left = Signal(18)  # sums of the row still to come, less one
    fresh = Signal(init=1)  # no beat of the row has come
    complete = Signal()  # all beats of the row have come
    word = Signal(16)
    row_offset = Signal(16)
    row_address = Signal(12)
    begin = Signal(init=1)  # no row of the instruction has begun

    emit = (count >= cols) | (complete & (count != 0))
    emitted = Signal(range(cols + 1))
    kept = Signal(range(size + 1))
    m.d.comb += [
        emitted.eq(Mux(emit, Mux(count >= cols, cols, count), 0)),
        kept.eq(count - emitted),
    ]
    ready = ~complete & (kept < cols)
    taken = load.start & port.rvalid & ready

    sums = Signal(18)
    m.d.comb += sums.eq(load.row_bytes >> 2)
    at = Signal(12)
    m.d.comb += at.eq(Mux(begin, load.address, row_address))
    offset_bits = (per_beat - 1).bit_length()
    offset = Signal(range(max(per_beat, 2)))
    m.d.comb += offset.eq(Mux(fresh, (at >> 2)[:offset_bits], 0))
    due = Signal(18)
    m.d.comb += due.eq(Mux(fresh, sums, left))
    brought = Signal(range(per_beat + 1))
    m.d.comb += brought.eq(per_beat - offset)
    with m.If(due < per_beat - offset):
        m.d.comb += brought.eq(due)

    remaining = Signal(32 * size)
    m.d.comb += remaining.eq(Mux(emit, held >> (32 * cols), held))
    arriving = Signal(32 * per_beat)
    m.d.comb += arriving.eq(port.rdata >> (offset << 5))
    shift = Signal((32 * size).bit_length())
    m.d.comb += shift.eq(kept << 5)
    # What lies above `count` is no sum: it must be 0 for the OR that appends.
    valid = Signal(32 * per_beat)
    for lane in range(per_beat):
        with m.If(lane < brought):
            m.d.comb += valid[32 * lane : 32 * lane + 32].eq(arriving[32 * lane : 32 * lane + 32])
    m.d.sync += [
        held.eq(Mux(taken, remaining | (valid << shift)[: 32 * size], remaining)),
        count.eq(kept + Mux(taken, brought, 0)),
    ]
    with m.If(taken):
        m.d.sync += [
            left.eq(due - brought),
            fresh.eq(0),
            complete.eq(due == brought),
        ]
        with m.If(due == brought):
            m.d.comb += segments.ready.eq(1)
    with m.If(emit):
        m.d.sync += word.eq(word + 1)
        with m.If(complete & (kept == 0)):
            m.d.sync += [
                complete.eq(0),
                fresh.eq(1),
                begin.eq(0),
                word.eq(0),
                row.eq(row + 1),
                row_offset.eq(row_offset + load.stride),
                row_address.eq(at + load.pitch),
            ]
            with m.If(row == load.last_row):
                m.d.comb += finish.eq(1)
                m.d.sync += [row.eq(0), row_offset.eq(0), begin.eq(1)]

    m.d.sync += [
        write.banks.eq(Mux(emit, Mux(count >= cols, ~0, (1 << count[: cols.bit_length()]) - 1), 0)),
        write.address.eq(load.base + row_offset + word),
        Value.cast(write.data).eq(held[: 32 * cols]),
    ]
    return ready
