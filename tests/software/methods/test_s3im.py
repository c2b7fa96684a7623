"""S3IM: its definition by loops, SSIM against scipy, gradients, rays against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from sat.methods.problems.counting import count_macs
from sat.methods.s3im import (
    S3IMLoss,
    VoxelRadianceField,
    demo,
    gaussian_window,
    psnr,
    render_rays,
    s3im,
    scene,
    ssim,
    ssim_map,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(pred, target, **options):
    return s3im(pred, target, patch_shape=(8, 8), **options)


# ------------------------------------------------------------------------------------- the loss


@settings(max_examples=20)
@given(
    height=st.integers(4, 9), width=st.integers(4, 9), size=st.integers(2, 4),
    repeats=st.integers(1, 4), seed=st.integers(0, 99),
)  # fmt: skip
def test_similarity_is_its_definition(height, width, size, repeats, seed):
    """Window by window; orders are torch.randperm's, one after another, after the rays' own."""
    pred, target = demo.colours(height * width, seed)
    draw = generator(seed)
    orders = [torch.arange(len(pred))]
    orders += [torch.randperm(len(pred), generator=draw) for _ in range(repeats - 1)]
    exact = demo.by_loops(
        pred.numpy(), target.numpy(), torch.stack(orders).numpy(), height, width, size
    )
    options = {"kernel_size": size, "stride": size, "repeats": repeats}
    found = s3im(pred, target, patch_shape=(height, width), generator=generator(seed), **options)
    assert float(found) == pytest.approx(exact, abs=1e-12)
    torch.manual_seed(seed)
    by_torchs_own = s3im(pred, target, patch_shape=(height, width), **options)
    assert torch.equal(found, by_torchs_own)


def test_released_shape_has_16_by_160_windows():
    x = torch.rand(1, 3, 64, 640)
    assert ssim_map(x, x, gaussian_window(4), 4, 1).shape == (1, 3, 16, 160)


def test_window_of_an_even_size_is_off_its_centre():
    """By hand: exp(-2²/4.5), exp(-1/4.5), 1, exp(-1/4.5) over their sum."""
    line = [math.exp(-4 / 4.5), math.exp(-1 / 4.5), 1, math.exp(-1 / 4.5)]
    expected = np.outer(line, line) / sum(line) ** 2
    np.testing.assert_allclose(gaussian_window(4, torch.float64), expected, rtol=1e-15)


def test_map_within_the_image_is_scipys():
    x, y = np.random.default_rng(0).random((2, 20, 17, 3))
    a, b = (torch.from_numpy(v).permute(2, 0, 1)[None] for v in (x, y))
    found = ssim_map(a, b, gaussian_window(11, torch.float64))
    assert found.shape == (1, 3, 10, 7)
    assert float(found.mean()) == pytest.approx(ssim(x, y), abs=1e-12)


def test_equal_rays_are_wholly_similar_and_fewer_bits_hardly_matter():
    pred, target = demo.colours(64, 1, torch.float32)
    assert float(small(target, target)) == 1
    exact = float(small(pred, target, generator=generator()))
    assert exact < 0.99
    for dtype, off in ((torch.float16, 1e-4), (torch.bfloat16, 3e-3)):
        found = small(pred.to(dtype), target.to(dtype), generator=generator())
        assert found.dtype == torch.float32 and float(found) == pytest.approx(exact, abs=off)


@pytest.mark.parametrize("layout", ("official", "tiled"))
def test_gradient_is_that_of_differences_and_only_of_pred(layout):
    pred, target = demo.colours(16, 2)
    pred.requires_grad_()

    def loss(x):
        return s3im(x, target, patch_shape=(4, 4), repeats=3, generator=generator(), layout=layout)

    assert torch.autograd.gradcheck(loss, pred)
    wanted = target.clone().requires_grad_()
    with pytest.warns(UserWarning, match="target requires a gradient"):
        small(torch.rand(64, 3, requires_grad=True), torch.rand(64, 3, requires_grad=True))
    with pytest.warns(UserWarning, match="none reaches it"):
        s3im(pred, wanted, patch_shape=(4, 4)).backward()
    assert wanted.grad is None and pred.grad is not None


def test_tiles_are_the_mean_of_their_orders():
    pred, target = demo.colours(64, 3)
    draw = generator(5)
    orders = [torch.arange(64), *(torch.randperm(64, generator=draw) for _ in range(3))]
    each = [float(small(pred[o], target[o], repeats=1)) for o in orders]
    found = small(pred, target, repeats=4, layout="tiled", generator=generator(5))
    assert float(found) == pytest.approx(np.mean(each), abs=1e-13)


def test_orders_are_drawn_anew_each_time_and_are_the_same_for_both():
    pred, target = demo.colours(64, 4)
    loss = S3IMLoss(0.3, patch_shape=(8, 8), generator=generator(7))
    first, second = float(loss(pred, target)), float(loss(pred, target))
    assert first != second
    draw = generator(7)
    assert first == 0.3 * (1 - float(small(pred, target, generator=draw)))
    assert second == 0.3 * (1 - float(small(pred, target, generator=draw)))
    assert float(S3IMLoss(patch_shape=(8, 8))(target, target)) == 0
    assert float(S3IMLoss(0.0, patch_shape=(8, 8))(pred, target)) == 0


def test_other_channels_on_request():
    pred, target = torch.rand(2, 64, 5, dtype=torch.float64)
    found = small(pred, target, channels=5, repeats=1)
    each = [float(small(p[:, None], t[:, None], channels=1, repeats=1))
            for p, t in zip(pred.T, target.T, strict=True)]  # fmt: skip
    assert float(found) == pytest.approx(np.mean(each))


# ------------------------------------------------------------------------------------- pictures


def test_psnr_and_ssim_by_hand():
    """A constant error e is -20 log₁₀ e; of constant pictures only the light differs."""
    truth = np.full((12, 13, 2), 0.5)
    assert psnr(truth + 0.1, truth) == pytest.approx(20)
    assert psnr(truth, truth) == math.inf and ssim(truth, truth) == 1
    light = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    assert ssim(truth + 0.1, truth) == pytest.approx(light, rel=1e-12)
    with pytest.raises(ValueError, match=r"image has shape \(2, 3\) and truth \(3, 2\)"):
        psnr(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(np.zeros((10, 20, 3)), np.zeros((10, 20, 3)))


# --------------------------------------------------------------------------------------- fields


class Fog:
    """Density s of one colour everywhere."""

    def __init__(self, s, colour):
        self.s, self.tint, self.asked = s, torch.tensor(colour, dtype=torch.float64), 0

    def density(self, points):
        return points.new_full((len(points),), self.s)

    def colour(self, points, dirs):
        self.asked += len(points)
        assert points.shape == dirs.shape
        return self.tint.expand(len(points), 3)


def rays(count=5):
    dirs = torch.randn(count, 3, generator=generator(), dtype=torch.float64)
    return torch.zeros(count, 3, dtype=torch.float64), dirs / dirs.norm(dim=1, keepdim=True)


@settings(max_examples=20)
@given(s=st.floats(0, 20), far=st.floats(1.1, 5), samples=st.integers(1, 30), grey=st.floats(0, 1))
def test_fog_has_its_closed_form(s, far, samples, grey):
    """c (1 - exp(-s d)) + background exp(-s d), for any number of samples."""
    tint = (0.2, 0.5, 0.9)
    found = render_rays(Fog(s, tint), *rays(), 1.0, far, samples, background=grey,
                        generator=generator(1))  # fmt: skip
    left = math.exp(-s * (far - 1))
    expected = torch.tensor([c * (1 - left) + grey * left for c in tint], dtype=torch.float64)
    torch.testing.assert_close(found, expected.expand(5, 3))


def test_what_has_no_weight_is_not_coloured():
    fog = Fog(10.0, (1.0, 0.0, 0.0))
    exact = render_rays(fog, *rays(), 0.0, 4.0, 40)
    whole, fog.asked = fog.asked, 0
    found = render_rays(fog, *rays(), 0.0, 4.0, 40, threshold=1e-3)
    assert whole == 200 and 0 < fog.asked < 60
    assert 0 < float((exact - found).abs().max()) <= 40 * 1e-3


def test_places_lie_in_their_sections():
    seen = []

    class Ramp(Fog):
        def density(self, points):
            seen.append(points.norm(dim=-1).view(5, 8))
            return super().density(points)

    render_rays(Ramp(1.0, (0.0, 0.0, 0.0)), *rays(), 1.0, 3.0, 8)
    torch.testing.assert_close(
        seen[0], (1.125 + 0.25 * torch.arange(8, dtype=torch.float64)).expand(5, 8)
    )
    render_rays(Ramp(1.0, (0.0, 0.0, 0.0)), *rays(), 1.0, 3.0, 8, generator=generator())
    section = ((seen[1] - 1) / 0.25).floor()
    assert torch.equal(section, torch.arange(8, dtype=torch.float64).expand(5, 8))
    assert float(seen[1].std(0).min()) > 0.01


def test_grid_is_trilinear_with_axes_in_order():
    torch.manual_seed(0)
    field = VoxelRadianceField(5, 3, 8, alpha=0.1, gain=2.0).double()
    torch.nn.init.normal_(field.raw)
    points = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    axis = np.linspace(-1, 1, 5)
    raw = RegularGridInterpolator([axis] * 3, field.raw.detach().numpy()[0, 0])(points)
    # softplus of the start is the density whose opacity over one voxel, 1/2 long, is 0.1.
    start = math.log(math.exp(-math.log(0.9)) - 1)
    expected = np.log1p(np.exp(2 * raw + start)) / 0.5
    with torch.no_grad():
        np.testing.assert_allclose(field.density(torch.from_numpy(points)), expected, rtol=1e-12)
        outside = torch.tensor([[1.01, 0, 0], [0, 0, -2.0], [0, 0, 1.0]]).double()
        assert (field.density(outside) > 0).tolist() == [False, False, True]
        nodes = torch.from_numpy(points)
        dirs = torch.nn.functional.normalize(torch.randn(50, 3).double(), dim=1)
        grid = np.moveaxis(field.features.numpy()[0], 0, -1)
        seen = RegularGridInterpolator([axis] * 3, grid)(points)
        y = torch.from_numpy(np.concatenate([seen, dirs.numpy()], 1))
        density, colour = field(nodes, dirs)
        torch.testing.assert_close(colour, torch.sigmoid(field.mlp(y)))
        torch.testing.assert_close(density, field.density(nodes))


def test_an_untrained_voxel_has_the_opacity_it_starts_with():
    field = VoxelRadianceField(40, 8, 64)
    sigma = float(field.density(torch.zeros(1, 3)).detach())
    assert 1 - math.exp(-sigma * 2 / 39) == pytest.approx(0.01, rel=1e-5)
    assert count_macs(field.mlp, torch.zeros(1, 11)) == 11 * 64 + 64 * 64 + 64 * 3


def test_the_scene_by_torchs_renderer():
    origins, dirs = scene.camera(1.0, 0.4, 6)
    assert np.allclose(np.linalg.norm(origins, axis=1), scene.DISTANCE)
    exact = scene.render(origins, dirs, 24)
    assert exact.min() >= 0 and exact.max() <= 1 and exact.std() > 0.1
    found = render_rays(
        demo._Known(), torch.tensor(origins), torch.tensor(dirs), scene.NEAR, scene.FAR, 24
    )
    np.testing.assert_allclose(found, exact, atol=1e-13)
    views = scene.orbit(2, 6, 24)
    assert views.images.shape == (2, 6, 6, 3)
    np.testing.assert_array_equal(views.images[1, 2, 3], views.colours[1, 15])


def test_crops_are_squares_of_one_picture():
    for seed in range(20):
        places = demo.crop(3, 8, 4, generator(seed))
        view, row, col = places // 64, places // 8 % 8, places % 8
        assert len(set(view.tolist())) == 1
        assert torch.equal(row.view(4, 4), row[0] + torch.arange(4)[:, None].expand(4, 4))
        assert torch.equal(col.view(4, 4), col[0] + torch.arange(4).expand(4, 4))


def test_a_field_learns_by_the_loss():
    data = demo.make_data(0, 16)
    assert float(np.abs(data.noisy.colours - data.clean.colours).std()) > 0.05
    assert data.noisy.colours.min() >= 0 and data.noisy.colours.max() <= 1
    options = {"patch": 16, "samples": 16}
    run = demo.train(data.clean, data.unseen, 0, 0.1, steps=60, **options)
    assert run.images.shape == (6, 16, 16, 3)
    short = [demo.train(data.clean, data.unseen, 0, 0.1, steps=2, **options) for _ in range(2)]
    assert short[0].losses == short[1].losses
    assert np.mean(run.losses[-5:]) < 0.5 * np.mean(run.losses[:5])
    blank = np.ones_like(data.unseen.images[0])
    assert run.psnr > np.mean([psnr(blank, truth) for truth in data.unseen.images])


# ------------------------------------------------------------------------------------- bad input


RAYS = torch.rand(64, 3, generator=generator())


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: s3im(RAYS, RAYS), r"64 rays, and patch_shape=\(64, 64\) holds 4096"),
        (lambda: small(RAYS, RAYS[:32]), r"\(64, 3\) and target \(32, 3\): must both"),
        (lambda: small(RAYS[:, :2], RAYS[:, :2]), "for other channels than colours set channels"),
        (lambda: small(RAYS, RAYS, repeats=0), "repeats=0: must be an int of at least 1"),
        (lambda: small(RAYS, RAYS, stride=0), "stride=0: must be an int of at least 1"),
        (lambda: small(RAYS, RAYS, kernel_size=1), "kernel_size=1: must be an int from 2 to 8"),
        (lambda: small(RAYS, RAYS, kernel_size=9), "kernel_size=9: must be an int from 2 to 8"),
        (lambda: small(RAYS, RAYS, layout="rows"), "layout='rows': must be one of official"),
        (lambda: small(RAYS / 0, RAYS), "pred has infinities or NaNs"),
        (lambda: small(RAYS, RAYS * math.nan), "target has infinities or NaNs"),
        (lambda: s3im(RAYS, RAYS, patch_shape=64), r"patch_shape=64: must be .height, width"),
        (lambda: S3IMLoss(patch_shape=(4, 4, 4)), r"patch_shape=\(4, 4, 4\): must be"),
        (lambda: S3IMLoss(-1.0), "weight=-1.0: must be finite and not negative"),
        (lambda: S3IMLoss(kernel_size=65), "kernel_size=65: must be an int from 2 to 64"),
        (lambda: ssim_map(RAYS, RAYS, gaussian_window(3)), "must be one, .batch, channels"),
        (
            lambda: ssim_map(*torch.rand(2, 1, 1, 4, 9), gaussian_window(5)),
            "a window of 5 x 5 does not fit images of 4 x 9 with 0 zeros",
        ),
        (
            lambda: ssim_map(*torch.rand(2, 1, 1, 4, 9), gaussian_window(3), 1, -1),
            "padding=-1: must be an int and not negative",
        ),
        (lambda: VoxelRadianceField(1), "grid=1: must be at least 2"),
        (lambda: VoxelRadianceField(4, 0), "feat=0: must be an int of at least 1"),
        (lambda: VoxelRadianceField(4, alpha=1.0), "alpha=1.0: must be between 0 and 1"),
        (lambda: VoxelRadianceField(4, gain=0.0), "gain=0.0: must be positive"),
        (lambda: render_rays(None, RAYS, RAYS[:3], 0, 1, 4), r"dirs \(3, 3\): must both"),
        (lambda: render_rays(None, RAYS, RAYS, 2, 1, 4), "near=2, far=1: must be 0 <= near < far"),
        (lambda: render_rays(None, RAYS, 3 * RAYS, 0, 1, 4), "must be unit vectors"),
        (lambda: render_rays(None, *rays(), 0, 1, 0), "n_samples=0: must be an int"),
        (lambda: render_rays(None, *rays(), 0, 1, 4, threshold=1.0), "threshold=1.0: must be at"),
        (lambda: render_rays(None, *rays(), 0, 1, 4, background=2.0), "background=2.0: must be a"),
    ),
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bytes_are_refused_and_other_ranges_warned_of():
    whole = (255 * RAYS).to(torch.uint8)
    with pytest.raises(TypeError, match=r"pred has dtype torch.uint8: .*divide bytes by 255"):
        small(whole, whole)
    with pytest.warns(UserWarning, match=r"pred reaches from .* SSIM's constants are for \[0, 1\]"):
        small(255 * RAYS, RAYS)
