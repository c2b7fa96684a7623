"""The neural spectral block: encode a patch into tokens, solve there, decode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts

FREQUENCIES = ("fraction", "harmonic")


class NeuralSpectralBlock(nn.Module):
    """A residual block on fields, applied to each patch by itself with the same weights.

    Learned queries gather a patch's points into a few tokens (cost linear in the points); every
    channel of every token then takes a step along a trigonometric series of its value; the points
    look the tokens up again. The attention's logits are not scaled.

    Parameters
    ----------
    width : int
        Channels C; a multiple of ``heads``.
    num_basis : int
        Frequencies N of the series: N sines and N cosines a channel.
    patch : sequence of int
        Points of a patch along each axis: two or three of them.
    num_token : int
        Latent tokens T of a patch.
    heads : int
    frequency : {"fraction", "harmonic"}
        πj/N as in the authors' code, all below π; or the integers j, with which the series is a
        Fourier series. j = 0 … N-1 in both, so one sine weight is dead and one cosine is a bias.

    Attributes
    ----------
    token : torch.nn.Parameter
        (heads, T, C / heads), from U[0, 1) / C.
    weight : torch.nn.Parameter
        (C, 2 N): first those of the sines; from U[0, 1) / C.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 3.2, equations 4 to 7; details from the authors' ``models/LSM_2D.py``.
    """

    frequencies: Tensor

    def __init__(
        self,
        width: int,
        num_basis: int = 12,
        patch: Sequence[int] = (3, 3),
        num_token: int = 4,
        heads: int = 8,
        frequency: str = "fraction",
    ) -> None:
        super().__init__()
        require_counts(width=width, num_basis=num_basis, num_token=num_token, heads=heads)
        if len(patch) not in (2, 3):
            raise ValueError(f"patch={tuple(patch)}: must have 2 or 3 axes, those of the grid")
        for axis, points in enumerate(patch):
            require_counts(**{f"patch[{axis}]": points})
        if width % heads:
            raise ValueError(
                f"heads={heads}: must divide width={width}; choose another number of heads"
            )
        if frequency not in FREQUENCIES:
            raise ValueError(f"frequency={frequency!r}: must be 'fraction' or 'harmonic'")
        self.width, self.num_basis, self.num_token = width, num_basis, num_token
        self.heads, self.frequency, self.patch = heads, frequency, tuple(patch)
        self.token = nn.Parameter(torch.rand(heads, num_token, width // heads) / width)
        self.weight = nn.Parameter(torch.rand(width, 2 * num_basis) / width)
        self.encoder = nn.Conv1d(width, 2 * width, 1)
        self.decoder = nn.Conv1d(width, width, 1)
        numbers = torch.arange(num_basis, dtype=torch.float64)
        if frequency == "fraction":
            numbers = numbers * (math.pi / num_basis)
        self.register_buffer("frequencies", numbers, persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """Return tokens (patches, C, T) of patches x (patches, C, points)."""
        keys, values = self._keys_values(x)
        scores = torch.softmax(torch.einsum("htc,bhcl->bhtl", self.token, keys), -1)
        z = torch.einsum("bhtl,bhcl->bhtc", scores, values) + self.token
        return z.mT.reshape(len(x), self.width, self.num_token)

    def solve(self, z: Tensor) -> Tensor:
        """Return z + Σ_j ws_j sin(ω_j z) + wc_j cos(ω_j z), the weights a channel's own.

        Parameters
        ----------
        z : torch.Tensor
            (patches, C, T).

        Returns
        -------
        torch.Tensor
            (patches, C, T).
        """
        angles = z[..., None] * self.frequencies.to(z.dtype)
        basis = torch.cat([angles.sin(), angles.cos()], -1)
        # A product for each channel: (patches · T) x 2N x 1.
        return z + torch.einsum("bctn,cn->bct", basis, self.weight)

    def decode(self, x: Tensor, z: Tensor) -> Tensor:
        """Return x (patches, C, points) plus what its points read in tokens z (patches, C, T)."""
        queries = self._split(self.decoder(x))
        tokens = self._split(z)
        scores = torch.softmax(torch.einsum("bhcl,bhct->bhlt", queries, tokens), -1)
        return x + torch.einsum("bhlt,bhct->bhcl", scores, tokens).reshape(x.shape)

    def attention(self, x: Tensor) -> Tensor:
        """Return how much each token takes of each point of a field.

        Parameters
        ----------
        x : torch.Tensor
            (batch, C, *grid).

        Returns
        -------
        torch.Tensor
            (batch, heads · T, *grid); over the points of a patch it adds up to 1.
        """
        keys, _ = self._keys_values(self._cut(x))
        scores = torch.softmax(torch.einsum("htc,bhcl->bhtl", self.token, keys), -1)
        return self._join(scores.flatten(1, 2), x.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return a field of the same shape as x (batch, C, *grid).

        Raises
        ------
        ValueError
            If the channels are not C, an axis is no multiple of its patch, or x is complex.
        """
        patches = self._cut(x)
        return self._join(self.decode(patches, self.solve(self.encode(patches))), x.shape)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.heads, self.width // self.heads, -1)

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Channels are (head, channel in head, key or value): the last runs fastest.
        both = self.encoder(x).view(len(x), self.heads, self.width // self.heads, 2, -1)
        return both[..., 0, :], both[..., 1, :]

    def _cut(self, x: Tensor) -> Tensor:
        axes = len(self.patch)
        if x.ndim != axes + 2 or x.shape[1] != self.width:
            raise ValueError(
                f"input has shape {tuple(x.shape)}: must be (batch, {self.width}, {axes} axes); "
                "channels come second"
            )
        if x.is_complex():
            raise ValueError(f"input is {x.dtype}: must be real; give its parts as channels")
        for axis, (size, points) in enumerate(zip(x.shape[2:], self.patch, strict=True)):
            if size % points:
                raise ValueError(
                    f"axis {axis} of the grid has {size} points: must be a multiple of the patch's "
                    f"{points}; pad it by {-size % points}"
                )
        for axis, points in enumerate(self.patch):
            x = x.unflatten(2 + 2 * axis, (-1, points))
        # (batch, C, n1, p1, n2, p2, …) to (batch, n1, n2, …, C, p1, p2, …)
        numbers, points_at = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
        return x.permute(0, *numbers, 1, *points_at).flatten(0, axes).flatten(2)

    def _join(self, patches: Tensor, shape: torch.Size) -> Tensor:
        axes = len(self.patch)
        numbers = [size // points for size, points in zip(shape[2:], self.patch, strict=True)]
        x = patches.view(shape[0], *numbers, patches.shape[1], *self.patch)
        order = [0, axes + 1]
        for axis in range(axes):
            order += [1 + axis, axes + 2 + axis]
        return x.permute(order).reshape(shape[0], patches.shape[1], *shape[2:])
