"""Why a device refuses a product or a layer, and what device would not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from sat.rtl.config import SatConfig

Made = TypeVar("Made")


class DoesNotFit(ValueError):
    """The device cannot run something.

    Parameters
    ----------
    what : str
        What is refused, and by which rule.
    fixes : mapping of str to int
        Fields of `SatConfig` (``"axi.address_bits"`` for one of its ports) and the values nearest
        to the device's with which, all taken together, it runs; empty if there are none. The
        message ends with them.
    instead : str
        Another way out, for the message.

    Attributes
    ----------
    what, instead : str
    fixes : dict of str to int
    """

    def __init__(self, what: str, fixes: Mapping[str, int], instead: str = "") -> None:
        self.what, self.fixes, self.instead = what, dict(fixes), instead
        named = ", ".join(f"{name}={value}" for name, value in self.fixes.items())
        built = f"build the device with {named}" if named else ""
        super().__init__(f"{what}; {', or '.join(way for way in (built, instead) if way)}")


def with_fixes(config: SatConfig, fixes: Mapping[str, int]) -> SatConfig:
    """Return a configuration with the fields that a `DoesNotFit` names."""
    own: dict[str, Any] = {
        name: value for name, value in fixes.items() if not name.startswith("axi.")
    }
    ports = {name.removeprefix("axi."): value for name, value in fixes.items() if name not in own}
    return replace(config, **own, axi=replace(config.axi, **ports))


def attempt(make: Callable[[SatConfig], Made], config: SatConfig) -> Made:
    """Return what ``make`` makes for a device, or raise with all that a device would need.

    Raises
    ------
    DoesNotFit
        ``make`` did; the fixes are those of what it refuses next, too, until it would succeed.
    """
    try:
        return make(config)
    except DoesNotFit as error:
        first = error
    fixes = dict(first.fixes)
    further = bool(fixes)
    while further:
        try:
            fixed = with_fixes(config, fixes)
        except ValueError:  # no device has all of them
            fixes = {}
            break
        try:
            make(fixed)
            break
        except DoesNotFit as error:
            further = bool(error.fixes)
            # What no device can do, no fix helps.
            fixes = fixes | error.fixes if further else {}
            first = first if further else error
    raise DoesNotFit(first.what, fixes, first.instead)


def at_least(value: int) -> int:
    """Return the least power of two that is not below a number: what a buffer's depth may be."""
    return 1 << max(0, value - 1).bit_length()
