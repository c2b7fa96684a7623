// When the load engine does what: the timing that rtl/load.py describes.
#pragma once

#include <unordered_map>

#include "bursts.h"
#include "segments.h"
#include "timing.h"

class Load {
  public:
    explicit Load(const Parameters& p)
        : p(p), last_beats(p.outstanding), popped(p.segments_ahead), begun(COMMANDS_AHEAD) {}

    Cycle idle = 0;     // first cycle in which `busy` is low after all accepted so far
    int64_t beats = 0;  // read so far

    // When an instruction offered from cycle `earliest` on is accepted and done; `kind` is its
    // number among those of kinds.h, or negative.
    Times run(const Instruction& i, Cycle earliest, int32_t kind) {
        const Cycle accept = std::max({earliest, next_accept, begun.oldest() + 1});
        // Where nothing is under way, all that it does is known from the accept on. So is what
        // the next ones do, as long as they are of the same kinds and as far apart.
        const bool alone = taken < accept && sent < accept && memory_free <= accept &&
                           side_free <= accept + 1 && last_beats.newest() < accept &&
                           popped.newest() < accept;
        if (kind < 0 || (!alone && (chain < 0 || chained == LONGEST_CHAIN))) {
            chain = -1;
            return run_from(i, accept);
        }
        chained = alone ? 0 : chained + 1;
        const Link link{alone ? -1 : chain, kind, alone ? 0 : accept - chain_accept};
        const auto [found, is_new] = links.try_emplace(link, known.size());
        chain = found->second, chain_accept = accept;
        if (is_new && known.size() == MOST_KNOWN) {
            links.erase(found);
            chain = -1;
        }
        const bool sets = i.opcode() == Opcode::TENSOR || i.opcode() == Opcode::WINDOW;
        if (is_new || sets) {
            const int64_t beats_before = beats;
            pushed_beats = pushed_segments = 0;
            const Times times = run_from(i, accept);
            if (is_new && chain >= 0) {
                Known& own = known.emplace_back();
                own = {times, begun.newest(), next_accept, taken, sent, memory_free, {}, {}, 0};
                last_beats.latest(pushed_beats, [&](Cycle c) { own.last_beats.push_back(c); });
                popped.latest(pushed_segments, [&](Cycle c) { own.popped.push_back(c); });
                own.move(-accept);
                own.beats = beats - beats_before;
            }
            return times;
        }
        const Known& own = known[chain];
        begun.push(own.begun + accept);
        next_accept = own.next_accept + accept, taken = own.taken + accept;
        sent = own.sent + accept, memory_free = own.memory_free + accept;
        for (const Cycle cycle : own.last_beats) last_beats.push(cycle + accept);
        for (const Cycle cycle : own.popped) popped.push(cycle + accept);
        beats += own.beats;
        side_free = own.times.signal + accept, idle = side_free + 1;
        return {accept, own.times.release + accept, own.times.signal + accept};
    }

    // As `run`, from the cycle on in which it is accepted.
    Times run_from(const Instruction& i, Cycle accept) {
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
                finish = transposed(i);
                // The last values that a pruner keeps leave it one a cycle, behind its registers.
                if (const int64_t n = walk.pruned(i)) finish += p.sore_stages + n;
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
        state.time(side_free), state.ring(begun), state.count(beats), state.moved(chain_accept);
    }

  private:
    // Instructions behind one that was alone whose doings are kept, and how many are kept in all.
    static constexpr int LONGEST_CHAIN = 12;
    static constexpr size_t MOST_KNOWN = 1 << 15;

    // An instruction behind others: the last of them (-1: it is alone), its kind, and how long
    // after the last it is accepted.
    struct Link {
        int64_t before, kind, apart;
        bool operator==(const Link& other) const {
            return before == other.before && kind == other.kind && apart == other.apart;
        }
    };
    struct HashLink {
        size_t operator()(const Link& link) const {
            uint64_t hash = static_cast<uint64_t>(link.before) * 0x9E3779B97F4A7C15u;
            hash = (hash ^ static_cast<uint64_t>(link.kind)) * 0xBF58476D1CE4E5B9u;
            hash = (hash ^ static_cast<uint64_t>(link.apart)) * 0x94D049BB133111EBu;
            return hash ^ hash >> 31;
        }
    };

    // What an instruction does, all times counted from its accept.
    struct Known {
        Times times;
        Cycle begun, next_accept, taken, sent, memory_free;
        std::vector<Cycle> last_beats, popped;
        int64_t beats;

        void move(Cycle by) {
            times.accept += by, times.release += by, times.signal += by;
            begun += by, next_accept += by, taken += by, sent += by, memory_free += by;
            for (Cycle& cycle : last_beats) cycle += by;
            for (Cycle& cycle : popped) cycle += by;
        }
    };

    // Call `give` for each segment; `taken` is then the cycle in which the cutter takes it.
    template <typename Give>
    void each_segment(const Instruction& i, Give give) {
        walk.segments(i, [&](const Segment& segment) {
            taken = std::max({taken + 1, sent, popped.oldest() + 1});
            ++pushed_segments;
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
            ++pushed_beats;
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
            int64_t left = segment.size + left_over(-segment.size, p.granule_bytes);
            int64_t room =
                p.beat_bytes - (segment.zero ? 0 : left_over(segment.address, p.beat_bytes));
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
    Cycle transposed(const Instruction& i) {
        const int64_t banks = banks_together(i, p);
        int64_t bank = 0;  // of the beat's first element
        return written(i, [&] { bank = 0; }, [&](int64_t bytes) {
            const int64_t end = bank + bytes / 2;
            if (end < banks) return bank = end, int64_t{1};  // the most frequent, without division
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
    int64_t pushed_beats = 0, pushed_segments = 0;  // of the instruction in turn
    std::vector<Known> known;
    std::unordered_map<Link, int64_t, HashLink> links;  // numbers in `known`
    int64_t chain = -1;      // that of the last instruction, or -1
    Cycle chain_accept = 0;  // when that was accepted
    int chained = 0;         // instructions since one that was alone
};
