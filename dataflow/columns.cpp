// Encodes instructions by columns (sat.dataflow.columns): all of one opcode, field after field.

#include <cstdint>

namespace {

constexpr int64_t WORDS = 4;  // of 64 bits in an instruction

// A field: its place, its legal values, and its value of each instruction, or of all of them.
struct Column {
    int64_t at, width, least, most;
    const int64_t* values;  // null: `value` for all
    int64_t value;
};

void put(uint64_t* words, int64_t at, int64_t width, int64_t value) {
    const uint64_t raw = static_cast<uint64_t>(value) & ~uint64_t{0} >> (64 - width);
    const int64_t word = at / 64, shift = at % 64;
    words[word] |= raw << shift;
    if (shift + width > 64) words[word + 1] |= raw >> (64 - shift);
}

}  // namespace

extern "C" {

// Writes `count` instructions of `opcode`; returns -1, or the column that holds a value that is not
// legal, which then stands in `wrong`.
int64_t columns_encode(uint64_t opcode, int64_t count, const Column* columns, int64_t many,
                       uint64_t* made, int64_t* wrong) {
    uint64_t same[WORDS] = {opcode};
    for (int64_t n = 0; n < many; ++n) {
        const Column& own = columns[n];
        if (own.values) continue;
        if (own.value < own.least || own.value > own.most) return *wrong = own.value, n;
        put(same, own.at, own.width, own.value);
    }
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t word = 0; word < WORDS; ++word) made[i * WORDS + word] = same[word];
    }
    for (int64_t n = 0; n < many; ++n) {
        const Column& own = columns[n];
        if (!own.values) continue;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t value = own.values[i];
            if (value < own.least || value > own.most) return *wrong = value, n;
            put(made + i * WORDS, own.at, own.width, value);
        }
    }
    return -1;
}

// Leaves out instructions of an opcode that are what the last one of it was; returns how many stay.
int64_t columns_without_repeats(uint64_t* words, int64_t count, const uint8_t* opcodes,
                                int64_t many) {
    const uint64_t* last[256] = {};
    bool drops[256] = {};
    for (int64_t n = 0; n < many; ++n) drops[opcodes[n]] = true;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t* own = words + i * WORDS;
        const uint8_t opcode = own[0] & 0xFF;
        uint64_t* to = words + kept * WORDS;
        if (drops[opcode]) {
            const uint64_t* before = last[opcode];
            bool again = before != nullptr;
            for (int64_t word = 0; again && word < WORDS; ++word) again = own[word] == before[word];
            if (again) continue;
            last[opcode] = to;
        }
        if (to != own) {
            for (int64_t word = 0; word < WORDS; ++word) to[word] = own[word];
        }
        ++kept;
    }
    return kept;
}
}
