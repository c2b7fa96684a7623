// When the load engine does what: the timing that rtl/load.py describes.
#pragma once

#include "bursts.h"
#include "segments.h"
#include "timing.h"

class Load {
  public:
    explicit Load(const Parameters& p)
        : p(p), last_beats(p.outstanding), popped(p.segments_ahead), begun(COMMANDS_AHEAD) {}

    Cycle idle = 0;     // first cycle in which `busy` is low after all accepted so far
    int64_t beats = 0;  // read so far

    // When an instruction offered from cycle `earliest` on is accepted and done.
    Times run(const Instruction& i, Cycle earliest) {
        const Cycle accept = std::max({earliest, next_accept, begun.oldest() + 1});
        // The data side takes it when it is done with the last, or two cycles after the accept.
        begun.push(std::max(accept + 1, side_free - 1));
        Cycle finish;
        if (i.opcode() == Opcode::TENSOR || i.opcode() == Opcode::WINDOW) {
            walk.set(i);
            next_accept = accept + 1 + SETTINGS_CYCLES;
            finish = begun.newest() + 1;
        } else {
            const bool gather = i.opcode() == Opcode::GATHER;
            // The walker offers a segment a cycle from here on.
            taken = std::max(taken, accept + (gather ? SETUP_CYCLES : 0));
            const int64_t destination = i[gather ? GATHER::destination : LOAD::destination];
            if (!gather && destination == int64_t(Buffer::START)) {
                finish = start(i);
            } else if (!gather && destination == int64_t(Buffer::MASK)) {
                finish = mask(i);
            } else if (gather && i[GATHER::transpose]) {
                finish = transposed(i, destination == int64_t(Buffer::A) ? p.rows : p.cols);
            } else if (p.beat_words > 1 && i[gather ? GATHER::by_word : LOAD::by_word]) {
                finish = gather ? by_word(i, i[GATHER::copies], i[GATHER::words_per_pass])
                                : by_word(i, i[LOAD::copies], i[LOAD::words_per_pass]);
            } else {
                finish = operand(i);
            }
            next_accept = taken + 1;
        }
        side_free = finish + 1;
        idle = finish + 2;
        return {accept, finish + 1, finish + 1};
    }

    // Hold a TENSOR or WINDOW, as if it had been run.
    void set(const Instruction& i) { walk.set(i); }

    // Show what the next times depend on (leap.h); `walk` by what later GATHERs make of it.
    template <typename State>
    void show(State& state) {
        state.time(idle), state.time(next_accept), state.time(taken), state.time(sent);
        state.ring(last_beats), state.ring(popped), state.time(memory_free);
        state.time(side_free), state.ring(begun), state.count(beats);
    }

  private:
    // Call `give` for each segment; `taken` is then the cycle in which the cutter takes it.
    template <typename Give>
    void each_segment(const Instruction& i, Give give) {
        walk.segments(i, [&](const Segment& segment) {
            taken = std::max({taken + 1, sent, popped.oldest() + 1});
            give(segment);
        });
    }

    // Call `give(beats, offered)` for each burst: the beats that it has, and the cycle in which
    // memory offers the first.
    template <typename Give>
    void each_burst(const Segment& segment, Give give) {
        const Cycle earliest = taken + 1;
        bursts(segment.address, segment.size, p, [&](int64_t, int64_t count) {
            // A burst follows the last one, and the end of the burst `outstanding` before it.
            sent = std::max({sent + 1, earliest, last_beats.oldest() + 1});
            beats += count;
            give(count, std::max(sent + 1 + p.read_latency, memory_free));
        });
    }

    int64_t zero_beats(const Segment& segment) const {
        return ceil_div(segment.size, p.beat_bytes);
    }

    Cycle operand(const Instruction& i) {
        Cycle free = side_free;
        each_segment(i, [&](const Segment& segment) {
            if (segment.zero) {
                free = std::max(free, taken + 1) + zero_beats(segment);
            } else {
                each_burst(segment, [&](int64_t count, Cycle offered) {
                    const Cycle last = std::max(offered, free) + (count - 1) * p.cycles_per_beat;
                    free = last + 1, memory_free = last + p.cycles_per_beat;
                    last_beats.push(last);
                });
            }
            popped.push(free - 1);
        });
        return free - 1;
    }

    // Call `writes(bytes)`, which returns the cycles that it takes, for the part that each beat of
    // each segment holds of it; zeros lie from the first byte of a beat on.
    template <typename Begin, typename Writes>
    Cycle written(const Instruction& i, Begin begin, Writes writes) {
        Cycle free = side_free;
        each_segment(i, [&](const Segment& segment) {
            begin();
            int64_t left = ceil_div(segment.size, p.granule_bytes) * p.granule_bytes;
            int64_t room = p.beat_bytes - (segment.zero ? 0 : segment.address % p.beat_bytes);
            const auto next = [&] {
                const int64_t bytes = std::min(room, left);
                left -= bytes, room = p.beat_bytes;
                return writes(bytes);
            };
            if (segment.zero) {
                free = std::max(free, taken + 1);
                while (left > 0) free += next();
            } else {
                each_burst(segment, [&](int64_t count, Cycle offered) {
                    for (; count > 0; --count) {
                        const Cycle last = std::max({offered, free, memory_free}) + next() - 1;
                        free = last + 1, memory_free = last + p.cycles_per_beat;
                    }
                    last_beats.push(free - 1);
                });
            }
            popped.push(free - 1);
        });
        return free - 1;
    }

    // Channel after channel goes to bank after bank: a beat takes a write for each part of it
    // that no last bank cuts.
    Cycle transposed(const Instruction& i, int64_t banks) {
        int64_t bank = 0;  // of the beat's first element
        return written(i, [&] { bank = 0; }, [&](int64_t bytes) {
            const int64_t end = bank + bytes / 2;
            bank = end % banks;
            return ceil_div(end, banks);
        });
    }

    // Word after word goes to the banks of a pass, a row's segments after one another; what is
    // copied takes a write a word.
    Cycle by_word(const Instruction& i, int64_t copies, int64_t words_per_pass) {
        const bool gather = i.opcode() == Opcode::GATHER;
        const int64_t taps = gather ? i[GATHER::taps_y] * i[GATHER::taps_x] : 1;
        int64_t place = 0, tap = 0;
        return written(i, [&] { if (tap++ % taps == 0) place = 0; }, [&](int64_t bytes) {
            const int64_t words = bytes / p.granule_bytes;
            if (copies != 1) return words;
            const int64_t end = place + words;
            place = end % words_per_pass;
            return ceil_div(end, words_per_pass);
        });
    }

    // Each beat takes a cycle for each of its words.
    Cycle mask(const Instruction& i) {
        Cycle free = side_free;
        each_segment(i, [&](const Segment& segment) {
            int64_t at = segment.address % p.beat_bytes;
            const int64_t end = at + segment.size;
            each_burst(segment, [&](int64_t count, Cycle offered) {
                for (; count > 0; --count) {
                    const int64_t upto = std::min(end, (at / p.beat_bytes + 1) * p.beat_bytes);
                    const int64_t words = ceil_div(upto - at, p.mask_bytes);
                    const Cycle last = std::max({offered, free, memory_free}) + words - 1;
                    free = last + 1, memory_free = last + p.cycles_per_beat;
                    at = upto;
                }
                last_beats.push(free - 1);
            });
            popped.push(free - 1);
        });
        return free - 1;
    }

    // Beats are repacked to words of C sums, a word a cycle, which may hold them up.
    Cycle start(const Instruction& i) {
        const int64_t per_beat = p.beat_bytes / 4;
        Cycle ready = side_free;  // first cycle in which a beat may be taken
        Cycle finish = 0;
        each_segment(i, [&](const Segment& segment) {
            int64_t offset = segment.address / 4 % per_beat, left = segment.size / 4;
            int64_t held = 0;  // sums held after the beat taken in cycle `at`
            Cycle at = ready;
            each_burst(segment, [&](int64_t count, Cycle offered) {
                for (; count > 0; --count) {
                    const Cycle now = std::max({offered, memory_free, ready});
                    held -= p.cols * std::min(now - at, held / p.cols);
                    const int64_t brought = std::min(per_beat - offset, left);
                    offset = 0, left -= brought;
                    held += brought, at = now;
                    ready = now + std::max<int64_t>(1, held / p.cols);
                    memory_free = now + p.cycles_per_beat;
                }
                last_beats.push(at);
            });
            popped.push(at);
            finish = at + ceil_div(held, p.cols);
            ready = finish + 1;
        });
        return finish;
    }

    const Parameters& p;
    Walk walk;
    Cycle next_accept = 0;
    Cycle taken = -1;       // cycle in which the last segment went into the cutter
    Cycle sent = -1;        // cycle in which the last burst left the cutter
    Last last_beats;        // of bursts
    Last popped;            // of segments: their last steps
    Cycle memory_free = 0;  // first cycle in which memory may offer the next beat
    Cycle side_free = 0;    // first cycle in which the data side may take the next
    Last begun;             // of instructions: when the queue gave them to the data side
};
