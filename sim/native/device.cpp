// (Verilator writes the second of two underscores as _05F: csr__awaddr is csr___05Fawaddr.)
//
// The Verilated device with its memory: registers over AXI4-Lite, AXI4 ports into one array of
// bytes that answers with the timing of sat.sim.memory.MemoryTiming. One call runs a program.

#include <chrono>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <new>

#include "Vtop.h"
#include "verilated.h"
#if VM_TRACE
#include "waves.h"
#endif
#if SAT_ARRAY
#include "array.h"  // the array, which the model then is without
#endif
#if SAT_BOUNDARY
#include "boundary.h"
#endif

namespace {

constexpr uint8_t OKAY = 0, SLVERR = 2, DECERR = 3;

struct Timing {
    uint64_t read_latency, write_latency, cycles_per_beat;
};

// A burst under way; `due` is the first cycle in which its next beat (or response) may move.
struct Burst {
    uint64_t address, beats, due;
    uint8_t id, response;
};

class ReadPort {
  public:
    uint64_t bursts = 0, fail_at = UINT64_MAX, beats = 0;

    void take(uint64_t now, uint64_t address, uint64_t count, uint8_t id, const Timing& t) {
        const uint8_t response = bursts++ == fail_at ? SLVERR : OKAY;
        pending.push_back({address, count, now + t.read_latency, id, response});
    }
    const Burst* offered(uint64_t now) const {
        return !pending.empty() && now >= pending.front().due && now >= free ? &pending.front()
                                                                            : nullptr;
    }
    void taken(uint64_t now, uint64_t beat_bytes, const Timing& t) {
        ++beats;
        free = now + t.cycles_per_beat;
        Burst& burst = pending.front();
        burst.address += beat_bytes;
        if (--burst.beats == 0) pending.pop_front();
    }
    void clear() { pending.clear(); }

  private:
    std::deque<Burst> pending;
    uint64_t free = 0;
};

class WritePort {
  public:
    uint64_t bursts = 0, fail_at = UINT64_MAX, beats = 0;

    void take(uint64_t now, uint64_t address, uint64_t count, uint8_t id) {
        const uint8_t response = bursts++ == fail_at ? SLVERR : OKAY;
        pending.push_back({address, count, now + 1, id, response});
    }
    Burst* open(uint64_t now) {
        return !pending.empty() && now >= pending.front().due && now >= free ? &pending.front()
                                                                            : nullptr;
    }
    void taken(uint64_t now, uint64_t beat_bytes, const Timing& t) {
        ++beats;
        free = now + t.cycles_per_beat;
        Burst& burst = pending.front();
        burst.address += beat_bytes;
        if (--burst.beats == 0) {
            answers.push_back(burst);
            answers.back().due = now + t.write_latency;
            pending.pop_front();
        }
    }
    const Burst* answer(uint64_t now) const {
        return !answers.empty() && now >= answers.front().due ? &answers.front() : nullptr;
    }
    void answered() { answers.pop_front(); }
    void clear() { pending.clear(), answers.clear(); }

  private:
    std::deque<Burst> pending, answers;
    uint64_t free = 0;
};

// The model's signals of a data port, and something done for each of the ports.
#if AXI_PORTS == 1
#define DATA_SIGNAL(port, name) top->dmem___05F##name
#else
#define DATA_SIGNAL(port, name) top->dmem##port##___05F##name
#endif
#if AXI_PORTS == 1
#define EACH_PORT(DO) DO(0)
#elif AXI_PORTS == 2
#define EACH_PORT(DO) DO(0) DO(1)
#else
#define EACH_PORT(DO) DO(0) DO(1) DO(2) DO(3)
#endif

}  // namespace

class Device {
  public:
    // The caller's; it may be exchanged for another between two calls.
    uint8_t* memory;
    uint64_t memory_bytes;
    ReadPort instructions, reads[AXI_PORTS];
    WritePort writes[AXI_PORTS];
    uint64_t now = 0;
    std::vector<uint32_t> crossed;  // what crossed the array's edge, cycle by cycle

    Device(uint8_t* memory, uint64_t bytes, const Timing& timing, int waves_fd)
        : memory(memory), memory_bytes(bytes), timing(timing), top(new Vtop(&context)) {
#if VM_TRACE
        if (waves_fd >= 0) {
            context.traceEverOn(true);
            trace = std::make_unique<waves::Waves>(*top, waves_fd);
        }
#else
        (void)waves_fd;
#endif
        top->rst = 1;
        for (int i = 0; i < 4; ++i) cycle();
        top->rst = 0;
        cycle();
    }
    ~Device() { top->final(); }

    // An errno if the waveform cannot be written; complete it first if this is its end.
    int waves_error(bool end) {
#if VM_TRACE
        if (trace) return end ? trace->close() : trace->error();
#endif
        (void)end;
        return 0;
    }

    // Return the response, or -1 if the device does not answer.
    int write_register(uint32_t offset, uint32_t value) {
        top->csr___05Fawaddr = offset;
        top->csr___05Fwdata = value;
        top->csr___05Fwstrb = 15;
        top->csr___05Fawvalid = top->csr___05Fwvalid = top->csr___05Fbready = 1;
        for (int i = 0; i < 64; ++i) {
            settle();
            const bool aw = top->csr___05Fawvalid && top->csr___05Fawready;
            const bool w = top->csr___05Fwvalid && top->csr___05Fwready;
            const bool b = top->csr___05Fbvalid;
            const int response = top->csr___05Fbresp;
            clock();
            if (aw) top->csr___05Fawvalid = 0;
            if (w) top->csr___05Fwvalid = 0;
            if (b) {
                top->csr___05Fbready = 0;
                return response;
            }
        }
        return -1;
    }
    int read_register(uint32_t offset, uint32_t* value) {
        top->csr___05Faraddr = offset;
        top->csr___05Farvalid = top->csr___05Frready = 1;
        for (int i = 0; i < 64; ++i) {
            settle();
            const bool ar = top->csr___05Farvalid && top->csr___05Farready;
            const bool r = top->csr___05Frvalid;
            const int response = top->csr___05Frresp;
            *value = top->csr___05Frdata;
            clock();
            if (ar) top->csr___05Farvalid = 0;
            if (r) {
                top->csr___05Frready = 0;
                return response;
            }
        }
        return -1;
    }
    // Clock until the device says that it runs no program, at most `limit` cycles and about
    // `seconds`: the caller then sees to its signals and calls again.
    bool run(uint64_t limit, double seconds) {
        using Clock = std::chrono::steady_clock;
        const auto end = Clock::now() + std::chrono::duration<double>(seconds);
        for (uint64_t i = 0; i < limit; ++i) {
            cycle();
            if (top->irq) return true;
            // A cycle of a large array takes milliseconds, reading the clock tens of nanoseconds.
            if (i % 8 == 7 && Clock::now() >= end) return false;
        }
        return false;
    }
    void cycle() {
        settle();
        clock();
    }

  private:
    VerilatedContext context;
    Timing timing;
    std::unique_ptr<Vtop> top;
#if SAT_ARRAY
    Stce array;
#endif
#if VM_TRACE
    std::unique_ptr<waves::Waves> trace;  // destroyed before the model that it looks at
#endif
    static constexpr uint64_t BEAT = AXI_DATA_BITS / 8, FETCH_BEAT = AXI_FETCH_BITS / 8;

    bool inside(uint64_t address, uint64_t beat) const {
        return address < memory_bytes && beat <= memory_bytes - address;
    }
    // Where in memory a port's beat lies: every port has its stripe of each beat of all together.
    static uint64_t placed(uint64_t address, int port) {
        return address / BEAT * BEAT * AXI_PORTS + port * BEAT;
    }

    // Offer what the memory has in this cycle and let the device's outputs settle.
    void settle() {
        const Burst* fetch = instructions.offered(now);
        top->imem___05Farready = 1;
        top->imem___05Frvalid = fetch != nullptr;
        if (fetch) {
            top->imem___05Frid = fetch->id;
            top->imem___05Frlast = fetch->beats == 1;
            const uint64_t at = fetch->address & ~(FETCH_BEAT - 1);
            top->imem___05Frresp = answer(*fetch, at, FETCH_BEAT);
            copy(&top->imem___05Frdata, at, FETCH_BEAT);
        }
#define OFFER(n)                                                              \
    DATA_SIGNAL(n, arready) = 1;                                              \
    const Burst* load##n = reads[n].offered(now);                             \
    DATA_SIGNAL(n, rvalid) = load##n != nullptr;                              \
    if (load##n) {                                                            \
        const uint64_t at = placed(load##n->address, n);                      \
        DATA_SIGNAL(n, rid) = load##n->id;                                    \
        DATA_SIGNAL(n, rlast) = load##n->beats == 1;                          \
        DATA_SIGNAL(n, rresp) = answer(*load##n, at, BEAT);                   \
        copy(&DATA_SIGNAL(n, rdata), at, BEAT);                               \
    }                                                                         \
    DATA_SIGNAL(n, awready) = 1;                                              \
    DATA_SIGNAL(n, wready) = writes[n].open(now) != nullptr;                  \
    const Burst* done##n = writes[n].answer(now);                             \
    DATA_SIGNAL(n, bvalid) = done##n != nullptr;                              \
    if (done##n) {                                                            \
        DATA_SIGNAL(n, bid) = done##n->id;                                    \
        DATA_SIGNAL(n, bresp) = done##n->response;                            \
    }
        EACH_PORT(OFFER)
#undef OFFER
        top->clk = 0;
        top->eval();
#if SAT_ARRAY
        // Nothing that the model shows in this cycle depends on it: it needs no second evaluation.
        show(array, *top);
#endif
#if VM_TRACE
        if (trace) trace->dump(now * 10);
#endif
    }
    // Take what was handed over in this cycle, then give the clock edge.
    void clock() {
        if (top->imem___05Frvalid && top->imem___05Frready)
            instructions.taken(now, FETCH_BEAT, timing);
        if (top->imem___05Farvalid)
            instructions.take(now, top->imem___05Faraddr, top->imem___05Farlen + 1, top->imem___05Farid,
                              timing);
#define TAKE(n)                                                                                \
    if (DATA_SIGNAL(n, rvalid) && DATA_SIGNAL(n, rready)) reads[n].taken(now, BEAT, timing);   \
    if (DATA_SIGNAL(n, arvalid))                                                               \
        reads[n].take(now, DATA_SIGNAL(n, araddr), DATA_SIGNAL(n, arlen) + 1,                  \
                      DATA_SIGNAL(n, arid), timing);                                           \
    if (DATA_SIGNAL(n, wvalid) && DATA_SIGNAL(n, wready))                                      \
        store(n, DATA_SIGNAL(n, wstrb), &DATA_SIGNAL(n, wdata));                               \
    if (DATA_SIGNAL(n, bvalid) && DATA_SIGNAL(n, bready)) writes[n].answered();                \
    if (DATA_SIGNAL(n, awvalid))                                                               \
        writes[n].take(now, DATA_SIGNAL(n, awaddr), DATA_SIGNAL(n, awlen) + 1,                 \
                       DATA_SIGNAL(n, awid));
        EACH_PORT(TAKE)
#undef TAKE
#if SAT_BOUNDARY
        boundary(*top, crossed);
#endif
#if SAT_ARRAY
        advance(array, *top);
#endif
        top->clk = 1;
        top->eval();
#if VM_TRACE
        if (trace) trace->dump(now * 10 + 5);
#endif
        ++now;
    }
    uint8_t answer(const Burst& burst, uint64_t at, uint64_t beat) const {
        return burst.response != OKAY ? burst.response : inside(at, beat) ? OKAY : DECERR;
    }
    void copy(void* port, uint64_t at, uint64_t beat) const {
        if (inside(at, beat))
            std::memcpy(port, &memory[at], beat);
        else
            std::memset(port, 0, beat);
    }
    void store(int port, uint64_t strobes, const void* given) {
        Burst& burst = *writes[port].open(now);
        const uint64_t at = placed(burst.address, port);
        const auto* data = static_cast<const uint8_t*>(given);
        if (!inside(at, BEAT)) {
            burst.response = DECERR;
        } else if (burst.response == OKAY) {
            for (uint64_t i = 0; i < BEAT; ++i)
                if (strobes >> i & 1) memory[at + i] = data[i];
        }
        burst.address &= ~(BEAT - 1);
        writes[port].taken(now, BEAT, timing);
    }
};

extern "C" {
// The memory is the caller's and must outlive the device or its replacement by device_memory.
Device* device_new(uint8_t* memory, uint64_t bytes, uint64_t read_latency, uint64_t write_latency,
                   uint64_t cycles_per_beat, int waves_fd) {
    try {
        return new Device(memory, bytes, {read_latency, write_latency, cycles_per_beat}, waves_fd);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
void device_delete(Device* device) { delete device; }
void device_memory(Device* device, uint8_t* memory, uint64_t bytes) {
    device->memory = memory;
    device->memory_bytes = bytes;
}
int device_waves(Device* device, int end) { return device->waves_error(end); }
int device_write(Device* device, uint32_t offset, uint32_t value) {
    return device->write_register(offset, value);
}
int device_read(Device* device, uint32_t offset, uint32_t* value) {
    return device->read_register(offset, value);
}
// What crossed the array's edge since the last call: words, the same number for each cycle.
uint64_t device_boundary(Device* device, const uint32_t** words) {
    static thread_local std::vector<uint32_t> taken;
    taken.swap(device->crossed);
    device->crossed.clear();
    *words = taken.data();
    return taken.size();
}
int device_run(Device* device, uint64_t limit, double seconds) {
    return device->run(limit, seconds);
}
uint64_t device_now(Device* device) { return device->now; }
// Fail the nth burst from now (0 is the next); kind 0 fetch, 1 read, 2 write.
void device_fail(Device* device, int kind, uint64_t nth) {
    if (kind == 0) device->instructions.fail_at = device->instructions.bursts + nth;
    // Of several data ports one fails, another with every burst.
    ReadPort& read = device->reads[nth % AXI_PORTS];
    WritePort& write = device->writes[nth % AXI_PORTS];
    if (kind == 1) read.fail_at = read.bursts + nth;
    if (kind == 2) write.fail_at = write.bursts + nth;
}
}
