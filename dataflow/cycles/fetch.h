// When the fetch unit offers which instruction: the timing that rtl/fetch.py describes.
#pragma once

#include "timing.h"

class Fetch {
  public:
    // A program of `length` instructions at byte `address`.
    Fetch(int64_t address, int64_t length, const Parameters& p)
        : p(p),
          first(address / INSTRUCTION_BYTES),
          length(length),
          beats_each(INSTRUCTION_BYTES / p.fetch_beat_bytes),
          left_the_queue(p.instruction_queue - FETCH_INSTRUCTIONS + 1) {}

    // The first cycle in which instruction `pc` is offered; called with 0, 1, 2, …
    Cycle when(int64_t pc) {
        if (pc == asked) burst();
        return offered[pc % FETCH_INSTRUCTIONS];
    }
    // The sequencer took the next instruction in this cycle.
    void taken(Cycle cycle) { left_the_queue.push(cycle); }

    // Show what the next times depend on (leap.h), before instruction `pc` is taken.
    template <typename State>
    void show(State& state) {
        for (Cycle& cycle : offered) state.time(cycle);
        state.place(asked), state.ring(left_the_queue), state.time(ready), state.time(free);
    }

  private:
    // Ask for the instructions up to the end of an aligned block, or of the program.
    void burst() {
        int64_t count = FETCH_INSTRUCTIONS - (first + asked) % FETCH_INSTRUCTIONS;
        count = std::min(count, length - asked);
        // The queue must have room for a whole block: let go of all but that of what was asked for.
        const Cycle decided = std::max(ready, left_the_queue.oldest() + 1);
        const Cycle begin = std::max(decided + 1 + p.read_latency, free);
        Cycle last = 0;
        for (int64_t n = 1; n <= count; ++n, ++asked) {
            last = begin + (n * beats_each - 1) * p.cycles_per_beat;
            offered[asked % FETCH_INSTRUCTIONS] = last + 1;
        }
        free = last + p.cycles_per_beat;
        ready = last + 1;
    }

    const Parameters& p;
    const int64_t first, length, beats_each;
    int64_t asked = 0;
    Cycle offered[FETCH_INSTRUCTIONS] = {};
    Last left_the_queue;
    Cycle ready = 0;  // first cycle in which a burst may be asked for
    Cycle free = 0;   // first cycle in which memory may offer the next beat
};
