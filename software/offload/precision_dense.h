// Products of two first bands, all passes of a tile of the result in one go: its sums stay in
// registers, and a part of an operand is laid out once, not once a pass.

#pragma once

#include <utility>

#include "fold_vectors.h"
#include "precision_jobs.h"

namespace {

// Rows of a tile, of two vectors each, as in fold_dense.h.
#if defined(__AVX512F__)
constexpr int PASS_ROWS = 12;
#else
constexpr int PASS_ROWS = 6;
#endif
constexpr long PASS_COLS = 2 * LANES;
// Numbers of all parts of a panel of one tile's lanes that stays near in the caches, of the lanes that
// all lines pass by at a time, and of what stays in the caches at all, which is better than to lay it
// out again and again.
constexpr long NEAR = 1 << 17, GROUP_OF_LANES = 1 << 18, FAR = 1 << 19;
// Sums of a product that fill vectors too badly.
constexpr long SMALL_RESULT = 24;

using Passes = std::vector<std::pair<int, int>>;

// An operand's first band: a product's parts, lines and places.
struct Source {
    const uint16_t* parts;
    long part, product, line, place;  // numbers from one to the next

    explicit Source(const Operand& of)
        : parts(of.first->parts.get()),
          part(of.size()),
          product(of.product_step()),
          line(of.line_step()),
          place(of.place_step()) {}
};

// Sums of ROWS x VECTORS vectors. a is (PARTS, ROWS, a_row), of which `depth` places count, or,
// BY_DEPTH, (PARTS, depth, ROWS); b is (PARTS, depth, VECTORS * LANES).
template <int ROWS, int VECTORS, bool BY_DEPTH>
void passes_tile(const Passes& passes, long depth, const float* a, long a_row, const float* b,
                 float* out, long out_row) {
    constexpr long WIDTH = VECTORS * LANES;
    const long row = BY_DEPTH ? 1 : a_row, step = BY_DEPTH ? ROWS : 1;
    const long a_part = BY_DEPTH ? ROWS * depth : ROWS * a_row, b_part = WIDTH * depth;
    Vector sums[ROWS][VECTORS] = {};
    for (const auto& pass : passes) {
        const float* x = a + pass.first * a_part;
        const float* y = b + pass.second * b_part;
        for (long k = 0; k < depth; k++, x += step, y += WIDTH) {
            Vector columns[VECTORS];
            for (int v = 0; v < VECTORS; v++) columns[v] = load(y + v * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) {
                const Vector value = spread(x[r * row]);
                for (int v = 0; v < VECTORS; v++) sums[r][v] += value * columns[v];
            }
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) store(out + r * out_row + v * LANES, sums[r][v]);
}

using PassesTile = decltype(&passes_tile<1, 1, false>);

template <int VECTORS, bool BY_DEPTH, int... I>
PassesTile passes_tile_of(long rows, std::integer_sequence<int, I...>) {
    static constexpr PassesTile TILES[] = {&passes_tile<I + 1, VECTORS, BY_DEPTH>...};
    return TILES[rows - 1];
}

inline PassesTile passes_tile_for(long rows, bool narrow, bool by_depth) {
    constexpr auto heights = std::make_integer_sequence<int, PASS_ROWS>{};
    if (narrow)
        return by_depth ? passes_tile_of<1, true>(rows, heights)
                        : passes_tile_of<1, false>(rows, heights);
    return by_depth ? passes_tile_of<2, true>(rows, heights)
                    : passes_tile_of<2, false>(rows, heights);
}

// The job at hand of a Work, both of whose bands are the first ones: over all of the depth, or over
// the places that the job has.
class PassesJob {
    const Work& work;
    const bool around;  // rows of the product are the lanes
    const Source a, b;  // lines and lanes
    const long lines, lanes, depth;
    std::vector<long> a_places, b_places;  // where they are; empty: all
    Passes passes;
    bool used[2][PARTS] = {};

    static long cost(long lines, long lanes) { return lines * ((lanes + LANES - 1) / LANES); }

  public:
    PassesJob(const Work& work, bool all)
        : work(work),
          around(cost(work.cols, work.rows) < cost(work.rows, work.cols)),
          a(around ? work.right : work.left),
          b(around ? work.left : work.right),
          lines(around ? work.cols : work.rows),
          lanes(around ? work.rows : work.cols),
          depth(all ? work.depth : work.job.places_each) {
        for (const long place : all ? std::vector<long>() : work.job.places) {
            a_places.push_back(place * a.place);
            b_places.push_back(place * b.place);
        }
        for (const auto& pass : work.job.passes) {
            passes.emplace_back(around ? pass.second : pass.first,
                                around ? pass.first : pass.second);
            used[0][passes.back().first] = used[1][passes.back().second] = true;
        }
    }

    // Whether panels of the whole depth stay in the caches. (Of many products with small results,
    // lanes are better whole products: fold_dense.h.)
    bool fits() const {
        const bool many = work.count >= LANES / 2 && depth * work.cols <= 1024 &&
                          work.rows * work.cols < SMALL_RESULT;
        return !many && PARTS * depth * PASS_COLS <= (lines <= 128 ? FAR : NEAR);
    }

    // Writes sums (count, rows, cols). Returns false if *stop became not zero.
    bool run(float* sums, const volatile int* stop) const {
        // Shares of lines, as of the whole stack, in whole tiles.
        const long tiles = (lines + PASS_ROWS - 1) / PASS_ROWS;
        const long high = (lines + tiles - 1) / tiles;  // tiles of equal height
        share(work.threads, work.count * tiles, work.count * work.rows * work.cols * depth / 16,
              [&](long from, long end, long) {
                  while (from < end && !*stop) {
                      const long p = from / tiles, last = std::min(end, (p + 1) * tiles);
                      some(p, (from - p * tiles) * high, std::min(lines, (last - p * tiles) * high),
                           high, sums, stop);
                      from = last;
                  }
              });
        return !*stop;
    }

  private:
    // Lays out a panel of all parts that are used.
    void lay(int side, const Source& of, long p, long line0, long count, float* to, long width,
             bool by_depth, long part) const {
        const std::vector<long>& places = side ? b_places : a_places;
        const Axis place{of.place, places.empty() ? nullptr : places.data()};
        const Axis line{of.line, nullptr};
        for (int i = 0; i < PARTS; i++) {
            if (!used[side][i]) continue;
            const uint16_t* from = of.parts + i * of.part + p * of.product + line0 * of.line;
            if (by_depth)
                pack(from, line, place, 0, 0, count, depth, to + i * part, width, width);
            else
                pack(from, place, line, 0, 0, depth, count, to + i * part, width, depth);
        }
    }

    // Some lines of a product, in tiles of `high`.
    void some(long p, long from, long end, long high, float* sums, const volatile int* stop) const {
        static thread_local Buffer a_buffer, b_buffer;
        const bool narrow = lanes <= LANES, by_depth = a.place != 1;
        const long width = narrow ? LANES : PASS_COLS;
        const long b_tile = PARTS * depth * width;
        const long together = std::max(1L, GROUP_OF_LANES / b_tile) * width;  // lanes of a group
        const long a_row = depth + LANES - depth % LANES;  // not a power of two
        const long a_tile = PARTS * high * (by_depth ? depth : a_row);
        const long tiles = (end - from + high - 1) / high;
        const bool kept = tiles * a_tile <= FAR;
        float* const a_panel = a_buffer.room(kept ? tiles * a_tile : a_tile);
        float* const b_panel = b_buffer.room(std::min(together / width, (lanes + width - 1) / width) *
                                             b_tile);
        const long out_line = around ? 1 : work.cols, out_lane = around ? work.cols : 1;
        float* const product = sums + p * work.rows * work.cols;
        float edge[PASS_ROWS * PASS_COLS];
        for (long l0 = 0; l0 < lanes; l0 += together) {
            if (*stop) return;
            const long wide = std::min(together, lanes - l0);
            for (long l = 0; l < wide; l += width)
                lay(1, b, p, l0 + l, std::min(width, wide - l), b_panel + l / width * b_tile, width,
                    true, depth * width);
            for (long r = from; r < end; r += high) {
                const long rows = std::min(high, end - r);
                float* const panel = a_panel + (kept ? (r - from) / high * a_tile : 0);
                if (!kept || l0 == 0)
                    lay(0, a, p, r, rows, panel, by_depth ? rows : a_row, by_depth,
                        rows * (by_depth ? depth : a_row));
                const PassesTile compute = passes_tile_for(rows, narrow, by_depth);
                for (long l = 0; l < wide; l += width) {
                    float* const to = product + r * out_line + (l0 + l) * out_lane;
                    const float* const lanes_of = b_panel + l / width * b_tile;
                    const long count = std::min(width, wide - l);
                    if (count == width && !around) {
                        compute(passes, depth, panel, a_row, lanes_of, to, out_line);
                        continue;
                    }
                    compute(passes, depth, panel, a_row, lanes_of, edge, width);
                    unpack(edge, width, count, rows, to, out_lane, out_line);
                }
            }
        }
    }
};

}  // namespace
