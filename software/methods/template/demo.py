"""The template's acceptance figure: gradient descent reaches the estimate in closed form."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from sat.methods import Result
from sat.methods.template.ridge import Ridge


def run(*, seed: int = 0, quick: bool = False, steps: int = 60) -> Result:
    """Fit random data; compare with the closed form, computed in float64.

    It takes a second, quick or not.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 8, generator=generator)
    y = x @ torch.randn(8, 1, generator=generator) + 0.1 * torch.randn(200, 1, generator=generator)
    model = Ridge(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(x, y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    wide, target = x.double(), y.double()
    gram = wide.mT @ wide / len(x) + model.penalty * torch.eye(8, dtype=torch.float64)
    exact = torch.linalg.solve(gram, wide.mT @ target / len(x))
    result = Result(metrics={"loss at the end": losses[-1]})
    off = float((model.weight.detach() - exact).norm() / exact.norm())
    result.check("weights against the closed form, relative difference", off, 1e-5)
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(losses)
    axes.set(xlabel="step", ylabel="loss")
    result.figures["loss"] = figure
    return result
