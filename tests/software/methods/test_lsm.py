"""LSM: the block by loops, patches, the series, padding, fields on points, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sat.methods.lsm import (
    LSM,
    FieldNormalizer,
    LSM3d,
    NeuralSpectralBlock,
    PointLSM,
    PointProjection,
    darcy_samples,
    demo,
    relative_l2,
)

SMALL = {"d_model": 4, "heads": 2, "patch": (1, 1)}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------------- the block


@settings(max_examples=8)
@given(
    heads=st.sampled_from([1, 2, 4]),
    tokens=st.integers(1, 3),
    basis=st.integers(1, 4),
    patch=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    frequency=st.sampled_from(["fraction", "harmonic"]),
    seed=st.integers(0, 99),
)
def test_block_is_its_loops(heads, tokens, basis, patch, frequency, seed):
    torch.manual_seed(seed)
    block = NeuralSpectralBlock(4, basis, patch, tokens, heads, frequency).double()
    x = randn(1, 4, 2 * patch[0], patch[1], seed=seed)
    got = block(x).detach().numpy()
    np.testing.assert_allclose(got, demo.block_by_loops(block, x.numpy()), rtol=0, atol=1e-12)


def test_the_demos_block_difference_is_rounding():
    assert demo.block_difference(3) < 1e-14


def test_patches_are_separate_and_share_weights():
    """A block on one patch alone gives what it gives there on a whole field, in 2-D and 3-D."""
    for patch, grid in (((2, 3), (6, 9)), ((2, 1, 3), (4, 3, 6))):
        torch.manual_seed(1)
        block = NeuralSpectralBlock(4, 3, patch, heads=2).double()
        x = randn(2, 4, *grid)
        whole = block(x)
        at = tuple(slice(p, 2 * p) for p in patch)
        torch.testing.assert_close(whole[(..., *at)], block(x[(..., *at)]), rtol=0, atol=1e-14)
        shares = block.attention(x)
        assert shares.shape == (2, 8, *grid)
        inside = shares[(..., *at)].flatten(2).sum(-1)
        torch.testing.assert_close(inside, torch.ones_like(inside))


def test_attention_is_torchs_own_without_its_scale():
    torch.manual_seed(2)
    block = NeuralSpectralBlock(6, 2, (2, 2), num_token=3, heads=3).double()
    x = randn(5, 6, 4)
    both = block.encoder(x).view(5, 3, 2, 2, 4)
    keys, values = both[:, :, :, 0].mT, both[:, :, :, 1].mT
    query = block.token.expand(5, 3, 3, 2)
    z = functional.scaled_dot_product_attention(query, keys, values, scale=1.0) + query
    z = z.mT.reshape(5, 6, 3)
    torch.testing.assert_close(block.encode(x), z)
    asked = block.decoder(x).view(5, 3, 2, 4).mT
    tokens = z.view(5, 3, 2, 3).mT
    read = functional.scaled_dot_product_attention(asked, tokens, tokens, scale=1.0)
    torch.testing.assert_close(block.decode(x, z), x + read.mT.reshape(5, 6, 4))


def test_the_series_has_its_frequencies():
    """One weight alone: sines come first, frequencies are fractions of π or integers."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 9)
    for frequency, step in (("fraction", math.pi / 3), ("harmonic", 1.0)):
        block = NeuralSpectralBlock(1, 3, (1, 1), 9, 1, frequency).double()
        for place in range(6):
            with torch.no_grad():
                block.weight.zero_()
                block.weight[0, place] = 0.7
            wave = torch.sin if place < 3 else torch.cos
            expected = z + 0.7 * wave(place % 3 * step * z)
            torch.testing.assert_close(block.solve(z), expected)


def test_harmonics_reach_what_fractions_of_pi_do_not():
    harmonic = [demo.series_error(n, "harmonic") for n in (4, 8, 16, 32)]
    assert all(b < 0.2 * a for a, b in zip(harmonic, harmonic[1:], strict=False))
    assert harmonic[-1] < 1e-7
    fraction = [demo.series_error(n, "fraction") for n in (16, 32)]
    assert 0.9 < fraction[1] / fraction[0] < 1 and fraction[1] > 4e-3


def test_cost_is_linear_in_the_points():
    assert demo.block_macs(64) == 4 * demo.block_macs(32) > 0


def test_initialisation():
    torch.manual_seed(0)
    block = NeuralSpectralBlock(64, 12, (2, 2), heads=8)
    for parameter in (block.token, block.weight):
        low, high = (float(end) for end in parameter.detach().aminmax())
        assert low >= 0 and high < 1 / 64
        assert float(parameter.detach().mean()) == pytest.approx(1 / 128, rel=0.1)


# ----------------------------------------------------------------------------------- the model


def test_model_has_the_papers_channels():
    model = LSM(1, 1, patch=(6, 6), padding=(11, 11))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 4}
    doubles = [
        ("first", 64, 64, 64), ("down.0.1", 64, 128, 128), ("down.1.1", 128, 256, 256),
        ("down.2.1", 256, 512, 512), ("down.3.1", 512, 512, 512), ("up.0.conv", 1024, 512, 256),
        ("up.1.conv", 512, 256, 128), ("up.2.conv", 256, 128, 64), ("up.3.conv", 128, 64, 64),
    ]  # fmt: skip
    for name, source, middle, target in doubles:
        assert shapes.pop(f"{name}.0.weight") == (middle, source, 3, 3)
        assert shapes.pop(f"{name}.3.weight") == (target, middle, 3, 3)
    assert shapes == {"out.weight": (64, 64, 1, 1)}
    assert [block.width for block in model.blocks] == [64, 128, 256, 512, 512]
    model = LSM(1, 1, 8, patch=(2, 2), padding=(1, 1), heads=4)
    assert sum(p.numel() for p in model.parameters()) == 306_945


def test_padding_is_at_the_end_of_its_own_axis_and_is_cut_off():
    """An axis without padding keeps all of its points; the padded model is one on a larger grid."""
    torch.manual_seed(0)
    model = LSM(2, 1, padding=(0, 3), **SMALL).double().eval()
    x = randn(2, 16, 13, 2)
    seen = []
    model.first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert model(x).shape == (2, 16, 13, 1)
    torch.testing.assert_close(model.finest(x), model.first(seen[0]))
    assert seen[0].shape == (2, 4, 16, 16)
    assert not seen[0][..., 13:].any() and seen[0][:, :, -1, :13].all()
    coordinates = torch.stack(
        torch.meshgrid(
            torch.linspace(0, 1, 16).double(), torch.linspace(0, 1, 13).double(), indexing="ij"
        ),
        -1,
    )
    lifted = model.lift(torch.cat([x, coordinates.expand(2, 16, 13, 2)], -1))
    torch.testing.assert_close(seen[0][..., :13], lifted.permute(0, 3, 1, 2))


def test_without_blocks_it_is_its_unet():
    torch.manual_seed(0)
    model = LSM(1, 1, **SMALL)
    bare = LSM(1, 1, spectral=False, **SMALL)
    missing = model.load_state_dict(bare.state_dict(), strict=False)
    assert missing.missing_keys and all(k.startswith("blocks.") for k in missing.missing_keys)
    assert not missing.unexpected_keys
    x = torch.randn(2, 16, 16, 1)
    with torch.no_grad():
        assert float((model.eval()(x) - bare.eval()(x)).abs().max()) > 1e-3


def test_odd_scales_and_three_dimensions():
    model = LSM3d(2, 1, 4, patch=(1, 2, 1), padding=(0, 3, 1), heads=2, num_basis=2)
    out = model(torch.randn(2, 16, 29, 15, 2))
    assert out.shape == (2, 16, 29, 15, 1)
    out.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    with pytest.raises(ValueError, match="must have 3 axes; use LSM for 2"):
        LSM3d(1, 1, patch=(2, 2), padding=(0, 0))


def test_it_learns_and_statistics_are_the_training_sets():
    a, u = darcy_samples(24, 15, 1)
    options = demo.MODEL | {"patch": (1, 1)}
    tests = a[20:], u[20:]
    trained = demo.train(a[:20], u[:20], tests, 0, epochs=25, options=options)
    assert len(trained.errors) == 5
    torch.testing.assert_close(trained.outputs.mean, u[:20].mean(0))
    on_training = float(relative_l2(trained(a[:20]), u[:20]).mean())
    blind = float(relative_l2(u[:20].mean(0).expand(20, -1, -1), u[:20]).mean())
    assert on_training < 0.8 * blind
    assert trained.errors[-1] == float(relative_l2(trained(tests[0]), tests[1]).mean())


# --------------------------------------------------------------------- statistics, fields on points


def test_normaliser_against_numpy():
    x = randn(7, 3, 4)
    normal = FieldNormalizer(x)
    expected = (x.numpy() - x.numpy().mean(0)) / (x.numpy().std(0, ddof=1) + 1e-5)
    np.testing.assert_allclose(normal.encode(x).numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(normal.decode(normal.encode(x)), x)
    constant = torch.cat([x, torch.ones(7, 3, 1)], -1)
    assert bool(FieldNormalizer(constant).encode(constant).isfinite().all())


def test_projection_is_exact_on_what_it_keeps():
    """A field of low modes, from a uniform grid to scattered points and back."""
    axis = torch.arange(12, dtype=torch.float64) / 12
    grid = torch.cartesian_prod(axis, axis)[None]
    points = torch.rand(1, 40, 2, dtype=torch.float64)

    def field(at):
        x, y = 2 * math.pi * at[..., 0], 2 * math.pi * at[..., 1]
        return torch.stack([1 + torch.sin(2 * x) * torch.cos(y), torch.cos(x - 2 * y + 1)], -1)

    project = PointProjection(2, 2, 3, "identity")
    torch.testing.assert_close(project(field(grid), grid, points), field(points))
    high = torch.cos(2 * math.pi * 3 * grid[..., :1]).expand(-1, -1, 2)
    assert float(project(high, grid, points).abs().max()) < 1e-12


def test_projections_weights_are_a_convolution():
    """Learned weights multiply modes: against numpy's FFT."""
    torch.manual_seed(0)
    project = PointProjection(2, 3, 3).double()
    axis = torch.arange(8, dtype=torch.float64) / 8
    grid = torch.cartesian_prod(axis, axis)[None]
    u = randn(1, 64, 2)
    got = project(u, grid, grid)[0].detach().numpy().reshape(8, 8, 3)
    spectrum = np.fft.fft2(u[0].numpy().reshape(8, 8, 2), axes=(0, 1))
    mixed = np.zeros((8, 8, 3), complex)
    a, b = project.weight.detach().numpy()
    for place, (k1, k2) in enumerate(project.waves.int().tolist()):
        mixed[k1, k2] = spectrum[k1, k2] @ (a + 1j * b)[place]
        if (k1, k2) != (0, 0):
            mixed[-k1, -k2] = mixed[k1, k2].conj()
    expected = np.fft.ifft2(mixed, axes=(0, 1)).real
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_point_model():
    torch.manual_seed(0)
    model = PointLSM(2, 1, grid=16, modes=3, **SMALL).double().eval()
    u, points = randn(2, 30, 2), torch.rand(2, 30, 2).double()
    out = model(u, points)
    assert out.shape == (2, 30, 1)
    # The order of the points is of no account.
    order = torch.randperm(30)
    torch.testing.assert_close(model(u[:, order], points[:, order]), out[:, order])
    with pytest.raises(ValueError, match="reach from .* must lie within"):
        model(u, points + 1)
    with pytest.raises(ValueError, match="u has shape"):
        model(u, points[:1])
    with pytest.raises(ValueError, match="modes=9: must be at most half of grid=16"):
        PointLSM(1, 1, grid=16, modes=9)


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3}, "heads=3: must divide width=8"),
        ({"num_basis": 0}, "num_basis=0: must be an int of at least 1"),
        ({"num_token": 0}, "num_token=0"),
        ({"patch": (2,)}, "must have 2 or 3 axes"),
        ({"patch": (2, 0)}, r"patch\[1\]=0"),
        ({"frequency": "octave"}, "frequency='octave'"),
    ],
)
def test_bad_blocks(arguments, message):
    with pytest.raises(ValueError, match=message):
        NeuralSpectralBlock(**{"width": 8, "heads": 4, **arguments})


def test_bad_fields():
    block = NeuralSpectralBlock(4, patch=(2, 3), heads=2)
    with pytest.raises(ValueError, match="channels come second"):
        block(torch.zeros(1, 3, 4, 6))
    with pytest.raises(ValueError, match="axis 1 of the grid has 7 points: .*; pad it by 2"):
        block(torch.zeros(1, 4, 4, 7))
    with pytest.raises(ValueError, match="must be real"):
        block(torch.zeros(1, 4, 4, 6, dtype=torch.complex64))
    model = LSM(1, 1, 8, patch=(2, 3), padding=(1, 3), heads=4)
    for shape, message in (
        ((1, 32, 45, 1), "axis 0 has 32 points and 1 of padding, 33: .*; make its padding 0"),
        ((1, 31, 44, 1), "axis 1 has 44 points and 3 of padding, 47: .* 48 = 16 x 3, .* padding 4"),
        ((1, 31, 45, 2), "must be .*channels last"),
        ((31, 45, 1), "must be .*channels last"),
    ):
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match="must be real"):
        model(torch.zeros(1, 31, 45, 1, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"padding\[1\]=-1: must be an int of at least 0"):
        LSM(1, 1, 8, padding=(0, -1))
    with pytest.raises(ValueError, match="as many axes"):
        LSM(1, 1, 8, padding=(0,))
    with pytest.raises(ValueError, match="at least 2 samples"):
        FieldNormalizer(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="eps=0: must be positive"):
        FieldNormalizer(torch.zeros(2, 4), 0)
    with pytest.raises(ValueError, match="must be real"):
        FieldNormalizer(torch.zeros(2, 4, dtype=torch.complex64))
    with pytest.raises(ValueError, match="weight='none'"):
        PointProjection(1, 1, 2, "none")
    with pytest.raises(ValueError, match="target=2: must equal source=1"):
        PointProjection(1, 2, 2, "identity")
