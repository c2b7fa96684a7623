// When the sequencer hands which instruction to its engine, and what a whole program takes: the
// timing that rtl/sequencer.py describes.
//
// The sequencer takes instructions one after another, the engines work side by side, and nothing
// any of them does depends on another but through queues and semaphores. So one pass over the
// program gives every time as a maximum of sums: no cycle is stepped through.
#pragma once

#include "compute.h"
#include "fetch.h"
#include "load.h"
#include "store.h"
#include "update.h"

// The engines of a device, and what each would do with an instruction of its own.
struct Engines {
    explicit Engines(const Parameters& p) : compute(p), load(p), store(p), update(p) {}

    Times run(Engine engine, const Instruction& i, Cycle earliest) {
        switch (engine) {
            case Engine::load: return load.run(i, earliest);
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
};

// Predict a program of `length` instructions at byte `address`; `times`, if given, receives
// accept, release and signal of each instruction, -1 for FENCE and END and behind END.
inline Found predict(const uint8_t* program, int64_t length, int64_t address, const Parameters& p,
                     Times* times) {
    Fetch fetch(address, length, p);
    Engines engines(p);
    std::vector<Last> accepts(ENGINES, Last(p.queue_depth));
    Semaphore semaphores[SEMAPHORES];
    Cycle dispatched = -1;
    Found found = {};
    const auto stop = [&](Verdict verdict, int64_t pc, int64_t semaphore, int64_t engine,
                          int64_t other) {
        found.verdict = int64_t(verdict);
        found.pc = pc, found.semaphore = semaphore, found.engine = engine, found.other = other;
        return found;
    };
    if (times) std::fill_n(times, length, Times{-1, -1, -1});

    for (int64_t pc = 0; pc < length; ++pc) {
        const Instruction i(program + pc * INSTRUCTION_BYTES);
        const Cycle taken = std::max(fetch.when(pc), dispatched + 1);
        fetch.taken(taken);
        const Cycle decided = taken + 1 + CHECK_CYCLES;
        if (i.opcode() == Opcode::FENCE || i.opcode() == Opcode::END) {
            dispatched = std::max(decided, engines.idle());
            if (i.opcode() == Opcode::FENCE) continue;
            for (int n = 0; n < SEMAPHORES; ++n) {
                if (const Semaphore::Raise* raise = semaphores[n].too_high()) {
                    found.cycles = raise->cycle;
                    return stop(Verdict::RAISED_TOO_HIGH, raise->pc, n, semaphores[n].raiser, 0);
                }
            }
            found.verdict = int64_t(Verdict::PREDICTED);
            found.cycles = dispatched + 1;
            found.beats_read = engines.load.beats;
            found.beats_written = engines.store.beats;
            found.compute_cycles = engines.compute.busy_cycles;
            return found;
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
        const Times moment = engines.run(Engine(engine), i, through + 1);
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
    return stop(Verdict::NO_END, length - 1, 0, 0, 0);
}
