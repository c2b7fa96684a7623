"""Training schemes: what they prune, and that wrong ones are refused."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from sat import Prune, Scheme, register_scheme
from sat.layers.schemes import CONTRACTION, get_scheme, schemes, unregister_scheme


def test_built_in_schemes_prune_what_their_papers_say():
    table = {
        name: {stage: (p.operand, *p.axes) for stage, p in scheme.prunes.items()}
        for name, scheme in schemes().items()
    }
    bdwp = {"FF": ("weight", "in"), "BP": ("weight", "out")}
    assert table == {
        "dense": {},
        "bdwp": bdwp,
        "srste": {"FF": ("weight", "in"), "BP": ("weight", "in")},
        "sdgp": {"BP": ("output_gradient", "out")},
        "sdwp": {"BP": ("weight", "out")},
        "bdwp_wu": {**bdwp, "WU": ("output_gradient", "batch")},
        "bdwp_mvue": {**bdwp, "WU": ("output_gradient", "batch")},
    }
    assert {name: s.srste_lambda for name, s in schemes().items() if s.srste_lambda} == {
        "srste": 2e-4
    }
    assert all(scheme.summary for scheme in schemes().values())
    assert dict(CONTRACTION) == {"FF": "in", "BP": "out", "WU": "batch"}


def test_pruning_asks_for_one_operand_of_one_stage():
    bdwp = get_scheme("bdwp")
    assert bdwp.pruning("FF", "weight") == Prune("weight", "in")
    assert bdwp.pruning("FF", "input") is None
    assert bdwp.pruning("WU", "input") is None


@pytest.mark.parametrize("name", ["srste", "bdwp_mvue"])
def test_a_scheme_is_copied_and_pickled(name):
    scheme = get_scheme(name)
    assert copy.deepcopy(scheme) == scheme
    assert pickle.loads(pickle.dumps(scheme)) == scheme


def test_a_scheme_is_not_changed_from_outside():
    prunes = {"FF": Prune("weight", "in")}
    scheme = Scheme("mine", prunes=prunes)
    prunes["BP"] = Prune("weight", "out")
    assert list(scheme.prunes) == ["FF"]
    with pytest.raises(TypeError):
        scheme.prunes["BP"] = Prune("weight", "out")


def test_registry_takes_new_names_and_forgets_them():
    mine = Scheme("mine", "for the test")
    try:
        assert register_scheme(mine) is mine
        assert register_scheme(Scheme("mine", "for the test")) == mine  # the same again
        assert get_scheme("mine") == mine
        with pytest.raises(ValueError, match="scheme 'mine': the name is taken; choose another"):
            register_scheme(Scheme("mine", srste_lambda=0.0))
    finally:
        unregister_scheme("mine")
    with pytest.raises(ValueError, match="scheme 'mine': there is no such scheme; choose one of d"):
        get_scheme("mine")


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: Prune("bias", "in"), ValueError, "operand 'bias': must be one of weight, input"),
        (lambda: Prune("weight"), ValueError, "axes () of weight: must be one or more of"),
        (lambda: Prune("weight", "batch"), ValueError, "axes ('batch',) of weight"),
        (lambda: Prune("input", "out"), ValueError, "axes ('out',) of input"),
        (lambda: Scheme("x", prunes={"XX": Prune("input", "in")}), ValueError, "stage 'XX': must"),
        (
            lambda: Scheme("x", prunes={"WU": Prune("weight", "in")}),
            ValueError,
            "WU prunes 'weight': WU has ('input', 'output_gradient'); prune one of these",
        ),
        (lambda: Scheme("x", srste_lambda=-1.0), ValueError, "srste_lambda=-1.0: must be finite"),
        (lambda: Scheme("x", srste_lambda=float("nan")), ValueError, "srste_lambda=nan"),
        (lambda: Scheme("x", srste_lambda=1e-4), ValueError, "decays the weights that FF prunes"),
        (lambda: register_scheme("x"), TypeError, "scheme is a str: must be a Scheme instance"),
        (lambda: get_scheme(3), TypeError, "scheme 3 is a int: must be a name or a Scheme"),
        (lambda: get_scheme("x"), ValueError, "or register yours with sat.register_scheme"),
    ],
)
def test_wrong_scheme_names_value_rule_and_fix(make, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        make()
