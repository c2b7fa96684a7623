// The Verilated device with its memory: registers over AXI4-Lite, two AXI4 ports into one array
// of bytes that answers with the timing of sat.sim.memory.MemoryTiming. One call runs a program.

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

}  // namespace

class Device {
  public:
    std::vector<uint8_t> memory;
    ReadPort instructions, reads;
    WritePort writes;
    uint64_t now = 0;

    Device(uint64_t bytes, const Timing& timing, const char* waves)
        : memory(bytes), timing(timing), top(new Vtop(&context)) {
#if VM_TRACE
        if (waves) {
            context.traceEverOn(true);
            trace = std::make_unique<VerilatedFstC>();
            top->trace(trace.get(), 99);
            trace->open(waves);
        }
#else
        (void)waves;
#endif
        top->rst = 1;
        for (int i = 0; i < 4; ++i) cycle();
        top->rst = 0;
        cycle();
    }
    ~Device() {
#if VM_TRACE
        if (trace) trace->close();
#endif
        top->final();
    }

    // Return the response, or -1 if the device does not answer.
    int write_register(uint32_t offset, uint32_t value) {
        top->csr__awaddr = offset;
        top->csr__wdata = value;
        top->csr__wstrb = 15;
        top->csr__awvalid = top->csr__wvalid = top->csr__bready = 1;
        for (int i = 0; i < 64; ++i) {
            settle();
            const bool aw = top->csr__awvalid && top->csr__awready;
            const bool w = top->csr__wvalid && top->csr__wready;
            const bool b = top->csr__bvalid;
            const int response = top->csr__bresp;
            clock();
            if (aw) top->csr__awvalid = 0;
            if (w) top->csr__wvalid = 0;
            if (b) {
                top->csr__bready = 0;
                return response;
            }
        }
        return -1;
    }
    int read_register(uint32_t offset, uint32_t* value) {
        top->csr__araddr = offset;
        top->csr__arvalid = top->csr__rready = 1;
        for (int i = 0; i < 64; ++i) {
            settle();
            const bool ar = top->csr__arvalid && top->csr__arready;
            const bool r = top->csr__rvalid;
            const int response = top->csr__rresp;
            *value = top->csr__rdata;
            clock();
            if (ar) top->csr__arvalid = 0;
            if (r) {
                top->csr__rready = 0;
                return response;
            }
        }
        return -1;
    }
    // Clock until the device says that it runs no program, at most `limit` cycles.
    bool run(uint64_t limit) {
        for (uint64_t i = 0; i < limit; ++i) {
            cycle();
            if (top->finished) return true;
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
#if VM_TRACE
    std::unique_ptr<VerilatedFstC> trace;
#endif
    static constexpr uint64_t BEAT = AXI_DATA_BITS / 8;

    bool inside(uint64_t address) const { return address + BEAT <= memory.size(); }

    // Offer what the memory has in this cycle and let the device's outputs settle.
    void settle() {
        const Burst* fetch = instructions.offered(now);
        top->imem__arready = 1;
        top->imem__rvalid = fetch != nullptr;
        if (fetch) {
            top->imem__rid = fetch->id;
            top->imem__rlast = fetch->beats == 1;
            top->imem__rresp = answer(*fetch);
            copy(&top->imem__rdata, fetch->address);
        }
        const Burst* load = reads.offered(now);
        top->dmem__arready = 1;
        top->dmem__rvalid = load != nullptr;
        if (load) {
            top->dmem__rid = load->id;
            top->dmem__rlast = load->beats == 1;
            top->dmem__rresp = answer(*load);
            copy(&top->dmem__rdata, load->address);
        }
        top->dmem__awready = 1;
        top->dmem__wready = writes.open(now) != nullptr;
        const Burst* done = writes.answer(now);
        top->dmem__bvalid = done != nullptr;
        if (done) {
            top->dmem__bid = done->id;
            top->dmem__bresp = done->response;
        }
        top->clk = 0;
        top->eval();
#if VM_TRACE
        if (trace) trace->dump(now * 10);
#endif
    }
    // Take what was handed over in this cycle, then give the clock edge.
    void clock() {
        if (top->imem__rvalid && top->imem__rready) instructions.taken(now, BEAT, timing);
        if (top->imem__arvalid)
            instructions.take(now, top->imem__araddr, top->imem__arlen + 1, top->imem__arid,
                              timing);
        if (top->dmem__rvalid && top->dmem__rready) reads.taken(now, BEAT, timing);
        if (top->dmem__arvalid)
            reads.take(now, top->dmem__araddr, top->dmem__arlen + 1, top->dmem__arid, timing);
        if (top->dmem__wvalid && top->dmem__wready) store();
        if (top->dmem__bvalid && top->dmem__bready) writes.answered();
        if (top->dmem__awvalid)
            writes.take(now, top->dmem__awaddr, top->dmem__awlen + 1, top->dmem__awid);
        top->clk = 1;
        top->eval();
#if VM_TRACE
        if (trace) trace->dump(now * 10 + 5);
#endif
        ++now;
    }
    uint8_t answer(const Burst& burst) const {
        return burst.response != OKAY ? burst.response : inside(burst.address) ? OKAY : DECERR;
    }
    // A beat starts at its address rounded down to the port's width.
    void copy(void* port, uint64_t address) const {
        const uint64_t at = address & ~(BEAT - 1);
        if (inside(at))
            std::memcpy(port, &memory[at], BEAT);
        else
            std::memset(port, 0, BEAT);
    }
    void store() {
        Burst& burst = *writes.open(now);
        const uint64_t at = burst.address & ~(BEAT - 1);
        const uint32_t strobes = top->dmem__wstrb;
        const auto* data = reinterpret_cast<const uint8_t*>(&top->dmem__wdata);
        if (!inside(at)) {
            burst.response = DECERR;
        } else if (burst.response == OKAY) {
            for (uint64_t i = 0; i < BEAT; ++i)
                if (strobes >> i & 1) memory[at + i] = data[i];
        }
        burst.address = at;
        writes.taken(now, BEAT, timing);
    }
};

extern "C" {
Device* device_new(uint64_t bytes, uint64_t read_latency, uint64_t write_latency,
                   uint64_t cycles_per_beat, const char* waves) {
    return new Device(bytes, {read_latency, write_latency, cycles_per_beat}, waves);
}
void device_delete(Device* device) { delete device; }
uint8_t* device_memory(Device* device) { return device->memory.data(); }
int device_write(Device* device, uint32_t offset, uint32_t value) {
    return device->write_register(offset, value);
}
int device_read(Device* device, uint32_t offset, uint32_t* value) {
    return device->read_register(offset, value);
}
int device_run(Device* device, uint64_t limit) { return device->run(limit); }
uint64_t device_now(Device* device) { return device->now; }
// Fail the nth burst from now (0 is the next); kind 0 fetch, 1 read, 2 write.
void device_fail(Device* device, int kind, uint64_t nth) {
    if (kind == 0) device->instructions.fail_at = device->instructions.bursts + nth;
    if (kind == 1) device->reads.fail_at = device->reads.bursts + nth;
    if (kind == 2) device->writes.fail_at = device->writes.bursts + nth;
}
}
