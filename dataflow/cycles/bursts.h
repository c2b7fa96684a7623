// From rows in memory to AXI bursts: what `BurstWalker` and `BurstCutter` of rtl/bursts.py do.
#pragma once

#include "timing.h"

// Call `give(address, beats)` for each burst that covers `size` bytes from `address` on, which
// need not be on a beat. No burst is longer than `burst_beats` or crosses 4 KiB of a port.
template <typename Give>
void bursts(int64_t address, int64_t size, const Parameters& p, Give give) {
    const int64_t boundary = p.boundary_beats;
    int64_t at = over(address, p.beat_bytes);
    const int64_t end = over(address + size - 1, p.beat_bytes) + 1;
    while (at < end) {
        const int64_t beats = std::min({end - at, boundary - left_over(at, boundary), p.burst_beats});
        give(at * p.beat_bytes, beats);
        at += beats;
    }
}
