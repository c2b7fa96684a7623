"""Blocks proved for whatever comes in; each proof also fails on a block with a planted fault."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from proofs import PROOFS, solve


@pytest.mark.parametrize("name", PROOFS)
def test_proof(name):
    verdict = solve(name, PROOFS[name])
    assert verdict.status == "PASS", verdict.log


@pytest.mark.parametrize("name", PROOFS)
def test_planted_fault_is_found(name):
    verdict = solve(name, PROOFS[name], broken=True)
    assert verdict.found, verdict.log
