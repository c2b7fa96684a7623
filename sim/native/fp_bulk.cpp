// One arithmetic unit in a loop: an input pair a cycle, its output `latency` cycles later.

#include <cstdint>

#include "Vtop.h"
#include "verilated.h"

extern "C" void run(const uint32_t* a, const uint32_t* b, uint32_t* out, long count,
                    long latency) {
    if (count == 0) return;
    VerilatedContext context;
    Vtop top(&context);
#if CLOCKED
    top.rst = 0;
#endif
    for (long i = 0; i < count + latency; ++i) {
        const long now = i < count ? i : count - 1;
        top.A = a[now];
        top.B = b[now];
#if CLOCKED
        top.clk = 0;
        top.eval();
        if (i >= latency) out[i - latency] = top.OUTPUT;
        top.clk = 1;
        top.eval();
#else
        top.eval();
        out[i] = top.OUTPUT;
#endif
    }
    top.final();
}
