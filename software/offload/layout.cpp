// Pictures with channels first, as torch has them, and with channels last, as products do.

#include <array>
#include <type_traits>
#include <vector>

#include "fold_vectors.h"
#include "rounding.h"
#include "share.h"

namespace {

inline void put(float* to, Vector value, long count) { store_part(to, value, count); }

inline void put(uint16_t* to, Vector value, long count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __mmask16 there = __mmask16(count < LANES ? (1u << count) - 1 : ~0u);
    _mm256_mask_storeu_epi16(
        to, there, _mm512_maskz_cvtps_ph(there, __m512(value), _MM_FROUND_TO_NEAREST_INT));
#else
    alignas(64) float all[LANES];
    store(all, value);
    halves(all, to, std::min<long>(count, LANES));
#endif
}

// Rows of `cols` numbers, `width` apart, become columns: `cols` rows, `to_width` apart.
template <class From, class To>
void turn_matrix(const From* from, long width, long rows, long cols, To* to, long to_width) {
    for (long r = 0; r < rows; r += LANES) {
        const long high = std::min<long>(LANES, rows - r);
        for (long c = 0; c < cols; c += LANES) {
            const long wide = std::min<long>(LANES, cols - c);
            Vector square[LANES] = {};
            for (long i = 0; i < high; i++) square[i] = widened(from + (r + i) * width + c, wide);
            turn(square);
            for (long i = 0; i < wide; i++) put(to + (c + i) * to_width + r, square[i], high);
        }
    }
}

// Each of `batch` matrices of (rows, cols), one after the other, turned to where it belongs: its
// rows `to_width` apart, and `to_batch` from one matrix to the next.
template <class From, class To>
void turn_all(const From* from, long batch, long rows, long cols, To* to, long to_batch,
              long to_width, long* lost, long threads) {
    // Blocks that stay in the nearest caches while they are looked at twice.
    const long block = std::max<long>(LANES, (4096 / cols + LANES - 1) / LANES * LANES);
    const long blocks = (rows + block - 1) / block;
    std::vector<std::array<long, 3>> each(std::max(1L, threads));
    share(threads, batch * blocks, batch * rows * cols, [&](long first, long end, long part) {
        for (long i = first; i < end; i++) {
            const long r = i % blocks * block, high = std::min(block, rows - r);
            const From* const x = from + (i / blocks * rows + r) * cols;
            if constexpr (std::is_same_v<From, float>)
                if (lost)
                    for (long k = 0; k < high * cols; k += RUN)
                        count_lost(x + k, std::min(RUN, high * cols - k), each[part].data());
            turn_matrix(x, cols, high, cols, to + i / blocks * to_batch + r, to_width);
        }
    });
    if (lost)
        for (const auto& one : each)
            for (int i = 0; i < 3; i++) lost[i] += one[i];
}

}  // namespace

// Turns (batch, rows, cols) float32 into (batch, cols, rows) binary16, if so said, else float32.
// What rounding loses is added to `lost`. Returns whether that went well: threads may run out.
extern "C" long turn_floats(const float* x, long batch, long rows, long cols, void* to,
                            long to_halves, long to_batch, long to_width, long* lost,
                            long threads) {
    const DefaultArithmetic arithmetic;
    try {
        if (to_halves)
            turn_all(x, batch, rows, cols, static_cast<uint16_t*>(to), to_batch, to_width, lost,
                     threads);
        else
            turn_all(x, batch, rows, cols, static_cast<float*>(to), to_batch, to_width, nullptr,
                     threads);
        return 1;
    } catch (const std::exception&) {
        return 0;
    }
}
