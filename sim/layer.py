"""A layer of a network as a plain description: sizes, patterns, what is done with its results."""

from __future__ import annotations

from dataclasses import dataclass

from sat.rtl.config import M_CHOICES, require, require_ints

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution and how it is trained.

    Parameters
    ----------
    batch, lines, pixels : int
        Images; lines of an image, pixels of a line.
    in_channels, out_channels : int
    kernel, stride, padding, dilation : (int, int)
        Vertical, horizontal; as in `torch.nn.Conv2d`.
    groups : int
    ff, bp : (int, int)
        Patterns N:M of the weights along the input channels (FF) and the output channels (BP);
        (1, 1) is dense.
    wu : (int, int)
        Pattern N:M of the output gradient along the output positions, for WU alone: image after
        image, line after line. The last group may be short.
    bias : bool
        FF's sums start from a bias.
    relu : bool
        ReLU after FF; its mask is stored.
    masked : bool
        BP's result is multiplied by the mask of the ReLU before this layer.

    Raises
    ------
    ValueError
        The layer is impossible, or outside what the device can run.
    """

    batch: int = 1
    lines: int = 1
    pixels: int = 1
    in_channels: int
    out_channels: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    ff: Pair = (1, 1)
    bp: Pair = (1, 1)
    wu: Pair = (1, 1)
    bias: bool = False
    relu: bool = False
    masked: bool = False

    def __post_init__(self) -> None:
        sizes = ("batch", "lines", "pixels", "in_channels", "out_channels", "groups")
        require_ints(self, *sizes)
        for name in ("kernel", "stride", "padding", "dilation", "ff", "bp", "wu"):
            value = getattr(self, name)
            require(
                isinstance(value, tuple) and len(value) == 2 and all(type(v) is int for v in value),
                f"{name}={value!r}: must be a tuple of two ints",
            )
        for name in sizes:
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: at least 1")
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            value = getattr(self, name)
            require(
                len(value) == 2 and min(value) >= least, f"{name}={value}: two of {least} or more"
            )
        for name in ("in_channels", "out_channels"):
            value = getattr(self, name)
            require(
                value % self.groups == 0, f"{name}={value}: groups={self.groups} must divide it"
            )
        for axis in range(2):
            require(
                self.out_size[axis] >= 1,
                f"kernel={self.kernel}: with dilation {self.dilation} it is larger than the "
                f"padded image ({self.lines} x {self.pixels}, padding {self.padding})",
            )
        for name in ("ff", "bp", "wu"):
            n, m = getattr(self, name)
            require(
                (n, m) == (1, 1) or (m in M_CHOICES and 1 <= n <= m),
                f"{name} pattern {n}:{m}: N must be 1 to M and M one of {M_CHOICES}, or 1:1",
            )
        require(
            not self.depthwise or self.wu == (1, 1),
            f"wu pattern {self.wu[0]}:{self.wu[1]}: WU of a depthwise layer meets each gradient "
            "with one channel alone; leave it dense (1:1)",
        )
        for name, channels in (("ff", self.in_per_group), ("bp", self.out_per_group)):
            n, m = getattr(self, name)
            require(
                not self.depthwise or m == 1,
                f"{name} pattern {n}:{m}: a depthwise layer has one channel to prune along; "
                "leave it dense (1:1)",
            )
            require(
                channels % m == 0,
                f"{name} pattern {n}:{m}: M must divide the {channels} channels along which it "
                "prunes; leave this layer dense (1:1)",
            )

    @property
    def depthwise(self) -> bool:
        """Whether every channel is a group of its own."""
        return self.groups > 1 and self.in_channels == self.out_channels == self.groups

    @property
    def in_per_group(self) -> int:
        return self.in_channels // self.groups

    @property
    def out_per_group(self) -> int:
        return self.out_channels // self.groups

    def pattern(self, stage: str) -> Pair:
        """Return the pattern of a stage's right operand; (1, 1) where nothing is pruned."""
        return {"ff": self.ff, "bp": self.bp, "wu": self.wu}.get(stage, (1, 1))

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return self.kernel[0] * self.kernel[1]

    @property
    def out_size(self) -> Pair:
        """Lines and pixels of an output image."""
        sizes = []
        for axis, size in enumerate((self.lines, self.pixels)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            sizes.append((size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1)
        return sizes[0], sizes[1]

    @property
    def in_positions(self) -> int:
        """Pixels of all input images."""
        return self.batch * self.lines * self.pixels

    @property
    def out_positions(self) -> int:
        """Pixels of all output images."""
        return self.batch * self.out_size[0] * self.out_size[1]

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of FF, dense, padding included; BP and WU have as many."""
        return self.out_positions * self.taps * self.in_per_group * self.out_channels
