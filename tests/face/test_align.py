"""Alignment and cropping: analytic truths first, then the published system's numbers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync.errors import LatentSyncError
from latentsync.face.align import OUTSIDE, alignment, bounds, crop, crop_size, invert, template


@dataclass
class Pixels:
    """A picture in memory that remembers which boxes were read."""

    array: np.ndarray

    def __post_init__(self):
        self.height, self.width = self.array.shape[:2]
        self.boxes = []

    def rgb(self, box=None):
        x0, y0, x1, y1 = box or (0, 0, self.width, self.height)
        assert 0 <= x0 < x1 <= self.width
        assert 0 <= y0 < y1 <= self.height
        self.boxes.append((x0, y0, x1, y1))
        return self.array[y0:y1, x0:x1]


def similarity(scale: float, degrees: float, x: float, y: float) -> np.ndarray:
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return np.array([[c, -s, x], [s, c, y]])


def waves(height: int, width: int, period: float = 40.0) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [127 + 90 * np.sin(2 * np.pi * (x * math.cos(a) + y * math.sin(a)) / period) for a in (0.3, 1.4, 2.6)]
    return np.rint(np.stack(planes, 2)).astype(np.uint8)


def published_bias(points: np.ndarray, resolution: int, before: np.ndarray | None) -> np.ndarray:
    """The published 'smoothing' term: normalised template nose minus normalised point nose, 0.2 of the last one and 0.8 of this one."""

    def nose(p):
        p = np.asarray(p, dtype=np.float64)
        return ((p - p.mean(0)) / (p - p.mean(0)).std(ddof=1))[2]

    now = nose(template(resolution)) - nose(points)
    return now if before is None else 0.2 * before + 0.8 * now


def test_crop_sizes():
    assert crop_size(256) == (210, 280)
    assert crop_size(512) == (420, 560)


def test_points_at_the_template_give_the_identity():
    assert np.allclose(alignment(template(256), 256), [[1, 0, 0], [0, 1, 0]], atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_moved_template_gives_the_move_back(seed):
    rng = np.random.default_rng(seed)
    move = similarity(rng.uniform(0.1, 8), rng.uniform(-180, 180), *rng.uniform(-3000, 3000, 2))
    points = template(512) @ move[:, :2].T + move[:, 2]
    assert np.allclose(alignment(points, 512), invert(move), atol=1e-8)


def test_a_mirrored_face_is_rotated_but_never_mirrored():
    points = template(256) * [-1, 1] + [400, 0]
    assert np.linalg.det(alignment(points, 256)[:, :2]) > 0


@pytest.mark.parametrize("aspect", [Fraction(16, 15), Fraction(4, 3), Fraction(1, 2)])
def test_wide_samples_are_aligned_as_they_are_shown(aspect):
    move = similarity(1.7, 20, 300, 200)
    shown = template(256) @ move[:, :2].T + move[:, 2]
    stored = (shown + 0.5) / [float(aspect), 1] - 0.5
    matrix = alignment(stored, 256, aspect)
    assert np.allclose(stored @ matrix[:, :2].T + matrix[:, 2], template(256), atol=1e-8)
    display = matrix[:, :2] @ np.diag([1 / float(aspect), 1])
    assert np.allclose(display @ display.T, np.eye(2) * np.linalg.det(display), atol=1e-9)


@pytest.mark.parametrize(
    "points",
    [np.zeros((3, 2)), np.full((3, 2), np.nan), np.zeros((2, 2)), np.array([[0, 0], [1, np.inf], [2, 2]])],
)
def test_points_that_cannot_be_aligned_are_refused(points):
    with pytest.raises(LatentSyncError):
        alignment(points, 256)


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), [[1, 2, 3], [2, 4, 5]], np.eye(3), np.full((2, 3), np.nan), [[1e30, 0, 0], [0, 1e30, 0]]])
def test_matrices_without_an_inverse_are_refused(matrix):
    with pytest.raises(LatentSyncError):
        crop(Pixels(waves(40, 40)), matrix, 64)


def test_an_upright_crop_is_the_picture_itself():
    picture = Pixels(waves(400, 500))
    width, height = crop_size(256)
    got = crop(picture, [[1, 0, -100], [0, 1, -50]], 256)
    assert got.shape == (256, 256, 3)
    assert got.dtype == np.uint8
    expected = cv2.resize(picture.array[50 : 50 + height, 100 : 100 + width], (256, 256), interpolation=cv2.INTER_LANCZOS4)
    assert np.array_equal(got, expected)


def test_only_the_region_is_read():
    picture = Pixels(waves(2160, 3840))
    crop(picture, invert(similarity(1.2, 15, 2000, 900)), 256)
    (box,) = picture.boxes
    assert (box[2] - box[0]) * (box[3] - box[1]) < 2.2 * 1.2**2 * 210 * 280


def test_the_frame_around_the_face_does_not_matter():
    large = waves(1500, 1600)
    small = np.ascontiguousarray(large[400:1100, 500:1400])
    matrix = invert(similarity(1.3, -25, 900, 650))
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (500, 400)
    difference = np.abs(crop(Pixels(large), matrix, 256).astype(int) - crop(Pixels(small), shifted, 256))
    assert difference.max() <= 1


@pytest.mark.parametrize("x", [-5000.0, 5000.0])
def test_outside_the_frame_is_grey(x):
    got = crop(Pixels(waves(100, 100)), [[1, 0, x], [0, 1, 0]], 64)
    assert (got == OUTSIDE).all()


def test_partly_outside_is_grey_there_only():
    picture = Pixels(np.full((300, 300, 3), 20, np.uint8))
    got = crop(picture, [[1, 0, 105], [0, 1, 0]], 256)  # the frame begins in the middle of the crop
    assert (got[:, :110] == OUTSIDE).all()
    assert (got[:, 146:] == 20).all()


def test_a_face_much_larger_than_the_crop_does_not_alias():
    checks = np.indices((1400, 1400)).sum(0) % 2 * 255
    picture = Pixels(np.repeat(checks[..., None], 3, 2).astype(np.uint8))
    got = crop(picture, similarity(0.2, 10, 60, 0), 256)
    assert np.abs(got[80:180, 120:200].astype(int) - 127).max() <= 4


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_extreme_scales_end_in_a_crop(scale):
    assert crop(Pixels(waves(60, 80)), similarity(scale, 33, 5, 5), 64).shape == (64, 64, 3)


def test_bounds_hold_every_sample():
    box = bounds(similarity(1.5, 30, 400, 100), 210, 280, 1000, 1000, margin=0)
    assert box is not None
    corners = np.array([[0, 0], [209, 0], [0, 279], [209, 279]]) @ similarity(1.5, 30, 0, 0)[:, :2].T + [400, 100]
    assert (corners >= box[:2]).all()
    assert (corners <= np.array(box[2:]) - 1).all()


def test_golden_matrices(golden: Path):
    table = json.loads((golden / "e_affine_table.json").read_text())
    assert table
    for name, case in table.items():
        resolution = int(name.split("|")[1])
        before = None
        for points, row in zip(case["landmarks"], case["rows"], strict=True):
            expected = np.array(row["M"], dtype=np.float64)
            if row["p_bias"] is not None:
                before = published_bias(points, resolution, before)
                assert np.allclose(before, row["p_bias"], atol=1e-5), name
                expected[:, 2] -= before
            got = alignment(points, resolution)
            assert np.abs(got - expected)[:, :2].max() < 1e-5, name
            assert np.abs(got - expected)[:, 2].max() < 1e-3, name


def test_golden_faces(golden: Path):
    if not (golden / "e_frame.png").exists():
        pytest.skip("no picture e_frame.png among the golden files")
    frame = Pixels(np.ascontiguousarray(cv2.imread(str(golden / "e_frame.png"))[..., ::-1]))
    geometry = json.loads((golden / "e_geometry.json").read_text())
    names = [n for n in geometry if n.endswith("_fp32") and isinstance(geometry[n], dict) and "M" in geometry[n]]
    assert names
    for name in names:
        resolution = int(name.split("_")[0])
        matrix = np.array(geometry[name]["M"], dtype=np.float64).reshape(2, 3)
        bias = published_bias(geometry["landmarks"], resolution, None)
        difference = alignment(geometry["landmarks"], resolution) - matrix
        assert np.abs(difference[:, :2]).max() < 1e-5
        assert np.abs(difference[:, 2] + bias).max() < 1e-3
        expected = cv2.imread(str(golden / f"e_face_{name}.png"))[..., ::-1].astype(int)
        off = np.abs(crop(frame, matrix, resolution) - expected).max(2)
        assert (off <= 1).mean() >= 0.999, name
