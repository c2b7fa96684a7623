"""The host's side: put what a program reads into device memory, take what it leaves there."""

from __future__ import annotations

import numpy as np

from sat.dataflow.compile import MemoryMap
from sat.dataflow.layers import LayerMemory, Packing, Region
from sat.dataflow.program import Program
from sat.sim.golden import sore
from sat.sim.golden.update import narrow


def _rows(memory: np.ndarray, region: Region) -> np.ndarray:
    """Return the region as a writable view of (rows, row_bytes) uint8."""
    return np.lib.stride_tricks.as_strided(
        memory[region.address :], (region.rows, region.row_bytes), (region.pitch, 1)
    )


def _put(memory: np.ndarray, region: Region, matrix: np.ndarray) -> None:
    _rows(memory, region)[:] = np.ascontiguousarray(matrix).view(np.uint8)


def _flat(matrices: np.ndarray) -> np.ndarray:
    """Return the rows of all matrices of a stack, one matrix after the other, without gaps."""
    return np.ascontiguousarray(matrices).reshape(-1, matrices.shape[-1])


def pack_indices(indices: np.ndarray) -> np.ndarray:
    """Return 4-bit indices packed in pairs along the last axis, the first in the low bits.

    Parameters
    ----------
    indices : (…, kept) uint8, each below 16

    Returns
    -------
    (…, ceil(kept / 2)) uint8
    """
    padded = np.zeros((*indices.shape[:-1], -(-indices.shape[-1] // 2) * 2), np.uint8)
    padded[..., : indices.shape[-1]] = indices
    return padded[..., 0::2] | padded[..., 1::2] << 4


def write_product(
    memory: np.ndarray,
    where: MemoryMap,
    program: Program,
    a: np.ndarray,
    values: np.ndarray,
    indices: np.ndarray | None,
    start: np.ndarray | None,
) -> None:
    """Put a program and the matrices it reads into device memory.

    Parameters
    ----------
    memory : flat uint8, at least ``where.end`` bytes
    a : (rows, depth) float16; here and below, a stack of products has its number in front
    values : (kept, cols) float16
    indices : (kept, cols) uint8, or None for a dense B
    start : (rows, cols) or (cols,) float32, or None, as the memory map has it
    """
    write_left(memory, where, program, a, start)
    write_right(memory, where, values, indices)


def write_left(
    memory: np.ndarray,
    where: MemoryMap,
    program: Program,
    a: np.ndarray,
    start: np.ndarray | None,
) -> None:
    """Put all but the right operand into device memory; parameters as for `write_product`."""
    raw = np.frombuffer(program.encode(), np.uint8)
    memory[where.program.address : where.program.address + len(raw)] = raw
    _put(memory, where.a, _flat(a))
    if where.start is not None:
        assert start is not None
        _put(memory, where.start, _flat(np.atleast_2d(start)))


def write_right(
    memory: np.ndarray, where: MemoryMap, values: np.ndarray, indices: np.ndarray | None
) -> None:
    """Put a product's right operand into device memory; parameters as for `write_product`."""
    _put(memory, where.b, _flat(values.swapaxes(-1, -2)))
    if where.indices is not None:
        assert indices is not None
        _put(memory, where.indices, pack_indices(_flat(indices.swapaxes(-1, -2))))


def read_result(memory: np.ndarray, where: MemoryMap) -> np.ndarray:
    """Return a copy of the result, (rows, cols) float32; (count, rows, cols) of a stack."""
    result = _rows(memory, where.result).copy().view(np.float32)
    if where.count == 1:
        return result
    return result.reshape(where.count, -1, result.shape[1])


def _pixels(memory: np.ndarray, region: Region, size: tuple[int, ...], channels: int) -> np.ndarray:
    """Return a writable view of a tensor's channels without padding, (…size, channels) float16."""
    rows = np.lib.stride_tricks.as_strided(
        memory[region.address :][:2].view(np.float16), (region.rows, channels), (region.pitch, 2)
    )
    return _split_rows(rows, size)


def _split_rows(rows: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return rows as a view with several leading axes."""
    strides = []
    step = rows.strides[0]
    for n in reversed(size):
        strides.append(step)
        step *= n
    return np.lib.stride_tricks.as_strided(
        rows, (*size, rows.shape[1]), (*reversed(strides), rows.strides[1])
    )


class LayerTensors:
    """The tensors of a layer in device memory, as the host sees them.

    Parameters
    ----------
    memory : flat uint8
    where : LayerMemory

    Notes
    -----
    Shapes: activations (batch, lines, pixels, channels) float16, weights, momenta and gradients
    (out_channels, kernel lines, kernel pixels, in_channels / groups) float32, masks bool of an
    activation's shape. What is read is a copy.
    """

    def __init__(self, memory: np.ndarray, where: LayerMemory):
        self.memory, self.where, self.layer = memory, where, where.layer

    def clear(self) -> None:
        """Set what one program reads and writes to 0, padding included, and constants up.

        Weights, momenta and pruned copies, which may stay for many, are left alone.
        """
        for region in self.where.regions.values():
            if region.address not in self.where.held:
                self.memory[region.address : region.end] = 0
        self._put_lanes("lane_index")

    def clear_held(self) -> None:
        """Set weights, momenta and pruned copies to 0, padding included, and constants up."""
        held = self.where.held
        self.memory[held.start : held.stop] = 0
        self._put_lanes("ff_index")

    def _put_lanes(self, name: str) -> None:
        """Let every channel of a depthwise layer pick its own lane of a word."""
        if self.layer.depthwise:
            lanes = np.arange(self.where[name].rows) % self.where.config.max_m
            packed = (lanes | lanes << 4).astype(np.uint8)
            _rows(self.memory, self.where[name])[:] = packed[:, None]

    def _activation(self, name: str) -> np.ndarray:
        layer = self.layer
        if name in ("x", "dx"):
            size, channels = (layer.lines, layer.pixels), layer.in_channels
        else:
            size, channels = layer.out_size, layer.out_channels
        return _pixels(self.memory, self.where[name], (layer.batch, *size), channels)

    def read(self, name: str) -> np.ndarray:
        """Return a copy of x, dx, y, dy (float16), w, v, g (float32) or bias (float32)."""
        if name in ("x", "dx", "y", "dy"):
            return self._activation(name).copy()
        if name == "bias":
            return _rows(self.memory, self.where[name]).copy().view(np.float32)[0]
        return self._weights(name)[self._real()].copy()

    def write(self, name: str, values: np.ndarray) -> None:
        """Write what `read` returns."""
        if name in ("x", "dx", "y", "dy"):
            self._activation(name)[:] = values
        elif name == "bias":
            _put(self.memory, self.where[name], values[None].astype(np.float32))
        else:
            weights = self._weights(name)
            weights[:] = np.float32(-0.0 if name == "w" else 0.0)
            weights[self._real()] = values
            self._put_weights(name, weights)

    def _real(self) -> tuple[slice, ...]:
        layer = self.layer
        return (slice(layer.out_channels), slice(None), slice(None), slice(layer.in_per_group))

    def _weights(self, name: str) -> np.ndarray:
        """Return padded weights, (out, kernel lines, kernel pixels, in a group) float32: a copy."""
        layer, region = self.layer, self.where[name]
        matrix = _rows(self.memory, region).copy().view(np.float32)
        if layer.depthwise:
            return matrix.T.reshape(-1, *layer.kernel, 1).copy()
        if self.where.turned:
            # (groups, in, taps, out) to (groups, out, taps, in)
            grouped = matrix.reshape(layer.groups, -1, layer.taps, self.where.bp.channels)
            turned = grouped.transpose(0, 3, 2, 1)
            return turned.reshape(-1, *layer.kernel, turned.shape[-1])
        return matrix.reshape(region.rows, *layer.kernel, -1)

    def _put_weights(self, name: str, weights: np.ndarray) -> None:
        layer, region = self.layer, self.where[name]
        matrix = weights.reshape(len(weights), -1)
        if layer.depthwise:
            matrix = matrix.T
        elif self.where.turned:
            matrix = self._turned(weights).reshape(region.rows, -1)
        _put(self.memory, region, matrix)

    def _turned(self, weights: np.ndarray) -> np.ndarray:
        """Return padded weights with input channels first: (groups * in, taps, out of a group)."""
        layer = self.layer
        grouped = weights.reshape(layer.groups, -1, layer.taps, weights.shape[-1])
        turned = grouped.transpose(0, 3, 2, 1)
        return turned.reshape(-1, layer.taps, turned.shape[-1])

    def prune(self) -> None:
        """Write both pruned copies of w, as the device's update does after each step."""
        halves = narrow(self._weights("w"))
        layer, where = self.layer, self.where
        if layer.depthwise:
            _put(self.memory, where["ff"], halves.reshape(len(halves), -1))
            return
        self._put_copy("ff", where.ff, halves.reshape(len(halves), layer.taps, -1))
        self._put_copy("bp", where.bp, self._turned(halves))

    def _put_copy(self, name: str, packing: Packing, lines: np.ndarray) -> None:
        """Write (lines, taps, channels) float16, pruned along the channels."""
        values, indices = sore.select(np.ascontiguousarray(lines), packing.n, packing.m, axis=2)
        padding = ((0, 0), (0, 0), (0, packing.segment - packing.kept))
        values, indices = np.pad(values, padding), np.pad(indices, padding)
        _put(self.memory, self.where[name], values.reshape(len(lines), -1))
        if not packing.dense:
            packed = pack_indices(indices.reshape(len(lines), -1))
            _put(self.memory, self.where[f"{name}_index"], packed)

    def read_copy(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return values and indices of the copy "ff" or "bp": (lines, taps, kept)."""
        packing: Packing = getattr(self.where, name)
        region = self.where[name]
        values = _rows(self.memory, region).copy().view(np.float16)
        values = values.reshape(region.rows, self.layer.taps, -1)[..., : packing.kept]
        if packing.dense:
            return values, np.zeros(values.shape, np.uint8)
        packed = _rows(self.memory, self.where[f"{name}_index"])
        flat = np.stack([packed & 15, packed >> 4], axis=-1).reshape(region.rows, -1)
        segment = 1 if self.layer.depthwise else packing.segment
        indices = flat[:, : self.layer.taps * segment].reshape(region.rows, -1, segment)
        return values, indices[..., : packing.kept]

    def _mask_rows(self, name: str) -> tuple[np.ndarray, tuple[int, ...], int]:
        layer, config = self.layer, self.where.config
        size = (layer.lines, layer.pixels) if name == "in_mask" else layer.out_size
        channels = layer.in_channels if name == "in_mask" else layer.out_channels
        rows = _rows(self.memory, self.where[name])
        words = rows.reshape(len(rows), -1, config.mask_bytes)
        return words, (layer.batch, *size), channels

    def read_mask(self, name: str) -> np.ndarray:
        """Return "in_mask" or "out_mask", (batch, lines, pixels, channels) bool."""
        words, size, channels = self._mask_rows(name)
        bits = np.unpackbits(words, axis=-1, bitorder="little")[..., : self.where.config.cols]
        return bits.reshape(len(words), -1)[:, :channels].reshape(*size, channels).astype(bool)

    def write_mask(self, name: str, mask: np.ndarray) -> None:
        """Write what `read_mask` returns."""
        config = self.where.config
        words, _, channels = self._mask_rows(name)
        bits = np.zeros((len(words), words.shape[1] * config.cols), np.uint8)
        bits[:, :channels] = mask.reshape(-1, channels)
        bits = bits.reshape(len(words), words.shape[1], config.cols)
        packed = np.packbits(bits, axis=-1, bitorder="little")
        whole = np.zeros(words.shape, np.uint8)
        whole[..., : packed.shape[-1]] = packed
        _put(self.memory, self.where[name], whole.reshape(len(words), -1))
