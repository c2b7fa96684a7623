// Work shared by threads of one call.

#pragma once

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

#include "floats.h"

namespace {

// Calls work(from, to, part) for parts of 0 ... length, side by side where there is enough to do.
template <class Work>
void share(long threads, long length, long size, const Work& work) {
    constexpr long ENOUGH = 1 << 16;  // numbers that take longer than to start a thread
    const long parts = std::max(1L, std::min({threads, length, size / ENOUGH}));
    std::vector<std::thread> others;
    std::vector<std::exception_ptr> errors(parts);
    const auto run = [&](long part) {
        try {
            const DefaultArithmetic arithmetic;
            work(length * part / parts, length * (part + 1) / parts, part);
        } catch (...) {
            errors[part] = std::current_exception();
        }
    };
    try {
        for (long part = 1; part < parts; part++) others.emplace_back(run, part);
    } catch (...) {
        errors[0] = std::current_exception();
    }
    if (!errors[0]) run(0);
    for (std::thread& other : others) other.join();
    for (const auto& error : errors)
        if (error) std::rethrow_exception(error);
}

}  // namespace
