// The arithmetic of precision.py: operands of float32 or float64 cut into bands of binary16 parts,
// the parts laid out for products on a device, and the products put together. Why this is so, says
// the Python file.
//
// An operand is (outer, depth, inner), without gaps: a left one has inner = 1, and as outer its
// stack and rows; a right one has outer = its stack and inner = its columns. What shares a scale is
// a line: the elements along the depth; there are (outer, inner) lines.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "floats.h"

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

// Elements of similar size of an operand.
struct Band {
    std::unique_ptr<uint16_t[]> parts;  // (PARTS, outer, depth, inner); zeros for other bands
    std::vector<int32_t> exponents;     // of the lines: elements are sum(parts) * 2**exponent
    std::vector<uint8_t> depths;        // whether there are elements at a place of the depth
    bool used[PARTS] = {};              // whether a part is not zero throughout

    Band(long size, long lines, long depth)
        : parts(new uint16_t[PARTS * size]), exponents(lines), depths(depth) {}
};

struct Operand {
    long outer, depth, inner;
    bool finite = true;
    std::vector<Band> bands;  // largest elements first

    long size() const { return outer * depth * inner; }
};

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

// What a band takes of `inner` lines: magnitudes from `low` to below `high`, times `first` times
// `second`. Two powers of two, as one of both need not be a number; what lies between their
// products lies between the ends, so they are exact.
template <class T>
struct Cut {
    std::vector<Int<T>> low, high;
    std::vector<T> first, second;

    explicit Cut(long inner) : low(inner), high(inner), first(inner), second(inner) {}

    // Makes line i a band of what is below a limit, its largest being `largest`. Moves the limit to
    // the band's lower end.
    void set(long i, Int<T> largest, Int<T>& limit, int32_t& exponent) {
        using Limits = std::numeric_limits<T>;
        int top = int(largest >> (Limits::digits - 1)) - (Limits::max_exponent - 2);
        if (top < Limits::min_exponent) std::frexp(as<T>(largest), &top);  // subnormal
        // The largest is in [2**(top - 1), 2**top).
        exponent = largest ? top - TOP : 0;
        const int least = top - 1 - BAND;
        high[i] = limit;
        limit = magnitude(least < Limits::min_exponent ? std::ldexp(T(1), least) : power<T>(least));
        low[i] = limit = largest ? limit : 0;
        const int half = -exponent / 2;
        first[i] = power<T>(half);
        second[i] = power<T>(-exponent - half);
    }
};

// Elements that are worked on at a time, a multiple of 8.
constexpr long RUN = 256;

// Cuts `count` elements, at most RUN: all of line `line`, or from there on each of its own (ACROSS).
// Parts are `plane` apart. Returns whether there are elements below the band.
template <bool ACROSS, class T>
bool cut_run(const T* x, long count, const Cut<T>& cut, long line, uint16_t* parts, long plane,
             bool* used) {
    const Int<T>*low = &cut.low[line], *high = &cut.high[line];
    const T *first = &cut.first[line], *second = &cut.second[line];
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
        const Int<T> now = -Int<T>((size >= low[own]) & (size < high[own]));
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

// Cuts the next band out of an operand: what is below the limits of its lines, which move. Returns
// whether there are elements left below it.
template <class T>
bool cut_band(const T* x, const Operand& of, std::vector<Int<T>>& limits, Band& band) {
    const long depth = of.depth, inner = of.inner, plane = of.size();
    bool more = false;
    Cut<T> cut(inner);
    std::vector<Int<T>> largest(inner);
    uint16_t* parts = band.parts.get();
    for (long o = 0; o < of.outer; o++, x += depth * inner, parts += depth * inner) {
        Int<T>* limit = &limits[o * inner];
        if (inner == 1) {
            Int<T> top = 0;
            for (long k = 0; k < depth; k++) {
                const Int<T> size = magnitude(x[k]);
                top = std::max(top, size < *limit ? size : 0);
            }
            cut.set(0, top, *limit, band.exponents[o]);
            for (long k = 0; k < depth; k += RUN)
                more |= cut_run<false>(x + k, std::min(RUN, depth - k), cut, 0, parts + k, plane,
                                       band.used);
            for (long k = 0; k < depth; k++) band.depths[k] |= nonzero(parts[k]);
            continue;
        }
        std::fill(largest.begin(), largest.end(), 0);
        for (long k = 0; k < depth; k++)
            for (long i = 0; i < inner; i++) {
                const Int<T> size = magnitude(x[k * inner + i]);
                largest[i] = std::max(largest[i], size < limit[i] ? size : 0);
            }
        for (long i = 0; i < inner; i++)
            cut.set(i, largest[i], limit[i], band.exponents[o * inner + i]);
        for (long k = 0; k < depth; k++) {
            const long row = k * inner;
            for (long i = 0; i < inner; i += RUN)
                more |= cut_run<true>(x + row + i, std::min(RUN, inner - i), cut, i,
                                      parts + row + i, plane, band.used);
            uint16_t any = 0;
            for (long i = 0; i < inner; i++) any |= parts[row + i];
            band.depths[k] |= nonzero(any);
        }
    }
    return more;
}

template <class T>
void cut_all(const T* x, Operand& to) {
    // What is not finite is not below the first limit: zero in every band.
    const Int<T> infinity = magnitude(std::numeric_limits<T>::infinity());
    Int<T> largest = 0;
    for (long i = 0; i < to.size(); i++) largest = std::max(largest, magnitude(x[i]));
    to.finite = largest < infinity;
    const long lines = to.outer * to.inner;
    std::vector<Int<T>> limits(lines, infinity);
    for (bool more = largest != 0; more;) {
        to.bands.emplace_back(to.size(), lines, to.depth);
        more = cut_band(x, to, limits, to.bands.back());
    }
}

// ------------------------------------------------------------------------------------- products

// One product on its way: its operands, and the pair of bands that is multiplied now.
struct Work {
    Operand left, right;
    size_t pair = 0;                          // number of the next one
    const Band *a = nullptr, *b = nullptr;
    std::vector<std::pair<int, int>> passes;  // parts of a and b
    std::vector<long> places;                 // of the depth where both have elements

    // Goes on to the next pair of bands that have a product; false if there is none.
    bool advance() {
        while (pair < left.bands.size() * right.bands.size()) {
            a = &left.bands[pair / right.bands.size()];
            b = &right.bands[pair % right.bands.size()];
            pair++;
            places.clear();
            for (long k = 0; k < left.depth; k++)
                if (a->depths[k] && b->depths[k]) places.push_back(k);
            if (places.empty()) continue;
            passes.clear();
            for (const auto& pass : PASSES)  // a part that is zero throughout adds nothing
                if (a->used[pass.first] && b->used[pass.second]) passes.push_back(pass);
            return true;
        }
        return false;
    }
};

// Copies a part's places of the depth, one after the other; returns the end of the copy.
uint16_t* lay(const Band& band, const Operand& of, int part, long outer,
              const std::vector<long>& places, uint16_t* out) {
    const uint16_t* from = band.parts.get() + part * of.size() + outer * of.depth * of.inner;
    if (long(places.size()) == of.depth) return std::copy_n(from, of.depth * of.inner, out);
    if (of.inner == 1) {  // copy_n calls memmove, even for one
        for (const long k : places) *out++ = from[k];
        return out;
    }
    for (const long k : places) out = std::copy_n(from + k * of.inner, of.inner, out);
    return out;
}

}  // namespace

// Begins the product of a (count, rows, depth) and b (count, depth, cols), float32 or, if so said,
// float64. Returns what the functions below take, or null if memory ran out.
extern "C" Work* fp32_begin(const void* a, const void* b, long a_double, long b_double, long count,
                            long rows, long depth, long cols) {
    const DefaultArithmetic arithmetic;
    const auto cut = [](const void* x, bool is_double, Operand& to) {
        if (is_double)
            cut_all(static_cast<const double*>(x), to);
        else
            cut_all(static_cast<const float*>(x), to);
    };
    try {
        auto work = std::make_unique<Work>();
        work->left = {count * rows, depth, 1, true, {}};
        work->right = {count, depth, cols, true, {}};
        cut(a, a_double, work->left);
        cut(b, b_double, work->right);
        work->places.reserve(depth);
        work->passes.reserve(std::size(PASSES));
        return work.release();
    } catch (const std::exception&) {
        return nullptr;
    }
}

// Whether there are no infinities and NaNs in the operands; they count as zeros below.
extern "C" long fp32_finite(const Work* work) { return work->left.finite && work->right.finite; }

// Goes on to the next product for the device. Returns its depth; 0 if there is none.
extern "C" long fp32_next(Work* work) {
    return work->advance() ? long(work->passes.size() * work->places.size()) : 0;
}

// Writes its operands: left (count, rows, depth), right (count, depth, cols), binary16.
extern "C" void fp32_lay(const Work* work, uint16_t* left, uint16_t* right) {
    for (long o = 0; o < work->left.outer; o++)
        for (const auto& pass : work->passes)
            left = lay(*work->a, work->left, pass.first, o, work->places, left);
    for (long o = 0; o < work->right.outer; o++)
        for (const auto& pass : work->passes)
            right = lay(*work->b, work->right, pass.second, o, work->places, right);
}

// Adds what the device returned, sums (count, rows, cols), to the total, scaled back.
extern "C" void fp32_add(const Work* work, const float* sums, double* total) {
    const DefaultArithmetic arithmetic;
    const long count = work->right.outer, cols = work->right.inner;
    const long rows = count ? work->left.outer / count : 0;
    const int32_t *left = work->a->exponents.data(), *right = work->b->exponents.data();
    for (long n = 0; n < count; n++, right += cols) {
        const auto [least, most] = std::minmax_element(right, right + cols);
        for (long r = 0; r < rows; r++, left++, sums += cols, total += cols) {
            // A power of two is made of its bits where all of the row's are normal numbers; ldexp
            // is right everywhere, but slow.
            if (*left + *least > -1000 && *left + *most < 900) {
                for (long c = 0; c < cols; c++)
                    total[c] += sums[c] * power<double>(*left + right[c]);
            } else {
                for (long c = 0; c < cols; c++)
                    total[c] += std::ldexp(double(sums[c]), *left + right[c]);
            }
        }
    }
}

extern "C" void fp32_end(Work* work) { delete work; }
