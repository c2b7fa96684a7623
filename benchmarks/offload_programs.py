"""Programs that `bench_offload.py` times: networks whose products are large, small or in stacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Step = Callable[[], object]


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


class Inverted(nn.Module):
    """An inverted bottleneck with squeeze and excitation (Tan, Le 2019; Sandler et al. 2018)."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide, squeezed = ins * expand, max(1, ins // 4)
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [nn.Conv2d(ins, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()]
        layers += [
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.SiLU(),
        ]
        self.layers = nn.Sequential(*layers)
        self.reduce = nn.Conv2d(wide, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, wide, 1)
        self.project = nn.Sequential(nn.Conv2d(wide, outs, 1, bias=False), nn.BatchNorm2d(outs))
        self.residual = stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, outs, height / stride, width / stride)."""
        y = self.layers(x)
        scale = self.excite(functional.silu(self.reduce(y.mean((2, 3), keepdim=True))))
        y = self.project(y * scale.sigmoid())
        return x + y if self.residual else y


def efficientnet_b0(classes: int = 1000) -> nn.Sequential:
    """Return EfficientNet-B0 (Tan, Le 2019, table 1)."""
    stages = [
        # expand, outs, blocks, stride, kernel
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ]
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU()]
    ins = 32
    for expand, outs, blocks, stride, kernel in stages:
        for i in range(blocks):
            layers.append(Inverted(ins, outs, kernel, stride if i == 0 else 1, expand))
            ins = outs
    layers += [nn.Conv2d(ins, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.SiLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)]
    return nn.Sequential(*layers)


class GptBlock(nn.Module):
    """A pre-norm transformer block, as GPT-2's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, width)."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, 2)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    """A GPT-2-like model: 4 layers, width 256."""

    def __init__(
        self, tokens: int = 512, width: int = 256, layers: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(128, width)
        self.blocks = nn.Sequential(*(GptBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, tokens, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (batch, tokens, vocabulary)."""
        h = self.tokens(x) + self.places.weight[: x.shape[1]]
        return self.scores(self.norm(self.blocks(h)))


def training_step(model: nn.Module, x: Tensor, target: Tensor) -> Step:
    """Return a step of SGD on a cross entropy."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x).flatten(0, -2), target).backward()
        optimizer.step()

    return step


def forward(model: nn.Module, x: Tensor) -> Step:
    """Return a forward pass without gradients."""
    model.eval()

    def step() -> None:
        with torch.no_grad():
            model(x)

    return step


def s4d_steps() -> dict[str, Step]:
    """Return a training step of each model that `sat run s4d` trains, a batch of digits."""
    from sat.data import load_data
    from sat.methods.s4d.demo import MODELS, build
    from sat.methods.s4d.digits import BATCH, CLIP, LR, SSM_LR
    from sat.methods.s4d.layer import parameter_groups

    x, target = next(iter(load_data("digits").batches(BATCH, torch.Generator().manual_seed(0))))
    steps: dict[str, Step] = {}

    def add(name: str, model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(parameter_groups(model, LR, ssm_lr=SSM_LR))

        def step() -> None:
            optimizer.zero_grad()
            functional.cross_entropy(model(x.flatten(2)), target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()

        steps[name] = step

    for name in MODELS:
        torch.manual_seed(0)
        add(name, build(name))
    return steps


def programs() -> dict[str, Step]:
    """Return what is timed, by name."""
    torch.manual_seed(0)
    words = torch.randint(512, (4, 128))
    return {
        "ResNet-18 step, batch 8, 64x64": training_step(
            resnet18(), torch.randn(8, 3, 64, 64), torch.randint(1000, (8,))
        ),
        "GPT step, 4 layers, width 256, 4 x 128 tokens": training_step(
            Gpt(), words, words.flatten()
        ),
        "EfficientNet-B0 forward, 224x224": forward(efficientnet_b0(), torch.randn(1, 3, 224, 224)),
        "depthwise Conv2d(256) forward, 14x14": forward(
            nn.Conv2d(256, 256, 3, padding=1, groups=256), torch.randn(1, 256, 14, 14)
        ),
        "LSTM 64-128 forward, 16 x 100": forward(
            nn.LSTM(64, 128, batch_first=True), torch.randn(16, 100, 64)
        ),
    }
