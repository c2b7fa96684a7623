"""Parts of a call on several threads (native/share.h): each once, errors, arithmetic, forks."""

import ctypes
import os
import threading

import pytest
import torch

from sat.sim import build, threads
from sat.sim.golden import stce

SOURCE = r"""
#include <stdexcept>
#include <unistd.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "share.h"

// Counts calls of each part; part `bad` throws. Returns what was thrown, or 0.
extern "C" long count_parts(long parts, long bad, long* calls, long* apart) {
    std::atomic<long> other{0};
    const std::thread::id self = std::this_thread::get_id();
    try {
        in_parts(parts, [&](long part) {
            calls[part]++;
            other += std::this_thread::get_id() != self;
            if (part == bad) throw std::runtime_error(std::to_string(part));
        });
    } catch (const std::runtime_error& error) {
        return std::atol(error.what());
    }
    *apart = other;
    return 0;
}

// Parts that meet: true if all were under way at once. With fewer threads it waits in vain.
extern "C" long meet(long parts) {
    std::atomic<long> here{0}, met{0};
    in_parts(parts, [&](long) {
        here++;
        for (int i = 0; i < 5000 && here < parts; i++) usleep(1000);
        met += here == parts;
    });
    return met == parts;
}

// Whether parts round to nearest and flush no subnormals although the caller rounds down and, where
// there is SSE, flushes; and the caller still does then.
bool down_and_flushing() {
#if defined(__SSE__)
    if (!(_mm_getcsr() & 0x8000)) return false;
#endif
    return std::fegetround() == FE_DOWNWARD;
}
bool neither() {
#if defined(__SSE__)
    if (_mm_getcsr() & 0x8000) return false;
#endif
    return std::fegetround() == FE_TONEAREST;
}
extern "C" long keeps_arithmetic(long parts) {
    std::fenv_t before;
    std::fegetenv(&before);
    std::fesetround(FE_DOWNWARD);
#if defined(__SSE__)
    _mm_setcsr(_mm_getcsr() | 0x8000);
#endif
    std::atomic<long> good{0};
    in_parts(parts, [&](long) { good += neither(); });
    const bool kept = down_and_flushing();
    std::fesetenv(&before);
    return kept && good == parts;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    source = tmp_path_factory.mktemp("share") / "parts.cpp"
    source.write_text(SOURCE)
    folder = stce.SOURCE.parent
    return ctypes.CDLL(str(build.compile_library("parts", [source], include_dirs=[folder])))


@pytest.fixture(params=["team", "own threads"])
def shared(request, library):
    """The library, with OpenMP's threads, four of them, or with its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    if request.param == "team":
        threads.share_threads(library)
        assert library in threads._libraries
    yield library
    library.share_with(None, None)
    if library in threads._libraries:
        threads._libraries.remove(library)
    torch.set_num_threads(before)


def parts(library, number, bad=-1):
    """Return what was thrown, calls of each part, and how many were in other threads."""
    calls, apart = (ctypes.c_long * number)(), ctypes.c_long()
    thrown = library.count_parts(number, bad, calls, ctypes.byref(apart))
    return thrown, list(calls), apart.value


@pytest.mark.parametrize("number", [2, 3, 4, 9])
def test_every_part_is_called_once_and_parts_run_side_by_side(shared, number):
    for _ in range(20):
        assert parts(shared, number)[:2] == (0, [1] * number)
    assert shared.meet(number)


def test_one_part_stays_in_the_thread_that_calls(shared):
    assert parts(shared, 1) == (0, [1], 0)


@pytest.mark.parametrize("bad", [1, 3])
def test_what_a_part_throws_reaches_the_caller_once_all_have_ended(shared, bad):
    assert parts(shared, 4, bad)[:2] == (bad, [1] * 4)
    assert parts(shared, 4)[:2] == (0, [1] * 4)


def test_parts_compute_in_the_default_arithmetic(shared):
    assert shared.keeps_arithmetic(4)


def test_several_callers_and_changes_of_their_number(shared):
    wrong = []

    def call(size):
        torch.set_num_threads(size)
        for number in (1, 2, 5, 3) * 20:
            if parts(shared, number)[:2] != (0, [1] * number):
                wrong.append((size, number))

    callers = [threading.Thread(target=call, args=(size,)) for size in (1, 2, 3, 4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    assert wrong == []


def test_a_forked_process_starts_threads_of_its_own(shared):
    assert shared.meet(3)
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(20)
        good = shared.meet(3) and parts(shared, 3)[:2] == (0, [1] * 3)
        # A library that is loaded after the fork must not wait for the team, either.
        known = len(threads._libraries)
        threads.share_threads(shared)
        os._exit(0 if good and len(threads._libraries) == known else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert shared.meet(3)
