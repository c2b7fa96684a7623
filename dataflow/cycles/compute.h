// When the compute engine does what: the static schedule that rtl/compute.py describes.
#pragma once

#include "instruction.h"
#include "timing.h"

class Compute {
  public:
    explicit Compute(const Parameters& p)
        : p(p),
          chain(p.rows * p.interleave),
          lead(p.interleave * (p.rows - 1) - (p.feed_delay - 3)),
          end(-chain),
          signals(TILES_IN_FLIGHT) {}

    Cycle idle = 0;           // first cycle in which `busy` is low after all accepted so far
    int64_t busy_cycles = 0;  // cycles in which operands entered the array

    // When a MULTIPLY offered from cycle `earliest` on is accepted and done.
    Times run(const Instruction& i, Cycle earliest) {
        const int64_t s = p.interleave, feed = p.feed_delay, values = i[MULTIPLY::values];
        const bool ws = i[MULTIPLY::dataflow] == int64_t(Dataflow::WS);
        const Start start = Start(i[MULTIPLY::start]);
        const int64_t length = s * ((i[MULTIPLY::words] - 1) * values + i[MULTIPLY::last]);
        const int64_t skew = p.rows * s * values + p.row_cycles;
        const bool is_long = length >= chain;

        const Cycle accept = std::max(earliest, issued + 1);
        Cycle issue = std::max({accept + PREPARE_CYCLES, end, signals.oldest() + 1});
        const int64_t held = ws ? values : 0;
        if (ws != last_ws || held != last_held) issue = std::max(issue, signals.newest() + 1);
        if (!ws) {
            // Its finished sums must not meet those of the last tile in the chains.
            issue = std::max(issue, end + chain - length);
            if (start == Start::START || start == Start::OUTPUT) {
                const bool at_once = issue == end && last_long && is_long;
                if (!at_once) issue = std::max(issue, end + chain);
            }
            // The ring keeps its phase.
            if (start == Start::KEEP) issue += (s - (issue - issued) % s) % s;
        }

        Cycle release, signal;
        if (ws) {
            const Cycle operands = issue + 1 + values;
            const Cycle first_sum = operands + feed - 1 + skew;
            release = issue + length + skew + feed + p.cols;
            signal = first_sum + length + p.cols - 1;
            end = issue + std::max(length, skew + 3);
        } else {
            const Cycle operands = issue + 1 + std::max<int64_t>(0, lead);
            const Cycle first_sum = operands + feed + p.row_cycles + s - 1 + length;
            release = issue + std::max(length, chain) + std::abs(lead) +
                      std::max(p.row_cycles, p.cols);
            signal = first_sum + chain + p.cols - 1;
            end = issue + length;
        }
        issued = issue, last_long = is_long, last_ws = ws, last_held = held;
        signals.push(signal);
        idle = signal + 1;
        busy_cycles += length;
        return {accept, release, signal};
    }

    // Show what the next times depend on (leap.h).
    template <typename State>
    void show(State& state) {
        state.time(idle), state.phase(issued, p.interleave), state.time(end);
        state.number(last_long), state.number(last_ws), state.number(last_held);
        state.ring(signals), state.count(busy_cycles);
    }

  private:
    const Parameters& p;
    const int64_t chain;  // sums that a column's chain takes in or gives out
    const int64_t lead;   // how long before the operands the start values set out
    Cycle issued = -1;    // cycle of the last issue
    Cycle end;            // its `e` (OS), or the earliest next issue (WS)
    bool last_long = false, last_ws = false;
    int64_t last_held = 0;  // weights in each USPE (WS)
    Last signals;
};
