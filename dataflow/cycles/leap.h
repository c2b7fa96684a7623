// How a program's repeats are leapt over. Where the instructions that follow are of the same kinds
// as those a period before (kinds.h), and the model's whole state is what it was then, all times
// counted from the present one, every further period takes the same cycles: it need not be run.
#pragma once

#include "kinds.h"

// What the model's state is written to, to be compared: times counted from `now` on, those so long
// ago that nothing can depend on them all alike.
class Snapshot {
  public:
    Snapshot(Cycle now, int64_t pc, Cycle horizon) : now(now), pc(pc), horizon(horizon) {}

    void time(Cycle cycle) { state.push_back(std::max(cycle - now, -horizon)); }
    // Nothing depends on it but its place among every `period` cycles, if it is long ago.
    void phase(Cycle cycle, int64_t period) {
        const Cycle ago = now - cycle;
        state.push_back(ago > horizon ? -horizon - (ago - horizon) % period : -ago);
    }
    void ring(Last& last) {
        last.each([&](Cycle cycle) { time(cycle); });
    }
    void moved(Cycle) {}  // no time depends on it
    void number(int64_t value) { state.push_back(value); }
    void place(int64_t at) { state.push_back(at - pc); }
    void count(int64_t so_far) { counts.push_back(so_far); }

    bool like(const Snapshot& other) const { return state == other.state; }

    Cycle now;
    int64_t pc;
    std::vector<int64_t> counts;

  private:
    Cycle horizon;
    std::vector<int64_t> state;
};

// What moves the model's state on by whole periods.
class Leap {
  public:
    Leap(const Snapshot& before, const Snapshot& now, int64_t periods)
        : cycles((now.now - before.now) * periods), pcs((now.pc - before.pc) * periods) {
        for (size_t n = 0; n < now.counts.size(); ++n) {
            counts.push_back((now.counts[n] - before.counts[n]) * periods);
        }
    }
    void time(Cycle& cycle) { cycle += cycles; }
    void phase(Cycle& cycle, int64_t) { cycle += cycles; }
    void ring(Last& last) {
        last.each([&](Cycle& cycle) { cycle += cycles; });
    }
    void moved(Cycle& cycle) { cycle += cycles; }
    void number(int64_t) {}
    void place(int64_t& at) { at += pcs; }
    void count(int64_t& so_far) { so_far += counts[counted++]; }

    const Cycle cycles;
    const int64_t pcs;

  private:
    std::vector<int64_t> counts;
    size_t counted = 0;
};

// Finds where a program's kinds repeat: at an instruction on the start of a fetched block, how long
// what follows is what was there a period before.
class Repeats {
  public:
    Repeats(std::vector<int32_t> kinds, int64_t phase) : kinds(std::move(kinds)), phase(phase) {
        hashes.reserve(this->kinds.size() + 1);
        hashes.push_back(0);
        for (const int32_t kind : this->kinds) {
            hashes.push_back(hashes.back() * BASE + static_cast<uint64_t>(kind) + 1);
        }
        for (Scale& scale : scales) {
            scale.power = 1;
            for (int64_t n = 0; n < scale.window; ++n) scale.power *= BASE;
            scale.last.assign(SLOTS, -1);
        }
    }

    static constexpr int SCALES = 3;
    struct Repeat {
        int64_t period, end;
    };

    int32_t kind(int64_t pc) const { return kinds[pc]; }
    bool aligned(int64_t pc) const { return (pc + phase) % FETCH_INSTRUCTIONS == 0; }

    // The repeat from `pc` on that begins with as many instructions as the scale's window has; its
    // period is 0 if there is none. To be called with ascending aligned places.
    Repeat at(int number, int64_t pc) {
        Scale& scale = scales[number];
        if (pc + scale.window > static_cast<int64_t>(kinds.size())) return {0, 0};
        const uint64_t hash = hashes[pc + scale.window] - hashes[pc] * scale.power;
        int64_t& last = scale.last[(hash * BASE >> 40) % SLOTS];
        const int64_t before = last;
        last = pc;
        if (before < 0) return {0, 0};
        const int64_t period = pc - before;
        if (period == scale.found.period && pc < scale.found.end) return scale.found;
        int64_t end = pc;
        while (end < static_cast<int64_t>(kinds.size()) && kinds[end] == kinds[end - period]) ++end;
        if (end - pc < scale.window) return {0, 0};
        return scale.found = {period, end};
    }

  private:
    static constexpr uint64_t BASE = 0x9E3779B97F4A7C15u;
    static constexpr size_t SLOTS = 1 << 12;
    struct Scale {
        int64_t window;
        uint64_t power = 1;
        std::vector<int64_t> last;  // places by hash of the window that begins there
        Repeat found = {0, 0};      // the last one
    };

    const std::vector<int32_t> kinds;
    const int64_t phase;
    std::vector<uint64_t> hashes;  // of all instructions before a place
    Scale scales[SCALES] = {{512}, {64}, {8}};
};
