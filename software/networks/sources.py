"""Where a network comes from: its name, a file, or Python."""

from __future__ import annotations

import difflib
import importlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sat.networks.capture import capture
from sat.networks.network import CannotCapture, Network
from sat.networks.onnx_file import network_of
from sat.networks.zoo import NETWORKS

FORMS = (
    "a name (sat schedule --list), pkg.module:factory, timm:NAME, transformers:TYPE or "
    "transformers:PATH/config.json, or a file FILE.onnx"
)


def load(
    source: str,
    *,
    batch: int | None = None,
    shape: tuple[int, ...] | None = None,
    tokens: int = 128,
) -> Network:
    """Return the matrix work of a training step of a network.

    Parameters
    ----------
    source : str
        One of: a name of `sat.networks.zoo.NETWORKS`; ``pkg.module:factory``, where the factory is
        called without arguments and returns a module, or a module and its example inputs;
        ``timm:NAME``; ``transformers:TYPE`` (its default configuration) or the path of a
        ``config.json`` of transformers; a file ``*.onnx``.
    batch : int, optional
        Examples; the network's usual batch, or 1, if not given.
    shape : tuple of int, optional
        Of one example, where the source does not tell: (3, 224, 224) for timm.
    tokens : int
        Length of a text, for transformers that read one.

    Raises
    ------
    CannotCapture
        The source is not known, cannot be imported, or its work cannot be told.
    """
    if batch is not None and batch < 1:
        raise CannotCapture(f"batch={batch}: at least 1")
    if source.endswith(".onnx"):
        return network_of(source, batch)
    if source in NETWORKS:
        entry = NETWORKS[source]
        with torch.device("meta"):
            model = entry.make()
        return capture(model, entry.example(batch or entry.batch), name=source)
    kind, _, name = source.partition(":")
    makers: dict[str, Callable[..., Network]] = {"timm": _timm, "transformers": _transformers}
    if name and kind in makers:
        return makers[kind](name, batch or 1, shape, tokens)
    if name:
        return _python(source, kind, name, batch, shape)
    near = difflib.get_close_matches(source, NETWORKS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise CannotCapture(f"network {source!r}: not known.{hint} It must be {FORMS}")


def _example(batch: int, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(batch, *shape, device="meta")


def _imported(package: str, source: str) -> Any:
    try:
        return importlib.import_module(package)
    except Exception as error:
        raise CannotCapture(
            f"{source}: {package} cannot be imported ({type(error).__name__}: {error}): "
            f"pip install {package}, and for timm the torchvision that fits your torch"
        ) from error


def _timm(name: str, batch: int, shape: tuple[int, ...] | None, tokens: int) -> Network:
    timm = _imported("timm", f"timm:{name}")
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception as error:
        raise CannotCapture(f"timm:{name}: timm makes no such model ({error})") from error
    found = shape or tuple(getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224)))
    return capture(model.train(), _example(batch, found), name=name)


def _transformers(name: str, batch: int, shape: tuple[int, ...] | None, tokens: int) -> Network:
    transformers = _imported("transformers", f"transformers:{name}")
    try:
        if Path(name).exists():
            config = transformers.AutoConfig.from_pretrained(name)
        else:
            config = transformers.AutoConfig.for_model(name)
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(config)
    except Exception as error:
        raise CannotCapture(
            f"transformers:{name}: no such type, or no configuration that makes a model "
            f"({textwrap.shorten(str(error), 160, placeholder=' …')})"
        ) from error
    if model.main_input_name == "pixel_values" or shape is not None:
        size = getattr(config, "image_size", None) or 224
        size = (size, size) if isinstance(size, int) else tuple(size)
        example = _example(batch, shape or (getattr(config, "num_channels", 3), *size))
    else:
        example = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    extra: dict[str, Any] = {"decoder_input_ids": example} if config.is_encoder_decoder else {}
    return capture(model.train(), example, name=name, **extra)


def _python(
    source: str, package: str, name: str, batch: int | None, shape: tuple[int, ...] | None
) -> Network:
    # A command runs from anywhere; what is meant lies where the user is.
    sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(package), name)
    except Exception as error:
        raise CannotCapture(
            f"{source}: cannot be imported ({type(error).__name__}: {error}); it must be {FORMS}"
        ) from error
    finally:
        sys.path.remove("")
    try:
        with torch.device("meta"):
            made = factory()
    except Exception as error:
        raise CannotCapture(
            f"{source}: the factory, called without arguments on the meta device, failed "
            f"({type(error).__name__}: {error})"
        ) from error
    model, *inputs = made if isinstance(made, tuple) else (made,)
    if not isinstance(model, nn.Module):
        raise CannotCapture(
            f"{source}: the factory returned {type(model).__name__}; it must return a "
            "torch.nn.Module, or a module and its example inputs"
        )
    if shape is not None:
        inputs = [_example(batch or 1, shape)]
    elif batch is not None:
        inputs = [
            torch.empty((batch, *x.shape[1:]), dtype=x.dtype, device="meta")
            if isinstance(x, Tensor) and x.dim()
            else x
            for x in inputs
        ]
    if not inputs:
        raise CannotCapture(
            f"{source}: the factory returned no example input: return (module, input), or give "
            "the shape of an example"
        )
    return capture(model, *inputs, name=name)
