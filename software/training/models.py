"""Small models: for 8 x 8 pictures, and for lines of 40 numbers."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn


def cnn(classes: int = 10) -> nn.Module:
    """Return three convolutions (16, 32 with stride 2, 64 channels) and a classifier.

    For (batch, 1, 8, 8) inputs.
    """

    def block(ins: int, outs: int, stride: int) -> list[tuple[str, nn.Module]]:
        conv = nn.Conv2d(ins, outs, 3, stride=stride, padding=1, bias=False)
        return [("conv", conv), ("norm", nn.BatchNorm2d(outs)), ("relu", nn.ReLU())]

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (ins, outs, stride) in enumerate([(1, 16, 1), (16, 32, 2), (32, 64, 1)], 1):
        for name, layer in block(ins, outs, stride):
            layers[f"{name}{i}"] = layer
    layers["pool"] = nn.AvgPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(64 * 2 * 2, classes)
    return nn.Sequential(layers)


def mlp(classes: int = 10) -> nn.Module:
    """Return a perceptron 64-128-64-classes; for (batch, 1, 8, 8) inputs."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(64, 128),
            relu1=nn.ReLU(),
            fc2=nn.Linear(128, 64),
            relu2=nn.ReLU(),
            fc3=nn.Linear(64, classes),
        )
    )


def line_cnn(width: int, classes: int = 10) -> nn.Module:
    """Return three convolutions of ``width`` channels, each of stride 2, and a classifier.

    For (batch, 1, 1, 40) inputs: lines.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, ins in enumerate((1, width, width), 1):
        layers[f"conv{i}"] = nn.Conv2d(
            ins, width, (1, 5), stride=(1, 2), padding=(0, 2), bias=False
        )
        layers[f"norm{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU()
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(5 * width, classes)
    return nn.Sequential(layers)


_PICTURE, _LINE = (1, 8, 8), (1, 1, 40)
_MODELS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "cnn": (cnn, _PICTURE),
    "mlp": (mlp, _PICTURE),
    "line16": (functools.partial(line_cnn, 16), _LINE),
    "line32": (functools.partial(line_cnn, 32), _LINE),
    "line96": (functools.partial(line_cnn, 96), _LINE),
}
"""By name: what builds one for a number of classes, and the shape of an input."""


def models() -> list[str]:
    """Return the names that `build_model` knows."""
    return list(_MODELS)


def build_model(name: str, classes: int, seed: int) -> nn.Module:
    """Return a new model; the same seed gives the same weights, and other random state stays.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    if name not in _MODELS:
        raise ValueError(f"model {name!r}: there is no such model; choose {', '.join(_MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _MODELS[name][0](classes)


def require_inputs(name: str, shape: Sequence[int], data: str) -> None:
    """Raise ValueError if the model of that name does not take inputs of a shape, those of data."""
    wanted = _MODELS[name][1]
    if tuple(shape) != wanted:
        others = [other for other, (_, takes) in _MODELS.items() if takes == tuple(shape)]
        fix = f"{', '.join(others)} for these data" if others else "other data"
        raise ValueError(
            f"model {name!r} takes inputs of shape {wanted}, data {data!r} have {tuple(shape)}: "
            f"choose {fix}"
        )
