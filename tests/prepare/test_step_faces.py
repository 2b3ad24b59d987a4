"""Everyone in a span is followed and measured; the decision looks at the numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentsync.errors import InputError, UsageError
from latentsync.face.points import anchor_points
from latentsync.face.protocols import FaceBackend
from latentsync.face.track import Tracker
from latentsync.media.clip import frames_between
from latentsync.prepare.records import Span
from latentsync.prepare.steps import faces
from latentsync.prepare.steps.faces import Faces, Track
from tests.prepare.footage import make, noise

Head = Callable[..., np.ndarray]


def measured(path: Path, seconds: Fraction, finder: FaceBackend, start: Fraction = Fraction(0)) -> Faces:
    return faces.measure(path, Span(start, start + seconds), path.with_suffix(".npz"), backend=finder)


def test_one_person(tmp_path: Path, head: Head, finder: FaceBackend) -> None:
    path = make(tmp_path / "a.mp4", 20, picture=head, sound=noise(0.8))
    found = measured(path, Fraction(4, 5), finder)
    assert (found.frames, found.gap, len(found.tracks)) == (20, 0, 1)
    main = found.tracks[0]
    assert (main.frames, main.share, main.first, main.last) == (20, 1.0, 0, 19)
    assert 140 < main.width < 200
    assert 140 < main.height < 200
    assert main.yaw is not None
    assert main.yaw < 25
    assert faces.decide(found).keep
    assert faces.decide(found, one_person=True, min_face=128, max_yaw=30).keep
    assert faces.decide(found, min_face=256) == (False, f"the face is {main.width:.0f}x{main.height:.0f} pixels, smaller than 256")
    # the same face as in inference
    with np.load(found.landmarks) as file:  # type: ignore[arg-type]
        landmarks, present = file["landmarks"], file["present"]
    assert landmarks.shape == (20, 68, 2)
    assert present.all()
    frames = frames_between(path, Fraction(0), Fraction(4, 5), 25)
    tracked = list(Tracker(finder).track(frames, lambda f: f.picture))
    assert np.allclose([t.box for t in tracked], np.concatenate([landmarks.min(1), landmarks.max(1)], 1), atol=0.01)


def test_two_people_stay_two(tmp_path: Path, head: Head, finder: FaceBackend) -> None:
    def both(k: int) -> np.ndarray:
        return head(k, 200, (300, 60), head(k, 280, (0, 20), (520, 320)))

    found = measured(make(tmp_path / "a.mp4", 10, picture=both), Fraction(2, 5), finder)
    assert [t.frames for t in found.tracks] == [10, 10]
    assert found.tracks[0].width > 1.2 * found.tracks[1].width
    assert faces.decide(found, one_person=True) == (False, "2 people")
    assert "1 other beside it" in faces.decide(found).reason
    with np.load(found.landmarks) as file:  # type: ignore[arg-type]
        assert file["landmarks"][..., 0].max() < 290  # the larger one's


def test_a_tiny_face_and_none(tmp_path: Path, head: Head, finder: FaceBackend) -> None:
    tiny = measured(make(tmp_path / "a.mp4", 5, picture=lambda k: head(k, 96, (100, 100))), Fraction(1, 5), finder)
    assert len(tiny.tracks) == 1
    assert "smaller than 256" in faces.decide(tiny, min_face=256).reason
    none = measured(make(tmp_path / "b.mp4", 5, picture=lambda k: np.full((96, 96, 3), 20 * k, np.uint8)), Fraction(1, 5), finder)
    assert none == Faces(5, (), 5, Fraction(0), None)
    assert faces.decide(none) == (False, "no face")
    assert not (tmp_path / "b.npz").exists()


def test_a_face_that_is_away_for_a_while(tmp_path: Path, head: Head, finder: FaceBackend) -> None:
    def hidden(k: int) -> np.ndarray:
        return np.full((320, 320, 3), 90, np.uint8) if 8 <= k < 16 else head(k)

    found = measured(make(tmp_path / "a.mp4", 24, picture=hidden, key_every=1, crf=4), Fraction(24, 25), finder)
    assert len(found.tracks) == 1
    assert found.tracks[0].frames == 16
    assert (found.gap, found.gap_at) == (8, Fraction(8, 25))
    assert faces.decide(found).reason == "the face is in 67% of the frames, fewer than 90%"
    assert faces.decide(found, min_share=0.5) == (False, "the face is away for 8 frames at 0.32 s, more than 6")
    assert faces.decide(found, min_share=0.5, max_gap=10).keep
    with np.load(found.landmarks) as file:  # type: ignore[arg-type]
        points = np.stack([anchor_points(_face(p)) for p in file["landmarks"]]).mean(1)
    assert np.abs(np.diff(points, 2, axis=0))[8:14].max() < 1e-3  # on a straight line between


def _face(landmarks: np.ndarray) -> Any:
    from latentsync.face.protocols import Face

    return Face((0, 0, 1, 1), 1.0, landmarks)


def test_a_span_inside_a_file(tmp_path: Path, head: Head, finder: FaceBackend) -> None:
    def late(k: int) -> np.ndarray:
        return head(k) if k >= 10 else np.full((320, 320, 3), 90, np.uint8)

    path = make(tmp_path / "a.mp4", 16, picture=late)
    assert measured(path, Fraction(6, 25), finder, Fraction(10, 25)).tracks[0].share == 1
    with pytest.raises(InputError, match="no frame from 9"):
        measured(path, Fraction(1), finder, Fraction(9))


def test_decisions_need_no_footage() -> None:
    person = Track(100, 1.0, 300.0, 280.0, 35.0, 0, 99)
    found = Faces(100, (person,), 0, Fraction(0), Path("a.npz"))
    assert faces.decide(found) == (True, "a face of 300x280 pixels")
    assert faces.decide(found, min_face=281).reason == "the face is 300x280 pixels, smaller than 281"
    assert faces.decide(found, max_yaw=30) == (False, "the head turns by 35 degrees, more than 30")
    assert faces.decide(found, max_yaw=40).keep
    unknown = Faces(100, (Track(100, 1.0, 300.0, 280.0, None, 0, 99),), 0, Fraction(0), None)
    assert faces.decide(unknown, max_yaw=30) == (True, "a face of 300x280 pixels, its turn is not known")


def test_a_short_glance_is_no_turn() -> None:
    yaws: list[float | None] = [5.0] * 40
    yaws[10:14] = [80.0, -80.0, 80.0, 80.0]
    assert faces._turned(yaws) == 5.0
    yaws[20:35] = [-50.0] * 15
    assert faces._turned(yaws) == 50.0
    assert faces._turned([None, None]) is None


def test_an_unknown_finder() -> None:
    with pytest.raises(UsageError, match="mediapipe, insightface, demo"):
        faces.finder("eyes")
