"""Threads around native code: one at a time in a device, several for one call, all of them stopped.

Native loops do not see Python's signals. So whatever takes long looks for a `Stop`: between slices
of a simulation, in the loops of a product, while a compiler runs. `side_by_side` is the one place
that starts threads, and the one that stops them: a Ctrl-C reaches the thread that waits there, and
from it all that work for it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from contextvars import ContextVar, copy_context
from typing import TypeVar
from weakref import WeakSet

from sat.errors import DeviceError

T = TypeVar("T")


class Stopped(Exception):
    """Work ended early because it was asked to; whoever asked knows why."""


class Stop:
    """A request to end early.

    Parameters
    ----------
    parent : Stop, optional
        One that stops this one, too.

    Attributes
    ----------
    flag : ctypes.c_int
        Not zero once it was asked for.
    address : int
        Where native code reads the flag.
    """

    def __init__(self, parent: Stop | None = None) -> None:
        self.flag = ctypes.c_int(0)
        self.address = ctypes.addressof(self.flag)
        self._children: WeakSet[Stop] = WeakSet()
        if parent is not None:
            parent._children.add(self)
            self.flag.value = parent.flag.value

    def ask(self) -> None:
        """Ask all work that looks at this to end."""
        self.flag.value = 1
        for child in list(self._children):
            child.ask()


_stop: ContextVar[Stop | None] = ContextVar("sat_stop", default=None)
_NEVER = Stop()


def current_stop() -> Stop:
    """Return what the work of this thread is to look at."""
    return _stop.get() or _NEVER


def check_stop() -> None:
    """Raise `Stopped` if the work of this thread was asked to end."""
    if current_stop().flag.value:
        raise Stopped


def unless_exiting(error: Exception) -> BaseException:
    """Return the error to raise, or a `SystemExit` where the interpreter ends under a daemon.

    By then devices are closed and thread pools start nothing. A daemon thread ends with the
    interpreter without a word, while any error of it but `SystemExit` would be printed, as far as
    the end lets it.
    """
    main = threading.main_thread()
    if main.is_alive() or threading.current_thread() is main:
        return error
    return SystemExit()


def side_by_side(jobs: Sequence[Callable[[], T]], threads: int | None = None) -> list[T]:
    """Run jobs in threads of their own; return their results, in order.

    The calling thread waits where a signal reaches it. All jobs have ended when this returns or
    raises: the first error, or an exception that comes from outside (Ctrl-C), stops the others.

    Parameters
    ----------
    jobs : sequence of callable
        Each is called once, in the caller's context, and looks for `check_stop` or for the flag
        of `current_stop` now and then.
    threads : int, optional
        How many at a time; all if not given.
    """
    stop = Stop(_stop.get())

    def run(job: Callable[[], T]) -> T:
        _stop.set(stop)
        check_stop()
        return job()

    if not threading.main_thread().is_alive():
        # What is registered with `atexit` runs now, and executors start nothing any more.
        return [copy_context().run(run, job) for job in jobs]
    futures: list[Future[T]] = []
    with ThreadPoolExecutor(threads or max(1, len(jobs)), "sat") as pool:
        try:
            futures += [pool.submit(copy_context().run, run, job) for job in jobs]
            if wait(futures, return_when=FIRST_EXCEPTION).not_done:
                stop.ask()
        except BaseException as reason:
            # It may have come between the start of a job and its place in the list.
            stop.ask()
            if len(futures) < len(jobs) and isinstance(reason, RuntimeError):
                if threading.current_thread().daemon:
                    # Executors are told of the interpreter's end a moment before threads are.
                    threading.main_thread().join(1)
                raise unless_exiting(reason) from None
            raise
    errors = [error for future in futures if (error := future.exception()) is not None]
    # What was stopped for another's error has nothing to say of its own.
    errors.sort(key=lambda error: isinstance(error, Stopped))
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


class Turn:
    """Lets one thread at a time work with a thing, ``with turn():``; the others wait.

    For one thread also several times over. A process that was forked while another thread had the
    turn holds the thing half changed: it is told so.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.torn = False
        _turns.add(self)

    def __call__(self) -> AbstractContextManager[object]:
        """Return the lock itself: no signal comes between taking it and the block that frees it.

        Raises
        ------
        DeviceError
            If the thing is half changed.
        """
        if self.torn:
            raise DeviceError(
                "the device was at work in another thread when this process was forked, and is "
                "left half changed here; make another in the new process"
            )
        return self._lock

    def after_fork(self) -> None:
        """Know, in a new process, whether the fork came in the middle of another thread's turn."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock, self.torn = threading.RLock(), True


_libraries: list[ctypes.CDLL] = []
_forked = False


def share_threads(library: ctypes.CDLL) -> ctypes.CDLL:
    """Let a library of ``native/share.h`` compute with the threads that PyTorch does; return it.

    These are OpenMP's: they wait for work for a while, where threads of the library's own would
    have to be started, and given a processor that OpenMP's hold meanwhile. A process that has no
    OpenMP (PyTorch is not loaded) starts threads for each call, and so does a forked one: OpenMP
    would wait there for threads that the fork left behind.
    """
    if not _forked:
        try:
            openmp = ctypes.CDLL("libgomp.so.1", os.RTLD_NOLOAD)
        except OSError:
            return library
        library.share_with(openmp.GOMP_parallel, openmp.omp_get_max_threads)
        _libraries.append(library)
    return library


_turns: WeakSet[Turn] = WeakSet()


def _after_fork() -> None:
    global _forked
    _forked = True
    for library in _libraries:
        library.share_with(None, None)
    for turn in list(_turns):
        turn.after_fork()


os.register_at_fork(after_in_child=_after_fork)
