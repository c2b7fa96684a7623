"""SAT: N:M sparse neural-network training on open hardware.

Names are imported on first use, so that ``import sat.rtl`` does not import torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sat.devices import (
        Device,
        ProductLog,
        Run,
        device,
        record_products,
        resident,
        use_device,
    )
    from sat.errors import CycleBudgetError, DeviceClosedError, DeviceError, SatError
    from sat.layers.convert import desparsify_, sparsify_
    from sat.layers.modules import SatConv2d, SatLinear
    from sat.layers.schemes import Prune, Scheme, register_scheme
    from sat.offload.mode import offload
    from sat.offload.report import OffloadReport
    from sat.sparsity.pattern import DENSE, Pattern, Patterns
    from sat.sparsity.tensor import NMTensor, prune

    __version__: str

_HOME = {
    "CycleBudgetError": "sat.errors",
    "OffloadReport": "sat.offload.report",
    "DENSE": "sat.sparsity.pattern",
    "Device": "sat.devices",
    "DeviceClosedError": "sat.errors",
    "DeviceError": "sat.errors",
    "NMTensor": "sat.sparsity.tensor",
    "Pattern": "sat.sparsity.pattern",
    "Patterns": "sat.sparsity.pattern",
    "ProductLog": "sat.devices",
    "Prune": "sat.layers.schemes",
    "Run": "sat.devices",
    "SatConv2d": "sat.layers.modules",
    "SatError": "sat.errors",
    "SatLinear": "sat.layers.modules",
    "Scheme": "sat.layers.schemes",
    "desparsify_": "sat.layers.convert",
    "device": "sat.devices",
    "prune": "sat.sparsity.tensor",
    "record_products": "sat.devices",
    "register_scheme": "sat.layers.schemes",
    "resident": "sat.devices",
    "sparsify_": "sat.layers.convert",
    "use_device": "sat.devices",
}

__all__ = [
    "DENSE",
    "CycleBudgetError",
    "Device",
    "DeviceClosedError",
    "DeviceError",
    "NMTensor",
    "OffloadReport",
    "Pattern",
    "Patterns",
    "ProductLog",
    "Prune",
    "Run",
    "SatConv2d",
    "SatError",
    "SatLinear",
    "Scheme",
    "__version__",
    "desparsify_",
    "device",
    "offload",
    "prune",
    "record_products",
    "register_scheme",
    "resident",
    "sparsify_",
    "use_device",
]


class _Sat(ModuleType):
    """This package; `sat.offload` is the class, though a package of that name holds it.

    Importing a module of `sat.offload` would otherwise put the package in the class's place.
    """

    @property
    def offload(self) -> Any:
        return importlib.import_module("sat.offload.mode").offload

    @offload.setter
    def offload(self, package: ModuleType) -> None:
        """Leave the class where it is."""


sys.modules[__name__].__class__ = _Sat


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("sat")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'sat' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
