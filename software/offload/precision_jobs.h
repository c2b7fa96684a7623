// Products of bands (precision_cut.h): which there are, their operands laid out for a device, and
// what it returns added up.

#pragma once

#include "precision_cut.h"

namespace {

// A product on its way to the device and back: what a pair of bands needs. Further bands have few
// elements, so only those products of the stack, rows, columns and places of the depth are sent that
// have any; where products differ in that, the rest is filled up with zeros.
struct Job {
    std::vector<std::pair<int, int>> passes;  // parts of a and b
    std::vector<long> products;
    // One after the other for each of the products, `…_each` of them; -1 where there are fewer.
    std::vector<long> places, rows, cols;
    long places_each = 0, rows_each = 0, cols_each = 0;

    long depth() const { return long(passes.size()) * places_each; }
    bool empty() const { return products.empty() || passes.empty(); }
};

// Numbers of one product's rows, columns or places, ascending, gathered from marks.
struct Lists {
    std::vector<std::vector<long>> of;
    size_t longest = 0;

    void add(const std::vector<uint8_t>& marks) {
        std::vector<long>& list = of.emplace_back();
        for (size_t i = 0; i < marks.size(); i++)
            if (marks[i]) list.push_back(long(i));
        longest = std::max(longest, list.size());
    }
    // All lists, as long as the longest.
    std::vector<long> level() const {
        std::vector<long> all;
        for (const auto& list : of) {
            all.insert(all.end(), list.begin(), list.end());
            all.resize(all.size() + longest - list.size(), -1);
        }
        return all;
    }
};

std::vector<long> upto(long count) {
    std::vector<long> numbers(count);
    for (long i = 0; i < count; i++) numbers[i] = i;
    return numbers;
}

struct Work {
    Operand left, right;
    long count, rows, depth, cols, threads;
    size_t pair = 0;             // number of the next pair of bands
    size_t a_band = 0, b_band = 0;  // the one that is multiplied now
    Job job;

    const bool* used(const Operand& of, size_t band) const {
        return band ? of.further[band - 1].used : of.first->used;
    }

    // The entries of a further band that belong to a product, with their lines.
    template <class Visit>
    static void visit(const Operand& of, size_t band, long product, const Visit& entry) {
        const FurtherBand& from = of.further[band - 1];
        const long* begins = &from.begins[product * of.lines];
        for (long line = 0; line < of.lines; line++)
            for (long i = begins[line]; i < begins[line + 1]; i++) entry(line, from.entries[i]);
    }
    // How many of a product there are.
    static long entries(const Operand& of, size_t band, long product) {
        return of.further[band - 1].of_product(product, of.lines);
    }

    // Goes on to the next pair of bands that have a product; false if there is none.
    bool advance() {
        while (pair < left.bands() * right.bands()) {
            a_band = pair / right.bands();
            b_band = pair % right.bands();
            pair++;
            job = Job();
            for (const auto& pass : PASSES)  // a part that is zero throughout adds nothing
                if (used(left, a_band)[pass.first] && used(right, b_band)[pass.second])
                    job.passes.push_back(pass);
            a_band || b_band ? choose() : choose_all();
            if (!job.empty()) return true;
        }
        return false;
    }

    // Two first bands: everything but places where one has no elements in the whole stack.
    void choose_all() {
        for (long k = 0; k < depth; k++)
            if (left.first->depths[k] && right.first->depths[k]) job.places.push_back(k);
        if (job.places.empty()) return;
        job.products = upto(count);
        job.places_each = long(job.places.size());
        job.rows_each = rows;
        job.cols_each = cols;
    }

    void choose() {
        Lists places, chosen_rows, chosen_cols;
        std::vector<uint8_t> at_left(depth), at_right(depth), both(depth), row(rows), col(cols);
        for (long p = 0; p < count; p++) {
            if (a_band && !entries(left, a_band, p)) continue;
            if (b_band && !entries(right, b_band, p)) continue;
            if (a_band) {
                std::fill(at_left.begin(), at_left.end(), 0);
                visit(left, a_band, p, [&](long, const Entry& e) { at_left[e.place] = 1; });
            }
            if (b_band) {
                std::fill(at_right.begin(), at_right.end(), 0);
                visit(right, b_band, p, [&](long, const Entry& e) { at_right[e.place] = 1; });
            }
            bool any = false;
            for (long k = 0; k < depth; k++) {
                const bool a = a_band ? at_left[k] : left.first->depths[k] != 0;
                const bool b = b_band ? at_right[k] : right.first->depths[k] != 0;
                any |= both[k] = a && b;
            }
            if (!any) continue;
            job.products.push_back(p);
            places.add(both);
            if (a_band) {
                std::fill(row.begin(), row.end(), 0);
                visit(left, a_band, p, [&](long line, const Entry& e) {
                    if (both[e.place]) row[line] = 1;
                });
                chosen_rows.add(row);
            }
            if (b_band) {
                std::fill(col.begin(), col.end(), 0);
                visit(right, b_band, p, [&](long line, const Entry& e) {
                    if (both[e.place]) col[line] = 1;
                });
                chosen_cols.add(col);
            }
        }
        job.places = places.level();
        job.places_each = long(places.longest);
        job.rows = chosen_rows.level();
        job.rows_each = a_band ? long(chosen_rows.longest) : rows;
        job.cols = chosen_cols.level();
        job.cols_each = b_band ? long(chosen_cols.longest) : cols;
    }

    const long* places_of(long s) const {
        return job.places.data() + (a_band || b_band ? s * job.places_each : 0);
    }

    // Where the numbers of a list stand in it; -1 for others.
    static std::vector<long> positions(const long* list, long length, long numbers) {
        std::vector<long> at(numbers, -1);
        for (long i = 0; i < length; i++)
            if (list[i] >= 0) at[list[i]] = i;
        return at;
    }

    void lay_left(uint16_t* out) const {
        const long each = job.rows_each, passes = long(job.passes.size()), size = left.size();
        const long lines = long(job.products.size()) * each;
        if (a_band) {
            std::fill_n(out, lines * job.depth(), 0);
            for (size_t s = 0; s < job.products.size(); s++) {
                const auto row = positions(&job.rows[s * each], each, rows);
                const auto place = positions(places_of(long(s)), job.places_each, depth);
                visit(left, a_band, job.products[s], [&](long line, const Entry& e) {
                    if (place[e.place] < 0) return;
                    uint16_t* to = out + (long(s) * each + row[line]) * job.depth();
                    for (long i = 0; i < passes; i++)
                        to[i * job.places_each + place[e.place]] = e.parts[job.passes[i].first];
                });
            }
            return;
        }
        const uint16_t* parts = left.first->parts.get();
        const long step = left.line_step(), next = left.place_step();
        share(threads, lines, lines * job.depth(), [&](long from, long end, long) {
            for (long line = from; line < end; line++) {
                const long s = line / each;
                const long* places = places_of(s);
                const long row = job.products[s] * left.product_step() + line % each * step;
                uint16_t* to = out + line * job.depth();
                for (const auto& pass : job.passes) {
                    const uint16_t* from = parts + pass.first * size + row;
                    if (!b_band && job.places_each == depth && next == 1) {
                        to = std::copy_n(from, depth, to);
                        continue;
                    }
                    for (long d = 0; d < job.places_each; d++)
                        *to++ = places[d] < 0 ? 0 : from[places[d] * next];
                }
            }
        });
    }

    void lay_right(uint16_t* out) const {
        const long each = job.cols_each, passes = long(job.passes.size()), size = right.size();
        const long stack = long(job.products.size());
        if (b_band) {
            std::fill_n(out, stack * job.depth() * each, 0);
            for (long s = 0; s < stack; s++) {
                const auto col = positions(&job.cols[s * each], each, cols);
                const auto place = positions(places_of(s), job.places_each, depth);
                visit(right, b_band, job.products[s], [&](long line, const Entry& e) {
                    if (place[e.place] < 0) return;
                    for (long i = 0; i < passes; i++) {
                        const long k = i * job.places_each + place[e.place];
                        out[(s * job.depth() + k) * each + col[line]] =
                            e.parts[job.passes[i].second];
                    }
                });
            }
            return;
        }
        const uint16_t* parts = right.first->parts.get();
        const long step = right.line_step(), next = right.place_step();
        const long lines = stack * job.depth();
        share(threads, lines, lines * each, [&](long from, long end, long) {
            for (long line = from; line < end; line++) {
                const long s = line / job.depth(), k = line % job.depth();
                const long place = places_of(s)[k % job.places_each];
                const auto& pass = job.passes[k / job.places_each];
                uint16_t* to = out + line * each;
                if (place < 0) {
                    std::fill_n(to, each, 0);
                    continue;
                }
                const uint16_t* from = parts + pass.second * size +
                                       job.products[s] * right.product_step() + place * next;
                if (step == 1)
                    std::copy_n(from, each, to);
                else
                    for (long c = 0; c < each; c++) to[c] = from[c * step];
            }
        });
    }

    // One part of a further band's chosen rows, as (rows, depth) of each product, or of its chosen
    // columns, as (depth, columns), over all of the depth.
    void spread(const Operand& of, size_t band, int part, uint16_t* out) const {
        const bool of_left = &of == &left;
        const std::vector<long>& list = of_left ? job.rows : job.cols;
        const long each = of_left ? job.rows_each : job.cols_each;
        std::fill_n(out, long(job.products.size()) * each * depth, 0);
        for (size_t s = 0; s < job.products.size(); s++) {
            const auto at = positions(&list[s * each], each, of.lines);
            uint16_t* const to = out + long(s) * each * depth;
            visit(of, band, job.products[s], [&](long line, const Entry& e) {
                if (at[line] < 0) return;
                to[of_left ? at[line] * depth + e.place : e.place * each + at[line]] =
                    e.parts[part];
            });
        }
    }

    const int32_t* exponents(const Operand& of, size_t band) const {
        return (band ? of.further[band - 1].exponents : of.first->exponents).data();
    }

    // Adds what the device returned to the total, scaled back. FRESH: to zeros that nobody wrote, of
    // a pair of first bands, which has all elements.
    template <bool FRESH = false>
    void add(const float* sums, double* total) const {
        const int32_t *a = exponents(left, a_band), *b = exponents(right, b_band);
        const long lines = long(job.products.size()) * job.rows_each, each = job.cols_each;
        share(threads, lines, lines * each, [&](long from, long end, long) {
            std::pair<int32_t, int32_t> ends;  // of the exponents of the product at hand
            long ends_of = -1;
            for (long line = from; line < end; line++) {
                const long s = line / job.rows_each, p = job.products[s];
                const long r = a_band ? job.rows[line] : line % job.rows_each;
                if (r < 0) continue;
                const int32_t left_exponent = a[p * rows + r];
                const float* sum = sums + line * each;
                double* to = total + (p * rows + r) * cols;
                if (b_band) {
                    const long* list = &job.cols[s * each];
                    for (long c = 0; c < each; c++)
                        if (list[c] >= 0)
                            to[list[c]] +=
                                std::ldexp(double(sum[c]), left_exponent + b[p * cols + list[c]]);
                    continue;
                }
                const int32_t* right_exponents = b + p * cols;
                if (ends_of != p) {
                    const auto at = std::minmax_element(right_exponents, right_exponents + cols);
                    ends = {*at.first, *at.second};
                    ends_of = p;
                }
                // A power of two is made of its bits where all of the row's are normal numbers;
                // ldexp is right everywhere, but slow.
                if (left_exponent + ends.first > -1000 && left_exponent + ends.second < 900) {
                    for (long c = 0; c < cols; c++)
                        to[c] = (FRESH ? 0 : to[c]) +
                                sum[c] * power<double>(left_exponent + right_exponents[c]);
                } else {
                    for (long c = 0; c < cols; c++)
                        to[c] = (FRESH ? 0 : to[c]) +
                                std::ldexp(double(sum[c]), left_exponent + right_exponents[c]);
                }
            }
        });
    }
};

}  // namespace
