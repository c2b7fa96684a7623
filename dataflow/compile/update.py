"""The weight update as instructions: WUVE, both prunings, and the copies for the next step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sat.dataflow.compile.slots import Semaphore, bit
from sat.dataflow.fit import DoesNotFit, at_least
from sat.dataflow.layers import Layer, LayerMemory, Packing, Pair
from sat.dataflow.mapping import ceil_div, round_up, slot_count
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Instruction, Opcode, Source


@dataclass(frozen=True)
class _UpdateTile:
    """Rows and columns of w, where it starts, and which copies it makes."""

    row: int
    column: int  # counted in the whole row of w
    rows: int
    columns: int
    stores: tuple[tuple[Source, dict[str, int]], ...]  # of the copies


class _Room(NamedTuple):
    """What a tile takes of each lane's banks, and how many such tiles they hold."""

    words: int
    ff_words: int
    bp_words: int
    in_slots: int
    out_slots: int


@dataclass(frozen=True)
class UpdatePlan:
    """How the weights of a layer are cut into tiles for UPDATE.

    Parameters
    ----------
    config : SatConfig
    ff, bp : (int, int)
        Patterns along columns and rows.
    rows, columns : int
        Of the largest tile.
    """

    config: SatConfig
    ff: Pair
    bp: Pair
    rows: int = 0
    columns: int = 0

    def room(self, rows: int, columns: int) -> _Room:
        """Return what a tile of this size takes."""
        config = self.config
        row_groups = ceil_div(rows, config.update_lanes)
        column_groups = ceil_div(columns, config.update_lanes)
        ff, bp, halves = self.ff, self.bp, config.granule_halves
        words = row_groups * (columns // config.granule_weights)
        ff_words = row_groups * ceil_div(columns * ff[0] // ff[1], halves)
        bp_words = column_groups * ceil_div(rows * bp[0] // bp[1], halves)
        in_slots = slot_count(config.update_words, words)
        copies = slot_count(config.copy_words, max(ff_words, bp_words))
        return _Room(words, ff_words, bp_words, in_slots, min(in_slots, copies))

    def weights(self, rows: int, columns: int) -> int:
        """Return what counts against ``tile_weights``: lanes without a row take room, too."""
        return round_up(rows, self.config.update_lanes) * columns

    def fits(self, rows: int, columns: int) -> bool:
        """Whether UPDATE takes a tile of this size."""
        enough = self.weights(rows, columns) <= self.config.tile_weights
        return enough and self.room(rows, columns).out_slots >= 1

    @classmethod
    def of(cls, layer: Layer, where: LayerMemory) -> UpdatePlan:
        """Return the plan for a layer: near a square, as large as a tile may be and banks hold.

        Raises
        ------
        DoesNotFit
            Not even the smallest tile that ends on whole bytes of indices fits.
        """
        config = where.config
        if layer.depthwise:
            plan = cls(config, (1, 1), (1, 1))
            whole, units = (layer.taps, where.padded_out), (1, config.granule_weights)
            first = plan._depthwise_first(*whole)
        else:
            plan = cls(config, (where.ff.n, where.ff.m), (where.bp.n, where.bp.m))
            whole = where.bp.channels, where.ff.channels
            units = _unit(where.bp, 1), _unit(where.ff, config.granule_weights)
            side = 1 << (config.tile_weights.bit_length() - 1) // 2
            first = min(side, whole[0]), min(side, whole[1])
        legal = all(
            size == most or size % unit == 0
            for size, most, unit in zip(first, whole, units, strict=True)
        )
        if legal and plan.fits(*first):
            return replace(plan, rows=first[0], columns=first[1])
        sides = [
            {most, *(unit << n for n in range((most // unit).bit_length()))}
            for most, unit in zip(whole, units, strict=True)
        ]
        found = [pair for pair in itertools.product(*sides) if plan.fits(*pair)]
        if found:
            # Tiles that overlap first, then few of them, then square ones.
            rows, columns = max(
                found,
                key=lambda p: (plan.room(*p).out_slots > 1, p[0] * p[1], -abs(p[0] - p[1]), p),
            )
            return replace(plan, rows=rows, columns=columns)
        least = min(sides[0]), min(sides[1])
        raise plan._refusal(*least)

    def _depthwise_first(self, taps: int, channels: int) -> Pair:
        """Return all taps of as many channels as leave room for a second tile."""
        config = self.config
        groups, beat = ceil_div(taps, config.update_lanes), config.granule_weights
        most = config.tile_weights // (groups * config.update_lanes) // beat * beat
        fits = config.update_words // 2 // groups * beat
        return taps, max(beat, min(most, fits, channels))

    def _refusal(self, rows: int, columns: int) -> DoesNotFit:
        config, room = self.config, self.room(rows, columns)
        needs = {
            "tile_weights": self.weights(rows, columns),
            "update_words": room.words,
            "copy_words": max(room.ff_words, room.bp_words),
        }
        fixes = {
            name: at_least(need) for name, need in needs.items() if need > getattr(config, name)
        }
        has = ", ".join(f"{name}={getattr(config, name)}" for name in fixes)
        return DoesNotFit(
            f"weights pruned {self.ff[0]}:{self.ff[1]} for FF and {self.bp[0]}:{self.bp[1]} for BP "
            f"are updated in tiles of at least {rows} x {columns}: too many for {has}",
            fixes,
        )


def _unit(packing: Packing, beat: int) -> int:
    """Return the channels of which a tile's side is a multiple.

    Whole groups of the pattern, whole beats of weights, and, as a tile's indices are stored on
    their own, whole bytes of them.
    """
    odd = not packing.dense and packing.n % 2
    return max(packing.m * (2 if odd else 1), beat)


def update(layer: Layer, where: LayerMemory, rates: dict[str, int]) -> list[Instruction]:
    """Return the weight update and both prunings: WUVE, SORE, pre-generation.

    Parameters
    ----------
    rates : dict
        Fields of RATES.
    """
    config = where.config
    plan = UpdatePlan.of(layer, where)
    ff, bp = plan.ff, plan.bp
    fields = {
        "ff_n": ff[0], "ff_log2_m": ff[1].bit_length() - 1,
        "bp_n": bp[0], "bp_log2_m": bp[1].bit_length() - 1,
    }  # fmt: skip
    tiles = list(_depthwise_tiles(where, plan) if layer.depthwise else _tiles(layer, where, plan))
    lanes, halves = config.update_lanes, config.granule_halves
    full = plan.room(plan.rows, plan.columns)
    words, ff_words, bp_words = full.words, full.ff_words, full.bp_words
    ff_stride = ceil_div(plan.columns * ff[0] // ff[1], halves)
    bp_stride = ceil_div(plan.rows * bp[0] // bp[1], halves)
    in_slots, out_slots = full.in_slots, full.out_slots
    made = [Instruction(Opcode.RATES, rates)]

    def loads(number: int) -> list[Instruction]:
        tile = tiles[number]
        found = []
        for buffer, name in (
            (Buffer.WEIGHT, "w"),
            (Buffer.MOMENTUM, "v"),
            (Buffer.GRADIENT, "g"),
        ):
            region = where[name]
            body = {
                "address": region.address + tile.row * region.pitch + 4 * tile.column,
                "pitch": region.pitch,
                "rows": tile.rows,
                "row_bytes": 4 * tile.columns,
                "destination": buffer,
                "base": number % in_slots * words,
                "stride": tile.columns // config.granule_weights,
                "groups": ceil_div(tile.rows, lanes),
            }
            first, last = buffer is Buffer.WEIGHT, buffer is Buffer.GRADIENT
            found.append(
                Instruction(
                    Opcode.LOAD,
                    body,
                    wait=bit(Semaphore.UPDATE_FREE) if first and number >= in_slots else 0,
                    signal=bit(Semaphore.UPDATE_FULL) if last else 0,
                )
            )
        return found

    loaded = 0
    for number, tile in enumerate(tiles):
        while loaded < min(number + in_slots, len(tiles)):
            made += loads(loaded)
            loaded += 1
        slot = number % out_slots
        stride = tile.columns // config.granule_weights
        made.append(
            Instruction(
                Opcode.UPDATE,
                {
                    "rows": tile.rows,
                    "columns": tile.columns,
                    "in_base": number % in_slots * words,
                    "out_base": slot * words,
                    "stride": stride,
                    **fields,
                    "ff_base": slot * ff_words,
                    "ff_stride": ff_stride,
                    "bp_base": slot * bp_words,
                    "bp_stride": bp_stride,
                },
                wait=bit(Semaphore.UPDATE_FULL)
                | (bit(Semaphore.MADE_FREE) if number >= out_slots else 0),
                release=bit(Semaphore.UPDATE_FREE) if number + in_slots < len(tiles) else 0,
                signal=bit(Semaphore.MADE_FULL),
            )
        )
        stores: list[dict[str, Any]] = []
        for source, name in ((Source.WEIGHT, "w"), (Source.MOMENTUM, "v")):
            region = where[name]
            stores.append(
                {
                    "address": region.address + tile.row * region.pitch + 4 * tile.column,
                    "pitch": region.pitch,
                    "rows": tile.rows,
                    "row_bytes": 4 * tile.columns,
                    "source": source,
                    "base": slot * words,
                    "stride": stride,
                }
            )
        for source, body in tile.stores:
            along_rows = source in (Source.FF_VALUES, Source.FF_INDICES)
            base, step = (ff_words, ff_stride) if along_rows else (bp_words, bp_stride)
            stores.append({**body, "source": source, "base": slot * base, "stride": step})
        for n, body in enumerate(stores):
            last = n == len(stores) - 1
            reused = last and number + out_slots < len(tiles)
            made.append(
                Instruction(
                    Opcode.STORE,
                    body,
                    wait=bit(Semaphore.MADE_FULL) if n == 0 else 0,
                    release=bit(Semaphore.MADE_FREE) if reused else 0,
                )
            )
    return made


def _tiles(layer: Layer, where: LayerMemory, plan: UpdatePlan) -> Iterator[_UpdateTile]:
    """Yield tiles, each at one tap of one group."""
    rows_of, columns_of = where.bp.channels, where.ff.channels
    for group in range(layer.groups):
        for tap in range(layer.taps):
            for row in range(0, rows_of, plan.rows):
                for column in range(0, columns_of, plan.columns):
                    rows = min(plan.rows, rows_of - row)
                    columns = min(plan.columns, columns_of - column)
                    stores = [
                        *_copy_stores(
                            where, "ff", tap, group * rows_of + row, rows, column, columns
                        ),
                        *_copy_stores(
                            where, "bp", tap, group * columns_of + column, columns, row, rows
                        ),
                    ]
                    yield _UpdateTile(
                        group * rows_of + row, tap * columns_of + column, rows, columns,
                        tuple(stores),
                    )  # fmt: skip


def _copy_stores(
    where: LayerMemory, name: str, tap: int, line: int, lines: int, first: int, count: int
) -> Iterator[tuple[Source, dict[str, int]]]:
    """Yield the STOREs of a part of a pruned copy: its lines, channels ``first`` on of a tap."""
    packing: Packing = getattr(where, name)
    at = tap * packing.segment + first * packing.n // packing.m
    kept = count * packing.n // packing.m
    for what, region, byte, size in (
        ("VALUES", where[name], 2 * at, 2 * kept),
        ("INDICES", where.regions.get(f"{name}_index"), at // 2, ceil_div(kept, 2)),
    ):
        if region is not None:
            body = {
                "address": region.address + line * region.pitch + byte,
                "pitch": region.pitch,
                "rows": lines,
                "row_bytes": size,
            }
            yield Source[f"{name.upper()}_{what}"], body


def _depthwise_tiles(where: LayerMemory, plan: UpdatePlan) -> Iterator[_UpdateTile]:
    """Yield tiles of taps; their columns, the channels, become the rows of the copy."""
    region, taps = where["ff"], where.layer.taps
    for column in range(0, where.padded_out, plan.columns):
        columns = min(plan.columns, where.padded_out - column)
        for row in range(0, taps, plan.rows):
            rows = min(plan.rows, taps - row)
            body = {
                "address": region.address + column * region.pitch + 2 * row,
                "pitch": region.pitch,
                "rows": columns,
                "row_bytes": 2 * rows,
            }
            yield _UpdateTile(row, column, rows, columns, ((Source.BP_VALUES, body),))
