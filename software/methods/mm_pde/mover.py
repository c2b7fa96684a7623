"""Meshes moved by the gradient of one learned potential, without any mesh to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from sat.methods.mm_pde.branches import Branch
from sat.methods.mm_pde.monitor import (
    Fields,
    determinant,
    monitor,
    require_strength,
    sample_points,
    warn_constant,
)
from sat.methods.problems.arguments import require_counts
from sat.methods.problems.training import fit

BOUNDARIES = ("cos", "soft", "none")
GRADIENTS = ("physical", "computational")
BOUNDARY_WEIGHT = 1000.0


class TanhLayer(nn.Module):
    """tanh(W y + b) of values, or of values with their derivatives by ξ: one product for all.

    Parameters
    ----------
    before, after : int
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after, bias=False)
        self.bias = nn.Parameter(torch.empty(after).uniform_(-1, 1) / math.sqrt(before))

    def forward(self, rows: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        """Return (…, rows, after) for rows (…, rows, before).

        One row is a value; six are a value, its derivatives by ξ₁ and ξ₂, and its second ones 11,
        12, 22. ``shift`` (…, after) is added to the value before tanh.
        """
        z = self.linear(rows)
        y = torch.tanh(z[..., 0, :] + self.bias + shift)
        if rows.shape[-2] == 1:
            return y[..., None, :]
        a, b, aa, ab, bb = z[..., 1:, :].unbind(-2)
        slope = 1 - y * y
        bend = -2 * y * slope
        parts = [
            y, slope * a, slope * b,
            slope * aa + bend * a * a, slope * ab + bend * a * b, slope * bb + bend * b * b,
        ]  # fmt: skip
        return torch.stack(parts, -2)


class MeshMover(nn.Module):
    """x = ξ + ∇φ(ξ; u): a potential of the field's samples (branch) and of the place (trunk).

    The mesh is moved by a gradient, so where det(I + Hess φ) > 0 no cell is folded. It starts
    uniform: the last layer starts at 0.

    Parameters
    ----------
    branch : Branch
        Samples to ``width`` numbers.
    width : int
        Of branch and trunk.
    boundary : {"cos", "soft", "none"}
        "cos": the trunk sees cos πξ, so that ∂φ/∂n is 0 on the edge, exactly: nodes slide along
        their side. "soft": it sees ξ, and the loss asks for that. "none": nothing does.
    monitor_strength : float
        As `monitor`.
    trunk, head : sequence of int
        Widths of the hidden layers before and after trunk and branch meet; at least one each.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 3.1; the authors' ``mesh/dmm_model.py``. The hard boundary is ours.
    """

    def __init__(
        self,
        branch: Branch,
        width: int = 512,
        boundary: str = "cos",
        monitor_strength: float = 100.0,
        *,
        trunk: Sequence[int] = (32,),
        head: Sequence[int] = (512,),
    ) -> None:
        super().__init__()
        for name, widths in (("trunk", trunk), ("head", head)):
            require_counts(**{f"{name} layers": len(widths)})
            require_counts(**{f"{name}[{i}]": w for i, w in enumerate(widths)})
        if branch.width != width:
            raise ValueError(f"width={width}: must be the branch's, {branch.width}")
        if boundary not in BOUNDARIES:
            raise ValueError(f"boundary={boundary!r}: must be one of {', '.join(BOUNDARIES)}")
        require_strength(monitor_strength)
        self.branch, self.boundary, self.strength = branch, boundary, monitor_strength
        self.trunk = nn.ModuleList(
            TanhLayer(before, after)
            for before, after in zip([2, *trunk], [*trunk, width], strict=True)
        )
        # One layer of what trunk and branch have together, in two products: the branch's part is
        # the same at all places, and knows no derivatives.
        self.meet = TanhLayer(width, head[0])
        self.meet_branch = nn.Linear(width, head[0], bias=False)
        self.head = nn.ModuleList(
            TanhLayer(before, after) for before, after in zip(head, head[1:], strict=False)
        )
        self.last = nn.Linear(head[-1], 1, bias=False)
        nn.init.zeros_(self.last.weight)

    def potential(self, u: Tensor, xi: Tensor) -> Tensor:
        """Return φ (batch, nodes); arguments as `move`."""
        out: Tensor = self.last(self.features(u, xi, derivatives=False))[..., 0, 0]
        return out

    def move(self, u: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
        """Return moved nodes and what the map does around them.

        Parameters
        ----------
        u : torch.Tensor
            (batch, size, size): samples of the branch's size, node [i, j] at (i, j) / (size - 1).
        xi : torch.Tensor
            (nodes, 2), or (batch, nodes, 2): within [0, 1].

        Returns
        -------
        x : torch.Tensor
            (batch, nodes, 2). A constant field moves nothing, with a warning.
        jacobian : torch.Tensor
            (batch, nodes, 2, 2): I + Hess φ.

        Raises
        ------
        ValueError
            If shapes do not fit, u is not finite or ξ outside [0, 1].
        """
        x, jacobian = _map(self.last(self.features(u, xi))[..., 0], xi)
        constant = u.amax((1, 2)) == u.amin((1, 2))
        warn_constant(constant)
        still = constant[:, None, None]
        eye = torch.eye(2, dtype=jacobian.dtype, device=jacobian.device)
        return torch.where(still, xi.to(x.dtype), x), torch.where(still[..., None], eye, jacobian)

    def losses(
        self, fields: Fields, xi: Tensor, *, gradient: str = "physical"
    ) -> dict[str, Tensor]:
        """Return the parts of the loss, and "loss", their sum.

        "interior": mean (m det / θ - 1)², "boundary": mean (∂φ/∂n)² on the sides ("soft" alone;
        weight 1000), "convex": mean min(0, 1 + φ₁₁)² + min(0, 1 + φ₂₂)².

        Parameters
        ----------
        fields : Fields
        xi : torch.Tensor
            (batch, nodes, 2).
        gradient : {"physical", "computational"}
            Of u in the monitor: by x, as the equation says; or by ξ, as the released code takes it,
            which no longer keeps the integral of m.

        Raises
        ------
        ValueError
            As `move`, or if there is no such gradient.
        """
        rows = self.last(self.features(fields.samples, xi))[..., 0]
        sides = self.last(self._side_features(fields, xi))[..., 0]
        return self._terms(rows, sides, fields, xi, gradient)

    def features(self, u: Tensor, xi: Tensor, *, derivatives: bool = True) -> Tensor:
        """Return what the last layer weighs: (batch, nodes, 6 or 1, head's last width)."""
        self._require(u, xi)
        rows = self._places(xi, derivatives)
        for layer in self.trunk:
            rows = layer(rows)
        rows = self.meet(rows, self.meet_branch(self.branch(u))[:, None])
        for layer in self.head:
            rows = layer(rows)
        return rows

    def _places(self, xi: Tensor, derivatives: bool) -> Tensor:
        """Return what the trunk sees (batch or 1, nodes, 6 or 1, 2), with its derivatives."""
        xi = xi if xi.ndim == 3 else xi[None]
        if self.boundary == "cos":
            # sin πξ = sin π(1 - ξ), of which the smaller argument is exact on the edge.
            value = torch.cos(math.pi * xi)
            slope = -math.pi * torch.sin(math.pi * torch.minimum(xi, 1 - xi))
            bend = -(math.pi**2) * value
        else:
            value, slope, bend = xi, torch.ones_like(xi), torch.zeros_like(xi)
        if not derivatives:
            return value[..., None, :]
        one, two = torch.eye(2, dtype=xi.dtype, device=xi.device)
        parts = [value, slope * one, slope * two, bend * one, 0 * value, bend * two]
        return torch.stack(parts, -2)

    def _side_features(self, fields: Fields, xi: Tensor) -> Tensor:
        """Return features on the sides, for "soft": (batch, 4 · nodes, 6, ·); none else."""
        if self.boundary != "soft":
            return self.features(fields.samples, xi[:, :0])
        sides = []
        for axis, end in ((0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0)):
            side = xi.clone()
            side[..., axis] = end
            sides.append(side)
        return self.features(fields.samples, torch.cat(sides, 1))

    def _terms(
        self, rows: Tensor, sides: Tensor, fields: Fields, xi: Tensor, gradient: str
    ) -> dict[str, Tensor]:
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient={gradient!r}: must be one of {', '.join(GRADIENTS)}")
        x, jacobian = _map(rows, xi)
        slope = fields.gradient(x.clamp(0, 1))
        if gradient == "computational":
            slope = (jacobian @ slope[..., None])[..., 0]
        alpha = fields.alpha[:, None].to(x.dtype)
        m = monitor(torch.linalg.vector_norm(slope, dim=-1), alpha, self.strength)
        # ∫ m = 1 + strength, each field's own α being its mean; 1 of a constant one.
        theta = 1 + self.strength * (alpha > 0)
        diagonal = torch.diagonal(jacobian, dim1=-2, dim2=-1)
        terms = {
            "interior": (m * determinant(jacobian) / theta - 1).square().mean(),
            "boundary": rows.new_zeros(()),
            "convex": diagonal.clamp(max=0).square().mean((0, 1)).sum(),
        }
        if sides.shape[1]:
            first, second = sides[..., 1].chunk(2, 1)[0], sides[..., 2].chunk(2, 1)[1]
            terms["boundary"] = (first.square().mean() + second.square().mean()) / 2
        loss = terms["interior"] + BOUNDARY_WEIGHT * terms["boundary"] + terms["convex"]
        return terms | {"loss": loss}

    def _require(self, u: Tensor, xi: Tensor) -> None:
        size = self.branch.size
        if u.ndim != 3 or tuple(u.shape[1:]) != (size, size):
            raise ValueError(
                f"u has shape {tuple(u.shape)}: must be (batch, {size}, {size}), the branch's; "
                "sample it there"
            )
        if not bool(u.isfinite().all()):
            raise ValueError("u has infinities or NaNs: must be finite; check the solver")
        if xi.ndim not in (2, 3) or xi.shape[-1] != 2 or (xi.ndim == 3 and len(xi) != len(u)):
            raise ValueError(
                f"xi has shape {tuple(xi.shape)}: must be (nodes, 2) or ({len(u)}, nodes, 2)"
            )
        low, high = (float(end) for end in xi.detach().aminmax()) if xi.numel() else (0.0, 1.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"xi reaches from {low:g} to {high:g}: must be in [0, 1]")


def _map(rows: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and ∂x/∂ξ from φ and its derivatives (batch, nodes, 6)."""
    _, a, b, aa, ab, bb = rows.unbind(-1)
    x = xi.to(rows.dtype) + torch.stack([a, b], -1)
    jacobian = torch.stack([1 + aa, ab, ab, 1 + bb], -1).unflatten(-1, (2, 2))
    return x, jacobian


def train_mover(
    mover: MeshMover,
    fields: Fields,
    *,
    epochs: int = 150,
    batch: int = 16,
    points: int = 64,
    lr: float = 2e-4,
    weight_decay: float = 1e-5,
    gradient: str = "physical",
    oversample: int = 40,
    generator: torch.Generator,
) -> list[float]:
    """Train on fields alone, no meshes; Adam, down a cosine. Return each epoch's mean loss.

    Parameters
    ----------
    mover : MeshMover
    fields : Fields
    epochs, batch, points : int
        ``points`` places of each field a step, as `sample_points`.
    lr, weight_decay : float
    gradient : str
        As `MeshMover.losses`.
    oversample : int
        As `sample_points`; with 1, places are uniform.
    generator : torch.Generator
    """

    def loss(places: Tensor) -> Tensor:
        some = fields[places]
        xi = sample_points(some, points, mover.strength, generator, oversample)
        return mover.losses(some, xi, gradient=gradient)["loss"]

    optimizer = torch.optim.Adam(mover.parameters(), lr, weight_decay=weight_decay)
    return fit(
        loss, len(fields), optimizer, epochs=epochs, batch=batch, generator=generator,
        schedule="cosine",
    )  # fmt: skip


def refine_last_layer(
    mover: MeshMover,
    fields: Fields,
    *,
    points: int = 256,
    rounds: int = 5,
    iterations: int = 300,
    oversample: int = 40,
    generator: torch.Generator,
) -> list[tuple[float, float]]:
    """Train the last layer alone, by BFGS in float64: φ is linear in it.

    Parameters
    ----------
    mover : MeshMover
        All else is left as it is.
    fields : Fields
    points : int
        Of each field, drawn anew each round.
    rounds, iterations : int
        Iterations are the most of a round.
    oversample : int
        As `sample_points`.
    generator : torch.Generator

    Returns
    -------
    list of (float, float)
        The loss before and after each round, on its points.
    """
    require_counts(points=points, rounds=rounds, iterations=iterations)
    found = []
    for _ in range(rounds):
        xi = sample_points(fields, points, mover.strength, generator, oversample)
        with torch.no_grad():
            inner = mover.features(fields.samples, xi).double()
            sides = mover._side_features(fields, xi).double()

        def loss(w, inner=inner, sides=sides, xi=xi):  # type: ignore[no-untyped-def]
            weight = torch.tensor(w, requires_grad=True)
            value = mover._terms(inner @ weight, sides @ weight, fields, xi.double(), "physical")[
                "loss"
            ]
            (slope,) = torch.autograd.grad(value, weight)
            return float(value.detach()), slope.numpy()

        start = mover.last.weight.detach()[0].double().numpy()
        best = minimize(loss, start, jac=True, method="BFGS", options={"maxiter": iterations})
        found.append((loss(start)[0], float(best.fun)))
        with torch.no_grad():
            mover.last.weight.copy_(torch.from_numpy(best.x)[None])
    return found
