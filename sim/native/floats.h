// What the native code of the golden model and of its callers shares: conversions between binary16
// and binary32, and the arithmetic that they are defined in.

#pragma once

#include <cfenv>
#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#ifdef __FAST_MATH__
#error "the bits of results depend on IEEE 754 arithmetic: no -ffast-math"
#endif

namespace {

// The caller may have set flush-to-zero or another rounding (each thread has its own setting):
// the default environment is binary32 as the standard defines it.
class DefaultArithmetic {
    std::fenv_t saved;

  public:
    DefaultArithmetic() {
        std::fegetenv(&saved);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultArithmetic() { std::fesetenv(&saved); }
    DefaultArithmetic(const DefaultArithmetic&) = delete;
    DefaultArithmetic& operator=(const DefaultArithmetic&) = delete;
};

// ---------------------------------------------------------------- binary16 to binary32, exact

inline float widen_one(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16;
    uint32_t bits = uint32_t(half & 0x7fff) << 13;
    const uint32_t exponent = bits & 0x0f800000;
    bits += (127 - 15) << 23;
    if (exponent == 0x0f800000) bits += (128 - 16) << 23;  // infinity, NaN
    float value;
    if (exponent == 0) {  // zero, subnormal: let a subtraction normalise it
        bits += 1 << 23;
        std::memcpy(&value, &bits, sizeof value);
        value -= 0x1p-14f;
        std::memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
// Those that a mask names, and zeros. (With _mm512_cvtph_ps, GCC 12 warns of its own header.)
inline __m512 widen_vector(__mmask16 there, const uint16_t* from) {
    return _mm512_maskz_cvtph_ps(there, _mm256_maskz_loadu_epi16(there, from));
}
#endif

inline void widen(const uint16_t* from, float* to, long count) {
    long i = 0;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(to + i, widen_vector(0xffff, from + i));
    if (i < count) {
        const __mmask16 rest = __mmask16((1u << (count - i)) - 1);
        _mm512_mask_storeu_ps(to + i, rest, widen_vector(rest, from + i));
    }
    return;
#elif defined(__F16C__)
    for (; i + 8 <= count; i += 8) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
    }
#endif
    for (; i < count; i++) to[i] = widen_one(from[i]);
}

// ------------------------------------------------- binary32 to binary16, to nearest, ties to even

// For numbers below 2**15.
inline uint16_t narrow_one(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits < (127 - 14) << 23) {  // subnormal: let an addition round it to a multiple of 2**-24
        std::memcpy(&value, &bits, sizeof value);
        value += 0.5f;
        std::memcpy(&bits, &value, sizeof bits);
        return sign | uint16_t(bits - (126 << 23));
    }
    bits += 0xfff + (bits >> 13 & 1);
    return sign | uint16_t((bits - ((127 - 15) << 23)) >> 13);
}

inline void narrow(const float* from, uint16_t* to, long count) {
    long i = 0;
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; i++) to[i] = narrow_one(from[i]);
}

}  // namespace
