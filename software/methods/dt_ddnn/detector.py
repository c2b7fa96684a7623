"""Two networks and two thresholds: the second decides what the first is not sure of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sat.methods.dt_ddnn.features import FEATURES, features
from sat.methods.dt_ddnn.fourier import require_transform
from sat.methods.dt_ddnn.networks import (
    EPOCHS,
    STAGE_EPOCHS,
    JammingDNN,
    cascade_train,
    probability,
    train,
)  # fmt: skip
from sat.methods.dt_ddnn.signal import SSBRecords

THRESHOLDS = (0.02, 0.95)
PURITY = (0.98, 0.99)
"""Of what lies below the lower threshold (clean) and above the upper one (jammed)."""
WEAK = 15.0
"""From this ratio of signal to jammer on, dB, a jammer is extra low."""
CLIP = 10.0
"""The first network's logit goes into the second one within this."""
LEAST = 64
"""Records to train on."""


class DTDDNN(nn.Module):
    """Tells from one synchronisation signal block whether a jammer is active.

    The first network's probability p1 decides where it is at most ``t_lo`` (clean) or at least
    ``t_hi`` (jammed). Between them, and only there, the second one decides by p2 >= 0.5; it was
    trained on weak jammers alone, and has p1's logit beside the features.

    Parameters
    ----------
    thresholds : (float, float)
        t_lo and t_hi, used until a fit with a validation set chooses others.
    transform : {"fft", "products"}
        Of `features`.
    cascade : bool
        Train layer after layer (`cascade_train`) instead of end to end.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Asemian, Amini, Kantarci, Erol-Kantarci 2024, arXiv 2403.02645; layers, thresholds and what the
    second network is trained on are ours, as the paper's code is not published.
    """

    mean: Tensor
    deviation: Tensor
    limits: Tensor
    fitted: Tensor

    def __init__(
        self,
        thresholds: tuple[float, float] = THRESHOLDS,
        transform: str = "fft",
        cascade: bool = False,
    ) -> None:
        super().__init__()
        require_transform(transform)
        self.transform, self.cascade = transform, cascade
        self.first, self.second = JammingDNN(FEATURES), JammingDNN(FEATURES + 1)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("deviation", torch.ones(FEATURES))
        self.register_buffer("limits", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("fitted", torch.tensor(False))
        self.thresholds = thresholds
        self.eval()

    @property
    def thresholds(self) -> tuple[float, float]:
        """t_lo and t_hi."""
        low, high = self.limits.tolist()
        return low, high

    @thresholds.setter
    def thresholds(self, values: tuple[float, float]) -> None:
        low, high = values
        if not 0 < low < high < 1:
            raise ValueError(f"thresholds=({low}, {high}): must be 0 < t_lo < t_hi < 1")
        self.limits.copy_(torch.tensor(values, dtype=torch.float64))

    # ------------------------------------------------------------------------------------- training

    def fit(
        self,
        records: SSBRecords,
        validation: SSBRecords | None = None,
        seed: int = 0,
        *,
        weak: SSBRecords | None = None,
        epochs: int | None = None,
    ) -> DTDDNN:
        """Train both networks anew, then choose the thresholds.

        Parameters
        ----------
        records : SSBRecords
            The first network's, clean and jammed at all powers; features are standardised by them.
        validation : SSBRecords, optional
            Chooses the thresholds, by `choose_thresholds`; without it they stay.
        seed : int
            Of weights, order and dropout.
        weak : SSBRecords, optional
            The second network's. Without it, those jammed records from 15 dB on, and as many clean
            ones.
        epochs : int, optional
            20; of each stage of a cascade 10.

        Returns
        -------
        DTDDNN
            Itself.

        Raises
        ------
        ValueError
            If there are fewer than 64 records or only one class in one of the sets, or a number
            breaks its rule.
        """
        chosen = None if validation is None else (self.features(validation.iq), validation.jammed)
        if weak is None:
            weak = weak_records(records)
        return self.fit_features(
            self.features(records.iq), records.jammed, self.features(weak.iq), weak.jammed,
            chosen, seed, epochs=epochs,
        )  # fmt: skip

    def fit_features(
        self,
        x: Tensor,
        jammed: Tensor,
        weak_x: Tensor,
        weak_jammed: Tensor,
        validation: tuple[Tensor, Tensor] | None = None,
        seed: int = 0,
        *,
        epochs: int | None = None,
    ) -> DTDDNN:
        """`fit`, by features (n, 134) float32 and labels (n,) bool of each set."""
        for name, labels in (("records", jammed), ("weak", weak_jammed)):
            _require_classes(name, labels, LEAST)
        if validation is not None:
            _require_classes("validation", validation[1], 2)
        method, usual = (cascade_train, STAGE_EPOCHS) if self.cascade else (train, EPOCHS)
        generator = torch.Generator().manual_seed(seed)
        self.mean.copy_(x.mean(0))
        # A feature that never varies tells nothing: it becomes 0.
        self.deviation.copy_(x.std(0).clamp(min=1e-6))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
            method(
                self.first, self.standardise(x), jammed, epochs=epochs or usual, generator=generator
            )
            method(
                self.second, self._second_inputs(self.standardise(weak_x)), weak_jammed,
                epochs=epochs or usual, generator=generator,
            )  # fmt: skip
        self.fitted.fill_(True)
        if validation is not None:
            scores = self.first_probability(validation[0])
            self.thresholds = choose_thresholds(scores, validation[1])
        return self

    # ------------------------------------------------------------------------------------ operation

    def features(self, iq: Tensor) -> Tensor:
        """Return features (n, 134) of records (n, 1224), not standardised."""
        return features(iq, self.transform)

    def standardise(self, x: Tensor) -> Tensor:
        """Return features with mean 0 and deviation 1 on the training set.

        Raises
        ------
        ValueError
            If ``x`` is not (n, 134).
        """
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(
                f"x has shape {tuple(x.shape)}: must be (n, {len(self.mean)}), of features()"
            )
        return (x - self.mean) / self.deviation

    @torch.no_grad()
    def _second_inputs(self, standard: Tensor) -> Tensor:
        logit = self.first(standard).clamp(-CLIP, CLIP)
        return torch.cat((standard, logit[:, None]), 1)

    @torch.no_grad()
    def first_probability(self, x: Tensor) -> Tensor:
        """Return p1 (n,) float64 of features (n, 134): the detector with a single network."""
        self._require_fit()
        return probability(self.first(self.standardise(x)))

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decide by features.

        Parameters
        ----------
        x : torch.Tensor
            (n, 134) float32, not standardised.

        Returns
        -------
        probability : torch.Tensor
            (n,) float64: p1 where the first network decides, p2 elsewhere.
        labels : torch.Tensor
            (n,) bool.
        stage : torch.Tensor
            (n,) int64: 1 or 2, the network that decided.

        Raises
        ------
        ValueError
            If ``x`` has another width.
        RuntimeError
            If nothing was fitted.
        """
        self._require_fit()
        standard = self.standardise(x)
        logit = self.first(standard)
        p = probability(logit)
        low, high = self.thresholds
        labels, between = p >= high, (p > low) & (p < high)
        if bool(between.any()):
            given = torch.cat((standard, logit.clamp(-CLIP, CLIP)[:, None]), 1)[between]
            p[between] = probability(self.second(given))
            labels[between] = p[between] >= 0.5
        return p, labels, 1 + between.long()

    def predict_proba(self, iq: Tensor) -> Tensor:
        """Return the probability of a jammer.

        Parameters
        ----------
        iq : torch.Tensor
            (n, 1224) complex.

        Returns
        -------
        torch.Tensor
            (n,) float64: p1 where the first network decides, p2 elsewhere.

        Raises
        ------
        TypeError, ValueError
            If ``iq`` is not as `pss_correlation` wants it.
        RuntimeError
            If nothing was fitted.
        """
        self._require_fit()
        return self(self.features(iq))[0]  # type: ignore[no-any-return]

    def predict(self, iq: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels (n,) bool, and the network that decided (n,) int64: 1 or 2.

        Parameters and errors are `predict_proba`'s.
        """
        self._require_fit()
        return self(self.features(iq))[1:]  # type: ignore[no-any-return]

    def _require_fit(self) -> None:
        if not bool(self.fitted):
            raise RuntimeError("the detector has seen no records: call fit, or load a fitted state")


# ------------------------------------------------------------------------------------------ rules


def weak_records(records: SSBRecords) -> SSBRecords:
    """Return the records jammed at 15 dB or weaker, and the first clean ones, as many."""
    jammed = (records.jammed & (records.sjr_db >= WEAK)).nonzero()[:, 0]
    clean = (~records.jammed).nonzero()[: len(jammed), 0]
    return records[torch.cat((jammed, clean))]


def choose_thresholds(
    scores: Tensor, jammed: Tensor, purity: tuple[float, float] = PURITY
) -> tuple[float, float]:
    """Return thresholds that keep what lies outside them pure.

    t_hi is the least score at or above which the share of jammed records reaches ``purity[1]``;
    t_lo the largest below t_hi at or below which that of clean ones reaches ``purity[0]``. Where no
    score does, that threshold lies beyond all scores, halfway to 0 or 1.

    Parameters
    ----------
    scores : torch.Tensor
        (n,) in (0, 1), p1 of a validation set.
    jammed : torch.Tensor
        (n,) bool.
    purity : (float, float)

    Returns
    -------
    (float, float)
        t_lo and t_hi.

    Raises
    ------
    ValueError
        If shapes do not fit, or there is only one class.
    """
    scores = scores.double()
    _require_scores(scores, jammed)
    ordered, places = scores.sort()
    clean = (~jammed[places]).double()
    # Equal scores are decided alike: a threshold takes all or none of them.
    last = torch.cat((ordered[1:] > ordered[:-1], torch.tensor([True])))
    first = torch.cat((torch.tensor([True]), last[:-1]))
    counts = torch.arange(1, len(scores) + 1)
    above = (1 - clean).flip(0).cumsum(0).flip(0) / counts.flip(0)
    fit = first & (above >= purity[1])
    high = float(ordered[fit][0]) if bool(fit.any()) else (float(ordered[-1]) + 1) / 2
    below = clean.cumsum(0) / counts
    fit = last & (below >= purity[0]) & (ordered < high)
    low = float(ordered[fit][-1]) if bool(fit.any()) else float(ordered[0]) / 2
    return low, high


def detection_at_false_alarm(scores: Tensor, labels: Tensor, fa: float) -> float:
    """Return the share of jammed records found at a false-alarm rate, or just below it.

    Parameters
    ----------
    scores : torch.Tensor
        (n,) real; larger is more likely jammed.
    labels : torch.Tensor
        (n,) bool, True for jammed.
    fa : float
        In [0, 1): the largest share of clean records that may be found, too.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If shapes do not fit, there is only one class, a score is NaN, or ``fa`` is outside [0, 1).
    """
    _require_scores(scores, labels)
    if not 0 <= fa < 1:
        raise ValueError(f"fa={fa}: must be in [0, 1), a share of clean records")
    clean = scores[~labels].sort(descending=True).values
    threshold = clean[math.floor(fa * len(clean) + 1e-9)]
    return float((scores[labels] > threshold).double().mean())


def _require_scores(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 1 or scores.shape != labels.shape or labels.dtype != torch.bool:
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {labels.dtype} {tuple(labels.shape)}: must "
            "be (n,), labels bool"
        )
    if bool(scores.isnan().any()):
        raise ValueError("scores has NaN: refused; look at the network's weights")
    _require_classes("labels", labels, 2)


def _require_classes(name: str, jammed: Tensor, least: int) -> None:
    if len(jammed) < least:
        raise ValueError(f"{name}: {len(jammed)} records: must be at least {least}; simulate more")
    found = int(jammed.sum())
    if found in (0, len(jammed)):
        word = "jammed" if found else "clean"
        raise ValueError(f"{name}: all records are {word}: must have both classes")
