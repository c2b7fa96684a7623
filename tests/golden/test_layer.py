"""The golden layer against torch's convolutions in float64, and its masks and prunings."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from sat.dataflow.compile.step import Sgd
from sat.rtl.config import SatConfig
from sat.sim.golden import layer as golden
from sat.sim.golden import sore
from sat.sim.golden.update import Rates, narrow
from sat.sim.layer import Layer

sys.path.insert(0, str(Path(__file__).parent.parent / "cosim"))
from layers import random_layer, random_tensors


def pruned(w: np.ndarray, pattern: tuple[int, int], axis: int) -> np.ndarray:
    """Return weights with zeros where a pattern drops them."""
    return np.where(sore.mask(w, *pattern, axis=axis), w, np.float16(0))


def torch_stages(layer: Layer, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return y, dx, g of a layer by torch's autograd in float64, NHWC and OHWI."""
    halves = narrow(tensors["w"])
    ff = pruned(halves, layer.ff, 3)
    # Along the output channels of each group.
    grouped = halves.reshape(layer.groups, -1, *halves.shape[1:])
    bp = pruned(grouped, layer.bp, 1).reshape(halves.shape)
    geometry = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }

    def nchw(x: np.ndarray) -> torch.Tensor:
        return torch.tensor(x.astype(np.float64)).permute(0, 3, 1, 2)

    def nhwc(x: torch.Tensor) -> np.ndarray:
        return x.permute(0, 2, 3, 1).detach().numpy()

    bias = torch.tensor(tensors["bias"].astype(np.float64)) if layer.bias else None
    dy = nchw(tensors["dy"])
    y = functional.conv2d(nchw(tensors["x"]), nchw(ff), bias, **geometry)
    x = nchw(tensors["x"]).requires_grad_()
    (dx,) = torch.autograd.grad(functional.conv2d(x, nchw(bp), None, **geometry), x, dy)
    w = nchw(halves).requires_grad_()
    (g,) = torch.autograd.grad(functional.conv2d(nchw(tensors["x"]), w, None, **geometry), w, dy)
    return {"y": nhwc(y), "dx": nhwc(dx), "g": nhwc(g)}


@pytest.mark.parametrize("seed", range(60))
def test_is_torch_convolution(seed):
    layer = random_layer(random.Random(seed), SatConfig(), largest=20)
    tensors = random_tensors(seed, layer)
    halves = narrow(tensors["w"])
    want = torch_stages(layer, tensors)
    bias = tensors["bias"] if layer.bias else None
    got = {
        "y": golden.forward(layer, tensors["x"], halves, bias),
        "dx": golden.backward(layer, tensors["dy"], halves),
        "g": golden.gradient(layer, tensors["x"], tensors["dy"]),
    }
    for name, depth in (
        ("y", layer.taps * layer.in_per_group),
        ("dx", layer.taps * layer.out_per_group),
        ("g", layer.out_positions),
    ):
        assert got[name].shape == want[name].shape
        error = np.abs(got[name] - want[name]).max()
        assert error <= 2.0**-22 * depth * max(1.0, np.abs(want[name]).max()), (name, layer)


def test_step_masks_and_skips():
    layer = Layer(
        batch=2, lines=4, pixels=3, in_channels=8, out_channels=16, kernel=(3, 3), padding=(1, 1),
        ff=(2, 4), bp=(2, 4), relu=True, masked=True,
    )  # fmt: skip
    tensors = random_tensors(1, layer)
    rates = Rates(**Sgd(learning_rate=0.1, momentum=0.9).fields())
    made = golden.step(layer, rates, **tensors)
    assert made.y.min() == 0 and np.array_equal(made.y > 0, made.mask)
    assert not made.dx[~tensors["in_mask"]].any() and made.dx[tensors["in_mask"]].any()
    assert made.non_finite == 0 and (made.w != tensors["w"]).mean() > 0.9
    tensors["dy"][0, 0, 0, 5] = np.inf
    skipped = golden.step(layer, rates, **tensors)
    assert skipped.non_finite > 0
    assert np.array_equal(skipped.w, tensors["w"]) and np.array_equal(skipped.v, tensors["v"])
