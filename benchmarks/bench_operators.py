"""Predicted cycles of a training step of neural operators and others, dense beside N:M weights.

    python benchmarks/bench_operators.py [--arrays 8x8 32x32] [--methods lsm]

Nothing is simulated: the cycle model, which the RTL agrees with, is asked for each product, with
the default memory. N:M weights are pruned in FF and BP (BDWP).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

import sat
from sat.methods.binarydm import binarize_model, default_plan
from sat.methods.dapc_nn import DaPCNN, ishigami
from sat.methods.dapc_nn import demo as dapc_nn
from sat.methods.dapc_nn.network import solve_ridge
from sat.methods.dgno import DGNO
from sat.methods.dgno import demo as dgno
from sat.methods.dmcmc import NoiseClassifier, noise_levels
from sat.methods.dmcmc import demo as dmcmc
from sat.methods.dnmm import DNMM, GumbelMixture, dnmm_loss
from sat.methods.dnmm import demo as dnmm
from sat.methods.drift_net import DriftNet, frequency_weighted_loss
from sat.methods.drift_net import demo as drift_net
from sat.methods.dt_ddnn import JammingDNN, features, simulate_ssb
from sat.methods.lagrangian_pinn import EulerianPINN, LagrangianPINN
from sat.methods.lagrangian_pinn import demo as lagrangian_pinn
from sat.methods.lsm import LSM, darcy_samples, relative_l2
from sat.methods.lsm import demo as lsm
from sat.methods.mm_pde import MMPDE, MeshMover, MlpBranch
from sat.methods.mm_pde import demo as mm_pde
from sat.methods.nearfield_mimo import (
    Deep2S,
    DeepDI,
    UNet3d,
    born_matrix,
    random_extended_targets,
    slice_convolutions,
)
from sat.methods.nearfield_mimo import demo as nearfield_mimo
from sat.methods.neuraldem import HopperModel
from sat.methods.neuraldem import demo as neuraldem
from sat.methods.nn_to_no import demo as nn_to_no
from sat.methods.nn_to_no import to_operator
from sat.methods.noprop import demo as noprop
from sat.methods.nuft_ddsl import SpectralLeNet
from sat.methods.nuft_ddsl import demo as nuft_ddsl
from sat.methods.odl_fw import OnlineODL, bernoulli_gaussian, polar
from sat.methods.orthogonal_conv import demo as orthogonal_conv
from sat.methods.orthogonal_conv import orth_regularizer
from sat.methods.pi_gnn_galerkin import GraphNet
from sat.methods.pi_gnn_galerkin import demo as pi_gnn_galerkin
from sat.methods.pndm import DenoiserMLP, add_noise
from sat.methods.pndm import demo as pndm
from sat.methods.rom_net import demo as rom_net
from sat.methods.rom_net import mlp
from sat.methods.s3im import S3IMLoss, VoxelRadianceField, render_rays, scene
from sat.methods.s3im import demo as s3im
from sat.methods.sdgd import ConstrainedMLP, SineGordon, sdgd_residual
from sat.methods.spon import SPON, FeDecoder, ProjectionEncoder, relative_fe_error
from sat.methods.spon import demo as spon

PATTERNS = ("dense", "2:4", "2:8")
Case = tuple[nn.Module, Callable[[], Tensor], int]
"""A model, the loss of its step, and from how many channels on its layers are pruned."""


def lsm_step(batch: int, size: int, **options: object) -> Case:
    model = LSM(1, 1, **options)  # type: ignore[arg-type]
    a, u = darcy_samples(batch, size, 0)
    return model, lambda: relative_l2(model(a[..., None])[..., 0], u).sum(), 32


def dgno_step(batch: int, n_input: int, **options: object) -> Case:
    model = DGNO(n_input, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    a = torch.where(torch.rand(batch, n_input, generator=generator) > 0.5, 10.0, 5.0)
    return model, lambda: model.loss(a, 10.0, generator)["loss"], 64


def operator_step(n: int) -> Case:
    """A step like the demo's, zeros around and 32 channels for 12, so that M divides them."""
    layers: list[nn.Module] = []
    for before, after in ((1, 32), (32, 32), (32, 1)):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.GELU()]
    model = to_operator(nn.Sequential(*layers[:-1]), nn_to_no.BASE)
    f, u = nn_to_no.samples(0, (n,))[n]
    places = slice(nn_to_no.BATCH)
    return model, lambda: relative_l2(model(f[places]), u[places]).mean(), 16


def spon_step(processor: str) -> Case:
    data = spon.make_data(0, 20)
    model = SPON(
        ProjectionEncoder(data.space), spon.processors()[processor](), FeDecoder(data.space)
    )
    c, u = data.inputs.float(), torch.from_numpy(data.solutions).float()
    return model, lambda: relative_fe_error(model(c).dofs, u, data.space).mean(), 16


def drift_net_step(kind: str) -> Case:
    model = DriftNet(1, 1, drift_net.SIZE, **drift_net.MODEL, **drift_net.KINDS[kind])
    before, after = torch.randn(2, drift_net.BATCH, 1, drift_net.SIZE, drift_net.SIZE)
    return model, lambda: frequency_weighted_loss(model(before), after), 24


def mover_step() -> Case:
    mover = mm_pde.make_mover(0)
    fields = mm_pde.ridges(mm_pde.BATCH, 0)
    xi = torch.rand(mm_pde.BATCH, 64, 2, generator=torch.Generator().manual_seed(0))
    return mover, lambda: mover.losses(fields, xi)["loss"], 32


def solver_step(hidden: int, **options: object) -> Case:
    """A step of five fields; the mover is a small one, and frozen."""
    size = mm_pde.SIZE
    mover = MeshMover(MlpBranch(size, (8,)), 8, trunk=(8,), head=(8,))
    model = MMPDE(mover, hidden=hidden, size=size, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(mm_pde.SOLVER_BATCH, size, size, generator=generator)
    g = model.geometry(u)
    return model, lambda: model(u, u.new_zeros(len(u)), g).square().mean(), 24


def hopper_step(rows: int, places: int, **options: object) -> Case:
    model = HopperModel({"occupancy": 1}, tuple(neuraldem.RANGES), **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    scalars = neuraldem.SCALE * torch.rand(rows, 3, generator=generator)
    where = neuraldem.SCALE * torch.rand(places, 2, generator=generator)
    return model, lambda: model(scalars, {"occupancy": where})["occupancy"].square().mean(), 48


def classifier_step() -> Case:
    model = mlp()((rom_net.POINTS,), rom_net.CLUSTERS)
    generator = torch.Generator().manual_seed(0)
    loads = torch.rand(64, rom_net.POINTS, generator=generator)
    labels = torch.arange(64) % rom_net.CLUSTERS
    return model, lambda: nn.functional.cross_entropy(model(loads), labels), 16


def polygon_step(res: int) -> Case:
    """A step like the demo's on 50 pentagons, their rasters made beforehand."""
    model = SpectralLeNet(len(nuft_ddsl.SIDES), res)
    rings = nuft_ddsl.polygons(len(nuft_ddsl.SIDES) * nuft_ddsl.BATCH, 0).rings[5]
    pictures = nuft_ddsl.exact_rasters(rings, res)
    y = torch.arange(len(rings)) % len(nuft_ddsl.SIDES)
    return model, lambda: nn.functional.cross_entropy(model.classify(pictures), y), 16


def level_step() -> Case:
    """A step of the classifier of levels on a batch of noisy digits."""
    levels = noise_levels(dmcmc.LEVELS, dmcmc.SMIN, dmcmc.SMAX)
    model = NoiseClassifier(dmcmc.PIXELS, levels)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(dmcmc.BATCH, dmcmc.PIXELS, generator=generator)
    j = torch.randint(dmcmc.LEVELS, (dmcmc.BATCH,), generator=generator)
    return model, lambda: nn.functional.nll_loss(model(x), j), 16


def noprop_step(through: bool) -> Case:
    """A step of a chain's last block on 128 digits, or one of all of its blocks at once."""
    digits = noprop.load(0)
    model = noprop.build(0, digits).train()
    x, y = digits.train_x[: noprop.BATCH], digits.train_y[: noprop.BATCH]
    if through:
        return model, lambda: nn.functional.cross_entropy(model(x), y), 16
    return model, lambda: model.block_loss(noprop.T, x, y)[0], 16


def orthogonal_step(lam: float) -> Case:
    """A step like the demo's on 32 digits, circular padding in layers of its own."""
    layers: list[nn.Module] = []
    channels = orthogonal_conv.CHANNELS
    for before, after, stride in zip(channels, channels[1:], orthogonal_conv.STRIDES, strict=False):
        layers += [nn.CircularPad2d(1), nn.Conv2d(before, after, 3, stride), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * channels[-1], 10))
    x = torch.rand(orthogonal_conv.BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(len(x)) % 10

    def loss() -> Tensor:
        wrong = nn.functional.cross_entropy(model(x), y)
        return wrong + orth_regularizer(model, lam, skip=["10"]) if lam else wrong

    return model, loss, 8


def chaos_step(n_in: int, hidden: tuple[int, ...], basis: str = "joint") -> Case:
    """A step by variable projection; layers of 16 nodes and more are pruned."""
    model = DaPCNN(n_in, hidden, basis=basis, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    x = 6 * torch.rand(dapc_nn.RUNS, n_in, generator=generator) - 3
    y = ishigami(x[:, :3])[:, None]

    def loss() -> Tensor:
        psi = model.features(x, refresh=True)
        return (psi @ solve_ridge(psi.detach(), y, 1e-3) - y).square().mean()

    return model, loss, 16


def density_step(width: int) -> Case:
    """A step in the plane on 400 points and a rule of 40 x 40."""
    model = DNMM(2, 2, (width, width))
    x = GumbelMixture().sample(dnmm.PLANE, torch.Generator().manual_seed(0))
    z = ((x - x.mean(0)) / x.std(0)).float()
    rule = dnmm.TensorTrapezoid(40, model.standard_box(x))
    return model, lambda: dnmm_loss(model, z, rule, 10.0), 32


def imager_step(base: int, *, direct: bool = False) -> Case:
    """A step of 16 volumes of 16³; by physics, or by a fully connected first stage."""
    array, grid, freqs = nearfield_mimo.setting()
    a = born_matrix(array.tx, array.rx, grid, freqs)
    network = UNet3d(1, base)
    model = (DeepDI if direct else Deep2S)(len(a) if direct else a, grid.shape, network)  # type: ignore[operator]
    slice_convolutions(network)
    scenes = random_extended_targets(nearfield_mimo.BATCH, grid, 0)
    y = nearfield_mimo.measured(array, grid, freqs, scenes).to(torch.complex64)
    magnitude = scenes.abs().float()
    return model, lambda: (model(y) - magnitude).square().sum() / len(y), 8


def jamming_step(raw: bool) -> Case:
    """A step of a detector's network on 128 records, by features or by their samples."""
    records = simulate_ssb(128, 0)
    x = torch.view_as_real(records.iq).flatten(1) if raw else features(records.iq)
    model, target = JammingDNN(x.shape[1]), records.jammed.float()
    return model, lambda: nn.functional.binary_cross_entropy_with_logits(model(x), target), 64


def receiver(count: int) -> Case:
    """What records' features take, as products; there are no weights."""
    iq = simulate_ssb(count, 0).iq
    return nn.Identity(), lambda: features(iq, "products").sum(), 0


def graph_step(net: GraphNet) -> Case:
    """A step of the network on the demo's square, 289 nodes."""
    space = pi_gnn_galerkin.square().space
    x, lhat = space.nodes.float(), space.lhat.float()
    return net, lambda: net(x, lhat).square().mean(), 16


def field_step(patch: int, width: int) -> Case:
    """A step of patch² rays of one picture, all samples in the box looked at."""
    field = VoxelRadianceField(s3im.GRID, s3im.FEAT, width)
    origins, dirs = map(s3im.as_float, scene.camera(0.3, 0.5, patch))
    target = torch.rand(patch**2, 3, generator=torch.Generator().manual_seed(0))
    structure = S3IMLoss(s3im.WEIGHT, patch_shape=(patch, patch))

    def loss() -> Tensor:
        seen = render_rays(field, origins, dirs, scene.NEAR, scene.FAR, s3im.SAMPLES)
        return (seen - target).square().mean() + structure(seen, target)

    return field, loss, 64


def sdgd_step(terms: int, mode: str = "shared") -> Case:
    """A step of 100 points; hidden layers are pruned, the first and the last are dense."""
    pde = SineGordon(100)
    model = ConstrainedMLP(pde)
    x, idx = pde.sample(100), torch.arange(terms) if mode == "shared" else None
    return model, lambda: sdgd_residual(model, x, pde, idx, mode=mode), 128


def pinn_step(width: int, *, lagrangian: bool) -> Case:
    """A step of 1,000 points; hidden layers are pruned, where M divides their width."""
    u0, nu = lagrangian_pinn.sine_on(30.0), lagrangian_pinn.NU
    depths = lagrangian_pinn.DEPTHS
    model: LagrangianPINN | EulerianPINN
    if lagrangian:
        model = LagrangianPINN(u0, nu, width=width, depth_x=3, **depths)
    else:
        model = EulerianPINN(u0, nu, width=width, **depths)
    y, t = torch.rand(2, lagrangian_pinn.POINTS, generator=torch.Generator().manual_seed(0))

    def loss() -> Tensor:
        of_x, of_u = model.residuals(6 * y, t)
        return (of_x.square() + of_u.square()).mean()

    return model, loss, 64


def denoiser_step(bases: tuple[int, ...] = ()) -> Case:
    """A step of 128 digits; the two hidden layers of each block are pruned, unless binary."""
    model = DenoiserMLP(64)
    if bases:
        plan = default_plan(model)
        binarize_model(model, {name: bases[int(name.split(".")[1])] for name in plan})
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(pndm.BATCH, 64, generator=generator)
    noised = add_noise(data, model.schedule, generator)
    return (
        model,
        lambda: nn.functional.mse_loss(model.velocity(noised.x, noised.t), noised.velocity),
        10**6 if bases else 128,
    )


def dictionary_step(atoms: int, before: int) -> Case:
    """A step of 20 samples after some others; no weights are there to prune."""
    generator = torch.Generator().manual_seed(0)
    d = polar(torch.randn(atoms, atoms, generator=generator))
    batches = bernoulli_gaussian(d, 0.3, 0.0, 20, generator)
    learner = OnlineODL(atoms, oracle="newton_schulz", generator=generator)
    for _ in range(before):
        learner.partial_fit(next(batches))
    y = next(batches)
    return learner, lambda: learner.partial_fit(y).relaxed.sum(), atoms


CASES: dict[str, list[tuple[str, Callable[[], Case]]]] = {
    "lsm": [
        ("LSM of the demo, 20 media, 31 x 31", lambda: lsm_step(20, lsm.SIZE, **lsm.MODEL)),
    ],
    "dgno": [
        ("DGNO of the demo, 50 media", lambda: dgno_step(50, dgno.CELLS, **dgno.MODEL)),
        ("DGNO of the paper, 25 media", lambda: dgno_step(25, 841)),
    ],
    "spon": [
        ("SPON, multigrid, 20 sources", lambda: spon_step("multigrid")),
        ("SPON, single level, 20 sources", lambda: spon_step("single level")),
        ("SPON, MLP 225-64-225, 20 sources", lambda: spon_step("MLP")),
    ],
    "drift_net": [
        ("DRIFT-Net of the demo, 16 flows", lambda: drift_net_step("DRIFT")),
        ("… window attention", lambda: drift_net_step("window attention")),
    ],
    "mm_pde": [
        ("Mesh mover of the demo, 16 x 64 places", mover_step),
        (
            "MM-PDE, 24 wide, 5 fields of 24 x 24",
            lambda: solver_step(24, layers=3, neighbours=8, k=12),
        ),
        ("MM-PDE, 128 wide, 5 fields of 24 x 24", lambda: solver_step(128, layers=1)),
    ],
    "neuraldem": [
        ("Hopper of the demo, 32 x 96 places", lambda: hopper_step(32, 96, **neuraldem.MODEL)),
        ("Hopper of the paper, 4 x 1,000 places", lambda: hopper_step(4, 1000)),
    ],
    "pi_gnn_galerkin": [
        ("Graph network of the demo, 289 nodes", lambda: graph_step(pi_gnn_galerkin.make_net())),
        ("Graph network of the paper, 289 nodes", lambda: graph_step(GraphNet())),
    ],
    "pndm": [
        ("DenoiserMLP, 128 digits", denoiser_step),
    ],
    "binarydm": [
        ("DenoiserMLP, 128 digits, one basis", lambda: denoiser_step((1, 1, 1))),
        ("… two bases in blocks 1 and 3", lambda: denoiser_step((2, 1, 2))),
    ],
    "rom_net": [
        ("ROM-net's classifier, 64 loads", classifier_step),
    ],
    "nuft_ddsl": [
        ("CNN 1-16-32-64, 50 rasters of 8 x 8", lambda: polygon_step(8)),
        ("… of 16 x 16", lambda: polygon_step(16)),
    ],
    "dmcmc": [
        ("DMCMC's classifier, 256 noisy digits", level_step),
    ],
    "noprop": [
        ("NoProp, one block of 10, 128 digits", lambda: noprop_step(False)),
        ("… all 10 by back-propagation", lambda: noprop_step(True)),
    ],
    "orthogonal_conv": [
        ("CNN 1-8-16-32, 32 digits, L_orth", lambda: orthogonal_step(1.0)),
        ("… without L_orth", lambda: orthogonal_step(0.0)),
    ],
    "odl_fw": [
        ("Frank-Wolfe, 64 atoms, 20 samples, 1st step", lambda: dictionary_step(64, 0)),
        ("… after 1,000 steps", lambda: dictionary_step(64, 1000)),
    ],
    "s3im": [
        ("Radiance field of the demo, 1,024 rays", lambda: field_step(s3im.PATCH, s3im.WIDTH)),
        ("… 256 wide, 256 rays", lambda: field_step(16, 256)),
    ],
    "sdgd": [
        ("SDGD, d = 100, 100 points, one term", lambda: sdgd_step(1)),
        ("SDGD, d = 100, 100 points, 16 terms", lambda: sdgd_step(16)),
        ("PINN, d = 100, 100 points, all terms", lambda: sdgd_step(100, "full")),
    ],
    "lagrangian_pinn": [
        ("LPINN, 50 wide, 1,000 points", lambda: pinn_step(50, lagrangian=True)),
        ("LPINN, 64 wide, 1,000 points", lambda: pinn_step(64, lagrangian=True)),
        ("Eulerian PINN, 50 wide, 1,000 points", lambda: pinn_step(50, lagrangian=False)),
    ],
    "dapc_nn": [
        ("DaPC NN 3-6-1 of the demo, 300 runs", lambda: chaos_step(3, dapc_nn.HIDDEN)),
        ("DaPC NN 16-16-16-1, 300 runs", lambda: chaos_step(16, (16, 16))),
        ("… product basis", lambda: chaos_step(16, (16, 16), "product")),
    ],
    "dnmm": [
        ("DNMM of the demo, 2 x 16-16, 2,000 points", lambda: density_step(16)),
        ("DNMM, 2 x 64-64, 2,000 points", lambda: density_step(64)),
    ],
    "nearfield_mimo": [
        ("Deep2S of the demo, 16 x 16³ voxels", lambda: imager_step(nearfield_mimo.BASE)),
        ("… DeepDI, 1,024 x 4,096 first", lambda: imager_step(nearfield_mimo.BASE, direct=True)),
        ("Deep2S, base 32 as the authors'", lambda: imager_step(32)),
    ],
    "dt_ddnn": [
        ("DT-DDNN's networks, 128 records", lambda: jamming_step(False)),
        ("network on raw IQ, 128 records", lambda: jamming_step(True)),
        ("features of 100 records", lambda: receiver(100)),
    ],
    "nn_to_no": [
        ("CNN 1-32-32-1 as an operator, 20 x 16 x 16", lambda: operator_step(16)),
    ],
}


def step_cycles(array: str, pattern: str, make: Callable[[], Case]) -> int:
    """Return what the products of a training step take."""
    torch.manual_seed(0)
    model, loss, least = make()

    def wide(name: str, layer: nn.Module) -> bool | None:
        return False if min(layer.weight.shape[:2]) < least else None  # type: ignore[union-attr, index]

    if pattern != "dense" and list(model.parameters()):
        sat.sparsify_(model, "bdwp", pattern, filter_fn=wide)
    with sat.device("golden", array=array) as device, sat.offload(device) as report:
        value = loss()
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]
    return report.cycles or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrays", nargs="+", default=["8x8", "32x32"])
    parser.add_argument("--methods", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("array   pattern  training step                                   cycles  dense over it")
    for method in args.methods:
        for text, make in CASES[method]:
            for array in args.arrays:
                dense = 0
                for pattern in PATTERNS:
                    cycles = step_cycles(array, pattern, make)
                    dense = dense or cycles
                    print(
                        f"{array:<7} {pattern:<8} {text:<40} {cycles:>13,} {dense / cycles:>14.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
