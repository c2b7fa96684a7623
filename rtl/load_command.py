"""What the load engine's data side knows of its instruction, worked out before its data come."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data

from sat.rtl import isa
from sat.rtl.config import SEMAPHORES, SatConfig
from sat.rtl.isa import Buffer, Opcode
from sat.rtl.layouts import PC_BITS, operand_groups
from sat.rtl.spread import Sides, reach


def data_command_layout() -> data.StructLayout:
    """Return what the data side knows of its instruction."""
    return data.StructLayout(
        {
            "pc": PC_BITS,
            "release": SEMAPHORES,
            "signal": SEMAPHORES,
            # Its kind; no bit is set while there is none.
            "settings": 1,  # TENSOR or WINDOW: no data come
            "spread": 1,
            "start": 1,
            "mask": 1,
            # Fields of LOAD and GATHER, or what follows from them.
            "destination": Buffer,
            "by_word": 1,
            "transpose": 1,
            "prune": 1,
            "last_row": 16,
            "last_tap": 16,  # of a row
            "granules": 20,  # of a segment
            "banks": 7,  # of the buffer, that rows are dealt to
            "parts": 4,  # granules of a word of it
            "several": 1,  # by word: a write takes several words, none of them copied
            "limit": 9,  # transposed: the bank at which writes end
            "further": 16,  # … and how many words further the next ones go
            "base": 16,
            "stride": 16,
            "copies": 8,
            "words_per_pass": 8,
            "address": 12,
            "pitch": 12,
            "row_bytes": 20,
            "last_word": 16,  # MASK: of a row
            # The pattern of the last WINDOW.
            "n": 5,
            "log2_m": 3,
        }
    )


def segment_granules(config: SatConfig, given: data.View) -> Value:
    """Return the granules of each of an instruction's segments."""
    granule_bytes = config.granule_bytes
    load = data.View(isa.LOAD, given.body[: isa.LOAD.size])
    gather = data.View(isa.GATHER, given.body[: isa.GATHER.size])
    is_gather = given.opcode == Opcode.GATHER.value
    size = Mux(is_gather, gather.segment_bytes, load.row_bytes)
    return (size + (granule_bytes - 1)) // granule_bytes


def operand_sides(config: SatConfig, is_a: Value, is_b: Value) -> Sides:
    """Return the groups of channels of A and of B, each with whether a write is for it."""
    return (
        (is_a, operand_groups(config, config.rows)),
        (is_b, operand_groups(config, config.cols)),
    )


def prepared(config: SatConfig, command: data.View, given: data.View, valid: Value) -> list:
    """Return what makes ``command`` of an instruction, products and all: no step waits."""
    load = data.View(isa.LOAD, given.body[: isa.LOAD.size])
    gather = data.View(isa.GATHER, given.body[: isa.GATHER.size])
    is_load = given.opcode == Opcode.LOAD.value
    is_gather = given.opcode == Opcode.GATHER.value
    window = data.View(isa.WINDOW, given.body[: isa.WINDOW.size])
    is_window = valid & (given.opcode == Opcode.WINDOW.value)
    to_b = is_gather & (gather.destination == Buffer.B)  # transposed, then
    is_start = is_load & (load.destination == Buffer.START)
    is_mask = is_load & (load.destination == Buffer.MASK)
    destination = Mux(is_gather, gather.destination, load.destination)
    stride, copies = (Mux(is_gather, gather[n], load[n]) for n in ("stride", "copies"))
    a, b, index = (destination == buffer for buffer in (Buffer.A, Buffer.B, Buffer.INDEX))
    updated = ~a & ~b & ~index
    banks = Mux(a, config.rows, Mux(updated, config.update_lanes, config.cols))
    limit, further = reach(config, operand_sides(config, a, b), banks, stride)
    return [
        command.pc.eq(given.pc),
        command.release.eq(given.release),
        command.signal.eq(given.signal),
        command.settings.eq(valid & ~is_load & ~is_gather),
        command.spread.eq(valid & ((is_load & ~is_start & ~is_mask) | is_gather)),
        command.start.eq(valid & is_start),
        command.mask.eq(valid & is_mask),
        command.destination.eq(destination),
        command.banks.eq(banks),
        command.parts.eq(Mux(updated, 1, config.beats_per_word)),
        command.several.eq(copies == 1),
        command.limit.eq(limit),
        command.further.eq(further),
        command.transpose.eq(is_gather & gather.transpose),
        command.prune.eq(to_b & (command.log2_m != 0) if config.prune_gathers else 0),
        command.last_row.eq(Mux(is_gather, gather.rows, load.rows) - 1),
        command.last_tap.eq(Mux(is_gather, gather.taps_y * gather.taps_x - 1, 0)),
        command.granules.eq(segment_granules(config, given)),
        *(
            command[name].eq(Mux(is_gather, gather[name], load[name]))
            for name in ("by_word", "base", "stride", "copies", "words_per_pass")
        ),
        command.address.eq(load.address),
        command.pitch.eq(load.pitch),
        command.row_bytes.eq(load.row_bytes),
        command.last_word.eq((load.row_bytes - 1) >> (config.mask_bytes - 1).bit_length()),
        *(
            command[name].eq(Mux(is_window, window[name], command[name]))
            for name in ("n", "log2_m")
        ),
    ]
