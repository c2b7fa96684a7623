"""Which convolutions can be orthogonal at all."""

from __future__ import annotations

from dataclasses import dataclass

from sat.methods.problems.arguments import require_counts

PADDINGS = ("circular", "valid", "same")


@dataclass(frozen=True)
class ExistenceReport:
    """Whether an architecture has orthogonal kernels.

    Parameters
    ----------
    kind : str
        ``"RO"``: no more outputs than inputs (out ≤ S² in), rows can be orthonormal; else ``"CO"``,
        columns.
    exists : bool
    floor : float or None
        Least value of L_orth; None where L_orth = 0 is not enough.
    condition : str
        What must hold, with this architecture's numbers.
    square : bool
        Whether out = S² in and windows overlap: kernels exist, but descent often stalls before.
    """

    kind: str
    exists: bool
    floor: float | None
    condition: str
    square: bool

    def require(self) -> None:
        """Raise ValueError unless orthogonal kernels exist."""
        if not self.exists:
            least = (
                "no L_orth is enough"
                if self.floor is None
                else f"the least L_orth is {self.floor:g}"
            )
            raise ValueError(
                f"no orthogonal kernel: {self.condition} is needed; {least}; change channels, "
                "kernel size or stride, or take strict=False"
            )


def orth_conv_exists(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: str = "circular",
) -> ExistenceReport:
    """Return whether a 2-D convolution can be orthogonal, and if not, the least L_orth.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int
        k, odd.
    stride : int
        S.
    padding : {"circular", "valid", "same"}
        None, in ``"valid"``; zeros, in ``"same"``, of stride 1 only, where nothing but kernels that
        act as 1 x 1 are orthogonal.

    Returns
    -------
    ExistenceReport
        Circular: rows need out ≤ k² in, columns S ≤ k. Else the floors are out - k² in and
        (S² - k²) in: windows then do not overlap, and the kernel is a matrix of too low a rank.
        Valid: rows as circular; columns need S = k, for the first S pixels of a line are read by
        the first S taps alone, the last one by the last tap alone, and those in between by all.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or it is ``"same"`` with a stride.

    Source
    ------
    Achour et al. 2022, existence, and the propositions on boundaries; the floors, and valid
    columns with a stride, are ours.
    """
    require_counts(
        in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride
    )
    if kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size={kernel_size}: must be odd; pad the kernel with zeros to "
            f"{kernel_size + 1}"
        )
    if padding not in PADDINGS:
        raise ValueError(f"padding={padding!r}: must be one of {', '.join(PADDINGS)}")
    if padding == "same" and stride > 1:
        raise ValueError(
            f"padding='same' with stride={stride}: whether orthogonal kernels exist is known for "
            "stride 1 alone; take padding='circular'"
        )
    full, taps = in_channels * stride**2, in_channels * kernel_size**2
    kind = "RO" if out_channels <= full else "CO"
    square = out_channels == full and stride < kernel_size
    if padding == "same":
        return ExistenceReport(kind, True, 0.0, "a kernel that acts as 1 x 1", square)
    if kind == "RO":
        condition = f"out <= k^2 in, here {out_channels} <= {taps},"
        floor = float(max(out_channels - taps, 0))
        return ExistenceReport(kind, out_channels <= taps, floor, condition, square)
    if padding == "valid" and stride < kernel_size:
        condition = f"S = k without padding, here {stride} = {kernel_size},"
        return ExistenceReport(kind, False, None, condition, square)
    condition = f"S <= k, here {stride} <= {kernel_size},"
    return ExistenceReport(kind, full <= taps, float(max(full - taps, 0)), condition, square)
