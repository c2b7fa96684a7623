"""DRIFT-Net: bands and masks, the spectral branch, blocks, network, losses, the flow's solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.methods.drift_net import (
    ConditionalLayerNorm,
    ConvBlock,
    DriftBlock,
    DriftNet,
    RadialBandGate,
    SpectralMixing,
    WindowAttentionBlock,
    demo,
    frequency_weighted_loss,
    low_modes,
    navier_stokes_2d,
    radial_bands,
    relative_lp_error,
    rollout,
)
from sat.methods.drift_net.blocks import DropPath
from sat.methods.problems.navier_stokes import evolve, random_vorticity

SMALL = {"patch": 2, "dim": 4, "depths": (2, 1), "skips": (1,)}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------- bands and masks


@settings(max_examples=15)
@given(half=st.integers(1, 10), wide=st.integers(1, 10), bands=st.integers(1, 7))
def test_bands_and_masks_know_both_signs_of_a_wave(half, wide, bands):
    height, width = 2 * half, 2 * wide
    band, low = radial_bands(height, width, bands), low_modes(height, width, 0.56)
    assert band.shape == low.shape == (height, wide + 1)
    for row in range(height):
        k = row if row <= half else row - height
        for col in range(wide + 1):
            radius = math.hypot(k / half, col / wide) / math.sqrt(2)
            edge = radius * bands
            assert int(band[row, col]) in {min(int(edge + e), bands - 1) for e in (-1e-9, 1e-9)}
            assert bool(low[row, col]) == (
                abs(k) < int(0.56 * (half + 1)) and col < int(0.56 * (wide + 1))
            )


def test_the_released_codes_masks():
    """Rows up to a fraction of all, so wave number -1 is high; radii of row numbers."""
    low = low_modes(8, 8, 0.5, "official")
    assert low.nonzero().tolist() == [[i, j] for i in range(4) for j in range(2)]
    band = radial_bands(8, 8, 4, "official")
    assert (
        int(band[7, 4]) == 3 and int(band[7, 0]) == int(4 / math.sqrt(2)) and int(band[0, 0]) == 0
    )


def test_gates_are_means_of_bands_through_a_perceptron():
    torch.manual_seed(0)
    gate = RadialBandGate(6, 8, 3, 5).double()
    amplitude = randn(2, 3, 30).abs()
    bands = radial_bands(6, 8, 3).flatten()
    means = torch.stack([amplitude[..., bands == b].mean(-1) for b in range(3)], -1)
    alpha = gate.mlp(means)
    torch.testing.assert_close(gate(amplitude), alpha[..., bands])
    assert float(gate(amplitude).detach().min()) > 0 and float(gate(amplitude).detach().max()) < 1


# -------------------------------------------------------------------------- the spectral branch


@pytest.mark.parametrize("compat", (None, "official"))
@pytest.mark.parametrize("size", (8, (6, 10)))
def test_branch_mode_by_mode(compat, size):
    """Every mode by numpy's whole transform: α W x̂ where it is low, (1 - α) x̂ elsewhere."""
    torch.manual_seed(1)
    mixing = SpectralMixing(3, size, 4, 16, compat=compat).double()
    with torch.no_grad():
        mixing.weight.mul_(30)
    height, width = mixing.grid
    x = randn(2, 3, height, width)
    spectrum = np.fft.rfft2(x.numpy()) / (height * width)
    low = low_modes(height, width, 1 / (1 + math.exp(-0.25)), compat).numpy()
    bands = radial_bands(height, width, 4, compat).numpy()
    w = torch.view_as_complex(mixing.weight.detach()).numpy()
    gates = mixing.gates(x).detach().numpy()
    fused = np.zeros_like(spectrum)
    for b, i, j in np.ndindex(2, height, width // 2 + 1):
        alpha = gates[b, :, bands[i, j]]
        mode = spectrum[b, :, i, j]
        fused[b, :, i, j] = alpha * (w @ mode) if low[i, j] else (1 - alpha) * mode
    expected = np.fft.irfft2(fused * height * width, (height, width))
    np.testing.assert_allclose(mixing(x).detach().numpy(), expected, atol=1e-13)


@settings(max_examples=10)
@given(shift=st.tuples(st.integers(-8, 8), st.integers(-8, 8)), seed=st.integers(0, 9))
def test_shifts_pass_through(shift, seed):
    torch.manual_seed(seed)
    block = DriftBlock(4, 8, init="identity", time_conditioning=False).double()
    x = randn(2, 8, 8, 4, seed=seed)
    torch.testing.assert_close(block(x.roll(shift, (1, 2))), block(x).roll(shift, (1, 2)))


def test_identity_and_gates_of_one_half_halve_a_field():
    torch.manual_seed(0)
    mixing = SpectralMixing(3, 8).double()
    with torch.no_grad():
        demo._halve(mixing)
        x = randn(2, 3, 8, 8)
        torch.testing.assert_close(mixing(x), x / 2)
    whole = torch.fft.fft2(x, norm="forward")
    torch.testing.assert_close(
        whole.abs().square().sum((2, 3)), x.square().mean((2, 3)), rtol=1e-12, atol=0
    )


def test_teacher_compares_gates_of_what_is_missing():
    torch.manual_seed(0)
    mixing = SpectralMixing(3, 8).double()
    x, truth = randn(2, 3, 8, 8), randn(2, 3, 8, 8, seed=1)
    assert float(mixing.teacher_loss(x, 2 * x).detach()) == pytest.approx(0, abs=1e-30)
    missing = mixing.gate(torch.fft.rfft2(truth - x, norm="forward").flatten(2).abs())
    own = mixing.gate(torch.fft.rfft2(x, norm="forward").flatten(2).abs())
    wanted = (own.mean(-1) - missing.mean(-1)).square().mean()
    torch.testing.assert_close(mixing.teacher_loss(x, truth), wanted)


# ------------------------------------------------------------------------------ blocks, network


def test_norms_are_within_the_residual_sums():
    torch.manual_seed(0)
    block = DriftBlock(4, 8).double()
    x, time = randn(2, 8, 8, 4), torch.tensor([0.2, 0.7], dtype=torch.float64)

    def norm(layer, y):
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        parts = [p(time[:, None])[:, None, None] for p in (layer.scale, layer.shift)]
        return y * parts[0] + parts[1]

    first = x.permute(0, 3, 1, 2)
    mixed = (block.spectral(first) + block.local(first)).permute(0, 2, 3, 1) + block.linear(x)
    y = x + norm(block.mix_norm, mixed)
    y = y + norm(block.mlp_norm, block.mlp(y))
    torch.testing.assert_close(block(x, time), y)
    with pytest.raises(ValueError, match=r"time has shape None: must be \(2,\)"):
        block(x)


@pytest.mark.parametrize("shift", (0, 2))
@pytest.mark.parametrize("periodic", (True, False))
def test_window_attention_point_by_point(shift, periodic):
    torch.manual_seed(0)
    block = WindowAttentionBlock(
        6, 8, heads=3, window=4, shift=shift, periodic=periodic, time_conditioning=False
    ).double()
    x = randn(1, 8, 8, 6)
    q, k, v = (layer(x[0]).detach() for layer in (block.query, block.key, block.value))
    out = torch.zeros(8, 8, 6, dtype=torch.float64)
    home = [(i - shift) % 8 // 4 for i in range(8)]
    wraps = [(i - shift) % 8 >= 8 - shift for i in range(8)]
    for i, j in np.ndindex(8, 8):
        near = [
            (a, b) for a, b in np.ndindex(8, 8)
            if home[a] == home[i] and home[b] == home[j]
            and (periodic or (wraps[a] == wraps[i] and wraps[b] == wraps[j]))
        ]  # fmt: skip
        for h in range(3):
            part = slice(2 * h, 2 * h + 2)
            logits = []
            for a, b in near:
                cosine = torch.cosine_similarity(q[i, j, part], k[a, b, part], dim=0)
                off = [
                    8 * (((at - shift) % 8) - ((to - shift) % 8)) / 3 for at, to in ((i, a), (j, b))
                ]
                log = [math.copysign(math.log2(abs(d) + 1) / 3, d) for d in off]
                bias = block.bias(torch.tensor(log, dtype=torch.float64))[h].detach()
                logits.append(10 * cosine + 16 * torch.sigmoid(bias))
            weights = torch.softmax(torch.stack(logits), 0)
            out[i, j, part] = sum(
                w * v[a, b, part] for w, (a, b) in zip(weights, near, strict=True)
            )
    torch.testing.assert_close(block.mix(x)[0], block.out(out), rtol=1e-6, atol=1e-6)


def test_network_of_every_block():
    for block in (None, demo._attention, demo._convolution):
        torch.manual_seed(0)
        model = DriftNet(2, 2, 16, block=block, increment=True, **SMALL | {"dim": 6})
        x = torch.randn(3, 2, 16, 16)
        out = model(x, torch.tensor([0.0, 0.5, 1.0]))
        assert out.shape == x.shape
        out.square().sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
        untimed = DriftNet(2, 1, 16, time_conditioning=False, **SMALL)
        assert untimed(x).shape == (3, 1, 16, 16)


def test_merging_and_unmerging_are_where_they_belong():
    """A network of a single stage has neither; one of two adds the stage's input before merging."""
    torch.manual_seed(0)
    model = DriftNet(1, 1, 16, time_conditioning=False, block=demo._convolution, **SMALL).double()
    seen = {}
    for name in ("merge.0", "unmerge.0", "encoder.0.0", "encoder.0.1", "decoder.0.0"):
        model.get_submodule(name).register_forward_hook(
            lambda _, given, out, name=name: seen.update({name: (given[0], out)})
        )
    model(randn(1, 1, 16, 16))
    before, after = seen["encoder.0.0"][0], seen["encoder.0.1"][1]
    torch.testing.assert_close(seen["merge.0"][0], before + after)
    skip = model.skips[0][0](after, None)
    torch.testing.assert_close(seen["decoder.0.0"][0], seen["unmerge.0"][1] + skip)
    assert seen["merge.0"][1].shape == (1, 4, 4, 8) and seen["unmerge.0"][1].shape == (1, 8, 8, 4)


def test_paths_are_dropped_by_sample_and_kept_in_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 3)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(out.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(out[:, 0], out[:, 2]) and torch.equal(drop.eval()(x), x)


# ------------------------------------------------------------------------- losses and forecasts


def test_loss_of_a_single_wave():
    """An error of cos(k·x) has two modes of 1/2 each, of which rfft2 keeps one if ky > 0."""
    n, zero = 16, torch.zeros(1, 1, 16, 16)
    x = torch.arange(n) * (2 * math.pi / n)
    wave = torch.cos(3 * x[:, None] + 4 * x)[None, None]
    share = 0.25 * (5 / math.hypot(8, 8)) ** 1.5 / (n * (n // 2 + 1))
    got = frequency_weighted_loss(wave, zero, weight=0.3)
    assert float(got) == pytest.approx(float(wave.abs().mean()) + 0.3 * share, rel=1e-6)
    assert float(frequency_weighted_loss(wave, zero, "mse", 0.0)) == pytest.approx(0.5)
    two = torch.cat([wave, 3 * wave], 1)
    assert float(frequency_weighted_loss(1.5 * two, two, "relative", 0.0)) == pytest.approx(0.5)


def test_errors_and_rollout():
    u = torch.tensor([[[1.0, -3.0]], [[2.0, 2.0]]])
    e = torch.tensor([[[0.5, 0.5]], [[0.0, 1.0]]])
    assert relative_lp_error(u + e, u).tolist() == [0.25, 0.25]
    assert relative_lp_error(u + e, u, 2).tolist() == pytest.approx(
        [math.sqrt(0.5 / 10), math.sqrt(1 / 8)]
    )
    out = rollout(lambda x: 2 * x, u, 3)
    assert torch.equal(out, torch.stack([2 * u, 4 * u, 8 * u], 1))
    with pytest.raises(RuntimeError, match="step 2 of 3: the forecast is not finite"):
        rollout(lambda x: torch.where(x > 1, math.nan, x + 1), torch.ones(1, 1), 3)


def test_training_forecasts_better_than_it_began():
    data = demo.flows(6, 3)
    few = [demo.train("DRIFT", data[:4], data[4:], 0, updates) for updates in (2, 25)]
    assert few[1].errors[0] < 0.8 * few[0].errors[0]
    torch.testing.assert_close(
        torch.tensor(few[1].errors[0]),
        relative_lp_error(few[1].forecast[:, 0], data[4:, 1]).double().mean(),
        rtol=1e-5, atol=0,
    )  # fmt: skip


# ------------------------------------------------------------------------------------- the flow


def test_taylor_green_vortices_decay_as_they_should():
    x = 2 * np.pi * np.arange(32) / 32
    w = 2 * np.cos(2 * x[:, None]) * np.cos(2 * x)
    out = evolve(w[None], 0.5, viscosity=0.1, step=0.05)
    np.testing.assert_allclose(out[0], w * np.exp(-0.1 * 8 * 0.5), atol=1e-13)


def test_driven_waves_grow_to_forcing_over_viscosity():
    """A wave along one axis moves nothing: ω(t) = f / (ν k²) (1 - e^(-ν k² t)), order 4 in h."""
    y = 2 * np.pi * np.arange(16) / 16
    force, rate = 3 * np.cos(2 * y), 0.5 * 4
    exact = force / rate * (1 - math.exp(-rate))
    errors = [
        np.abs(evolve(np.zeros((16, 16)), 1.0, viscosity=0.5, forcing=force, step=h) - exact).max()
        for h in (0.2, 0.1)
    ]
    assert errors[1] < 2e-5 and 3.9 < math.log2(errors[0] / errors[1]) < 4.1


def test_waves_are_carried_by_a_shear():
    """∂ω/∂t at 0 is -u·∇ω: by finite differences in time against derivatives by hand."""
    x = 2 * np.pi * np.arange(32) / 32
    a, b = np.cos(x)[:, None], np.sin(2 * x)[None]  # ψ = cos x + sin 2y, ω = cos x + 4 sin 2y
    w = a + 4 * b
    u, v = 2 * np.cos(2 * x)[None], np.sin(x)[:, None]  # ψ_y, -ψ_x
    slope = -(u * -np.sin(x)[:, None] + v * 8 * np.cos(2 * x)[None])
    h = 1e-3
    ahead = evolve(w, h, viscosity=0.0, step=h)
    np.testing.assert_allclose((ahead - w) / h, slope, rtol=0, atol=20 * h)


def test_energy_and_enstrophy_stay_without_viscosity():
    w = random_vorticity(2, 48, np.random.default_rng(0))
    # What dealiasing cuts off first is not of the flow.
    w = evolve(w, 1e-9, viscosity=0.0, step=1.0)
    out = evolve(w, 0.5, viscosity=0.0, step=0.02)
    assert np.abs(out - w).max() > 0.3
    np.testing.assert_allclose((out**2).mean((1, 2)), (w**2).mean((1, 2)), rtol=1e-6)
    assert w.std() == pytest.approx(0.7, rel=0.2)
    flows = navier_stokes_2d(2, 24, 2, 0.1, 1e-3, 0.1, 5)
    fine = random_vorticity(2, 48, np.random.default_rng(5))
    np.testing.assert_array_equal(flows[:, 0], fine[:, ::2, ::2])
    drive = 0.1 * np.cos(4 * 2 * np.pi * np.arange(48) / 48)
    ahead = evolve(fine, 0.1, viscosity=1e-3, forcing=drive, step=0.02)
    np.testing.assert_allclose(flows[:, 1], ahead[:, ::2, ::2], atol=1e-12)


# ----------------------------------------------------------------------------------- bad input

FIELD = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: SpectralMixing(4, 7), "resolution=7: must be even; pad"),
        (lambda: SpectralMixing(4, 8, low_fraction=0.0), r"low_fraction=0.0: must be in \(0, 1\]"),
        (lambda: SpectralMixing(4, 8, init="zero"), "init='zero': must be one of 'official'"),
        (lambda: SpectralMixing(4, 8, compat="theirs"), "compat='theirs': must be one of None"),
        (
            lambda: SpectralMixing(4, 8)(torch.zeros(1, 4, 16, 16)),
            "bands and mask are of this grid",
        ),
        (lambda: RadialBandGate(8, 8, 0), "num_bands=0: must be an int of at least 1"),
        (
            lambda: RadialBandGate(8, 8)(torch.zeros(1, 1, 30)),
            "30 modes: the gate's bands are of 40",
        ),
        (lambda: DriftNet(1, 1, 20, **SMALL), "image_size=20: must be a multiple of 8"),
        (lambda: DriftNet(1, 2, 16, increment=True, **SMALL), "out_ch=2: must equal in_ch=1"),
        (lambda: DriftNet(1, 1, 16, 2, 4, (1, 1), skips=()), "must have 1 numbers, one a path"),
        (lambda: DriftNet(1, 1, 16, **SMALL)(FIELD), r"input has shape \(1, 1, 8, 8\)"),
        (
            lambda: DriftNet(1, 1, 8, 2, 4, (1,))(FIELD.to(torch.complex64)),
            "input is torch.complex64: must be real",
        ),
        (lambda: DriftNet(1, 1, 8, 2, 4, (1,))(FIELD.int()), "input is torch.int32: must be real"),
        (
            lambda: DriftNet(1, 1, 8, 2, 4, (1,))(FIELD, torch.zeros(2)),
            r"time has shape \(2,\): must be \(1,\)",
        ),
        (lambda: WindowAttentionBlock(4, 8, heads=3), "heads=3: must divide dim=4"),
        (lambda: WindowAttentionBlock(3, 8, window=5), "window=5: must divide resolution=8"),
        (lambda: WindowAttentionBlock(3, 8, window=4, shift=4), "shift=4: must be in 0 … 3"),
        (lambda: WindowAttentionBlock(3, 8)(torch.zeros(1, 4, 4, 3), None), "must be 8²"),
        (lambda: ConvBlock(3, 8)(torch.zeros(1, 8, 8, 4)), r"must be \(batch, height, width, 3\)"),
        (lambda: DropPath(1.0), r"drop_path=1.0: must be in \[0, 1\)"),
        (lambda: frequency_weighted_loss(FIELD, FIELD[..., :4]), "must be one shape"),
        (lambda: frequency_weighted_loss(FIELD, FIELD, "l2"), "base='l2': must be one of l1, mse"),
        (lambda: relative_lp_error(FIELD, FIELD[..., :4]), "must be one shape"),
        (lambda: relative_lp_error(FIELD, FIELD, 0), "p=0: must be positive"),
        (lambda: rollout(lambda x: x, FIELD, 0), "steps=0: must be at least 1"),
        (lambda: evolve(np.zeros((7, 7)), 1, viscosity=1, step=1), r"shape \(7, 7\): must be"),
        (lambda: evolve(np.zeros((8, 8)), 0, viscosity=1, step=1), "time=0: must be positive"),
        (lambda: evolve(np.zeros((8, 8)), 1, viscosity=-1, step=1), "viscosity=-1: must not be"),
        (lambda: navier_stokes_2d(0, 8, 1, 1, 1, 1, 0), "n=0: must be an int of at least 1"),
        (
            lambda: navier_stokes_2d(1, 8, 1, 1, 1, 1, 0, solver_size=12),
            "solver_size=12: must be a multiple of size=8",
        ),
    ),
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_step_too_long_says_so():
    with (
        np.errstate(all="ignore"),
        pytest.raises(RuntimeError, match="step=1: too long, the flow is no longer finite"),
    ):
        evolve(1e4 * random_vorticity(1, 16, np.random.default_rng(0)), 9, viscosity=0, step=1)


def test_norms_without_time_are_torchs():
    norm = ConditionalLayerNorm(5, conditional=False)
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(norm(x, None), torch.nn.functional.layer_norm(x, (5,)))
