// Products of a further band, which as a rule has few elements: these alone are multiplied.
//
// A sum takes the products of its elements in the order that it would take those of all: pass after
// pass, places ascending. What is left out are zeros times finite numbers, which change no sum.

#pragma once

#include "fold_vectors.h"
#include "precision_jobs.h"

namespace {

// An element of a sparse line: where it stands among the places, and its parts.
struct Item {
    float parts[PARTS];
    int32_t at;
};

constexpr long SPARSE_LANES = 64;  // that are worked on at a time

// Sums of LINES lines, each with as many items (side by side), times VECTORS vectors of lanes.
// `panel` is (PARTS, places, VECTORS * LANES); `passes` says which parts of items and panel.
template <int LINES, int VECTORS>
void sparse_tile(const Item* items, long count, const std::vector<std::pair<int, int>>& passes,
                 const float* panel, long places, float* out) {
    constexpr long WIDTH = VECTORS * LANES;
    Vector sums[LINES][VECTORS] = {};
    for (const auto& pass : passes) {
        const float* lanes = panel + pass.second * places * WIDTH;
        const Item* item = items;
        for (long i = 0; i < count; i++)
#pragma GCC unroll 8
            for (int l = 0; l < LINES; l++, item++) {
                const Vector x = spread(item->parts[pass.first]);
                const float* const from = lanes + item->at * WIDTH;
                for (int v = 0; v < VECTORS; v++) sums[l][v] += x * load(from + v * LANES);
            }
    }
    for (int l = 0; l < LINES; l++)
        for (int v = 0; v < VECTORS; v++) store(out + l * WIDTH + v * LANES, sums[l][v]);
}

// Adds sums to a total, scaled back; those of the total are `step` apart.
inline void add_scaled(const float* sums, long count, int32_t exponent, const int32_t* exponents,
                       double* to, long step) {
    const auto ends = std::minmax_element(exponents, exponents + count);
    // As in Work::add.
    if (exponent + *ends.first > -1000 && exponent + *ends.second < 900)
        for (long i = 0; i < count; i++)
            to[i * step] += sums[i] * power<double>(exponent + exponents[i]);
    else
        for (long i = 0; i < count; i++)
            to[i * step] += std::ldexp(double(sums[i]), exponent + exponents[i]);
}

// The job at hand of a Work, one of whose bands, or both, is a further one.
class SparseJob {
    const Work& work;
    const Job& job;
    // The operand whose elements are few, with its band; the other one's lines are lanes.
    const bool of_left;
    const Operand &sparse, &other;
    const size_t band, other_band;
    std::vector<std::pair<int, int>> passes;  // parts of sparse and other

    static constexpr int GROUP = 8;  // lines that have as many items, at most

  public:
    SparseJob(const Work& work, bool of_left)
        : work(work),
          job(work.job),
          of_left(of_left),
          sparse(of_left ? work.left : work.right),
          other(of_left ? work.right : work.left),
          band(of_left ? work.a_band : work.b_band),
          other_band(of_left ? work.b_band : work.a_band) {
        for (const auto& pass : job.passes)
            passes.emplace_back(of_left ? pass.first : pass.second,
                                of_left ? pass.second : pass.first);
    }

    // Multiplications, by the vector, of the sparse elements, and of all that the job has.
    bool few() const {
        long elements = 0, work_of_both = 0;
        for (const long p : job.products) {
            const long mine = work.entries(sparse, band, p);
            elements += mine;
            if (other_band) work_of_both += mine * lines_with_entries(p);
        }
        const long lines = of_left ? job.rows_each : job.cols_each;
        const long lanes = of_left ? job.cols_each : job.rows_each;
        const long all = long(job.products.size()) * lines * job.places_each;
        if (other_band) return 4 * work_of_both <= all * ((lanes + LANES - 1) / LANES);
        return 2 * elements <= all;
    }
    // Multiplications of two further bands.
    long cost() const {
        long cost = 0;
        for (const long p : job.products) cost += work.entries(sparse, band, p) * lines_with_entries(p);
        return cost;
    }

    // Adds to the total. Returns false if *stop became not zero.
    bool add(double* total, const volatile int* stop) const {
        for (size_t s = 0; s < job.products.size(); s++) {
            if (*stop) return false;
            other_band ? add_both(long(s), total) : add_one(long(s), total);
        }
        return true;
    }

  private:
    long lines_with_entries(long p) const {
        const FurtherBand& from = other.further[other_band - 1];
        long number = 0;
        for (long line = p * other.lines; line < (p + 1) * other.lines; line++)
            number += from.begins[line + 1] > from.begins[line];
        return number;
    }

    // Where a line's first sum is in the total, and how far it is to the next one.
    double* sums_of(double* total, long p, long line) const {
        return total + p * work.rows * work.cols + (of_left ? line * work.cols : line);
    }
    long step() const { return of_left ? 1 : work.cols; }

    const int32_t* exponents(const Operand& operand, size_t which, long p) const {
        return work.exponents(operand, which) + p * operand.lines;
    }

    // A further band and the other operand's first one.
    void add_one(long s, double* total) const {
        static thread_local Buffer panel_buffer, sum_buffer;
        const long p = job.products[s], lanes = other.lines;
        const FurtherBand& from = sparse.further[band - 1];
        const long* const begins = &from.begins[p * sparse.lines];
        // Places that lists are filled up with come last.
        const long* const places = job.places.data() + s * job.places_each;
        long number = job.places_each;
        while (number && places[number - 1] < 0) number--;
        const auto at = Work::positions(places, number, work.depth);
        // Lines in groups, each with as many items as its longest.
        const int group = lanes <= LANES ? GROUP : lanes <= 2 * LANES ? GROUP / 2 : GROUP / 4;
        std::vector<long> lines, firsts{0};
        for (long line = 0; line < sparse.lines; line++)
            if (begins[line + 1] > begins[line]) lines.push_back(line);
        std::vector<Item> items;
        for (size_t first = 0; first < lines.size(); first += group) {
            const size_t end = std::min(lines.size(), first + group);
            long most = 0;
            for (size_t l = first; l < end; l++)
                most = std::max(most, begins[lines[l] + 1] - begins[lines[l]]);
            const size_t room = items.size();
            items.resize(room + most * group, Item{});
            long longest = 0;
            for (size_t l = first; l < end; l++) {
                Item* to = &items[room + l - first];
                long filled = 0;
                for (long i = begins[lines[l]]; i < begins[lines[l] + 1]; i++) {
                    const Entry& e = from.entries[i];
                    if (at[e.place] < 0) continue;  // nothing to multiply it with
                    widen(e.parts, to->parts, PARTS);
                    to->at = int32_t(at[e.place]);
                    to += group, filled++;
                }
                longest = std::max(longest, filled);
            }
            items.resize(room + longest * group);
            firsts.push_back(long(items.size()));
        }
        const uint16_t* const parts = other.first->parts.get();
        const long size = other.size();
        std::vector<long> offsets(number);
        for (long i = 0; i < number; i++) offsets[i] = places[i] * other.place_step();
        for (long l0 = 0; l0 < lanes; l0 += SPARSE_LANES) {
            const long wide = std::min(SPARSE_LANES, lanes - l0);
            const int vectors = wide <= LANES ? 1 : wide <= 2 * LANES ? 2 : int(SPARSE_LANES / LANES);
            const long width = vectors * LANES;
            float* const panel = panel_buffer.room(PARTS * number * width);
            bool used[PARTS] = {};
            for (const auto& pass : passes) used[pass.second] = true;
            for (int part = 0; part < PARTS; part++)
                if (used[part])
                    pack(parts + part * size + p * other.product_step(),
                         Axis{other.line_step(), nullptr}, Axis{other.place_step(), offsets.data()},
                         l0, 0, wide, number, panel + part * number * width, width, width);
            float* const sums = sum_buffer.room(GROUP * width);
            for (size_t g = 0; g + 1 < firsts.size(); g++) {
                const long count = (firsts[g + 1] - firsts[g]) / group;
                tile(group, vectors, &items[firsts[g]], count, panel, number, sums);
                for (int l = 0; l < group; l++) {
                    const size_t line = g * group + l;
                    if (line >= lines.size()) break;
                    add_scaled(sums + l * width, wide,
                               exponents(sparse, band, p)[lines[line]],
                               exponents(other, 0, p) + l0,
                               sums_of(total, p, lines[line]) + l0 * step(), step());
                }
            }
        }
    }

    void tile(int group, int vectors, const Item* items, long count, const float* panel, long places,
              float* sums) const {
        constexpr int WIDE = int(SPARSE_LANES / LANES);
        const auto run = [&](auto compute) { compute(items, count, passes, panel, places, sums); };
        if (vectors == 1)
            group == GROUP       ? run(sparse_tile<GROUP, 1>)
            : group == GROUP / 2 ? run(sparse_tile<GROUP / 2, 1>)
                                 : run(sparse_tile<GROUP / 4, 1>);
        else if (vectors == 2)
            group == GROUP / 2 ? run(sparse_tile<GROUP / 2, 2>) : run(sparse_tile<GROUP / 4, 2>);
        else
            run(sparse_tile<GROUP / 4, WIDE>);
    }

    // Two further bands: line by line of the other one, whose elements lie at their places.
    void add_both(long s, double* total) const {
        const long p = job.products[s], depth = work.depth;
        const FurtherBand &mine = sparse.further[band - 1], &theirs = other.further[other_band - 1];
        const long *const begins = &mine.begins[p * sparse.lines],
                   *const others = &theirs.begins[p * other.lines];
        std::vector<uint8_t> met(depth);
        for (long i = others[0]; i < others[other.lines]; i++) met[theirs.entries[i].place] = 1;
        // What meets nothing is left out.
        std::vector<Entry> entries;
        std::vector<long> lines, firsts;
        for (long line = 0; line < sparse.lines; line++) {
            const size_t first = entries.size();
            for (long i = begins[line]; i < begins[line + 1]; i++)
                if (met[mine.entries[i].place]) entries.push_back(mine.entries[i]);
            if (entries.size() == first) continue;
            lines.push_back(line);
            firsts.push_back(long(first));
        }
        firsts.push_back(long(entries.size()));
        std::vector<float> parts(entries.size() * PARTS), there(depth * PARTS);
        for (size_t i = 0; i < entries.size(); i++) widen(entries[i].parts, &parts[i * PARTS], PARTS);
        for (long o = 0; o < other.lines; o++) {
            if (others[o] == others[o + 1]) continue;
            for (long i = others[o]; i < others[o + 1]; i++)
                widen(theirs.entries[i].parts, &there[theirs.entries[i].place * PARTS], PARTS);
            for (size_t l = 0; l < lines.size(); l++) {
                float sum = 0;
                for (const auto& pass : passes)
                    for (long i = firsts[l]; i < firsts[l + 1]; i++)
                        sum += parts[i * PARTS + pass.first] *
                               there[entries[i].place * PARTS + pass.second];
                add_scaled(&sum, 1, exponents(sparse, band, p)[lines[l]],
                           exponents(other, other_band, p) + o,
                           sums_of(total, p, lines[l]) + o * step(), 1);
            }
            for (long i = others[o]; i < others[o + 1]; i++)
                std::fill_n(&there[theirs.entries[i].place * PARTS], PARTS, 0.0f);
        }
    }
};

// Adds the job at hand to the total if one of its bands has few enough elements. Returns 1 if so, 0
// if not, -3 if *stop became not zero.
inline long add_sparse(const Work& work, double* total, const volatile int* stop) {
    if (!work.a_band && !work.b_band) return 0;
    SparseJob job(work, work.a_band != 0);
    if (work.a_band && work.b_band) {
        SparseJob turned(work, false);
        if (turned.cost() < job.cost())
            return !turned.few() ? 0 : turned.add(total, stop) ? 1 : -3;
    }
    return !job.few() ? 0 : job.add(total, stop) ? 1 : -3;
}

}  // namespace
