// Operands of precision.cpp, cut into bands of binary16 parts. Why this is so, says precision.py.
//
// What shares a scale is a line, the elements along the depth: a row of a left operand, a column of a
// right one. An operand is (outer, depth, inner), without gaps, and has (outer, inner) lines: either
// inner = 1, and outer is its stack and lines, or outer is its stack and inner its lines.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "floats.h"
#include "share.h"

namespace {

// A band's largest element is scaled to [2**(TOP - 1), 2**TOP).
constexpr int TOP = 15;
// Binades in a band, less one. Its least element is 2**-1 or more: the 24th bit of that is
// binary16's least subnormal number, 2**-24.
constexpr int BAND = 15;

constexpr int PARTS = 3;
// Parts of A and B that are multiplied, smallest products first.
constexpr std::pair<int, int> PASSES[] = {{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};

// -------------------------------------------------------------------------------------- cutting

// Magnitudes are compared as integers, which have the same order: compilers turn that into vectors.
template <class T>
using Int = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// The same bits as another type.
template <class To, class From>
inline To as(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To made;
    std::memcpy(&made, &x, sizeof made);
    return made;
}

template <class T>
inline Int<T> magnitude(T x) {
    return as<Int<T>>(x) & std::numeric_limits<Int<T>>::max();
}

// 2**exponent, a normal number; many times faster than ldexp.
template <class T>
inline T power(int exponent) {
    using Limits = std::numeric_limits<T>;
    return as<T>(Int<T>(exponent + Limits::max_exponent - 1) << (Limits::digits - 1));
}

inline bool nonzero(uint16_t half) { return half & 0x7fff; }

// ------------------------------------------------------------------------------------- memory

// Memory for the parts of operands, kept for the next product: to touch fresh memory takes as long
// as the cutting.
class Planes {
    struct Block {
        std::unique_ptr<uint16_t[]> memory;
        long size = 0;
    };
    static std::mutex& lock() {
        static std::mutex mutex;
        return mutex;
    }
    static std::vector<Block>& spare() {
        static std::vector<Block> blocks;
        return blocks;
    }
    static constexpr size_t SPARE = 4;
    static constexpr long LARGEST = 1 << 25;  // numbers of a block that is kept

    Block block;

  public:
    // Room for `size` numbers, not set.
    explicit Planes(long size) {
        {
            const std::lock_guard<std::mutex> guard(lock());
            auto& blocks = spare();
            for (size_t i = 0; i < blocks.size(); i++)
                if (blocks[i].size >= size) {
                    std::swap(block, blocks[i]);
                    blocks.erase(blocks.begin() + long(i));
                    return;
                }
        }
        block.memory.reset(new uint16_t[size]);
        block.size = size;
    }
    ~Planes() {
        if (block.size > LARGEST) return;
        const std::lock_guard<std::mutex> guard(lock());
        auto& blocks = spare();
        if (blocks.size() == SPARE) {
            const auto least = std::min_element(
                blocks.begin(), blocks.end(),
                [](const Block& a, const Block& b) { return a.size < b.size; });
            if (least->size < block.size) std::swap(*least, block);
        } else {
            blocks.reserve(SPARE);
            blocks.push_back(std::move(block));
        }
    }
    Planes(const Planes&) = delete;
    Planes& operator=(const Planes&) = delete;
    uint16_t* get() const { return block.memory.get(); }
};

// -------------------------------------------------------------------------------------- cutting

// The elements of the first band: all but a few, as a rule.
struct Band {
    Planes parts;                    // (PARTS, outer, depth, inner); zeros for other bands
    std::vector<int32_t> exponents;  // of the lines: elements are sum(parts) * 2**exponent
    std::vector<uint16_t> depths;    // not zero where there are elements at a place of the depth
    bool used[PARTS] = {};           // whether a part is not zero throughout

    Band(long size, long lines, long depth)
        : parts(PARTS * size), exponents(lines), depths(depth) {}
};

// An element of a further band, and its place in the depth.
struct Entry {
    long place;
    uint16_t parts[PARTS];
};

struct FurtherBand {
    std::vector<Entry> entries;      // line by line, places ascending
    std::vector<long> begins;        // where each line's entries begin, and where the last's end
    std::vector<int32_t> exponents;  // of the lines
    bool used[PARTS] = {};

    long of_product(long number, long lines) const {
        return begins[(number + 1) * lines] - begins[number * lines];
    }
};

// What is below the first band.
template <class T>
struct Rest {
    long line, place;
    T value;
};

struct Operand {
    long outer, depth, inner;
    long lines;  // of a product
    bool finite = true;
    std::unique_ptr<Band> first;  // null: all elements are zero
    std::vector<FurtherBand> further;

    long size() const { return outer * depth * inner; }
    size_t bands() const { return first ? 1 + further.size() : 0; }

    // Numbers from one product to the next, and from one line and place to the next.
    long product_step() const { return lines * depth; }
    long line_step() const { return inner == 1 ? depth : 1; }
    long place_step() const { return inner == 1 ? 1 : inner; }
};

// What a band takes of a line: magnitudes from `low` on, times `first` times `second`. Two powers
// of two, as one of both need not be a number; what lies between their products lies between the
// ends, so they are exact.
template <class T>
struct Scale {
    Int<T> low;
    T first, second;
    int32_t exponent;

    // Of a line whose largest magnitude is `largest`.
    explicit Scale(Int<T> largest) {
        using Limits = std::numeric_limits<T>;
        int top = int(largest >> (Limits::digits - 1)) - (Limits::max_exponent - 2);
        if (top < Limits::min_exponent) std::frexp(as<T>(largest), &top);  // subnormal
        // The largest is in [2**(top - 1), 2**top).
        exponent = largest ? top - TOP : 0;
        const int least = top - 1 - BAND;
        low = magnitude(least < Limits::min_exponent ? std::ldexp(T(1), least) : power<T>(least));
        if (!largest) low = 0;
        const int half = -exponent / 2;
        first = power<T>(half);
        second = power<T>(-exponent - half);
    }
};

// Scales of lines side by side.
template <class T>
struct Scales {
    std::vector<Int<T>> low;
    std::vector<T> first, second;

    explicit Scales(long lines) : low(lines), first(lines), second(lines) {}
    void set(long i, const Scale<T>& scale) {
        low[i] = scale.low;
        first[i] = scale.first;
        second[i] = scale.second;
    }
};

// Elements that are worked on at a time, a multiple of 8.
constexpr long RUN = 256;

// Cuts `count` elements, at most RUN: all of line `line`, or from there on each of its own (ACROSS).
// Parts are `plane` apart. Returns whether there are elements below the band.
template <bool ACROSS, class T>
bool cut_run(const T* x, long count, const Scales<T>& scales, long line, uint16_t* parts,
             long plane, bool* used) {
    const Int<T> infinity = magnitude(std::numeric_limits<T>::infinity());
    const Int<T>* low = &scales.low[line];
    const T *first = &scales.first[line], *second = &scales.second[line];
    T rest[RUN];
    float rounded[RUN];
    uint16_t halves[RUN];
    // Conversions go by the vector: what is past the end is zero.
    const long filled = (count + 7) / 8 * 8;
    Int<T> below = 0;
    for (long i = 0; i < count; i++) {
        const long own = ACROSS ? i : 0;
        const Int<T> size = magnitude(x[i]);
        // Masks, as compilers make no vectors of branches.
        const Int<T> now = -Int<T>((size >= low[own]) & (size < infinity));
        below |= size & -Int<T>(size < low[own]);
        rest[i] = as<T>(as<Int<T>>(x[i]) & now) * first[own] * second[own];
    }
    std::fill(rest + count, rest + filled, T(0));
    for (int p = 0; p < PARTS; p++) {
        // A double goes by way of float32: the next part takes what that leaves.
        for (long i = 0; i < filled; i++) rounded[i] = float(rest[i]);
        narrow(rounded, halves, filled);
        widen(halves, rounded, filled);
        uint16_t any = 0;
        for (long i = 0; i < filled; i++) {
            rest[i] -= T(rounded[i]);
            any |= halves[i];
        }
        std::copy_n(halves, count, parts + p * plane);
        used[p] |= nonzero(any);
    }
    return below != 0;
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
// The same for binary32 by the vector: what lies between the steps stays in registers.
template <bool ACROSS>
bool cut_run(const float* x, long count, const Scales<float>& scales, long line, uint16_t* parts,
             long plane, bool* used) {
    constexpr int LANES = 16;
    const __m512i infinity = _mm512_set1_epi32(0x7f800000), sign = _mm512_set1_epi32(0x7fffffff);
    const auto own = [&](const auto* values, __mmask16 there, long i) {
        return _mm512_castps_si512(
            ACROSS ? _mm512_maskz_loadu_ps(there, (const float*)(values + line + i))
                   : _mm512_set1_ps(*(const float*)(values + line)));
    };
    __mmask16 below = 0;
    __m256i any[PARTS] = {};
    for (long i = 0; i < count; i += LANES) {
        const __mmask16 there = __mmask16(count - i < LANES ? (1u << (count - i)) - 1 : ~0u);
        const __m512 value = _mm512_maskz_loadu_ps(there, x + i);
        const __m512i size = _mm512_and_si512(_mm512_castps_si512(value), sign);
        const __m512i low = own(scales.low.data(), there, i);
        const __mmask16 under = _mm512_mask_cmplt_epi32_mask(there, size, low);
        below |= _mm512_mask_test_epi32_mask(under, size, size);
        const __mmask16 now =
            _mm512_mask_cmplt_epi32_mask(__mmask16(there & ~under), size, infinity);
        const __m512 first = _mm512_castsi512_ps(own(scales.first.data(), there, i));
        const __m512 second = _mm512_castsi512_ps(own(scales.second.data(), there, i));
        __m512 rest = _mm512_maskz_mul_ps(now, _mm512_maskz_mul_ps(now, value, first), second);
        for (int p = 0; p < PARTS; p++) {
            const __m256i half =
                _mm512_maskz_cvtps_ph(there, rest, _MM_FROUND_TO_NEAREST_INT);
            rest = _mm512_maskz_sub_ps(there, rest, _mm512_maskz_cvtph_ps(there, half));
            _mm256_mask_storeu_epi16(parts + p * plane + i, there, half);
            any[p] = _mm256_or_si256(any[p], half);
        }
    }
    for (int p = 0; p < PARTS; p++)
        used[p] |= _mm256_test_epi16_mask(any[p], _mm256_set1_epi16(0x7fff)) != 0;
    return below != 0;
}
#endif

// What a thread finds while it cuts its share of the first band, and its scales.
template <class T>
struct Found {
    std::vector<uint16_t> depths;
    std::vector<Rest<T>> rest;
    bool used[PARTS] = {};
    Scales<T> scales;
    std::vector<Int<T>> largest;

    Found(long depth, long inner) : depths(depth), scales(inner), largest(inner) {}
};

// Cuts the first band out of rows `from` to `to` of a left operand.
template <class T>
void cut_rows(const T* x, const Operand& of, Band& band, long from, long to, Found<T>& found) {
    const Int<T> infinity = magnitude(std::numeric_limits<T>::infinity());
    const long depth = of.depth, plane = of.size();
    Scales<T>& scales = found.scales;
    for (long o = from; o < to; o++) {
        const T* row = x + o * depth;
        uint16_t* parts = band.parts.get() + o * depth;
        Int<T> largest = 0;
        for (long k = 0; k < depth; k++) {
            const Int<T> size = magnitude(row[k]);
            largest = std::max(largest, size < infinity ? size : 0);
        }
        const Scale<T> scale(largest);
        scales.set(0, scale);
        band.exponents[o] = scale.exponent;
        for (long k = 0; k < depth; k += RUN) {
            const long count = std::min(RUN, depth - k);
            if (!cut_run<false>(row + k, count, scales, 0, parts + k, plane, found.used)) continue;
            for (long i = k; i < k + count; i++)
                if (magnitude(row[i]) < scale.low && row[i] != 0)
                    found.rest.push_back({o, i, row[i]});
        }
        for (long k = 0; k < depth; k++) found.depths[k] |= uint16_t(parts[k] << 1);
    }
}

// … or out of columns `from` to `to` of a right operand's product `o`.
template <class T>
void cut_columns(const T* x, const Operand& of, Band& band, long o, long from, long to,
                 Found<T>& found) {
    const Int<T> infinity = magnitude(std::numeric_limits<T>::infinity());
    const long depth = of.depth, inner = of.inner, plane = of.size(), width = to - from;
    const long start = o * depth * inner + from;
    Scales<T>& scales = found.scales;
    std::vector<Int<T>>& largest = found.largest;
    std::fill_n(largest.begin(), width, 0);
    for (long k = 0; k < depth; k++)
        for (long i = 0; i < width; i++) {
            const Int<T> size = magnitude(x[start + k * inner + i]);
            largest[i] = std::max(largest[i], size < infinity ? size : 0);
        }
    for (long i = 0; i < width; i++) {
        const Scale<T> scale(largest[i]);
        scales.set(i, scale);
        band.exponents[o * inner + from + i] = scale.exponent;
    }
    for (long k = 0; k < depth; k++) {
        const T* row = x + start + k * inner;
        uint16_t* parts = band.parts.get() + start + k * inner;
        for (long i = 0; i < width; i += RUN) {
            const long count = std::min(RUN, width - i);
            if (!cut_run<true>(row + i, count, scales, i, parts + i, plane, found.used)) continue;
            for (long c = i; c < i + count; c++)
                if (magnitude(row[c]) < scales.low[c] && row[c] != 0)
                    found.rest.push_back({o * inner + from + c, k, row[c]});
        }
        uint16_t any = 0;
        for (long i = 0; i < width; i++) any |= parts[i];
        found.depths[k] |= uint16_t(any << 1);
    }
}

// Cuts what the first band left, band after band. Of each line, places ascend in `found`.
template <class T>
void cut_further(const std::vector<Rest<T>>& found, Operand& to) {
    const long lines = to.outer * to.inner;
    std::vector<long> begins(lines + 1), places(found.size());
    std::vector<T> values(found.size());
    for (const auto& r : found) begins[r.line + 1]++;
    for (long line = 0; line < lines; line++) begins[line + 1] += begins[line];
    std::vector<long> next = begins;
    for (const auto& r : found) {
        const long at = next[r.line]++;
        places[at] = r.place, values[at] = r.value;
    }
    while (begins[lines]) {
        FurtherBand& band = to.further.emplace_back();
        band.exponents.resize(lines);
        band.begins.resize(lines + 1);
        band.entries.reserve(begins[lines]);
        Scales<T> scales(1);
        long left = 0, end = 0;  // what is left moves to the front
        for (long line = 0; line < lines; line++) {
            long from = end;
            end = begins[line + 1];
            begins[line + 1] = left;
            band.begins[line + 1] = long(band.entries.size());
            if (from == end) continue;
            Int<T> largest = 0;
            for (long i = from; i < end; i++) largest = std::max(largest, magnitude(values[i]));
            const Scale<T> scale(largest);
            band.exponents[line] = scale.exponent;
            scales.set(0, scale);
            for (long count; from < end; from += count) {
                uint16_t parts[PARTS][RUN];
                count = std::min(RUN, end - from);
                cut_run<false>(&values[from], count, scales, 0, parts[0], RUN, band.used);
                for (long i = 0; i < count; i++) {
                    const T value = values[from + i];
                    if (magnitude(value) >= scale.low) {
                        band.entries.push_back(
                            {places[from + i], {parts[0][i], parts[1][i], parts[2][i]}});
                    } else {
                        places[left] = places[from + i], values[left++] = value;
                    }
                }
            }
            begins[line + 1] = left;
            band.begins[line + 1] = long(band.entries.size());
        }
    }
}

template <class T>
void cut_all(const T* x, Operand& to, long threads) {
    const Int<T> infinity = magnitude(std::numeric_limits<T>::infinity());
    Int<T> largest = 0;
    for (long i = 0; i < to.size(); i++) largest = std::max(largest, magnitude(x[i]));
    to.finite = largest < infinity;
    if (!largest) return;
    to.first = std::make_unique<Band>(to.size(), to.outer * to.inner, to.depth);
    Band& band = *to.first;
    std::vector<Found<T>> found;
    for (long i = 0; i < std::max(1L, threads); i++) found.emplace_back(to.depth, to.inner);
    if (to.inner == 1) {
        share(threads, to.outer, to.size(), [&](long from, long end, long part) {
            cut_rows(x, to, band, from, end, found[part]);
        });
    } else if (to.outer >= threads) {
        share(threads, to.outer, to.size(), [&](long from, long end, long part) {
            for (long o = from; o < end; o++)
                cut_columns(x, to, band, o, 0, to.inner, found[part]);
        });
    } else {
        share(threads, to.inner, to.size(), [&](long from, long end, long part) {
            for (long o = 0; o < to.outer; o++) cut_columns(x, to, band, o, from, end, found[part]);
        });
    }
    std::vector<Rest<T>> rest = std::move(found[0].rest);
    for (auto& one : found) {
        for (long k = 0; k < to.depth; k++) band.depths[k] |= one.depths[k];
        for (int p = 0; p < PARTS; p++) band.used[p] |= one.used[p];
        if (&one != &found[0]) rest.insert(rest.end(), one.rest.begin(), one.rest.end());
    }
    cut_further(rest, to);
}

}  // namespace
