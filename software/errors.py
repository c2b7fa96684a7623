"""Errors of SAT that are no wrong argument: those are ValueError and TypeError."""

from __future__ import annotations


class SatError(Exception):
    """Base of SAT's own errors."""


class DeviceError(SatError, RuntimeError):
    """A device failed, or cannot be used here."""


class DeviceClosedError(DeviceError):
    """A device was used after `Device.close`."""


class CycleBudgetError(SatError, RuntimeError):
    """A product would take more cycles than `sat.offload` was allowed."""
