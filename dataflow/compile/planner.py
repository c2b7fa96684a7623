"""What every product's plan shares: slots, semaphores and the order of instructions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.slots import Fill, Key, Load, Ring, Semaphore, Step, bit
from sat.dataflow.mapping import ceil_div, slot_count, values_per_word
from sat.dataflow.products import Product
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Instruction, Opcode, Start

LOOKAHEAD = 12
"""Tiles by which loads run ahead of the tile that needs them, where the buffers allow."""


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

    def aligned(self, chunk: int, bits: int) -> tuple[int, int, int]:
        """Return a chunk's first byte, bytes, and how many values precede it there.

        The first byte is on a granule; ``bits`` is the size of one value.
        """
        first, end = self.chunk_values(chunk)
        skip = first % (8 * self.config.granule_bytes // bits)
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
            byte, length, _ = self.aligned(chunk, bits)
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

    def _stack(self) -> Iterator[Step]:
        """Yield the steps of each product of a stack; while they are used, the memory is its own.

        What differs between products is where they lie, so all have the same slots: the loads of
        one go on while another is multiplied.
        """
        if self.product.count == 1:
            yield from self.steps()
            return
        whole, taken = self.memory, 0
        for number in range(self.product.count):
            self.memory, places = whole.of(number), 0
            for step in self.steps():
                step.number = number
                places = max(places, step.output + 1)
                step.output += taken
                yield step
            taken += places
        self.memory = whole

    def emit(self) -> list[Instruction]:
        """Return the instructions, without END; when done they leave every semaphore at 0."""
        config = self.config
        a = Ring(slot_count(config.a_words, self.a_slot))
        b_slots = slot_count(config.b_words, self.b_slot_words)
        if not self.product.dense:
            b_slots = min(b_slots, slot_count(config.i_words, self.i_slot_words))
        b = Ring(b_slots)
        output_slots = slot_count(config.sum_words, self.sum_slot)
        start, mask = Ring(output_slots), Ring(output_slots)
        steps = []
        for number, step in enumerate(self._stack()):
            of = step.number
            step.fills["a"] = a.use((of, *step.a), number, partial(self.a_loads, step.a))
            step.fills["b"] = b.use((of, *step.b), number, partial(self.b_loads, step.b))
            if step.start is not None:
                load = partial(self.start_loads, step.start)
                step.fills["start"] = start.use((of, *step.start), number, load)
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
        fill: Fill, full: Semaphore, free: Semaphore, slot_words: dict[Buffer, int]
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

    def common(self) -> dict[str, Any]:
        """Return the fields that all MULTIPLYs of the product share."""
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


def grid(rows_outer: bool, row_tiles: int, col_tiles: int, block: int) -> Iterator[tuple[int, int]]:
    """Yield (row tile, column tile): blocks of the outer axis, the inner axis within each."""
    outer, inner = (row_tiles, col_tiles) if rows_outer else (col_tiles, row_tiles)
    for first in range(0, outer, block):
        for i in range(inner):
            for o in range(first, min(first + block, outer)):
                yield (o, i) if rows_outer else (i, o)
