"""Deep2S: the Born matrix by hand, solvers by their conditions, networks by scipy, bad input."""

from __future__ import annotations

import math
import warnings
from copy import deepcopy

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import nn

import sat
from sat.methods import Result
from sat.methods.nearfield_mimo import (
    CVDeep2S,
    Deep2S,
    Deep2SPlus,
    DeepDI,
    MimoArray,
    ResNet3d,
    SlicedConv3d,
    UNet3d,
    VoxelGrid,
    add_noise,
    adjoint,
    born_matrix,
    demo,
    fit,
    l1,
    normalize,
    random_extended_targets,
    reference,
    slice_convolutions,
    tikhonov,
)
from sat.methods.nearfield_mimo.models import TwoStage
from sat.methods.nearfield_mimo.unet import EPS

FREQS = torch.linspace(4e9, 16e9, 3, dtype=torch.float64)
GRID = VoxelGrid.box((8, 8, 8), (-0.15, 0.15), (-0.1, 0.1), (0.35, 0.65))
ARRAY = MimoArray.cross(4, 3, 0.3)
COUNT = 3 * 4 * 3


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian(*shape, seed=0, dtype=torch.complex128):
    return torch.view_as_complex(normal(*shape, 2, seed=seed)).to(dtype)


def matrix(dtype=torch.complex128, **options):
    return born_matrix(ARRAY.tx, ARRAY.rx, GRID, FREQS, dtype=dtype, **options)


# -------------------------------------------------------------------------------------- geometry


def test_a_cross_has_one_arm_along_each_axis():
    array = MimoArray.cross(3, 2, 0.3)
    assert array.tx.tolist() == [[-0.15, 0, 0], [0, 0, 0], [0.15, 0, 0]]
    assert array.rx.tolist() == [[0, -0.15, 0], [0, 0.15, 0]]
    assert MimoArray.cross(1, 1, 0.3).tx.tolist() == [[0, 0, 0]]


def test_voxels_run_along_z_first():
    grid = VoxelGrid.box((2, 3, 4), (0, 1), (0, 2), (1, 4))
    assert grid.shape == (2, 3, 4)
    assert torch.equal(grid.points.reshape(2, 3, 4, 3)[1, 2, 3], torch.tensor([1, 2, 4]).double())
    assert grid.points[1].tolist() == [0, 0, 2]


def test_entries_are_spherical_waves_there_and_back():
    """Against 40 digits, for phases of hundreds of radians."""
    a = matrix().reshape(3, 4, 3, *GRID.shape)
    mpmath.mp.dps = 40
    rng = np.random.default_rng(0)
    for _ in range(20):
        k, t, r, x, y, z = (int(rng.integers(n)) for n in a.shape)
        place = [mpmath.mpf(float(v)) for v in (GRID.x[x], GRID.y[y], GRID.z[z])]
        out, back = (
            mpmath.sqrt(
                sum((mpmath.mpf(float(c)) - p) ** 2 for c, p in zip(at, place, strict=True))
            )
            for at in (ARRAY.tx[t], ARRAY.rx[r])
        )
        wave = mpmath.expj(-2 * mpmath.pi * mpmath.mpf(float(FREQS[k])) * (out + back) / 299792458)
        expected = complex(wave / (4 * mpmath.pi * out * back))
        assert abs(complex(a[k, t, r, x, y, z]) - expected) < 1e-12 * abs(expected)


def test_single_precision_is_the_double_one_rounded():
    """A phase of 500 radians in float32 would be off by 3e-5."""
    torch.testing.assert_close(
        matrix(torch.complex64), matrix().to(torch.complex64), rtol=0, atol=0
    )


def test_without_spreading_all_magnitudes_are_one():
    plain, wave = matrix(), matrix(spreading=False)
    torch.testing.assert_close(wave.abs(), torch.ones(wave.shape).double())
    torch.testing.assert_close(plain / plain.abs(), wave)
    near = VoxelGrid(torch.zeros(1), torch.zeros(1), torch.tensor([0.25, 0.5]))
    middle = MimoArray.cross(1, 1, 0.3)
    one = born_matrix(middle.tx, middle.rx, near, FREQS, dtype=torch.complex128).abs()
    torch.testing.assert_close(one[:, 0], 4 * one[:, 1])
    torch.testing.assert_close(one[0, 0], torch.tensor(4 / math.pi).double())


def test_transmitters_and_receivers_may_change_places():
    there = matrix().reshape(3, 4, 3, -1)
    back = born_matrix(ARRAY.rx, ARRAY.tx, GRID, FREQS, dtype=torch.complex128)
    torch.testing.assert_close(back.reshape(3, 3, 4, -1).transpose(1, 2), there)


def test_measurements_of_numpy_are_the_matrix_product():
    scenes = random_extended_targets(2, GRID, 0)
    y = demo.measured(ARRAY, GRID, FREQS, scenes)
    assert y.shape == (2, 3, 4, 3)
    torch.testing.assert_close(y.flatten(1), scenes.flatten(1) @ matrix().mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"freqs": -FREQS}, "must be positive and increasing"),
        ({"freqs": FREQS.flip(0)}, "sort them"),
        ({"freqs": torch.tensor([4e9, math.nan])}, "row of finite numbers"),
        ({"freqs": torch.tensor([])}, "row of finite numbers"),
        ({"tx": GRID.points[5:6]}, r"tx\[0\] lies on voxel 5: the field is infinite"),
        ({"rx": torch.cat([ARRAY.rx, GRID.points[7:8]])}, r"rx\[3\] lies on voxel 7"),
        ({"tx": torch.zeros(3)}, r"tx has shape \(3,\): must be real points"),
        ({"voxels": torch.zeros(4, 2)}, r"voxels has shape \(4, 2\)"),
        ({"rx": torch.full((1, 3), math.inf)}, "rx has a coordinate that is not finite"),
    ],
)
def test_bad_geometry_is_named(change, message):
    arguments = {"tx": ARRAY.tx, "rx": ARRAY.rx, "voxels": GRID, "freqs": FREQS} | change
    with pytest.raises(ValueError, match=message):
        born_matrix(**arguments)


def test_bad_arrays_and_grids_are_named():
    with pytest.raises(TypeError, match=r"dtype=torch.float32: must be torch.complex64"):
        matrix(torch.float32)
    with pytest.raises(ValueError, match="aperture_m=0: must be positive"):
        MimoArray.cross(2, 2, 0)
    with pytest.raises(ValueError, match="n_tx=0: must be an int of at least 1"):
        MimoArray.cross(0, 2, 0.3)
    with pytest.raises(ValueError, match="y: an axis must be one row of finite, increasing"):
        VoxelGrid(torch.arange(3), torch.tensor([0, 0, 1]), torch.arange(3))
    with pytest.raises(ValueError, match="nz=0"):
        VoxelGrid.box((2, 2, 0), (0, 1), (0, 1), (0, 1))


def test_mixed_up_units_are_doubted():
    with pytest.warns(UserWarning, match="in metres and frequencies in Hz"):
        born_matrix(1000 * ARRAY.tx, 1000 * ARRAY.rx, GRID, FREQS)
    with pytest.warns(UserWarning, match="in metres and frequencies in Hz"):
        born_matrix(ARRAY.tx, ARRAY.rx, GRID, FREQS / 1e9)
    with pytest.warns(UserWarning, match="are voxels in metres, too"):
        born_matrix(ARRAY.tx, ARRAY.rx, 1000 * GRID.points, FREQS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix()


# --------------------------------------------------------------------------------------- solvers


def test_adjoint_is_the_released_codes_einsum():
    a, y = gaussian(3, 2, 4, 5, 6, 7), gaussian(8, 3, 2, 4, seed=1)
    expected = np.einsum("ktrxyz,Nktr->Nxyz", a.numpy().conj(), y.numpy())
    flat = a.reshape(24, -1)
    for measurements in (y, y.flatten(1)):
        got = adjoint(flat, measurements).reshape(8, 5, 6, 7)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


@settings(max_examples=10)
@given(rows=st.integers(1, 9), cols=st.integers(1, 9), seed=st.integers(0, 99))
def test_adjoint_is_adjoint(rows, cols, seed):
    a, x, y = gaussian(rows, cols, seed=seed), gaussian(cols, seed=1), gaussian(rows, seed=2)
    left, right = torch.vdot(y, a @ x), torch.vdot(adjoint(a, y), x)
    assert abs(complex(left - right)) <= 1e-12 * float((a @ x).norm() * y.norm() + 1)


def test_points_are_found_at_their_voxel():
    a = matrix()
    image = adjoint(a, a.mT).abs() / a.norm(dim=0)
    assert torch.equal(image.argmax(1), torch.arange(len(a.T)))


def test_the_image_of_a_point_is_as_wide_as_the_band_allows():
    z, image = demo.down_range(MimoArray.cross(1, 1, 0.3), 201)
    outside = z[image < np.sinc(0.5)]
    width = outside[outside > 0].min() - outside[outside < 0].max()
    assert width == pytest.approx(299792458 / (2 * 12e9), rel=0.02)
    first = z[1000 + int(np.argmin(image[1000:1300]))]  # sinc's zero
    assert first == pytest.approx(299792458 / (2 * 12e9), rel=0.02)


def test_tikhonov_has_no_gradient_left_and_the_right_limits():
    a, y = gaussian(6, 10), gaussian(2, 6, seed=1)
    for mu in (0.1, 3.0):
        s = tikhonov(a, y, mu)
        slope = adjoint(a, s @ a.mT - y) + mu * s
        assert float(slope.abs().max()) < 1e-12
        np.testing.assert_allclose(s[0].numpy(), reference.ridge(a.numpy(), y[0].numpy(), mu))
    torch.testing.assert_close(tikhonov(a, y, 1e-9) @ a.mT, y, rtol=0, atol=1e-7)
    torch.testing.assert_close(1e9 * tikhonov(a, y, 1e9), adjoint(a, y), rtol=1e-6, atol=1e-6)


def test_l1_meets_its_conditions():
    """Residual correlations are at most the weight, and there the solution has their phase."""
    a, y = gaussian(12, 20), gaussian(3, 12, seed=1)
    for weight in (0.1, 0.5):
        s = l1(a, y, weight, 3000)
        most = weight * adjoint(a, y).abs().amax(1, keepdim=True)
        left = adjoint(a, y - s @ a.mT) / most
        assert float(left.abs().max()) < 1 + 1e-6
        on = s.abs() > 1e-6
        assert on.any() and not on.all()
        torch.testing.assert_close(left[on], (s / s.abs())[on], rtol=0, atol=1e-5)
    assert int((l1(a, y, 0.999, 300).abs() > 0).sum()) <= 3


def test_each_volume_is_divided_by_its_own_largest_magnitude():
    b = gaussian(3, 2, 2, 2) * torch.tensor([1.0, 10.0, 100.0])[:, None, None, None]
    torch.testing.assert_close(normalize(b).abs().flatten(1).amax(1), torch.ones(3).double())
    whole = normalize(b, whole_batch=True).abs().flatten(1).amax(1)
    assert float(whole[2]) == pytest.approx(1) and float(whole[0]) < 0.1
    b[1] = 0
    for whole_batch in (False, True):
        with pytest.raises(ValueError, match="sample 1 is all zero"):
            normalize(b, whole_batch=whole_batch)


def test_bad_measurements_are_named():
    a, y = gaussian(6, 10), gaussian(2, 6)
    for solve in (adjoint, lambda a, y: tikhonov(a, y, 1.0), lambda a, y: l1(a, y, 0.5)):
        with pytest.raises(TypeError, match="measurements are complex"):
            solve(a, y.abs())
        with pytest.raises(ValueError, match=r"y has shape \(2, 5\): must end in the 6"):
            solve(a, y[:, :5])
        with pytest.raises(ValueError, match=r"y has shape \(2, 1, 2, 2\)"):
            solve(a, gaussian(2, 1, 2, 2))
        with pytest.raises(ValueError, match="not finite"):
            solve(a, y * math.nan)
        with pytest.raises(ValueError, match="must be a complex matrix"):
            solve(a.real, y)
    for mu in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"mu={mu}: must be positive"):
            tikhonov(a, y, mu)
    with pytest.raises(ValueError, match="not positive definite as rounded"):
        tikhonov(torch.ones(6, 1, dtype=torch.complex64), y, 1e-12)
    for weight in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=rf"weight={weight}: must be in \(0, 1\)"):
            l1(a, y, weight)


# ------------------------------------------------------------------------------- scenes and noise


def test_scenes_are_extended_objects_of_random_phase():
    scenes = random_extended_targets(30, GRID, 0)
    assert scenes.shape == (30, *GRID.shape) and scenes.dtype == torch.complex128
    size = scenes.abs()
    assert float(size.max()) <= 1 and bool((size.flatten(1).amax(1) > 0.2).all())
    share = float((size > 0).double().mean())
    assert 0.005 < share < 0.2  # mostly empty
    # Uniform phases, not alike in neighbours.
    phases = scenes.angle()[size > 0]
    assert kstest(phases.numpy(), "uniform", (-math.pi, 2 * math.pi)).pvalue > 1e-3
    waves = scenes / size.clamp_min(1e-9)
    pairs = (waves[:, 1:] * waves[:, :-1].conj())[(size[:, 1:] > 0) & (size[:, :-1] > 0)]
    assert len(pairs) > 200 and abs(complex(pairs.mean())) < 4 / math.sqrt(len(pairs))
    assert torch.equal(random_extended_targets(30, GRID, 0), scenes)
    assert not torch.equal(random_extended_targets(30, GRID, 1), scenes)
    plain = random_extended_targets(30, GRID, 0, random_phase=False)
    torch.testing.assert_close(plain.real, size)
    assert float(plain.imag.abs().max()) == 0


def test_noise_has_its_power_in_each_sample():
    y = gaussian(2, 100, 50, 4) * torch.tensor([1.0, 100.0])[:, None, None, None]
    noise = add_noise(y, 20.0, torch.Generator().manual_seed(0)) - y
    for clean, part in zip(y, noise, strict=True):
        power = float(clean.abs().square().mean()) / 100
        assert float(part.real.square().mean()) == pytest.approx(power / 2, rel=0.05)
        assert float(part.imag.square().mean()) == pytest.approx(power / 2, rel=0.05)
        assert abs(float((part.real * part.imag).mean())) < 0.05 * power
    again = add_noise(y, 20.0, torch.Generator().manual_seed(0)) - y
    assert torch.equal(again, noise)


def test_bad_scenes_and_noise_are_named():
    generator = torch.Generator()
    for snr in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"snr_db={snr}: must be finite"):
            add_noise(gaussian(2, 3), snr, generator)
    with pytest.raises(TypeError, match="measurements are complex"):
        add_noise(normal(2, 3), 30.0, generator)
    with pytest.raises(ValueError, match=r"must be \(batch, …\)"):
        add_noise(gaussian(3), 30.0, generator)
    with pytest.raises(ValueError, match="n=0"):
        random_extended_targets(0, GRID, 0)
    with pytest.raises(ValueError, match="must have two an axis"):
        random_extended_targets(1, VoxelGrid.box((1, 2, 2), (0, 1), (0, 1), (0, 1)), 0)


# -------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("flat", [False, True])
def test_the_unet_is_scipys(flat):
    for seed, shape in enumerate(((8, 8, 8), (9, 16, 8), (17, 9, 9))):
        assert demo.network_difference(seed, shape, flat=flat) < 1e-14


def test_the_unet_has_the_released_codes_layers():
    pairs = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (256, 128), (128, 128),
             (128, 64), (64, 64), (64, 32), (32, 32), (32, 64)]  # fmt: skip
    ups = [(128, 128), (128, 64), (64, 32)]
    for flat, conv, up in ((False, 27, 8), (True, 9, 4)):
        with torch.device("meta"):
            net = UNet3d(flat=flat)
            assert net(torch.empty(2, 1, 25, 25, 49)).shape == (2, 25, 25, 49)
        wanted = sum(conv * a * b + 3 * b for a, b in pairs)  # weights, biases, two of the norm
        wanted += sum(up * a * b + b for a, b in ups) + 65
        assert sum(p.numel() for p in net.parameters()) == wanted
        found = [(m.in_channels, m.out_channels) for m in net.modules() if type(m) is nn.Conv3d]
        assert found == [*pairs, (64, 1)]


def test_the_first_voxel_of_an_odd_axis_is_cropped():
    torch.manual_seed(0)
    net = UNet3d(1, 8).eval()
    u = torch.rand(1, 1, 9, 8, 9)
    other = u.clone()
    other[:, :, 0] += 1
    other[..., 0] += 1
    with torch.no_grad():
        assert torch.equal(net(u), net(other))
        other[:, :, :, 0] += 1
        assert not torch.equal(net(u), net(other))


def test_volumes_start_nearly_empty():
    torch.manual_seed(0)
    for net in (UNet3d(1, 4), UNet3d(1, 4, flat=True)):
        mean = float(net(torch.rand(2, 1, 8, 8, 8)).detach().mean())
        assert mean == pytest.approx(0.05, abs=0.03)


def test_the_resnet_adds_to_its_input():
    net = ResNet3d(2, 4, 3)
    kinds = [type(layer) for layer in net.body]
    assert kinds.count(nn.Conv3d) == 5 and kinds.count(nn.BatchNorm3d) == 3
    nn.init.zeros_(net.body[-1].weight)
    nn.init.zeros_(net.body[-1].bias)
    u = torch.rand(2, 2, 5, 6, 7)
    assert torch.equal(net(u), u[:, 0])
    with torch.device("meta"):
        full = ResNet3d()
    wanted = 28 * 64 + 8 * (27 * 64 * 64 + 3 * 64) + 27 * 64 + 1
    assert sum(p.numel() for p in full.parameters()) == wanted


@settings(max_examples=10)
@given(
    kernel=st.tuples(*3 * [st.sampled_from([1, 3])]),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_sliced_convolution_is_the_same_one(kernel, channels, bias, seed):
    torch.manual_seed(seed)
    pad = tuple(size // 2 for size in kernel)
    layer = nn.Conv3d(*channels, kernel, padding=pad, bias=bias).double()
    sliced = SlicedConv3d(layer).double()
    x = normal(2, channels[0], 4, 5, 6, seed=seed).requires_grad_()
    expected, got = layer(x), sliced(x)
    torch.testing.assert_close(got, expected)
    weight = torch.sin(torch.arange(got.numel())).reshape(got.shape)
    wanted = torch.autograd.grad((expected * weight).sum(), [x, layer.weight])
    found = torch.autograd.grad((got * weight).sum(), [x, sliced.conv.weight])
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1].permute(0, 4, 1, 2, 3).reshape(found[1].shape))


def test_sliced_networks_take_patterns():
    """Of 8 channels of one neighbour two are kept; with all of them nothing changes."""
    torch.manual_seed(0)
    net = UNet3d(1, 4).eval()
    u = torch.rand(2, 1, 8, 8, 8)
    with torch.no_grad():
        before = net(u)
        names = slice_convolutions(net, 16)
        torch.testing.assert_close(net(u), before)
    assert names == ["down.2.3.conv", "merge.0.0.conv", "merge.0.3.conv", "merge.1.0.conv"]
    report = sat.sparsify_(net, "bdwp", "2:8", filter_fn=lambda name, _: name in names)
    patterns = {r.name: r.pattern for r in report.layers}
    assert [patterns[name] for name in names] == 4 * ["2:8"]
    with sat.offload("golden") as offloaded:
        net.train()(u).sum().backward()
    sparse = {work.op for work in offloaded if "2:8" in work.size}
    assert sparse == {f"{name} {stage}" for name in names for stage in ("FF", "BP")}
    layer = net.get_submodule(names[0])
    kept = sat.prune(layer.weight.detach().half(), "2:8", axis=1).to_dense()
    assert int((torch.as_tensor(kept).reshape(16, 3, 2, 8, 3, 3) != 0).sum(3).max()) == 2


def test_bad_volumes_and_networks_are_named():
    net = UNet3d(1, 2)
    for size, axis in ((7, "x"), (10, "x"), (12, "x")):
        with pytest.raises(ValueError, match=f"axis {axis} has {size} voxels: must be 8 n or"):
            net(torch.rand(1, 1, size, 8, 8))
    for bad in (torch.rand(1, 2, 8, 8, 8), torch.rand(1, 8, 8, 8), gaussian(1, 1, 8, 8, 8)):
        with pytest.raises(ValueError, match="must be real volumes"):
            net(bad)
    with pytest.raises(ValueError, match="base=0"):
        UNet3d(1, 0)
    with pytest.raises(ValueError, match="least=99: no convolution"):
        slice_convolutions(net, 99)
    for layer in (nn.Conv3d(2, 2, 3), nn.Conv3d(2, 2, 3, 2, 1), nn.Conv3d(2, 2, 3, padding="same"),
                  nn.Conv3d(2, 2, 2, padding=1)):  # fmt: skip
        with pytest.raises(ValueError, match="must have stride 1"):
            SlicedConv3d(layer)


# ---------------------------------------------------------------------------------------- models


def small(kind=Deep2S, **options):
    torch.manual_seed(0)
    channels = 2 if kind is CVDeep2S else 1
    return kind(matrix(torch.complex64), GRID.shape, UNet3d(channels, 2), **options).eval()


def scenes(n, seed=0):
    s = random_extended_targets(n, GRID, seed)
    return demo.measured(ARRAY, GRID, FREQS, s).to(torch.complex64), s.abs().float()


def test_deep2s_cleans_the_magnitude_of_the_adjoint():
    model, (y, _) = small(), scenes(3)
    a = matrix().numpy().reshape(3, 4, 3, *GRID.shape)
    b = np.abs(np.einsum("ktrxyz,Nktr->Nxyz", a.conj(), y.numpy()))
    u = b / b.max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(model.first(y)[:, 0].numpy(), u, rtol=0, atol=1e-5)
    state = {name: value.double().numpy() for name, value in model.network.state_dict().items()}
    for one, got in zip(u, model.predict(y).numpy(), strict=True):
        np.testing.assert_allclose(got, reference.unet(state, one[None], EPS), rtol=0, atol=1e-5)
    # Not the adjoint of magnitudes.
    wrong = np.einsum("ktrxyz,Nktr->Nxyz", np.abs(a), np.abs(y.numpy()))
    assert np.abs(wrong / wrong.max((1, 2, 3), keepdims=True) - u).max() > 0.1


def test_neither_gain_nor_one_phase_changes_an_image():
    model, (y, _) = small(), scenes(2)
    turned = (1e4 * y * torch.polar(torch.tensor(1.0), torch.tensor(0.7))).to(y.dtype)
    torch.testing.assert_close(model.predict(turned), model.predict(y), rtol=0, atol=1e-5)
    both, other = small(CVDeep2S).first(y), small(CVDeep2S).first(turned)
    assert both.shape == (2, 2, *GRID.shape)
    torch.testing.assert_close(both.square().sum(1).sqrt()[:, None], model.first(y))
    assert float((other - both).abs().max()) > 0.1
    far = y * torch.polar(torch.ones(COUNT), normal(COUNT).float()).reshape(y.shape[1:])
    assert float((model.first(far) - model.first(y)).abs().max()) > 0.1


def test_a_sample_knows_nothing_of_its_batch_unless_it_is_to():
    y, _ = scenes(3)
    y[1] *= 100
    model = small()
    apart = torch.cat([model.predict(one[None]) for one in y])
    torch.testing.assert_close(model.predict(y), apart, rtol=0, atol=1e-6)
    model.whole_batch = True
    peaks = model.first(y).flatten(1).amax(1)
    assert float(peaks[0]) < 0.1 and float(peaks[1]) == pytest.approx(1)


def test_predict_leaves_modes_and_statistics():
    model, (y, _) = small().train(), scenes(2)
    model.network.down[0].eval()
    before = deepcopy(model.state_dict())
    made = model.predict(y, batch=1)
    assert model.network.training and not model.network.down[0].training
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not made.requires_grad and made.shape == (2, *GRID.shape)


def test_deep2s_plus_starts_as_deep2s():
    y, _ = scenes(3)
    plus = Deep2SPlus(COUNT, GRID.shape, UNet3d(1, 2), matrix(torch.complex64))
    torch.testing.assert_close(plus.first(y), small().first(y), rtol=0, atol=1e-5)
    assert plus.learned and plus.dense.weight.shape == (2 * 512, 2 * COUNT)


def test_deepdi_multiplies_real_and_imaginary_parts():
    y, _ = scenes(3)
    model = DeepDI(COUNT, GRID.shape, UNet3d(1, 2))
    flat = y.flatten(1).numpy()
    flat = flat / np.abs(flat).max(1, keepdims=True)
    weight = model.dense.weight.detach().numpy()
    expected = flat.real @ weight[:, :COUNT].T + flat.imag @ weight[:, COUNT:].T
    got = model.first(y).detach().numpy().reshape(3, -1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert model(y).shape == (3, *GRID.shape)


def test_training_takes_adams_steps_on_the_mean_squared_error():
    y, magnitude = scenes(6)
    model = small()
    other = deepcopy(model).train()
    curve = fit(model, y, magnitude, epochs=2, batch=3, generator=torch.Generator().manual_seed(0))
    # Sums over voxels have gradients 512 times as large: so has Adam's smallest divisor.
    optimizer = torch.optim.Adam(other.parameters(), 1e-3, eps=1e-8 / 512)
    order, expected = torch.Generator().manual_seed(0), []
    for _ in range(2):
        errors = []
        for places in torch.randperm(6, generator=order).split(3):
            optimizer.zero_grad()
            error = (other(y[places]) - magnitude[places]).square().mean()
            error.backward()
            optimizer.step()
            errors.append(float(error.detach()))
        expected.append(sum(errors) / 2)
    assert curve == pytest.approx(expected, rel=1e-4)
    assert not model.training and curve[1] < curve[0]


@pytest.mark.parametrize("kind", ["Deep2S", "DeepDI", "Deep2S+"])
def test_training_lowers_the_error_of_what_is_seen(kind):
    y, magnitude = scenes(4)
    torch.manual_seed(0)
    if kind == "Deep2S":
        model = small()
    elif kind == "DeepDI":
        model = DeepDI(COUNT, GRID.shape, UNet3d(1, 2))
    else:
        model = Deep2SPlus(COUNT, GRID.shape, UNet3d(1, 2), matrix(torch.complex64))
    first = [p.detach().clone() for p in model.parameters()]
    curve = fit(model, y, magnitude, epochs=20, batch=4, lr=1e-2, schedule="onecycle",
                generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert curve[-1] < 0.9 * curve[0]
    moved = [not torch.equal(a, b) for a, b in zip(first, model.parameters(), strict=True)]
    assert all(moved)


def test_training_stops_early_with_its_best_weights():
    y, magnitude = scenes(4)
    others = scenes(2, seed=1)
    model = small()
    seen = []

    class Watched(Deep2S):
        def predict(self, y, batch=16):
            made = super().predict(y, batch)
            seen.append((float((made - others[1]).square().mean()), deepcopy(self.state_dict())))
            return made

    model.__class__ = Watched
    curve = fit(model, y, magnitude, epochs=60, batch=4, lr=0.05, validation=others, patience=2,
                generator=torch.Generator().manual_seed(0))  # fmt: skip
    errors = [error for error, _ in seen]
    best = errors.index(min(errors))
    assert len(curve) == len(errors) == best + 3 < 60
    kept = model.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in seen[best][1].items())


def test_a_model_without_a_first_stage_cannot_be_made():
    with pytest.raises(TypeError, match="abstract method '?first'?"):
        type("Unfinished", (TwoStage,), {})()


def test_bad_training_is_named():
    y, magnitude = scenes(2)
    model, generator = small(), torch.Generator()
    for bad in (magnitude + 1, magnitude - 1, magnitude * math.nan):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            fit(model, y, bad, generator=generator)
    for bad in (magnitude[:1], magnitude.flatten(1), magnitude.to(torch.complex64)):
        with pytest.raises(ValueError, match=r"must be real \(samples, nx, ny, nz\)"):
            fit(model, y, bad, generator=generator)
    with pytest.raises(ValueError, match="patience=3: stopping early needs validation"):
        fit(model, y, magnitude, patience=3, generator=generator)
    with pytest.raises(ValueError, match="lr=0"):
        fit(model, y, magnitude, lr=0, generator=generator)
    with pytest.raises(ValueError, match="sample 1 is all zero"):
        model.predict(y * torch.tensor([1, 0])[:, None, None, None])
    with pytest.raises(TypeError, match="measurements are complex"):
        model(y.real)
    with pytest.raises(ValueError, match="with a column for each of 64 voxels"):
        Deep2S(matrix(), (4, 4, 4))
    with pytest.raises(ValueError, match="largest magnitude is 0"):
        Deep2S(0 * matrix(), GRID.shape, UNet3d(1, 2))
    with pytest.raises(ValueError, match="must be complex, 36 x 512"):
        Deep2SPlus(COUNT, GRID.shape, UNet3d(1, 2), matrix().real)
    with pytest.raises(ValueError, match="measurements=0"):
        DeepDI(0, GRID.shape)


# --------------------------------------------------------------------------------------- offload


def test_float16_products_keep_the_image():
    """Operands of 11 bits: a back-projection within 2e-3 of its largest value, nothing lost."""
    model, (y, magnitude) = small(), scenes(4)
    plain = model.first(y)
    with sat.offload("golden") as report:
        off = model.first(y) - plain
        model.train()
        loss = (model.network(plain) - magnitude).square().sum() / 4
        loss.backward()
    assert 0 < float(off.abs().max()) < 2e-3
    assert report.coverage == 1
    assert report.lost.overflowed == 0
    # Scaled as it is, the loss has gradients that float16 holds.
    deep = small().train()
    (deep.network(plain) - magnitude).square().sum().div(4).backward()
    for a, b in zip(model.parameters(), deep.parameters(), strict=True):
        assert float((a.grad - b.grad).norm()) <= 0.03 * float(b.grad.norm()) + 1e-3


def test_the_quick_demo_keeps_its_exact_figures():
    result = Result()
    demo._matrix(result, 1)
    demo._focus(result, 1)
    demo._solvers(result, 1)
    assert len(result.checks) == 5 and result.passed
