"""Torch's switches for what it fuses: kernels that would hide their products from an offload."""

from __future__ import annotations

import contextlib
import threading

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class _Unfused:
    """Attention, RNNs, encoder layers and compiled code as single operations, not as fused ones.

    Torch's switches are global: the first block to be entered throws them, the last one to be left
    throws them back, whichever thread and order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            self._stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            before = torch.backends.mkldnn.set_flags(False)
            self._stack.callback(torch.backends.mkldnn.set_flags, before[0])
            fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            self._stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
            # What is compiled has no operations to see; and torch refuses whole graphs inside.
            self._stack.enter_context(torch.compiler.set_stance("force_eager"))

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._stack.close()


UNFUSED = _Unfused()
"""Enter it for as long as fused kernels are to stay off."""
