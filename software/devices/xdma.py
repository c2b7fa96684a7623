"""A card behind PCIe, through AMD's XDMA driver."""

from __future__ import annotations

from typing import Any

from sat.devices.base import make_config
from sat.devices.board import BoardDevice
from sat.errors import DeviceError
from sat.fpga.card import CARD_CONFIG
from sat.fpga.link.client import LinkError
from sat.fpga.link.xdma import CardFiles, Files, XdmaLink


class XdmaDevice(BoardDevice):
    """Runs products on a card.

    Parameters
    ----------
    number : str
        Of the card, as the driver counts: its files are ``/dev/xdmaN_…``. Nobody else may have it.
    array : str, optional
        ``"RxC"``; together with ``config`` and ``options`` what the card's gateware was made from:
        `sat.fpga.card.CARD_CONFIG` if not given.
    files : Files, optional
        The driver's files, if not those of /dev; closed with the device.
    **options
        Further fields of `SatConfig`.

    Raises
    ------
    TypeError, ValueError
        If an option breaks its rule.
    DeviceError
        There is no driver or no such card, it does not answer, or its gateware is of another
        configuration.
    """

    name = "xdma"

    def __init__(
        self,
        number: str,
        array: str | None = None,
        *,
        config: Any = None,
        files: Files | None = None,
        **options: Any,
    ) -> None:
        if not number.isdecimal():
            raise ValueError(
                f"device 'xdma:{number}': must be the number of a card, such as xdma:0"
            )
        made = make_config(CARD_CONFIG if config is None else config, array, **options)
        spec = f"xdma:{number}"
        try:
            self._files = CardFiles(int(number)) if files is None else files
        except LinkError as error:
            raise DeviceError(f"device {spec!r}: {error}") from error
        super().__init__(spec, XdmaLink(self._files), made)

    def _close_link(self) -> None:
        self._files.close()
