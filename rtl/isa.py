"""The instruction set: the one definition that RTL, assembler, golden model and docs use.

An instruction is 32 bytes. Its header orders it among the engines; its body tells one engine
what to do. All multi-byte fields are little-endian bit fields, first field in the low bits.

The header's three masks name counting semaphores, one bit each:

* ``wait``: the instruction starts when each of these is at least 1, and takes 1 from each;
* ``release``: 1 is added to each when the instruction has read all its inputs;
* ``signal``: 1 is added to each when all its outputs are written (for STORE: acknowledged
  by memory).

Instructions of one engine start in program order; engines run side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from amaranth.hdl import Shape, signed
from amaranth.lib import data

from sat.rtl.config import SEMAPHORES

if TYPE_CHECKING:
    import enum  # Amaranth's are these with a shape, which type checkers do not know
else:
    from amaranth.lib import enum

INSTRUCTION_BYTES = 32
INSTRUCTION_BITS = 8 * INSTRUCTION_BYTES
HEADER_BITS = 8 + 3 * SEMAPHORES
BODY_BITS = INSTRUCTION_BITS - HEADER_BITS
ADDRESS_BITS = 48


class Opcode(enum.Enum, shape=8):
    """What an instruction does. 0 is no opcode, so that cleared memory is not a program."""

    END = 0x01
    FENCE = 0x02
    LOAD = 0x10
    TENSOR = 0x11
    WINDOW = 0x12
    GATHER = 0x13
    MULTIPLY = 0x20
    STORE = 0x30
    RATES = 0x40
    UPDATE = 0x41


ENGINES: dict[str, tuple[Opcode, ...]] = {
    "load": (Opcode.LOAD, Opcode.TENSOR, Opcode.WINDOW, Opcode.GATHER),
    "multiply": (Opcode.MULTIPLY,),
    "store": (Opcode.STORE,),
    "update": (Opcode.RATES, Opcode.UPDATE),
}
"""The engines and their instructions, in the order in which their gates go first."""


class Buffer(enum.Enum, shape=3):
    """Destination of a LOAD or GATHER."""

    A = 0
    B = 1
    INDEX = 2
    START = 3
    MASK = 4
    WEIGHT = 5
    MOMENTUM = 6
    GRADIENT = 7


class Source(enum.Enum, shape=3):
    """What a STORE writes."""

    OUTPUT = 0
    """Sums that MULTIPLY left in the output buffer."""
    WEIGHT = 1
    """Updated FP32 weights."""
    MOMENTUM = 2
    """Updated FP32 momenta."""
    FF_VALUES = 3
    FF_INDICES = 4
    BP_VALUES = 5
    BP_INDICES = 6


class Format(enum.Enum, shape=2):
    """What becomes of a sum on its way to memory."""

    FP32 = 0
    FP16 = 1
    """Rounded to nearest even."""
    MASK = 2
    """One bit: whether the sum, as FP16, is above 0 or NaN: what ReLU lets pass."""
    ZERO = 3
    """Zeros, whatever the sums are: as many bytes as asked for."""


class Dataflow(enum.Enum, shape=1):
    """What stays in the USPEs during a MULTIPLY: the sums (OS) or the weights (WS)."""

    OS = 0
    WS = 1


class Start(enum.Enum, shape=2):
    """Where a MULTIPLY's sums start from."""

    ZERO = 0
    """+0."""
    START = 1
    """The start buffer."""
    OUTPUT = 2
    """The output buffer: sums of an earlier MULTIPLY."""
    KEEP = 3
    """The sums that the previous MULTIPLY left in the USPEs (OS only)."""


class Status(enum.Enum, shape=8):
    """State of the device, as its STATUS register gives it."""

    IDLE = 0
    RUNNING = 1
    DONE = 2
    BAD_OPCODE = 0x10
    """The opcode is none of `Opcode`."""
    BAD_FIELD = 0x11
    """A field is out of range for this device."""
    BAD_ADDRESS = 0x12
    """A memory address is misaligned or outside the window."""
    AXI_READ = 0x13
    """Memory answered a data read with an error."""
    AXI_WRITE = 0x14
    """Memory answered a write with an error."""
    AXI_FETCH = 0x15
    """Memory answered an instruction fetch with an error."""
    NO_END = 0x16
    """The program's last instruction is not END."""
    WATCHDOG = 0x17
    """Nothing moved for `SatConfig.watchdog_cycles`: a wait that no signal meets."""
    SEMAPHORE = 0x18
    """A semaphore was raised above 255."""


HEADER = data.StructLayout(
    {"opcode": Opcode, "wait": SEMAPHORES, "release": SEMAPHORES, "signal": SEMAPHORES}
)

LOAD = data.StructLayout(
    {
        "address": ADDRESS_BITS,  # byte address of the first row; a whole number of granules
        #   (START: of 4-byte sums; MASK: of words, or of the row if it is a part of one)
        "pitch": 32,  # bytes from one row to the next, likewise; 0 repeats the row
        "rows": 16,  # rows to read, at least 1
        "row_bytes": 20,  # bytes of a row, at least 1; START: a multiple of 4; MASK: whole words,
        #   or 1, 2 or 4 of one
        "destination": Buffer,
        "by_word": 1,  # A only: bank by word (WS) instead of bank by row (OS)
        "base": 16,  # first word of the destination
        "stride": 16,  # words from one group to the next
        "groups": 16,  # by row: ceil(rows / banks); by word: ceil(words / words_per_pass);
        #   START, MASK: rows
        "copies": 8,  # by word: banks that get each word
        "words_per_pass": 8,  # by word: words that one pass over the banks takes
    }
)

MULTIPLY = data.StructLayout(
    {
        "dataflow": Dataflow,
        "start": Start,
        "emit": 1,  # write the sums to the output buffer (WS: always 1)
        "n": 5,  # the pattern N:M
        "log2_m": 3,
        "split": 2,  # OS: log2 of how many of the interleaved sums lie side by side in a row
        "words": 16,  # OS: words of A per row; WS: batches of `interleave` rows
        "values": 5,  # OS: values of B that meet each word; WS: weights each USPE holds
        "last": 5,  # OS: values that meet the last word; WS: equals `values`
        "count": 12,  # WS: real weights of this pass, per column; OS: 0
        "b_skip": 4,  # first value inside the first B word
        "i_skip": 6,  # first index inside the first index word
        "a_base": 16,
        "a_stride": 16,  # OS: words from one group of rows to the next
        "b_base": 16,
        "b_stride": 16,  # words from one group of columns to the next
        "i_base": 16,
        "i_stride": 16,
        "s_base": 16,  # START: first word in the start buffer; OUTPUT: in the output buffer
        "o_base": 16,
    }
)

TENSOR = data.StructLayout(
    {
        # Where GATHERs read: images of lines of pixels, each pixel a row of FP16 channels.
        "address": ADDRESS_BITS,  # byte address; a whole number of granules, as are the pitches
        "images": 16,
        "lines": 12,
        "pixels": 12,
        "pixel_pitch": 20,  # bytes from one pixel to the next
        "line_pitch": 28,
        "image_pitch": 32,
    }
)

WINDOW = data.StructLayout(
    {
        # How GATHERs step: positions, line after line, image after image; taps at each.
        "lines": 12,  # lines of positions in an image, at least 1
        "pixels": 12,  # positions in a line, at least 1
        "step_y": 8,  # source lines from one line of positions to the next
        "step_x": 8,
        "tap_y": signed(8),  # source lines from one line of taps to the next
        "tap_x": signed(8),
        "n": 5,  # N:M to which transposed GATHERs into B prune each channel along the positions
        #   (devices with `prune_gathers`)
        "log2_m": 3,  # 0: they do not, and `n` is 0
    }
)

GATHER = data.StructLayout(
    {
        "image": 16,  # the first position
        "line": 12,
        "pixel": 12,
        "y": signed(13),  # source of the first tap at position (0, 0); outside the tensor lie zeros
        "x": signed(13),
        "offset": 16,  # bytes from a pixel's first to the first that is read; whole granules
        "rows": 16,  # positions, at least 1; pruned: whole groups of M
        "taps_y": 8,
        "taps_x": 8,
        "segment_bytes": 16,  # bytes that are read of a pixel; whole words (transpose: granules)
        "destination": Buffer,  # A; B only with transpose
        "by_word": 1,  # as LOAD
        "transpose": 1,  # bank by channel, a position to a lane; one tap
        "base": 16,  # pruned: base * max_m is a multiple of 4
        "stride": 16,
        "groups": 16,  # as LOAD; transpose: ceil(channels / banks), pruned: 1 or `b_groups`
        "copies": 8,
        "words_per_pass": 8,
    }
)

STORE = data.StructLayout(
    {
        "address": ADDRESS_BITS,  # byte address of the first row
        "pitch": 32,  # bytes from one row to the next
        "rows": 16,
        "row_bytes": 20,  # bytes of a row, at least 1; whole elements
        "source": Source,
        "format": Format,  # OUTPUT only
        "relu": 1,  # FP16 only: negative sums become +0
        "masked": 1,  # FP32, FP16: sums whose bit in the mask buffer is 0 become +0
        "check": 1,  # FP32 only: count sums that are infinite or NaN
        "base": 16,  # first word of the source (and of the mask buffer)
        "stride": 16,  # words from one row to the next (copies, weights: from one group of rows)
    }
)

RATES = data.StructLayout(
    {
        # Bits of FP32 numbers; they hold until the next RATES of the program.
        "learning_rate": 32,
        "momentum": 32,
        "decay": 32,  # weight decay of weights that FF keeps
        "decay_pruned": 32,  # … and of those that it prunes: decay plus SR-STE's lambda
        "unscale": 32,  # 1 / loss scale
    }
)

UPDATE = data.StructLayout(
    {
        "rows": 16,  # output channels of the tile
        "columns": 16,  # input channels of the tile; a whole number of granules of FP32
        "in_base": 16,  # first word in the banks of weights, momenta and gradients
        "out_base": 16,  # first word in the banks of updated weights and momenta
        "stride": 16,  # words from one group of `update_lanes` rows to the next, in all five
        "ff_n": 5,  # the pattern along the columns (input channels)
        "ff_log2_m": 3,
        "ff_base": 16,  # first word in the banks of the FF copy
        "ff_stride": 16,  # words from one group of rows to the next
        "bp_n": 5,  # the pattern along the rows (output channels)
        "bp_log2_m": 3,
        "bp_base": 16,  # first word in the banks of the BP copy
        "bp_stride": 16,  # words from one group of columns to the next
    }
)

BODIES: dict[Opcode, data.StructLayout] = {
    Opcode.END: data.StructLayout({}),
    Opcode.FENCE: data.StructLayout({}),
    Opcode.LOAD: LOAD,
    Opcode.TENSOR: TENSOR,
    Opcode.WINDOW: WINDOW,
    Opcode.GATHER: GATHER,
    Opcode.MULTIPLY: MULTIPLY,
    Opcode.STORE: STORE,
    Opcode.RATES: RATES,
    Opcode.UPDATE: UPDATE,
}

for _layout in BODIES.values():
    assert _layout.size <= BODY_BITS, f"an instruction body of {_layout.size} bits does not fit"


def field_range(layout: data.StructLayout, name: str) -> range:
    """Return the values that a field can hold."""
    shape = Shape.cast(layout[name].shape)
    if shape.signed:
        return range(-(1 << shape.width - 1), 1 << shape.width - 1)
    return range(1 << shape.width)


class Place(NamedTuple):
    """Where a field lies in an instruction, in bits, and which values it can hold."""

    at: int
    width: int
    legal: range


PLACES: dict[Opcode, dict[str, Place]] = {
    opcode: {
        name: Place(HEADER_BITS + field.offset, field.width, field_range(layout, name))
        for name, field in layout
    }
    for opcode, layout in BODIES.items()
}
"""Each opcode's fields, in their order."""

_ZEROS = {opcode: dict.fromkeys(places, 0) for opcode, places in PLACES.items()}
_MASKS = range(1 << SEMAPHORES)


@dataclass(frozen=True)
class Instruction:
    """One decoded instruction.

    Parameters
    ----------
    opcode : Opcode
    body : dict
        Field values of the opcode's layout as integers or enum members; missing ones are 0.
    wait, release, signal : int
        Semaphore masks.
    """

    opcode: Opcode
    body: dict[str, Any]
    wait: int = 0
    release: int = 0
    signal: int = 0

    def __post_init__(self) -> None:
        # Compilers make them by the million: what is not given is not looked at.
        places, body = PLACES[self.opcode], _ZEROS[self.opcode].copy()
        for name, value in self.body.items():
            place = places.get(name)
            if place is None:
                raise ValueError(f"{self.opcode.name} has no field {name!r}: it has {list(places)}")
            if type(value) is not int:
                value = int(getattr(value, "value", value))
            if value not in place.legal:
                raise self._out_of_range(name, value, place.legal)
            body[name] = value
        for name in ("wait", "release", "signal"):
            if getattr(self, name) not in _MASKS:
                raise self._out_of_range(name, getattr(self, name), _MASKS)
        object.__setattr__(self, "body", body)

    def _out_of_range(self, name: str, value: int, legal: range) -> ValueError:
        return ValueError(
            f"{self.opcode.name}.{name}={value}: must be {legal.start} to {legal.stop - 1}"
        )

    def __getattr__(self, name: str) -> int:
        try:
            return self.__dict__["body"][name]
        except KeyError:
            raise AttributeError(name) from None

    def encode(self) -> bytes:
        """Return the 32 bytes of the instruction."""
        word, at = self.opcode.value, 8
        for mask in (self.wait, self.release, self.signal):
            word |= mask << at
            at += SEMAPHORES
        places = PLACES[self.opcode]
        for name, value in self.body.items():
            if value:
                at, width, _ = places[name]
                word |= (value & (1 << width) - 1) << at
        return word.to_bytes(INSTRUCTION_BYTES, "little")

    @classmethod
    def decode(cls, raw: bytes) -> Instruction:
        """Return the instruction in 32 bytes.

        Raises
        ------
        ValueError
            ``raw`` is not 32 bytes, or its opcode is unknown.
        """
        if len(raw) != INSTRUCTION_BYTES:
            raise ValueError(f"an instruction is {INSTRUCTION_BYTES} bytes, not {len(raw)}")
        word = int.from_bytes(raw, "little")
        try:
            opcode = Opcode(word & 0xFF)
        except ValueError:
            names = ", ".join(f"{o.value:#04x} {o.name}" for o in Opcode)
            raise ValueError(f"opcode {word & 0xFF:#04x} is unknown: known are {names}") from None
        masks = [(word >> (8 + SEMAPHORES * i)) & ((1 << SEMAPHORES) - 1) for i in range(3)]
        body = {}
        for name, (at, width, legal) in PLACES[opcode].items():
            value = word >> at & (1 << width) - 1
            body[name] = value if value in legal else value - (1 << width)
        return cls(opcode, body, *masks)
