// The arithmetic of precision.py: operands of float32 or float64 cut into bands of binary16 parts
// (precision_cut.h), the parts laid out for products on a device, and the products put together.

#include "plan.h"
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

    // The entries of a further band that belong to a product.
    template <class Visit>
    static void visit(const Operand& of, size_t band, long product, const Visit& entry) {
        const auto& entries = of.further[band - 1].entries;
        const auto before = [&](const Entry& e, long number) { return of.product_of(e) < number; };
        auto at = std::lower_bound(entries.begin(), entries.end(), product, before);
        for (; at != entries.end() && of.product_of(*at) == product; ++at) entry(*at);
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
        std::vector<uint8_t> at_left(depth), at_right(depth), row(rows), col(cols);
        for (long p = 0; p < count; p++) {
            bool any = false;
            if (a_band) {
                std::fill(at_left.begin(), at_left.end(), 0);
                visit(left, a_band, p, [&](const Entry& e) {
                    at_left[e.place] = 1;
                    any = true;
                });
                if (!any) continue;
            }
            if (b_band) {
                any = false;
                std::fill(at_right.begin(), at_right.end(), 0);
                visit(right, b_band, p, [&](const Entry& e) {
                    at_right[e.place] = 1;
                    any = true;
                });
                if (!any) continue;
            }
            std::vector<uint8_t> both(depth);
            any = false;
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
                visit(left, a_band, p, [&](const Entry& e) {
                    if (both[e.place]) row[left.line_of(e)] = 1;
                });
                chosen_rows.add(row);
            }
            if (b_band) {
                std::fill(col.begin(), col.end(), 0);
                visit(right, b_band, p, [&](const Entry& e) {
                    if (both[e.place]) col[right.line_of(e)] = 1;
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
                visit(left, a_band, job.products[s], [&](const Entry& e) {
                    if (place[e.place] < 0) return;
                    uint16_t* to = out + (long(s) * each + row[left.line_of(e)]) * job.depth();
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
                visit(right, b_band, job.products[s], [&](const Entry& e) {
                    if (place[e.place] < 0) return;
                    for (long i = 0; i < passes; i++) {
                        const long k = i * job.places_each + place[e.place];
                        out[(s * job.depth() + k) * each + col[right.line_of(e)]] =
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
            visit(of, band, job.products[s], [&](const Entry& e) {
                const long line = at[of.line_of(e)];
                if (line >= 0) to[of_left ? line * depth + e.place : e.place * each + line] =
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

// What comes next, as the functions below say it: whether there is a product for the device; whether
// there are no infinities and NaNs in the operands, which count as zeros here; the size of the
// product: count, rows, depth, cols.
void say(Work& work, long* said) {
    said[0] = work.advance();
    said[1] = work.left.finite && work.right.finite;
    said[2] = long(work.job.products.size());
    said[3] = work.job.rows_each;
    said[4] = work.job.depth();
    said[5] = work.job.cols_each;
}

// How operands come: of which type, and whether places, not lines, are `inner`.
struct Form {
    bool a_double, b_double, a_inner, b_inner;
};

std::unique_ptr<Work> begun(const void* a, const void* b, const Form& form, long count, long rows,
                            long depth, long cols, long threads) {
    const auto cut = [&](const void* x, bool is_double, bool lines_inner, long lines,
                         Operand& to) {
        to.outer = lines_inner ? count : count * lines, to.inner = lines_inner ? lines : 1;
        to.depth = depth, to.lines = lines;
        if (is_double)
            cut_all(static_cast<const double*>(x), to, threads);
        else
            cut_all(static_cast<const float*>(x), to, threads);
    };
    auto work = std::make_unique<Work>();
    work->count = count, work->rows = rows, work->depth = depth, work->cols = cols;
    work->threads = threads;
    cut(a, form.a_double, form.a_inner, rows, work->left);
    cut(b, form.b_double, form.b_inner, cols, work->right);
    return work;
}

// Memory of a thread for one product after the other, not set.
template <class T>
struct Room {
    std::unique_ptr<T[]> memory;
    size_t size = 0;
    T* operator()(size_t count) {
        if (size < count) {
            memory.reset();
            size = 0;
            memory.reset(new T[count]);
            size = count;
        }
        return memory.get();
    }
    // What is large is given back.
    void trim() {
        if (size * sizeof(T) <= 1 << 26) return;
        memory.reset();
        size = 0;
    }
};

}  // namespace

// Begins the product of a (count, rows, depth) and b (count, depth, cols), float32 or, if so said,
// float64. Returns what the functions below take, or null if memory or threads ran out.
extern "C" Work* fp32_begin(const void* a, const void* b, long a_double, long b_double, long count,
                            long rows, long depth, long cols, long threads, long* said) {
    const DefaultArithmetic arithmetic;
    try {
        const Form form = {a_double != 0, b_double != 0, false, true};
        auto work = begun(a, b, form, count, rows, depth, cols, threads);
        say(*work, said);
        return work.release();
    } catch (const std::exception&) {
        return nullptr;
    }
}

// Writes the product's operands, binary16: left (count, rows, depth), right (count, depth, cols).
// Returns whether that went well: memory or threads may run out.
extern "C" long fp32_lay(const Work* work, uint16_t* left, uint16_t* right) {
    try {
        work->lay_left(left);
        work->lay_right(right);
        return 1;
    } catch (const std::exception&) {
        return 0;
    }
}

// Adds what the device returned, sums (count, rows, cols), to the total of all products, scaled
// back, and goes on. Returns whether that went well.
extern "C" long fp32_add(Work* work, const float* sums, double* total, long* said) {
    try {
        work->add(sums, total);
        say(*work, said);
        return 1;
    } catch (const std::exception&) {
        return 0;
    }
}

extern "C" void fp32_end(Work* work) { delete work; }

// Multiplies the pair of bands at hand on the host. Returns the kernel's status.
//
// The passes follow each other as they would along the depth of one product, each going on with the
// sums of the last, so first bands need not be laid out; zeros at places that the product leaves out
// change no sum. But where most places are left out, or products of the stack, it is laid out.
static long multiply(const Work& work, Fold fold, float* sums, const volatile int* stop,
                     Room<uint16_t>& a_room, Room<uint16_t>& b_room) {
    const Operand &left = work.left, &right = work.right;
    const Job& job = work.job;
    const long rows = job.rows_each, cols = job.cols_each, count = long(job.products.size());
    const bool as_they_lie = (!work.a_band || !work.b_band) && count == work.count &&
                             4 * job.places_each >= 3 * work.depth;
    const long depth = as_they_lie ? work.depth : job.depth();
    Plan plan = {};
    plan.count = count, plan.rows = rows, plan.depth = depth, plan.cols = cols;
    plan.n = plan.m = plan.c_outer = 1;
    plan.a = {rows * depth, depth, 1}, plan.b = {depth * cols, cols, 1};
    plan.c = plan.start = {rows * cols, cols, 1};
    plan.threads = work.threads;
    if (!as_they_lie) {
        uint16_t* const a = a_room(count * rows * depth);
        uint16_t* const b = b_room(count * depth * cols);
        work.lay_left(a);
        work.lay_right(b);
        return fold(&plan, a, b, nullptr, nullptr, sums, stop, nullptr);
    }
    if (!work.a_band) plan.a = {left.product_step(), left.line_step(), left.place_step()};
    if (!work.b_band) plan.b = {right.product_step(), right.place_step(), right.line_step()};
    const auto part = [&](const Operand& of, size_t band, int number, long lines,
                          Room<uint16_t>& room) -> const uint16_t* {
        if (!band) return of.first->parts.get() + number * of.size();
        uint16_t* const made = room(count * lines * depth);
        work.spread(of, band, number, made);
        return made;
    };
    if (!work.a_band && !work.b_band) {
        // A block of the result stays in the caches while all passes add to it.
        constexpr long SMALL = 1 << 17, COLS = 1024, ROWS = 96;
        const bool small = rows * cols <= SMALL;
        const long wide = small ? cols : std::min(COLS, cols);
        const long high = small ? rows : std::min(rows, std::max(ROWS, SMALL / wide));
        Plan block = plan;
        if (!small) block.count = 1;
        for (long p = 0; p < count; p += block.count)
            for (long c = 0; c < cols; c += wide)
                for (long r = 0; r < rows; r += high) {
                    block.rows = std::min(high, rows - r), block.cols = std::min(wide, cols - c);
                    const long a = p * plan.a.stack + r * plan.a.row;
                    const long b = p * plan.b.stack + c * plan.b.col;
                    float* const out = sums + (p * rows + r) * cols + c;
                    const float* start = nullptr;
                    for (const auto& pass : job.passes) {
                        const long status = fold(
                            &block, left.first->parts.get() + pass.first * left.size() + a,
                            right.first->parts.get() + pass.second * right.size() + b, nullptr,
                            start, out, stop, nullptr);
                        if (status != -1) return status;
                        start = out;
                    }
                }
        return -1;
    }
    const float* start = nullptr;
    for (const auto& pass : job.passes) {
        const uint16_t* a = part(left, work.a_band, pass.first, rows, a_room);
        const uint16_t* b = part(right, work.b_band, pass.second, cols, b_room);
        const long status = fold(&plan, a, b, nullptr, start, sums, stop, nullptr);
        if (status != -1) return status;
        start = sums;
    }
    return -1;
}

// The whole of a product that the golden model's kernel computes: out (count, rows, cols), float32
// or, if so said, float64, is a @ b + start, which is null or float32 and lies as `start_at` says.
// `forms` says of a and of b whether they are float64 and whether the depth comes last: (a_double,
// b_double, a_last, b_last). `jobs` is given the size of each product that was computed, as above,
// and has room for `most`.
// Returns their number; -1 if there are infinities, NaNs or bands for more of them (nothing is
// computed then), -2 if memory or threads ran out, -3 if *stop became not zero.
extern "C" long fp32_whole(const void* a, const void* b, const float* start,
                           const Strides* start_at, void* out, long out_double, const long* forms,
                           const long* sizes, long threads, Fold fold, const volatile int* stop,
                           long* jobs, long most) {
    static thread_local Room<uint16_t> left, right;
    static thread_local Room<float> made;
    static thread_local Room<double> totals;
    const DefaultArithmetic arithmetic;
    const long count = sizes[0], rows = sizes[1], depth = sizes[2], cols = sizes[3];
    try {
        const Form form = {forms[0] != 0, forms[1] != 0, !forms[2], !forms[3]};
        const auto work = begun(a, b, form, count, rows, depth, cols, threads);
        if (!work->left.finite || !work->right.finite) return -1;
        if (long(work->left.bands() * work->right.bands()) > most) return -1;
        double* const total =
            out_double ? static_cast<double*>(out) : totals(count * rows * cols);
        long number = 0;
        bool fresh = true;
        for (; work->advance(); number++) {
            const Job& job = work->job;
            float* const sums = made(job.products.size() * job.rows_each * job.cols_each);
            const long status = multiply(*work, fold, sums, stop, left, right);
            if (status != -1) return status;
            if (fresh && !work->a_band && !work->b_band) {
                work->add<true>(sums, total);
            } else {
                if (fresh) std::fill_n(total, count * rows * cols, 0.0);
                work->add(sums, total);
            }
            fresh = false;
            const long size[] = {long(job.products.size()), job.rows_each, job.depth(),
                                 job.cols_each};
            std::copy_n(size, 4, jobs + 4 * number);
        }
        if (fresh) std::fill_n(total, count * rows * cols, 0.0);
        const auto finish = [&](long from, long end, long) {
            for (long line = from; line < end; line++) {
                double* const sum = total + line * cols;
                const float* first = nullptr;
                if (start) first = start + line / rows * start_at->stack + line % rows * start_at->row;
                for (long c = 0; first && c < cols; c++) sum[c] += double(first[c * start_at->col]);
                if (!out_double) std::copy_n(sum, cols, static_cast<float*>(out) + line * cols);
            }
        };
        share(threads, count * rows, count * rows * cols, finish);
        left.trim(), right.trim(), made.trim(), totals.trim();
        return number;
    } catch (const std::exception&) {
        return -2;
    }
}
