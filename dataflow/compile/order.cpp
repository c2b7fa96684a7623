// What of planning a program goes step by step: which fill of a buffer's slots serves which
// MULTIPLY, and in which order loads and stores lie between MULTIPLYs. To be called from
// sat.dataflow.compile.schedule, which says what all of this means.

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

extern "C" {

// Slots are filled in turn; a fill stays until the slot's turn comes again. `keys` are what steps
// need, below `distinct`, or negative: nothing. Gives each step its fill, or -1, and each fill its
// key, first and last use; returns how many fills there are.
int64_t order_fills(const int64_t* keys, int64_t steps, int64_t slots, int64_t distinct,
                    int64_t* fill_of, int64_t* key_of, int64_t* first_use, int64_t* last_use) {
    std::vector<int64_t> resident(distinct, -1);
    int64_t fills = 0;
    for (int64_t step = 0; step < steps; ++step) {
        const int64_t key = keys[step];
        if (key < 0) {
            fill_of[step] = -1;
            continue;
        }
        int64_t& fill = resident[key];
        if (fill < 0) {
            if (fills >= slots) resident[key_of[fills - slots]] = -1;
            fill = fills++;
            key_of[fill] = key, first_use[fill] = step;
        }
        last_use[fill] = step;
        fill_of[step] = fill;
    }
    return fills;
}

// Loads, in the order of their use: before which step, after which its place is free (-1: none),
// whether it is a mask. Loads and stores name rows of a table, so many from a place on; the
// MULTIPLY of step n is row `multiplies` + n, and comes behind the stores of step `after[n]`.
struct Loads {
    const int64_t *first_use, *freed, *is_mask, *at, *count;
    int64_t size;
};
struct Steps {
    const int64_t *after, *stores_at, *stores;
    int64_t multiplies, size;
};

// Writes the rows in the order of the program, as many as the table has.
void order_rows(const Loads* loads, const Steps* steps, int64_t lookahead, int64_t ahead,
                int64_t behind, int64_t* rows) {
    int64_t stored = 0;  // steps whose stores are there
    int64_t next = 0;    // load
    int64_t early = 0;   // loads before the step that is in turn that a later one needs
    std::deque<std::pair<int64_t, int64_t>> waiting;  // those: first use, how many

    const auto put = [&](int64_t at, int64_t count) {
        for (int64_t n = 0; n < count; ++n) *rows++ = at + n;
    };
    const auto store = [&](int64_t upto) {
        for (; stored < upto; ++stored) put(steps->stores_at[stored], steps->stores[stored]);
    };
    for (int64_t step = 0; step < steps->size; ++step) {
        while (!waiting.empty() && waiting.front().first <= step) {
            early -= waiting.front().second;
            waiting.pop_front();
        }
        for (; next < loads->size; ++next) {
            const int64_t first_use = loads->first_use[next], freed = loads->freed[next];
            const bool is_early = first_use > step;
            if (is_early && (first_use > step + lookahead || freed >= step || early >= ahead)) break;
            if (loads->is_mask[next]) {
                // Stores free its place.
                if (is_early && freed >= stored) break;
                store(freed + 1);
            }
            put(loads->at[next], loads->count[next]);
            if (is_early) {
                waiting.push_back({first_use, loads->count[next]});
                early += loads->count[next];
            }
        }
        store(steps->after[step] + 1);
        put(steps->multiplies + step, 1);
        store(step + 1 - behind);
    }
    store(steps->size);
}
}
