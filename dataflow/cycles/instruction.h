// The 32 bytes of an instruction, read by the names that sat.rtl.isa gives their fields.
#pragma once

#include <cstdint>
#include <cstring>

class Instruction {
  public:
    explicit Instruction(const uint8_t* raw) { std::memcpy(words, raw, sizeof words); }

    int64_t operator[](const Field& field) const {
        const int word = field.at / 64, shift = field.at % 64;
        uint64_t bits = words[word] >> shift;
        if (shift + field.width > 64) bits |= words[word + 1] << (64 - shift);
        const int above = 64 - field.width;
        if (field.is_signed) return static_cast<int64_t>(bits << above) >> above;
        return static_cast<int64_t>(bits << above >> above);
    }
    Opcode opcode() const { return static_cast<Opcode>((*this)[HEADER::opcode]); }

  private:
    uint64_t words[INSTRUCTION_BYTES / 8];
};
