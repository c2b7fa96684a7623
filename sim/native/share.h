// Work shared by threads of one call.

#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "floats.h"

namespace {

// The threads of OpenMP that PyTorch computes with. They wait for work where other threads would
// first have to be started, or be given a processor that these hold.
struct Team {
    void (*run)(void (*work)(void*), void* data, unsigned threads, unsigned flags);  // GOMP_parallel
    int (*size)();  // omp_get_max_threads
};

// Null: every call starts threads of its own. So it is in a forked process, where the team's threads
// are not, and OpenMP would wait for them.
Team team = {};

// Calls work(part) for each part, side by side, and throws what one of them threw.
template <class Work>
void in_parts(long parts, const Work& work) {
    if (parts <= 1) return work(0);
    std::vector<std::exception_ptr> errors(parts);
    std::atomic<long> next{0};
    auto take = [&] {
        const DefaultArithmetic arithmetic;
        for (long part; (part = next++) < parts;) try {
                work(part);
            } catch (...) {
                errors[part] = std::current_exception();
            }
    };
    if (team.run && parts <= team.size()) {
        // All of the team: OpenMP ends threads that another size leaves over.
        team.run([](void* take_of) { (*static_cast<decltype(take)*>(take_of))(); }, &take, 0, 0);
    } else {
        std::vector<std::thread> others;
        std::exception_ptr none_left;
        try {
            for (long other = 1; other < parts; other++) others.emplace_back(take);
        } catch (...) {
            none_left = std::current_exception();
        }
        if (!none_left) take();
        for (std::thread& other : others) other.join();
        if (none_left) std::rethrow_exception(none_left);
    }
    for (const auto& error : errors)
        if (error) std::rethrow_exception(error);
}

// Calls work(from, to, part) for parts of 0 ... length, side by side where there is enough to do.
template <class Work>
void share(long threads, long length, long size, const Work& work) {
    constexpr long ENOUGH = 1 << 15;  // numbers that take longer than to wake a thread
    const long parts = std::max(1L, std::min({threads, length, size / ENOUGH}));
    in_parts(parts, [&](long part) {
        work(length * part / parts, length * (part + 1) / parts, part);
    });
}

}  // namespace

extern "C" void share_with(void (*run)(void (*)(void*), void*, unsigned, unsigned),
                           int (*size)()) {
    team = {run, size};
}
