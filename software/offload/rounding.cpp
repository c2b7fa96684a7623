// Operands rounded to binary16.

#include "rounding.h"

extern "C" void round_operand(const void* x, long kind, long count, uint16_t* to, long* lost) {
    const DefaultArithmetic arithmetic;
    round_to_halves(x, kind, count, to, lost);
}
