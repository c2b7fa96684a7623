"""Transposed GATHERs that prune along the positions: rules, values, indices, nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.isa import Buffer, Instruction, Opcode, Status
from sat.sim.golden.check import GatherState, check
from sat.sim.golden.device import GoldenDevice

SMALL = {"a_words": 64, "b_words": 64, "prune_gathers": True}
CONFIGS = [
    SatConfig(rows=2, cols=2, **SMALL, axi=AxiConfig(data_bits=32)),
    SatConfig(rows=2, cols=5, max_m=2, max_n=2, **SMALL),
    SatConfig(rows=8, cols=8, **SMALL),
    SatConfig(rows=4, cols=13, max_m=4, max_n=4, **SMALL, axi=AxiConfig(data_bits=256)),
    SatConfig(rows=4, cols=16, max_m=16, **SMALL, axi=AxiConfig(data_bits=256)),
    # Two, and four, groups of channels together.
    SatConfig(rows=4, cols=8, max_m=2, max_n=2, **SMALL, axi=AxiConfig(data_bits=256)),
    SatConfig(
        rows=4, cols=16, max_m=4, max_n=4, a_words=64, b_words=128, copy_words=32,
        prune_gathers=True, axi=AxiConfig(data_bits=512, ports=2),
    ),
]  # fmt: skip
MEMORY = 1 << 14
BANKS = (Buffer.A, Buffer.B, Buffer.INDEX)


def settings_of(
    config: SatConfig, pitch: int, positions: int, n: int, log2_m: int
) -> list[Instruction]:
    """Return a TENSOR of a line of pixels and a WINDOW over it."""
    tensor = {"images": 1, "lines": 1, "pixels": positions, "pixel_pitch": pitch}
    window = {"lines": 1, "pixels": positions, "step_x": 1, "n": n, "log2_m": log2_m}
    return [Instruction(Opcode.TENSOR, tensor), Instruction(Opcode.WINDOW, window)]


def gather(config: SatConfig, segment: int, rows: int, **more: int) -> Instruction:
    fields = {
        "segment_bytes": segment,
        "rows": rows,
        "taps_y": 1,
        "taps_x": 1,
        "destination": Buffer.B,
        "transpose": 1,
        "groups": -(-segment // 2 // config.cols),
    }
    return Instruction(Opcode.GATHER, {**fields, **more})


def best(column: np.ndarray, n: int, m: int) -> list[int]:
    """Return the positions that are kept, group after group, each in ascending order."""
    size = np.where(np.isnan(column), np.inf, np.abs(column.astype(np.float64)))
    found = []
    for first in range(0, len(column), m):
        group = range(first, first + m)
        # NaN before infinity; sorting keeps the order of what is equal.
        ranked = sorted(group, key=lambda p: (-size[p], not np.isnan(column[p])))
        found += sorted(ranked[:n])
    return found


@st.composite
def cases(draw):
    config = draw(st.sampled_from(CONFIGS))
    log2_m = draw(st.integers(1, config.max_m.bit_length() - 1))
    n = draw(st.integers(1, 1 << log2_m))
    granule = config.granule_bytes
    segment = granule * draw(st.integers(1, 2 * config.b_groups * config.cols // granule))
    groups = draw(st.integers(1, 6))
    base = draw(st.integers(0, 3))
    positions = draw(st.integers(1, groups << log2_m))
    return config, n, log2_m, segment, groups << log2_m, positions, base, draw(st.integers(0, 9999))


@given(cases())
def test_kept_values_and_indices_lie_where_they_should(case):
    """Positions behind the last are zeros; of equal ones the earlier is kept."""
    config, n, log2_m, segment, rows, positions, base, seed = case
    rng = np.random.default_rng(seed)
    numbers = rng.choice([0, -0.0, 1, -1, 2, 0.5, np.inf, -np.inf, np.nan, 7], MEMORY // 2)
    memory = numbers.astype(np.float16).view(np.uint8)
    device = GoldenDevice(config, memory)
    for buffer in BANKS:
        own = device._banks[buffer]
        own[:] = rng.integers(0, 1 << 16, own.shape)
    before = {buffer: device._banks[buffer].copy() for buffer in BANKS}
    pitch = segment + config.granule_bytes * int(rng.integers(0, 2))
    wanted = settings_of(config, pitch, positions, n, log2_m)
    stride = config.wide_stride(config.cols) + config.beat_words * int(rng.integers(0, 2))
    wanted.append(gather(config, segment, rows, base=base, stride=stride))
    state = GatherState()
    for i in wanted:
        fault = check(i.encode(), config, (0, MEMORY), state)
        if fault is not None:
            room = "ends at word" in fault.message and config.b_groups > 1
            assert room or (config.max_m == 2 and base % 2), fault
            return
        state.follow(i)
        device.step(i)
    assert np.array_equal(device._banks[Buffer.A], before[Buffer.A])
    raw = np.zeros((rows, segment // 2), np.uint16)
    for position in range(positions):
        raw[position] = memory[position * pitch :][:segment].view(np.uint16)
    for bank in range(config.cols):
        values = before[Buffer.B][bank].reshape(-1)
        packed = before[Buffer.INDEX][bank].reshape(-1)
        for channel in range(bank, segment // 2, config.cols):
            kept = best(raw[:, channel].view(np.float16), n, 1 << log2_m)
            for k, position in enumerate(kept):
                place = (base + channel // config.cols * stride) * config.max_m + k
                values[place] = raw[position, channel]
                if k % 4 == 0:
                    packed[place // 4] = 0
                packed[place // 4] |= position % (1 << log2_m) << 4 * (k % 4)
        assert np.array_equal(device._banks[Buffer.B][bank].reshape(-1), values)
        assert np.array_equal(device._banks[Buffer.INDEX][bank].reshape(-1), packed)


PRUNING, PLAIN = CONFIGS[2], SatConfig(rows=8, cols=8)
PAIR, GROUPS = CONFIGS[1], CONFIGS[5]


@pytest.mark.parametrize(
    ("config", "n", "log2_m", "fields", "message"),
    [
        (PLAIN, 2, 2, None, "WINDOW.n=2, log2_m=2: must be 0, for this device has no prune_gath"),
        (PLAIN, 1, 0, None, "WINDOW.n=1, log2_m=0: must be 0, for this device has no prune_gath"),
        (PRUNING, 1, 0, None, "WINDOW.n=1: must be 0 with log2_m=0"),
        (PRUNING, 0, 2, None, "WINDOW.n=0: must be 1 to M=4"),
        (PRUNING, 5, 2, None, "WINDOW.n=5: must be 1 to M=4"),
        (PRUNING, 1, 4, None, "WINDOW.log2_m=4: this device has max_m=8"),
        (PRUNING, 2, 2, {"rows": 6}, "GATHER.rows=6: must be a multiple of M=4"),
        (PRUNING, 2, 2, {"segment_bytes": 32, "groups": 2}, "its 16 channels must fit 8 columns"),
        (PRUNING, 2, 2, {"rows": 1024, "base": 1}, "GATHER ends at word 65 of B, which has 64"),
        (PAIR, 1, 1, {"segment_bytes": 4, "base": 1}, "GATHER.base=1: pruned, must be a multiple"),
        (GROUPS, 1, 1, {"segment_bytes": 36, "groups": 3}, "its 18 channels must fit 16 lanes"),
        (GROUPS, 1, 1, {"segment_bytes": 32, "groups": 2, "stride": 8},
         "GATHER.stride=8: must be 4 more than a multiple of 8, to prune more channels than 8"),
        (GROUPS, 1, 1, {"segment_bytes": 32, "groups": 2, "stride": 60, "rows": 20},
         "GATHER ends at word 65 of B, which has 64"),
    ],
)  # fmt: skip
def test_what_is_refused(config, n, log2_m, fields, message):
    pitch = 16 * config.granule_bytes
    wanted = settings_of(config, pitch, 8, n, log2_m)
    if fields is not None:
        wanted.append(gather(config, **{"segment": 16, "rows": 8, **fields}))
    state = GatherState()
    for i in wanted[:-1]:
        assert check(i.encode(), config, (0, MEMORY), state) is None
        state.follow(i)
    fault = check(wanted[-1].encode(), config, (0, MEMORY), state)
    assert fault is not None and fault.status is Status.BAD_FIELD
    assert message in fault.message


def test_other_gathers_do_not_prune():
    """Into A, or not transposed, a pattern changes nothing: fewer rows than a group are legal."""
    state = GatherState()
    for i in settings_of(PRUNING, 64, 8, 2, 3):
        state.follow(i)
    for fields in ({"destination": Buffer.A}, {"destination": Buffer.A, "transpose": 0}):
        i = gather(PRUNING, 16, 3, **fields)
        assert check(i.encode(), PRUNING, (0, MEMORY), state) is None
