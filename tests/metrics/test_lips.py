"""Lips by landmarks: distances and openings of drawn points, lags planted into curves, and the true curves of the corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import UsageError
from latentsync.metrics import lips
from tests.metrics.conftest import EDGE


def face(opening: float = 0.0, scale: float = 100.0, centre: tuple[float, float] = (0.0, 0.0), shift: float = 0.0) -> np.ndarray:
    """(68, 2) landmarks: eyes 1 apart, a mouth below them that is open by so many eye distances, its upper edge moved by `shift`; times `scale`."""
    points = np.random.default_rng(0).normal(0, 0.2, (68, 2))
    points[36:42], points[42:48] = (-0.5, 0.0), (0.5, 0.0)
    around = np.linspace(np.pi, -np.pi, 13)[:12]
    points[48:60] = np.stack([0.35 * np.cos(around), 1.0 - 0.12 * np.sin(around)], axis=1)
    points[60:68] = [[-0.3, 1], [-0.15, 1], [0, 1], [0.15, 1], [0.3, 1], [0.15, 1 + opening], [0, 1 + opening], [-0.15, 1 + opening]]
    points[49:54, 1] -= shift
    return points * scale + centre


def test_the_opening_is_the_gap_in_eye_distances():
    for scale in (30.0, 200.0):
        assert lips.opening(face(0.25, scale)) == pytest.approx(0.25)
    assert lips.opening(face(0.0)) == pytest.approx(0, abs=1e-9)
    assert np.isnan(lips.opening(np.zeros((5, 2))))
    assert np.isnan(lips.opening(np.full((68, 2), np.nan)))


def test_the_mouth_is_20_points_of_either_layout():
    assert lips.mouth(np.zeros((106, 2))) is None
    for layout, chosen in lips.MOUTH.items():
        assert len(set(chosen)) == 20
        found = lips.mouth(np.stack([np.arange(layout), np.zeros(layout)], axis=1))
        assert found is not None
        assert found[:, 0].tolist() == list(chosen)


def test_the_distance_of_landmarks_is_per_eye_distance_about_the_mouth():
    true = np.stack([face(0.1), face(0.2), face(0.3)])
    assert lips.landmark_distance(true, true) == 0
    assert lips.landmark_distance(true + np.array([7.0, -3.0]), true) == pytest.approx(0, abs=1e-9)  # the whole face elsewhere
    # five of twenty points 8 px up: the mean goes 2 px along, so five are 6 px off, fifteen 2 px: 3 px in the mean, 3 % of 100
    made = np.stack([face(o, shift=0.08) for o in (0.1, 0.2, 0.3)])
    assert lips.landmark_distance(made, true) == pytest.approx(3.0)
    assert lips.landmark_distance_pixels(made, true) == pytest.approx(3.0)
    assert lips.landmark_distance(made * 2, true * 2) == pytest.approx(3.0)
    assert lips.landmark_distance_pixels(made * 2, true * 2) == pytest.approx(6.0)


def test_frames_without_a_face_do_not_count():
    true = np.stack([face(0.1), face(0.2)])
    made = np.stack([face(0.1, shift=0.08), np.full((68, 2), np.nan)])
    assert lips.landmark_distance(made, true) == pytest.approx(3.0)
    assert np.isnan(lips.landmark_distance(made[1:], true[1:]))
    with pytest.raises(UsageError, match="of one shape"):
        lips.landmark_distance(made, true[:1])
    with pytest.raises(UsageError, match="among 68 or 478 landmarks, these have 106"):
        lips.landmark_distance(np.zeros((1, 106, 2)), np.zeros((1, 106, 2)))


def test_another_mouth_is_farther_off_the_more_it_differs(corpus: Path):
    """True landmarks of a clip: lips that open by less, that come late, that stand still, and another person's."""
    with np.load(corpus / "clip_002080.npz") as truth, np.load(corpus / "clip_002081.npz") as stranger:
        true, other = (x["landmarks"].astype(np.float64) - EDGE for x in (truth, stranger))
    still = true.mean(axis=0)[lips.MOUTH[68],]

    def held(part: float) -> np.ndarray:
        made = true.copy()
        middles = made[:, 48:].mean(axis=1, keepdims=True)
        made[:, 48:] = middles + (1 - part) * (made[:, 48:] - middles) + part * (still - still.mean(axis=0))
        return made

    found = [lips.landmark_distance(x, true) for x in (true, held(0.2), held(0.5), held(1.0))]
    assert found[0] == 0
    assert found == sorted(found)
    late = [lips.landmark_distance(np.roll(true, by, axis=0)[6:], true[6:]) for by in (1, 2, 4)]
    assert 0 < late[0] < late[1] < late[2]
    assert lips.landmark_distance(other, true) > late[0]


# --- curves


def curve(n: int = 150, seed: int = 0, late: float = 0.0) -> np.ndarray:
    """As lips open in speech: below some 6 Hz, at 25 a second."""
    rng = np.random.default_rng(seed)
    rates, phases, sizes = rng.uniform(0.5, 6, (9, 1)), rng.uniform(0, 2 * np.pi, (9, 1)), rng.uniform(0.3, 1, (9, 1))
    return (sizes * np.sin(2 * np.pi * rates * (np.arange(n) - late) / 25 + phases)).sum(axis=0)


def test_a_curve_follows_itself_perfectly():
    x = curve()
    assert lips.follow(x, x) == pytest.approx((1, 1, 0), abs=1e-9)
    assert lips.follow(0.2 * x + 3, x) == pytest.approx((1, 1, 0), abs=1e-9)  # size does not count
    gaps = x.copy()
    gaps[20:50] = np.nan
    assert lips.follow(gaps, x) == pytest.approx((1, 1, 0), abs=0.01)


@pytest.mark.parametrize("late", [-5.0, -1.0, 0.3, 2.0, 3.7, 5.5])
def test_a_lag_is_found_to_a_tenth_of_a_frame(late: float):
    for seed in range(4):
        found = lips.follow(curve(seed=seed, late=late), curve(seed=seed))
        assert found.lag == pytest.approx(late, abs=0.1)
        assert found.best > 0.8
        assert found.best > found.r or abs(late) < 0.5


def test_a_lag_between_the_frames_of_real_curves_is_found(corpus: Path):
    for seed in (2075, 2080, 2085):
        with np.load(corpus / f"clip_{seed:06d}.npz") as truth:
            gap = truth["lip_gap"].astype(np.float64)
        for late in (-4.4, -0.5, 0.2, 3.3):
            moved = np.interp(np.arange(len(gap)) - late, np.arange(len(gap)), gap)
            found = lips.follow(moved, gap)
            assert found.lag == pytest.approx(late, abs=0.1), (seed, late)
            assert found.best > 0.9


def test_strangers_and_still_lips_do_not_follow(corpus: Path):
    gaps = []
    for seed in (2080, 2081):
        with np.load(corpus / f"clip_{seed:06d}.npz") as truth:
            gaps.append(truth["lip_gap"].astype(np.float64))
    assert abs(lips.follow(gaps[0], gaps[1]).r) < 0.35
    still = lips.follow(np.full(150, 0.3), gaps[0])
    assert still.r == 0
    assert np.isnan(still.lag)
    half_frozen = np.where(np.arange(150) < 75, gaps[0], gaps[0][75])
    assert 0.2 < lips.follow(half_frozen, gaps[0]).r < 0.95


def test_too_little_is_not_judged():
    assert all(np.isnan(v) for v in lips.follow(curve(9), curve(9)))
    assert all(np.isnan(v) for v in lips.follow([], []))
    assert np.isnan(lips.correlation(np.full(50, np.nan), curve(50)))


def test_a_peak_between_values_is_that_of_the_parabola():
    x = np.arange(7)
    for top in (2.6, 3.0, 3.4):
        assert 3 + lips.peak(-((x - top) ** 2), 3) == pytest.approx(top)
    assert lips.peak([1, 2, 3], 2) == lips.peak([1, 1, 1], 1) == lips.peak([np.nan, 2, 1], 1) == 0
