"""Many videos to one number: mean, median and how far the mean can be trusted. Resampled over videos, which are what is independent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from latentsync.evaluate.records import Results, Row

DRAWS = 2000  # bootstrap samples: the ends of the interval are then steady to about a twentieth of its width
SEED = 20240621  # of all intervals, so that the same rows give the same interval


@dataclass(frozen=True)
class Summary:
    """A metric over videos."""

    count: int
    mean: float
    median: float
    low: float  # 95 % bootstrap interval of the mean; the mean itself where there is one video only
    high: float
    least: float
    most: float


@dataclass(frozen=True)
class Paired:
    """How a metric differs between two systems on the same videos: b - a."""

    count: int
    difference: float  # mean
    low: float  # 95 % bootstrap interval
    high: float
    higher: float  # share of the videos in which b is higher than a, ties counting half


def summarise(values: Sequence[float], seed: int = SEED) -> Summary:
    """Finite values of at least one video -> their summary. The interval is the percentile bootstrap's (Efron 1979) over videos."""
    x = np.asarray(values, np.float64)
    low, high = _interval(x, seed)
    return Summary(len(x), float(x.mean()), float(np.median(x)), low, high, float(x.min()), float(x.max()))


def _interval(x: np.ndarray, seed: int) -> tuple[float, float]:
    if len(x) == 1:
        return float(x[0]), float(x[0])
    draw = np.random.default_rng(seed)
    means = np.array([x[draw.integers(0, len(x), len(x))].mean() for _ in range(DRAWS)])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def by_key(rows: Iterable[Row]) -> dict[str, list[float]]:
    """The values of each metric over the rows that have it, in their order."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.values.items():
            found.setdefault(key, []).append(value)
    return found


def table(results: Results) -> dict[str, Summary]:
    """Metric -> its summary over the videos that have it."""
    return {key: summarise(values) for key, values in by_key(results.good).items()}


def paired(a: Results, b: Results) -> dict[str, Paired]:
    """Metric -> how b differs from a, over the videos (of equal names) in which both have it."""
    mine = {row.name: row for row in a.good}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in b.good:
        other = mine.get(row.name)
        for key, value in row.values.items():
            if other is not None and key in other.values:
                found.setdefault(key, []).append((other.values[key], value))
    out = {}
    for key, pairs in found.items():
        d = np.array([y - x for x, y in pairs])
        low, high = _interval(d, SEED)
        out[key] = Paired(len(d), float(d.mean()), low, high, float((d > 0).mean() + (d == 0).mean() / 2))
    return out
