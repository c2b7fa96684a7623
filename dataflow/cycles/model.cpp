// The exact cycle model, to be called from Python (sat.dataflow.cycles.model). The compiler is
// handed what sat.rtl defines (sat.dataflow.cycles.definitions) in front of this file.

#include "sequencer.h"

namespace {

// The engines with the parameters that they refer to.
struct Device {
    explicit Device(const Parameters& p) : parameters(p), engines(parameters) {}
    const Parameters parameters;
    Engines engines;
};

}  // namespace

extern "C" {

void cycles_predict(const uint8_t* program, int64_t length, int64_t address, const Parameters* p,
                    int64_t leaps, Times* times, Found* found) {
    *found = Model(program, length, address, *p, times).run(leaps);
}

// For tests of single engines, and of what cuts rows into bursts.

Device* cycles_device(const Parameters* p) { return new Device(*p); }

void cycles_free(Device* device) { delete device; }

void cycles_run(Device* device, int64_t engine, const uint8_t* instruction, Cycle earliest,
                Times* times) {
    *times = device->engines.run(Engine(engine), Instruction(instruction), earliest);
}

Cycle cycles_idle(const Device* device) { return device->engines.idle(); }

// Writes address and beats of each burst, as many as there is room for; returns how many there are.
int64_t cycles_bursts(int64_t address, int64_t size, const Parameters* p, int64_t* made,
                      int64_t room) {
    int64_t count = 0;
    bursts(address, size, *p, [&](int64_t at, int64_t beats) {
        if (count < room) made[2 * count] = at, made[2 * count + 1] = beats;
        ++count;
    });
    return count;
}
}
