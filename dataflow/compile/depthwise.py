"""WU of depthwise layers as instructions: taps by channels, on the N:M datapath."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sat.dataflow.compile.gradient import GradientPlanner, GradientShape
from sat.dataflow.compile.patches import groups_of, one_after_another
from sat.dataflow.compile.slots import Key, Load, Step
from sat.dataflow.layers import Layer, LayerMemory
from sat.dataflow.mapping import ceil_div, round_up
from sat.dataflow.products import Product
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Dataflow, Instruction, Opcode, Start


class _DepthwisePlanner(GradientPlanner):
    """WU of a word of depthwise channels: dw[tap, channel].

    A's rows are taps, gathered untransposed: a position is a word of channels. B's column c is
    channel c of dy, and the pattern 1:max_m with the constant index c picks it from that word.
    """

    def __init__(self, layer: Layer, where: LayerMemory, shape: GradientShape, first: int):
        super().__init__(layer, where, shape, first, first)
        config = where.config
        word = config.max_m
        channels = min(word, layer.in_channels - first)
        self.product = Product(layer.taps, channels, layer.out_positions * word, 1, word)
        self.per_word = 1
        self.a_slot, self.b_slot, self.i_slot = depthwise_slots(layer, config, shape)

    def a_loads(self, key: Key) -> list[Load]:
        _, chunk = key
        layer, config, positions = self.layer, self.config, self.shape.positions
        patches = replace(
            self.patches(0, self.first_in, config.max_m),
            tap=layer.dilation,
            taps=layer.kernel,
        )
        first = chunk * positions
        body = {
            **patches.position(first),
            "y": patches.start[0],
            "x": patches.start[1],
            "taps_y": layer.kernel[0],
            "taps_x": layer.kernel[1],
            "offset": patches.offset,
            "segment_bytes": config.word_bytes,
            "rows": min(positions, layer.out_positions - first),
            "destination": Buffer.A,
            "by_word": 1,
            "copies": 1,
            "words_per_pass": config.rows,
            "stride": positions,
            "groups": ceil_div(layer.taps, config.rows),
        }
        return [*patches.setup(), (Opcode.GATHER, body)]

    def b_loads(self, key: Key) -> list[Load]:
        _, _, chunk = key
        config, layer, positions = self.config, self.layer, self.shape.positions
        loads = self.transposed(self.patches(None, self.first_out, config.max_m), chunk, Buffer.B)
        (_, body) = loads[-1]
        count = min(positions, layer.out_positions - chunk * positions)
        body["rows"] = count
        region = self.where["lane_index"]
        index = {
            "address": region.address,
            "pitch": region.pitch,
            "rows": config.max_m,
            "row_bytes": ceil_div(count, 2),
            "destination": Buffer.INDEX,
            "stride": ceil_div(positions, config.indices_per_word),
            "groups": ceil_div(config.max_m, config.cols),
        }
        return [*loads, (Opcode.LOAD, index)]

    def steps(self) -> Iterator[Step]:
        config, shape, layer = self.config, self.shape, self.layer
        chunks = ceil_div(layer.out_positions, shape.positions)
        cols = min(config.max_m, layer.in_channels - self.first_in)
        tiles = [
            (r, c)
            for r in range(0, layer.taps, self.tile_rows)
            for c in range(0, cols, self.tile_cols)
        ]
        region = self.memory.result
        for opened, (r, c) in enumerate(tiles):
            # The sums of a tile stay in the array; a further tile goes over the chunks again.
            for chunk in range(chunks):
                first, last = chunk == 0, chunk == chunks - 1
                positions = min(shape.positions, layer.out_positions - chunk * shape.positions)
                store = {
                    "address": region.address + r * region.pitch + 4 * (self.first_out + c),
                    "pitch": region.pitch,
                    "rows": min(self.tile_rows, layer.taps - r),
                    "row_bytes": 4 * min(self.tile_cols, cols - c),
                    "stride": self.sum_width(),
                    "check": 1,
                }
                yield Step(
                    a=(0, chunk),
                    b=(0, 0, chunk),
                    body={
                        **self.common(),
                        "dataflow": Dataflow.OS,
                        "start": Start.ZERO if first else Start.KEEP,
                        "emit": int(last),
                        "split": shape.split,
                        "words": positions,
                        "values": 1,
                        "last": 1,
                        "a_base": r // config.rows * shape.positions,
                        "a_stride": shape.positions,
                        "b_base": c // config.cols * self.chunk_words,
                        "b_stride": self.chunk_words,
                        "i_base": c // config.cols * self.i_stride,
                        "i_stride": self.i_stride,
                    },
                    output=opened,
                    opens=first,
                    stores=[store] if last else [],
                )

    @property
    def i_stride(self) -> int:
        return ceil_div(self.shape.positions, self.config.indices_per_word)


def depthwise_slots(layer: Layer, config: SatConfig, shape: GradientShape) -> tuple[int, int, int]:
    """Return the words of A, B and index banks that a chunk of a depthwise WU takes."""
    tile_rows = config.rows * (config.interleave >> shape.split)
    groups = round_up(layer.taps, tile_rows) // config.rows
    columns = round_up(config.max_m, config.cols << shape.split) // config.cols
    return (
        groups * shape.positions,
        columns * (shape.positions // config.max_m),
        columns * ceil_div(shape.positions, config.indices_per_word),
    )


def _depthwise_shape(layer: Layer, config: SatConfig) -> GradientShape:
    """Return the shape with the fewest passes, then the longest chunks, that fits."""
    found = []
    for split in range(config.interleave.bit_length()):
        tile_rows = config.rows * (config.interleave >> split)
        passes = ceil_div(layer.taps, tile_rows) * ceil_div(config.max_m, config.cols << split)
        for n in range(config.a_words.bit_length()):
            shape = GradientShape(split, 1, 1, config.max_m << n)
            sizes = depthwise_slots(layer, config, shape)
            depths = (config.a_words, config.b_words, config.i_words)
            room = min(depth // size for size, depth in zip(sizes, depths, strict=True))
            if room:
                longest = min(shape.positions, round_up(layer.out_positions, config.max_m))
                rank = (room == 1, passes, -longest)
                found.append((rank, replace(shape, positions=longest)))
    if not found:
        raise ValueError(
            f"kernel={layer.kernel}: the gradient of its {layer.taps} depthwise taps does not fit "
            f"the device's buffers (a_words={config.a_words}); enlarge them"
        )
    return min(found, key=lambda entry: entry[0])[1]


def depthwise_gradient(layer: Layer, where: LayerMemory) -> list[Instruction]:
    """Return WU of a depthwise layer; infinite and NaN sums are counted."""
    shape = _depthwise_shape(layer, where.config)
    return one_after_another(
        _DepthwisePlanner(layer, where, shape, first).emit()
        for first, _, _ in groups_of(layer, where)
    )
