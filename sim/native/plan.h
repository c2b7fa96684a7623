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

// What a call needs to know of its operands, but for where they lie. Strides are in elements;
// indices lie as the values beside them. An operand that is not HALF fills all of its memory, from
// its first number on, without gaps: so many numbers.
struct Plan {
    long count, rows, cols, depth;
    long n, m;
    Strides a, b, start, c;
    long threads;
    long a_kind, a_numbers, b_kind, b_numbers;
};

// golden_fold.cpp says what it does.
using Fold = long (*)(const Plan* plan, const void* a, const void* b, const uint8_t* indices,
                      const float* start, float* c, const volatile int* stop, long* lost);
