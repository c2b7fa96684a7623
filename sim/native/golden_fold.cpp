// The matrix products of the golden model: C[rows, cols] = start + A[rows, depth] * B[depth, cols].
//
// Each element of C is one left fold: its products are added in ascending order of depth, in
// binary32, to nearest even, subnormals kept. Speed comes from working on many elements at a time,
// never from splitting the sum of one; where depth is cut into blocks that fit the caches, the
// running sums wait in memory between blocks, which does not change them.
//
// The compiler may fuse multiplication and addition or leave them apart: the product of two
// binary16 numbers has 22 significant bits and an exponent from -48 to 31, so it is exact in
// binary32 and both give the same bits. Nothing here may be compiled with -ffast-math.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "floats.h"

namespace {

#if defined(__AVX512F__)
constexpr long LANES = 16;
constexpr long DENSE_ROWS = 12;  // times 2 vectors of columns: 24 of 32 registers hold sums
#elif defined(__AVX__)
constexpr long LANES = 8;
constexpr long DENSE_ROWS = 6;  // 12 of 16 registers
#else
constexpr long LANES = 4;
constexpr long DENSE_ROWS = 6;
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
using Buffer = std::unique_ptr<float[], Free>;

Buffer allocate(long count) {
    const size_t bytes = (size_t(count) * sizeof(float) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return Buffer(static_cast<float*>(memory));
}

// to[i][j] = from[j][i], to being (rows, cols), in blocks whose lines stay in the nearest cache.
void transpose(const float* from, long from_stride, float* to, long to_stride, long rows,
               long cols) {
    constexpr long BLOCK = 16;
    for (long j0 = 0; j0 < cols; j0 += BLOCK) {
        const long width = std::min(BLOCK, cols - j0);
        if (width == BLOCK) {
            for (long i = 0; i < rows; i++)
#pragma GCC unroll 16
                for (long j = 0; j < BLOCK; j++)
                    to[i * to_stride + j0 + j] = from[(j0 + j) * from_stride + i];
        } else {
            for (long i = 0; i < rows; i++)
                for (long j = j0; j < cols; j++) to[i * to_stride + j] = from[j * from_stride + i];
        }
    }
}

// (rows, depth) binary16 to (depth, rows) binary32.
void pack_rows(const uint16_t* a, long a_stride, long rows, long depth, float* packed,
               long packed_stride, float* scratch) {
    for (long r = 0; r < rows; r++) widen(a + r * a_stride, scratch + r * depth, depth);
    transpose(scratch, depth, packed, packed_stride, depth, rows);
}

// One product, or the part of one that a thread computes. Matrices lie in memory row by row.
struct Slice {
    const uint16_t* a;
    long a_stride;
    const uint16_t* b;       // dense: (depth, cols); N:M: the stored values, (kept, cols)
    const uint8_t* indices;  // N:M only: position of each stored value in its group
    long b_stride;
    const float* start;  // null: every sum starts at +0
    long start_stride;   // 0: every row starts with the same values
    float* c;
    long c_stride;
    long rows, cols, depth;
    long n, m;  // the pattern
};

// ------------------------------------------------------------------------------------- dense

constexpr long DENSE_COLS = 2 * LANES;
constexpr long DENSE_DEPTH_BLOCK = 256;
constexpr long DENSE_ROW_BLOCK = 16 * DENSE_ROWS;
constexpr long DENSE_COL_BLOCK = 32 * DENSE_COLS;

// Sums of ROWS x DENSE_COLS elements over one block of depth. a is packed (depth, ROWS), b
// (depth, DENSE_COLS); the sums come from `in` (null: +0) and go to `out`.
template <int ROWS>
void dense_tile(long depth, const float* a, const float* b, const float* in, long in_stride,
                float* out, long out_stride) {
    Vector sums[ROWS][2];
    for (int r = 0; r < ROWS; r++) {
        sums[r][0] = in ? load(in + r * in_stride) : Vector{};
        sums[r][1] = in ? load(in + r * in_stride + LANES) : Vector{};
    }
    for (long k = 0; k < depth; k++) {
        const Vector b0 = load(b + k * DENSE_COLS);
        const Vector b1 = load(b + k * DENSE_COLS + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const Vector x = spread(a[k * ROWS + r]);
            sums[r][0] += x * b0;
            sums[r][1] += x * b1;
        }
    }
    for (int r = 0; r < ROWS; r++) {
        store(out + r * out_stride, canonical(sums[r][0]));
        store(out + r * out_stride + LANES, canonical(sums[r][1]));
    }
}

using DenseTile = decltype(&dense_tile<1>);

template <int... I>
DenseTile dense_tile_of(long rows, std::integer_sequence<int, I...>) {
    static constexpr DenseTile TILES[] = {&dense_tile<I + 1>...};
    return TILES[rows - 1];
}


// (depth, cols) binary16 to panels (depth, DENSE_COLS) binary32, the last filled up with zeros.
void pack_columns(const uint16_t* b, long b_stride, long cols, long depth, float* packed) {
    for (long c = 0; c < cols; c += DENSE_COLS) {
        const long width = std::min(DENSE_COLS, cols - c);
        for (long k = 0; k < depth; k++, packed += DENSE_COLS) {
            widen(b + k * b_stride + c, packed, width);
            std::fill(packed + width, packed + DENSE_COLS, 0.0f);
        }
    }
}

void dense(const Slice& s) {
    const long depth_block = std::min(DENSE_DEPTH_BLOCK, s.depth);
    const long row_block = std::min(DENSE_ROW_BLOCK, s.rows);
    const long col_block =
        std::min(DENSE_COL_BLOCK, (s.cols + DENSE_COLS - 1) / DENSE_COLS * DENSE_COLS);
    // Kept for the thread's next product: to touch fresh memory takes longer than a small product.
    thread_local const Buffer a_packed = allocate(DENSE_ROW_BLOCK * DENSE_DEPTH_BLOCK);
    thread_local const Buffer b_packed = allocate(DENSE_DEPTH_BLOCK * DENSE_COL_BLOCK);
    thread_local const Buffer scratch = allocate(DENSE_ROWS * DENSE_DEPTH_BLOCK);
    float edge[DENSE_ROWS * DENSE_COLS];
    for (long c0 = 0; c0 < s.cols; c0 += col_block) {
        const long cols = std::min(col_block, s.cols - c0);
        for (long k0 = 0; k0 < s.depth; k0 += depth_block) {
            const long depth = std::min(depth_block, s.depth - k0);
            pack_columns(s.b + k0 * s.b_stride + c0, s.b_stride, cols, depth, b_packed.get());
            const float* in = k0 ? s.c : s.start;
            const long in_stride = k0 ? s.c_stride : s.start_stride;
            for (long r0 = 0; r0 < s.rows; r0 += row_block) {
                const long rows = std::min(row_block, s.rows - r0);
                for (long r = 0; r < rows; r += DENSE_ROWS) {
                    const long high = std::min(DENSE_ROWS, rows - r);
                    pack_rows(s.a + (r0 + r) * s.a_stride + k0, s.a_stride, high, depth,
                              a_packed.get() + r * depth, high, scratch.get());
                }
                for (long c = 0; c < cols; c += DENSE_COLS) {
                    const long width = std::min(DENSE_COLS, cols - c);
                    const float* b = b_packed.get() + c * depth;
                    for (long r = 0; r < rows; r += DENSE_ROWS) {
                        const long high = std::min(DENSE_ROWS, rows - r);
                        const DenseTile tile =
                            dense_tile_of(high, std::make_integer_sequence<int, DENSE_ROWS>{});
                        const float* a = a_packed.get() + r * depth;
                        const float* from =
                            in ? in + (r0 + r) * in_stride + c0 + c : nullptr;
                        float* to = s.c + (r0 + r) * s.c_stride + c0 + c;
                        if (width == DENSE_COLS) {
                            tile(depth, a, b, from, in_stride, to, s.c_stride);
                            continue;
                        }
                        // The tile is wider than what is left of the row: by way of a copy.
                        std::fill(edge, edge + DENSE_ROWS * DENSE_COLS, 0.0f);
                        for (long i = 0; from && i < high; i++)
                            std::copy_n(from + i * in_stride, width, edge + i * DENSE_COLS);
                        tile(depth, a, b, edge, DENSE_COLS, edge, DENSE_COLS);
                        for (long i = 0; i < high; i++)
                            std::copy_n(edge + i * DENSE_COLS, width, to + i * s.c_stride);
                    }
                }
            }
        }
    }
}

// --------------------------------------------------------------------------------------- N:M

// Columns store different positions, so what columns share is nothing, and rows everything: a
// vector holds LANES rows of one column. A block of A, transposed, stays in the first-level cache.
constexpr long NM_VECTORS = 4;
constexpr long NM_ROWS = NM_VECTORS * LANES;
constexpr long NM_DEPTH_BLOCK = 96;  // a multiple of 16: no group is cut
constexpr long NM_COL_BLOCK = 1024;

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
        const uint8_t* index = s.indices + row * s.b_stride + c0;
        widen(s.b + row * s.b_stride + c0, scratch, cols);
        for (long c = 0; c < cols; c++) {
            const long to = (c / 2 * count + i) * 2 + c % 2;
            values[to] = scratch[c];
            offsets[to] = (group + index[c]) * uint32_t(NM_ROWS);
        }
    }
}

void sparse(const Slice& s) {
    const long kept = kept_of(s.depth, s.n, s.m);
    const long block_kept = NM_DEPTH_BLOCK / s.m * s.n;
    const long col_block = std::min(NM_COL_BLOCK, s.cols + s.cols % 2);
    const Buffer values = allocate(kept * col_block);
    const Buffer offset_buffer = allocate(kept * col_block);
    uint32_t* offsets = reinterpret_cast<uint32_t*>(offset_buffer.get());
    const Buffer sums = allocate(col_block * NM_ROWS);
    const Buffer a_packed = allocate(NM_DEPTH_BLOCK * NM_ROWS);
    const Buffer scratch = allocate(std::max(col_block, NM_DEPTH_BLOCK * NM_ROWS));
    // Rows past the last one stay zero and are not read back.
    std::fill_n(a_packed.get(), NM_DEPTH_BLOCK * NM_ROWS, 0.0f);
    for (long c0 = 0; c0 < s.cols; c0 += col_block) {
        const long cols = std::min(col_block, s.cols - c0);
        const long even_cols = cols + cols % 2;
        for (long first = 0; first < kept; first += block_kept) {
            const long count = std::min(block_kept, kept - first);
            pack_stored(s, c0, cols, first, count, values.get() + first * even_cols,
                        offsets + first * even_cols, scratch.get());
        }
        for (long r0 = 0; r0 < s.rows; r0 += NM_ROWS) {
            const long rows = std::min(NM_ROWS, s.rows - r0);
            const NmTile tile = nm_tile_of((rows + LANES - 1) / LANES,
                                           std::make_integer_sequence<int, NM_VECTORS>{});
            std::fill_n(sums.get(), even_cols * NM_ROWS, 0.0f);
            if (s.start)
                transpose(s.start + r0 * s.start_stride + c0, s.start_stride, sums.get(), NM_ROWS,
                          cols, rows);
            for (long first = 0, k0 = 0; first < kept; first += block_kept, k0 += NM_DEPTH_BLOCK) {
                const long count = std::min(block_kept, kept - first);
                const long depth = std::min(NM_DEPTH_BLOCK, s.depth - k0);
                pack_rows(s.a + r0 * s.a_stride + k0, s.a_stride, rows, depth, a_packed.get(),
                          NM_ROWS, scratch.get());
                const float* block_values = values.get() + first * even_cols;
                const uint32_t* block_offsets = offsets + first * even_cols;
                for (long c = 0; c < cols; c += 2)
                    tile(count, a_packed.get(), block_values + c * count,
                         block_offsets + c * count, sums.get() + c * NM_ROWS);
            }
            for (long i = 0; i < even_cols * NM_ROWS; i += LANES)
                store(sums.get() + i, canonical(load(sums.get() + i)));
            transpose(sums.get(), NM_ROWS, s.c + r0 * s.c_stride + c0, s.c_stride, rows, cols);
        }
    }
}

// Position (row * cols + column) of the first stored index that is not in its group or does not
// rise inside it; -1 if there is none.
long first_bad_index(const uint8_t* indices, long depth, long cols, long n, long m) {
    const long kept = kept_of(depth, n, m);
    for (long row = 0; row < kept; row++) {
        const long group = row / n;
        const uint8_t size = uint8_t(std::min(m, depth - group * m));
        const uint8_t* now = indices + row * cols;
        const uint8_t* before = now - cols;
        unsigned char bad = 0;
        for (long c = 0; c < cols; c++) bad |= now[c] >= size;
        if (row % n)
            for (long c = 0; c < cols; c++) bad |= now[c] <= before[c];
        for (long c = 0; bad && c < cols; c++)
            if (now[c] >= size || (row % n && now[c] <= before[c])) return row * cols + c;
    }
    return -1;
}

// ------------------------------------------------------------------------------------ threads

void run_slice(const Slice& s) {
    const DefaultArithmetic arithmetic;
    if (s.indices)
        sparse(s);
    else
        dense(s);
}

// Rows or columns, whichever are more, go to the threads in multiples of a full block.
std::vector<Slice> split(const Slice& s, long threads) {
    const bool by_rows = s.rows >= s.cols;
    const long length = by_rows ? s.rows : s.cols;
    const long step = s.indices ? (by_rows ? NM_ROWS : 2) : (by_rows ? DENSE_ROWS : DENSE_COLS);
    const long blocks = (length + step - 1) / step;
    const long parts = std::min(threads, blocks);
    std::vector<Slice> slices;
    for (long part = 0; part < parts; part++) {
        const long from = blocks * part / parts * step;
        const long to = std::min(length, blocks * (part + 1) / parts * step);
        Slice one = s;
        if (by_rows) {
            one.a += from * s.a_stride;
            if (s.start) one.start += from * s.start_stride;
            one.c += from * s.c_stride;
            one.rows = to - from;
        } else {
            one.b += from;
            if (s.indices) one.indices += from;
            if (s.start) one.start += from;
            one.c += from;
            one.cols = to - from;
        }
        slices.push_back(one);
    }
    return slices;
}

}  // namespace

// Computes c (rows, cols) from a (rows, depth) and b, all row by row without gaps. indices null:
// b is (depth, cols), n and m are not read. Else b and indices are the compact form of pattern
// n:m, (kept, cols). start is null or has `start_stride` elements from one row to the next.
// Returns -1 when done, -2 when memory or threads ran out, else the position of a bad index
// (nothing is computed then).
extern "C" long golden_fold(const uint16_t* a, const uint16_t* b, const uint8_t* indices,
                            const float* start, float* c, long rows, long cols, long depth,
                            long start_stride, long n, long m, long threads) {
    if (indices) {
        const long bad = first_bad_index(indices, depth, cols, n, m);
        if (bad >= 0) return bad;
    }
    const Slice all = {a,     depth, b,    indices, cols,  start, start_stride,
                       c,     cols,  rows, cols,    depth, n,     m};
    try {
        if (threads == 1) {
            run_slice(all);
            return -1;
        }
        const std::vector<Slice> slices = split(all, threads);
        std::vector<char> failed(slices.size(), 0);
        std::vector<std::thread> others;
        const auto work = [&](size_t i) {
            try {
                run_slice(slices[i]);
            } catch (const std::exception&) {
                failed[i] = 1;
            }
        };
        try {
            for (size_t i = 1; i < slices.size(); i++) others.emplace_back(work, i);
        } catch (const std::exception&) {
            failed[0] = 1;
        }
        if (!failed[0]) work(0);
        for (std::thread& other : others) other.join();
        return std::count(failed.begin(), failed.end(), 1) ? -2 : -1;
    } catch (const std::exception&) {
        return -2;
    }
}
