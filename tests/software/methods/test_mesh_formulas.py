"""Central formulas of MM-PDE, written anew from its paper and released code, in numpy and loops.

Nothing here is shared with the method: what is compared was read off its sources alone.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from torch import nn

from sat.methods.mm_pde import MMPDE, MeshMover, MlpBranch


def arrays(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


class Parabola:
    """u = x²/2: |∇u| = x, whose mean is 1/2, so that m = 1 + 2 b x."""

    samples = torch.linspace(0, 1, 3, dtype=torch.float64)[None, :, None].expand(1, 3, 3) ** 2 / 2
    alpha = torch.tensor([0.5], dtype=torch.float64)

    def gradient(self, x):
        return torch.stack([x[..., 0], 0 * x[..., 0]], -1)


def mover_of(boundary, std=0.03):
    """A mover of samples 3 x 3 with a map of its own, no fold."""
    torch.manual_seed(0)
    mover = MeshMover(MlpBranch(3, (6, 5)), 5, boundary, 3.0, trunk=(6,), head=(7, 4)).double()
    nn.init.normal_(mover.last.weight, std=std)
    return mover


def test_a_meshs_map_by_cauchys_integrals_keeps_the_monitor():
    """The potential at complex places; derivatives are its means over circles around ξ."""
    mover, fields = mover_of("cos"), Parabola()
    state = arrays(mover)
    seen = fields.samples[0].numpy().ravel()
    for i in (0, 2):
        seen = np.tanh(state[f"branch.net.{i}.weight"] @ seen + state[f"branch.net.{i}.bias"])

    def potential(place):
        y = np.cos(np.pi * place)
        for i in (0, 1):
            y = np.tanh(state[f"trunk.{i}.linear.weight"] @ y + state[f"trunk.{i}.bias"])
        both = np.hstack([state["meet.linear.weight"], state["meet_branch.weight"]])
        y = np.tanh(both @ np.concatenate([y, seen]) + state["meet.bias"])
        y = np.tanh(state["head.0.linear.weight"] @ y + state["head.0.bias"])
        return state["last.weight"][0] @ y

    def along(place, way):
        """First and second derivative along a way."""
        turns = np.exp(2j * np.pi * np.arange(16) / 16)
        ring = [potential(place + 0.05 * z * np.array(way)) for z in turns]
        return [(f * (ring / turns**k).mean() / 0.05**k).real for k, f in ((1, 1), (2, 2))]

    points, weights = np.polynomial.legendre.leggauss(12)
    xi = np.array(list(itertools.product((points + 1) / 2, repeat=2)))
    x, jacobian = (v[0].detach().numpy() for v in mover.move(fields.samples, torch.tensor(xi)))
    share = []
    for i, place in enumerate(xi):
        (a, aa), (b, bb), (_, both) = (along(place, way) for way in ((1, 0), (0, 1), (1, 1)))
        ab = (both - aa - bb) / 2
        np.testing.assert_allclose(x[i], place + [a, b], atol=1e-12)
        np.testing.assert_allclose(jacobian[i], [[1 + aa, ab], [ab, 1 + bb]], atol=1e-11)
        share.append((1 + 6 * (place[0] + a)) * ((1 + aa) * (1 + bb) - ab**2))
    # However nodes move within the square, ∫ m det dξ = ∫ m dx = 1 + b.
    assert min(share) > 0 and np.std(share) > 0.5
    assert np.outer(weights, weights).ravel() @ share / 4 == pytest.approx(4, rel=1e-9)
    interior = mover.losses(fields, torch.tensor(xi)[None])["interior"].detach()
    assert float(interior) == pytest.approx(np.mean((np.array(share) / 4 - 1) ** 2), rel=1e-10)


def test_a_step_on_two_meshes_node_by_node():
    """All nodes send to all others; interpolations take the five nearest."""
    size, k, dt, gain, t = 3, 5, 0.2, 0.7, 0.3
    mover = mover_of("none", 0.2)
    model = MMPDE(mover, size=size, layers=2, dt=dt, gain=gain, neighbours=8, k=k,
                  interpolation=(6,)).double().eval()  # fmt: skip
    state = arrays(model)
    u = torch.randn(1, size, size, dtype=torch.float64)
    flat = u.numpy().ravel()
    mesh = np.array(list(itertools.product(np.arange(size) / (size - 1), repeat=2)))
    x = mover.move(u, torch.tensor(mesh))[0][0].detach().numpy()

    def dense(name, y):
        return state[f"{name}.weight"] @ y + state[f"{name}.bias"]

    def interpolate(name, values, nodes, queries):
        out = []
        for query in queries:
            near = np.argsort(((nodes - query) ** 2).sum(1))[:k]
            y = np.tanh(dense(f"{name}.net.0", np.concatenate([*nodes[near], query])))
            out.append(dense(f"{name}.net.2", y) @ values[near])
        return np.array(out)

    def network(name, values, nodes):
        h = []
        for v, place in zip(values, nodes, strict=True):
            y = np.maximum(dense(f"{name}.embed.0", np.array([v, *place, t])), 0)
            h.append(np.maximum(dense(f"{name}.embed.2", y), 0))
        for layer in (f"{name}.layers.0", f"{name}.layers.1"):
            after = []
            for i, here in enumerate(h):
                total = np.zeros_like(here)
                for j in set(range(len(h))) - {i}:
                    gap = np.array([values[i] - values[j], *(nodes[i] - nodes[j]), t])
                    y = dense(f"{layer}.receive", here) + state[f"{layer}.send.weight"] @ h[j]
                    y = np.maximum(y + state[f"{layer}.relate.weight"] @ gap, 0)
                    total += np.maximum(dense(f"{layer}.message", y), 0) / (len(h) - 1)
                y = dense(f"{layer}.update_state", np.concatenate([here, total]))
                y = np.maximum(y + state[f"{layer}.update_time.weight"][:, 0] * t, 0)
                after.append((here + dense(f"{layer}.update_out", y)) / math.sqrt(1 + 1e-5))
            h = after
        out = []
        for y in h:
            y = y[None]
            for i, stride in ((1, 3), (3, 3), (5, 2)):
                w, b = state[f"{name}.decoder.{i}.weight"], state[f"{name}.decoder.{i}.bias"]
                starts = range(0, y.shape[1] - w.shape[2] + 1, stride)
                y = np.array([[(o * y[:, s : s + w.shape[2]]).sum() for s in starts] for o in w])
                y = y + b[:, None] if i == 5 else np.maximum(y + b[:, None], 0)
            out.append(y.item())
        return dt * gain * np.array(out)

    cut = u.numpy()
    for i in (0, 2, 4, 6):
        padded = np.pad(cut, ((0, 0), (2, 2), (2, 2)))
        w, b = state[f"cut.{i}.weight"], state[f"cut.{i}.bias"]
        pairs = ([correlate(c, f, "valid") for c, f in zip(padded, o, strict=True)] for o in w)
        cut = np.tanh([sum(p) + v for p, v in zip(pairs, b, strict=True)])
    moved = network("moved", interpolate("there", flat, mesh, x), x)
    change = interpolate("back", moved, x, mesh) + cut.ravel() + network("uniform", flat, mesh)
    found = model(u, torch.tensor([t], dtype=torch.float64)).detach().numpy().ravel()
    np.testing.assert_allclose(found, flat + change, atol=1e-12)
