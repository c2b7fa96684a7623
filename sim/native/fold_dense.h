// Products of dense operands.

#pragma once

#include <vector>

#include "fold_vectors.h"

namespace {

// ---------------------------------------------------------------------- one product after another

// A tile of sums stays in registers: TILE_ROWS times two vectors of columns.
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 12;  // 24 of 32 registers hold sums
#else
constexpr int TILE_ROWS = 6;  // 12 of 16
#endif

constexpr long TILE_COLS = 2 * LANES;
constexpr long DEPTH_BLOCK = 256;
// Rows of A, each DEPTH_BLOCK long: not a power of two apart, or all fall into the same few sets
// of the cache.
constexpr long ROW_PITCH = DEPTH_BLOCK + 16;
constexpr long ROW_BLOCK = 16 * TILE_ROWS;
constexpr long COL_BLOCK = 32 * TILE_COLS;

// Sums of ROWS x VECTORS vectors over one block of depth. a lies row by row (ROW_PITCH apart) or,
// BY_DEPTH, as (depth, ROWS); b as (depth, VECTORS * LANES). The sums come from `in` (null: +0) and
// go to `out`.
template <int ROWS, int VECTORS, bool BY_DEPTH>
void tile(long depth, const float* a, const float* b, const float* in, long in_stride, float* out,
          long out_stride) {
    constexpr long ROW = BY_DEPTH ? 1 : ROW_PITCH, STEP = BY_DEPTH ? ROWS : 1;
    Vector sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++)
            sums[r][v] = in ? load(in + r * in_stride + v * LANES) : Vector{};
    for (long k = 0; k < depth; k++, a += STEP, b += VECTORS * LANES) {
        Vector columns[VECTORS];
        for (int v = 0; v < VECTORS; v++) columns[v] = load(b + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const Vector x = spread(a[r * ROW]);
            for (int v = 0; v < VECTORS; v++) sums[r][v] += x * columns[v];
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++)
            store(out + r * out_stride + v * LANES, canonical(sums[r][v]));
}

using Tile = decltype(&tile<1, 1, false>);

template <int VECTORS, bool BY_DEPTH, int... I>
Tile tile_of(long rows, std::integer_sequence<int, I...>) {
    static constexpr Tile TILES[] = {&tile<I + 1, VECTORS, BY_DEPTH>...};
    return TILES[rows - 1];
}

Tile tile_for(long rows, bool narrow, bool by_depth) {
    constexpr auto heights = std::make_integer_sequence<int, TILE_ROWS>{};
    if (narrow)
        return by_depth ? tile_of<1, true>(rows, heights) : tile_of<1, false>(rows, heights);
    return by_depth ? tile_of<2, true>(rows, heights) : tile_of<2, false>(rows, heights);
}

// One product of the slice. Lanes are columns: `s` is turned around where rows make better ones.
void dense_product(const Slice& s) {
    static thread_local Buffer a_buffer, b_buffer;
    const bool narrow = s.cols <= LANES;
    const long tile_cols = narrow ? LANES : TILE_COLS;
    const bool by_depth = s.a_at.col != 1;
    // Tiles of equal height, as far as that goes: a low one has few sums to hide latencies with.
    const long row_tiles = (s.rows + TILE_ROWS - 1) / TILE_ROWS;
    const long tile_rows = (s.rows + row_tiles - 1) / row_tiles;
    const long row_block = std::min(ROW_BLOCK / TILE_ROWS * tile_rows, s.rows);
    const long col_block = std::min(COL_BLOCK, (s.cols + tile_cols - 1) / tile_cols * tile_cols);
    const long depth_block = std::min(DEPTH_BLOCK, s.depth);
    const long row_pitch = by_depth ? depth_block : ROW_PITCH;
    float* const a_packed = a_buffer.room(row_block * row_pitch);
    const bool one_block = s.rows <= row_block;
    float* const b_packed = b_buffer.room(depth_block * (one_block ? tile_cols : col_block));
    const bool straight = s.c_at.col == 1 && (!s.start || s.start_at.col == 1);
    float edge[TILE_ROWS * TILE_COLS];
    for (long c0 = 0; c0 < s.cols; c0 += col_block) {
        const long cols = std::min(col_block, s.cols - c0);
        for (long k0 = 0; k0 < s.depth; k0 += depth_block) {
            const long depth = std::min(depth_block, s.depth - k0);
            const float* in = k0 ? s.c : s.start;
            const Strides in_at = k0 ? s.c_at : s.start_at;
            for (long r0 = 0; r0 < s.rows; r0 += row_block) {
                if (*s.stop) return;
                const long rows = std::min(row_block, s.rows - r0);
                for (long r = 0; r < rows; r += tile_rows) {
                    const long high = std::min(tile_rows, rows - r);
                    float* to = a_packed + r * row_pitch;
                    if (by_depth)
                        pack(s.a, s.a_rows(), s.a_cols(), r0 + r, k0, high, depth, to, high, high);
                    else
                        pack(s.a, s.a_cols(), s.a_rows(), k0, r0 + r, depth, high, to, ROW_PITCH,
                             depth);
                }
                for (long c = 0; c < cols; c += tile_cols) {
                    const long width = std::min(tile_cols, cols - c);
                    // Packed where it is used first; kept only if it is used again.
                    float* const b = b_packed + (one_block ? 0 : c * depth);
                    if (r0 == 0)
                        pack(s.b, s.b_cols(), s.b_rows(), c0 + c, k0, width, depth, b, tile_cols,
                             tile_cols);
                    for (long r = 0; r < rows; r += tile_rows) {
                        const long high = std::min(tile_rows, rows - r);
                        const Tile compute = tile_for(high, narrow, by_depth);
                        const float* a = a_packed + r * row_pitch;
                        const float* from =
                            in ? in + (r0 + r) * in_at.row + (c0 + c) * in_at.col : nullptr;
                        float* to = s.c + (r0 + r) * s.c_at.row + (c0 + c) * s.c_at.col;
                        if (width == tile_cols && straight) {
                            compute(depth, a, b, from, in_at.row, to, s.c_at.row);
                            continue;
                        }
                        // The tile does not fit what it comes from or goes to: by way of a copy.
                        if (from)
                            pack(from, in_at.col, in_at.row, width, high, edge, tile_cols,
                                 tile_cols);
                        compute(depth, a, b, from ? edge : nullptr, tile_cols, edge, tile_cols);
                        unpack(edge, tile_cols, width, high, to, s.c_at.col, s.c_at.row);
                    }
                }
            }
        }
    }
}

// ---------------------------------------------------------------------- many products at a time

// Products too small to fill vectors, LANES of them side by side: a lane is a product.
constexpr long SIDE_DEPTH = 32;
constexpr long SIDE_ROWS = 32;

// Sums of ROWS x COLS elements of LANES products over `depth` steps; a lies as (rows, a_pitch) of
// vectors, b as (depth, b_pitch), sums as (rows, sum_pitch).
template <int ROWS, int COLS>
void side_tile(long depth, const float* a, long a_pitch, const float* b, long b_pitch, float* sums,
               long sum_pitch) {
    Vector all[ROWS][COLS];
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) all[r][c] = load(sums + (r * sum_pitch + c) * LANES);
    for (long k = 0; k < depth; k++) {
        Vector columns[COLS];
        for (int c = 0; c < COLS; c++) columns[c] = load(b + (k * b_pitch + c) * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const Vector x = load(a + (r * a_pitch + k) * LANES);
            for (int c = 0; c < COLS; c++) all[r][c] += x * columns[c];
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) store(sums + (r * sum_pitch + c) * LANES, all[r][c]);
}

using SideTile = decltype(&side_tile<1, 1>);
constexpr int SIDE = 4;

template <int... I>
SideTile side_tile_of(long rows, long cols, std::integer_sequence<int, I...>) {
    static constexpr SideTile TILES[] = {&side_tile<I / SIDE + 1, I % SIDE + 1>...};
    return TILES[(rows - 1) * SIDE + cols - 1];
}

// A matrix of LANES products as vectors, row by row.
template <class T>
void pack_side(const T* from, const Strides& at, long products, long rows, long cols, float* to,
               const Tables& tables = {}) {
    if (tables.rows || tables.cols) {
        const Axis row = {at.row, tables.rows}, col = {at.col, tables.cols};
        for (long r = 0; r < rows; r++)
            for (long c = 0; c < cols; c++, to += LANES)
                pack(from + row(r) + col(c), at.stack, 0, products, 1, to, LANES, LANES);
        return;
    }
    if (at.row == cols * at.col)  // without gaps: one row
        return pack(from, at.stack, at.col, products, rows * cols, to, LANES, LANES);
    if (cols == 1) return pack(from, at.stack, at.row, products, rows, to, LANES, LANES);
    for (long r = 0; r < rows; r++)
        pack(from + r * at.row, at.stack, at.col, products, cols, to + r * cols * LANES, LANES,
             LANES);
}

// LANES products of the slice, or fewer, from number `first` on.
void side_products(const Slice& s, long first, long products) {
    static thread_local Buffer a_buffer, b_buffer, sum_buffer;
    constexpr auto sizes = std::make_integer_sequence<int, SIDE * SIDE>{};
    const long depth_block = std::min(SIDE_DEPTH, s.depth);
    const long row_block = std::min(SIDE_ROWS, s.rows);
    float* const a_packed = a_buffer.room(row_block * depth_block * LANES);
    float* const b_packed = b_buffer.room(s.depth * s.cols * LANES);
    float* const sums = sum_buffer.room(row_block * s.cols * LANES);
    pack_side(s.b + first * s.b_at.stack, s.b_at, products, s.depth, s.cols, b_packed, s.b_tables);
    for (long r0 = 0; r0 < s.rows; r0 += row_block) {
        const long rows = std::min(row_block, s.rows - r0);
        if (s.start)
            pack_side(s.start + first * s.start_at.stack + r0 * s.start_at.row, s.start_at,
                      products, rows, s.cols, sums);
        else
            std::fill_n(sums, rows * s.cols * LANES, 0.0f);
        for (long k0 = 0; k0 < s.depth; k0 += depth_block) {
            if (*s.stop) return;
            const long depth = std::min(depth_block, s.depth - k0);
            const Tables &at = s.a_tables,
                         here = {at.rows ? at.rows + r0 : nullptr, at.cols ? at.cols + k0 : nullptr};
            const long r = at.rows ? 0 : r0 * s.a_at.row, k = at.cols ? 0 : k0 * s.a_at.col;
            pack_side(s.a + first * s.a_at.stack + r + k, s.a_at, products, rows, depth, a_packed,
                      here);
            for (long r = 0; r < rows; r += SIDE)
                for (long c = 0; c < s.cols; c += SIDE) {
                    const long high = std::min<long>(SIDE, rows - r);
                    const long wide = std::min<long>(SIDE, s.cols - c);
                    side_tile_of(high, wide, sizes)(
                        depth, a_packed + r * depth * LANES, depth,
                        b_packed + (k0 * s.cols + c) * LANES, s.cols,
                        sums + (r * s.cols + c) * LANES, s.cols);
                }
        }
        for (long i = 0; i < rows * s.cols * LANES; i += LANES)
            store(sums + i, canonical(load(sums + i)));
        float* const to = s.c + first * s.c_at.stack + r0 * s.c_at.row;
        if (s.c_at.row == s.cols * s.c_at.col) {
            unpack(sums, LANES, products, rows * s.cols, to, s.c_at.stack, s.c_at.col);
            continue;
        }
        for (long r = 0; r < rows; r++)
            unpack(sums + r * s.cols * LANES, LANES, products, s.cols, to + r * s.c_at.row,
                   s.c_at.stack, s.c_at.col);
    }
}

// --------------------------------------------------------------------------------- which is best

// The same products with rows for columns: the transposes, in reverse order.
Slice turned(const Slice& s) {
    const auto turn = [](const Strides& at) { return Strides{at.stack, at.col, at.row}; };
    Slice t = s;
    t.a = s.b, t.a_at = turn(s.b_at);
    t.b = s.a, t.b_at = turn(s.a_at);
    t.a_tables = {s.b_tables.cols, s.b_tables.rows};
    t.b_tables = {s.a_tables.cols, s.a_tables.rows};
    t.rows = s.cols, t.cols = s.rows;
    t.start_at = turn(s.start_at), t.c_at = turn(s.c_at);
    return t;
}

// Rough costs, in vector operations. Where numbers have to be turned for lanes, that takes about
// TURN operations a vector.
constexpr long TURN = 6;

long vectors(long count) { return (count + LANES - 1) / LANES; }

long dense_cost(const Slice& s) {
    const long b_turn = s.b_at.col == 1 ? 1 : s.b_at.row == 1 ? TURN : 2 * LANES;
    const long c_turn = s.c_at.col == 1 ? 1 : TURN;
    const long multiply = s.rows * s.depth * vectors(s.cols);
    return 60 + multiply + s.depth * vectors(s.cols) * b_turn + s.rows * vectors(s.depth) +
           s.rows * vectors(s.cols) * c_turn;
}

// For a group of LANES products.
long side_cost(const Slice& s) {
    const auto turns = [](const Strides& at) { return at.stack == 1 ? 1 : TURN; };
    return 60 + 2 * s.rows * s.depth * s.cols + s.rows * s.depth * turns(s.a_at) +
           s.depth * s.cols * turns(s.b_at) + 2 * s.rows * s.cols * turns(s.c_at);
}

void dense(const Slice& s);

// Blocks of the columns of a result that are stored the other way around: rows of sums stay in the
// caches until they are.
void dense_turned(const Slice& s) {
    static thread_local Buffer sum_buffer;
    constexpr long WIDTH = 4 * LANES;
    const long outer = s.c_outer, inner = s.cols / outer;
    const long width = std::min(WIDTH, inner), most_rows = std::min(ROW_BLOCK, s.rows);
    std::vector<long> places(outer * width);
    float* const sums = sum_buffer.room(most_rows * outer * width);
    const Axis cols = s.b_cols(), rows = s.a_rows();
    for (long p = 0; p < s.count; p++)
        for (long i0 = 0; i0 < inner; i0 += width) {
            const long wide = std::min(width, inner - i0);
            for (long o = 0; o < outer; o++)
                for (long i = 0; i < wide; i++) places[o * wide + i] = cols(o * inner + i0 + i);
            Slice part = s;
            part.c_outer = 1, part.count = 1;
            part.b += p * s.b_at.stack;
            part.b_tables.cols = places.data(), part.cols = outer * wide;
            part.c = sums, part.c_at = {0, outer * wide, 1};
            for (long r0 = 0; r0 < s.rows; r0 += most_rows) {
                part.rows = std::min(most_rows, s.rows - r0);
                part.a = s.a + p * s.a_at.stack + (s.a_tables.rows ? 0 : rows(r0));
                if (s.a_tables.rows) part.a_tables.rows = s.a_tables.rows + r0;
                dense(part);
                float* to = s.c + p * s.c_at.stack + r0 * s.c_at.row + i0 * outer;
                for (long r = 0; r < part.rows; r++, to += s.c_at.row)
                    unpack(sums + r * outer * wide, wide, wide, outer, to, outer, 1);
            }
        }
}

void dense(const Slice& s) {
    if (s.c_outer > 1) return dense_turned(s);
    const Slice t = turned(s);
    const long straight = dense_cost(s), around = dense_cost(t);
    const long each = std::min(straight, around);
    const bool small = s.depth * s.cols <= 1024;  // B fits the nearest caches
    if (small && s.count >= LANES / 2 &&
        side_cost(s) * ((s.count + LANES - 1) / LANES) < each * s.count) {
        for (long i = 0; i < s.count; i += LANES)
            side_products(s, i, std::min<long>(LANES, s.count - i));
        return;
    }
    Slice one = around < straight ? t : s;
    for (long i = 0; i < s.count; i++) {
        dense_product(one);
        one.a += one.a_at.stack;
        one.b += one.b_at.stack;
        one.c += one.c_at.stack;
        if (one.start) one.start += one.start_at.stack;
    }
}

}  // namespace
