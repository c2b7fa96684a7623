"""What calibration inputs say about each column of a weight: sums, variances, second moments."""

from __future__ import annotations

import torch
from torch import Tensor


class ColumnStatistics:
    """Sums over calibration samples, in float64, of each input column of a layer.

    Parameters
    ----------
    columns : int
        Inputs of the layer, at least 1.
    hessian : bool
        Whether `hessian` is gathered, too: a product of columns x tokens x columns a call.

    Attributes
    ----------
    samples : int
        How many were added.

    Raises
    ------
    ValueError
        If ``columns`` is no int of at least 1.

    Source
    ------
    Zhang et al., "Dynamic Sparse No Training", ICLR 2024; ``lib/layerwrapper.py`` of the authors.
    """

    def __init__(self, columns: int, *, hessian: bool = False) -> None:
        if not isinstance(columns, int) or isinstance(columns, bool) or columns < 1:
            raise ValueError(
                f"columns={columns!r}: must be an int of at least 1; give weight.shape[1]"
            )
        self.columns = columns
        self.samples = 0
        self._squares, self._sums, self._variances = torch.zeros(3, columns, dtype=torch.float64)
        self._hessian = torch.zeros(columns, columns) if hessian else None

    def add(self, x: Tensor) -> None:
        """Add samples.

        Parameters
        ----------
        x : torch.Tensor
            (samples, tokens, columns), or (tokens, columns) for one sample; real and finite.
            Calls may differ in how many tokens a sample has.

        Raises
        ------
        ValueError
            If its shape is another, it is empty, or has NaNs or infinities; nothing was added.
        """
        if x.ndim == 2:
            x = x[None]
        if x.ndim != 3 or x.shape[-1] != self.columns or not x.numel():
            raise ValueError(
                f"x is {tuple(x.shape)}: must be (samples, tokens, {self.columns}) with at least "
                "one token; reshape it"
            )
        if not x.is_floating_point() or not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"x is {x.dtype} or has NaNs or infinities: must be finite floating point; leave "
                "out what is not"
            )
        x = x.detach()
        if self._hessian is not None:
            flat = x.flatten(0, 1).float()
            self._hessian += flat.mT @ flat
        wide = x.double()
        self._squares += wide.square().sum((0, 1))
        self._sums += wide.sum((0, 1))
        variance = wide.var(1, unbiased=False)
        # Rounding of the mean would make a tiny variance of a constant column, and divide by it.
        self._variances += variance.masked_fill(wide.amax(1) == wide.amin(1), 0).sum(0)
        self.samples += len(x)

    @property
    def norm2(self) -> Tensor:
        """Mean over samples of the sum over tokens of x², (columns,) float64."""
        return self._squares / self.require_samples()

    @property
    def total(self) -> Tensor:
        """Mean over samples of the sum over tokens of x, (columns,) float64."""
        return self._sums / self.require_samples()

    @property
    def variance(self) -> Tensor:
        """Mean over samples of the variance over its tokens, (columns,) float64.

        The population's; what samples' means differ by is no part of it.
        """
        return self._variances / self.require_samples()

    @property
    def hessian(self) -> Tensor:
        """Sum over all tokens of x xᵀ, (columns, columns) float64.

        Raises
        ------
        ValueError
            If it was not asked for.
        """
        self.require_samples()
        if self._hessian is None:
            raise ValueError(
                "these statistics have no Hessian: make them with ColumnStatistics(columns, "
                "hessian=True) before add(x), which fills it"
            )
        return self._hessian.double()

    def require_samples(self) -> int:
        """Return how many samples there are; raise ValueError if there is none."""
        if not self.samples:
            raise ValueError(
                "these statistics have no sample: call add(x) with calibration inputs first"
            )
        return self.samples
