"""The networks that denoise a label's embedding given the input, and the embeddings themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.problems.arguments import require_counts

EMBEDDINGS = ("onehot", "learned", "prototype")
CHANNELS = (32, 64, 128)
DROPOUT = 0.2
LEAST_DISTANCE = 1e-3


class DenoiseBlock(nn.Module):
    """From a noisy embedding z and an input x to numbers: logits of classes, or a direction.

    Inputs of one axis pass two linear layers; pictures pass three 3 x 3 convolutions of 32, 64 and
    128 channels with ReLU, 2 x 2 maxima and dropout, and a linear layer. z passes two linear layers
    with a skip. Both are joined by one more (pictures: two). Every linear layer but the last is
    followed by BatchNorm.

    Parameters
    ----------
    in_shape : sequence of int
        Of an input: (features,) or (channels, height, width), each side at least 8.
    d : int
        Of an embedding.
    classes : int
        Of the output.
    hidden : int
        Width.
    time : int
        Width of an embedding of time that is joined, too; 0 for none.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Li, Teh, Pascanu 2025, arXiv 2503.24322, figure 6.
    """

    def __init__(
        self, in_shape: Sequence[int], d: int, classes: int, hidden: int = 64, *, time: int = 0
    ) -> None:
        sizes = {f"in_shape[{i}]": size for i, size in enumerate(in_shape)}
        require_counts(d=d, classes=classes, hidden=hidden, **sizes)
        super().__init__()
        join = [2 * hidden + time, hidden]
        if len(in_shape) == 1:
            self.see: nn.Module = nn.Sequential(
                *_layer(in_shape[0], hidden), *_layer(hidden, hidden)
            )
        elif len(in_shape) == 3 and min(in_shape[1:]) >= 2 ** len(CHANNELS):
            layers: list[nn.Module] = []
            for before, after in zip((in_shape[0], *CHANNELS), CHANNELS, strict=False):
                layers += [
                    nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                    nn.Dropout(DROPOUT),
                ]  # fmt: skip
            left = [side // 2 ** len(CHANNELS) for side in in_shape[1:]]
            flat = CHANNELS[-1] * left[0] * left[1]
            self.see = nn.Sequential(
                *layers, nn.Flatten(), nn.Linear(flat, hidden), nn.BatchNorm1d(hidden)
            )
            join.append(max(hidden // 2, 1))
        else:
            raise ValueError(
                f"in_shape={tuple(in_shape)}: must be (features,), or (channels, height, width) "
                f"with sides of at least {2 ** len(CHANNELS)}; flatten smaller pictures"
            )
        self.rise = nn.Sequential(*_layer(d, hidden))
        self.turn = nn.Sequential(*_layer(hidden, hidden)[:-1])
        joined = [layer for pair in zip(join, join[1:], strict=False) for layer in _layer(*pair)]
        self.join = nn.Sequential(*joined, nn.Linear(join[-1], classes))

    def forward(self, z: Tensor, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Return (batch, classes) of z (batch, d), x (batch, \\*in_shape), time (batch, width)."""
        h = self.rise(z)
        parts = [self.see(x), functional.relu(h + self.turn(h))]
        out: Tensor = self.join(torch.cat(parts if time is None else [*parts, time], 1))
        return out


def _layer(before: int, after: int) -> list[nn.Module]:
    return [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]


def label_embedding(
    kind: str,
    classes: int,
    d: int,
    x: Tensor | None = None,
    y: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> nn.Parameter:
    """Return the embeddings of labels at first, (classes, d) float32.

    Parameters
    ----------
    kind : {"onehot", "learned", "prototype"}
        Unit vectors, which stay; rows of an orthogonal matrix, to be trained; of each class the
        training input whose median distance to the others of its class is smallest, to be trained.
    classes, d : int
        ``onehot`` needs d = classes, ``prototype`` an input's size.
    x, y : torch.Tensor, optional
        Training inputs (samples, …) and labels (samples,), for ``prototype``.
    generator : torch.Generator, optional

    Raises
    ------
    ValueError
        If an argument breaks its rule, or a class has no training input.
    """
    require_counts(classes=classes, d=d)
    if kind == "onehot":
        if d != classes:
            raise ValueError(f"d={d} with onehot: must be the number of classes, {classes}")
        return nn.Parameter(torch.eye(classes), requires_grad=False)
    if kind == "learned":
        rows = nn.init.orthogonal_(torch.empty(classes, d), generator=generator)
        return nn.Parameter(rows)
    if kind != "prototype":
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(EMBEDDINGS)}")
    if x is None or y is None:
        raise ValueError("prototype needs training inputs: give x and y")
    flat = x.flatten(1).float()
    if flat.shape[1] != d:
        raise ValueError(f"d={d} with prototype: must be the size of an input, {flat.shape[1]}")
    require_labels(y, classes, len(x))
    rows = torch.empty(classes, d)
    for label in range(classes):
        own = flat[y == label]
        if not len(own):
            raise ValueError(f"class {label} has no training input: prototype needs one of each")
        distances = (own[:, None] - own).norm(dim=2)
        others = distances[~torch.eye(len(own), dtype=torch.bool)].view(len(own), -1)
        middle = others.quantile(0.5, dim=1) if others.shape[1] else others.new_zeros(1)
        rows[label] = own[middle.argmin()]
    return nn.Parameter(rows)


def require_labels(y: Tensor, classes: int, samples: int) -> None:
    """Raise ValueError unless ``y`` holds one label from 0 to classes - 1 a sample."""
    if y.shape != (samples,):
        raise ValueError(f"y has shape {tuple(y.shape)}: must be ({samples},), as many as inputs")
    if y.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f"y has dtype {y.dtype}: labels must be integers; use y.long()")
    if samples and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"labels from {int(y.min())} to {int(y.max())}: must be 0 to {classes - 1}, the rows "
            "of W_embed"
        )


class LabelSpace(nn.Module):
    """What blocks share: the labels' embeddings, and the classifier of clean z.

    Parameters
    ----------
    W_embed : torch.Tensor
        (classes, d), see `label_embedding`; trained if it requires gradients.

    Attributes
    ----------
    W_embed : nn.Parameter
    head : nn.Linear
        d to classes: logits of p_out.

    Raises
    ------
    ValueError
        If ``W_embed`` breaks its rule.
    """

    def __init__(self, W_embed: Tensor) -> None:
        if W_embed.ndim != 2 or not W_embed.is_floating_point():
            raise ValueError(
                f"W_embed of shape {tuple(W_embed.shape)}, {W_embed.dtype}: must be (classes, d) "
                "of floats; label_embedding makes one"
            )
        if not bool(W_embed.isfinite().all()):
            raise ValueError("W_embed has infinities or NaNs: must be finite")
        super().__init__()
        self.W_embed = (
            W_embed if isinstance(W_embed, nn.Parameter)
            else nn.Parameter(W_embed.detach().clone(), requires_grad=W_embed.requires_grad)
        )  # fmt: skip
        classes, d = W_embed.shape
        self.head = nn.Linear(d, classes, dtype=W_embed.dtype)

    @property
    def classes(self) -> int:
        """Number of labels."""
        return len(self.W_embed)

    @property
    def d(self) -> int:
        """Size of an embedding."""
        return self.W_embed.shape[1]

    def expected(self, logits: Tensor) -> Tensor:
        """Return the mean embedding (batch, d) under logits (batch, classes)."""
        return logits.softmax(1) @ self.W_embed

    def closest(self) -> tuple[float, int, int]:
        """Return the least distance of two rows, and which they are."""
        rows = self.W_embed.detach()
        if len(rows) < 2:
            return float("inf"), 0, 0
        i, j = torch.triu_indices(len(rows), len(rows), 1)
        distances = (rows[i] - rows[j]).norm(dim=1)
        least = int(distances.argmin())
        return float(distances[least]), int(i[least]), int(j[least])

    def require_apart(self) -> None:
        """Raise RuntimeError if two embeddings have collapsed to one."""
        distance, i, j = self.closest()
        if distance < LEAST_DISTANCE:
            raise RuntimeError(
                f"the embeddings of labels {i} and {j} are {distance:.2g} apart, less than "
                f"{LEAST_DISTANCE:g}: they collapsed; raise the share of the cross-entropy (lower "
                "eta), or fix them (onehot)"
            )
