// The matrix products of the golden model: C[rows, cols] = start + A[rows, depth] * B[depth, cols],
// for one product or a stack of them.
//
// Each element of C is one left fold: its products are added in ascending order of depth, in
// binary32, to nearest even, subnormals kept. Speed comes from working on many elements at a time,
// never from splitting the sum of one; where depth is cut into blocks that fit the caches, the
// running sums wait in memory between blocks, which does not change them.
//
// The compiler may fuse multiplication and addition or leave them apart: the product of two
// binary16 numbers has 22 significant bits and an exponent from -48 to 31, so it is exact in
// binary32 and both give the same bits. Nothing here may be compiled with -ffast-math.
//
// Operands of wider types are rounded to binary16 first.

#include <exception>
#include <vector>

#include "fold_dense.h"
#include "fold_sparse.h"
#include "rounding.h"
#include "share.h"

namespace {

void run_slice(const Slice& s) {
    if (s.indices)
        sparse(s);
    else
        dense(s);
}

// A part of a slice: from one of its products, rows or columns to another.
Slice part_of(const Slice& s, long Slice::*axis, long from, long to) {
    Slice part = s;
    part.*axis = to - from;
    const auto move = [&](const Strides& at) {
        return from * (axis == &Slice::count ? at.stack : axis == &Slice::rows ? at.row : at.col);
    };
    // A table is moved along, or else the operand.
    if (axis == &Slice::rows && s.a_tables.rows)
        part.a_tables.rows += from;
    else if (axis != &Slice::cols)
        part.a += move(s.a_at);
    if (axis == &Slice::cols && s.b_tables.cols) {
        part.b_tables.cols += from;
    } else if (axis != &Slice::rows) {
        part.b += move(s.b_at);
        if (s.indices) part.indices += move(s.b_at);
    }
    if (s.start) part.start += move(s.start_at);
    part.c += move(s.c_at);
    return part;
}

// Whole products go to the threads, or else rows or columns, whichever are more, in multiples of a
// full block; rows if columns are stored in another order.
std::vector<Slice> split(const Slice& s, long threads) {
    long Slice::*axis = s.count >= threads  ? &Slice::count
                        : s.rows >= s.cols || s.c_outer > 1 ? &Slice::rows
                                                            : &Slice::cols;
    long step = 1;
    if (axis == &Slice::rows) step = s.indices ? NM_ROWS : TILE_ROWS;
    if (axis == &Slice::cols) step = s.indices ? 2 : TILE_COLS;
    const long length = s.*axis, blocks = (length + step - 1) / step;
    const long parts = std::min(threads, blocks);
    std::vector<Slice> slices;
    for (long part = 0; part < parts; part++)
        slices.push_back(part_of(s, axis, blocks * part / parts * step,
                                 std::min(length, blocks * (part + 1) / parts * step)));
    return slices;
}

}  // namespace

namespace {

// Memory of a thread for an operand that is rounded, large ones aside.
class Rounded {
    static constexpr long LARGEST = 1 << 24;
    Buffer kept, large;

  public:
    const uint16_t* operator()(const void* x, long kind, long numbers, long* lost) {
        if (kind == HALF) return static_cast<const uint16_t*>(x);
        Buffer& memory = numbers <= LARGEST ? kept : large;
        auto* const made = reinterpret_cast<uint16_t*>(memory.room((numbers + 1) / 2));
        round_to_halves(x, kind, numbers, made, lost);
        return made;
    }
    void end() { large = Buffer(); }
};

long fold(const Plan& p, const Slice& all) {
    if (all.indices) {
        const long bad = first_bad_index(all);
        if (bad >= 0) return bad;
    }
    if (p.threads == 1) {
        run_slice(all);
        return *all.stop ? -3 : -1;
    }
    const std::vector<Slice> slices = split(all, p.threads);
    in_parts(long(slices.size()), [&](long part) { run_slice(slices[part]); });
    return *all.stop ? -3 : -1;
}

}  // namespace

// Computes c (count, rows, cols) from a (count, rows, depth) and b. indices null: b is (count,
// depth, cols), n and m are not read. Else b and indices are the compact form of pattern n:m,
// (count, kept, cols), columns side by side. start is null or lies as the plan says. What rounding
// loses is added to `lost`, which is not read if both operands are HALF.
// Returns -1 when done, -2 when memory or threads ran out, -3 when *stop became not zero (looked at
// every few milliseconds), else the position of a bad index (nothing is computed then).
extern "C" long golden_fold(const Plan* plan, const void* a, const void* b, const uint8_t* indices,
                            const float* start, float* c, const volatile int* stop, long* lost) {
    static thread_local Rounded left, right;
    const Plan& p = *plan;
    try {
        const DefaultArithmetic arithmetic;
        const Slice all = {left(a, p.a_kind, p.a_numbers, lost),
                           p.a,
                           right(b, p.b_kind, p.b_numbers, lost),
                           p.b,
                           indices,
                           start,
                           p.start,
                           c,
                           p.c,
                           p.count,
                           p.rows,
                           p.cols,
                           p.depth,
                           p.n,
                           p.m,
                           stop,
                           p.a_tables,
                           p.b_tables,
                           p.c_outer};
        const long status = fold(p, all);
        left.end(), right.end();
        return status;
    } catch (const std::exception&) {
        return -2;
    }
}
