"""What makes an instruction legal: the rules in plain arithmetic, each with its message.

The sequencer checks the same in hardware (`sat.rtl.check`), written apart from this.
"""

from __future__ import annotations

from dataclasses import dataclass

from sat.rtl import isa
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Dataflow, Instruction, Opcode, Start, Status


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


def check(raw: bytes, config: SatConfig, window: tuple[int, int]) -> Fault | None:
    """Return what is wrong with an instruction, or None.

    Parameters
    ----------
    raw : bytes
        32 bytes.
    window : (int, int)
        First legal byte address, and the first behind the legal ones.
    """
    try:
        i = Instruction.decode(raw)
    except ValueError as error:
        return Fault(Status.BAD_OPCODE, str(error))
    try:
        if i.opcode is Opcode.LOAD:
            _load(i, config)
            _load_address(i, config, window)
        elif i.opcode is Opcode.STORE:
            _store(i, config)
            _store_address(i, window)
        elif i.opcode is Opcode.MULTIPLY:
            _multiply(i, config)
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


def _load(i: Instruction, config: SatConfig) -> None:
    buffer = Buffer(i.destination)
    for name in ("rows", "row_bytes", "groups"):
        _need(getattr(i, name) >= 1, f"LOAD.{name}=0: must be at least 1")
    _need(
        not i.by_word or buffer is Buffer.A,
        f"LOAD.by_word with destination {buffer.name}: only A may be banked by word",
    )
    if buffer is Buffer.START:
        _need(i.groups == i.rows, f"LOAD.groups={i.groups}: must equal rows ({i.rows}) for START")
        _need(i.row_bytes % 4 == 0, f"LOAD.row_bytes={i.row_bytes}: must be whole 4-byte sums")
        room = 4 * config.cols * i.stride
        _need(
            i.row_bytes <= room,
            f"LOAD.row_bytes={i.row_bytes}: stride {i.stride} leaves {room} bytes to a row",
        )
        end, depth = i.base + i.rows * i.stride, config.sum_words
    else:
        words = _up(i.row_bytes, config.word_bytes)
        if i.by_word:
            _need(
                i.copies >= 1 and i.words_per_pass >= 1,
                f"LOAD.copies={i.copies}, words_per_pass={i.words_per_pass}: both at least 1",
            )
            _need(
                i.copies * i.words_per_pass <= config.rows,
                f"LOAD.copies={i.copies} x words_per_pass={i.words_per_pass}: more than the "
                f"{config.rows} banks",
            )
            things, each = words, i.words_per_pass
            end = i.base + (i.groups - 1) * i.stride + i.rows
        else:
            things = i.rows
            each = config.rows if buffer is Buffer.A else config.cols
            end = i.base + (i.groups - 1) * i.stride + words
        _need(
            i.groups == _up(things, each),
            f"LOAD.groups={i.groups}: must be {_up(things, each)} for {things} in groups of {each}",
        )
        depth = {
            Buffer.A: config.a_words,
            Buffer.B: config.b_words,
            Buffer.INDEX: config.i_words,
        }[buffer]
    _need(end <= depth, f"LOAD ends at word {end} of {buffer.name}, which has {depth}")


def _load_address(i: Instruction, config: SatConfig, window: tuple[int, int]) -> None:
    start = i.destination == Buffer.START.value
    unit = 4 if start else config.axi.beat_bytes
    size = i.row_bytes if start else _up(i.row_bytes, unit) * unit
    _address(i, unit, size, window)


def _store(i: Instruction, config: SatConfig) -> None:
    for name in ("rows", "columns"):
        _need(getattr(i, name) >= 1, f"STORE.{name}=0: must be at least 1")
    _need(
        i.columns <= config.cols * i.stride,
        f"STORE.columns={i.columns}: stride {i.stride} holds {config.cols * i.stride} to a row",
    )
    end = i.base + i.rows * i.stride
    _need(
        end <= config.sum_words, f"STORE ends at word {end} of OUTPUT, which has {config.sum_words}"
    )


def _store_address(i: Instruction, window: tuple[int, int]) -> None:
    _address(i, 4, 4 * i.columns, window)


def _address(i: Instruction, unit: int, size: int, window: tuple[int, int]) -> None:
    name = i.opcode.name
    for field in ("address", "pitch"):
        value = getattr(i, field)
        _need(
            value % unit == 0,
            f"{name}.{field}={value:#x}: must be a multiple of {unit} bytes",
            Status.BAD_ADDRESS,
        )
    end = i.address + (i.rows - 1) * i.pitch + size
    _need(
        window[0] <= i.address and end <= window[1],
        f"{name} of {i.address:#x} to {end:#x}: outside the window "
        f"{window[0]:#x} to {window[1]:#x}",
        Status.BAD_ADDRESS,
    )


def _multiply(i: Instruction, config: SatConfig) -> None:
    max_m, s = config.max_m, config.interleave
    _need(1 << i.log2_m <= max_m, f"MULTIPLY.log2_m={i.log2_m}: this device has max_m={max_m}")
    m = 1 << i.log2_m
    _need(1 <= i.n <= m, f"MULTIPLY.n={i.n}: must be 1 to M={m}")
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
