"""The registry, and methods as offload clients."""

from __future__ import annotations

import importlib
import inspect
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from skfem import Basis, ElementTriP1, MeshTri

import sat
from sat.cli import main
from sat.devices import ComparingDevice, FirstDevice
from sat.methods import METHODS, Check, Method, Result, binarydm, get_method, pndm
from sat.methods.auon import HybridAuON
from sat.methods.dapc_nn import DaPCNN
from sat.methods.dct_lowrank import DCTAdamW
from sat.methods.dgno import DGNO
from sat.methods.dmcmc import DLG, NoiseClassifier, dmcmc_sample, kar1, noise_levels
from sat.methods.dnmm import DNMM
from sat.methods.drift_net import DriftNet
from sat.methods.dsnot import bake, prune_model
from sat.methods.dt_ddnn import JammingDNN, features, simulate_ssb, train
from sat.methods.hesso import HESSO, extract, prunable_groups
from sat.methods.kronecker_sbl import kron_sbl, kronecker_problem
from sat.methods.lagrangian_pinn import LagrangianPINN
from sat.methods.lightsb.demo import train_swiss_roll
from sat.methods.lsm import LSM
from sat.methods.mc_smoe import MoELayer, merge_experts
from sat.methods.mm_pde import MMPDE, GridFields, MeshMover, MlpBranch
from sat.methods.nearfield_mimo import (
    Deep2S,
    MimoArray,
    UNet3d,
    VoxelGrid,
    born_matrix,
    slice_convolutions,
)
from sat.methods.neuraldem import HopperModel
from sat.methods.next_lf import correlation_irf, irf_spectrum, loewner_pencil, poles_to_modes
from sat.methods.nn_to_no import to_operator
from sat.methods.noprop import DenoiseBlock, DiffusionLevels, NoPropDT, label_embedding
from sat.methods.nuft_ddsl import SpectralLeNet
from sat.methods.odl_fw import OnlineODL
from sat.methods.orthogonal_conv import OrthConv2d, orth_regularizer
from sat.methods.pi_gnn_galerkin import FemSpace, GalerkinProblem, GraphNet, fit, poisson
from sat.methods.problems import mixtures
from sat.methods.problems.gpt import cross_entropy, make_gpt
from sat.methods.problems.parameters import split_parameters
from sat.methods.problems.text import load_text
from sat.methods.qmcpy import DigitalNet, DSIKernel, FastGram
from sat.methods.rom_net import Classifier, LocalBases, NonlinearDiffusion1D, ROMNet
from sat.methods.s3im import S3IMLoss, VoxelRadianceField, render_rays
from sat.methods.s4_ptd import S4PTDModel, S5Model
from sat.methods.s4d import S4DModel
from sat.methods.s4d.demo import accuracy
from sat.methods.sdgd import ConstrainedMLP, SineGordon, sdgd_residual
from sat.methods.spon import (
    SPON,
    FeDecoder,
    FeSpace,
    MeshHierarchy,
    MultigridProcessor,
    ProjectionEncoder,
    fe_norm,
)
from sat.methods.ssvi import SparseBayesLinear

FOLDER = Path(importlib.import_module("sat.methods").__file__).parent


def test_every_folder_is_registered_and_has_a_demo():
    folders = {p.parent.name for p in FOLDER.glob("*/__init__.py")} - {"template", "problems"}
    assert folders == set(METHODS)
    for method in METHODS.values():
        arguments = inspect.signature(method.run).parameters
        assert arguments["seed"].default == 0 and arguments["quick"].default is False
        assert method.precision in ("fp16", "fp32")
    with pytest.raises(ValueError, match="there is no such method; choose one of"):
        get_method("s5d")


def test_methods_know_no_device():
    for file in FOLDER.glob("*/*.py"):
        text = file.read_text()
        for name in ("sat.devices", "sat.offload", "sat.device"):
            assert name not in text, f"{file.name} names {name}"


def test_a_quick_demo_says_what_it_leaves_out(capsys, monkeypatch):
    def demo(*, seed=0, quick=False):
        result = Result(left_out=["the long sweep"] if quick else [])
        result.check("error", 0.5, 1.0)
        return result

    monkeypatch.setattr(Method, "run", property(lambda self: demo))
    assert main(["run", "s4d", "--quick"]) == 0
    assert "quick: the long sweep" in capsys.readouterr().out
    assert main(["run", "s4d", "--quick", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["quick"] and values["left_out"] == ["the long sweep"]
    assert main(["run", "s4d"]) == 0
    assert "quick: " not in capsys.readouterr().out


def test_quick_lightsb_keeps_its_checks():
    result = importlib.import_module("sat.methods.lightsb.demo").run(quick=True)
    assert result.passed and len(result.checks) == 4 and result.left_out


def test_checks_judge():
    result = Result()
    assert not result.passed
    result.check("error", 0.5, 1.0)
    result.check("accuracy", 0.9, 0.8, at_least=True)
    assert result.passed
    result.check("nothing", float("nan"), 1.0)
    assert not result.passed
    assert not Check("a", 2, 1).passed and not Check("a", 0, 1, at_least=True).passed
    assert str(result.checks[2]).startswith("FAILED nothing: nan")
    assert json.loads(json.dumps(result.to_json()))["passed"] is False


def test_template_runs_under_offload():
    demo = importlib.import_module("sat.methods.template.demo")
    plain = demo.run(seed=1)
    with sat.offload("golden", precision="fp32") as report:
        offloaded = demo.run(seed=1)
    assert plain.passed and offloaded.passed and plain.figures
    assert report.coverage > 0.5 and report.calls > 10


def test_s4d_under_offload_keeps_its_accuracy():
    host = accuracy(0, epochs=6)
    with sat.offload("golden") as report:
        offloaded = accuracy(0, epochs=6)
    assert report.coverage >= 0.9
    assert host > 0.7 and abs(host - offloaded) <= 0.02  # of 450 samples, early in training


def test_s4d_mixes_sparsely_on_request():
    torch.manual_seed(0)
    model = S4DModel(1, 10, 2, d_model=16, d_state=8)
    layers = {r.name: r.pattern for r in sat.sparsify_(model, "bdwp", "2:8").layers}
    assert layers == {
        "encoder": "dense", "blocks.0.mix": "2:8", "blocks.1.mix": "2:8", "decoder": "dense",
        # Parameters that the kernel multiplies by itself: named, and left alone.
        "blocks.0.layer.kernel": "dense", "blocks.1.layer.kernel": "dense",
    }  # fmt: skip
    with sat.offload("golden", precision="fp32") as report:
        model(torch.randn(3, 1, 20)).sum().backward()
    sizes = {work.op: work.size for work in report}
    for block in (0, 1):
        assert sizes[f"blocks.{block}.mix FF"] == "60 x 16 x 32 2:8"
        assert sizes[f"blocks.{block}.mix BP"] == "60 x 32 x 16 2:8"
    assert report.coverage == 1


def test_lightsb_under_offload_has_its_losses():
    _, host = train_swiss_roll(0, 30, n_potentials=40)
    with sat.offload("golden", precision="fp32") as report:
        _, offloaded = train_swiss_roll(0, 30, n_potentials=40)
    assert report.coverage >= 0.9
    assert max(abs(a - b) / abs(a) for a, b in zip(host, offloaded, strict=True)) < 1e-4


def gpt_step(seed=0):
    """A tiny GPT and its gradients, to step with an optimiser."""
    model = make_gpt(seed, width=8, layers=1, heads=2, context=8)
    x, y = load_text().batch(2, 8, torch.Generator().manual_seed(seed))
    cross_entropy(model(x), y).backward()
    return model, x


def step_of(slug):
    torch.manual_seed(0)
    if slug == "lightsb":
        train_swiss_roll(0, 1, n_potentials=20, batch=16)
    elif slug == "s4d":
        S4DModel(1, 10, 1, d_model=4, d_state=8)(torch.randn(2, 1, 16)).sum().backward()
    elif slug == "lsm":
        model = LSM(1, 1, 4, patch=(1, 1), heads=2)
        model(torch.randn(2, 16, 16, 1)).sum().backward()
    elif slug == "dgno":
        generator = torch.Generator().manual_seed(0)
        model = DGNO(8, 4, dim=1, hidden=(8,), input_width=8, width=8, centers=6, radius=0.05)
        a = torch.where(torch.rand(4, 8, generator=generator) > 0.5, 10.0, 5.0)
        model.loss(a, 10.0, generator)["loss"].backward()
    elif slug == "nn_to_no":
        conv = torch.nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
        net = to_operator(torch.nn.Sequential(conv, torch.nn.Conv2d(4, 1, 1)), 8)
        net(torch.randn(1, 2, 16, 16)).sum().backward()
    elif slug == "s4_ptd":
        for model in (S4PTDModel, S5Model):
            model(1, 10, 1, d_model=8, d_state=4)(torch.randn(4, 1, 40)).sum().backward()
    elif slug == "ssvi":
        layer = SparseBayesLinear(32, 16, pattern="2:8")
        sat.sparsify_(layer, "srste", "2:8")
        layer(torch.randn(4, 32, requires_grad=True)).sum().backward()
    elif slug == "mc_smoe":
        mixture = MoELayer(8, 16, 4)
        merge_experts(mixture, torch.tensor([0, 1, 0, 1]), torch.ones(4))
        sat.sparsify_(mixture.experts, "bdwp", "2:8")
        mixture(torch.randn(20, 8)).sum().backward()
    elif slug == "hesso":
        cnn = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 2)
        )
        x = torch.randn(3, 1, 4, 4)
        optimizer = HESSO(prunable_groups(cnn, x), cnn, 0.1, steps=1)
        loss = cnn(x).square().mean()
        loss.backward()
        optimizer.step(loss)
        extract(cnn, optimizer)(x)
    elif slug == "dmcmc":
        levels = noise_levels(8, 0.05, 2.0)
        classifier = NoiseClassifier(2, levels, 8)
        sat.sparsify_(classifier, "bdwp", "2:8")
        chains = DLG(mixtures.ring(3).ve.score, classifier, levels, 0.05)
        chains.start(4, 2, torch.Generator().manual_seed(0), warm_up=1)
        dmcmc_sample(chains, partial(kar1, steps=3), 4, 1)
    elif slug == "drift_net":
        net = DriftNet(1, 1, 8, 2, 8, (1,))
        sat.sparsify_(net, "bdwp", "2:8")
        net(torch.randn(2, 1, 8, 8)).sum().backward()
    elif slug == "mm_pde":
        mover = MeshMover(MlpBranch(4, (8,)), 8, trunk=(8,), head=(8,))
        fields = GridFields(torch.rand(2, 4, 4))
        mover.losses(fields, torch.rand(2, 6, 2))["loss"].backward()
        solver = MMPDE(mover, hidden=8, layers=1, size=4, neighbours=3, k=4, interpolation=(8,))
        sat.sparsify_(solver, "bdwp", "2:8")
        solver(fields.samples, torch.zeros(2)).square().sum().backward()
    elif slug == "neuraldem":
        hopper = HopperModel({"occupancy": 1}, ("time",), d=8, heads=2, tokens=3)
        sat.sparsify_(hopper, "bdwp", "2:8")
        places = {"occupancy": 100 * torch.rand(2, 5, 2)}
        hopper(torch.rand(2, 1), places)["occupancy"].sum().backward()
    elif slug == "pi_gnn_galerkin":
        fem = FemSpace.from_skfem(Basis(MeshTri(), ElementTriP1()))
        network = GraphNet((2, 8, 1), 2)
        sat.sparsify_(network, "bdwp", "2:8")
        fit(GalerkinProblem(fem, poisson(), {"node0": 0.0}), network, 1)
    elif slug == "binarydm":
        student = pndm.DenoiserMLP(8, hidden=8, blocks=2)
        teacher = pndm.DenoiserMLP(8, hidden=8, blocks=2).eval()
        binarydm.binarize_model(student, binarydm.default_plan(student))
        mimic = binarydm.LowRankMimic(teacher, student, ["blocks.0", "blocks.1"], weight=1.0)
        out, loss = mimic.run(torch.randn(4, 8), torch.full((4,), 300))
        (out.square().mean() + loss).backward()
    elif slug == "pndm":
        denoiser = pndm.DenoiserMLP(8, hidden=8, blocks=1)
        sat.sparsify_(denoiser, "bdwp", "2:8", filter_fn=lambda name, _: "blocks" in name)
        levels, generator = denoiser.schedule, torch.Generator().manual_seed(0)
        noised = pndm.add_noise(torch.randn(4, 8), levels, generator)
        (denoiser.velocity(noised.x, noised.t) - noised.velocity).square().mean().backward()
        mixture = pndm.ring()

        def exact(x, t):
            return mixture.eps(x, levels.alpha_bar(t))

        pndm.sample(exact, torch.randn(4, 2), levels, 4)
    elif slug == "rom_net":
        problem = NonlinearDiffusion1D(16)
        data = problem.snapshots(12, 0)
        net = ROMNet(LocalBases(2, 2), Classifier(epochs=1)).fit(data.loads, data.solutions)
        net.solve(problem, data.loads[0], tolerance=1e-4)
    elif slug == "noprop":
        embedding = label_embedding("learned", 3, 8)
        chain = NoPropDT([DenoiseBlock((8,), 8, 3, 16)], embedding, DiffusionLevels(1))
        sat.sparsify_(chain, "bdwp", "2:8")
        chain.step(1, torch.randn(4, 8), torch.tensor([0, 1, 2, 0]), chain.optimizers())
    elif slug == "nuft_ddsl":
        lenet = SpectralLeNet(2, 4, channels=(4,), hidden=4, j=2)
        ring = (0.2 + 0.5 * torch.tensor([[0, 0], [1, 0], [0, 1]])).expand(2, 3, 2)
        ring = ring.clone().requires_grad_()
        facets = torch.tensor([[0, 1], [1, 2], [2, 0]])
        lenet(ring, facets, torch.ones(3, 1)).square().sum().backward()
    elif slug == "orthogonal_conv":
        layer = OrthConv2d(2, 4, 3, 2)
        loss = layer(torch.randn(2, 2, 8, 8)).sum() + orth_regularizer(layer, 1.0)
        loss.backward()
    elif slug == "odl_fw":
        learner = OnlineODL(8, oracle="newton_schulz")
        for _ in range(3):  # beside the start's SVD
            learner.partial_fit(torch.randn(60, 8))
    elif slug == "nearfield_mimo":
        array = MimoArray.cross(2, 2, 0.3)
        grid = VoxelGrid.box((8, 8, 8), (-0.15, 0.15), (-0.15, 0.15), (0.35, 0.65))
        born = born_matrix(array.tx, array.rx, grid, torch.tensor([4e9, 10e9, 16e9]))
        imager = Deep2S(born, grid.shape, UNet3d(1, 4))
        sliced = slice_convolutions(imager)
        sat.sparsify_(imager, "bdwp", "2:8", filter_fn=lambda name, _: name in sliced)
        imager(born[:, :2].mT).square().sum().backward()
    elif slug == "s3im":
        field = VoxelRadianceField(4, 5, 16)
        sat.sparsify_(field, "bdwp", "2:8")
        origins, dirs = torch.tensor([[0.0, 0.0, -2.0], [0.0, 0.0, 1.0]])[:, None].expand(2, 16, 3)
        seen = render_rays(field, origins, dirs, 1.0, 3.0, 4)
        S3IMLoss(patch_shape=(4, 4))(seen, torch.rand(16, 3)).backward()
    elif slug == "sdgd":
        pde = SineGordon(8)
        pinn = ConstrainedMLP(pde, 8, 2)
        sat.sparsify_(pinn, "bdwp", "2:8")
        two = torch.tensor([1, 5])
        sdgd_residual(pinn, pde.sample(4), pde, two, mode="shared").backward()
    elif slug == "lagrangian_pinn":
        lpinn = LagrangianPINN(torch.sin, 0.1, width=8, depth_u=2)
        sat.sparsify_(lpinn, "bdwp", "2:8", filter_fn=lambda _, x: x.in_features == 8)
        of_x, of_u = lpinn.residuals(torch.rand(6), torch.rand(6))
        (of_x.square() + of_u.square()).sum().backward()
    elif slug == "kronecker_sbl":
        # Long enough factors that products are most of it, beside eigenvalues on the host.
        problem = kronecker_problem(0, 20.0, (4, 6), 64)
        kron_sbl(problem.y, problem.factors, problem.noise_var, "am", max_iter=1)
    elif slug == "next_lf":
        # A record so long beside its lags that products are most of it, beside the SVD.
        irf = correlation_irf(torch.randn(2, 4000, dtype=torch.float64), [0], 24)
        spectrum = irf_spectrum(irf, 1.0)
        generator = torch.Generator().manual_seed(0)
        pencil = loewner_pencil(spectrum.points, spectrum.values, generator)
        poles_to_modes(pencil.realise(4), 1.0)
    elif slug == "qmcpy":
        points = DigitalNet(2).sample(64, digits=True)[0]
        gram = FastGram(DSIKernel(2, bits=63), points, "products")
        gram.solve(torch.ones(64, dtype=torch.float64))
    elif slug == "dapc_nn":
        x = torch.rand(40, 3, dtype=torch.float64)
        DaPCNN(3, (2,), basis="joint").fit(x, x.prod(1), steps=1)
    elif slug == "dnmm":
        density = DNMM(2, 2, (8, 8))
        sat.sparsify_(density, "bdwp", "2:8")
        density.fit(torch.randn(40, 2), steps=1, pretrain=1)
    elif slug == "dt_ddnn":
        seen = simulate_ssb(2, 0)
        network = JammingDNN(134, (8,))
        sat.sparsify_(network, "bdwp", "2:8")
        x = features(seen.iq, "products")
        train(network, x, seen.jammed, epochs=1, generator=torch.Generator().manual_seed(0))
    elif slug == "spon":
        meshes = MeshHierarchy.from_skfem(MeshTri(), 2)
        space = FeSpace.from_skfem(Basis(meshes.meshes[-1], ElementTriP1()), dirichlet=True)
        processor = MultigridProcessor(meshes, 8)
        sat.sparsify_(processor, "bdwp", "2:8")
        net = SPON(ProjectionEncoder(space), processor, FeDecoder(space))
        fe_norm(net(torch.randn(2, space.dofs)).dofs, space).sum().backward()
    else:
        assert slug in ("auon", "dct_lowrank", "dsnot"), f"{slug}: has no step here; write one"
        model, x = gpt_step()
        matrices, _ = split_parameters(model)
        if slug == "auon":
            HybridAuON(matrices, 0.1).step()
        elif slug == "dct_lowrank":
            DCTAdamW(matrices, rank=2, residual="feedback").step()
        else:
            prune_model(model, [x], n=2, m=8)
            sat.sparsify_(bake(model).blocks, "srste", "2:8")
            model(x)


@pytest.mark.xdist_group("4x4")
@pytest.mark.parametrize("slug", METHODS)
def test_first_products_on_rtl(slug):
    """A step's first products on the simulated RTL, every bit compared with golden."""

    rtl, golden = (sat.device(name, array="4x4") for name in ("rtl", "golden"))
    with rtl, golden:
        checked = ComparingDevice(rtl, golden)
        precision = get_method(slug).precision
        with sat.offload(FirstDevice(checked, golden, 5), precision=precision) as report:
            step_of(slug)
    assert report.devices["rtl"].products == 5 and checked.compared > 0
    assert (checked.mismatches, checked.mispredicted) == (0, 0)
    assert report.coverage >= 0.9


def test_command_lists_and_runs(capsys, monkeypatch, tmp_path):
    assert main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["methods"]
    assert [method["slug"] for method in listed] == list(METHODS)
    template = importlib.import_module("sat.methods.template.demo")
    monkeypatch.setattr(Method, "run", property(lambda self: template.run))
    out, trace = tmp_path / "figures", tmp_path / "trace.json"
    arguments = ["--json", "--cycles", "--figures", str(out), "--trace", str(trace)]
    assert main(["run", "s4d", *arguments]) == 0
    printed = capsys.readouterr()
    values = json.loads(printed.out)
    assert printed.err == ""
    assert values["passed"] and values["offload"]["coverage"] > 0.5
    assert values["offload"]["devices"]["golden"]["cycles"] > 0
    assert list(out.glob("s4d-*.png"))
    assert json.loads(trace.read_text())["traceEvents"]
    assert main(["run", "s4d", "--device", "host"]) == 0
    printed = capsys.readouterr()
    assert "ok" in printed.out and "s4d on host: 00:0" in printed.err
    assert main(["run", "s4d"]) == 0
    assert "s4d on golden: " in capsys.readouterr().err
    assert main(["run", "s4d", "--first", "3", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["mismatches"] == values["mispredicted"] == 0 and values["compared"] > 0
    assert "bounded" not in values
    assert main(["run", "s4d", "--max-cycles", "10"]) == 1
    assert "max_cycles=10" in capsys.readouterr().err
    for bad in (
        ["nothing"],
        ["s4d", "--device", "tpu"],
        ["s4d", "--device", "host", "--first", "1"],
    ):
        assert main(["run", *bad]) == 2
        assert "error" in capsys.readouterr().err


@pytest.mark.parametrize("late, code", [(3, 0), (-1, 1)])
def test_cycles_that_are_a_bound_are_told_as_one(rtl_is_fake, capsys, monkeypatch, late, code):
    """Of a board with SDRAM; a product that took fewer cycles than the least is a failure."""
    template = importlib.import_module("sat.methods.template.demo")
    monkeypatch.setattr(Method, "run", property(lambda self: template.run))
    rtl_is_fake.update(late=late, bound=True)
    assert main(["run", "s4d", "--device", "rtl", "--first", "2"]) == code
    said = capsys.readouterr().out
    assert "this memory allows no exact prediction: " in said and "cycles mispredicted" not in said
    assert f"{2 * code} products took fewer cycles than the least" in said
