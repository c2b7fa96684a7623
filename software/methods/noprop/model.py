"""NoProp-DT: blocks that learn apart, and the chain of them that classifies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.noprop.blocks import LabelSpace, require_labels
from sat.methods.noprop.levels import DiffusionLevels, noise_like
from sat.methods.problems.arguments import require_counts
from sat.methods.problems.scaling import LOSS_SCALE, power_of_two, scaled_backward

Parts = dict[str, float]


@dataclass(frozen=True)
class BlockOptimizers:
    """AdamW of each block, and of what they share."""

    blocks: list[torch.optim.AdamW]
    shared: torch.optim.AdamW


class NoPropDT(nn.Module):
    """T blocks, each trained to find a label's embedding in noise, none through another.

    ``uhat_t(z, x) = softmax(f_t(z, x)) W_embed``; a step of the chain is
    ``z_t = a_t uhat_t(z_{t-1}, x) + b_t z_{t-1} + sqrt(c_t) n``, from ``z_0 ~ N(0, I)``; a linear
    head reads the label from z_T. Losses are in nats.

    Parameters
    ----------
    blocks : iterable of nn.Module
        T of them: z (batch, d) and x (batch, …) to logits (batch, classes), as `DenoiseBlock`.
    W_embed : torch.Tensor
        (classes, d), see `label_embedding`.
    levels : DiffusionLevels
    eta : float
        Weight of the denoising losses; 1 makes the loss a bound on -log p(y | x).

    Attributes
    ----------
    blocks : nn.ModuleList
    labels : LabelSpace
    levels : DiffusionLevels
    eta : float

    Raises
    ------
    ValueError
        If there are not T blocks, or eta is not positive and finite.

    Source
    ------
    Li, Teh, Pascanu 2025, arXiv 2503.24322, sections 2 and 3, algorithm 1.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        W_embed: Tensor,
        levels: DiffusionLevels,
        eta: float = 0.1,
    ) -> None:
        require_eta(eta)
        super().__init__()
        self.blocks, self.labels = nn.ModuleList(blocks), LabelSpace(W_embed)
        if len(self.blocks) != levels.T:
            raise ValueError(f"{len(self.blocks)} blocks for T={levels.T}: must be as many")
        self.levels, self.eta = levels, eta

    # --------------------------------------------------------------------------------- one block

    def logits(self, t: int, z: Tensor, x: Tensor) -> Tensor:
        """Return block t's logits (batch, classes) of ``z_{t-1}`` (batch, d) and x (batch, …).

        Raises
        ------
        IndexError
            If t is not 1 to T.
        ValueError
            If the block returns another shape, or is to train on a single sample.
        """
        self.levels.require_step(t)
        block = self.blocks[t - 1]
        require_batch(block, x)
        return require_output(f"block {t}", block(z, x), (len(x), self.labels.classes))

    def block_loss(
        self, t: int, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Parts]:
        """Return block t's share of the loss, and its parts as numbers.

        The block sees ``z_{t-1}``, drawn directly from q; the head sees z_T.

        Parameters
        ----------
        t : int
            1 to T.
        x, y : torch.Tensor
            (batch, …), and (batch,) integers below the number of classes.
        generator : torch.Generator, optional

        Returns
        -------
        loss : torch.Tensor
            ``cross_entropy + kl + weight square``, ``weight = T eta (SNR(t) - SNR(t - 1)) / 2``.
        parts : dict
            ``cross_entropy`` of the head at z_T, ``kl`` of q(z_0 | y) from N(0, I), ``square``:
            the squared distance of uhat and u, summed over d; means of the batch. ``weight``.

        Raises
        ------
        IndexError
            If t is not 1 to T.
        ValueError
            If labels or the block break their rules.
        """
        self.levels.require_step(t)
        u = self._embed(x, y)
        noisy = self.levels.posterior_sample(t - 1, u, generator)
        clean = self.levels.posterior_sample(self.levels.T, u, generator)
        uhat = self.labels.expected(self.logits(t, noisy, x))
        square = (uhat - u).square().sum(1).mean()
        wrong = functional.cross_entropy(self.labels.head(clean), y.long())
        kl = prior_kl(u, float(self.levels.abar[0])).mean()
        weight = self.levels.T * self.eta * float(self.levels.snr_weight[t - 1]) / 2
        parts = {
            "cross_entropy": float(wrong.detach()),
            "kl": float(kl.detach()),
            "square": float(square.detach()),
            "weight": weight,
        }
        return wrong + kl + weight * square, parts

    # ---------------------------------------------------------------------------------- training

    def optimizers(self, lr: float = 1e-3, weight_decay: float = 1e-3) -> BlockOptimizers:
        """Return AdamW, one for each block and one for embeddings and head.

        Raises
        ------
        ValueError
            If a number is negative or not finite.
        """
        return BlockOptimizers(
            [adamw(block, lr, weight_decay) for block in self.blocks],
            adamw(self.labels, lr, weight_decay),
        )

    def step(
        self,
        t: int,
        x: Tensor,
        y: Tensor,
        optimizers: BlockOptimizers,
        generator: torch.Generator | None = None,
    ) -> Parts:
        """Train block t, embeddings and head by one batch; nothing else of the model changes.

        Gradients are taken of the loss times a power of two that makes up for its weight, so that
        float16 keeps them, whatever the level.

        Raises
        ------
        IndexError, ValueError
            As `block_loss` does.
        FloatingPointError
            If the loss is not finite; nothing has changed then but BatchNorm's statistics.
        """
        self.levels.require_step(t)
        mine = [optimizers.blocks[t - 1], optimizers.shared]
        for optimizer in mine:
            optimizer.zero_grad()
        loss, parts = self.block_loss(t, x, y, generator)
        if not math.isfinite(float(loss.detach())):
            raise FloatingPointError(
                f"block {t}: the loss is {float(loss.detach())}: must be finite; lower the "
                "learning rate, or look for infinities in x"
            )
        scale = LOSS_SCALE / max(power_of_two(parts["weight"]), 1.0)
        scaled_backward(loss, nn.ModuleList([self.blocks[t - 1], self.labels]), scale)
        for optimizer in mine:
            optimizer.step()
        return parts

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        epochs: int = 100,
        batch: int = 128,
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        generator: torch.Generator,
        on_epoch: Callable[[int], None] | None = None,
    ) -> list[float]:
        """Train: each epoch passes the samples once by each block, from t = 1 to T.

        Parameters
        ----------
        x, y : torch.Tensor
            (samples, …), and (samples,) integers.
        epochs, batch : int
        lr, weight_decay : float
            Of AdamW.
        generator : torch.Generator
            Of the order of samples, and of noise.
        on_epoch : callable, optional
            Called after each epoch with its number, from 1.

        Returns
        -------
        list of float
            Each epoch's loss, mean over blocks and batches. The model is left in evaluation mode.

        Raises
        ------
        ValueError
            If an argument breaks its rule, or the last batch would have a single sample.
        RuntimeError
            If two embeddings have come closer than 1e-3.
        FloatingPointError
            If a loss is not finite.
        """
        require_counts(epochs=epochs, batch=batch)
        require_labels(y, self.labels.classes, len(x))
        require_batches(len(x), batch)
        optimizers, curve = self.optimizers(lr, weight_decay), []
        self.eval()
        for epoch in range(1, epochs + 1):
            losses = []
            for t, block in enumerate(self.blocks, 1):
                block.train()
                for places in torch.randperm(len(x), generator=generator).split(batch):
                    parts = self.step(t, x[places], y[places], optimizers, generator)
                    losses.append(
                        parts["cross_entropy"] + parts["kl"] + parts["weight"] * parts["square"]
                    )
                block.eval()
            self.labels.require_apart()
            curve.append(fmean(losses))
            if on_epoch is not None:
                on_epoch(epoch)
        return curve

    # --------------------------------------------------------------------------------- inference

    def chain(
        self, x: Tensor, generator: torch.Generator | None = None, noise: bool = True
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Pass the blocks one after the other.

        Parameters
        ----------
        x : torch.Tensor
            (batch, …).
        generator : torch.Generator, optional
        noise : bool
            Whether z_0 and the noise of each step are drawn; else they are their means, 0.

        Returns
        -------
        z, logits : list of torch.Tensor
            z_0 to z_T, (batch, d) each; the blocks' logits, (batch, classes) each.

        Raises
        ------
        ValueError
            If a block returns another shape, or is to train on a single sample.
        """
        shape = len(x), self.labels.d
        z = self.labels.W_embed.new_zeros(shape)
        if noise:
            z = noise_like(z, generator)
        states, logits = [z], []
        for t in range(1, self.levels.T + 1):
            a, b, c = (float(each[t - 1]) for each in (self.levels.a, self.levels.b, self.levels.c))
            logits.append(self.logits(t, z, x))
            z = a * self.labels.expected(logits[-1]) + b * z
            if noise:
                z = z + math.sqrt(c) * noise_like(z, generator)
            states.append(z)
        return states, logits

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None, noise: bool = True
    ) -> Tensor:
        """Return logits (batch, classes) of p_out at z_T; see `chain`."""
        out: Tensor = self.labels.head(self.chain(x, generator, noise)[0][-1])
        return out

    @torch.no_grad()
    def block_predictions(
        self, x: Tensor, generator: torch.Generator | None = None, by: str = "logits"
    ) -> Tensor:
        """Return each block's own label (T, batch) int64 for inputs (batch, …), on the chain's z.

        Parameters
        ----------
        x : torch.Tensor
        generator : torch.Generator, optional
        by : {"logits", "embedding"}
            The largest logit, or the embedding next to uhat. An embedding that training has put
            between others can be the mean of those, so that blocks never name it by its logit.

        Raises
        ------
        ValueError
            If ``by`` is something else, or as `chain` does.
        """
        if by not in ("logits", "embedding"):
            raise ValueError(f"by={by!r}: must be 'logits' or 'embedding'")
        logits = torch.stack(self.chain(x, generator)[1])
        if by == "logits":
            return logits.argmax(2)
        uhat = logits.softmax(2) @ self.labels.W_embed
        return (uhat[:, :, None] - self.labels.W_embed).norm(dim=3).argmin(2)

    @torch.no_grad()
    def bound(
        self, x: Tensor, y: Tensor, generator: torch.Generator | None = None, draws: int = 1
    ) -> Tensor:
        """Return a bound (batch,) on ``-log p(y | x)``, nats: the loss of all blocks at eta = 1.

        Parameters
        ----------
        x, y : torch.Tensor
            (batch, …) and (batch,), as in `block_loss`.
        generator : torch.Generator, optional
        draws : int
            Of noise, for each level and sample; what is returned is their mean, an unbiased
            estimate.

        Raises
        ------
        ValueError
            If an argument or a block breaks its rule.
        """
        require_counts(draws=draws)
        u = self._embed(x, y)
        total = prior_kl(u, float(self.levels.abar[0])) * draws
        for _ in range(draws):
            clean = self.levels.posterior_sample(self.levels.T, u, generator)
            total += functional.cross_entropy(self.labels.head(clean), y.long(), reduction="none")
            for t, weight in enumerate(self.levels.snr_weight.tolist(), 1):
                noisy = self.levels.posterior_sample(t - 1, u, generator)
                uhat = self.labels.expected(self.logits(t, noisy, x))
                total += weight / 2 * (uhat - u).square().sum(1)
        return total / draws

    def _embed(self, x: Tensor, y: Tensor) -> Tensor:
        require_labels(y, self.labels.classes, len(x))
        return self.labels.W_embed[y.long()]


def prior_kl(u: Tensor, abar: float | Tensor) -> Tensor:
    """Return ``KL(N(sqrt(abar) u, (1 - abar) I) || N(0, I))``, nats, (batch,) of u (batch, d)."""
    abar = torch.as_tensor(abar, dtype=u.dtype)
    d = u.shape[1]
    return (abar * u.square().sum(1) - d * abar - d * torch.log1p(-abar)) / 2


def adamw(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW of a module's trained parameters."""
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: must be finite and not negative")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr, weight_decay=weight_decay, fused=True)


def require_eta(eta: float) -> None:
    """Raise ValueError unless the weight is positive and finite."""
    if not 0 < eta < math.inf:
        raise ValueError(f"eta={eta}: must be positive and finite; the paper's is 0.1 or 1")


def require_batch(block: nn.Module, x: Tensor) -> None:
    """Raise ValueError if a module is to train on a single sample."""
    if block.training and len(x) == 1:
        raise ValueError(
            "a batch of one in training: BatchNorm has no deviation of a single sample; give more, "
            "or call eval()"
        )


def require_batches(samples: int, batch: int) -> None:
    """Raise ValueError if a training's last batch has a single sample."""
    if samples < 2 or batch == 1 or samples % batch == 1:
        raise ValueError(
            f"{samples} samples in batches of {batch} leave a batch of one, of which BatchNorm has "
            "no deviation; choose another batch"
        )


def require_output(name: str, out: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return what a network gave, or raise ValueError if it has another shape."""
    if out.shape != shape:
        raise ValueError(f"{name} returns {tuple(out.shape)}: must be {shape}, (batch, outputs)")
    return out
