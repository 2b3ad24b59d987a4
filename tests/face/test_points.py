"""Alignment points: exact for the published landmark layouts, calibrated for the mesh."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync.errors import LatentSyncError
from latentsync.face.detect import find_faces
from latentsync.face.points import ANCHORS, FIVE, anchor_points, five_points
from latentsync.face.protocols import Face


def face_of(landmarks: np.ndarray) -> Face:
    return Face((0, 0, 1, 1), 1.0, landmarks.astype(np.float32))


@pytest.mark.parametrize(
    ("count", "sets"),
    [
        (68, [[17, 18, 19, 20, 21], [22, 23, 24, 25, 26], [29, 31, 35, 30]]),
        (106, [[43, 48, 49, 51, 50], [101, 102, 103, 104, 105], [74, 77, 83, 86]]),
    ],
)
def test_published_layouts_are_plain_means(count: int, sets: list[list[int]]) -> None:
    landmarks = np.random.default_rng(count).uniform(0, 500, (count, 2))
    np.testing.assert_allclose(anchor_points(face_of(landmarks)), [landmarks[s].mean(axis=0) for s in sets], rtol=1e-5)


def test_points_move_turn_and_grow_with_the_face() -> None:
    rng = np.random.default_rng(1)
    for count in ANCHORS:
        landmarks = rng.uniform(0, 500, (count, 2))
        turn = np.array([[0.9, -1.3], [1.3, 0.9]])
        moved = landmarks @ turn.T + [30, -70]
        np.testing.assert_allclose(anchor_points(face_of(moved)), anchor_points(face_of(landmarks)) @ turn.T + [30, -70], atol=1e-3)


def test_shares_sum_to_one() -> None:
    for layout in (*ANCHORS.values(), *FIVE.values()):
        for weights in layout:
            assert sum(weights.values()) == pytest.approx(1)


def test_points_are_not_rounded() -> None:
    landmarks = np.full((68, 2), 10.25)
    np.testing.assert_array_equal(anchor_points(face_of(landmarks)), np.full((3, 2), 10.25, np.float32))


def test_unknown_layout_is_named() -> None:
    with pytest.raises(LatentSyncError, match="has 7"):
        anchor_points(face_of(np.zeros((7, 2))))
    with pytest.raises(LatentSyncError, match="has 5"):
        anchor_points(face_of(np.zeros((5, 2))))
    assert five_points(face_of(np.ones((5, 2)))).shape == (5, 2)


def test_against_rendered_truth(backend, corpus: Path) -> None:  # type: ignore[no-untyped-def]
    """Heads that took no part in the calibration (it holds out every fourth clip)."""
    from latentsync.media.video import open_video

    clips = sorted(corpus.glob("clip_*.mp4"))
    errors = []
    for clip in clips[2::20]:
        truth = np.load(clip.with_suffix(".npz"))["landmarks"].astype(np.float64) - 0.5  # rendered with pixel corners at whole numbers
        with open_video(clip) as video:
            for i, frame in enumerate(video.frames()):
                if i % 50:
                    continue
                faces = find_faces(backend, frame.picture)
                assert len(faces) == 1, f"{clip.name} frame {i}"
                expected = anchor_points(face_of(truth[i]))
                size = np.sqrt(np.prod(truth[i].max(axis=0) - truth[i].min(axis=0)))
                errors.append(np.linalg.norm(anchor_points(faces[0]) - expected, axis=1) / size)
    middle = 100 * np.median(errors, axis=0)
    assert (middle[:2] < 1.5).all(), f"brows are off by {middle[:2]} % of the face"
    assert middle[2] < 2.2, f"the nose is off by {middle[2]} % of the face"


def test_against_the_published_points(backend, golden: Path, still) -> None:  # type: ignore[no-untyped-def]
    """A real face: both sides are landmark networks and theirs is rounded, so this only guards against a wrong place."""
    geometry, picture = golden / "e_geometry.json", golden / "e_frame.png"
    if not (geometry.is_file() and picture.is_file()):
        pytest.skip("no golden face frame")
    published = np.array(json.loads(geometry.read_text())["landmarks"])
    faces = find_faces(backend, still(cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)))
    assert faces
    error = min(float(np.linalg.norm(anchor_points(f) - published, axis=1).max() / f.size) for f in faces)
    assert error < 0.045
