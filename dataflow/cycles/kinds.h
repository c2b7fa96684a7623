// Which instructions of a program are alike to the model: of one kind are those that it answers
// alike, whatever came before. They differ in addresses that bursts do not depend on, in bases of
// buffers, in positions that meet as much padding.
#pragma once

#include "segments.h"
#include "timing.h"

class Kinds {
  public:
    explicit Kinds(const Parameters& p)
        : p(p), boundary(p.boundary_beats * p.beat_bytes), places(1 << 10, -1) {}

    // The kind of the program's next instruction.
    int32_t next(const Instruction& i) {
        key.clear();
        add(i[HEADER::opcode] | i[HEADER::wait] << 8 | i[HEADER::release] << 24 |
            i[HEADER::signal] << 40);
        switch (i.opcode()) {
            case Opcode::TENSOR:
            case Opcode::WINDOW: walk.set(i); break;
            case Opcode::LOAD:
                add(i[LOAD::destination]), add(i[LOAD::by_word]), add(i[LOAD::copies]);
                add(i[LOAD::words_per_pass]);
                rows(i[LOAD::address], i[LOAD::pitch], i[LOAD::rows], i[LOAD::row_bytes]);
                break;
            case Opcode::GATHER: gather(i); break;
            case Opcode::MULTIPLY:
                add(i[MULTIPLY::dataflow]), add(i[MULTIPLY::start]), add(i[MULTIPLY::words]);
                add(i[MULTIPLY::values]), add(i[MULTIPLY::last]);
                break;
            case Opcode::STORE:
                add(i[STORE::source]), add(i[STORE::format]);
                rows(i[STORE::address], i[STORE::pitch], i[STORE::rows], i[STORE::row_bytes]);
                break;
            case Opcode::UPDATE: add(i[UPDATE::rows]), add(i[UPDATE::columns]); break;
            default: break;
        }
        return number();
    }

  private:
    void add(int64_t value) { key.push_back(value); }

    // What bursts of pieces of `size` bytes at `address`, and whole multiples of `step` on, depend
    // on: less than the address within a boundary if no piece can cross one. Returns whether it is
    // the same for all of them.
    bool piece(int64_t address, int64_t step, int64_t size) {
        // All pieces lie alike in blocks of `block` bytes, a divisor of the boundary's.
        int64_t block = step ? std::min(step & -step, boundary) : boundary;
        if (address % block + size > block) {
            add(0), add(address % boundary);
            return false;
        }
        if (block < p.beat_bytes || address % p.beat_bytes + size <= p.beat_bytes) {
            // Every piece lies within a beat, and it does not matter where.
            add(1);
        } else {
            add(2), add(address % p.beat_bytes);
        }
        return true;
    }

    void rows(int64_t address, int64_t pitch, int64_t rows, int64_t size) {
        add(rows), add(size);
        if (!piece(address, rows > 1 ? pitch : 0, size) && rows > 1) add(pitch % boundary);
    }

    void gather(const Instruction& i) {
        const auto& tensor = walk.tensor;
        const auto& window = walk.window;
        const int64_t rows = i[GATHER::rows], size = i[GATHER::segment_bytes];
        const int64_t taps_y = i[GATHER::taps_y], taps_x = i[GATHER::taps_x];
        const int64_t y = i[GATHER::y], x = i[GATHER::x], image = i[GATHER::image];
        const int64_t line = i[GATHER::line], pixel = i[GATHER::pixel];
        add(i[GATHER::destination]), add(i[GATHER::by_word]), add(i[GATHER::transpose]);
        add(i[GATHER::copies]), add(i[GATHER::words_per_pass]), add(banks_together(i, p));
        add(rows), add(taps_y), add(taps_x), add(size), add(walk.pruned(i));
        const int64_t base = tensor.address + i[GATHER::offset] + image * tensor.image_pitch;
        const bool alike =
            piece(base, tensor.pixel_pitch | tensor.line_pitch | tensor.image_pitch, size);
        // Images that these positions may meet, the last of which may be beyond the tensor.
        const int64_t meets = rows / std::max<int64_t>(1, window.lines * window.pixels) + 2;
        const bool images = image + meets <= tensor.images;
        const bool inside = images && within(y, window.lines, window.step_y, taps_y, window.tap_y,
                                             tensor.lines) &&
                            within(x, window.pixels, window.step_x, taps_x, window.tap_x,
                                   tensor.pixels) &&
                            line < window.lines && pixel < window.pixels;
        add(alike), add(inside);
        if (alike && inside) return;
        add(images ? meets : tensor.images - image);
        add(line), add(pixel), add(y), add(x);
        for (const int64_t value : {window.lines, window.pixels, window.step_y, window.step_x,
                                    window.tap_y, window.tap_x, tensor.lines, tensor.pixels}) {
            add(value);
        }
        if (!alike) {
            add(tensor.pixel_pitch), add(tensor.line_pitch), add(tensor.image_pitch);
        }
    }

    // Whether all taps of all positions of an axis lie on the tensor.
    static bool within(int64_t at, int64_t positions, int64_t step, int64_t taps, int64_t tap,
                       int64_t size) {
        const int64_t most = (positions - 1) * step, reach = (taps - 1) * tap;
        return at + std::min<int64_t>(0, most) + std::min<int64_t>(0, reach) >= 0 &&
               at + std::max<int64_t>(0, most) + std::max<int64_t>(0, reach) < size;
    }

    // The number of the kind that `key` names.
    int32_t number() {
        uint64_t hash = key.size();
        for (const int64_t value : key) {
            hash = (hash ^ static_cast<uint64_t>(value)) * 0x9E3779B97F4A7C15u;
            hash ^= hash >> 29;
        }
        for (size_t at = hash & (places.size() - 1);; at = (at + 1) & (places.size() - 1)) {
            if (places[at] < 0) {
                places[at] = static_cast<int32_t>(firsts.size());
                firsts.push_back(keys.size());
                keys.insert(keys.end(), key.begin(), key.end());
                hashes.push_back(hash);
                if (2 * firsts.size() > places.size()) grow();
                return static_cast<int32_t>(firsts.size()) - 1;
            }
            const size_t n = places[at], first = firsts[n];
            const size_t end = n + 1 < firsts.size() ? firsts[n + 1] : keys.size();
            if (hashes[n] == hash && end - first == key.size() &&
                std::equal(key.begin(), key.end(), keys.begin() + first)) {
                return static_cast<int32_t>(n);
            }
        }
    }
    void grow() {
        std::vector<int32_t> more(2 * places.size(), -1);
        for (size_t n = 0; n < hashes.size(); ++n) {
            size_t at = hashes[n] & (more.size() - 1);
            while (more[at] >= 0) at = (at + 1) & (more.size() - 1);
            more[at] = static_cast<int32_t>(n);
        }
        places = std::move(more);
    }

    const Parameters& p;
    const int64_t boundary;  // bytes between the places that no burst crosses
    Walk walk;
    std::vector<int64_t> key;     // of the instruction in turn
    std::vector<int64_t> keys;    // of all kinds, one after the other
    std::vector<size_t> firsts;   // where each begins
    std::vector<uint64_t> hashes;
    std::vector<int32_t> places;  // kinds by hash; -1: none
};
