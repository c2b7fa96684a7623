// When the update engine does what: the timing that rtl/update.py describes.
#pragma once

#include "instruction.h"
#include "timing.h"

class Update {
  public:
    explicit Update(const Parameters& p) : p(p) {}

    Cycle idle = 0;  // first cycle in which `busy` is low after all accepted so far

    // When an instruction offered from cycle `earliest` on is accepted and done.
    Times run(const Instruction& i, Cycle earliest) {
        if (i.opcode() == Opcode::RATES) {
            const Cycle accept = std::max({earliest, row_free, column_free});
            row_free = std::max(row_free, accept + 1);
            idle = std::max(idle, accept + 2);
            return {accept, accept + 1, accept + 1};
        }
        const int64_t lanes = p.update_lanes, columns = i[UPDATE::columns];
        const Cycle accept = std::max(earliest, row_free);
        const int64_t groups = ceil_div(i[UPDATE::rows], lanes);
        const Cycle last = accept + groups * columns;
        const Cycle column = std::max(last + p.row_drain, column_free);
        const int64_t length = ceil_div(columns, lanes) * groups * lanes;
        const Cycle signal = column + length + p.column_drain;
        row_free = column;
        column_free = signal;
        idle = signal + 1;
        return {accept, last + 1, signal};
    }

    // Show what the next times depend on (leap.h).
    template <typename State>
    void show(State& state) {
        state.time(idle), state.time(row_free), state.time(column_free);
    }

  private:
    const Parameters& p;
    Cycle row_free = 0;     // first cycle in which an UPDATE may be accepted
    Cycle column_free = 0;  // first cycle in which a column pass may begin
};
