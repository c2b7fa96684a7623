// Operands rounded to binary16.

#include "rounding.h"

extern "C" void round_operand(const void* x, long kind, long count, uint16_t* to, long* lost) {
    const DefaultArithmetic arithmetic;
    round_to_halves(x, kind, count, to, lost);
}

// Whether `count` numbers round to what is given. Adds to `lost` as above, all of it if they do.
extern "C" long rounds_to(const void* x, long kind, long count, const uint16_t* to, long* lost) {
    const DefaultArithmetic arithmetic;
    const long size = kind == SINGLE ? 4 : kind == DOUBLE ? 8 : 2;
    const char* from = static_cast<const char*>(x);
    uint16_t made[4 * RUN];
    for (; count > 0; count -= 4 * RUN, from += 4 * RUN * size, to += 4 * RUN) {
        const long here = std::min(4 * RUN, count);
        const void* rounded = from;
        if (kind != HALF) round_to_halves(from, kind, here, made, lost), rounded = made;
        if (std::memcmp(rounded, to, size_t(here) * sizeof *to)) return 0;
    }
    return 1;
}
