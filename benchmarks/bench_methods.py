"""Predicted cycles of one training step of the methods, dense and N:M.

For those that train or prune a small GPT a step is that of `sat.methods.problems.gpt` (width 64, 2
blocks, 16 x 64 characters): the model's products forward and backward, and the optimiser's. For
the others it is that of their demos; of 64 digits for MC-SMoE's transformer, full, merged and
compressed, and for HESSO's CNN, whole and with channels cut. Nothing is simulated: the cycle model,
which the RTL agrees with, is asked for each product, with the default memory.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

import sat
from sat.methods import get_method
from sat.methods.auon import AuON, HybridAuON
from sat.methods.dct_lowrank import DCTAdamW, Trion
from sat.methods.hesso import HESSO, extract, prunable_groups
from sat.methods.hesso.networks import make_cnn
from sat.methods.mc_smoe import compact_model, compress_model, merge_model
from sat.methods.mc_smoe.demo import DigitsMoE
from sat.methods.problems.gpt import BATCH, CONTEXT, cross_entropy, make_gpt
from sat.methods.problems.parameters import split_parameters
from sat.methods.problems.scaling import scaled_backward
from sat.methods.problems.text import load_text
from sat.methods.s4_ptd import S4PTDModel, S5Model
from sat.methods.ssvi.demo import build

PATTERNS = ("dense", "2:4", "2:8")
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMISERS: dict[str, Make] = {
    "AuON": lambda m: AuON(m, 0.02),
    "Hybrid-AuON": lambda m: HybridAuON(m, 0.02),
    "Muon": lambda m: torch.optim.Muon(m, lr=0.03),
    "DCT-AdamW, rank 16": lambda m: DCTAdamW(m, rank=16),
    "SVD-AdamW, rank 16": lambda m: DCTAdamW(m, rank=16, basis="svd"),
    "Trion, rank 16": lambda m: Trion(m, rank=16),
}


def step_cycles(array: str, scheme: str, pattern: str, train: bool) -> tuple[nn.Module, int]:
    """Return a GPT with the gradients of one step (or none), and what its products take."""
    model = make_gpt(0)
    sat.sparsify_(model.blocks, scheme, pattern)
    x, y = load_text().batch(BATCH, CONTEXT, torch.Generator().manual_seed(0))
    with sat.device("golden", array=array) as device, sat.offload(device) as report:
        if train:
            scaled_backward(cross_entropy(model(x), y), model)
        else:
            with torch.no_grad():
                model(x)
    return model, report.cycles or 0


def digits_step(make: type[nn.Module], pattern: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a model of sequences and a batch of digits pixel by pixel; BDWP prunes its mixing."""
    torch.manual_seed(0)
    model = make(1, 10, 2, d_model=32, d_state=64)
    sat.sparsify_(model, "bdwp", pattern)
    return model, torch.randn(64, 1, 64)


def ssvi_step(pattern: str) -> tuple[nn.Module, torch.Tensor]:
    """Return SSVI's perceptron and a batch; forward products are sparse, gradients dense."""
    torch.manual_seed(0)
    dense = pattern == "dense"
    model = build(density=1.0) if dense else build(pattern=pattern)
    if not dense:
        sat.sparsify_(model, "srste", pattern)
    return model, torch.randn(64, 64)


STEPS: dict[str, tuple[str, Callable[[str], tuple[nn.Module, torch.Tensor]]]] = {
    "S4-PTD, digits": ("s4_ptd", lambda pattern: digits_step(S4PTDModel, pattern)),
    "S5-PTD, digits": ("s4_ptd", lambda pattern: digits_step(S5Model, pattern)),
    "SSVI, digits": ("ssvi", ssvi_step),
}
"""A name, the method's slug, and what makes its model and a batch for a pattern."""


def method_cycles(array: str, slug: str, model: nn.Module, x: torch.Tensor) -> int:
    """Return what the products of a step take, in the precision that the method asks for."""
    precision = get_method(slug).precision
    with sat.device("golden", array=array) as device:
        with sat.offload(device, precision=precision) as report:
            nn.functional.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.int64)).backward()
        return report.cycles or 0


def optimiser_cycles(array: str, model: nn.Module, make: Make) -> int:
    """Return what the products of an optimiser's step take."""
    optimizer = make(split_parameters(model)[0])
    with sat.device("golden", array=array) as device, sat.offload(device) as report:
        optimizer.step()
    return report.cycles or 0 if report.calls else 0


def digits_networks() -> Iterator[tuple[str, nn.Module]]:
    """Yield names and networks for digits, their experts merged, or their channels cut."""
    torch.manual_seed(0)
    x = torch.randn(256, 1, 8, 8)
    full = DigitsMoE()
    yield "MC-SMoE: 16 experts", full
    merged = copy.deepcopy(full)
    merge_model(merged, [x], 4, global_=False)
    yield "MC-SMoE: merged to 4", merged
    for pattern in PATTERNS[1:]:
        sparse = copy.deepcopy(merged)
        for layer in sparse.mixtures:
            sat.sparsify_(layer.experts, "bdwp", pattern)
        yield f"MC-SMoE: merged to 4, {pattern} experts", sparse
    for split in compress_model(merged, 8):
        with torch.no_grad():
            split.s[len(split.s) // 10 :] = 0
    yield "MC-SMoE: merged to 4, rank 8 and a tenth of rows", compact_model(merged)
    for pattern in PATTERNS:
        cnn = make_cnn()
        sat.sparsify_(cnn, "bdwp", pattern)
        yield f"HESSO's CNN: {pattern}", cnn
    cnn = make_cnn()
    optimizer = HESSO(prunable_groups(cnn, x[:1]), cnn, 0.1, steps=1)
    # What is left of each layer: 16 of 16, 8 of 32, 16 of 64 channels.
    for layer, left in enumerate((16, 8, 16)):
        optimizer.pruned[(optimizer.table.layer_of == layer).nonzero()[left:, 0]] = True
    optimizer.table.scale(optimizer.pruned, 0)
    for pattern in PATTERNS:
        small = extract(cnn, optimizer, force=True)
        sat.sparsify_(small, "bdwp", pattern)
        yield f"HESSO's CNN: 16, 8, 16 channels, {pattern}", small


def digits_cycles(array: str, model: nn.Module) -> int:
    """Return what the products of a training step of 64 digits take."""
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with sat.device("golden", array=array) as device, sat.offload(device) as report:
        scaled_backward(model(x).square().mean(), model)
    return report.cycles or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrays", nargs="+", default=["8x8", "32x32"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("array   pattern  products                          cycles  dense over it")
    for array in args.arrays:
        for train, scheme, text in (
            (True, "bdwp", "training step: FF, BP, WU"),
            (False, "srste", "inference: FF"),
        ):
            dense = 0
            for pattern in PATTERNS:
                model, cycles = step_cycles(array, scheme, pattern, train)
                dense = dense or cycles
                print(f"{array:<7} {pattern:<8} {text:<28} {cycles:>11,} {dense / cycles:>8.2f}")
                if train and pattern == "dense":
                    trained = model
        for text, make in OPTIMISERS.items():
            cycles = optimiser_cycles(array, trained, make)
            print(f"{array:<7} {'':<8} {'optimiser: ' + text:<28} {cycles:>11,}")
        for text, (slug, make_step) in STEPS.items():
            dense = 0
            for pattern in PATTERNS:
                cycles = method_cycles(array, slug, *make_step(pattern))
                dense = dense or cycles
                print(f"{array:<7} {pattern:<8} {text:<28} {cycles:>11,} {dense / cycles:>8.2f}")
    for array in args.arrays:
        for text, model in digits_networks():
            print(f"{array:<7} {text:<50} {digits_cycles(array, model):>11,}")


if __name__ == "__main__":
    main()
