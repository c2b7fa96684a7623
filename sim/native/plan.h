// How the golden model's kernel is called.

#pragma once

#include <cstdint>

// An element lies at `stack` times the product's number plus `row` times its row plus `col` times
// its column.
struct Strides {
    long stack, row, col;
};

// Types that operands come in: binary16, binary32, binary64, bfloat16.
enum Kind : long { HALF, SINGLE, DOUBLE, BFLOAT };

// Where rows and columns lie that are no even distance apart, as those of windows in a picture:
// elements from the product's first one. Null where strides say it. Such an operand is HALF and
// dense.
struct Tables {
    const long *rows, *cols;
};

// What a call needs to know of its operands, but for where they lie. Strides are in elements;
// indices lie as the values beside them. An operand that is not HALF fills all of its memory, from
// its first number on, without gaps: so many numbers. Where there are tables, strides are those of
// the first two rows and columns. Columns of c whose number is (i, j), of `c_outer` times others,
// are stored as (j, i); there is no start, and b is dense, unless `c_outer` is 1.
struct Plan {
    long count, rows, cols, depth;
    long n, m;
    Strides a, b, start, c;
    long threads;
    long a_kind, a_numbers, b_kind, b_numbers;
    Tables a_tables, b_tables;
    long c_outer;
};

// golden_fold.cpp says what it does.
using Fold = long (*)(const Plan* plan, const void* a, const void* b, const uint8_t* indices,
                      const float* start, float* c, const volatile int* stop, long* lost);
