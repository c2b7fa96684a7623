// From LOAD and GATHER instructions to the segments of memory that they read: what
// `SegmentWalker` of rtl/segments.py does.
#pragma once

#include "instruction.h"
#include "timing.h"

// Consecutive bytes, or `zero`: as many zeros.
struct Segment {
    int64_t address, size;
    bool zero;
};

// The banks that take a transposed GATHER's channels in one write: those of several groups if the
// stride lets these be written together.
inline int64_t banks_together(const Instruction& i, const Parameters& p) {
    const bool to_a = i[GATHER::destination] == int64_t(Buffer::A);
    const int64_t banks = to_a ? p.rows : p.cols, groups = to_a ? p.a_groups : p.b_groups;
    const int64_t apart = over(p.beat_words, groups);
    const bool wide = left_over(i[GATHER::stride] - apart, p.beat_words) == 0;
    return wide ? banks * groups : banks;
}

// TENSOR and WINDOW are held as the engine holds them, from instruction to instruction.
class Walk {
  public:
    void set(const Instruction& i) {
        if (i.opcode() == Opcode::TENSOR) {
            tensor = {i[TENSOR::address], i[TENSOR::images], i[TENSOR::lines], i[TENSOR::pixels],
                      i[TENSOR::pixel_pitch], i[TENSOR::line_pitch], i[TENSOR::image_pitch]};
        } else {
            window = {i[WINDOW::lines], i[WINDOW::pixels], i[WINDOW::step_y],
                      i[WINDOW::step_x], i[WINDOW::tap_y], i[WINDOW::tap_x], i[WINDOW::n]};
        }
    }

    // The N of the pattern to which a GATHER prunes what it brings, or 0.
    int64_t pruned(const Instruction& i) const {
        const bool to_b = i[GATHER::destination] == int64_t(Buffer::B);
        return to_b && i[GATHER::transpose] ? window.n : 0;
    }

    // Call `give(segment)` for each segment of a LOAD or GATHER, in order.
    template <typename Give>
    void segments(const Instruction& i, Give give) const {
        if (i.opcode() == Opcode::LOAD) {
            const int64_t rows = i[LOAD::rows], pitch = i[LOAD::pitch], size = i[LOAD::row_bytes];
            int64_t address = i[LOAD::address];
            for (int64_t row = 0; row < rows; ++row, address += pitch) {
                give(Segment{address, size, false});
            }
            return;
        }
        const int64_t rows = i[GATHER::rows], size = i[GATHER::segment_bytes];
        const int64_t taps_y = i[GATHER::taps_y], taps_x = i[GATHER::taps_x];
        const int64_t base = tensor.address + i[GATHER::offset];
        int64_t image = i[GATHER::image], line = i[GATHER::line], pixel = i[GATHER::pixel];
        // Addresses of taps off the tensor are never used: what they are does not matter.
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t y0 = i[GATHER::y] + line * window.step_y;
            const int64_t x0 = i[GATHER::x] + pixel * window.step_x;
            const int64_t first = base + image * tensor.image_pitch;
            for (int64_t tap_y = 0; tap_y < taps_y; ++tap_y) {
                const int64_t y = y0 + tap_y * window.tap_y;
                const bool inside = image < tensor.images && 0 <= y && y < tensor.lines;
                const int64_t at = first + y * tensor.line_pitch;
                for (int64_t tap_x = 0; tap_x < taps_x; ++tap_x) {
                    const int64_t x = x0 + tap_x * window.tap_x;
                    const bool hit = inside && 0 <= x && x < tensor.pixels;
                    give(Segment{at + x * tensor.pixel_pitch, size, !hit});
                }
            }
            if (++pixel == window.pixels) {
                pixel = 0;
                if (++line == window.lines) line = 0, ++image;
            }
        }
    }

    struct {
        int64_t address, images, lines, pixels, pixel_pitch, line_pitch, image_pitch;
    } tensor = {};
    struct {
        int64_t lines, pixels, step_y, step_x, tap_y, tap_x, n;
    } window = {1, 1, 0, 0, 0, 0, 0};
};
