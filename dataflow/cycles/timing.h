// What the timing of every engine is made of.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

using Cycle = int64_t;

// Before any program.
constexpr Cycle NEVER = -(Cycle{1} << 60);

// Cycles in which an instruction is accepted, releases its inputs, signals its outputs.
struct Times {
    Cycle accept, release, signal;
};

// The cycles of the last few events of a kind: what holds things up where only so many may be
// under way is the oldest of them.
class Last {
  public:
    explicit Last(int64_t events) : cycles(events, NEVER) {}
    Cycle oldest() const { return cycles[at]; }
    Cycle newest() const { return cycles[at ? at - 1 : cycles.size() - 1]; }
    void push(Cycle cycle) {
        cycles[at] = cycle;
        if (++at == cycles.size()) at = 0;
    }

    // Call `give` for the last so many, or all that are held, the oldest first.
    template <typename Give>
    void latest(int64_t count, Give give) const {
        const size_t size = cycles.size();
        for (size_t n = size - std::min<size_t>(count, size); n < size; ++n) {
            give(cycles[(at + n) % size]);
        }
    }
    // Call `give` for each, the oldest first.
    template <typename Give>
    void each(Give give) {
        for (size_t n = 0; n < cycles.size(); ++n) give(cycles[(at + n) % cycles.size()]);
    }

  private:
    std::vector<Cycle> cycles;
    size_t at = 0;
};

// A number over a power of two, rounded down, and what is left: far faster than by any number.
inline int64_t over(int64_t a, int64_t power) { return a >> __builtin_ctzll(power); }
inline int64_t left_over(int64_t a, int64_t power) { return a & (power - 1); }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
