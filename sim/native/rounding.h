// Numbers rounded to binary16, and a count of those that lose more than digits by it.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "floats.h"
#include "plan.h"

namespace {

// Magnitudes as bits of binary32. To nearest, ties to even: at or above OVERFLOWS a number becomes
// infinite, at or below VANISHES zero, and between that and NORMAL a subnormal number.
constexpr int32_t OVERFLOWS = 0x477ff000;  // 65520
constexpr int32_t VANISHES = 0x33000000;   // 2**-25
constexpr int32_t NORMAL = 0x387fe000;     // 2**-14 - 2**-25
constexpr int32_t INFINITE = 0x7f800000;

struct Bfloat {
    uint16_t bits;
};

inline float single(double x) { return float(x); }
inline float single(Bfloat x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float made;
    std::memcpy(&made, &bits, sizeof made);
    return made;
}

inline int32_t magnitude(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffff;
}

inline void halves(const float* from, uint16_t* to, long count) {
#if defined(__F16C__)
    narrow(from, to, count);
    // What is past the last vector is not for `narrow_one` if it is large.
    for (long i = count / 8 * 8; i < count; i++) {
#else
    for (long i = 0; i < count; i++) {
#endif
        const int32_t bits = magnitude(from[i]);
        const uint16_t sign = std::signbit(from[i]) ? 0x8000 : 0;
        if (bits < OVERFLOWS)
            to[i] = narrow_one(from[i]);
        else
            to[i] = sign | (bits > INFINITE ? 0x7e00 : 0x7c00);
    }
}

// Whether low <= x < high, for positive numbers: one comparison.
inline int32_t within(int32_t x, int32_t low, int32_t high) {
    return uint32_t(x - low) < uint32_t(high - low);
}

constexpr long RUN = 256;  // elements at a time

// Whether all of some numbers are zeros or in binary16's normal range: mostly so, and soon seen.
inline bool harmless(const float* x, long count) {
    uint32_t least = UINT32_MAX, most = 0;
    for (long i = 0; i < count; i++) {
        const uint32_t bits = uint32_t(magnitude(x[i]));
        most = std::max(most, bits);
        least = std::min(least, bits - 1);  // a zero is the greatest number there
    }
    return most < uint32_t(OVERFLOWS) && least >= uint32_t(NORMAL - 1);
}

inline void count_lost(const float* x, long count, long* lost) {
    if (harmless(x, count)) return;
    int32_t overflowed = 0, vanished = 0, subnormal = 0;
    for (long i = 0; i < count; i++) {
        const int32_t bits = magnitude(x[i]);
        overflowed += within(bits, OVERFLOWS, INFINITE);
        vanished += within(bits, 1, VANISHES + 1);
        subnormal += within(bits, VANISHES + 1, NORMAL);
    }
    lost[0] += overflowed;
    lost[1] += vanished;
    lost[2] += subnormal;
}

// What binary32 already takes for infinite or for zero.
inline void count_lost_before(const double* x, long count, long* lost) {
    int32_t overflowed = 0, vanished = 0;
    for (long i = 0; i < count; i++) {
        const float value = float(x[i]);
        overflowed += (magnitude(value) == INFINITE) & std::isfinite(x[i]);
        vanished += (value == 0) & (x[i] != 0);
    }
    lost[0] += overflowed;
    lost[1] += vanished;
}
inline void count_lost_before(const Bfloat*, long, long*) {}

inline void round_all(const float* x, long count, uint16_t* to, long* lost) {
    for (; count > 0; count -= RUN, x += RUN, to += RUN) {
        const long here = std::min(RUN, count);
        count_lost(x, here, lost);
        halves(x, to, here);
    }
}

template <class T>
inline void round_all(const T* x, long count, uint16_t* to, long* lost) {
    float singles[RUN];
    for (; count > 0; count -= RUN, x += RUN, to += RUN) {
        const long here = std::min(RUN, count);
        for (long i = 0; i < here; i++) singles[i] = single(x[i]);
        count_lost_before(x, here, lost);
        round_all(singles, here, to, lost);
    }
}

// Rounds `count` numbers of a kind: float32, float64 (by way of float32, as torch does) or bfloat16.
// Adds to `lost` how many finite ones became infinite, how many became zero, and how many subnormal.
inline void round_to_halves(const void* x, long kind, long count, uint16_t* to, long* lost) {
    if (kind == SINGLE)
        round_all(static_cast<const float*>(x), count, to, lost);
    else if (kind == DOUBLE)
        round_all(static_cast<const double*>(x), count, to, lost);
    else
        round_all(static_cast<const Bfloat*>(x), count, to, lost);
}

}  // namespace
