"""From a product and its mapping to a program and a memory map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from typing import Any

from sat.dataflow.layers import Region
from sat.dataflow.mapping import (
    Mapping,
    OsMapping,
    WsMapping,
    ceil_div,
    os_slots,
    round_up,
    values_per_word,
    ws_slots,
)
from sat.dataflow.products import Product, StartShape
from sat.dataflow.program import Program
from sat.rtl import isa
from sat.rtl.axi import BOUNDARY_BYTES
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Dataflow, Instruction, Opcode, Start


class Semaphore(IntEnum):
    """What the compiler's semaphores mean, by bit number."""

    A_FULL = 0
    A_FREE = 1
    B_FULL = 2
    B_FREE = 3
    START_FULL = 4
    START_FREE = 5
    OUTPUT_FULL = 6
    OUTPUT_FREE = 7
    MASK_FULL = 8
    MASK_FREE = 9
    SUMS = 10
    """Sums are in the output buffer for the next MULTIPLY to add to."""
    UPDATE_FULL = 11
    UPDATE_FREE = 12
    MADE_FULL = 13
    MADE_FREE = 14


def bit(semaphore: Semaphore) -> int:
    """Return the mask with just this semaphore."""
    return 1 << semaphore


@dataclass(frozen=True)
class MemoryMap:
    """Where a product's matrices lie.

    Rows of A and of the result are rows of the product; rows of B (values, indices) are its
    columns. ``start`` has one row when it is the same for all rows of the product. B comes last,
    on a 4 KiB boundary, so that it may lie elsewhere (`CompiledProduct.with_b_at`).
    """

    program: Region
    a: Region
    b: Region
    indices: Region | None
    start: Region | None
    result: Region

    @property
    def held(self) -> range:
        """Byte addresses of B and its indices."""
        return range(self.b.address, (self.indices or self.b).end)

    @property
    def end(self) -> int:
        """First byte address behind everything."""
        regions = (self.program, self.a, self.b, self.indices, self.start, self.result)
        return max(r.end for r in regions if r is not None)


@dataclass(frozen=True)
class CompiledProduct:
    """A program that computes a product, and where it expects and leaves the matrices."""

    product: Product
    mapping: Mapping
    program: Program
    memory: MemoryMap

    def with_b_at(self, address: int) -> CompiledProduct:
        """Return the same for a B that lies elsewhere; it takes as many cycles.

        Parameters
        ----------
        address : int
            On a 4 KiB boundary: bursts are cut at those.
        """
        memory = self.memory
        by = address - memory.b.address
        indices = memory.indices and memory.indices.moved(by)
        where = replace(memory, b=memory.b.moved(by), indices=indices)
        return replace(self, program=self.program.moved(memory.held, by), memory=where)


Load = tuple[Opcode, dict[str, Any]]
"""An instruction of the load engine, its base counted from the start of its slot."""
Key = tuple[int, ...]
"""Names what a slot holds."""


@dataclass
class _Fill:
    """One chunk of an operand in one slot of its buffer."""

    slot: int
    first_use: int
    last_use: int
    loads: list[Load]
    evicts: int | None


@dataclass
class Step:
    """One MULTIPLY: which operands it needs, and what becomes of its sums."""

    a: Key
    b: Key
    body: dict[str, Any]  # bases counted from the start of the slots
    output: int  # number of its place among all places ever taken in the output buffer
    opens: bool  # takes that place
    stores: list[dict[str, Any]] = field(default_factory=list)  # closes it
    start: Key | None = None
    masks: list[Load] = field(default_factory=list)  # what its stores need
    adds: bool = False  # to sums that an earlier MULTIPLY left in its place
    added: bool = False  # a later one adds to these
    fills: dict[str, int] = field(default_factory=dict)


class _Ring:
    """Slots of a buffer, filled in turn; a fill stays until the slot's turn comes again."""

    def __init__(self, slots: int):
        self.slots = slots
        self.fills: list[_Fill] = []
        self.resident: dict[Key, int] = {}
        self._keys: list[Key] = []

    def use(self, key: Key, step: int, loads: Callable[[], list[Load]]) -> int:
        """Return the fill that holds ``key`` at ``step``, made now if it is not there."""
        if key not in self.resident:
            number = len(self.fills)
            evicts = number - self.slots if number >= self.slots else None
            if evicts is not None:
                del self.resident[self._keys[evicts]]
            self.fills.append(_Fill(number % self.slots, step, step, loads(), evicts))
            self._keys.append(key)
            self.resident[key] = number
        number = self.resident[key]
        self.fills[number].last_use = step
        return number

    def releases(self) -> dict[int, int]:
        """Return which step frees which fill, for the fills that a later one replaces."""
        freed = {
            f.evicts: self.fills[f.evicts].last_use for f in self.fills if f.evicts is not None
        }
        steps = {step: fill for fill, step in freed.items()}
        # Semaphores count: the k-th release must be the k-th fill's.
        assert list(freed.values()) == sorted(steps), "fills are not freed in the order of filling"
        return steps


LOOKAHEAD = 12
"""Tiles by which loads run ahead of the tile that needs them, where the buffers allow."""


def memory_map(product: Product, config: SatConfig, program_bytes: int, base: int = 0) -> MemoryMap:
    """Return a memory map for a product: rows padded to whole beats, regions one after another."""
    beat = config.axi.beat_bytes
    at = base

    def region(rows: int, row_bytes: int) -> Region:
        nonlocal at
        made = Region(round_up(at, max(64, beat)), round_up(row_bytes, beat), rows, row_bytes)
        at = made.end
        return made

    program = region(1, program_bytes)
    a = region(product.rows, 2 * product.depth)
    start = None
    if product.start is StartShape.ROW:
        start = replace(region(1, 4 * product.cols), pitch=0)
    elif product.start is StartShape.MATRIX:
        start = region(product.rows, 4 * product.cols)
    result = region(product.rows, 4 * product.cols)
    at = round_up(at, BOUNDARY_BYTES)
    b = region(product.cols, 2 * product.kept)
    indices = None if product.dense else region(product.cols, ceil_div(product.kept, 2))
    return MemoryMap(program, a, b, indices, start, result)


def compile_product(
    product: Product, config: SatConfig, mapping: Mapping, base: int = 0
) -> CompiledProduct:
    """Compile a product under a mapping.

    Parameters
    ----------
    base : int
        Byte address of the first region.

    Returns
    -------
    CompiledProduct
        Its program ends with END; it stores every sum once.
    """
    # The program's length sets where the matrices lie, and they do not set its length: compile
    # for a map without a program first.
    count = len(_emit(product, config, mapping, memory_map(product, config, 0, base)))
    memory = memory_map(product, config, count * isa.INSTRUCTION_BYTES, base)
    return CompiledProduct(
        product, mapping, Program(_emit(product, config, mapping, memory)), memory
    )


def _emit(
    product: Product, config: SatConfig, mapping: Mapping, memory: MemoryMap
) -> list[Instruction]:
    if isinstance(mapping, OsMapping):
        planner: Planner = OsPlanner(product, config, mapping, memory)
    else:
        planner = _WsPlanner(product, config, mapping, memory)
    return [*planner.emit(), Instruction(Opcode.END, {})]


class Planner:
    """What both dataflows share: slots, semaphores and the order of instructions."""

    def __init__(self, product: Product, config: SatConfig, memory: MemoryMap):
        self.product, self.config, self.memory = product, config, memory
        self.per_word = values_per_word(product, config)
        self.words = ceil_div(product.depth, config.max_m)
        self.a_slot = self.b_slot = self.i_slot = self.sum_slot = 1

    def steps(self) -> Iterator[Step]:
        """Yield the MULTIPLYs in order."""
        raise AssertionError("each dataflow has its own")

    def a_loads(self, key: Key) -> list[Load]:
        """Return what fills a slot of A."""
        raise AssertionError("each dataflow has its own")

    def chunk_values(self, chunk: int) -> tuple[int, int]:
        """Return the first stored value of a chunk of the depth, and the first behind it."""
        raise AssertionError("each dataflow has its own")

    def column_tile(self, tile: int) -> tuple[int, int]:
        """Return the first column of a tile, and the first behind it."""
        raise AssertionError("each dataflow has its own")

    def row_tile(self, tile: int) -> tuple[int, int]:
        """Return the first row of a tile, and the first behind it."""
        raise AssertionError("each dataflow has its own")

    def sum_width(self) -> int:
        """Return the words of a sum bank that one row of a tile takes."""
        return 1

    # B values and indices: columns are the rows in memory, a chunk is a part of each.

    def _aligned(self, chunk: int, bits: int) -> tuple[int, int, int]:
        """Return a chunk's first byte, bytes, and how many values precede it there.

        The first byte is on a beat; ``bits`` is the size of one value.
        """
        first, end = self.chunk_values(chunk)
        per_beat = self.config.axi.data_bits // bits
        skip = first % per_beat
        start_byte = (first - skip) * bits // 8
        return start_byte, ceil_div(end * bits, 8) - start_byte, skip

    def b_loads(self, key: Key) -> list[Load]:
        """Return what fills a slot of B and its indices."""
        tile, chunk = key
        first, end = self.column_tile(tile)
        cols = end - first
        loads: list[Load] = []
        for region, bits, buffer, stride in (
            (self.memory.b, 16, Buffer.B, self.b_stride),
            (self.memory.indices, 4, Buffer.INDEX, self.i_stride),
        ):
            if region is None:
                continue
            byte, length, _ = self._aligned(chunk, bits)
            body = {
                "address": region.address + first * region.pitch + byte,
                "pitch": region.pitch,
                "rows": cols,
                "row_bytes": length,
                "destination": buffer,
                "stride": stride,
                "groups": ceil_div(cols, self.config.cols),
            }
            loads.append((Opcode.LOAD, body))
        return loads

    @property
    def b_stride(self) -> int:
        return self.b_slot

    @property
    def i_stride(self) -> int:
        return self.i_slot

    def start_loads(self, key: Key) -> list[Load]:
        """Return what fills a slot of the start buffer."""
        region = self.memory.start
        assert region is not None
        (row, row_end), (col, col_end) = self.row_tile(key[0]), self.column_tile(key[1])
        body = {
            "address": region.address + row * region.pitch + 4 * col,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": 4 * (col_end - col),
            "destination": Buffer.START,
            "stride": self.sum_width(),
            "groups": row_end - row,
        }
        return [(Opcode.LOAD, body)]

    def masks(self, row_tile: int, col_tile: int) -> list[Load]:
        """Return the LOADs of the mask bits that a tile's STOREs need."""
        return []

    def stores(self, row_tile: int, col_tile: int) -> list[dict[str, Any]]:
        """Return the STOREs of a tile, bases counted from its place."""
        region = self.memory.result
        (row, row_end), (col, col_end) = self.row_tile(row_tile), self.column_tile(col_tile)
        body = {
            "address": region.address + row * region.pitch + 4 * col,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": 4 * (col_end - col),
            "stride": self.sum_width(),
        }
        return [body]

    def emit(self) -> list[Instruction]:
        """Return the instructions, without END; when done they leave every semaphore at 0."""
        config = self.config
        a = _Ring(config.a_words // self.a_slot)
        b_slots = config.b_words // self.b_slot_words
        if not self.product.dense:
            b_slots = min(b_slots, config.i_words // self.i_slot_words)
        b = _Ring(b_slots)
        output_slots = config.sum_words // self.sum_slot
        start, mask = _Ring(output_slots), _Ring(output_slots)
        steps = []
        for number, step in enumerate(self.steps()):
            step.fills["a"] = a.use(step.a, number, partial(self.a_loads, step.a))
            step.fills["b"] = b.use(step.b, number, partial(self.b_loads, step.b))
            if step.start is not None:
                load = partial(self.start_loads, step.start)
                step.fills["start"] = start.use(step.start, number, load)
            if step.masks:
                # Every closing step has masks or none has: mask and output slots stay in step.
                mask.use((step.output,), number, partial(list, step.masks))
            steps.append(step)

        buffers = {
            "a": (a, Semaphore.A_FULL, Semaphore.A_FREE),
            "b": (b, Semaphore.B_FULL, Semaphore.B_FREE),
            "start": (start, Semaphore.START_FULL, Semaphore.START_FREE),
            "mask": (mask, Semaphore.MASK_FULL, Semaphore.MASK_FREE),
        }
        slot_words = {
            Buffer.A: self.a_slot,
            Buffer.B: self.b_slot_words,
            Buffer.INDEX: self.i_slot_words,
            Buffer.START: self.sum_slot,
            Buffer.MASK: self.sum_slot,
        }
        releases = {name: buffers[name][0].releases() for name in ("a", "b", "start")}
        pending = sorted(
            (fill.first_use, order, number, name)
            for order, (name, (ring, _, _)) in enumerate(buffers.items())
            for number, fill in enumerate(ring.fills)
        )
        program: list[Instruction] = []
        next_load = 0
        outputs = sum(step.opens for step in steps)
        for number, step in enumerate(steps):
            while next_load < len(pending):
                first_use, _, fill_number, name = pending[next_load]
                ring, full, free = buffers[name]
                fill = ring.fills[fill_number]
                blocked = fill.evicts is not None and ring.fills[fill.evicts].last_use >= number
                if first_use > number and (first_use > number + LOOKAHEAD or blocked):
                    break
                program += self._loads(fill, full, free, slot_words)
                next_load += 1

            wait = release = signal = 0
            for name, fill_number in step.fills.items():
                ring, full, free = buffers[name]
                if ring.fills[fill_number].first_use == number:
                    wait |= bit(full)
                if releases[name].get(number) == fill_number:
                    release |= bit(free)
            if step.opens and step.output >= output_slots:
                wait |= bit(Semaphore.OUTPUT_FREE)
            if step.adds:
                wait |= bit(Semaphore.SUMS)
            if step.added:
                signal |= bit(Semaphore.SUMS)
            if step.stores:
                signal |= bit(Semaphore.OUTPUT_FULL)
            output_base = step.output % output_slots * self.sum_slot
            body = dict(step.body)
            body["a_base"] = a.fills[step.fills["a"]].slot * self.a_slot + body.get("a_base", 0)
            b_slot = b.fills[step.fills["b"]].slot
            body["b_base"] = b_slot * self.b_slot_words + body.get("b_base", 0)
            if not self.product.dense:
                body["i_base"] = b_slot * self.i_slot_words + body.get("i_base", 0)
            if "start" in step.fills:
                body["s_base"] = start.fills[step.fills["start"]].slot * self.sum_slot
            elif body["start"] is Start.OUTPUT:
                body["s_base"] = output_base
            body["o_base"] = output_base
            program.append(Instruction(Opcode.MULTIPLY, body, wait, release, signal))
            program += self._stores(step, output_base, step.output + output_slots < outputs)
        return _without_repeats(program)

    @staticmethod
    def _stores(step: Step, base: int, reused: bool) -> list[Instruction]:
        """Return a tile's STOREs: the first waits for its sums, the last frees its place."""
        full, free = bit(Semaphore.OUTPUT_FULL), bit(Semaphore.OUTPUT_FREE)
        if step.masks:
            full |= bit(Semaphore.MASK_FULL)
            free |= bit(Semaphore.MASK_FREE)
        last = len(step.stores) - 1
        return [
            Instruction(
                Opcode.STORE,
                {**body, "base": base + body.get("base", 0)},
                wait=full if n == 0 else 0,
                signal=free if n == last and reused else 0,
            )
            for n, body in enumerate(step.stores)
        ]

    @staticmethod
    def _loads(
        fill: _Fill, full: Semaphore, free: Semaphore, slot_words: dict[Buffer, int]
    ) -> list[Instruction]:
        """Return a fill's loads: the first waits for the slot, the last tells that it is full.

        What sets up a GATHER touches no slot and need not wait.
        """
        made = []
        data = [
            i for i, (opcode, _) in enumerate(fill.loads) if opcode in (Opcode.LOAD, Opcode.GATHER)
        ]
        for i, (opcode, body) in enumerate(fill.loads):
            if i not in data:
                made.append(Instruction(opcode, body))
                continue
            base = fill.slot * slot_words[body["destination"]] + body.get("base", 0)
            made.append(
                Instruction(
                    opcode,
                    {**body, "base": base},
                    wait=bit(free) if i == data[0] and fill.evicts is not None else 0,
                    signal=bit(full) if i == data[-1] else 0,
                )
            )
        return made

    @property
    def b_slot_words(self) -> int:
        return self.b_slot

    @property
    def i_slot_words(self) -> int:
        return self.i_slot

    def _common(self) -> dict[str, Any]:
        product = self.product
        return {"n": product.n, "log2_m": product.m.bit_length() - 1}


def _without_repeats(program: list[Instruction]) -> list[Instruction]:
    """Return the program without TENSORs and WINDOWs that set what is set."""
    made: list[Instruction] = []
    current: dict[Opcode, Instruction] = {}
    for i in program:
        if i.opcode in (Opcode.TENSOR, Opcode.WINDOW):
            if current.get(i.opcode) == i:
                continue
            current[i.opcode] = i
        made.append(i)
    return made


def _grid(
    rows_outer: bool, row_tiles: int, col_tiles: int, block: int
) -> Iterator[tuple[int, int]]:
    """Yield (row tile, column tile): blocks of the outer axis, the inner axis within each."""
    outer, inner = (row_tiles, col_tiles) if rows_outer else (col_tiles, row_tiles)
    for first in range(0, outer, block):
        for i in range(inner):
            for o in range(first, min(first + block, outer)):
                yield (o, i) if rows_outer else (i, o)


class OsPlanner(Planner):
    def __init__(self, product: Product, config: SatConfig, mapping: OsMapping, memory: MemoryMap):
        super().__init__(product, config, memory)
        self.mapping = mapping
        self.tile_rows = config.rows * (config.interleave >> mapping.split)
        self.tile_cols = config.cols << mapping.split
        self.row_tiles = ceil_div(product.rows, self.tile_rows)
        self.col_tiles = ceil_div(product.cols, self.tile_cols)
        self.chunks = ceil_div(self.words, mapping.chunk_words)
        self.a_slot, self.b_slot, self.i_slot = os_slots(
            config, mapping.split, mapping.chunk_words, self.per_word, product.dense
        )
        self.sum_slot = config.rows * config.interleave

    @property
    def b_stride(self) -> int:
        return self.b_slot >> self.mapping.split

    @property
    def i_stride(self) -> int:
        return self.i_slot >> self.mapping.split

    def sum_width(self) -> int:
        return 1 << self.mapping.split

    def row_tile(self, tile: int) -> tuple[int, int]:
        return tile * self.tile_rows, min((tile + 1) * self.tile_rows, self.product.rows)

    def column_tile(self, tile: int) -> tuple[int, int]:
        return tile * self.tile_cols, min((tile + 1) * self.tile_cols, self.product.cols)

    def chunk_values(self, chunk: int) -> tuple[int, int]:
        size = self.mapping.chunk_words * self.per_word
        return chunk * size, min((chunk + 1) * size, self.product.kept)

    def _chunk_words(self, chunk: int) -> int:
        return min(self.mapping.chunk_words, self.words - chunk * self.mapping.chunk_words)

    def a_loads(self, key: Key) -> list[Load]:
        tile, chunk = key
        region = self.memory.a
        row, row_end = self.row_tile(tile)
        byte = chunk * self.mapping.chunk_words * self.config.word_bytes
        body = {
            "address": region.address + row * region.pitch + byte,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": min(
                self._chunk_words(chunk) * self.config.word_bytes, region.row_bytes - byte
            ),
            "destination": Buffer.A,
            "stride": self.mapping.chunk_words,
            "groups": ceil_div(row_end - row, self.config.rows),
        }
        return [(Opcode.LOAD, body)]

    def steps(self) -> Iterator[Step]:
        mapping, product = self.mapping, self.product
        grid = _grid(mapping.rows_outer, self.row_tiles, self.col_tiles, mapping.block)
        for output, (row, col) in enumerate(grid):
            for chunk in range(self.chunks):
                first, last = chunk == 0, chunk == self.chunks - 1
                words = self._chunk_words(chunk)
                begin, end = self.chunk_values(chunk)
                given = first and product.start is not StartShape.ZERO
                yield Step(
                    a=(row, chunk),
                    b=(col, chunk),
                    start=(row, col) if given else None,
                    body={
                        **self._common(),
                        "dataflow": Dataflow.OS,
                        "start": (Start.START if given else Start.ZERO) if first else Start.KEEP,
                        "emit": int(last),
                        "split": mapping.split,
                        "words": words,
                        "values": self.per_word,
                        "last": end - begin - (words - 1) * self.per_word,
                        "b_skip": self._aligned(chunk, 16)[2],
                        "i_skip": 0 if product.dense else self._aligned(chunk, 4)[2],
                        "a_stride": mapping.chunk_words,
                        "b_stride": self.b_stride,
                        "i_stride": 0 if product.dense else self.i_stride,
                    },
                    output=output,
                    opens=first,
                    stores=self.stores(row, col) if last else [],
                    masks=self.masks(row, col) if last else [],
                )


class _WsPlanner(Planner):
    def __init__(self, product: Product, config: SatConfig, mapping: WsMapping, memory: MemoryMap):
        super().__init__(product, config, memory)
        self.mapping = mapping
        self.copies = self.per_word // mapping.hold
        self.pass_words = config.rows // self.copies
        self.pass_values = self.pass_words * self.per_word
        self.passes = ceil_div(self.words, self.pass_words)
        self.chunks = ceil_div(self.passes, mapping.chunk_passes)
        self.row_tiles = ceil_div(product.rows, mapping.tile_rows)
        self.col_tiles = ceil_div(product.cols, config.cols)
        self.a_slot, self.b_slot, self.i_slot = ws_slots(
            config, mapping.tile_rows, mapping.chunk_passes, self.pass_values, product.dense
        )
        self.sum_slot = mapping.tile_rows

    def row_tile(self, tile: int) -> tuple[int, int]:
        size = self.mapping.tile_rows
        return tile * size, min((tile + 1) * size, self.product.rows)

    def column_tile(self, tile: int) -> tuple[int, int]:
        size = self.config.cols
        return tile * size, min((tile + 1) * size, self.product.cols)

    def chunk_values(self, chunk: int) -> tuple[int, int]:
        size = self.mapping.chunk_passes * self.pass_values
        return chunk * size, min((chunk + 1) * size, self.product.kept)

    def a_loads(self, key: Key) -> list[Load]:
        tile, chunk = key
        region, mapping = self.memory.a, self.mapping
        row, row_end = self.row_tile(tile)
        first_word = chunk * mapping.chunk_passes * self.pass_words
        words = min(mapping.chunk_passes * self.pass_words, self.words - first_word)
        byte = first_word * self.config.word_bytes
        body = {
            "address": region.address + row * region.pitch + byte,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": min(words * self.config.word_bytes, region.row_bytes - byte),
            "destination": Buffer.A,
            "by_word": 1,
            "stride": mapping.tile_rows,
            "groups": ceil_div(words, self.pass_words),
            "copies": self.copies,
            "words_per_pass": self.pass_words,
        }
        return [(Opcode.LOAD, body)]

    def steps(self) -> Iterator[Step]:
        mapping, product, config = self.mapping, self.product, self.config
        grid = _grid(mapping.rows_outer, self.row_tiles, self.col_tiles, 1)
        for output, (row, col) in enumerate(grid):
            for number in range(self.passes):
                chunk, within = divmod(number, mapping.chunk_passes)
                first, last = number == 0, number == self.passes - 1
                given = first and product.start is not StartShape.ZERO
                at = number * self.pass_values
                offset = at - self.chunk_values(chunk)[0]
                b_at = self._aligned(chunk, 16)[2] + offset
                i_at = 0 if product.dense else self._aligned(chunk, 4)[2] + offset
                yield Step(
                    a=(row, chunk),
                    b=(col, chunk),
                    start=(row, col) if given else None,
                    body={
                        **self._common(),
                        "dataflow": Dataflow.WS,
                        "start": (Start.START if given else Start.ZERO) if first else Start.OUTPUT,
                        "emit": 1,
                        "words": mapping.tile_rows // config.interleave,
                        "values": mapping.hold,
                        "last": mapping.hold,
                        "count": min(self.pass_values, product.kept - at),
                        "b_skip": b_at % config.max_m,
                        "b_base": b_at // config.max_m,
                        "i_skip": i_at % config.indices_per_word,
                        "i_base": i_at // config.indices_per_word,
                        "a_base": within * mapping.tile_rows,
                    },
                    output=output,
                    opens=first,
                    stores=self.stores(row, col) if last else [],
                    masks=self.masks(row, col) if last else [],
                )
