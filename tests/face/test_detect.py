"""Finding faces in one picture with the real networks."""

from __future__ import annotations

import importlib.util
import zipfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync.errors import LatentSyncError, UsageError, WeightsError
from latentsync.face.detect import BACKENDS, detect, find_faces, make_backend
from latentsync.face.mesh import Region, cut_out, region_of_mesh
from latentsync.face.points import anchor_points
from latentsync.face.protocols import iou


def test_iou() -> None:
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("LivePortrait__s0.jpg", 1),
        ("LivePortrait__s7.jpg", 1),
        ("LivePortrait__s9.jpg", 1),
        ("SadTalker__art_0.png", 1),
        ("SadTalker__full4.jpeg", 1),
        ("SadTalker__people_0.png", 1),
        ("face_recognition__two_people.jpg", 2),
        ("face-alignment__grass.jpg", 0),
        ("hallo__1.jpg", 1),
    ],
)
def test_images(backend, image, name: str, count: int) -> None:  # type: ignore[no-untyped-def]
    picture = image(name)
    faces = find_faces(backend, picture)
    assert len(faces) == count
    for face in faces:
        assert face.landmarks.shape == (478, 2)
        assert face.landmarks.dtype == np.float32
        left, right, nose = anchor_points(face)
        assert left[0] < right[0]
        assert nose[1] > max(left[1], right[1])


def test_grid_of_faces_is_largest_first(backend, image) -> None:  # type: ignore[no-untyped-def]
    faces = find_faces(backend, image("face-alignment__aflw-test-grid3x3.jpg"))
    assert len(faces) >= 7  # eight by the clips' list, some in profile
    assert [f.size for f in faces] == sorted((f.size for f in faces), reverse=True)


def test_faces_smaller_than_asked_are_left_out(backend, image) -> None:  # type: ignore[no-untyped-def]
    picture = image("LivePortrait__s0.jpg")
    size = detect(backend, picture)[0].size
    assert detect(backend, picture, min_face=size * 0.9)
    assert not detect(backend, picture, min_face=size * 1.1)


@pytest.mark.parametrize("aspect", [Fraction(16, 11), Fraction(8, 9)])
def test_pixel_aspect(backend, image, still, aspect: Fraction) -> None:  # type: ignore[no-untyped-def]
    square = image("LivePortrait__s9.jpg")
    squeezed = still(cv2.resize(square.pixels, (round(square.width / aspect), square.height), interpolation=cv2.INTER_AREA), aspect)
    (expected,), (found,) = find_faces(backend, square), find_faces(backend, squeezed)
    back = (found.landmarks + 0.5) * [square.width / squeezed.width, 1] - 0.5
    assert np.abs(back - expected.landmarks).mean() < 0.012 * expected.size


def test_landmarks_do_not_depend_on_where_the_face_lies(backend, image, still) -> None:  # type: ignore[no-untyped-def]
    """A shift by whole pixels shifts every landmark by as much: the region is cut out with subpixel care, borders included."""
    picture = image("SadTalker__people_0.png")
    (face,) = find_faces(backend, picture)
    moved = still(np.pad(picture.pixels, ((40, 0), (25, 0), (0, 0)), mode="edge"))
    again = backend.landmarks(moved, type(face)(face.box, face.score, face.landmarks + np.float32([25, 40])))
    here = backend.landmarks(picture, face)
    np.testing.assert_allclose(again.landmarks - [25, 40], here.landmarks, atol=0.02)


def test_cut_out_puts_each_pixel_in_its_place(still) -> None:  # type: ignore[no-untyped-def]
    y, x = np.mgrid[0:200, 0:300]
    picture = still(np.rint(np.stack([x * 0.8, y, np.full_like(x, 7)], axis=-1)).astype(np.uint8))
    for side in (64, 100, 180):  # enlarged, equal, averaged down
        region = Region(150.0, 100.0, float(side), 0.0)
        seen = cut_out(picture, region, 64).astype(float)
        centre = (np.arange(64) + 0.5) * side / 64 - side / 2
        np.testing.assert_allclose(seen[32, :, 0], (150 + centre - 0.5) * 0.8, atol=1.1)
        np.testing.assert_allclose(seen[:, 32, 1], 100 + centre - 0.5, atol=1.1)
    quarter = cut_out(picture, Region(150.0, 100.0, 64.0, np.pi / 2), 64).astype(float)  # x of the region points down the picture
    assert quarter[32, 60, 1] - quarter[32, 4, 1] == pytest.approx(56, abs=1.5)
    assert cut_out(picture, Region(-500.0, 100.0, 64.0, 0.0), 64) is None


def test_region_turns_with_the_face(backend, image, still) -> None:  # type: ignore[no-untyped-def]
    picture = image("LivePortrait__s7.jpg")
    (upright,) = find_faces(backend, picture)
    turn = cv2.getRotationMatrix2D((picture.width / 2, picture.height / 2), -30, 1)  # clockwise
    turned = still(cv2.warpAffine(picture.pixels, turn, (picture.width, picture.height), borderMode=cv2.BORDER_REPLICATE))
    faces = find_faces(backend, turned)
    assert faces
    angle = np.degrees(region_of_mesh(faces[0].landmarks, 1.0).angle - region_of_mesh(upright.landmarks, 1.0).angle)
    assert angle == pytest.approx(30, abs=2)
    expected = anchor_points(upright) @ turn[:, :2].T + turn[:, 2]
    assert np.abs(anchor_points(faces[0]) - expected).max() < 0.02 * upright.size


def test_no_landmarks_where_no_face_is(backend, image) -> None:  # type: ignore[no-untyped-def]
    face = find_faces(backend, image("LivePortrait__s0.jpg"))[0]
    assert backend.landmarks(image("face-alignment__grass.jpg"), face) is None


def test_unknown_backend() -> None:
    with pytest.raises(UsageError, match="mediapipe"):
        make_backend("dlib", {})


def test_missing_and_damaged_files_are_named(face_files: dict[str, Path], tmp_path: Path) -> None:
    detector, landmarks = BACKENDS["mediapipe"]
    with pytest.raises(WeightsError, match=landmarks):
        make_backend("mediapipe", {detector: face_files[detector]})
    with pytest.raises(WeightsError, match="nowhere"):
        make_backend("mediapipe", {**face_files, detector: tmp_path / "nowhere.onnx"})
    broken = tmp_path / "broken"
    broken.write_bytes(b"not a network" * 100)
    with pytest.raises(WeightsError, match="broken"):
        make_backend("mediapipe", {**face_files, detector: broken})
    with pytest.raises(WeightsError, match="broken"):
        make_backend("mediapipe", {**face_files, landmarks: broken})
    with zipfile.ZipFile(tmp_path / "hollow.task", "w") as bundle:
        bundle.writestr("face_landmarks_detector.tflite", b"not a network" * 100)
    with pytest.raises(WeightsError, match="hollow"):
        make_backend("mediapipe", {**face_files, landmarks: tmp_path / "hollow.task"})


@pytest.mark.skipif(importlib.util.find_spec("insightface") is not None, reason="insightface is installed")
def test_insightface_is_optional(tmp_path: Path) -> None:
    with pytest.raises(LatentSyncError, match="non-commercial"):
        make_backend("insightface", {name: tmp_path / name for name in BACKENDS["insightface"]})
