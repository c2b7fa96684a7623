"""Networks by name: the five of the paper, and transformers of common sizes.

Fang et al. (2023) name their networks and data sets, not their variants; where there are several,
the text of the entry says which one this is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Entry:
    """A network by name.

    Parameters
    ----------
    title : str
        What it is: variant, data set, source.
    make : callable
        Returns the module; under ``torch.device("meta")`` it costs no memory.
    example : callable
        Returns the input of a batch.
    batch : int
        The usual one.
    """

    title: str
    make: Callable[[], nn.Module]
    example: Callable[[int], Tensor]
    batch: int = 128


def _conv(
    cin: int, cout: int, kernel: int = 3, stride: int = 1, relu: bool = True
) -> nn.Sequential:
    """Return a convolution without bias, batch normalisation and, maybe, a ReLU."""
    parts: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(cout),
    ]
    return nn.Sequential(*parts, *([nn.ReLU(inplace=True)] if relu else []))


class Residual(nn.Module):
    """x + body(x), or shortcut(x) + body(x); a ReLU after it if asked for."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, relu: bool = False):
        super().__init__()
        self.body, self.shortcut, self.relu = body, shortcut or nn.Identity(), relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.shortcut(x) + self.body(x)
        return F.relu(y) if self.relu else y


def resnet9(width: int = 64, classes: int = 10) -> nn.Sequential:
    """Return the ResNet-9 of the DAWNBench entries: eight convolutions and a classifier.

    Parameters
    ----------
    width : int
        Channels of the first convolution.
    classes : int
    """

    def pair(channels: int) -> Residual:
        return Residual(nn.Sequential(_conv(channels, channels), _conv(channels, channels)))

    a, b, c, d = (width << i for i in range(4))
    return nn.Sequential(
        _conv(3, a),
        _conv(a, b), nn.MaxPool2d(2), pair(b),
        _conv(b, c), nn.MaxPool2d(2),
        _conv(c, d), nn.MaxPool2d(2), pair(d),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(d, classes),
    )  # fmt: skip


def vgg19(width: int = 64, classes: int = 100) -> nn.Sequential:
    """Return VGG-19 with batch normalisation and one classifier, as for 32 x 32 images.

    Parameters
    ----------
    width : int
        Channels of the first convolution.
    classes : int
    """
    parts: list[nn.Module] = []
    channels = 3
    for times, repeat in ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4)):
        for _ in range(repeat):
            parts.append(_conv(channels, times * width))
            channels = times * width
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels, classes))


def _basic(cin: int, cout: int, stride: int) -> Residual:
    body = nn.Sequential(_conv(cin, cout, stride=stride), _conv(cout, cout, relu=False))
    same = cin == cout and stride == 1
    return Residual(body, None if same else _conv(cin, cout, 1, stride, relu=False), relu=True)


def _bottleneck(cin: int, cout: int, stride: int) -> Residual:
    inner = cout // 4
    body = nn.Sequential(
        _conv(cin, inner, 1), _conv(inner, inner, stride=stride), _conv(inner, cout, 1, relu=False)
    )
    same = cin == cout and stride == 1
    return Residual(body, None if same else _conv(cin, cout, 1, stride, relu=False), relu=True)


def resnet18(width: int = 64, classes: int = 200) -> nn.Sequential:
    """Return ResNet-18 for images of 32 to 64 pixels: a 3 x 3 stem of stride 1, no pooling.

    Parameters
    ----------
    width : int
        Channels of the first stage.
    classes : int
    """
    stages: list[nn.Module] = [_conv(3, width)]
    channels = width
    for stage, blocks in enumerate((2, 2, 2, 2)):
        for block in range(blocks):
            out = width << stage
            stages.append(_basic(channels, out, 2 if stage and not block else 1))
            channels = out
    return nn.Sequential(
        *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


def resnet50(width: int = 64, classes: int = 1000) -> nn.Sequential:
    """Return ResNet-50 (He et al. 2015), the stride in the 3 x 3 convolutions ("v1.5").

    Parameters
    ----------
    width : int
        Channels of the stem.
    classes : int
    """
    stages: list[nn.Module] = [_conv(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            out = 4 * width << stage
            stages.append(_bottleneck(channels, out, 2 if stage and not block else 1))
            channels = out
    return nn.Sequential(
        *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


class Attention(nn.Module):
    """Multi-head attention; causal, and with fewer heads for keys and values, if asked for."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        causal: bool = False,
    ):
        super().__init__()
        self.heads, self.kv_heads, self.causal = heads, kv_heads or heads, causal
        self.size = width // heads
        self.qkv = nn.Linear(width, (heads + 2 * self.kv_heads) * self.size, bias)
        self.out = nn.Linear(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(x).view(batch, tokens, -1, self.size).transpose(1, 2)
        q, k, v = parts.split([self.heads, self.kv_heads, self.kv_heads], 1)
        if self.kv_heads != self.heads:
            k, v = (y.repeat_interleave(self.heads // self.kv_heads, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner, False), nn.Linear(width, inner, False)
        self.down = nn.Linear(inner, width, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def block(width: int, heads: int, inner: int, causal: bool = False) -> nn.Sequential:
    """Return a block of a transformer: attention and an MLP, each behind a normalisation."""
    mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
    return nn.Sequential(
        Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, heads, causal=causal))),
        Residual(nn.Sequential(nn.LayerNorm(width), mlp)),
    )


def llama_block(
    width: int = 4096, heads: int = 32, kv_heads: int = 8, inner: int = 14336
) -> nn.Sequential:
    """Return a block as LLaMA 3's: RMS norms, grouped keys and values, a gated MLP, no biases.

    Rotary embeddings are elementwise and left out.
    """
    attention = Attention(width, heads, kv_heads=kv_heads, bias=False, causal=True)
    return nn.Sequential(
        Residual(nn.Sequential(nn.RMSNorm(width), attention)),
        Residual(nn.Sequential(nn.RMSNorm(width), GatedMlp(width, inner))),
    )


class Vit(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2020): patches, a class token, blocks, a head."""

    def __init__(
        self,
        *,
        image: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        inner: int,
        classes: int,
    ):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(block(width, heads, inner) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Language(nn.Module):
    """Tokens in, scores of the vocabulary out; the scores' weight is the embedding's."""

    def __init__(
        self, *, tokens: int, positions: int, width: int, depth: int, heads: int, causal: bool
    ):
        super().__init__()
        self.embed, self.position = nn.Embedding(tokens, width), nn.Embedding(positions, width)
        self.blocks = nn.Sequential(*(block(width, heads, 4 * width, causal) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position.weight[: ids.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.embed.weight)


def _image(size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.zeros(batch, 3, size, size, device="meta")


def _ids(length: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.zeros(batch, length, dtype=torch.long, device="meta")


def vit(width: int = 384, depth: int = 7, heads: int = 12) -> Vit:
    """Return a small vision transformer for 32 x 32 images: 4 x 4 patches, MLPs twice as wide."""
    return Vit(
        image=32, patch=4, width=width, depth=depth, heads=heads, inner=2 * width, classes=10
    )


NETWORKS: dict[str, Entry] = {
    "resnet9": Entry("ResNet-9 (DAWNBench), CIFAR-10 size 32 x 32", resnet9, _image(32)),
    "vit": Entry(
        "ViT, CIFAR-10 size 32 x 32: 4 x 4 patches, width 384, 7 blocks of 12 heads",
        vit, _image(32),
    ),
    "vgg19": Entry("VGG-19 with batch normalisation, CIFAR-100 size 32 x 32", vgg19, _image(32)),
    "resnet18": Entry(
        "ResNet-18, Tiny ImageNet size 64 x 64, 3 x 3 stem of stride 1", resnet18, _image(64)
    ),
    "resnet50": Entry("ResNet-50 v1.5, ImageNet size 224 x 224", resnet50, _image(224), 64),
    "bert-base": Entry(
        "BERT base's sizes (12 blocks, width 768), 128 tokens, masked-language scores",
        lambda: Language(tokens=30522, positions=512, width=768, depth=12, heads=12, causal=False),
        _ids(128), 32,
    ),
    "gpt2-small": Entry(
        "GPT-2 small's sizes (12 blocks, width 768), 1,024 tokens",
        lambda: Language(tokens=50257, positions=1024, width=768, depth=12, heads=12, causal=True),
        _ids(1024), 8,
    ),
    "llama-block": Entry(
        "one block of LLaMA 3 8B's sizes, 2,048 tokens",
        llama_block,
        lambda batch: torch.zeros(batch, 2048, 4096, device="meta").requires_grad_(), 1,
    ),
}  # fmt: skip
"""What `sat schedule` knows by name; the first five are the paper's."""

PAPER = ("resnet9", "vit", "vgg19", "resnet18", "resnet50")
"""The networks of Fang et al. (2023)."""
