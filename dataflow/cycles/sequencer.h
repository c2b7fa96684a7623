// When the sequencer hands which instruction to its engine, and what a whole program takes: the
// timing that rtl/sequencer.py describes.
//
// The sequencer takes instructions one after another, the engines work side by side, and nothing
// any of them does depends on another but through queues and semaphores. So one pass over the
// program gives every time as a maximum of sums: no cycle is stepped through.
#pragma once

#include "compute.h"
#include "fetch.h"
#include "leap.h"
#include "load.h"
#include "store.h"
#include "update.h"

// The engines of a device, and what each would do with an instruction of its own.
struct Engines {
    explicit Engines(const Parameters& p) : compute(p), load(p), store(p), update(p) {}

    Times run(Engine engine, const Instruction& i, Cycle earliest, int32_t kind = -1) {
        switch (engine) {
            case Engine::load: return load.run(i, earliest, kind);
            case Engine::multiply: return compute.run(i, earliest);
            case Engine::store: return store.run(i, earliest);
            case Engine::update: return update.run(i, earliest);
        }
        return {};
    }
    Cycle idle() const {
        return std::max({load.idle, compute.idle, store.idle, update.idle});
    }

    Compute compute;
    Load load;
    Store store;
    Update update;
};

// A counting semaphore, as the cycles in which it was raised, and by which instructions, and the
// cycles in which waits took from it. The order of the program is that of time only where one
// engine raises and one engine waits.
struct Semaphore {
    struct Raise {
        Cycle cycle;
        int64_t pc;
    };
    std::vector<Raise> raises;
    std::vector<Cycle> takes;
    int raiser = -1, waiter = -1;

    // The first raise that the counter has no room for, or null. Of raises and takes in one cycle
    // both count: each raise needs the take SEMAPHORE_MAX before it to be no later.
    const Raise* too_high() const {
        for (size_t n = SEMAPHORE_MAX; n < raises.size(); ++n) {
            const size_t take = n - SEMAPHORE_MAX;
            if (take >= takes.size() || takes[take] > raises[n].cycle) return &raises[n];
        }
        return nullptr;
    }
};

// What is found; `pc` and what follows are of the instruction that no prediction holds for.
struct Found {
    int64_t verdict, cycles, beats_read, beats_written, compute_cycles;
    int64_t pc, semaphore, engine, other;
    int64_t leapt;  // instructions that were not run
};

// A program on a device.
class Model {
  public:
    // A program of `length` instructions at byte `address`; `times`, if given, receives accept,
    // release and signal of each instruction, -1 for FENCE and END and behind END.
    Model(const uint8_t* program, int64_t length, int64_t address, const Parameters& p,
          Times* times)
        : p(p),
          program(program),
          length(length),
          first(address / INSTRUCTION_BYTES),
          times(times),
          fetch(address, length, p),
          engines(p),
          accepts(ENGINES, Last(p.queue_depth)) {
        if (times) std::fill_n(times, length, Times{-1, -1, -1});
    }

    Found run(bool leaps) {
        if (leaps) {
            run_with_leaps();
        } else {
            for (int64_t pc = 0; pc < length && !done; ++pc) step(pc);
        }
        if (!done) stop(Verdict::NO_END, length - 1, 0, 0, 0);
        return found;
    }

  private:
    void stop(Verdict verdict, int64_t pc, int64_t semaphore, int64_t engine, int64_t other) {
        done = true;
        found.verdict = int64_t(verdict);
        found.pc = pc, found.semaphore = semaphore, found.engine = engine, found.other = other;
    }

    // Run an instruction of a kind (kinds.h), or a negative one.
    void step(int64_t pc, int32_t kind = -1) {
        const Instruction i(program + pc * INSTRUCTION_BYTES);
        const Cycle taken = std::max(fetch.when(pc), dispatched + 1);
        fetch.taken(taken);
        const Cycle decided = taken + 1 + CHECK_CYCLES;
        if (i.opcode() == Opcode::FENCE || i.opcode() == Opcode::END) {
            dispatched = std::max(decided, engines.idle());
            if (i.opcode() == Opcode::END) end();
            return;
        }
        const int engine = ENGINE_OF[int(i.opcode())];
        if (engine < 0) return stop(Verdict::NO_INSTRUCTION, pc, 0, 0, 0);
        if (i.opcode() == Opcode::STORE && engines.store.word_bytes(i) == 0) {
            return stop(Verdict::NO_INSTRUCTION, pc, 0, 0, 0);
        }
        dispatched = std::max(decided, accepts[engine].oldest() + 1);
        // At the head of its queue, an instruction takes its semaphores; a cycle later it is offered.
        Cycle through = std::max(dispatched, accepts[engine].newest()) + 1;
        for (int64_t mask = i[HEADER::wait]; mask; mask &= mask - 1) {
            const int n = __builtin_ctzll(mask);
            Semaphore& semaphore = semaphores[n];
            if (semaphore.waiter >= 0 && semaphore.waiter != engine) {
                return stop(Verdict::TWO_WAITERS, pc, n, engine, semaphore.waiter);
            }
            semaphore.waiter = engine;
            const size_t taken_before = semaphore.takes.size();
            if (taken_before == semaphore.raises.size()) {
                return stop(Verdict::NOTHING_RAISES, pc, n, engine, 0);
            }
            through = std::max(through, semaphore.raises[taken_before].cycle + 1);
        }
        const Times moment = engines.run(Engine(engine), i, through + 1, kind);
        for (int64_t mask = i[HEADER::wait]; mask; mask &= mask - 1) {
            semaphores[__builtin_ctzll(mask)].takes.push_back(through);
        }
        accepts[engine].push(moment.accept);
        if (times) times[pc] = moment;
        for (const auto& [field, cycle] :
             {std::pair(HEADER::release, moment.release), std::pair(HEADER::signal, moment.signal)}) {
            for (int64_t mask = i[field]; mask; mask &= mask - 1) {
                const int n = __builtin_ctzll(mask);
                Semaphore& semaphore = semaphores[n];
                if (semaphore.raiser >= 0 && semaphore.raiser != engine) {
                    return stop(Verdict::TWO_RAISERS, pc, n, engine, semaphore.raiser);
                }
                semaphore.raiser = engine;
                if (!semaphore.raises.empty() && cycle < semaphore.raises.back().cycle) {
                    return stop(Verdict::OUT_OF_ORDER, pc, n, engine, 0);
                }
                semaphore.raises.push_back({cycle, pc});
            }
        }
    }

    void end() {
        for (int n = 0; n < SEMAPHORES; ++n) {
            if (const Semaphore::Raise* raise = semaphores[n].too_high()) {
                found.cycles = raise->cycle;
                return stop(Verdict::RAISED_TOO_HIGH, raise->pc, n, semaphores[n].raiser, 0);
            }
        }
        done = true;
        found.verdict = int64_t(Verdict::PREDICTED);
        found.cycles = dispatched + 1;
        found.beats_read = engines.load.beats;
        found.beats_written = engines.store.beats;
        found.compute_cycles = engines.compute.busy_cycles;
    }

    // Show what all that follows depends on, but for the kinds of instructions.
    template <typename State>
    void show(State& state) {
        fetch.show(state);
        engines.load.show(state), engines.compute.show(state);
        engines.store.show(state), engines.update.show(state);
        for (Last& last : accepts) state.ring(last);
    }

    // A repeat that is being followed, and the model's states a period apart.
    struct Followed {
        int64_t period = 0, end = 0, next = 0;
        std::vector<Snapshot> before;
        std::vector<std::pair<size_t, size_t>> sizes[SEMAPHORES];
    };

    void run_with_leaps() {
        Kinds kinds(p);
        std::vector<int32_t> all;
        all.reserve(length);
        for (int64_t pc = 0; pc < length; ++pc) {
            all.push_back(kinds.next(Instruction(program + pc * INSTRUCTION_BYTES)));
        }
        // The last block that is fetched is of less: it is no repeat.
        all.resize(std::max<int64_t>(0, length - 2 * FETCH_INSTRUCTIONS));
        const int64_t most = all.size();
        Repeats repeats(std::move(all), first);
        Followed followed[Repeats::SCALES];
        for (int64_t pc = 0; pc < length && !done;) {
            if (pc < most && repeats.aligned(pc)) {
                for (int n = 0; n < Repeats::SCALES; ++n) follow(repeats, followed, n, pc);
                const int64_t leapt = leap(followed, pc);
                if (leapt) {
                    pc += leapt;
                    continue;
                }
            }
            step(pc, pc < most ? repeats.kind(pc) : -1);
            ++pc;
        }
    }

    // Follow the repeat of a scale that begins here, if there is one worth it, or remember a state.
    void follow(Repeats& repeats, Followed* followed, int scale, int64_t pc) {
        Followed& own = followed[scale];
        const Repeats::Repeat here = repeats.at(scale, pc);
        if (own.period && pc > own.next) own.period = 0;
        if (!own.period) {
            // It must have a period to be run, and one to be leapt over.
            if (!here.period || here.end - pc < 2 * here.period) return;
            for (int other = 0; other < Repeats::SCALES; ++other) {
                if (followed[other].period == here.period) return;
            }
            own.period = here.period, own.end = here.end, own.next = pc;
            own.before.clear();
            for (auto& sizes : own.sizes) sizes.clear();
        }
    }

    Snapshot snapshot(int64_t pc) {
        Snapshot made(dispatched, pc, horizon);
        show(made);
        for (Semaphore& semaphore : semaphores) {
            made.number(semaphore.raiser), made.number(semaphore.waiter);
            made.number(semaphore.raises.size() - semaphore.takes.size());
            for (size_t n = semaphore.takes.size(); n < semaphore.raises.size(); ++n) {
                made.time(semaphore.raises[n].cycle);
            }
            made.time(semaphore.raises.empty() ? NEVER : semaphore.raises.back().cycle);
        }
        return made;
    }

    // Leap over what is known here; returns over how many instructions.
    int64_t leap(Followed* followed, int64_t pc) {
        for (int scale = 0; scale < Repeats::SCALES; ++scale) {
            Followed& own = followed[scale];
            if (!own.period || own.next != pc) continue;
            Snapshot now = snapshot(pc);
            // No farther than where a longer repeat's next state is to be remembered.
            int64_t end = own.end;
            for (int longer = 0; longer < scale; ++longer) {
                if (followed[longer].period) end = std::min(end, followed[longer].next);
            }
            for (size_t n = own.before.size(); n-- > 0;) {
                const Snapshot& then = own.before[n];
                const int64_t periods = (end - pc) / (pc - then.pc);
                if (periods == 0) break;
                if (!now.like(then)) continue;
                const int64_t leapt = periods * (pc - then.pc);
                leap_from(then, now, own.sizes, n, periods);
                // What is left of the repeat may be followed again.
                for (int other = scale; other < Repeats::SCALES; ++other) {
                    followed[other].period = 0;
                }
                return leapt;
            }
            own.next += own.period;
            if (own.end - own.next < own.period || own.before.size() == MOST_STATES) {
                own.period = 0;
                continue;
            }
            own.before.push_back(std::move(now));
            for (int n = 0; n < SEMAPHORES; ++n) {
                own.sizes[n].emplace_back(semaphores[n].raises.size(), semaphores[n].takes.size());
            }
        }
        return 0;
    }

    void leap_from(const Snapshot& then, const Snapshot& now,
                   const std::vector<std::pair<size_t, size_t>>* sizes, size_t number,
                   int64_t periods) {
        const int64_t period = now.pc - then.pc;
        const Cycle apart = now.now - then.now;
        Leap leap(then, now, periods);
        show(leap);
        dispatched += leap.cycles;
        for (int n = 0; n < SEMAPHORES; ++n) {
            auto& [raises, takes, raiser, waiter] = semaphores[n];
            const auto [first_raise, first_take] = sizes[n][number];
            const size_t more_raises = raises.size() - first_raise;
            const size_t more_takes = takes.size() - first_take;
            for (size_t k = 0; k < periods * more_raises; ++k) {
                const Semaphore::Raise before = raises[raises.size() - more_raises];
                raises.push_back({before.cycle + apart, before.pc + period});
            }
            for (size_t k = 0; k < periods * more_takes; ++k) {
                takes.push_back(takes[takes.size() - more_takes] + apart);
            }
        }
        const int64_t leapt = periods * period;
        if (times) {
            for (int64_t pc = now.pc; pc < now.pc + leapt; ++pc) {
                times[pc] = times[pc - period];
                if (times[pc].accept < 0) continue;
                times[pc].accept += apart, times[pc].release += apart, times[pc].signal += apart;
            }
        }
        // Of TENSORs and WINDOWs the last ones hold.
        for (int64_t pc = now.pc + leapt - period; pc < now.pc + leapt; ++pc) {
            const Instruction i(program + pc * INSTRUCTION_BYTES);
            if (i.opcode() == Opcode::TENSOR || i.opcode() == Opcode::WINDOW) engines.load.set(i);
        }
        found.leapt += leapt;
    }

    // States that are compared before a repeat is given up.
    static constexpr size_t MOST_STATES = 16;

    const Parameters& p;
    const uint8_t* program;
    const int64_t length, first;
    Times* times;
    Fetch fetch;
    Engines engines;
    std::vector<Last> accepts;
    Semaphore semaphores[SEMAPHORES];
    Cycle dispatched = -1;
    // Nothing depends on how long ago what is older was: not the chain's sums, nor the bursts of
    // instructions that the queue has room for, one after the other.
    const Cycle horizon =
        p.rows * p.interleave + p.write_latency + 64 +
        2 * p.instruction_queue *
            (p.read_latency + 4 +
             FETCH_INSTRUCTIONS * INSTRUCTION_BYTES / p.fetch_beat_bytes * p.cycles_per_beat);
    bool done = false;
    Found found = {};
};
