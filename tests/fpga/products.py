"""What tests of devices behind a link compute: operands, and steps of a small training."""

from __future__ import annotations

import numpy as np
import torch

import sat
from sat.devices.staged import StagedDevice
from sat.layers.modules import SatLinear
from sat.training.trainer import DeviceSgd


def operands(rows, depth, cols, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (rows, depth), (depth, cols)
    return tuple(rng.standard_normal(shape).astype(np.float16) for shape in shapes)


def trained(device):
    """Return a layer's weights after FF, BP, WU and the update, twice, whole stages on a device."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 8))
    sat.sparsify_(model, scheme="bdwp", pattern="2:8", filter_fn=lambda *_: True)
    assert isinstance(model[0], SatLinear)
    staged = StagedDevice(device)
    optimizer = DeviceSgd([{"params": list(model.parameters())}], 0.1, 0.9, model)
    optimizer.device = staged
    with sat.use_device(staged):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 16)).square().sum().backward()
            optimizer.step()
    return model[0].weight.detach()
