// A Verilated board, and the host's UART at its two pins: 8 data bits, no parity, one stop bit.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "Vtop.h"
#include "verilated.h"
#if VM_TRACE
#include "verilated_fst_c.h"
#endif

namespace {

class Board {
  public:
    std::vector<uint8_t> received;
    uint64_t framing_errors = 0, now = 0;

    Board(double cycles_per_bit, const char* waves) : bit(cycles_per_bit) {
        top = std::make_unique<Vtop>(&context);
#if VM_TRACE
        if (waves && *waves) {
            context.traceEverOn(true);
            trace = std::make_unique<VerilatedFstC>();
            top->trace(trace.get(), 99);
            trace->open(waves);
        }
#else
        (void)waves;
#endif
        top->rx = 1;
        top->rst = 1;
        cycle();
        cycle();
        top->rst = 0;
    }
    ~Board() {
#if VM_TRACE
        if (trace) trace->close();
#endif
        top->final();
    }
    void send(const uint8_t* data, uint64_t count) {
        waiting.insert(waiting.end(), data, data + count);
    }
    // Run until as many bytes have come, or for so many cycles.
    void run(uint64_t cycles, uint64_t want) {
        for (const uint64_t end = now + cycles; now < end && received.size() < want;) {
            drive();
            cycle();
            sample();
        }
    }
    // Hold the wire at a level for some cycles: a break, or a spike.
    void hold(int level, uint64_t cycles) {
        for (const uint64_t end = now + cycles; now < end;) {
            top->rx = level;
            cycle();
            sample();
        }
        top->rx = 1;
    }
    void reset() {
        top->rst = 1;
        cycle();
        top->rst = 0;
        waiting.clear();
        sending = listening = false;
    }

  private:
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
#if VM_TRACE
    std::unique_ptr<VerilatedFstC> trace;
#endif
    const double bit;
    std::deque<uint8_t> waiting;
    bool sending = false, listening = false;
    double sent = 0, heard = 0;  // bits of this byte so far
    unsigned out = 0, in = 0, bits = 0;

    void drive() {
        if (!sending && !waiting.empty()) {
            out = waiting.front() << 1 | 1u << 9;
            waiting.pop_front();
            sending = true;
            sent = 0;
        }
        if (!sending) {
            top->rx = 1;
            return;
        }
        top->rx = out >> unsigned(sent) & 1;
        sent += 1 / bit;
        if (sent >= 10) sending = false;
    }
    void sample() {
        if (!listening) {
            if (top->tx) return;
            listening = true;
            heard = 0;
            bits = in = 0;
        }
        heard += 1 / bit;
        if (heard < bits + 0.5) return;
        in |= unsigned(top->tx) << bits;
        if (++bits < 10) return;
        listening = false;
        if ((in & 1) == 0 && in >> 9)
            received.push_back(in >> 1 & 0xff);
        else
            ++framing_errors;
    }
    void cycle() {
        top->clk = 0;
        top->eval();
#if VM_TRACE
        if (trace) trace->dump(now * 10);
#endif
        top->clk = 1;
        top->eval();
#if VM_TRACE
        if (trace) trace->dump(now * 10 + 5);
#endif
        ++now;
    }
};

}  // namespace

extern "C" {
Board* board_new(double cycles_per_bit, const char* waves) {
    return new Board(cycles_per_bit, waves);
}
void board_delete(Board* board) { delete board; }
void board_send(Board* board, const uint8_t* data, uint64_t count) { board->send(data, count); }
uint64_t board_run(Board* board, uint64_t cycles, uint64_t want) {
    board->run(cycles, want);
    return board->received.size();
}
void board_hold(Board* board, int level, uint64_t cycles) { board->hold(level, cycles); }
void board_reset(Board* board) { board->reset(); }
uint64_t board_now(Board* board) { return board->now; }
uint64_t board_framing_errors(Board* board) { return board->framing_errors; }
// Take at most so many of the bytes that have come.
uint64_t board_receive(Board* board, uint8_t* data, uint64_t most) {
    const uint64_t count = std::min<uint64_t>(most, board->received.size());
    std::memcpy(data, board->received.data(), count);
    board->received.erase(board->received.begin(), board->received.begin() + count);
    return count;
}
}
