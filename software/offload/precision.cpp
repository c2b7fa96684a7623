// The arithmetic of precision.py: operands of float32 or float64 cut into bands of binary16 parts
// (precision_cut.h), the parts laid out for products on a device, and the products put together.

#include "plan.h"
#include "precision_dense.h"
#include "precision_sparse.h"

namespace {

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
    // To lay out a number takes as long as some multiplications.
    const long left_out = (work.depth - job.places_each) * rows * cols;
    const bool cheap = 4 * job.places_each >= 3 * work.depth ||
                       left_out <= 16 * job.places_each * (rows + cols);
    const bool as_they_lie =
        (!work.a_band || !work.b_band) && count == work.count && cheap;
    const long depth = as_they_lie ? work.depth : job.depth();
    if (!work.a_band && !work.b_band) {
        const PassesJob whole(work, as_they_lie);
        if (whole.fits()) return whole.run(sums, stop) ? -1 : -3;
    }
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
            const bool of_first = !work->a_band && !work->b_band;
            if (fresh && !of_first) std::fill_n(total, count * rows * cols, 0.0);
            const long few = add_sparse(*work, total, stop);
            if (few < 0) return few;
            if (!few) {
                float* const sums = made(job.products.size() * job.rows_each * job.cols_each);
                const long status = multiply(*work, fold, sums, stop, left, right);
                if (status != -1) return status;
                if (fresh && of_first)
                    work->add<true>(sums, total);
                else
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
