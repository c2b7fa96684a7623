"""What a device's instructions and addresses can reach."""

from __future__ import annotations

from amaranth.lib import data

from sat.dataflow.fit import DoesNotFit
from sat.dataflow.layers import LayerMemory
from sat.rtl import isa
from sat.rtl.config import SatConfig


def _most(layout: data.StructLayout, field: str) -> int:
    return isa.field_range(layout, field).stop - 1


def check_sizes(where: LayerMemory) -> None:
    """Check that instructions can name a layer's sizes, distances and places.

    Raises
    ------
    DoesNotFit
        A size is past its limit; the message names both.
    """
    layer, config = where.layer, where.config
    tensor, window, gather = isa.TENSOR, isa.WINDOW, isa.GATHER
    word = config.max_m
    channels = _most(gather, "segment_bytes") // config.word_bytes * word
    limits = [
        ("batch", layer.batch, _most(tensor, "images")),
        ("in_channels", layer.in_channels, channels),
        ("out_channels", layer.out_channels, channels),
    ]
    for axis, name in enumerate(("lines", "pixels")):
        coordinate = "yx"[axis]
        limits += [
            (f"{name} of the input", (layer.lines, layer.pixels)[axis], _most(tensor, name)),
            (f"{name} of the output", layer.out_size[axis], _most(window, name)),
            (f"kernel {name}", layer.kernel[axis], _most(gather, f"taps_{coordinate}")),
            (f"stride along {name}", layer.stride[axis], _most(window, f"step_{coordinate}")),
            (f"dilation along {name}", layer.dilation[axis], _most(window, f"tap_{coordinate}")),
            (f"padding along {name}", layer.padding[axis], _most(gather, coordinate)),
            (
                f"distance along {name} from the first tap to the last",
                layer.dilation[axis] * (layer.kernel[axis] - 1),
                _most(gather, coordinate),
            ),
        ]
    for name, size in (
        ("input", (layer.lines, layer.pixels)),
        ("output", layer.out_size),
    ):
        pitch = where["x" if name == "input" else "y"].pitch
        limits += [
            (f"bytes of a line of the {name}", pitch * size[1], _most(tensor, "line_pitch")),
            (
                f"bytes of an image of the {name}",
                pitch * size[1] * size[0],
                _most(tensor, "image_pitch"),
            ),
        ]
    limits.append(("bytes of a row of weights", where["w"].pitch, _most(isa.LOAD, "pitch")))
    for what, value, most in limits:
        if value > most:
            raise DoesNotFit(
                f"{what}: {value} in {layer}, and the device's instructions can name {most}",
                {},
                "cut the layer into smaller ones, or send its products one by one",
            )


def check_addresses(end: int, config: SatConfig, what: str) -> None:
    """Check that a device's addresses reach a byte address.

    Parameters
    ----------
    end : int
        First byte address behind all that is needed.
    what : str
        What needs it, for the message.

    Raises
    ------
    DoesNotFit
        With the address width that is enough, if a device may have it.
    """
    bits = config.axi.address_bits
    if end > 1 << bits:
        enough = (end - 1).bit_length()
        fixes = {"axi.address_bits": enough} if enough <= isa.ADDRESS_BITS else {}
        raise DoesNotFit(
            f"{what} needs {end} bytes of memory: this device's addresses reach 2**{bits}",
            fixes,
            "cut it into smaller ones",
        )
