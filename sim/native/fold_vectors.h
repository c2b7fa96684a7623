// Vectors of binary32, and matrices laid out for them: what the golden model's kernels share.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "floats.h"
#include "plan.h"

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Mask __attribute__((vector_size(LANES * sizeof(float))));
// The same at an address that need not be a multiple of its size.
typedef float Loose __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Loose*>(from); }

inline void store(float* to, Vector value) { *reinterpret_cast<Loose*>(to) = value; }

// Every NaN becomes the canonical one.
inline Vector canonical(Vector value) {
    constexpr int32_t CANONICAL_NAN = 0x7fc00000;
    const Mask number = value == value;
    const Mask bits = reinterpret_cast<Mask>(value);
    return reinterpret_cast<Vector>((number & bits) | (~number & CANONICAL_NAN));
}

// Subtracting +0 keeps every value, -0 included (adding it would not), and compiles to nothing.
inline Vector spread(float value) { return value - Vector{}; }

struct Free {
    void operator()(float* memory) const { std::free(memory); }
};

// Memory of a thread that stays for its next product: to touch fresh memory takes longer than a
// small product.
class Buffer {
    std::unique_ptr<float[], Free> memory;
    long size = 0;

  public:
    // Room for `count` numbers, with what it held if it had that room already.
    float* room(long count) {
        if (count > size) {
            const size_t bytes = (size_t(count) * sizeof(float) + 63) / 64 * 64;
            memory.reset();
            size = 0;
            memory.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
            if (!memory) throw std::bad_alloc();
            size = count;
        }
        return memory.get();
    }
};

// ------------------------------------------------------------------------------ transposition

template <int... I>
inline Vector zip_low(Vector a, Vector b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (I / 2 + I % 2 * LANES)...);
#else
    return __builtin_shuffle(a, b, Mask{(I / 2 + I % 2 * LANES)...});
#endif
}

template <int... I>
inline Vector zip_high(Vector a, Vector b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, ((I + LANES) / 2 + I % 2 * LANES)...);
#else
    return __builtin_shuffle(a, b, Mask{((I + LANES) / 2 + I % 2 * LANES)...});
#endif
}

// Turns LANES vectors, rows of a square, into its columns: each round of zips of the halves moves
// one bit of the row's number to the column's.
inline void turn(Vector (&square)[LANES]) {
    constexpr auto places = std::make_integer_sequence<int, LANES>{};
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
        Vector next[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = zip_low(square[i], square[i + LANES / 2], places);
            next[2 * i + 1] = zip_high(square[i], square[i + LANES / 2], places);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) square[i] = next[i];
    }
}

// ------------------------------------------------------------------------------ packing

inline void widen(const float* from, float* to, long count) { std::copy_n(from, count, to); }
inline float widen_one(float value) { return value; }

// A vector of `count` numbers, at most LANES, and zeros.
template <class T>
inline Vector widened(const T* from, long count) {
    alignas(64) float all[LANES];
    if (count < LANES) std::fill_n(all, LANES, 0.0f);
    widen(from, all, std::min<long>(count, LANES));
    return load(all);
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
inline Vector widened(const uint16_t* from, long count) {
    const __mmask16 there = __mmask16(count < LANES ? (1u << count) - 1 : ~0u);
    return Vector(widen_vector(there, from));
}
inline Vector widened(const float* from, long count) {
    const __mmask16 there = __mmask16(count < LANES ? (1u << count) - 1 : ~0u);
    return Vector(_mm512_maskz_loadu_ps(there, from));
}
inline void store_part(float* to, Vector value, long count) {
    _mm512_mask_storeu_ps(to, __mmask16(count < LANES ? (1u << count) - 1 : ~0u), __m512(value));
}
#else
inline void store_part(float* to, Vector value, long count) {
    if (count >= LANES) return store(to, value);
    alignas(64) float all[LANES];
    store(all, value);
    std::copy_n(all, count, to);
}
#endif

// Lays out numbers (binary16, or binary32) step by step: `steps` rows of `lanes` numbers, `width`
// apart, and zeros up to `filled`. A lane is `lane` numbers from the next one, a step `step`. Where
// steps, not lanes, lie side by side, `filled` is a multiple of LANES.
template <class T>
void pack(const T* from, long lane, long step, long lanes, long steps, float* to, long width,
          long filled) {
    if (lane == 1 || lanes == 1) {
        for (long s = 0; s < steps; s++, to += width) {
            widen(from + s * step, to, lanes);
            if (lanes < filled) std::fill(to + lanes, to + filled, 0.0f);
        }
        return;
    }
    if (step == 1 && filled % LANES == 0) {
        for (long l = 0; l < lanes; l += LANES) {
            const long high = std::min<long>(LANES, lanes - l);
            for (long s = 0; s < steps; s += LANES) {
                const long wide = std::min<long>(LANES, steps - s);
                Vector square[LANES] = {};
                for (long i = 0; i < high; i++)
                    square[i] = widened(from + (l + i) * lane + s, wide);
                turn(square);
                for (long i = 0; i < wide; i++) store(to + (s + i) * width + l, square[i]);
            }
        }
        const long packed = (lanes + LANES - 1) / LANES * LANES;
        if (packed < filled)
            for (long s = 0; s < steps; s++)
                std::fill(to + s * width + packed, to + s * width + filled, 0.0f);
        return;
    }
    for (long s = 0; s < steps; s++, to += width) {
        for (long l = 0; l < lanes; l++) to[l] = widen_one(from[l * lane + s * step]);
        if (lanes < filled) std::fill(to + lanes, to + filled, 0.0f);
    }
}

// Where the rows or columns of a matrix lie: `step` apart, or as a table says.
struct Axis {
    long step;
    const long* at;

    long operator()(long i) const { return at ? at[i] : i * step; }
    // Numbers from `i` on, at most `most`, that lie side by side.
    long run(long i, long most) const {
        if (!at) return step == 1 ? most : std::min(most, 1L);
        long length = std::min(most, 1L);
        while (length < most && at[i + length] == at[i] + length) length++;
        return length;
    }
};

// The same for lanes and steps from `lane0` and `step0` on that lie anywhere.
template <class T>
void pack(const T* from, const Axis& lane, const Axis& step, long lane0, long step0, long lanes,
          long steps, float* to, long width, long filled) {
    if (!lane.at && !step.at)
        return pack(from + lane(lane0) + step(step0), lane.step, step.step, lanes, steps, to, width,
                    filled);
    if (step.step == 1 && lane.step != 1 && filled % LANES == 0) {
        for (long s = 0, run; s < steps; s += run) {
            run = step.run(step0 + s, std::min<long>(LANES, steps - s));
            for (long l = 0; l < lanes; l += LANES) {
                const long high = std::min<long>(LANES, lanes - l);
                Vector square[LANES] = {};
                for (long i = 0; i < high; i++)
                    square[i] = widened(from + lane(lane0 + l + i) + step(step0 + s), run);
                turn(square);
                for (long i = 0; i < run; i++) store(to + (s + i) * width + l, square[i]);
            }
        }
        const long packed = (lanes + LANES - 1) / LANES * LANES;
        for (long s = 0; packed < filled && s < steps; s++)
            std::fill(to + s * width + packed, to + s * width + filled, 0.0f);
        return;
    }
    for (long l = 0, run; l < lanes; l += run) {
        run = lane.run(lane0 + l, lanes - l);
        const T* const first = from + lane(lane0 + l);
        for (long s = 0; s < steps; s++) widen(first + step(step0 + s), to + s * width + l, run);
    }
    for (long s = 0; lanes < filled && s < steps; s++)
        std::fill(to + s * width + lanes, to + s * width + filled, 0.0f);
}

// The other way: `lanes` numbers of each of `steps` rows of `width` go to their places.
inline void unpack(const float* from, long width, long lanes, long steps, float* to, long lane,
                   long step) {
    if (lane == 1 || lanes == 1) {
        for (long s = 0; s < steps; s++, from += width)
            for (long l = 0; l < lanes; l += LANES)
                store_part(to + s * step + l, load(from + l), lanes - l);
        return;
    }
    if (step == 1) {
        for (long l = 0; l < lanes; l += LANES) {
            const long high = std::min<long>(LANES, lanes - l);
            for (long s = 0; s < steps; s += LANES) {
                const long wide = std::min<long>(LANES, steps - s);
                Vector square[LANES] = {};
                for (long i = 0; i < wide; i++) square[i] = load(from + (s + i) * width + l);
                turn(square);
                for (long i = 0; i < high; i++)
                    store_part(to + (l + i) * lane + s, square[i], wide);
            }
        }
        return;
    }
    for (long s = 0; s < steps; s++, from += width)
        for (long l = 0; l < lanes; l++) to[l * lane + s * step] = from[l];
}

// ------------------------------------------------------------------------------ products

// A stack of products, or the part of one that a thread computes.
struct Slice {
    const uint16_t* a;
    Strides a_at;
    const uint16_t* b;  // dense: (depth, cols); N:M: the stored values, (kept, cols)
    Strides b_at;
    const uint8_t* indices;  // N:M only: position of each stored value in its group; as b
    const float* start;      // null: every sum starts at +0
    Strides start_at;
    float* c;
    Strides c_at;
    long count, rows, cols, depth;
    long n, m;  // the pattern
    const volatile int* stop;  // not zero: the caller wants no result any more
    Tables a_tables, b_tables;
    long c_outer;  // as in the plan

    Axis a_rows() const { return {a_at.row, a_tables.rows}; }
    Axis a_cols() const { return {a_at.col, a_tables.cols}; }
    Axis b_rows() const { return {b_at.row, b_tables.rows}; }
    Axis b_cols() const { return {b_at.col, b_tables.cols}; }
};

}  // namespace
