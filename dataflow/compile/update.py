"""The weight update as instructions: WUVE, both prunings, and the copies for the next step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sat.dataflow.compile.slots import Semaphore, bit
from sat.dataflow.layers import Layer, LayerMemory, Packing, Pair
from sat.dataflow.mapping import ceil_div, round_up
from sat.rtl.isa import Buffer, Instruction, Opcode, Source


@dataclass(frozen=True)
class _UpdateTile:
    """Rows and columns of w, where it starts, and which copies it makes."""

    row: int
    column: int  # counted in the whole row of w
    rows: int
    columns: int
    stores: tuple[tuple[Source, dict[str, int]], ...]  # of the copies


def update(layer: Layer, where: LayerMemory, rates: dict[str, int]) -> list[Instruction]:
    """Return the weight update and both prunings: WUVE, SORE, pre-generation.

    Parameters
    ----------
    rates : dict
        Fields of RATES.
    """
    config = where.config
    ff, bp = ((1, 1), (1, 1)) if layer.depthwise else _patterns(where)
    fields = {
        "ff_n": ff[0], "ff_log2_m": ff[1].bit_length() - 1,
        "bp_n": bp[0], "bp_log2_m": bp[1].bit_length() - 1,
    }  # fmt: skip
    tiles = list(_depthwise_tiles(layer, where) if layer.depthwise else _tiles(layer, where))
    lanes, halves = config.update_lanes, config.beat_halves
    words = max(ceil_div(t.rows, lanes) * (t.columns // config.beat_weights) for t in tiles)
    ff_stride = max(ceil_div(t.columns * ff[0] // ff[1], halves) for t in tiles)
    bp_stride = max(ceil_div(t.rows * bp[0] // bp[1], halves) for t in tiles)
    ff_words = max(ceil_div(t.rows, lanes) for t in tiles) * ff_stride
    bp_words = max(ceil_div(t.columns, lanes) for t in tiles) * bp_stride
    in_slots = config.update_words // words if words else 1
    out_slots = min(in_slots, config.copy_words // ff_words, config.copy_words // bp_words)
    if out_slots < 1:
        raise ValueError(
            f"a tile of {tiles[0].rows} x {tiles[0].columns} weights does not fit the update "
            f"engine's banks (update_words={config.update_words}, copy_words={config.copy_words}); "
            "enlarge them or lower tile_weights"
        )
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
                "stride": tile.columns // config.beat_weights,
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
        stride = tile.columns // config.beat_weights
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


def _patterns(where: LayerMemory) -> tuple[Pair, Pair]:
    return (where.ff.n, where.ff.m), (where.bp.n, where.bp.m)


def _tiles(layer: Layer, where: LayerMemory) -> Iterator[_UpdateTile]:
    """Yield tiles of at most ``tile_weights``, each at one tap of one group."""
    side = 1 << (where.config.tile_weights.bit_length() - 1) // 2
    rows_of, columns_of = where.bp.channels, where.ff.channels
    sides = (min(side, rows_of), min(side, columns_of))
    for packing, size in ((where.bp, sides[0]), (where.ff, sides[1])):
        if size < packing.channels and size * packing.n // packing.m % 2:
            raise ValueError(
                f"pattern {packing.n}:{packing.m}: an update tile of {size} channels would end "
                f"inside a byte of indices; raise tile_weights={where.config.tile_weights}"
            )
    for group in range(layer.groups):
        for tap in range(layer.taps):
            for row in range(0, rows_of, sides[0]):
                for column in range(0, columns_of, sides[1]):
                    rows, columns = min(sides[0], rows_of - row), min(sides[1], columns_of - column)
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


def _depthwise_tiles(layer: Layer, where: LayerMemory) -> Iterator[_UpdateTile]:
    """Yield tiles of all taps; their columns, the channels, become the rows of the copy."""
    config, region = where.config, where["ff"]
    padded = round_up(layer.taps, config.update_lanes)
    most = config.tile_weights // padded // config.beat_weights * config.beat_weights
    if most == 0:
        raise ValueError(
            f"kernel={layer.kernel}: {layer.taps} taps of a beat of channels are more than a tile "
            f"of tile_weights={config.tile_weights}; raise it"
        )
    # No larger than half of the banks, so that tiles overlap.
    groups = ceil_div(layer.taps, config.update_lanes)
    fits = config.update_words // 2 // groups * config.beat_weights
    side = max(config.beat_weights, min(most, fits, where.padded_out))
    for column in range(0, where.padded_out, side):
        columns = min(side, where.padded_out - column)
        body = {
            "address": region.address + column * region.pitch,
            "pitch": region.pitch,
            "rows": columns,
            "row_bytes": 2 * layer.taps,
        }
        yield _UpdateTile(0, column, layer.taps, columns, ((Source.BP_VALUES, body),))
