"""The network that recommends a basis: from an input field or image to a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts
from sat.methods.problems.normalizer import FieldNormalizer
from sat.methods.problems.training import fit

Network = Callable[[tuple[int, ...], int], nn.Module]
"""Shape of an input and number of classes to a module: (batch, *shape) to logits."""


def mlp(hidden: Sequence[int] = (64, 32)) -> Network:
    """Return what makes a network of linear layers with ReLU between."""
    require_counts(**{f"hidden[{i}]": width for i, width in enumerate(hidden)})

    def make(shape: tuple[int, ...], classes: int) -> nn.Module:
        widths = [int(torch.Size(shape).numel()), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    return make


def cnn(channels: Sequence[int] = (8, 16)) -> Network:
    """Return what makes a network for images (height, width) or (channels, height, width).

    3 x 3 convolutions with ReLU, each followed by the mean of 2 x 2 pixels, and a linear layer.
    """
    require_counts(**{f"channels[{i}]": width for i, width in enumerate(channels)})

    def make(shape: tuple[int, ...], classes: int) -> nn.Module:
        if len(shape) not in (2, 3):
            raise ValueError(
                f"inputs of shape {shape}: must be images, (height, width) or (channels, height, "
                "width); use mlp for others"
            )
        if min(shape[-2:]) < 2 ** len(channels):
            raise ValueError(
                f"images of {shape[-2]} x {shape[-1]}: {len(channels)} halvings need "
                f"{2 ** len(channels)} pixels each way; give fewer channels=..."
            )
        image = shape if len(shape) == 3 else (1, *shape)
        layers: list[nn.Module] = [nn.Unflatten(1, (1, shape[0]))] if len(shape) == 2 else []
        widths = [image[0], *channels]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
        left = [size // 2 ** len(channels) for size in image[1:]]
        return nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(widths[-1] * left[0] * left[1], classes)
        )

    return make


class Classifier:
    """A network, the statistics of its inputs, and its training by cross-entropy.

    Parameters
    ----------
    network : callable
        `mlp` (...), `cnn` (...), or any that makes a module of an input's shape and the classes.
    log1p : bool
        Whether inputs x are taken as log(1 + x): for those that are positive over decades.
    epochs, batch : int
    lr : float
        Of Adam at first; it falls to 0 as a half wave of a cosine.
    seed : int
        Of the first weights and of the order of samples.

    Attributes
    ----------
    model : nn.Module or None
        None before `fit`, and where there was but one class to choose.
    """

    def __init__(
        self,
        network: Network | None = None,
        *,
        log1p: bool = False,
        epochs: int = 300,
        batch: int = 64,
        lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        require_counts(epochs=epochs, batch=batch)
        if not 0 < lr < float("inf"):
            raise ValueError(f"lr={lr}: must be positive and finite")
        self.network = network or mlp()
        self.log1p, self.epochs, self.batch, self.lr, self.seed = log1p, epochs, batch, lr, seed
        self.model: nn.Module | None = None
        self._constant: int | None = None
        self.classes = 0

    def fit(self, x: Tensor, labels: Tensor, classes: int) -> list[float]:
        """Train anew; return the mean loss of each epoch.

        Parameters
        ----------
        x : torch.Tensor
            (samples, …), at least two samples.
        labels : torch.Tensor
            (samples,) int64 below ``classes``. Of one kind only: nothing is trained, the answer
            is constant.
        classes : int

        Raises
        ------
        ValueError
            If sizes do not fit, a label or an input breaks its rule.
        """
        if len(x) != len(labels):
            raise ValueError(f"{len(x)} inputs and {len(labels)} labels: must be as many")
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels must be 0 to {classes - 1}, of classes={classes}")
        raw = self._raw(x)
        self.classes, self.model = classes, None
        kinds = labels.unique()
        self._constant = int(kinds[0]) if len(kinds) == 1 else None
        if self._constant is not None:
            return []
        self._normalizer, self._shape = FieldNormalizer(raw), tuple(x.shape[1:])
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = self.network(self._shape, classes)
        inputs = self._normalizer.encode(raw)
        losses = fit(
            lambda places: nn.functional.cross_entropy(model(inputs[places]), labels[places]),
            len(x), torch.optim.Adam(model.parameters(), self.lr), epochs=self.epochs,
            batch=self.batch, generator=torch.Generator().manual_seed(self.seed),
            schedule="cosine",
        )  # fmt: skip
        self.model = model.eval()
        return losses

    @torch.no_grad()
    def predict_proba(self, x: Tensor) -> Tensor:
        """Return probabilities (samples, classes) float32 of inputs (samples, …).

        Raises
        ------
        ValueError
            If nothing was fitted, or an input has another shape or breaks its rule.
        """
        if self._constant is not None:
            answer = torch.zeros(len(x), self.classes)
            answer[:, self._constant] = 1
            return answer
        if self.model is None:
            raise ValueError("this classifier has seen nothing yet: call fit first")
        if tuple(x.shape[1:]) != self._shape:
            raise ValueError(
                f"inputs of shape {tuple(x.shape)}: must be (samples, *{self._shape}), as in fit"
            )
        logits: Tensor = self.model(self._normalizer.encode(self._raw(x)))
        return logits.softmax(1)

    def _raw(self, x: Tensor) -> Tensor:
        if not bool(x.isfinite().all()):
            raise ValueError("inputs have NaNs or infinities: leave those samples out")
        if self.log1p and float(x.min()) <= -1:
            raise ValueError(f"inputs reach {float(x.min()):g}: log1p=True needs them above -1")
        return (x.double().log1p() if self.log1p else x).float()
