"""What makes an instruction legal: the rules in plain arithmetic, each with its message.

The sequencer checks the same in hardware (`sat.rtl.check`), written apart from this.
"""

from __future__ import annotations

from dataclasses import dataclass

from sat.rtl import isa
from sat.rtl.config import INDICES_TOGETHER, SatConfig
from sat.rtl.isa import Buffer, Dataflow, Format, Instruction, Opcode, Source, Start, Status


@dataclass(frozen=True)
class Fault:
    """Why an instruction is refused."""

    status: Status
    message: str


class _Refused(Exception):
    def __init__(self, status: Status, message: str):
        self.fault = Fault(status, message)


def _need(condition: bool, message: str, status: Status = Status.BAD_FIELD) -> None:
    if not condition:
        raise _Refused(status, message)


@dataclass
class GatherState:
    """What TENSOR and WINDOW have set so far in a program, as far as GATHER is checked by it."""

    pixel_pitch: int = 0
    lines: int = 1
    pixels: int = 1
    n: int = 0
    log2_m: int = 0

    def follow(self, i: Instruction) -> None:
        """Take in a legal instruction."""
        if i.opcode is Opcode.TENSOR:
            self.pixel_pitch = i.pixel_pitch
        elif i.opcode is Opcode.WINDOW:
            self.lines, self.pixels = i.lines, i.pixels
            self.n, self.log2_m = i.n, i.log2_m

    def prunes(self, i: Instruction) -> bool:
        """Whether a GATHER keeps only N of every M positions."""
        return bool(i.transpose and i.destination == Buffer.B.value and self.log2_m)


def check(
    raw: bytes, config: SatConfig, window: tuple[int, int], state: GatherState
) -> Fault | None:
    """Return what is wrong with an instruction, or None.

    Parameters
    ----------
    raw : bytes
        32 bytes.
    window : (int, int)
        First legal byte address, and the first behind the legal ones.
    state : GatherState
        What the instructions before have set; the caller lets it `follow` legal ones.
    """
    try:
        i = Instruction.decode(raw)
    except ValueError as error:
        return Fault(Status.BAD_OPCODE, str(error))
    try:
        if i.opcode is Opcode.LOAD:
            _load(i, config)
            _load_address(i, config, window)
        elif i.opcode is Opcode.TENSOR:
            _tensor(i, config, window)
        elif i.opcode is Opcode.WINDOW:
            _window(i, config)
        elif i.opcode is Opcode.GATHER:
            _gather(i, config, state)
        elif i.opcode is Opcode.STORE:
            _store(i, config)
            _rows_address(i, i.row_bytes, window)
        elif i.opcode is Opcode.MULTIPLY:
            _multiply(i, config)
        elif i.opcode is Opcode.UPDATE:
            _update(i, config)
    except _Refused as refused:
        return refused.fault
    return None


def check_start(address: int, length: int, window: tuple[int, int]) -> Fault | None:
    """Return what is wrong with the place of a program, or None."""
    try:
        _need(length >= 1, f"program length {length}: a program has at least 1 instruction")
        _need(
            address % isa.INSTRUCTION_BYTES == 0,
            f"program address {address:#x}: must be a multiple of {isa.INSTRUCTION_BYTES}",
            Status.BAD_ADDRESS,
        )
        end = address + length * isa.INSTRUCTION_BYTES
        _need(
            window[0] <= address and end <= window[1],
            f"program at {address:#x} to {end:#x}: outside the window "
            f"{window[0]:#x} to {window[1]:#x}",
            Status.BAD_ADDRESS,
        )
    except _Refused as refused:
        return refused.fault
    return None


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _at_least_1(i: Instruction, *fields: str) -> None:
    for name in fields:
        _need(getattr(i, name) >= 1, f"{i.opcode.name}.{name}=0: must be at least 1")


def _whole(i: Instruction, unit: int, *fields: str, status: Status = Status.BAD_FIELD) -> None:
    for name in fields:
        value = getattr(i, name)
        _need(
            value % unit == 0,
            f"{i.opcode.name}.{name}={value}: must be a multiple of {unit} bytes",
            status,
        )


def _fits(i: Instruction, what: str, end: int, depth: int) -> None:
    _need(end <= depth, f"{i.opcode.name} ends at word {end} of {what}, which has {depth}")


UPDATED = (Buffer.WEIGHT, Buffer.MOMENTUM, Buffer.GRADIENT)
"""Buffers of the update engine: rows of beats, banked by lane."""


def _load(i: Instruction, config: SatConfig) -> None:
    buffer = Buffer(i.destination)
    _at_least_1(i, "rows", "row_bytes", "groups")
    _need(
        not i.by_word or buffer is Buffer.A,
        f"LOAD.by_word with destination {buffer.name}: only A may be banked by word",
    )
    if buffer in (Buffer.START, Buffer.MASK):
        _need(
            i.groups == i.rows,
            f"LOAD.groups={i.groups}: must equal rows ({i.rows}) for {buffer.name}",
        )
        _whole(i, _column_unit(i, config), "row_bytes")
        room = i.stride * (4 * config.cols if buffer is Buffer.START else config.mask_bytes)
        _need(
            i.row_bytes <= room,
            f"LOAD.row_bytes={i.row_bytes}: stride {i.stride} leaves {room} bytes to a row",
        )
        _fits(i, buffer.name, i.base + i.rows * i.stride, config.sum_words)
        return
    word_bytes = config.granule_bytes if buffer in UPDATED else config.word_bytes
    _banks(i, config, buffer, i.rows, _up(i.row_bytes, word_bytes))


def _column_unit(i: Instruction, config: SatConfig) -> int:
    """Return what rows of START and MASK are aligned to: a mask's row may be a part of a word."""
    if i.destination == Buffer.START.value:
        return 4
    part = i.row_bytes < config.mask_bytes and i.row_bytes in (1, 2, 4)
    return i.row_bytes if part else config.mask_bytes


def _banks(i: Instruction, config: SatConfig, buffer: Buffer, rows: int, words: int) -> None:
    """Check where rows of words go."""
    name = i.opcode.name
    depth = {
        Buffer.A: config.a_words,
        Buffer.B: config.b_words,
        Buffer.INDEX: config.i_words,
    }.get(buffer, config.update_words)
    if i.by_word:
        _need(
            i.copies >= 1 and i.words_per_pass >= 1,
            f"{name}.copies={i.copies}, words_per_pass={i.words_per_pass}: both at least 1",
        )
        _need(
            i.copies * i.words_per_pass <= config.rows,
            f"{name}.copies={i.copies} x words_per_pass={i.words_per_pass}: more than the "
            f"{config.rows} banks",
        )
        things, each, inner = words, i.words_per_pass, rows
    else:
        each = {Buffer.A: config.rows, Buffer.B: config.cols, Buffer.INDEX: config.cols}.get(
            buffer, config.update_lanes
        )
        things, inner = rows, words
    _need(
        i.groups == _up(things, each),
        f"{name}.groups={i.groups}: must be {_up(things, each)} for {things} in groups of {each}",
    )
    _fits(i, buffer.name, i.base + (i.groups - 1) * i.stride + inner, depth)


def _load_address(i: Instruction, config: SatConfig, window: tuple[int, int]) -> None:
    buffer, beat = Buffer(i.destination), config.granule_bytes
    whole_beats = buffer not in (Buffer.START, Buffer.MASK)
    unit = beat if whole_beats else _column_unit(i, config)
    _whole(i, unit, "address", "pitch", status=Status.BAD_ADDRESS)
    _rows_address(i, _up(i.row_bytes, beat) * beat if whole_beats else i.row_bytes, window)


def _tensor(i: Instruction, config: SatConfig, window: tuple[int, int]) -> None:
    _at_least_1(i, "images", "lines", "pixels", "pixel_pitch")
    _whole(
        i,
        config.granule_bytes,
        "address",
        "pixel_pitch",
        "line_pitch",
        "image_pitch",
        status=Status.BAD_ADDRESS,
    )
    end = i.address + (i.images - 1) * i.image_pitch + (i.lines - 1) * i.line_pitch
    _inside(i, i.address, end + i.pixels * i.pixel_pitch, window)


def _window(i: Instruction, config: SatConfig) -> None:
    _at_least_1(i, "lines", "pixels")
    _need(
        config.prune_gathers or i.n == i.log2_m == 0,
        f"WINDOW.n={i.n}, log2_m={i.log2_m}: must be 0, for this device has no prune_gathers",
    )
    if i.log2_m:
        _pattern(i, config)
    _need(i.log2_m != 0 or i.n == 0, f"WINDOW.n={i.n}: must be 0 with log2_m=0 (no pruning)")


def _gather(i: Instruction, config: SatConfig, state: GatherState) -> None:
    _at_least_1(i, "rows", "taps_y", "taps_x", "segment_bytes", "groups")
    buffer = Buffer(i.destination)
    _need(
        i.line < state.lines and i.pixel < state.pixels,
        f"GATHER.line={i.line}, pixel={i.pixel}: the WINDOW has {state.lines} lines of "
        f"{state.pixels}",
    )
    _need(
        i.offset + i.segment_bytes <= state.pixel_pitch,
        f"GATHER.offset={i.offset}, segment_bytes={i.segment_bytes}: a pixel of the TENSOR has "
        f"{state.pixel_pitch} bytes",
    )
    _whole(i, config.granule_bytes, "offset")
    if not i.transpose:
        _need(
            buffer is Buffer.A,
            f"GATHER.destination={buffer.name}: must be A unless transposed",
        )
        _whole(i, config.word_bytes, "segment_bytes")
        words = i.taps_y * i.taps_x * (i.segment_bytes // config.word_bytes)
        _banks(i, config, buffer, i.rows, words)
        return
    _need(
        buffer in (Buffer.A, Buffer.B) and not i.by_word,
        f"GATHER.destination={buffer.name}, by_word={i.by_word}: transposed, it must be A or B "
        "by row",
    )
    _need(
        i.taps_y == i.taps_x == 1,
        f"GATHER.taps_y={i.taps_y}, taps_x={i.taps_x}: transposed, there is one tap",
    )
    _whole(i, config.granule_bytes, "segment_bytes")
    channels, kept = i.segment_bytes // 2, i.rows
    if state.prunes(i):
        m = 1 << state.log2_m
        _need(
            i.rows % m == 0,
            f"GATHER.rows={i.rows}: must be a multiple of M={m}, by which it is pruned",
        )
        most = config.cols * config.b_groups
        _need(
            channels <= most,
            f"GATHER.segment_bytes={i.segment_bytes}: pruned, its {channels} channels must fit "
            f"{most} {'columns' if most == config.cols else 'lanes'}",
        )
        together = i.stride % config.beat_words == config.wide_stride(config.cols)
        _need(
            channels <= config.cols or together,
            f"GATHER.stride={i.stride}: must be {config.wide_stride(config.cols)} more than a "
            f"multiple of {config.beat_words}, to prune more channels than {config.cols} columns",
        )
        unit = _up(INDICES_TOGETHER, config.max_m)
        _need(i.base % unit == 0, f"GATHER.base={i.base}: pruned, must be a multiple of {unit}")
        kept = i.rows // m * state.n
    _banks(i, config, buffer, channels, _up(kept, config.max_m))


def store_element(i: Instruction, config: SatConfig) -> tuple[int, int]:
    """Return the bytes of an element that a STORE writes, and of a word of its source."""
    beat = config.granule_bytes
    source, format = Source(i.source), Format(i.format)
    if source is Source.OUTPUT:
        if format is Format.MASK:
            return 1, config.mask_bytes
        size = 2 if format is Format.FP16 else 4
        return (2 if format is Format.ZERO else size), size * config.cols
    if source in (Source.FF_INDICES, Source.BP_INDICES):
        return 1, beat // 4
    return (2 if source in (Source.FF_VALUES, Source.BP_VALUES) else 4), beat


def _store(i: Instruction, config: SatConfig) -> None:
    _at_least_1(i, "rows", "row_bytes")
    known = [s.value for s in Source]
    _need(i.source in known, f"STORE.source={i.source}: must be one of {known}")
    source, format = Source(i.source), Format(i.format)
    summed = source is Source.OUTPUT
    _need(
        summed or (format is Format.FP32 and not i.masked and not i.check),
        f"STORE of {source.name}: only sums have a format, a mask or a check",
    )
    _need(not i.relu or format is Format.FP16, "STORE.relu=1: only with format FP16")
    _need(
        not i.masked or format in (Format.FP32, Format.FP16),
        "STORE.masked=1: only with format FP32 or FP16",
    )
    _need(not i.check or format is Format.FP32, "STORE.check=1: only with format FP32")
    size, word = store_element(i, config)
    _whole(i, size, "row_bytes")
    _need(
        i.row_bytes <= word * i.stride,
        f"STORE.row_bytes={i.row_bytes}: stride {i.stride} holds {word * i.stride} to a row",
    )
    if summed:
        _fits(i, "OUTPUT", i.base + i.rows * i.stride, config.sum_words)
    else:
        depth = (
            config.update_words if source in (Source.WEIGHT, Source.MOMENTUM) else config.copy_words
        )
        end = i.base + _up(i.rows, config.update_lanes) * i.stride
        _fits(i, source.name, end, depth)


def _rows_address(i: Instruction, size: int, window: tuple[int, int]) -> None:
    """Check that rows of ``size`` bytes, ``pitch`` apart, lie in the window."""
    _inside(i, i.address, i.address + (i.rows - 1) * i.pitch + size, window)


def _inside(i: Instruction, first: int, end: int, window: tuple[int, int]) -> None:
    _need(
        window[0] <= first and end <= window[1],
        f"{i.opcode.name} of {first:#x} to {end:#x}: outside the window "
        f"{window[0]:#x} to {window[1]:#x}",
        Status.BAD_ADDRESS,
    )


def _pattern(i: Instruction, config: SatConfig, prefix: str = "") -> int:
    """Check a pattern's fields and return M."""
    n, log2_m = getattr(i, f"{prefix}n"), getattr(i, f"{prefix}log2_m")
    name = i.opcode.name
    _need(
        1 << log2_m <= config.max_m,
        f"{name}.{prefix}log2_m={log2_m}: this device has max_m={config.max_m}",
    )
    _need(1 <= n <= 1 << log2_m, f"{name}.{prefix}n={n}: must be 1 to M={1 << log2_m}")
    return 1 << log2_m


def _update(i: Instruction, config: SatConfig) -> None:
    _at_least_1(i, "rows", "columns")
    ff_m, bp_m = _pattern(i, config, "ff_"), _pattern(i, config, "bp_")
    lanes, per_beat = config.update_lanes, config.granule_weights
    for name, unit in (("columns", max(ff_m, per_beat)), ("rows", bp_m)):
        value = getattr(i, name)
        _need(value % unit == 0, f"UPDATE.{name}={value}: must be a multiple of {unit}")
    _need(
        _up(i.rows, lanes) * lanes * i.columns <= config.tile_weights,
        f"UPDATE of {i.rows} x {i.columns}: in {lanes} lanes more than the "
        f"{config.tile_weights} weights of a tile",
    )
    row_groups, column_groups = _up(i.rows, lanes) - 1, _up(i.columns, lanes) - 1
    halves = config.granule_halves
    for name, end, depth in (
        ("WEIGHT", i.in_base + row_groups * i.stride + i.columns // per_beat, config.update_words),
        ("WEIGHT", i.out_base + row_groups * i.stride + i.columns // per_beat, config.update_words),
        (
            "FF_VALUES",
            i.ff_base + row_groups * i.ff_stride + _up(i.columns * i.ff_n // ff_m, halves),
            config.copy_words,
        ),
        (
            "BP_VALUES",
            i.bp_base + column_groups * i.bp_stride + _up(i.rows * i.bp_n // bp_m, halves),
            config.copy_words,
        ),
    ):
        _fits(i, name, end, depth)


def _multiply(i: Instruction, config: SatConfig) -> None:
    max_m, s = config.max_m, config.interleave
    m = _pattern(i, config)
    _need(i.b_skip < max_m, f"MULTIPLY.b_skip={i.b_skip}: must be below {max_m}")
    per = config.indices_per_word
    _need(i.i_skip < per, f"MULTIPLY.i_skip={i.i_skip}: must be below {per}")
    _need(i.words >= 1, "MULTIPLY.words=0: must be at least 1")
    per_word = i.n * max_m // m
    reads_sums = i.start in (Start.START.value, Start.OUTPUT.value)
    if i.dataflow == Dataflow.WS.value:
        _need(i.start != Start.KEEP.value, "MULTIPLY.start=KEEP: only output stationary")
        _need(i.emit == 1, "MULTIPLY.emit=0: must be 1 when weight stationary")
        _need(i.split == 0, f"MULTIPLY.split={i.split}: must be 0 when weight stationary")
        _need(
            1 <= i.values <= config.max_n and per_word % max(i.values, 1) == 0,
            f"MULTIPLY.values={i.values}: must divide {per_word} and be 1 to {config.max_n}",
        )
        copies = per_word // i.values
        _need(
            copies <= config.rows,
            f"MULTIPLY.values={i.values}: a word would need {copies} of {config.rows} rows",
        )
        _need(i.last == i.values, f"MULTIPLY.last={i.last}: must equal values ({i.values})")
        most = config.rows // copies * per_word
        _need(1 <= i.count <= most, f"MULTIPLY.count={i.count}: must be 1 to {most}")
        rows = i.words * s
        a_end = i.a_base + rows
        b_base, i_base, values, sums = i.b_base, i.i_base, i.count, rows
    else:
        _need(i.values == per_word, f"MULTIPLY.values={i.values}: must be {per_word}")
        _need(1 <= i.last <= i.values, f"MULTIPLY.last={i.last}: must be 1 to {i.values}")
        _need(
            1 << i.split <= s, f"MULTIPLY.split={i.split}: 2**split must not exceed interleave {s}"
        )
        _need(i.count == 0, f"MULTIPLY.count={i.count}: must be 0 when output stationary")
        a_end = i.a_base + ((s >> i.split) - 1) * i.a_stride + i.words
        b_base = i.b_base + ((1 << i.split) - 1) * i.b_stride
        i_base = i.i_base + ((1 << i.split) - 1) * i.i_stride
        values, sums = (i.words - 1) * i.values + i.last, config.rows * s
    ends = [
        ("A", a_end, config.a_words),
        ("B", b_base + _up(i.b_skip + values, max_m), config.b_words),
    ]
    if i.log2_m:
        ends.append(("INDEX", i_base + _up(i.i_skip + values, per), config.i_words))
    if reads_sums:
        source = "START" if i.start == Start.START.value else "OUTPUT"
        ends.append((source, i.s_base + sums, config.sum_words))
    if i.emit:
        ends.append(("OUTPUT", i.o_base + sums, config.sum_words))
    for name, end, depth in ends:
        _need(end <= depth, f"MULTIPLY ends at word {end} of {name}, which has {depth}")
