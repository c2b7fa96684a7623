"""A small transformer on characters, its training loop and its schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.problems.parameters import split_parameters
from sat.methods.problems.scaling import scaled_backward
from sat.methods.problems.text import Text, load_text

STEPS, BATCH, CONTEXT = 300, 16, 64
REST_LR, BETAS = 3e-3, (0.9, 0.95)
INITS = ("gpt2", "linear")

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Block(nn.Module):
    """Causal attention, then a perceptron of four times the width; six matrices without biases.

    Parameters
    ----------
    width, heads : int
        Channels, which ``heads`` divides.
    norm_bias : bool
        Whether normalisations add a bias, and so give what the matrices read a mean.
    """

    def __init__(self, width: int, heads: int, norm_bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=norm_bias) for _ in range(2))
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, context, width) for the same."""
        y = self.norm1(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A decoder of characters: GPT-2's blocks, matrices without biases, a head of its own.

    Parameters
    ----------
    symbols : int
        Kinds of characters.
    width, layers, heads, context : int
        Channels, blocks, attention heads, and most characters at a time.
    init : str
        How matrices start: ``"gpt2"``, normal of deviation 0.02, of what blocks add to the stream
        over sqrt(2 layers); ``"linear"``, as `torch.nn.Linear` does, uniform of deviation
        1/sqrt(3 inputs). Embeddings are normal of deviation 0.02 with either.
    norm_bias : bool
        Whether normalisations add a bias, as GPT-2's do.

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width``, or ``init`` is neither.
    """

    def __init__(
        self, symbols: int, *, width: int = 64, layers: int = 2, heads: int = 4,
        context: int = CONTEXT, init: str = "gpt2", norm_bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width}: must be a multiple of heads={heads}; change either")
        if init not in INITS:
            raise ValueError(f"init={init!r}: must be one of {', '.join(INITS)}; choose one")
        self.token, self.place = nn.Embedding(symbols, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, norm_bias) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=norm_bias)
        self.head = nn.Linear(width, symbols, bias=False)
        drawn = (nn.Embedding, nn.Linear) if init == "gpt2" else (nn.Embedding,)
        for name, module in self.named_modules():
            if isinstance(module, drawn):
                # What blocks add to the stream would grow with their number.
                adds = name.endswith(("out", "down"))
                nn.init.normal_(module.weight, std=0.02 / (math.sqrt(2 * layers) if adds else 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, characters, symbols) for characters (batch, characters)."""
        h = self.token(x) + self.place(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.head(self.norm(h))
        return logits


def schedule(
    step: int, steps: int, *, warmup: int = 20, flat: float = 0.55, final: float = 0.1
) -> float:
    """Return the factor of the learning rate: linear warm-up, constant, linear to ``final``.

    Parameters
    ----------
    step : int
        From 0.
    steps, warmup : int
        In all, and until the factor is 1.
    flat : float
        Share of the steps after which it falls.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (1 - final) * max(0.0, step / steps - flat) / (1 - flat)


@dataclass
class Training:
    """A trained model and how it got there.

    Attributes
    ----------
    model : GPT
    optimizer : torch.optim.Optimizer
        That of the blocks' matrices.
    losses : list of float
        Nats a character on each step's batch.
    curve : list of tuple of int and float
        Steps taken, and the loss on an eighth of the test text.
    loss : float
        On the whole test text at the end.
    seconds, optimizer_seconds : float
        Processor time of all steps, and of the matrices' optimiser in them.
    """

    model: GPT
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    loss: float = math.nan
    seconds: float = 0.0
    optimizer_seconds: float = 0.0


def held_out_loss(model: nn.Module, text: Text, *, context: int = CONTEXT, every: int = 1) -> float:
    """Return the mean cross entropy in nats on the test text, or on every n-th piece of it."""
    total, count = 0.0, 0
    with torch.no_grad():
        for x, y in text.test_batches(128, context):
            chosen = model(x[::every])
            total += float(cross_entropy(chosen, y[::every], reduction="sum"))
            count += y[::every].numel()
    return total / count


def cross_entropy(logits: Tensor, y: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the cross entropy of logits (batch, context, symbols) and characters."""
    return functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction=reduction)


def make_gpt(seed: int, **options: Any) -> GPT:
    """Return an untrained `GPT` for `load_text`; the seed is that of its parameters."""
    torch.manual_seed(seed)
    return GPT(len(load_text().symbols), **options)


def train_gpt(
    make_optimizer: MakeOptimizer,
    *,
    seed: int,
    steps: int = STEPS,
    batch: int = BATCH,
    context: int = CONTEXT,
    model: GPT | None = None,
    curve_every: int = 0,
    on_step: Callable[[int, Training], None] | None = None,
) -> Training:
    """Train a GPT: its blocks' matrices by the optimiser under test, the rest by AdamW.

    Every run of one seed sees the same parameters at first and the same batches.

    Parameters
    ----------
    make_optimizer : callable
        Gets the matrices of `split_parameters`, returns their optimiser, with its highest
        learning rates.
    seed : int
    steps, batch, context : int
    model : GPT, optional
        Trained in place; `make_gpt` of the seed if not given.
    curve_every : int
        Steps between points of the curve; 0 for none.
    on_step : callable, optional
        Called with the number of steps taken and the training so far, gradients still there.

    Returns
    -------
    Training
    """
    text = load_text()
    model = make_gpt(seed) if model is None else model
    order = torch.Generator().manual_seed(seed)
    matrices, rest = split_parameters(model)
    optimizer = make_optimizer(matrices)
    rest_optimizer = torch.optim.AdamW(rest, lr=REST_LR, betas=BETAS, weight_decay=0.0)
    training = Training(model, optimizer)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: schedule(step, steps))
        for each in (optimizer, rest_optimizer)
    ]
    for step in range(1, steps + 1):
        began = time.process_time()
        x, y = text.batch(batch, context, order)
        model.zero_grad()
        loss = cross_entropy(model(x), y)
        scaled_backward(loss, model)
        before = time.process_time()
        optimizer.step()
        training.optimizer_seconds += time.process_time() - before
        rest_optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        training.seconds += time.process_time() - began
        training.losses.append(float(loss.detach()))
        if on_step is not None:
            on_step(step, training)
        if curve_every and step % curve_every == 0:
            training.curve.append((step, held_out_loss(model, text, context=context, every=8)))
    training.loss = held_out_loss(model, text, context=context)
    return training
