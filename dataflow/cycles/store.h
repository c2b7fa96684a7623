// When the store engine does what: the timing that rtl/store.py describes.
#pragma once

#include "bursts.h"
#include "instruction.h"
#include "timing.h"

class Store {
  public:
    explicit Store(const Parameters& p)
        : p(p), answers(p.outstanding), retired(STORES_IN_FLIGHT) {}

    Cycle idle = 0;     // first cycle in which `busy` is low after all accepted so far
    int64_t beats = 0;  // written so far

    // Bytes of a word of the source; 0 if there is no such source.
    int64_t word_bytes(const Instruction& i) const {
        return p.store_word_bytes[i[STORE::source] << FORMAT_BITS | i[STORE::format]];
    }

    // When a STORE offered from cycle `earliest` on is accepted and done.
    Times run(const Instruction& i, Cycle earliest) {
        const int64_t per_beat = p.beat_bytes, word = word_bytes(i);
        const int64_t rows = i[STORE::rows], row_bytes = i[STORE::row_bytes];
        const Cycle accept = std::max({earliest, next_accept, retired.oldest() + 1});
        address = std::max(address, accept + 1);
        Cycle word_ready = accept + STORE_READ_CYCLES;  // first cycle in which a word may be taken
        Cycle release = 0;
        Cycle cycle = word_ready - 1;  // of the last beat or word taken
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t from = i[STORE::address] + row * i[STORE::pitch];
            int64_t count = left_over(from, per_beat), left = row_bytes;
            cycle = word_ready - 1;
            const auto bring = [&] {
                const int64_t brought = std::min(word, left);
                count += brought, left -= brought;
                if (left == 0) release = cycle + 1;
            };
            bursts(from, row_bytes, p, [&](int64_t, int64_t length) {
                // The address follows the last one and the response `outstanding` before it; its
                // beats may go from the cycle in which it is on the bus, memory takes them later.
                address = std::max(address + 1, answers.oldest() + 2);
                for (int64_t beat = 0; beat < length; ++beat) {
                    // Words come in until a beat is full: one a cycle.
                    while (count < per_beat && left > 0) ++cycle, bring();
                    cycle = std::max({cycle + 1, free, address + 1});
                    free = cycle + p.cycles_per_beat;
                    // With the beat goes a word, if there is one and less than a beat stays.
                    count = std::max<int64_t>(0, count - per_beat);
                    if (left > 0 && count < per_beat) bring();
                }
                answer = std::max(answer + 1, cycle + p.write_latency);
                answers.push(answer);
                beats += length;
            });
            word_ready = cycle + (p.store_overlaps ? 0 : 1);
        }
        next_accept = std::max(cycle + 1, address);
        retired.push(answer);
        idle = answer + 2;
        return {accept, release, answer + 1};
    }

    // Show what the next times depend on (leap.h).
    template <typename State>
    void show(State& state) {
        state.time(idle), state.time(next_accept), state.time(address), state.time(free);
        state.time(answer), state.ring(answers), state.ring(retired), state.count(beats);
    }

  private:
    const Parameters& p;
    Cycle next_accept = 0;
    Cycle address = -1;  // cycle of the last address on the bus
    Cycle free = 0;      // first cycle in which memory may take the next beat
    Cycle answer = -1;   // cycle of the last response
    Last answers;        // of bursts
    Last retired;        // last responses of instructions
};
