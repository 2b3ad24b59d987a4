"""The parts of tracking that need no network: cuts, gaps, fades, smoothing, the choice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from latentsync.errors import UsageError
from latentsync.face import cuts
from latentsync.face.protocols import Face
from latentsync.face.track import BRIDGE, FADE, LOOKAHEAD, SMOOTH, Tracked, Tracker, _bridge, _Seen, _settle, choose_face, smooth


def scene(seed: int, side: int = 160) -> np.ndarray:
    """A room of large coloured blocks with some texture."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 256, (5, 6, 3)), np.ones((side // 5, side // 5, 1)))
    return np.clip(blocks + rng.normal(0, 6, blocks.shape), 0, 255).astype(np.uint8)


def cut_frames(still, arrays: list[np.ndarray]) -> list[int]:  # type: ignore[no-untyped-def]
    found = list(cuts.shots(arrays, still))
    assert [id(s.frame) for s in found] == [id(a) for a in arrays]
    return [i for i, s in enumerate(found) if s.cut]


def test_cuts_are_found_and_noise_is_not_one(still) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    noisy = [np.clip(scene(s).astype(int) + rng.normal(0, 4, scene(s).shape), 0, 255).astype(np.uint8) for s in [1] * 12 + [2] * 7 + [1] * 12]
    assert cut_frames(still, noisy) == [12, 19]


def test_a_cut_to_almost_the_same_picture_is_found(still) -> None:  # type: ignore[no-untyped-def]
    """A jump cut: the same room, but what stands in it is elsewhere."""
    before, after = scene(1), scene(1)
    before[60:140, 40:90] = 250
    after[40:140, 70:125] = 250
    after[100:130, 10:60] = (200, 20, 20)
    assert cut_frames(still, [before] * 10 + [after] * 10) == [10]


def test_a_flash_is_no_cut(still) -> None:  # type: ignore[no-untyped-def]
    white = np.full_like(scene(1), 250)
    assert cut_frames(still, [scene(1)] * 8 + [white] + [scene(1)] * 8) == []
    assert cut_frames(still, [scene(1)] * 8 + [white] * 8) == [8]


def test_a_pan_is_no_cut(still) -> None:  # type: ignore[no-untyped-def]
    wide = np.concatenate([scene(1), scene(2), scene(3)], axis=1)
    assert cut_frames(still, [wide[:, i * 8 : i * 8 + 192] for i in range(40)]) == []


def test_a_cut_at_the_end_and_in_a_short_clip(still) -> None:  # type: ignore[no-untyped-def]
    assert cut_frames(still, [scene(1)] * 5 + [scene(2)]) == [5]
    assert cut_frames(still, [scene(1), scene(2)]) == [1]
    assert cut_frames(still, [scene(1)]) == []
    assert cut_frames(still, []) == []


def test_repeated_pictures_are_still(still) -> None:  # type: ignore[no-untyped-def]
    one, other = still(scene(1)), still(scene(1))
    found = list(cuts.shots([one, one, other], lambda p: p))
    assert [s.still for s in found] == [False, True, True]


def seen(present: str) -> list[_Seen[int]]:
    """'x' a frame with the face, '.' one without, '|' the next frame is a cut; the face moves evenly."""
    items, cut = [], False
    for mark in present:
        if mark == "|":
            cut = True
            continue
        i = len(items)
        points = np.array([[10.0 + i, 20], [50.0 + i, 20], [30.0 + i, 40 + 2 * i]])
        items.append(_Seen(i, cut, points, (float(i), 0.0, 60.0 + i, 90.0), 0.0) if mark == "x" else _Seen(i, cut))
        cut = False
    return items


def settle(present: str) -> list[Tracked[int]]:
    items = seen(present)
    found = list(_settle(_bridge(items)))
    assert [t.frame for t in found] == list(range(len(items)))
    assert [t.cut for t in found] == [s.cut for s in items]
    return found


def strengths(present: str) -> list[float]:
    return [round(t.strength * (FADE + 1), 6) for t in settle(present)]


def test_short_gaps_are_bridged_and_long_ones_are_not() -> None:
    face = "x" * 8
    assert all(t.points is not None and t.strength == 1 for t in settle(face + "." * BRIDGE + face))
    long = settle(face + "." * (BRIDGE + 1) + face)
    assert [t.points is None for t in long] == [False] * 8 + [True] * (BRIDGE + 1) + [False] * 8
    # an even motion is interpolated exactly
    for t in settle(face + "..." + face):
        assert t.points is not None
        np.testing.assert_allclose(t.points[2], [30 + t.frame, 40 + 2 * t.frame], atol=1e-4)


def test_gaps_at_the_ends_and_across_cuts_stay() -> None:
    assert [t.points is None for t in settle("..xxxx")] == [True] * 2 + [False] * 4
    assert [t.points is None for t in settle("xxxx..")] == [False] * 4 + [True] * 2
    assert [t.points is None for t in settle("xxxx.|.xxxx")] == [False] * 4 + [True] * 2 + [False] * 4
    assert [t.points is None for t in settle("xxxx..|xxxx")] == [False] * 4 + [True] * 2 + [False] * 4


def test_the_face_fades_where_it_leaves_and_appears() -> None:
    assert strengths("x" * 8 + "." * 8 + "x" * 8) == [5, 5, 5, 5, 4, 3, 2, 1, *[0] * 8, 1, 2, 3, 4, 5, 5, 5, 5]


def test_no_fade_at_cuts_and_at_the_ends_of_the_video() -> None:
    assert strengths("x" * 12) == [5] * 12
    assert strengths("x" * 6 + "|" + "x" * 6) == [5] * 12
    assert strengths("x" * 6 + "|" + "." * 6 + "|" + "x" * 6) == [5] * 6 + [0] * 6 + [5] * 6
    assert strengths("......xxxxxx") == [0] * 6 + [1, 2, 3, 4, 5, 5]


def test_a_face_seen_for_a_moment_only_flickers_softly() -> None:
    assert strengths("......xxx......") == [0] * 6 + [1, 2, 1] + [0] * 6


def test_smoothing_passes_even_motion_and_stops_at_cuts() -> None:
    for t in settle("x" * 20):
        assert t.points is not None
        np.testing.assert_allclose(t.points[2], [30 + t.frame, 40 + 2 * t.frame], atol=1e-4)
    items = seen("x" * 6 + "|" + "x" * 6)
    for i in range(6, 12):  # elsewhere after the cut
        items[i].points[:] += 500  # type: ignore[index]
    found = [t.points for t in _settle(_bridge(items)) if t.points is not None]
    np.testing.assert_allclose([p[0, 0] for p in found], [10 + i + 500 * (i >= 6) for i in range(12)], atol=1e-4)


def test_smoothing_keeps_a_still_face_bit_for_bit() -> None:
    points = np.random.default_rng(3).normal(300, 50, (3, 2))
    for at in range(9):
        assert (smooth(np.stack([points] * 9), at) == points).all()


def test_smoothing_lessens_noise_without_lag() -> None:
    rng = np.random.default_rng(4)
    t = np.arange(400)
    truth = np.stack([20 * np.sin(2 * np.pi * t / 25)] * 6, axis=1).reshape(-1, 3, 2)  # one nod a second at 25 fps
    noisy = truth + rng.normal(0, 1, truth.shape)
    items = [_Seen(int(i), False, p, (0.0, 0.0, 60.0, 90.0)) for i, p in zip(t, noisy, strict=True)]
    out = np.stack([r.points for r in _settle(_bridge(items)) if r.points is not None])
    error = out - truth
    assert error[10:-10].std() < 0.6

    def fit(shift: int) -> float:
        return float(((out[50:350] - truth[50 - shift : 350 - shift]) ** 2).mean())

    assert min(range(-3, 4), key=fit) == 0


def test_look_ahead_is_bounded(still) -> None:  # type: ignore[no-untyped-def]
    """Everything between the frames going in and coming out holds at most LOOKAHEAD frames."""
    assert LOOKAHEAD <= 16
    asked = 0

    def stream() -> Iterator[_Seen[int]]:
        nonlocal asked
        for item in seen("x" * 30 + "." * 30 + "xx...x...xxxxxxx" + "x" * 30):
            asked += 1
            yield item

    for given, _ in enumerate(_settle(_bridge(stream()))):
        assert asked - given - 1 <= BRIDGE + max(FADE, SMOOTH)
    asked_frames = 0

    def pictures() -> Iterator[np.ndarray]:
        nonlocal asked_frames
        for _ in range(20):
            asked_frames += 1
            yield scene(1)

    for given, _ in enumerate(cuts.shots(pictures(), still)):
        assert asked_frames - given - 1 <= cuts.AHEAD


def test_choice_among_faces() -> None:
    landmarks = np.zeros((5, 2), np.float32)
    boxes = [(300.0, 0.0, 340.0, 50.0), (100.0, 0.0, 200.0, 100.0), (0.0, 0.0, 50.0, 60.0)]
    right, middle, left = faces = [Face(b, 0.9, landmarks) for b in boxes]
    assert choose_face(faces, "largest") is middle
    assert choose_face(faces, "left") is left
    assert choose_face(faces, "right") is right
    assert [choose_face(faces, n) for n in (1, 2, 3, 4)] == [left, middle, right, None]
    assert choose_face(faces, (310, 20)) is right
    assert choose_face(faces, (90, 50)) is middle  # in none: the nearest
    assert choose_face(faces, (2000, 2000)) is None  # next to none: that person comes later, or never
    assert choose_face([], "left") is None


@pytest.mark.parametrize("choose", ["biggest", 0, -1, True, (1,), (1, 2, 3), None, 1.5])
def test_unknown_choices_are_refused(choose: object) -> None:
    with pytest.raises(UsageError, match="largest"):
        Tracker(None, choose)  # type: ignore[arg-type]
