"""Torch's switches for what it fuses: kernels that would hide their products from an offload."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class Switch:
    """A state of the whole process, for as long as some block wants it.

    The first block to be entered throws it, the last one to be left throws it back, whichever
    thread and order.

    Parameters
    ----------
    state : callable
        Returns a context manager that throws it, and back.
    """

    def __init__(self, state: Callable[[], AbstractContextManager[None]]) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._state = state
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._stack.enter_context(self._state())
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._stack.close()


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """Attention, RNNs, encoder layers and compiled code as single operations, not as fused ones."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        before = torch.backends.mkldnn.set_flags(False)
        stack.callback(torch.backends.mkldnn.set_flags, before[0])
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        # What is compiled has no operations to see; and torch refuses whole graphs inside.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


UNFUSED = Switch(_unfused)
"""Enter it for as long as fused kernels are to stay off."""
