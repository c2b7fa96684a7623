"""Random devices: every field of `SatConfig`, small values more often than large ones."""

from __future__ import annotations

import random
from dataclasses import replace

from sat.rtl.config import MOST_BEAT_WORDS, AxiConfig, FpTiming, SatConfig, least_words


def _depth(rng: random.Random, least: int, most: int) -> int:
    """Return a power of two, often the least."""
    found = least
    while found < most and rng.random() < 0.6:
        found *= 2
    return found


def random_config(rng: random.Random, side: int = 64, depth: int = 32768) -> SatConfig:
    """Return a legal configuration with at most ``side`` rows and columns.

    Parameters
    ----------
    depth : int
        The most words of a buffer, where its rules leave a choice.
    """
    max_m = rng.choice([2, 4, 8, 16])
    ports, data_bits = rng.choice(
        [
            (ports, bits)
            for ports, bits in ((n, 32 << k) for n in (1, 1, 2, 4) for k in range(5))
            if (ports == 1 or bits >= 128) and ports * bits <= MOST_BEAT_WORDS * 16 * max_m
        ]
    )
    least = least_words(max(1, ports * data_bits // (16 * max_m)))
    interleave = rng.choice([1, 2, 4, 8])
    sides = [rng.randint(1, rng.choice([3, 5, 9, 17, side])) for _ in range(2)]
    rows, cols = (min(value, side, ports * data_bits) for value in sides)
    sums = 16
    while sums < 2 * rows * interleave:
        sums *= 2
    made = SatConfig(
        rows=rows,
        cols=cols,
        max_m=max_m,
        max_n=rng.randint(1, max_m),
        interleave=interleave,
        fp=FpTiming(
            multiplier_stages=rng.randint(1, 3),
            adder_stages=rng.randint(1, interleave),
            update_multiplier_stages=rng.randint(3, 5),
            prune_stages=rng.randint(1, 3),
        ),
        a_words=_depth(rng, least["a_words"], depth),
        b_words=_depth(rng, least["b_words"], depth),
        sum_words=_depth(rng, sums, max(sums, depth)),
        update_lanes=rng.choice([1, 2, 4, 8, 16, 32]),
        update_words=_depth(rng, least["update_words"], depth),
        copy_words=_depth(rng, least["copy_words"], depth),
        tile_weights=_depth(rng, 256, 16384),
        axi=AxiConfig(
            data_bits=data_bits,
            ports=ports,
            address_bits=rng.randint(21, 48),
            burst_beats=1 << rng.randint(0, 8),
            outstanding=1 << rng.randint(1, 6),
        ),
        queue_depth=rng.choice([2, 4, 8, 16]),
        watchdog_cycles=1 << rng.randint(14, 30),
    )
    crossings = rng.sample(range(1, rows), min(rows - 1, rng.choice([0, 0, 1, 2])))
    made = replace(made, crossings=tuple(crossings))
    can_prune = made.granule_halves <= cols <= made.axi.beat_bytes // 2
    return replace(made, prune_gathers=can_prune and rng.random() < 0.5)
