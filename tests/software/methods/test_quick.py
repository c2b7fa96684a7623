"""Every method's quick demo, whole, under offload to golden: its checks, and what was offloaded."""

from __future__ import annotations

import json

import pytest

from sat.cli import main
from sat.methods import METHODS

LEAST = {"s4_ptd": 0.40}
"""Of the matrix FLOPs, if not 0.9: S4-PTD leaves eigenvalues and solves on the host."""


@pytest.mark.long
@pytest.mark.parametrize("slug", METHODS)
def test_a_quick_demo_keeps_its_checks_on_golden(slug, capsys):
    assert main(["run", slug, "--device", "golden", "--quick", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["quick"] and values["checks"] and values["left_out"]
    assert values["passed"] and all(check["passed"] for check in values["checks"])
    assert values["offload"]["coverage"] >= LEAST.get(slug, 0.9)
    assert values["offload"]["precision"] == METHODS[slug].precision
