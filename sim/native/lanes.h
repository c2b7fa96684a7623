// Words side by side: what the generated code of sat.sim.simd computes with.
//
// A word of one bit is kept as a mask, 0 or all ones, in each lane.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lanes {

// What the widest registers of the machine that this is compiled for hold.
#if defined(__AVX512F__)
constexpr int WIDEST = 16;
#elif defined(__AVX2__)
constexpr int WIDEST = 8;
#else
constexpr int WIDEST = 4;
#endif

typedef uint32_t V __attribute__((vector_size(4 * WIDEST)));
typedef int32_t I __attribute__((vector_size(4 * WIDEST)));

inline V load(const uint32_t* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
inline void store(uint32_t* to, V v) { std::memcpy(to, &v, sizeof v); }

inline V select(V mask, V one, V zero) { return (one & mask) | (zero & ~mask); }
inline V is_set(V word, uint32_t bits) { return (V)((word & bits) != 0); }
inline V left(V word, V distance) { return word << distance; }
inline V right(V word, V distance) { return word >> distance; }
inline V right_signed(V word, V distance) { return (V)((I)word >> (I)distance); }
inline V parity(V word) {
    word ^= word >> 16, word ^= word >> 8, word ^= word >> 4, word ^= word >> 2;
    return is_set(word ^ word >> 1, 1u);
}
inline bool any(V mask) {
    uint64_t parts[WIDEST / 2], all = 0;
    std::memcpy(parts, &mask, sizeof mask);
    for (uint64_t part : parts) all |= part;
    return all != 0;
}

// A memory in each lane: word `at` of lane i is memory[at][i].
template <int WORDS>
inline V read(const uint32_t (&memory)[WORDS][WIDEST], V at) {
#if defined(__AVX512F__)
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i place = _mm512_add_epi32(_mm512_slli_epi32((__m512i)at, 4), lane);
    return (V)_mm512_i32gather_epi32(place, memory, 4);
#elif defined(__AVX2__)
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i place = _mm256_add_epi32(_mm256_slli_epi32((__m256i)at, 3), lane);
    return (V)_mm256_i32gather_epi32((const int*)memory, place, 4);
#else
    V v;
    for (int i = 0; i < WIDEST; ++i) v[i] = memory[at[i]][i];
    return v;
#endif
}
template <int WORDS>
inline void write(uint32_t (&memory)[WORDS][WIDEST], V at, V word, V enable) {
    if (!any(enable)) return;
    for (int i = 0; i < WIDEST; ++i) {
        uint32_t& kept = memory[at[i]][i];
        kept = (kept & ~enable[i]) | (word[i] & enable[i]);
    }
}

// Ports are integers of up to 64 bits or arrays of words of 32 bits, lowest first.
template <class Port>
constexpr int WORDS = sizeof(Port) <= 4 ? 1 : sizeof(Port) / 4;

template <class Port>
inline uint32_t word(const Port& port, int i) {
    if constexpr (std::is_integral_v<Port>)
        return uint64_t(port) >> (32 * i);
    else
        return port[i];
}
// Set a port from an array of words.
template <class Port>
inline void give(Port& port, const uint32_t* words) {
    if constexpr (sizeof(Port) <= 4)
        port = words[0];
    else if constexpr (std::is_integral_v<Port>)
        port = words[0] | uint64_t(words[1]) << 32;
    else
        for (int i = 0; i < WORDS<Port>; ++i) port[i] = words[i];
}
// Append a port to a list of words.
template <class Words, class Port>
inline void append(Words& words, const Port& port) {
    for (int i = 0; i < WORDS<Port>; ++i) words.push_back(word(port, i));
}

// Bits of a port as a lane keeps them.
template <int OFFSET, int WIDTH, class Port>
inline uint32_t take(const Port& port) {
    constexpr int at = OFFSET / 32, by = OFFSET % 32;
    uint64_t bits = word(port, at);
    if constexpr (by + WIDTH > 32) bits |= uint64_t(word(port, at + 1)) << 32;
    const uint32_t kept = (bits >> by) & (~uint64_t(0) >> (64 - WIDTH));
    return WIDTH == 1 ? 0u - kept : kept;
}
// Put a lane's bits to their place in an array of words that was cleared.
template <int OFFSET, int WIDTH>
inline void put(uint32_t* words, uint32_t bits) {
    constexpr int at = OFFSET / 32, by = OFFSET % 32;
    const uint64_t moved = uint64_t(WIDTH == 1 ? bits & 1u : bits) << by;
    words[at] |= moved;
    if constexpr (by + WIDTH > 32) words[at + 1] |= moved >> 32;
}

}  // namespace lanes
