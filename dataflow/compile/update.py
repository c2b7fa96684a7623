"""The weight update as instructions: WUVE, both prunings, and the copies for the next step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sat.dataflow.columns import Array, Field, Value, Words, encode
from sat.dataflow.compile.slots import Semaphore, bit
from sat.dataflow.fit import DoesNotFit, at_least
from sat.dataflow.layers import Layer, LayerMemory, Packing, Pair
from sat.dataflow.mapping import ceil_div, round_up, slot_count
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Opcode, Source


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
        Patterns along rows and columns of w, as UPDATE's fields name them.
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
            (_, along_row), (_, along_column) = where.copies
            plan = cls(config, (along_row.n, along_row.m), (along_column.n, along_column.m))
            whole = along_column.channels, along_row.channels
            units = _unit(along_column, 1), _unit(along_row, config.granule_weights)
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
            f"weights pruned {self.ff[0]}:{self.ff[1]} along rows and {self.bp[0]}:{self.bp[1]} "
            f"along columns come in tiles of at least {rows} x {columns}: too many for {has}",
            fixes,
        )


def _unit(packing: Packing, beat: int) -> int:
    """Return the channels of which a tile's side is a multiple.

    Whole groups of the pattern, whole beats of weights, and, as a tile's indices are stored on
    their own, whole bytes of them.
    """
    odd = not packing.dense and packing.n % 2
    return max(packing.m * (2 if odd else 1), beat)


@dataclass(frozen=True)
class _Tiles:
    """The tiles of an update: (tiles,) int64 each.

    Parameters
    ----------
    row, column : of w where one starts; columns are counted in the whole row of w
    rows, columns
    stores : list
        For each part of the copies that a tile makes the fields of its STOREs.
    """

    row: Array
    column: Array
    rows: Array
    columns: Array
    stores: list[dict[str, Field]]


def update(layer: Layer, where: LayerMemory, rates: dict[str, int]) -> Words:
    """Return the weight update and both prunings: WUVE, SORE, pre-generation.

    Parameters
    ----------
    rates : dict
        Fields of RATES.

    Raises
    ------
    ValueError
        Weights that FF prunes are to decay faster, but UPDATE prunes rows of `LayerMemory.turned`
        weights for BP.
    """
    config = where.config
    if where.turned and rates["decay_pruned"] != rates["decay"]:
        raise ValueError(
            f"sr_ste with wu={layer.wu[0]}:{layer.wu[1]}: where WU prunes, UPDATE cannot tell "
            "which weights FF prunes; train with sr_ste=0 or a dense WU"
        )
    plan = UpdatePlan.of(layer, where)
    ff, bp = plan.ff, plan.bp
    tiles = _depthwise_tiles(where, plan) if layer.depthwise else _tiles(layer, where, plan)
    lanes, halves = config.update_lanes, config.granule_halves
    words, ff_words, bp_words, in_slots, out_slots = plan.room(plan.rows, plan.columns)
    ff_stride = ceil_div(plan.columns * ff[0] // ff[1], halves)
    bp_stride = ceil_div(plan.rows * bp[0] // bp[1], halves)
    count = len(tiles.row)
    number = np.arange(count)
    in_slot, slot = number % in_slots, number % out_slots
    stride = tiles.columns // config.granule_weights

    def matrix(name: str) -> dict[str, Value]:
        """Return where tiles lie in one of the FP32 matrices."""
        region = where[name]
        return {
            "address": region.address + tiles.row * region.pitch + 4 * tiles.column,
            "pitch": region.pitch,
            "rows": tiles.rows,
            "row_bytes": 4 * tiles.columns,
            "stride": stride,
        }

    # Loads run as many tiles ahead as there is room for, and stand before the UPDATE before which
    # there is room. Of what stands before the same UPDATE, loads come tile by tile.
    before = np.maximum(0, number - in_slots + 1)
    loads: tuple[tuple[Buffer, str, Value, int], ...] = (
        (Buffer.WEIGHT, "w", np.where(number >= in_slots, bit(Semaphore.UPDATE_FREE), 0), 0),
        (Buffer.MOMENTUM, "v", 0, 0),
        (Buffer.GRADIENT, "g", 0, bit(Semaphore.UPDATE_FULL)),
    )
    made: list[Words] = []
    owners: list[Array] = []
    places: list[Array] = []

    def put(block: Words, owner: Array, place: Array) -> None:
        made.append(block)
        owners.append(owner)
        places.append(place)

    for at, (buffer, name, wait, signal) in enumerate(loads):
        fields: dict[str, Field] = {
            **matrix(name),
            "destination": buffer,
            "base": in_slot * words,
            "groups": -(-tiles.rows // lanes),
        }
        put(encode(Opcode.LOAD, count, fields, wait, 0, signal), before, number * len(loads) + at)
    behind = np.full(count, count * len(loads))
    fields = {
        "rows": tiles.rows,
        "columns": tiles.columns,
        "in_base": in_slot * words,
        "out_base": slot * words,
        "stride": stride,
        "ff_n": ff[0],
        "ff_log2_m": ff[1].bit_length() - 1,
        "bp_n": bp[0],
        "bp_log2_m": bp[1].bit_length() - 1,
        "ff_base": slot * ff_words,
        "ff_stride": ff_stride,
        "bp_base": slot * bp_words,
        "bp_stride": bp_stride,
    }
    wait = bit(Semaphore.UPDATE_FULL) | np.where(number >= out_slots, bit(Semaphore.MADE_FREE), 0)
    release = np.where(number + in_slots < count, bit(Semaphore.UPDATE_FREE), 0)
    update = encode(Opcode.UPDATE, count, fields, wait, release, bit(Semaphore.MADE_FULL))
    put(update, number, behind)
    stores: list[dict[str, Field]] = [
        {**matrix(name), "source": source, "base": slot * words}
        for source, name in ((Source.WEIGHT, "w"), (Source.MOMENTUM, "v"))
    ]
    for fields in tiles.stores:
        along_rows = fields["source"] in (Source.FF_VALUES, Source.FF_INDICES)
        base, step = (ff_words, ff_stride) if along_rows else (bp_words, bp_stride)
        stores.append({**fields, "base": slot * base, "stride": step})
    for at, fields in enumerate(stores):
        reused = (at == len(stores) - 1) & (number + out_slots < count)
        words_of = encode(
            Opcode.STORE,
            count,
            fields,
            wait=bit(Semaphore.MADE_FULL) if at == 0 else 0,
            release=np.where(reused, bit(Semaphore.MADE_FREE), 0),
        )
        put(words_of, number, behind + 1 + at)
    order = np.lexsort((np.concatenate(places), np.concatenate(owners)))
    return np.concatenate([encode(Opcode.RATES, 1, rates), np.concatenate(made)[order]])


def _tiles(layer: Layer, where: LayerMemory, plan: UpdatePlan) -> _Tiles:
    """Return tiles, each at one tap of one group."""
    (row_name, along_row), (column_name, along_column) = where.copies
    rows_of, columns_of = along_column.channels, along_row.channels
    starts = np.arange(0, rows_of, plan.rows), np.arange(0, columns_of, plan.columns)
    group, tap, row, column = (
        axis.ravel()
        for axis in np.meshgrid(
            np.arange(layer.groups), np.arange(layer.taps), *starts, indexing="ij"
        )
    )
    rows = np.minimum(plan.rows, rows_of - row)
    columns = np.minimum(plan.columns, columns_of - column)
    first_row, first_column = group * rows_of + row, group * columns_of + column
    stores = [
        *_copy_stores(where, row_name, "FF", tap, first_row, rows, column, columns),
        *_copy_stores(where, column_name, "BP", tap, first_column, columns, row, rows),
    ]
    return _Tiles(first_row, tap * columns_of + column, rows, columns, stores)


def _copy_stores(
    where: LayerMemory,
    name: str,
    made: str,
    tap: Array,
    line: Array,
    lines: Array,
    first: Array,
    count: Array,
) -> Iterator[dict[str, Field]]:
    """Yield the STOREs of parts of a copy that UPDATE ``made``: lines, channels ``first`` on."""
    packing: Packing = getattr(where, name)
    at = tap * packing.segment + first * packing.n // packing.m
    kept = count * packing.n // packing.m
    for what, region, byte, size in (
        ("VALUES", where[name], 2 * at, 2 * kept),
        ("INDICES", where.regions.get(f"{name}_index"), at // 2, -(-kept // 2)),
    ):
        if region is not None:
            yield {
                "address": region.address + line * region.pitch + byte,
                "pitch": region.pitch,
                "rows": lines,
                "row_bytes": size,
                "source": Source[f"{made}_{what}"],
            }


def _depthwise_tiles(where: LayerMemory, plan: UpdatePlan) -> _Tiles:
    """Return tiles of taps; their columns, the channels, become the rows of the copy."""
    region, taps = where["ff"], where.layer.taps
    starts = np.arange(0, where.padded_out, plan.columns), np.arange(0, taps, plan.rows)
    column, row = (axis.ravel() for axis in np.meshgrid(*starts, indexing="ij"))
    columns = np.minimum(plan.columns, where.padded_out - column)
    rows = np.minimum(plan.rows, taps - row)
    store: dict[str, Field] = {
        "address": region.address + column * region.pitch + 2 * row,
        "pitch": region.pitch,
        "rows": columns,
        "row_bytes": 2 * rows,
        "source": Source.BP_VALUES,
    }
    return _Tiles(row, column, rows, columns, [store])
