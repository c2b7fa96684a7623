// Products whose right operand is compact: N of every M along the depth.

#pragma once

#include "fold_vectors.h"

namespace {

// Columns store different positions, so what columns share is nothing, and rows everything: a
// vector holds LANES rows of one column. A block of A, transposed, stays in the first-level cache.
constexpr int NM_VECTORS = 4;
constexpr long NM_ROWS = NM_VECTORS * LANES;
constexpr long NM_DEPTH_BLOCK = 96;  // a multiple of 16: no group is cut
constexpr long NM_COL_BLOCK = 1024;
constexpr long NM_STORED = 1 << 20;  // values of B that are laid out at a time

// Sums of two columns over one block of depth: the two keep enough additions under way to hide
// the latency of one. values and offsets alternate between the columns.
template <int VECTORS>
void nm_tile(long steps, const float* a, const float* values, const uint32_t* offsets,
             float* sums) {
    Vector s0[VECTORS], s1[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        s0[v] = load(sums + v * LANES);
        s1[v] = load(sums + NM_ROWS + v * LANES);
    }
    for (long i = 0; i < steps; i++) {
        const Vector x0 = spread(values[2 * i]);
        const Vector x1 = spread(values[2 * i + 1]);
        const float* a0 = a + offsets[2 * i];
        const float* a1 = a + offsets[2 * i + 1];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            s0[v] += x0 * load(a0 + v * LANES);
            s1[v] += x1 * load(a1 + v * LANES);
        }
    }
    for (int v = 0; v < VECTORS; v++) {
        store(sums + v * LANES, s0[v]);
        store(sums + NM_ROWS + v * LANES, s1[v]);
    }
}

using NmTile = decltype(&nm_tile<1>);

template <int... I>
NmTile nm_tile_of(long vectors, std::integer_sequence<int, I...>) {
    static constexpr NmTile TILES[] = {&nm_tile<I + 1>...};
    return TILES[vectors - 1];
}

inline long kept_of(long length, long n, long m) {
    return length / m * n + std::min(n, length % m);
}

// Values and offsets of `count` stored rows, for pairs of columns one after the other; the pair
// of an odd last column is filled up with zeros.
void pack_stored(const Slice& s, long c0, long cols, long first, long count, float* values,
                 uint32_t* offsets, float* scratch) {
    const long k0 = first / s.n * s.m;
    if (cols % 2) {
        std::fill(values + (cols - 1) * count, values + (cols + 1) * count, 0.0f);
        std::fill(offsets + (cols - 1) * count, offsets + (cols + 1) * count, 0u);
    }
    for (long i = 0; i < count; i++) {
        const long row = first + i;
        const uint32_t group = uint32_t(row / s.n * s.m - k0);
        const uint8_t* index = s.indices + row * s.b_at.row + c0;
        widen(s.b + row * s.b_at.row + c0, scratch, cols);
        for (long c = 0; c < cols; c++) {
            const long to = (c / 2 * count + i) * 2 + c % 2;
            values[to] = scratch[c];
            offsets[to] = (group + index[c]) * uint32_t(NM_ROWS);
        }
    }
}

void sparse_product(const Slice& s) {
    static thread_local Buffer value_buffer, offset_buffer, sum_buffer, a_buffer, scratch_buffer;
    const long kept = kept_of(s.depth, s.n, s.m);
    const long block_kept = NM_DEPTH_BLOCK / s.m * s.n;
    const long room = std::max(2L, NM_STORED / kept / 2 * 2);
    const long col_block = std::min({NM_COL_BLOCK, s.cols + s.cols % 2, room});
    float* const values = value_buffer.room(kept * col_block);
    uint32_t* const offsets = reinterpret_cast<uint32_t*>(offset_buffer.room(kept * col_block));
    float* const sums = sum_buffer.room(col_block * NM_ROWS);
    float* const a_packed = a_buffer.room(NM_DEPTH_BLOCK * NM_ROWS);
    float* const scratch = scratch_buffer.room(col_block);
    for (long c0 = 0; c0 < s.cols; c0 += col_block) {
        const long cols = std::min(col_block, s.cols - c0);
        const long even_cols = cols + cols % 2;
        for (long first = 0; first < kept; first += block_kept) {
            if (*s.stop) return;
            const long count = std::min(block_kept, kept - first);
            pack_stored(s, c0, cols, first, count, values + first * even_cols,
                        offsets + first * even_cols, scratch);
        }
        for (long r0 = 0; r0 < s.rows; r0 += NM_ROWS) {
            const long rows = std::min(NM_ROWS, s.rows - r0);
            const NmTile tile = nm_tile_of((rows + LANES - 1) / LANES,
                                           std::make_integer_sequence<int, NM_VECTORS>{});
            std::fill_n(sums, even_cols * NM_ROWS, 0.0f);
            if (s.start)
                pack(s.start + r0 * s.start_at.row + c0 * s.start_at.col, s.start_at.row,
                     s.start_at.col, rows, cols, sums, NM_ROWS, NM_ROWS);
            for (long first = 0, k0 = 0; first < kept; first += block_kept, k0 += NM_DEPTH_BLOCK) {
                if (*s.stop) return;
                const long count = std::min(block_kept, kept - first);
                const long depth = std::min(NM_DEPTH_BLOCK, s.depth - k0);
                // Rows past the last one are zero and are not read back.
                pack(s.a + r0 * s.a_at.row + k0 * s.a_at.col, s.a_at.row, s.a_at.col, rows, depth,
                     a_packed, NM_ROWS, NM_ROWS);
                const float* block_values = values + first * even_cols;
                const uint32_t* block_offsets = offsets + first * even_cols;
                for (long c = 0; c < cols; c += 2)
                    tile(count, a_packed, block_values + c * count, block_offsets + c * count,
                         sums + c * NM_ROWS);
            }
            for (long i = 0; i < even_cols * NM_ROWS; i += LANES)
                store(sums + i, canonical(load(sums + i)));
            unpack(sums, NM_ROWS, rows, cols, s.c + r0 * s.c_at.row + c0 * s.c_at.col,
                   s.c_at.row, s.c_at.col);
        }
    }
}

void sparse(Slice s) {
    for (long i = 0; i < s.count; i++) {
        sparse_product(s);
        s.a += s.a_at.stack;
        s.b += s.b_at.stack;
        s.indices += s.b_at.stack;
        s.c += s.c_at.stack;
        if (s.start) s.start += s.start_at.stack;
    }
}

// Position (stored row * cols + column, counted through the stack) of the first stored index that
// is not in its group or does not rise inside it; -1 if there is none.
long first_bad_index(const Slice& s) {
    const long kept = kept_of(s.depth, s.n, s.m);
    for (long i = 0; i < s.count; i++)
        for (long row = 0; row < kept && !*s.stop; row++) {
            const long group = row / s.n;
            const uint8_t size = uint8_t(std::min(s.m, s.depth - group * s.m));
            const uint8_t* now = s.indices + i * s.b_at.stack + row * s.b_at.row;
            const uint8_t* before = now - s.b_at.row;
            unsigned char bad = 0;
            for (long c = 0; c < s.cols; c++) bad |= now[c] >= size;
            if (row % s.n)
                for (long c = 0; c < s.cols; c++) bad |= now[c] <= before[c];
            for (long c = 0; bad && c < s.cols; c++)
                if (now[c] >= size || (row % s.n && now[c] <= before[c]))
                    return (i * kept + row) * s.cols + c;
        }
    return -1;
}

}  // namespace
