"""DCT and other bases, choice of columns, DCTAdamW and Trion against values by hand."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sat
from sat.methods.dct_lowrank import (
    DCTAdamW,
    Trion,
    basis_matrix,
    dct,
    dct_matrix,
    projection_error,
    select_columns,
    state_bytes,
    svd_error,
)
from sat.methods.dct_lowrank.feedback import decode, encode

BASES = ("dct2", "dct3", "random", "identity")


def matrix(rows, cols, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator, dtype=torch.float64).to(dtype)


def train(optimiser, shape=(7, 4), steps=6, value=None, gradients=None, **options):
    """A float64 parameter after steps along given or random gradients, and its optimiser."""
    weight = nn.Parameter(matrix(*shape, seed=99) if value is None else value.clone())
    optimizer = optimiser([weight], **options)
    for step in range(steps):
        weight.grad = matrix(*shape, seed=step) if gradients is None else gradients[step].clone()
        optimizer.step()
    return weight.detach(), optimizer


# ------------------------------------------------------------------------------------- bases


@pytest.mark.parametrize("n", range(1, 66))
def test_transforms_are_scipys(n):
    x = matrix(3, n, n)
    reference = scipy.fft.dct(x.numpy(), type=2, norm="ortho")
    np.testing.assert_allclose(dct(x).numpy(), reference, atol=1e-12)
    np.testing.assert_allclose((x @ basis_matrix("dct2", n)).numpy(), reference, atol=1e-12)
    reference = scipy.fft.dct(x.numpy(), type=3, norm="ortho")
    np.testing.assert_allclose((x @ basis_matrix("dct3", n)).numpy(), reference, atol=1e-12)
    for basis in BASES:
        d = basis_matrix(basis, n)
        np.testing.assert_allclose((d.mT @ d).numpy(), np.eye(n), atol=1e-13)
        assert basis_matrix(basis, n) is d


def test_transforms_at_their_ends():
    large = dct_matrix(1200)
    assert float((large @ large.mT - torch.eye(1200).double()).abs().max()) < 1e-13
    assert dct_matrix(5, torch.float32).dtype is torch.float32
    x = matrix(2, 3 * 8, dtype=torch.float32).reshape(2, 3, 8)
    np.testing.assert_allclose(
        dct(x).numpy(), scipy.fft.dct(x.numpy(), type=2, norm="ortho"), atol=1e-6
    )
    for bad in (torch.ones(3, dtype=torch.int64), torch.tensor(1.0), torch.empty(2, 0)):
        with pytest.raises(ValueError, match="must be"):
            dct(bad)
    for n in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="must be an int of at least 1"):
            dct_matrix(n)


# ----------------------------------------------------------------------------------- choices


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.sampled_from(BASES),
    st.sampled_from([1, 2]), st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_choice_is_the_best_and_keeps_its_share(rows, n, rank, basis, norm, seed):
    rank, a = min(rank, n), matrix(rows, n, seed)
    indices, low = select_columns(a, basis, rank, norm)
    d = basis_matrix(basis, n)
    s = a.numpy() @ d.numpy()
    scores = np.linalg.norm(s, norm, axis=0)
    assert indices.tolist() == sorted(set(indices.tolist())) and len(indices) == rank
    assert scores[indices.numpy()].sum() == pytest.approx(np.sort(scores)[::-1][:rank].sum())
    np.testing.assert_allclose(low.numpy(), s[:, indices.numpy()], atol=1e-12)
    p = d[:, indices]
    error = float((a - low @ p.mT).norm() / a.norm())
    assert projection_error(a, basis, rank, norm) == pytest.approx(error, abs=1e-7)
    if norm == 2:
        assert error**2 <= 1 - rank / n + 1e-12
    assert error >= svd_error(a, rank) - 1e-7
    u, values, v = np.linalg.svd(a.numpy())
    best = np.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
    assert svd_error(a, rank) == pytest.approx(best, abs=1e-12)


def test_choice_among_equals_is_the_first():
    indices, _ = select_columns(torch.ones(3, 6), "identity", 2)
    assert indices.tolist() == [0, 1]
    flat = torch.eye(4).double()
    assert projection_error(flat, "identity", 1, 2) == pytest.approx(math.sqrt(3 / 4))
    assert projection_error(torch.zeros(2, 2), "dct2", 1) == svd_error(torch.zeros(2, 2), 1) == 0
    # Norms 1 and 2 choose apart: many small entries against one large one.
    a = torch.tensor([[0.9, 2.0], [0.9, 0.0], [0.9, 0.0]])
    assert select_columns(a, "identity", 1, 1)[0].tolist() == [0]
    assert select_columns(a, "identity", 1, 2)[0].tolist() == [1]


# --------------------------------------------------------------------------------- optimiser


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (6,)])
@pytest.mark.parametrize("rank", [100, None])
def test_full_rank_in_the_identity_is_adamw(shape, rank):
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).view(shape)) for _ in "ab")
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    pair = (
        DCTAdamW([ours], rank=rank, basis="identity", **options),
        torch.optim.AdamW([theirs], **options),
    )
    for step in range(20):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        for weight, optimizer in zip((ours, theirs), pair, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_full_rank_is_adam_in_turned_coordinates(shape, basis):
    d = basis_matrix(basis, 4)

    def turn(x):
        return x @ d if shape == (7, 4) else d.mT @ x

    options = {"lr": 0.01, "weight_decay": 0.1}
    ours, _ = train(DCTAdamW, shape, 20, rank=4, basis=basis, **options)
    theirs, _ = train(
        torch.optim.AdamW, shape, 20, value=turn(matrix(*shape, seed=99)),
        gradients=[turn(matrix(*shape, seed=step)) for step in range(20)], **options,
    )  # fmt: skip
    torch.testing.assert_close(turn(ours), theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("transform", ["product", "fft"])
@pytest.mark.parametrize("residual", ["drop", "feedback", "sign"])
@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("gap", [1, 3])
@pytest.mark.parametrize("shape", [(6, 5), (5, 6)])
def test_steps_are_the_papers(shape, gap, rotate, residual, transform):
    """All of it in numpy, with the full coordinates and a mask in place of slots."""
    options = {"lr": 0.1, "weight_decay": 0.2, "betas": (0.7, 0.9), "eps": 1e-3}
    ours, optimizer = train(
        DCTAdamW, shape, 8, rank=2, gap=gap, rotate=rotate, residual=residual,
        transform=transform, **options,
    )  # fmt: skip
    w = matrix(*shape, seed=99).numpy()
    q = scipy.fft.dct(np.eye(5), type=2, norm="ortho", axis=0)
    w = w if shape == (6, 5) else w.T.copy()
    kept, m, v, slots = np.zeros((6, 5)), np.zeros((6, 2)), np.zeros((6, 2)), None
    for step in range(1, 9):
        g = matrix(*shape, seed=step - 1).numpy()
        a = (g if shape == (6, 5) else g.T) + (kept if residual == "feedback" else 0)
        w *= 1 - 0.1 * 0.2
        s = a @ q.T
        if step == 1 or step % gap == 0:
            new = sorted(np.argsort(-np.abs(s).sum(0), kind="stable")[:2])
            if step > 1 and rotate:
                r = q[slots] @ q[new].T
                m, v = m @ r, np.abs(v @ r)
            slots = new
        low, p = s[:, slots], q[slots]
        kept = a - low @ p
        m = 0.7 * m + 0.3 * low
        v = 0.9 * v + 0.1 * low**2
        root = math.sqrt(1 - 0.9**step)
        w -= 0.1 * root / (1 - 0.7**step) * (m / (1e-3 * root + np.sqrt(v))) @ p
        if residual == "sign":
            w -= 0.1 * np.sign(kept)
    np.testing.assert_allclose(ours.numpy(), w if shape == (6, 5) else w.T, rtol=1e-9, atol=1e-9)
    (parameter,) = optimizer.param_groups[0]["params"]
    energy = (low**2).sum() / (a**2).sum()
    assert optimizer.kept_energy[parameter] == pytest.approx(energy)


def test_svd_projector_by_hand():
    ours, optimizer = train(
        DCTAdamW, (6, 4), 5, rank=2, basis="svd", gap=2, lr=0.1, betas=(0.7, 0.9), eps=1e-3
    )
    w, m, v, p = matrix(6, 4, seed=99).numpy(), np.zeros((6, 2)), np.zeros((6, 2)), None
    for step in range(1, 6):
        a = matrix(6, 4, seed=step - 1).numpy()
        if step == 1 or step % 2 == 0:
            # Vectors by the eigenvalues of the Gram matrix; signs do not matter once turned.
            new = np.linalg.eigh(a.T @ a)[1][:, :-3:-1]
            if step > 1:
                m, v = m @ (p.T @ new), np.abs(v @ (p.T @ new))
            p = new
        low = a @ p
        m, v = 0.7 * m + 0.3 * low, 0.9 * v + 0.1 * low**2
        root = math.sqrt(1 - 0.9**step)
        w -= 0.1 * root / (1 - 0.7**step) * (m / (1e-3 * root + np.sqrt(v))) @ p.T
    np.testing.assert_allclose(ours.numpy(), w, rtol=1e-8, atol=1e-8)


def test_an_index_that_comes_late_takes_a_long_step():
    """Its first step is (1 - b1) / sqrt(1 - b2) = 3.2 rates."""
    early, late = torch.zeros(4, 4).double(), torch.zeros(4, 4).double()
    early[:, 0], late[:, 2] = 1, 1
    weight = nn.Parameter(torch.zeros(4, 4).double())
    optimizer = DCTAdamW([weight], 0.01, rank=1, basis="identity")
    weight.grad = early
    optimizer.step()
    optimizer.state[weight]["step"] = 20_000  # the corrections are 1 by then
    weight.grad = late
    optimizer.step()
    first = torch.full((4,), -0.01 * 0.1 / math.sqrt(1e-3), dtype=torch.float64)
    torch.testing.assert_close(weight.detach()[:, 2], first, rtol=1e-4, atol=0)
    assert optimizer.state[weight]["indices"].tolist() == [2]


@pytest.mark.parametrize("bits", [4, 8])
@given(rows=st.integers(1, 6), cols=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_codes_are_the_nearest(bits, rows, cols, seed):
    x = matrix(rows, cols, seed, torch.float32)
    saved = encode(x, bits)
    back = decode(saved, cols)
    steps = 255 if bits == 8 else 15
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    assert bool(((back - x).abs() <= (high - low) / steps * 0.5001 + 1e-7).all())
    for code in (low, high):
        assert bool(((back - code).abs().amin(1) <= 1e-6).all())
    assert saved["codes"].dtype is torch.uint8
    assert saved["codes"].numel() == (rows * cols if bits == 8 else (rows * cols + 1) // 2)
    flat = torch.full((2, 3), 0.7)
    assert torch.equal(decode(encode(flat, bits), 3), flat)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_feedback_is_kept_in_its_bits(bits):
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(32, 16))
    optimizer = DCTAdamW([weight], rank=4, residual="feedback", feedback_bits=bits)
    weight.grad = torch.randn(32, 16, generator=generator)
    optimizer.step()
    kept = optimizer.state[weight]["feedback"]
    kept = kept if bits is None else decode(kept, 16)
    indices, low = select_columns(weight.grad, "dct2", 4)
    exact = weight.grad - low @ basis_matrix("dct2", 16, torch.float32)[:, indices].mT
    bound = {None: 1e-6, 8: 0.02, 4: 0.3}[bits]
    assert float((kept - exact).abs().max()) < bound
    moments = 2 * 32 * 4 * 4 + 4 * 2 + 8
    saved = {None: 32 * 16 * 4, 8: 32 * 16 + 32 * 8, 4: 32 * 8 + 32 * 8}[bits]
    assert state_bytes(optimizer) == moments + saved


def test_state_is_small_and_its_types_survive():
    model = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64), nn.LayerNorm(64)).bfloat16()
    low = {"rank": 16, "residual": "feedback", "feedback_bits": 8}
    matrices, rest = [model[0].weight, model[1].weight], [*model[2].parameters(), model[0].bias]
    groups = [{"params": matrices, **low}, {"params": rest, "rank": None}]
    optimizer = DCTAdamW(groups, rank=None)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model[1].bias.grad = None
    optimizer.step()
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    fresh = DCTAdamW(copy.deepcopy(groups), rank=None)
    fresh.load_state_dict(torch.load(buffer))
    ours, theirs = (o.state_dict()["state"] for o in (optimizer, fresh))
    assert ours.keys() == theirs.keys()
    for place, state in ours.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                assert theirs[place][name].dtype is value.dtype
                assert torch.equal(theirs[place][name], value)
    assert ours[0]["m"].dtype is torch.float32 and ours[0]["indices"].dtype is torch.int16
    assert theirs[0]["feedback"]["codes"].dtype is torch.uint8
    assert model[1].weight.dtype is torch.bfloat16
    plain = DCTAdamW([model[0].weight], rank=16)
    plain.step()
    full = 2 * 256 * 64 * 4
    assert state_bytes(plain) <= (0.25 + 1e-3) * full


def test_describe_says_what_became_of_each():
    model = nn.ModuleList([nn.Linear(6, 9), nn.Conv2d(4, 10, 3), nn.Linear(5, 40)])
    optimizer = DCTAdamW(model.named_parameters(), rank=8, max_shape=40)
    lines = optimizer.describe().splitlines()
    assert lines[0].endswith("('0.weight'): 9x6, dct2 from the right, rank 6 of 6 (asked for 8)")
    assert lines[1].endswith("('0.bias'): 9, plain AdamW")
    assert lines[2].endswith("('1.weight'): 10x4x3x3, dct2 from the left, rank 8 of 10")
    assert lines[4].endswith("('2.weight'): 40x5, plain AdamW")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_kernels_are_flattened():
    kernel = matrix(4, 12)
    flat, _ = train(DCTAdamW, (4, 12), 2, rank=2, gradients=[kernel] * 2, value=kernel)
    folded, _ = train(
        DCTAdamW, (4, 12), 2, rank=2, gradients=[kernel.view(4, 3, 2, 2)] * 2,
        value=kernel.view(4, 3, 2, 2),
    )  # fmt: skip
    assert torch.equal(flat, folded.flatten(1))


@pytest.mark.parametrize("residual", ["drop", "feedback", "sign"])
def test_zero_gradients_and_full_ranks_are_harmless(residual):
    w = matrix(5, 4, seed=99)
    after, _ = train(
        DCTAdamW, (5, 4), 3, rank=2, residual=residual, gradients=[torch.zeros(5, 4).double()] * 3
    )
    assert torch.equal(after, w)
    full, _ = train(DCTAdamW, (5, 4), 3, rank=4, residual=residual)
    plain, _ = train(DCTAdamW, (5, 4), 3, rank=4)
    torch.testing.assert_close(full, plain, rtol=1e-9, atol=1e-9)


# -------------------------------------------------------------------------------------- Trion


@pytest.mark.parametrize("scale", ["kj", "kimi", "dion", "none"])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_trion_by_hand(shape, scale):
    ours, _ = train(Trion, shape, 4, lr=0.1, rank=2, momentum=0.8, weight_decay=0.3, scale=scale)
    q = scipy.fft.dct(np.eye(4), type=2, norm="ortho", axis=0)
    w, m = matrix(*shape, seed=99).numpy(), np.zeros((7, 4))
    rows, cols = shape
    factor = {
        "kj": max(1, rows / cols) ** 0.5, "kimi": 0.2 * 7**0.5,
        "dion": (rows / cols) ** 0.5, "none": 1,
    }[scale]  # fmt: skip
    w = w if rows > cols else w.T.copy()
    for step in range(4):
        g = matrix(*shape, seed=step).numpy()
        m = m + (g if rows > cols else g.T)
        s = m @ q.T
        p = q[sorted(np.argsort(-np.abs(s).sum(0))[:2])]
        low = m @ p.T
        m = m - 0.2 * low @ p
        u, values, v = np.linalg.svd(low / (np.linalg.norm(low) + 1e-7), full_matrices=False)
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        w = (1 - 0.1 * 0.3) * w - 0.1 * factor * (u * values) @ v @ p
    np.testing.assert_allclose(ours.numpy(), w if rows > cols else w.T, rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank=0"), ({"rank": 2.0}, "rank=2.0"), ({"rank": True}, "rank=True"),
        ({"gap": 0}, "gap=0"), ({"norm": 3}, "norm=3"), ({"basis": "dct4"}, "basis='dct4'"),
        ({"residual": "keep"}, "residual='keep'"), ({"transform": "dft"}, "transform='dft'"),
        ({"transform": "fft", "basis": "dct3"}, "is the DCT-II's"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]=1.0"), ({"betas": (0.9, -0.1)}, r"betas\[1\]=-0.1"),
        ({"lr": -1.0}, "lr=-1.0"), ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"eps": -1.0}, "eps=-1.0"), ({"max_shape": 0}, "max_shape=0"),
        ({"feedback_bits": 5, "residual": "feedback"}, "feedback_bits=5"),
        ({"feedback_bits": 8}, "nothing is fed back"),
    ],
)  # fmt: skip
def test_options_are_checked(options, words):
    weight = nn.Parameter(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=words):
        DCTAdamW([weight], **({"rank": 2} | options))
    optimizer = DCTAdamW([weight], rank=2)
    with pytest.raises(ValueError, match=words):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, 2))], **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank=0"), ({"momentum": 1.0}, "momentum=1.0"), ({"scale": "muon"}, "scale="),
        ({"ns_steps": 0}, "ns_steps=0"), ({"lr": -1.0}, "lr=-1.0"),
    ],
)  # fmt: skip
def test_trions_options_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        Trion([nn.Parameter(torch.zeros(4, 3))], **({"rank": 2} | options))
    with pytest.raises(ValueError, match="must have two axes or more"):
        Trion([nn.Parameter(torch.zeros(4))], rank=2)


def test_arguments_of_functions_are_checked():
    a = torch.ones(3, 4)
    for call in (
        lambda: select_columns(a, "dct2", 5),
        lambda: select_columns(a, "dct2", 0),
        lambda: select_columns(a, "dct9", 1),
        lambda: select_columns(a, torch.eye(3), 1),
        lambda: select_columns(a, "dct2", 1, 3),
        lambda: select_columns(a[0], "dct2", 1),
        lambda: select_columns(a.to(torch.complex64), "dct2", 1),
        lambda: projection_error(a.long(), "dct2", 1),
        lambda: svd_error(a, 5),
        lambda: basis_matrix("dct9", 4),
        lambda: encode(a, 5),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()


@pytest.mark.parametrize("optimiser", [DCTAdamW, Trion])
def test_bad_gradients_change_nothing(optimiser):
    good, bad = nn.Parameter(matrix(4, 3)), nn.Parameter(matrix(4, 3))
    optimizer = optimiser([good, bad], 0.1, rank=2, weight_decay=0.1)
    for value in (math.nan, math.inf):
        good.grad, bad.grad = matrix(4, 3), matrix(4, 3)
        bad.grad[1, 2] = value
        before = good.detach().clone()
        with pytest.raises(ValueError, match="parameter 1 of group 0: .* nothing was changed"):
            optimizer.step()
        assert torch.equal(good, before) and not optimizer.state
    twisted = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    twisted.grad = torch.ones(2, 2, dtype=torch.complex64)
    with pytest.raises(TypeError, match="must be real floating point"):
        optimiser([twisted], rank=1).step()
    table = nn.Embedding(5, 4, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match="must be dense"):
        optimiser([table.weight], rank=1).step()
    bad.grad = matrix(4, 3)
    optimizer.step()


# ------------------------------------------------------------------------------------ offload


def test_projections_are_products_of_the_device():
    weight = nn.Parameter(torch.zeros(48, 32))
    # Gradients that float16 would flush to zero.
    weight.grad = 1e-9 * matrix(48, 32, dtype=torch.float32)
    exact = nn.Parameter(torch.zeros(48, 32))
    exact.grad = weight.grad.clone()
    DCTAdamW([exact], 0.1, rank=8, eps=0.0).step()
    with sat.offload("golden", precision="fp16") as report:
        DCTAdamW([weight], 0.1, rank=8, eps=0.0).step()
    assert report.coverage == 1 and report.calls == 2
    sizes = {work.size for work in report}
    assert sizes == {"48 x 32 x 32", "48 x 8 x 32"}
    assert float((weight - exact).detach().norm() / exact.detach().norm()) < 2e-2
    with sat.offload("golden", precision="fp16") as report:
        DCTAdamW([weight], 0.1, rank=8, transform="fft", residual="feedback").step()
    assert {work.size for work in report} == {"48 x 8 x 32"}
