"""The face finder that comes with the package, around networks that know the answer: what is tested is the way to them and back.

The picture is a chart: red tells x and green tells y, so an oracle reads off its input which part of the picture it was given.
"""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from latentsync.face.demo import DemoBackend, distinct, five_of, peaks, region_of_points, yaw_of_points
from latentsync.face.detect import detect, find_faces
from latentsync.face.face_net import CELL
from latentsync.face.points import MIRROR, anchor_points
from latentsync.face.protocols import Face
from latentsync.train.faces import similarity, transformed
from latentsync.train.tracker import targets

SIDE, CROP = 64, 32


def face_points(centre: tuple[float, float], size: float, turn: float = 0.0) -> np.ndarray:
    """(68, 2) landmarks in iBUG's order of a plain face about `size` wide, turned by radians."""
    jaw = [(-math.cos(math.pi * i / 16) * 0.5, -0.1 + math.sin(math.pi * i / 16) * 0.6) for i in range(17)]
    brows = [(x, -0.32 - 0.03 * math.cos(9 * (abs(x) - 0.25))) for x in np.r_[np.linspace(-0.4, -0.1, 5), np.linspace(0.1, 0.4, 5)]]
    nose = [(0, y) for y in np.linspace(-0.2, 0.05, 4)] + [(x, 0.1) for x in np.linspace(-0.1, 0.1, 5)]
    ring = [(-0.07, 0), (-0.03, -0.03), (0.03, -0.03), (0.07, 0), (0.03, 0.03), (-0.03, 0.03)]
    eyes = [(side + x, -0.2 + y) for side in (-0.22, 0.22) for x, y in ring]
    outer = [(-0.2 * math.cos(math.pi * i / 6), 0.28 - 0.08 * math.sin(math.pi * i / 6)) for i in range(12)]
    inner = [(-0.14 * math.cos(math.pi * i / 4), 0.28 - 0.04 * math.sin(math.pi * i / 4)) for i in range(8)]
    points = np.array([*jaw, *brows, *nose, *eyes, *outer, *inner])
    return transformed(points, similarity(np.zeros(2), np.array(centre), size, turn))


def chart(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / (width - 1), 255 * y / (height - 1), np.full(x.shape, 255)], -1).round().astype(np.uint8)


class Oracle:
    """In the place of the networks; `points` are the true landmarks of each face, in pixels of a chart of that size."""

    def __init__(self, points: list[np.ndarray], height: int, width: int) -> None:
        self.points, self.size = points, np.array([width, height])
        self.config: Any = SimpleNamespace(detector=SIDE, crop=CROP)
        self.asked: list[tuple[int, int]] = []
        self.blunder = 0.0  # pixels by which landmarks of a mirrored view are off, to the right and down

    def placed(self, seen: torch.Tensor) -> list[np.ndarray]:
        """The true landmarks in pixels of what is seen."""
        values = (seen[0].permute(1, 2, 0).double().numpy() + 1) * 127.5
        inside = (values[..., 2] > 200) & (values[..., :2] > 3).all(-1) & (values[..., :2] < 252).all(-1)
        rows, columns = np.nonzero(inside)
        here = np.column_stack([columns, rows, np.ones(len(rows))])
        there = values[rows, columns, :2] / 255 * (self.size - 1)
        matrix = np.linalg.lstsq(here, there, rcond=None)[0].T  # seen -> chart
        return [(p - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T for p in self.points]

    def finder(self, seen: torch.Tensor) -> torch.Tensor:
        self.asked.append(tuple(seen.shape[2:]))
        cells = max(seen.shape[2:]) // CELL
        heat, maps, _ = targets([p for p in self.placed(seen) if np.ptp(p[:, 0]) > 10], cells)
        heat, maps = heat[: seen.shape[2] // CELL, : seen.shape[3] // CELL], maps[:, : seen.shape[2] // CELL, : seen.shape[3] // CELL]
        score = np.log(np.clip(heat, 1e-3, 0.999) / (1 - np.clip(heat, 1e-3, 0.999)))
        return torch.from_numpy(np.concatenate([score[None], maps]))[None]

    def pointer(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert seen.shape[2:] == (CROP, CROP)
        middle = (CROP - 1) / 2
        found, sure = [], []
        for view in seen:
            best = min(self.placed(view[None]), key=lambda p: float(np.linalg.norm((p.min(0) + p.max(0)) / 2 - middle)))
            near = float(np.linalg.norm((best.min(0) + best.max(0)) / 2 - middle)) < 0.3 * CROP
            columns = view[0].mean(0)
            mirrored = bool(columns[-1] < columns[0])  # red grows to the right in a chart
            if mirrored and self.blunder:
                best = best + self.blunder
            found.append(best[MIRROR] if mirrored else best)
            sure.append(4.0 if near else -4.0)
        return torch.from_numpy(np.stack(found)).float(), torch.tensor(sure)


def backend(*points: np.ndarray, size: tuple[int, int]) -> tuple[DemoBackend, Oracle]:
    oracle = Oracle(list(points), *size)
    return DemoBackend.of(oracle), oracle  # type: ignore[arg-type]


@pytest.mark.parametrize("turn", [0.0, 0.4, -0.5])
@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(4, 3)])
def test_a_face_is_found_and_its_landmarks_come_back(still, turn: float, aspect: Fraction) -> None:  # type: ignore[no-untyped-def]
    size = (240, 360)
    square = face_points((200.0 * float(aspect), 120.0), 110, turn)
    points = square / [float(aspect), 1.0]
    finder, _ = backend(points, size=size)
    faces = find_faces(finder, still(chart(*size), aspect))
    assert len(faces) == 1
    np.testing.assert_allclose(faces[0].landmarks, points, atol=1.0)
    assert faces[0].landmarks.dtype == np.float32
    truth = Face((0, 0, 1, 1), 1.0, points.astype(np.float32))
    np.testing.assert_allclose(anchor_points(faces[0]), anchor_points(truth), atol=1.0)


def test_landmarks_lead_to_those_of_the_next_frame(still) -> None:  # type: ignore[no-untyped-def]
    size = (240, 360)
    before, now = face_points((150, 120), 90, 0.1), face_points((160, 124), 96, 0.2)
    finder, oracle = backend(now, size=size)
    face = finder.landmarks(still(chart(*size)), Face((0, 0, 1, 1), 0.9, before.astype(np.float32)))
    assert face is not None
    np.testing.assert_allclose(face.landmarks, now, atol=1.0)
    assert oracle.asked == []  # the finder is not needed for that
    gone = Face((0, 0, 1, 1), 0.9, face_points((300, 200), 60).astype(np.float32))
    assert finder.landmarks(still(chart(*size)), gone) is None
    outside = Face((0, 0, 1, 1), 0.9, face_points((3000, 200), 60).astype(np.float32))
    assert finder.landmarks(still(chart(*size)), outside) is None


def test_several_faces_and_small_ones(still) -> None:  # type: ignore[no-untyped-def]
    size = (256, 256)
    finder, oracle = backend(face_points((70, 80), 100), face_points((190, 180), 90), size=size)
    assert len(find_faces(finder, still(chart(*size)))) == 2
    assert oracle.asked == [(SIDE, SIDE), (2 * SIDE, 2 * SIDE)]
    finder, oracle = backend(face_points((190, 60), 17), size=size)
    found = detect(finder, still(chart(*size)), min_face=8)
    assert oracle.asked[-1] == (4 * SIDE, 4 * SIDE)  # only where the others show nothing
    assert len(found) == 1
    np.testing.assert_allclose(found[0].landmarks, five_of(face_points((190, 60), 17)), atol=1.5)


def test_maps_lead_back_to_the_faces_they_were_made_of() -> None:
    faces = [face_points((40.3, 50.1), 44), face_points((110.7, 90.2), 20, 0.3)]
    heat, maps, counts = targets(faces, 20)
    assert heat.max() == 1
    assert (counts > 0).sum() >= 2
    logits = np.log(np.clip(heat, 1e-3, 0.999) / (1 - np.clip(heat, 1e-3, 0.999)))
    found = sorted(peaks(np.concatenate([logits[None], maps]), 0.5), key=lambda p: p[1][0])
    assert len(found) == 2
    for (score, box, five), points in zip(found, faces, strict=True):
        assert score > 0.99
        np.testing.assert_allclose(box, np.r_[points.min(0) + 0.5, points.max(0) + 0.5], atol=1e-3)  # from the picture's edge
        np.testing.assert_allclose(five, five_of(points), atol=1e-3)
    assert peaks(np.full((15, 4, 4), np.nan, np.float32), 0.5) == []


def test_one_face_is_found_once() -> None:
    points = np.zeros((5, 2), np.float32)
    best, double, nose, other = (
        Face(box, score, points) for box, score in [((0, 0, 10, 10), 0.9), ((1, 1, 11, 11), 0.8), ((4, 4, 7, 7), 0.7), ((20, 0, 30, 10), 0.6)]
    )
    assert distinct([nose, double, other, best]) == [best, other]


def test_the_region_turns_and_grows_with_the_face() -> None:
    plain, moved = region_of_points(face_points((50, 60), 40), 1.0), region_of_points(face_points((80, 30), 80, 0.3), 1.0)
    assert moved.side == pytest.approx(2 * plain.side)
    assert plain.angle == pytest.approx(0, abs=1e-9)
    assert moved.angle == pytest.approx(0.3)


def test_yaw_has_the_sign_of_the_side_that_the_nose_goes_to() -> None:
    points = face_points((50, 60), 40)
    assert yaw_of_points(points, 1.0) == pytest.approx(0, abs=1e-6)
    points[30, 0] += 8
    assert 10 < yaw_of_points(points, 1.0) < 50


def test_a_mirror_image_has_its_landmarks_in_order() -> None:
    points = face_points((0, 0), 40)
    np.testing.assert_allclose((points * [-1, 1])[MIRROR], points, atol=1e-9)  # this face is its own mirror image
    assert sorted(MIRROR.tolist()) == list(range(68))


def test_a_face_is_seen_twice_and_an_error_that_the_mirror_makes_is_halved(still) -> None:  # type: ignore[no-untyped-def]
    points = face_points((180.0, 120.0), 110)
    finder, oracle = backend(points, size=(240, 360))
    picture = still(chart(240, 360))
    near = Face((0, 0, 1, 1), 1.0, points.astype(np.float32))
    right = finder.landmarks(picture, near)
    oracle.blunder = 2.0
    wrong = finder.landmarks(picture, near)
    assert right is not None
    assert wrong is not None
    shift = (wrong.landmarks - right.landmarks).mean(0)
    pixel = region_of_points(points, 1.0).side / CROP  # of the crop, in pixels of the picture
    np.testing.assert_allclose(shift, [-pixel, pixel], rtol=0.02)  # half of two pixels; to the left, seen in the mirror
