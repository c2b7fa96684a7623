"""What `sat.offload` costs: a ResNet-18 training step inside it against plain PyTorch.

Prints the ratio of the two within this run, and where the time of the offloaded step goes.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import sat


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outs)
        self.shortcut = nn.Sequential()
        if stride != 1 or ins != outs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, outs, height / stride, width / stride)."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18(classes: int = 1000) -> nn.Sequential:
    """Return ResNet-18 (He et al. 2016, table 1)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    ins = 64
    for outs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(ins, outs, stride), Block(outs, outs, 1)]
        ins = outs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def median_seconds(step: Callable[[], object], repeats: int) -> float:
    """Return the median time of a step, the first one left out."""
    step()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def small_products(calls: int = 2000) -> None:
    """Print what each call costs, where the numbers cost next to nothing."""
    a, b = torch.randn(4, 8), torch.randn(8, 8)

    def seconds() -> float:
        return median_seconds(lambda: torch.mm(a, b), calls)

    plain, each = seconds(), {}
    for precision in ("fp16", "fp32"):
        with sat.offload("golden", precision=precision):
            each[precision] = seconds()
    print(
        f"products of 4 x 8 x 8: fp16 {each['fp16'] / plain:.0f} x plain PyTorch, "
        f"fp32 {each['fp32'] / each['fp16']:.2f} x fp16"
    )


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print the functions that cost most")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = resnet18()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x = torch.randn(args.batch, 3, args.size, args.size)
    target = torch.randint(1000, (args.batch,))

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), target).backward()
        optimizer.step()

    plain = median_seconds(step, args.repeats)
    with sat.offload("golden") as report:
        offloaded = median_seconds(step, args.repeats)
    with sat.offload("golden", precision="fp32"):
        precise = median_seconds(step, args.repeats)
    steps = args.repeats + 1
    device = report.device_seconds / steps
    handlers = sum(work.seconds for work in report) / steps
    print(f"ResNet-18, batch {args.batch}, {args.size}x{args.size}, threads: {args.threads}")
    print(f"plain PyTorch float32   {plain:.3f} s a step")
    print(f"offload('golden')       {offloaded:.3f} s a step: {offloaded / plain:.2f} x")
    print(f"  products on the model {device:.3f} s")
    print(f"  lowering, rounding    {handlers - device:.3f} s")
    print(f"  everything else       {offloaded - handlers:.3f} s")
    print(
        f"… precision='fp32'      {precise:.3f} s a step: {precise / plain:.2f} x, "
        f"{precise / offloaded:.2f} x float16"
    )
    small_products()
    print(report.table(rows=6, cycles=False))
    if args.profile:
        profiler = cProfile.Profile()
        with sat.offload("golden"):
            profiler.runcall(step)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(18)
    return 0


if __name__ == "__main__":
    sys.exit(main())
