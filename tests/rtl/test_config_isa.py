"""The configuration's rules and the instruction encoding."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat.rtl.config import AxiConfig, FpTiming, SatConfig
from sat.rtl.csr import REGISTERS, parts
from sat.rtl.isa import BODIES, INSTRUCTION_BYTES, Instruction, Opcode, field_range
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rows": 0}, "rows=0: must be an integer 1 to 64"),
        ({"cols": 65}, "cols=65"),
        ({"max_m": 3}, "max_m=3: must be 2, 4, 8 or 16"),
        ({"max_n": 9}, "max_n=9: must be 1 to max_m"),
        ({"interleave": 2}, "interleave=2: must be at least adder_stages"),
        ({"interleave": 3}, "interleave=3: must be 1, 2, 4 or 8"),
        ({"a_words": 100}, "a_words=100: must be a power of two"),
        ({"rows": 64, "sum_words": 256}, "sum_words=256: must hold two tiles"),
        (
            {"rows": 4, "cols": 33, "max_m": 2, "max_n": 2, "axi": AxiConfig(data_bits=32)},
            "cols=33: a mask bit for each must fit a beat \\(32 bits\\)",
        ),
        (
            {"axi": AxiConfig(data_bits=512, ports=4), "max_m": 4, "max_n": 4},
            "ports=4 x data_bits=512: a beat must not hold more than 16 words of max_m=4",
        ),
        (
            {"axi": AxiConfig(data_bits=512, ports=4), "a_words": 16},
            "a_words=16: must be at least 32 for beats of 16 words",
        ),
        (
            {"axi": AxiConfig(data_bits=512, ports=2), "b_words": 32},
            "b_words=32: must be at least 64 for beats of 8 words",
        ),
        ({"update_lanes": 64}, "update_lanes=64: must be 1, 2, 4, 8, 16 or 32"),
        (
            {"cols": 4, "prune_gathers": True},
            "prune_gathers=True with cols=4: must be 8 \\(the FP16 values of a granule\\) to 8",
        ),
        (
            {"cols": 17, "prune_gathers": True, "axi": AxiConfig(data_bits=256)},
            "cols=17: must be 8 .* to 16 \\(of a beat\\); change cols, data_bits or ports",
        ),
        ({"crossings": (3, 8)}, r"crossings=\(3, 8\): must be rows 1 to 7, each once; 8 is not"),
        ({"crossings": (0,)}, r"crossings=\(0,\): .*; 0 is not"),
        ({"crossings": (3, 3)}, r"crossings=\(3, 3\): .*; 3 is not"),
        ({"crossings": (True,)}, r"crossings=\(True,\): .*; True is not"),
        ({"queue_depth": 3}, "queue_depth=3"),
        ({"watchdog_cycles": 1000}, "watchdog_cycles=1000"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        SatConfig(**options)


def test_parts_of_the_config_refuse():
    with pytest.raises(ValueError, match="adder_stages=9: must be 1 to 8"):
        FpTiming(adder_stages=9)
    with pytest.raises(ValueError, match="update_multiplier_stages=6: must be 3, 4 or 5"):
        FpTiming(update_multiplier_stages=6)
    with pytest.raises(ValueError, match="prune_stages=0: must be 1, 2 or 3"):
        FpTiming(prune_stages=0)
    with pytest.raises(ValueError, match="data_bits=48"):
        AxiConfig(data_bits=48)
    with pytest.raises(ValueError, match="ports=3: must be 1, 2 or 4"):
        AxiConfig(ports=3)
    with pytest.raises(ValueError, match="ports=2 of data_bits=64: several ports have 128 to 512"):
        AxiConfig(ports=2, data_bits=64)
    with pytest.raises(ValueError, match="outstanding=3"):
        AxiConfig(outstanding=3)


@pytest.mark.parametrize("kind", [SatConfig, FpTiming, AxiConfig, MemoryTiming])
@pytest.mark.parametrize("wrong", [1.5, 4.0, True, "4", None, np.int64(4), [4]])
def test_every_field_is_an_int(kind, wrong):
    """Fractions, bools and numbers of other kinds: named, with their type."""
    made = kind()
    numbers = [f.name for f in fields(kind) if type(getattr(made, f.name)) is int]
    assert len(numbers) >= 2
    for name in numbers:
        with pytest.raises(ValueError, match=rf"^{name}=") as refused:
            kind(**{name: wrong})
        assert repr(wrong) in str(refused.value) and "int" in str(refused.value)


def test_parts_of_the_config_are_parts():
    for name, wrong in (
        ("fp", AxiConfig()),
        ("axi", {"data_bits": 64}),
        ("fp", None),
        ("prune_gathers", 1),
        ("crossings", 3),
        ("crossings", [3]),
    ):
        with pytest.raises(ValueError, match=f"{name} is a .*: must be a "):
            SatConfig(**{name: wrong})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[1]", "must be a JSON object"),
        ('{"rows": 4, "columns": 4}', r"fields \['columns'\]: SatConfig has"),
        ('{"axi": {"bits": 4}}', r"fields \['bits'\]: AxiConfig has"),
        ('{"fp": 3}', "must be a JSON object"),
        ('{"rows": 4.0}', "rows=4.0 is a float"),
        ('{"axi": {"data_bits": true}}', "data_bits=True is a bool"),
    ],
)
def test_json_that_is_no_configuration(text, message):
    with pytest.raises(ValueError, match=message):
        SatConfig.from_json(text)


@pytest.mark.parametrize("name", ["batch", "lines", "in_channels", "groups", "kernel", "ff"])
@pytest.mark.parametrize("wrong", [1.0, True, "1", None, (1.0, 1), [1, 1], (1,)])
def test_layers_take_ints(name, wrong):
    with pytest.raises(ValueError, match=rf"^{name}="):
        Layer(**{"in_channels": 8, "out_channels": 8, name: wrong})


def test_config_survives_json_and_names_its_array():
    config = SatConfig(rows=3, cols=5, fp=FpTiming(multiplier_stages=2))
    assert SatConfig.from_json(config.to_json()) == config
    assert config.array == "3x5"
    big = config.with_array("64x2")
    assert (big.rows, big.cols) == (64, 2) and big.sum_words >= 2 * 64 * big.interleave
    assert big.digest != config.digest
    assert "prune_gathers" not in config.to_json()
    pruning = SatConfig(prune_gathers=True)
    assert SatConfig.from_json(pruning.to_json()) == pruning != SatConfig()
    assert "crossings" not in config.to_json()
    crossing = SatConfig(crossings=(3, 5))
    assert SatConfig.from_json(crossing.to_json()) == crossing != SatConfig()
    # Another array has other rows.
    assert crossing.with_array("8x4").crossings == (3, 5)
    assert crossing.with_array("4x8").crossings == ()
    with pytest.raises(ValueError, match="array='8': must be ROWSxCOLS"):
        config.with_array("8")


@st.composite
def instructions(draw):
    """Draw any instruction whose fields fit their widths."""
    opcode = draw(st.sampled_from(list(Opcode)))
    layout = BODIES[opcode]
    body = {}
    for name in dict(layout.members):
        legal = field_range(layout, name)
        body[name] = draw(st.integers(legal.start, legal.stop - 1))
    masks = [draw(st.integers(0, 0xFFFF)) for _ in range(3)]
    return Instruction(opcode, body, *masks)


@given(instructions())
def test_instruction_survives_its_bytes(instruction):
    raw = instruction.encode()
    assert len(raw) == INSTRUCTION_BYTES
    assert Instruction.decode(raw) == instruction


def test_fields_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="LOAD.rows=65536: must be 0 to 65535"):
        Instruction(Opcode.LOAD, {"rows": 1 << 16})
    with pytest.raises(ValueError, match="STORE has no field 'colour'"):
        Instruction(Opcode.STORE, {"colour": 1})
    with pytest.raises(ValueError, match="FENCE.wait=-1"):
        Instruction(Opcode.FENCE, {}, wait=-1)
    with pytest.raises(ValueError, match="opcode 0x00 is unknown: known are 0x01 END"):
        Instruction.decode(bytes(32))
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        Instruction.decode(bytes(31))


def test_register_map_has_no_overlap():
    offsets = [register.offset for register in REGISTERS.values()]
    assert len(set(offsets)) == len(offsets) and all(offset % 4 == 0 for offset in offsets)
    assert [r.name for r in parts("CYCLES")] == ["CYCLES_LO", "CYCLES_HI"]
    assert [r.name for r in parts("STATUS")] == ["STATUS"]
    with pytest.raises(KeyError):
        parts("NOTHING")
