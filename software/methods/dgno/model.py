"""The generative operator: an encoder, and decoders of input, solution and flux."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.dgno.onet import MultiONet
from sat.methods.dgno.weak import WeakTest
from sat.methods.problems.arguments import require_counts
from sat.methods.problems.normalizer import FieldNormalizer
from sat.methods.problems.training import fit as fit_loop

ENCODERS = ("point", "vae")


class DGNO(nn.Module):
    """-∇·(a ∇u) = f on the unit cube, u = 0 on its edge, explained by a latent code β.

    β is encoded from the values of a in cells; four kinds of decoder read it at any place: the
    input a (logits of its upper phase), the solution u (times Π sin(πx), so 0 on the edge), and
    the components of the flux s = a ∇u. Trained on inputs alone: no solution is ever seen.

    Parameters
    ----------
    n_input : int
        Cells of a; in two dimensions a square number.
    latent : int
        Length of β.
    phases : tuple of float or None
        The two values of a, lower first; None if a is continuous.
    dim : int
        1 or 2.
    encoder : {"point", "vae"}
        β = tanh of the last layer, as in the authors' code; or mean and log variance of a Gaussian
        that is drawn from in training, with its divergence from N(0, I) in the loss.
    hidden : sequence of int
        Widths between a and β.
    input_width, width : int
        Of the decoder of a, and of those of u and s.
    depth, sum_layers : int
        As `MultiONet`.
    centers, n_mesh, radius
        Test functions a step, and as `WeakTest`.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Sections 2 and 3; details from the authors' ``Example_DarcyFlow_piecewise``.
    """

    def __init__(
        self,
        n_input: int,
        latent: int = 128,
        phases: tuple[float, float] | None = (5.0, 10.0),
        dim: int = 2,
        encoder: str = "point",
        *,
        hidden: Sequence[int] = (512, 256),
        input_width: int = 256,
        width: int = 100,
        depth: int = 4,
        sum_layers: int = 4,
        centers: int = 100,
        n_mesh: int = 7,
        radius: float = 1e-4,
    ) -> None:
        super().__init__()
        require_counts(n_input=n_input, latent=latent, centers=centers)
        if dim not in (1, 2):
            raise ValueError(f"dim={dim!r}: must be 1 or 2")
        side = n_input if dim == 1 else math.isqrt(n_input)
        if side**dim != n_input:
            raise ValueError(f"n_input={n_input}: must be a square number of cells with dim=2")
        if phases is not None and not 0 < phases[0] < phases[1] < math.inf:
            raise ValueError(f"phases={phases}: must be positive and finite, the lower one first")
        if encoder not in ENCODERS:
            raise ValueError(f"encoder={encoder!r}: must be 'point' or 'vae'; choose one")
        self.n_input, self.latent, self.phases, self.dim = n_input, latent, phases, dim
        self.side, self.kind, self.centers = side, encoder, centers
        self.test = WeakTest(dim, n_mesh, radius)
        widths = [n_input, *hidden, latent * (2 if encoder == "vae" else 1)]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.encoder = nn.Sequential(*layers[:-1])
        sizes: dict[str, Any] = {"depth": depth, "sum_layers": sum_layers}
        self.input = MultiONet(
            dim, latent, input_width, act_trunk="silu_sin", act_branch="silu_id", **sizes
        )
        self.u = MultiONet(dim, latent, width, **sizes)
        self.s = nn.ModuleList(MultiONet(dim, latent, width, **sizes) for _ in range(dim))
        self.statistics: FieldNormalizer | None = None
        cells = (torch.arange(side) + 0.5) / side
        grid = torch.cartesian_prod(*[cells] * dim).reshape(-1, dim)
        self.register_buffer("cells", grid, persistent=False)

    cells: Tensor

    def encode(self, a: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return codes (batch, latent) of inputs a (batch, n_input).

        With ``encoder="vae"`` the mean, or a draw if a generator is given.

        Raises
        ------
        ValueError
            If a has another length, or values that no phase has.
        """
        mean, log_variance = self._posterior(a)
        if log_variance is None or generator is None:
            return mean
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return mean + (log_variance / 2).exp() * noise

    def decode_input(self, x: Tensor, beta: Tensor) -> Tensor:
        """Return logits of the upper phase (batch, places), or a itself if it is continuous."""
        out: Tensor = self.input(x, beta)
        return out

    def medium(self, x: Tensor, beta: Tensor) -> Tensor:
        """Return a as its decoder has it (batch, places): the mean over phases, or the value."""
        out = self.decode_input(x, beta)
        return out if self.phases is None else self.mix(torch.sigmoid(out))

    def mix(self, share: Tensor) -> Tensor:
        """Return a from the share of the upper phase."""
        assert self.phases is not None
        low, high = self.phases
        return low + (high - low) * share

    def solution(self, x: Tensor, beta: Tensor) -> Tensor:
        """Return u (batch, places)."""
        out: Tensor = self._edge(x)[0] * self.u(x, beta)
        return out

    def solution_with_gradient(self, x: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Return u (batch, places) and ∇u (batch, places, dim)."""
        edge, edge_slope = self._edge(x)
        value, slope = self.u.with_gradient(x, beta)
        return edge * value, edge[:, None] * slope + edge_slope * value[..., None]

    def flux(self, x: Tensor, beta: Tensor) -> Tensor:
        """Return s (batch, places, dim)."""
        return torch.stack([decoder(x, beta) for decoder in self.s], -1)

    def cell_values(self, a: Tensor, x: Tensor) -> Tensor:
        """Return the values (batch, places) that data a (batch, n_input) has in the places' cells.

        By the nearest cell: exact where a is constant in each.
        """
        place = (x * self.side).long().clamp(0, self.side - 1)
        number = place[..., 0]
        for axis in range(1, self.dim):
            number = number * self.side + place[..., axis]
        return a[:, number]

    def residuals(self, a: Tensor, x: Tensor, beta: Tensor, f: float) -> tuple[Tensor, Tensor]:
        """Return what the equations leave at the places of test functions.

        Parameters
        ----------
        a : torch.Tensor
            (batch, n_centers · places): of the same places.
        x : torch.Tensor
            (n_centers, places, dim), of ``self.test``.
        beta : torch.Tensor
            (batch, latent).
        f : float

        Returns
        -------
        flux : torch.Tensor
            (batch,): mean of |s - a ∇u|².
        weak : torch.Tensor
            (batch,): mean of the squares of `WeakTest.residual`.
        """
        flat = x.flatten(0, 1)
        _, slope = self.solution_with_gradient(flat, beta)
        flux = self.flux(flat, beta)
        mixed = (flux - a[..., None] * slope).square().sum(-1).mean(-1)
        weak = self.test.residual(flux.unflatten(1, x.shape[:2]), f).square().mean(-1)
        return mixed, weak

    def loss(self, a: Tensor, f: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of inputs without solutions, and its parts.

        Parameters
        ----------
        a : torch.Tensor
            (batch, n_input).
        f : float
            Right-hand side, the same everywhere.
        generator : torch.Generator
            Of test functions, and of the vae's draws.

        Returns
        -------
        dict
            "loss", and what it is the sum of: "data" (binary cross entropy of the decoded a, or
            its mean square), "flux", "weak" (times √centres), "divergence" (of the vae, else 0).

        Raises
        ------
        ValueError
            If a has another length, or values that no phase has.
        """
        mean, log_variance = self._posterior(a)
        beta, divergence = mean, mean.new_zeros(())
        if log_variance is not None:
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
            beta = mean + (log_variance / 2).exp() * noise
            terms = mean.square() + log_variance.exp() - 1 - log_variance
            divergence = terms.sum(1).mean() / (2 * self.n_input)
        decoded = self.decode_input(self.cells, beta)
        if self.phases is None:
            data = functional.mse_loss(decoded, a)
        else:
            low, high = self.phases
            share = (a - low) / (high - low)
            data = functional.binary_cross_entropy_with_logits(decoded, share)
        x = self.test.sample(self.centers, generator, a.dtype)
        mixed, weak = self.residuals(self.cell_values(a, x.flatten(0, 1)), x, beta, f)
        parts = {
            "data": data,
            "flux": mixed.mean(),
            "weak": math.sqrt(self.centers) * weak.mean(),
            "divergence": divergence,
        }
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def _posterior(self, a: Tensor) -> tuple[Tensor, Tensor | None]:
        if a.ndim != 2 or a.shape[1] != self.n_input:
            raise ValueError(
                f"a has shape {tuple(a.shape)}: must be (batch, n_input={self.n_input}); flatten "
                "its cells"
            )
        if self.phases is None:
            if not bool((a > 0).all()):
                raise ValueError(f"a={float(a.min()):g}: must be positive everywhere")
        else:
            low, high = self.phases
            wrong = (a != low) & (a != high)
            if bool(wrong.any()):
                raise ValueError(
                    f"a={float(a[wrong][0]):g}: must be one of phases={self.phases}; give "
                    "phases=None for a continuous a"
                )
        code = self.encoder(a if self.statistics is None else self.statistics.encode(a))
        if self.kind == "vae":
            mean, log_variance = code.chunk(2, -1)
            return mean, log_variance
        return torch.tanh(code), None

    def _edge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return Π sin(π x) (places,) and its gradient (places, dim); exactly 0 on the edge."""
        # sin(π x) = sin(π (1 - x)), of which the smaller argument is exact at the end.
        sines = torch.sin(math.pi * torch.minimum(x, 1 - x))
        slopes = math.pi * torch.cos(math.pi * x)
        if self.dim == 1:
            return sines[:, 0], slopes
        return sines.prod(1), slopes * sines.flip(1)


def fit(
    model: DGNO,
    a: Tensor,
    f: float = 10.0,
    *,
    epochs: int = 1000,
    batch: int = 25,
    lr: float = 5e-4,
    weight_decay: float = 0.0,
    generator: torch.Generator,
) -> list[float]:
    """Train on inputs alone, their statistics taken from them; Adam, down a cosine.

    Parameters
    ----------
    model : DGNO
    a : torch.Tensor
        (samples, n_input), at least two.
    f : float
    epochs, batch : int
    lr, weight_decay : float
        Of Adam.
    generator : torch.Generator
        Of the order of samples, and of test functions.

    Returns
    -------
    list of float
        Mean loss of each epoch.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    model._posterior(a)  # what it refuses, before statistics are taken
    model.statistics = FieldNormalizer(a)
    optimizer = torch.optim.Adam(model.parameters(), lr, weight_decay=weight_decay)
    return fit_loop(
        lambda places: model.loss(a[places], f, generator)["loss"],
        len(a), optimizer, epochs=epochs, batch=batch, generator=generator, schedule="cosine",
    )  # fmt: skip
