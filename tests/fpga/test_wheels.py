"""Programs from wheels run in their folder, and see no other."""

from __future__ import annotations

import pytest

from sat.fpga.wheels import ECPPACK, NEXTPNR, YOSYS, run_wheel
from sat.sim.build import BuildError


def test_a_program_sees_its_folder_and_no_other(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    for folder in (tmp_path, inside):
        (folder / "wires.v").write_text("module wires; endmodule")
    script = "read_verilog wires.v; write_json /wires.json"
    run_wheel(YOSYS, ["-q", "-p", script], inside)
    assert '"wires": {' in (inside / "wires.json").read_text()
    for outside in ("../wires.v", str(tmp_path / "wires.v"), str(inside / "wires.v")):
        with pytest.raises(BuildError, match="not found or is a directory"):
            run_wheel(YOSYS, ["-q", "-p", f"read_verilog {outside}"], inside)


def test_what_the_user_mounts_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("YOWASP_MOUNT", f"/elsewhere={tmp_path}")
    (tmp_path / "wires.v").write_text("module wires; endmodule")
    run_wheel(YOSYS, ["-q", "-p", "read_verilog wires.v"], tmp_path)


@pytest.mark.parametrize("program", [YOSYS, NEXTPNR, ECPPACK])
def test_a_failure_is_told_with_what_the_program_said(program, tmp_path):
    with pytest.raises(BuildError, match=f"{program} failed with status"):
        run_wheel(program, ["--no-such-option"], tmp_path)
