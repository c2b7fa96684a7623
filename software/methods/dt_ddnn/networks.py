"""The detector's networks, trained end to end or layer after layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.problems.arguments import require_counts
from sat.methods.problems.scaling import LOSS_SCALE
from sat.methods.problems.training import fit

LR, DECAY, BATCH, EPOCHS, STAGE_EPOCHS = 1e-3, 1e-4, 128, 20, 10
MULTIPLE = 8
"""Inputs are filled up with zeros to a multiple of it, so that 2:4 and 2:8 divide a layer."""
LOGIT = 30.0
"""Logits are clipped to it before probabilities are made of them."""


class JammingDNN(nn.Module):
    """A perceptron for one logit: linear, ReLU and dropout a hidden layer, then linear.

    Parameters
    ----------
    n_features : int
        Of an input.
    hidden : tuple of int
        Widths.
    dropout : float
        In [0, 1).

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self, n_features: int, hidden: tuple[int, ...] = (128, 64), dropout: float = 0.2
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden=(): must have at least one width")
        require_counts(n_features=n_features)
        for width in hidden:
            require_counts(hidden=width)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must be in [0, 1), a share of hidden numbers")
        self.n_features = n_features
        before = n_features + -n_features % MULTIPLE
        widths = (before, *hidden)
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout))
            for a, b in zip(widths, hidden, strict=False)
        )
        self.output = nn.Linear(hidden[-1], 1)

    def pad(self, x: Tensor) -> Tensor:
        """Return inputs (n, n_features) with zeros up to the first layer's width.

        Raises
        ------
        ValueError
            If ``x`` has another width.
        """
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: must be (n, {self.n_features}), what the network "
                "was made for"
            )
        return functional.pad(x, (0, -self.n_features % MULTIPLE))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits.

        Parameters
        ----------
        x : torch.Tensor
            (n, n_features) float32.

        Returns
        -------
        torch.Tensor
            (n,) float32.

        Raises
        ------
        ValueError
            If ``x`` has another width.
        """
        x = self.pad(x)
        for layer in self.hidden:
            x = layer(x)
        return self.output(x)[:, 0]  # type: ignore[no-any-return]


def train(
    model: JammingDNN, x: Tensor, jammed: Tensor, *, epochs: int = EPOCHS,
    generator: torch.Generator,
) -> list[float]:  # fmt: skip
    """Train end to end by binary cross-entropy: Adam 1e-3, decay 1e-4, batches of 128.

    Parameters
    ----------
    model : JammingDNN
        Left in evaluation mode. Dropout draws from torch's global generator.
    x : torch.Tensor
        (n, n_features) float32.
    jammed : torch.Tensor
        (n,) bool.
    epochs : int
    generator : torch.Generator
        Of the order of records.

    Returns
    -------
    list of float
        Mean loss of each epoch, nats.

    Raises
    ------
    ValueError
        If shapes do not fit, or ``epochs`` is no int of at least 1.
    FloatingPointError
        If a loss is not finite.
    """
    model.train()
    model.pad(x[:0])  # a width that does not fit is refused before anything is trained
    curve = _descend(model, x, jammed, epochs, generator)
    model.eval()
    return curve


def cascade_train(
    model: JammingDNN, x: Tensor, jammed: Tensor, *, epochs: int = STAGE_EPOCHS,
    generator: torch.Generator,
) -> list[float]:  # fmt: skip
    """Train one hidden layer after the other, each with an output layer of its own.

    A layer's output layer is thrown away and the layer is frozen before the next one is trained on
    what it gives; the last one's is the network's.

    Parameters
    ----------
    model : JammingDNN
        Left in evaluation mode, all its parameters trainable.
    x, jammed
        As `train`'s.
    epochs : int
        Of a stage.
    generator : torch.Generator
        Of the order of records; temporary layers start from torch's global generator.

    Returns
    -------
    list of float
        Mean loss of each epoch, stage after stage, nats.

    Raises
    ------
    ValueError, FloatingPointError
        As `train`.

    Source
    ------
    Marquez, Hare, Niranjan 2018, "Deep Cascade Learning", IEEE TNNLS 29 (11).
    """
    curve: list[float] = []
    seen = model.pad(x)
    for number, layer in enumerate(model.hidden):
        last = number == len(model.hidden) - 1
        output = model.output if last else nn.Linear(layer[0].out_features, 1)  # type: ignore[index]
        stage = nn.Sequential(layer, output, nn.Flatten(0)).train()
        curve += _descend(stage, seen, jammed, epochs, generator)
        stage.eval()
        with torch.no_grad():
            seen = layer(seen)
    model.eval()
    return curve


def _descend(
    model: nn.Module, x: Tensor, jammed: Tensor, epochs: int, generator: torch.Generator
) -> list[float]:
    """Train all parameters of a model that gives logits.

    Gradients are of the loss times a power of two, which float16 keeps. Adam's constants are
    multiplied by it, too, so its steps have the bits that they have without it.
    """
    if jammed.shape != (len(x),) or jammed.dtype != torch.bool:
        raise ValueError(
            f"jammed is {jammed.dtype} of shape {tuple(jammed.shape)}: must be bool ({len(x)},)"
        )
    target = jammed.float()
    optimizer = torch.optim.Adam(
        model.parameters(), LR, eps=1e-8 * LOSS_SCALE, weight_decay=DECAY * LOSS_SCALE
    )

    def loss(places: Tensor) -> Tensor:
        logits = model(x[places])
        return LOSS_SCALE * functional.binary_cross_entropy_with_logits(logits, target[places])

    curve = fit(
        loss, len(x), optimizer, epochs=epochs, batch=BATCH, generator=generator,
        schedule="constant",
    )  # fmt: skip
    return [value / LOSS_SCALE for value in curve]


def probability(logits: Tensor) -> Tensor:
    """Return the probabilities of logits, float64: never 0 or 1 within `LOGIT`."""
    return logits.double().clamp(-LOGIT, LOGIT).sigmoid()
