"""Where the lips are and how far they open: against a reference's lips, frame by frame and over time. From landmarks alone, no pictures.

Landmarks are those of one face finder for both videos: 68 (iBUG) or 478 (MediaPipe); its own error is in every number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latentsync.errors import UsageError
from latentsync.face.points import five_points, lip_opening
from latentsync.face.protocols import Face

# The 20 points of the mouth: 12 around the outer edge of the lips, 8 around the inner, from the corner on the picture's left over the upper lip.
MOUTH: dict[int, tuple[int, ...]] = {
    68: tuple(range(48, 68)),
    478: (61, 39, 37, 0, 267, 269, 291, 321, 314, 17, 84, 91, 78, 81, 13, 311, 308, 402, 14, 178),  # those nearest to the 68's, on drawn heads
}
REACH = 6  # frames of lag either way: a quarter of a second at 25 a second
LEAST = 10  # frames from which a correlation is spoken of
FOUND = 0.2  # correlation below which a lag is chance


class Follow(NamedTuple):
    """How well one curve follows another."""

    r: float  # Pearson's correlation without shift; 0 where one does not move, NaN where there are fewer than 10 common values
    best: float  # the highest within the reach
    lag: float  # frames by which the first comes late there, the fraction from a parabola; NaN where nothing correlates


def mouth(landmarks: np.ndarray) -> np.ndarray | None:
    """(n, 2) landmarks -> (20, 2) float64 around the lips; None for a layout without them."""
    chosen = MOUTH.get(len(landmarks))
    return None if chosen is None else np.asarray(landmarks, np.float64)[list(chosen)]


def opening(landmarks: np.ndarray) -> float:
    """(n, 2) landmarks -> gap between the inner edges of the lips in distances between the eyes; NaN for a layout without inner lips."""
    found = lip_opening(landmarks) if np.isfinite(landmarks).all() else None
    return float("nan") if found is None else found


def landmark_distance(made: np.ndarray, true: np.ndarray) -> float:
    """Landmarks (n, p, 2) of n frames and of the true ones -> LMD in % of the distance between the true face's eyes; 0 for equal ones.

    The mouth's 20 points of each frame, less their mean (so that a moved head does not count, but size, turn and shape do), their mean distance. That
    is the LMD of Chen et al. 2018 ("Lip Movements Generation at a Glance") per size of the face. Frames with NaN do not count; NaN where none is
    left. UsageError for shapes that differ, or a layout without a mouth.
    """
    made, true = _compared(made, true)
    eyes = np.array([_eye_distance(row) for row in true])
    return _mean(_apart(made, true) / np.maximum(eyes, 1e-6) * 100)


def landmark_distance_pixels(made: np.ndarray, true: np.ndarray) -> float:
    """As `landmark_distance`, in pixels, not per size of the face: as published, if the landmarks are those of aligned faces of 256 px.

    Papers do not say at which size and with which face finder they measured; compare with none of their numbers.
    """
    return _mean(_apart(*_compared(made, true)))


def _compared(made: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in which both are known."""
    made, true = np.asarray(made, np.float64), np.asarray(true, np.float64)
    if made.shape != true.shape or made.ndim != 3:
        raise UsageError(f"landmarks of both videos come as (n, p, 2) of one shape, found {made.shape} and {true.shape}")
    if made.shape[1] not in MOUTH:
        raise UsageError(f"the lips are known among {' or '.join(map(str, MOUTH))} landmarks, these have {made.shape[1]}")
    known = np.isfinite(made).all(axis=(1, 2)) & np.isfinite(true).all(axis=(1, 2))
    return made[known], true[known]


def _apart(made: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(n,) mean distance of the mouth's points about their own middles, pixels."""
    chosen = list(MOUTH[made.shape[1]])
    a, b = (x[:, chosen] - x[:, chosen].mean(axis=1, keepdims=True) for x in (made, true))
    return np.asarray(np.linalg.norm(a - b, axis=2).mean(axis=1))


def _eye_distance(landmarks: np.ndarray) -> float:
    eyes = five_points(Face(box=(0, 0, 1, 1), score=1.0, landmarks=landmarks))[:2].astype(np.float64)
    return float(np.linalg.norm(eyes[1] - eyes[0]))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def correlation(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Pearson's r of two curves where both are known; 0 where one of them does not move, NaN where fewer than 10 values are common."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n = min(len(x), len(y))
    known = np.isfinite(x[:n]) & np.isfinite(y[:n])
    if known.sum() < LEAST:
        return float("nan")
    x, y = x[:n][known], y[:n][known]
    if np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def follow(seen: npt.ArrayLike, asked: npt.ArrayLike, reach: int = REACH) -> Follow:
    """Two curves, one value a frame (NaN: not known) -> how `seen` follows `asked`, at lags of up to `reach` frames either way."""
    seen, asked = np.asarray(seen, np.float64), np.asarray(asked, np.float64)
    lags = range(-reach - 1, reach + 2)  # one more either way, for the parabola
    by_lag = np.array([correlation(seen[max(lag, 0) :], asked[max(-lag, 0) :]) for lag in lags])
    r = float(by_lag[reach + 1])
    if not np.isfinite(by_lag[1:-1]).any():
        return Follow(r, float("nan"), float("nan"))
    at = 1 + int(np.nanargmax(by_lag[1:-1]))
    best = float(by_lag[at])
    return Follow(r, best, lags[at] + peak(by_lag, at) if best >= FOUND else float("nan"))


def peak(values: npt.ArrayLike, at: int) -> float:
    """Where a parabola through the highest of some values and its two neighbours has its top: -0.5 to 0.5 from `at`; 0 at an end."""
    values = np.asarray(values, np.float64)
    if not 0 < at < len(values) - 1:
        return 0.0
    left, middle, right = values[at - 1 : at + 2]
    bend = left - 2 * middle + right
    if not np.isfinite(bend) or bend >= 0:
        return 0.0
    return float(np.clip((left - right) / (2 * bend), -0.5, 0.5))
