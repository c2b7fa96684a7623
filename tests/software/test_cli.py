"""The command: exit codes, JSON, one-line errors; and the demo, on a stand-in for the RTL."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields

import pytest

import sat
from sat.cli import main
from sat.commands.common import to_json
from sat.dataflow.compile.step import STAGES, compile_step
from sat.dataflow.cycles import predict
from sat.dataflow.products import Product, StartShape
from sat.dataflow.search import best_mapping
from sat.devices.stages import LayerRun
from sat.rtl.config import SatConfig
from sat.sim.layer import Layer
from sat.sim.memory import MEMORIES, MemoryTiming
from sat.training.demo import demo


def call(capsys, *args):
    """Return exit code, standard output and standard error of a command."""
    code = main(list(args))
    out, err = capsys.readouterr()
    return code, out, err


def load(text):
    """Return what a command printed with --json: one object, on one line."""
    assert text.count("\n") == 1
    return json.loads(text)


SIMULATE = {
    "bit_exact",
    "compared",
    "cycles",
    "predicted_cycles",
    "macs",
    "utilisation",
    "sim_cycles_per_second",
    "wall_seconds",
}


def test_simulate_reports_equal_bits(capsys, rtl_is_fake):
    args = ["--rows", "5", "--cols", "7", "--depth", "20", "--pattern", "2:8", "--json"]
    code, out, err = call(capsys, "simulate", *args)
    values = load(out)
    assert code == 0 and not err
    assert set(values) >= SIMULATE
    assert values["bit_exact"] is True and values["compared"] == 35
    assert values["macs"] == values["cycles"] == values["predicted_cycles"] == 5 * 7 * 6
    assert values["sim_cycles_per_second"] == values["cycles"] / 0.5
    assert values["pattern"] == "2:8" and values["array"] == "8x8"


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--pattern", "3:16"],
        ["--array", "4x2", "--dataflow", "ws", "--seed", "7"],
        ["--start", "--specials", "--pattern", "1:2"],
    ],
)
def test_simulate_in_words(capsys, rtl_is_fake, args):
    code, out, err = call(capsys, "simulate", "--rows", "9", *args)
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert err.startswith("simulating an array of ") and err.count("\n") == 1
    assert lines["bit_exact"] == "yes" and lines["compared"] == "576"


def test_simulate_says_where_bits_differ(capsys, rtl_is_fake):
    rtl_is_fake["wrong_product"] = 0
    code, out, _ = call(capsys, "simulate")
    assert code == 1
    assert "MISMATCH: product 0, element [0, 0]: got 0x" in out
    code, out, _ = call(capsys, "simulate", "--json")
    values = load(out)
    assert code == 1 and values["bit_exact"] is False and values["mismatches"] == 1
    assert values["first_mismatch"].startswith("product 0, element [0, 0]")


def test_simulate_says_when_cycles_differ(capsys, rtl_is_fake):
    rtl_is_fake["late"] = 1
    code, out, _ = call(capsys, "simulate", "--rows", "1", "--cols", "1", "--depth", "9")
    assert code == 1 and "MISMATCH: 10 cycles, predicted 9" in out


def test_simulate_hands_the_waveform_on(capsys, monkeypatch, fake_rtl):
    made = []

    def device(spec, **options):
        made.append(fake_rtl(**options))
        return made[-1]

    monkeypatch.setattr(sat, "device", device, raising=False)
    code, out, _ = call(capsys, "simulate", "--waves", "some.fst", "--json")
    assert code == 0 and made[0].waves == "some.fst" and load(out)["waves"] == "some.fst"
    assert made[0].closed


@pytest.mark.parametrize("args", [[], ["--memory", "narrow", "--start", "--rows", "1"]])
def test_simulate_predicts_a_product_under_the_keys_of_a_run(capsys, rtl_is_fake, args):
    args = ["--rows", "9", "--cols", "70", "--pattern", "2:8", *args, "--json"]
    code, out, _ = call(capsys, "simulate", *args)
    ran = load(out)
    code, out, err = call(capsys, "simulate", "--predict", *args)
    values = load(out)
    assert code == 0 and not err and set(values) == set(ran)
    config, timing = SatConfig(), MemoryTiming()
    if "--memory" in args:
        timing = MemoryTiming(read_latency=40, write_latency=40)
    start = StartShape.ROW if "--start" in args else StartShape.ZERO
    product = Product(1 if "--start" in args else 9, 70, 64, 2, 8, start)
    compiled, cycles = best_mapping(product, config, timing)
    assert values["cycles"] == values["predicted_cycles"] == cycles
    assert values["macs"] == ran["macs"] and (values["bit_exact"], values["compared"]) == (None, 0)
    assert values["utilisation"] == values["macs"] / (64 * cycles)
    found = predict(compiled.program, config, timing)
    assert values["bytes_read"] == 16 * found.beats_read
    assert values["bytes_written"] == 16 * found.beats_written >= 4 * 70 * product.rows


@pytest.mark.parametrize("stage", ["ff", "bp", "wu", "update", "step"])
def test_simulate_predicts_a_layer_under_the_keys_of_a_run(capsys, stage):
    args = ["--layer", "conv", "--channels", "16", "--pattern", "2:4", "--relu", "--stage", stage]
    args += ["--read-latency", "7", "--memory", "narrow", "--array", "4x4"]
    code, out, err = call(capsys, "simulate", "--predict", *args, "--json")
    values = load(out)
    assert code == 0 and not err
    known = {field.name for field in fields(LayerRun)} - {"stages"}
    assert set(values) >= known | SIMULATE | {"dense_cycles_at_best", "speedup_over_best_dense"}
    layer = Layer(
        batch=1, lines=8, pixels=8, in_channels=16, out_channels=16, kernel=(3, 3),
        padding=(1, 1), ff=(2, 4), bp=(2, 4), bias=True, relu=True, masked=True,
    )  # fmt: skip
    config = SatConfig().with_array("4x4")
    timing = MemoryTiming(read_latency=7, write_latency=40)
    step = compile_step(layer, config, timing, STAGES if stage == "step" else (stage,))
    found = predict(step.program, config, timing, step.address)
    assert (values["cycles"], values["instructions"]) == (found.cycles, len(step.program))
    assert values["bytes_written"] == 16 * found.beats_written
    _, words, _ = call(capsys, "simulate", "--predict", *args)
    assert f"{found.cycles:,}" in words


@pytest.mark.parametrize(
    "args, engine",
    [
        ([], "simd"),
        (["--engine", "verilator"], "verilator"),
        (["--engine", "simd", "--array", "1x1"], "simd"),
        (["--waves", "some.fst"], "verilator"),
    ],
)
def test_simulate_hands_the_engine_on(capsys, rtl_is_fake, args, engine):
    code, out, _ = call(capsys, "simulate", *args, "--json")
    assert code == 0 and load(out)["engine"] == engine


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "sat: error: no command (see sat --help)"),
        (["fly"], "sat: error: argument COMMAND: invalid choice: 'fly'"),
        (
            ["simulate", "--rows", "0"],
            "sat simulate: error: argument --rows: '0': must be an int",
        ),
        (["simulate", "--rows", "x"], "sat simulate: error: argument --rows: 'x'"),
        (["simulate", "--seed", "-1"], "sat simulate: error: argument --seed"),
        (["simulate", "--dataflow", "xs"], "sat simulate: error: argument --dataflow: invalid ch"),
        (["simulate", "--pattern", "9:8"], "sat simulate: error: pattern 9:8: N must be from 1"),
        (["simulate", "--pattern", "two"], "sat simulate: error: pattern 'two': must be N:M or d"),
        (["simulate", "--array", "8"], "sat simulate: error: array='8': must be ROWSxCOLS"),
        (["simulate", "--memory", "sram"], "sat simulate: error: argument --memory: invalid ch"),
        (
            ["simulate", "--predict", "--waves", "x.fst"],
            "sat simulate: error: --predict runs nothing: leave out --waves, or --predict",
        ),
        (["simulate", "--lanes", "8"], "sat: error: unrecognized arguments: --lanes 8"),
        (["train", "--model", "vgg"], "sat train: error: model 'vgg': there is no such model"),
        (["train", "--data", "mnist"], "sat train: error: data 'mnist': there is no such set"),
        (["train", "--scheme", "x"], "sat train: error: scheme 'x': there is no such scheme"),
        (["train", "--device", "x"], "sat train: error: device 'x': there is no such device"),
        (["train", "--model", "line16"], "sat train: error: model 'line16' takes inputs of shape"),
        (
            ["simulate", "--layer", "linear", "--wu", "2:8", "--groups", "4", "--predict"],
            "sat simulate: error: --groups 4: a linear layer has none; leave it out, or give --lay",
        ),
        (
            ["simulate", "--layer", "conv", "--wu", "2:8", "--array", "4x4", "--predict"],
            "sat simulate: error: prune_gathers=True with cols=4: must be 8 (the FP16 values of",
        ),
        (["train", "--batch", "9999"], "sat train: error: batch=9999: must not exceed the 1347"),
        *(
            (
                [*command, "--engine", "fast"],
                f"sat {command[0]}: error: engine='fast': must be one of auto, verilator, simd",
            )
            for command in (
                ["simulate"],
                ["simulate", "--layer", "linear"],
                ["train", "--device", "rtl"],
                ["train", "--device", "rtl*2"],
                ["train", "--device", "rtl", "--ranks", "2"],
                ["run", "s4d", "--device", "rtl"],
                ["demo"],
            )
        ),
        (
            ["simulate", "--engine", "simd", "--waves", "some.fst"],
            "sat simulate: error: engine='simd' has no signals of the array to write",
        ),
        (
            ["train", "--engine", "simd"],
            "sat train: error: --engine simd: only rtl is simulated by an engine, not golden",
        ),
        (
            ["train", "--engine", "simd", "--device", "golden,rtl"],
            "sat train: error: --engine simd: only rtl is simulated by an engine, not golden,rtl",
        ),
        (
            ["run", "s4d", "--device", "host", "--engine", "simd"],
            "sat run: error: --device host: --array, --engine, --first, --max-cycles and --trace",
        ),
        (["demo", "--pattern", "dense"], "sat demo: error: pattern 'dense': the demo sets"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(capsys, rtl_is_fake, args, message):
    code, out, err = call(capsys, *args)
    assert code == 2 and not out
    assert err.startswith(message) and err.count("\n") == 1


def test_a_memory_gives_a_device_its_ports():
    assert MEMORIES["narrow"].device(SatConfig()) == SatConfig()
    assert [m.bytes_per_cycle for m in MEMORIES.values()] == [16, 64, 256]
    for memory in MEMORIES.values():
        assert memory.device(SatConfig()).axi.beat_bytes == memory.bytes_per_cycle
    rule = "256 bytes a cycle by 4 x 512 bits: .*a beat must not hold more than 16 words of max_m=4"
    with pytest.raises(ValueError, match=f"{rule}.*; name a memory with a narrower port"):
        MEMORIES["ddr4x4"].device(SatConfig(max_m=4, max_n=4))


def test_a_failing_device_is_one_line_and_code_1(capsys, monkeypatch):
    code, out, err = call(capsys, "train", "--device", "xdma:99")
    assert code == 1 and not out
    assert err.startswith("sat train: failed: device 'xdma:99': /dev/xdma99_user: there is no")
    assert err.count("\n") == 1


def test_train_reports_in_json_and_words(capsys, rtl_is_fake):
    args = ["train", "--model", "mlp", "--steps", "3", "--batch", "16", "--scheme", "srste"]
    code, out, _ = call(capsys, *args, "--json")
    values = load(out)
    assert code == 0
    # A step: three products for fc1 (no BP: two) and fc2, whose SR-STE masks BP along the other
    # channels; two programs for fc3, which is dense.
    assert (values["steps"], values["skipped_steps"], values["products"]) == (3, 0, 21)
    assert (values["device"], values["scheme"], values["pattern"]) == ("golden", "srste", "2:8")
    assert values["cycles"] is None and values["macs"] > 0
    assert 0 <= values["test_accuracy"] <= 1 and len(values["accuracies"]) == 1
    assert [layer["name"] for layer in values["layers"]] == ["fc1", "fc2", "fc3"]
    code, out, _ = call(capsys, *args, "--device", "rtl", "--array", "4x4", "--json")
    on_rtl = load(out)
    assert code == 0 and on_rtl["cycles"] == on_rtl["macs"] == values["macs"]
    assert on_rtl["array"] == "4x4" and on_rtl["loss"] == values["loss"]
    code, out, err = call(capsys, *args)
    assert code == 0 and "fc3" in out and "test_accuracy" in out
    assert "mlp on golden" in err  # the progress bar


@pytest.mark.parametrize(
    ("scheme", "array", "staged"),
    [
        ("bdwp_wu", "8x8", True),
        ("bdwp_wu", "4x4", False),
        ("bdwp_mvue", "8x8", False),
        ("bdwp_mvue", "4x4", False),
        ("bdwp", "4x4", False),
    ],
)
def test_train_makes_devices_that_prune_where_they_can(capsys, monkeypatch, scheme, array, staged):
    """An array of 4 columns is sent what others prune: same bits."""
    made, device = [], sat.device

    def making(*args, **options):
        made.append(options.get("prune_gathers", False))
        return device(*args, **options)

    monkeypatch.setattr(sat, "device", making)
    arguments = ["--model", "mlp", "--scheme", scheme, "--steps", "2", "--batch", "16", "--json"]
    code, out, _ = call(capsys, "train", *arguments, "--array", array)
    assert code == 0 and made[0] == staged
    _, whole, _ = call(capsys, "train", *arguments)
    assert json.loads(out)["losses"] == json.loads(whole)["losses"]


def test_a_training_without_a_good_step_fails(capsys, monkeypatch):
    monkeypatch.setattr(
        "sat.training.trainer.LossScaler.step",
        lambda self, _: setattr(self, "skipped", self.skipped + 1),
    )
    code, out, _ = call(capsys, "train", "--model", "mlp", "--steps", "2")
    assert code == 1 and "FAILED: the training went out of bounds" in out


def test_devices(capsys):
    code, out, _ = call(capsys, "devices", "--json")
    assert code == 0
    specs = ["golden", "rtl", "uart:PORT", "xdma:N"]
    assert [d["spec"] for d in load(out)["devices"]] == specs
    code, out, _ = call(capsys, "devices")
    assert code == 0 and [line.split()[-1] for line in out.splitlines()[2:5]] == ["ready"] * 3
    card = " ".join(" ".join(out.splitlines()[5:]).split())
    assert card.startswith("xdma:N") and card.endswith(("ready", "no file /dev/xdma*_user"))


def test_version_and_help(capsys):
    code, out, _ = call(capsys, "--version")
    assert (code, out) == (0, f"{sat.__version__}\n")
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(command in out for command in ("simulate", "train", "devices", "demo"))


# --- the demo -------------------------------------------------------------------------------------


def test_demo_compares_trains_and_draws(capsys, rtl_is_fake, tmp_path):
    picture = tmp_path / "new" / "curves.png"
    args = ["demo", "--epochs", "2", "--steps", "2", "--figure", str(picture)]
    code, out, err = call(capsys, *args, "--json")
    values = load(out)
    assert code == 0 and values["passed"] and values["bit_exact"]
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    # Two steps of four layers, three programs each; the first layer has no BP. conv2 and conv3
    # are sparse, and so run once more without pruning.
    stages = values["stages"]
    programs = {"FF": 8, "BP+WU": 6, "WU": 2, "update": 8}
    assert {name: s["programs"] for name, s in stages.items()} == programs
    assert values["programs"] == 8 + 6 + 2 + 8 + 2 * 2 * 3
    assert stages["WU"]["dense"] == stages["WU"]["sparse"]
    assert stages["FF"]["dense"] > stages["FF"]["sparse"]
    assert values["speedup"] == values["dense_cycles"] / values["sparse_cycles"]
    assert min(values["dense_accuracy"], values["sparse_accuracy"]) > 0.9
    assert "2 steps on the RTL" in err and "BDWP 2:8" in err and "dense" in err


def test_demo_fails_on_one_wrong_bit_and_on_one_wrong_cycle(rtl_is_fake, tmp_path):
    options = {"epochs": 1, "rtl_steps": 1, "figure": tmp_path / "curves.png"}
    rtl_is_fake["wrong_product"] = 3
    result = demo(**options)
    assert not result.passed and result.mismatches == 1 and not result.bit_exact
    text = str(result)
    assert "MISMATCH: " in text and " of Layer(" in text and text.endswith("FAILED")
    rtl_is_fake.clear()
    rtl_is_fake["late"] = 1
    result = demo(**options)
    assert (
        result.bit_exact
        and result.mispredicted == sum(s.programs for s in result.stages.values())
        and not result.passed
    )


def test_demo_in_words(rtl_is_fake, tmp_path):
    result = demo(epochs=2, rtl_steps=1, figure=tmp_path / "curves.png")
    lines = str(result).splitlines()
    assert lines[-1] == "PASSED"
    assert any(line.split()[:1] == ["all"] and line.endswith("x") for line in lines)
    assert result.compared > 1e5


def test_demo_checks_its_steps():
    with pytest.raises(ValueError, match="rtl_steps=0: must be at least 1; leave it out for 3"):
        demo(rtl_steps=0)


# --- a fresh interpreter --------------------------------------------------------------------------


def run(*args):
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, timeout=120, check=False
    )


def test_module_runs_as_the_command():
    done = run("-m", "sat", "simulate", "--rows", "none")
    assert done.returncode == 2 and done.stderr.startswith("sat simulate: error: argument --rows")


def test_importing_the_hardware_does_not_import_torch():
    code = "import sys, sat, sat.rtl.config, sat.cli; print('torch' in sys.modules, dir(sat)[:1])"
    assert run("-c", code).stdout == "False ['CycleBudgetError']\n"


def test_every_public_name_is_there():
    code = """
import sat
for name in sat.__all__:
    assert getattr(sat, name) is not None
dev = sat.device("golden", array="8x8")
import numpy as np, torch
a, b, c0 = np.ones((2, 8), np.float16), np.ones((8, 3), np.float16), np.ones((2, 3), np.float32)
with dev:
    assert dev.matmul(a, b).tolist() == [[8.0] * 3] * 2
    assert dev.matmul(a, b, start=c0, dataflow="ws").tolist() == [[9.0] * 3] * 2
    w = sat.prune(b, "2:8", axis=0)
    assert dev.matmul(a, w).tolist() == [[2.0] * 3] * 2
    w.values, w.indices, w.pattern, w.axis, w.to_dense()
    run = dev.last_run
    run.cycles, run.macs, run.utilisation, run.bytes_read, run.bytes_written
net = torch.nn.Linear(8, 8)
sat.sparsify_(net, scheme="bdwp", pattern="2:8", filter_fn=None)
sat.desparsify_(net)
try:
    sat.nothing
except AttributeError as error:
    print(error)
"""
    done = run("-W", "error", "-c", code)
    assert (done.stdout, done.stderr) == ("module 'sat' has no attribute 'nothing'\n", "")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--trace", "missing/trace.json"], "cannot be written (No such file"),
        (["--figures", "file/figures"], "must be a folder that can be written"),
        (["--device", "host", "--trace", "trace.json"], "need a device; leave them out"),
    ],
)
def test_places_of_results_are_checked_before_the_work(
    options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["run", "lightsb", *options]) == 2
    assert message in capsys.readouterr().err


def test_json_has_null_where_a_number_is_not_finite():
    values = {"loss": float("nan"), "each": [1.0, float("inf")], "steps": 3}
    assert json.loads(to_json(values)) == {"loss": None, "each": [1.0, None], "steps": 3}
