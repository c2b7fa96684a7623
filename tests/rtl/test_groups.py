"""Groups of channels in one write: where each sub-bank finds its word, stated without the RTL."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sat.rtl.config import INDICES_TOGETHER, AxiConfig, SatConfig
from sat.rtl.layouts import ALONE, Groups, index_groups, operand_groups

WIDE = AxiConfig(data_bits=512, ports=4, outstanding=64)
DEEP = {"a_words": 1024, "b_words": 1024, "sum_words": 4096, "prune_gathers": True}
CONFIGS = [
    (SatConfig(rows=32, cols=32, **DEEP, axi=WIDE), 4),
    (SatConfig(rows=64, cols=64, **DEEP, axi=WIDE), 2),
    (SatConfig(rows=32, cols=32, **DEEP, axi=replace(WIDE, ports=2)), 2),
    (SatConfig(rows=16, cols=16, max_m=4, max_n=4, **DEEP, axi=replace(WIDE, ports=2)), 4),
    (SatConfig(rows=8, cols=8, max_m=2, max_n=2, **DEEP, axi=AxiConfig(data_bits=256)), 2),
]


def check(groups: Groups, config: SatConfig, stride: int) -> None:
    """Assert that the words of a bank lie in different sub-banks, each at the next place."""
    together = config.beat_words
    for base in range(2 * together):
        found = [(base + n * stride) % together for n in range(groups.count)]
        assert len(set(found)) == groups.count
        first = groups.place(found[0])
        assert first == base // groups.apart % groups.count
        for n, sub_bank in enumerate(found):
            assert groups.place(sub_bank) == (first + n) % groups.count


@pytest.mark.parametrize(("config", "count"), CONFIGS)
def test_words_of_a_bank_are_apart(config, count):
    """Under every stride that lets them, of values and of their indices."""
    assert config.a_groups == config.b_groups == count
    own = config.wide_stride(config.cols)
    for more in range(5):
        stride = own + more * config.beat_words
        check(operand_groups(config, config.cols), config, stride)
        assert stride % INDICES_TOGETHER == 0
        check(index_groups(config), config, stride // INDICES_TOGETHER)


@pytest.mark.parametrize(
    "config",
    [
        SatConfig(),
        SatConfig(prune_gathers=True),
        SatConfig(rows=32, cols=32, **DEEP, axi=replace(WIDE, ports=1)),  # a beat to the array
        SatConfig(axi=AxiConfig(data_bits=512)),  # four groups, and as few sub-banks
        SatConfig(rows=24, cols=24, **DEEP, axi=WIDE),  # no whole groups
    ],
)
def test_a_group_alone(config):
    assert config.a_groups == config.b_groups == 1
    assert operand_groups(config, config.rows).count == 1 and index_groups(config) == ALONE
