"""Training of the face finder, on faces of a few ellipses."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from latentsync import config as configs
from latentsync import train
from latentsync.config import FaceNetConfig
from latentsync.errors import InputError, WeightsError
from latentsync.face.demo import DemoBackend
from latentsync.media.clip_writer import write_clip
from latentsync.train.faces import chip, extent, pasted, scene, similarity, transformed
from latentsync.train.tracker import TrackerTask, focal
from tests.face.test_demo import face_points

FRAMES = 12
QUICK = ("run.steps=20", "optimizer.learning_rate=0.01", "run.batch=8", "run.log_every=5", "run.validate_every=0", "run.checkpoint_every=0")


def draw_face(canvas: np.ndarray, points: np.ndarray, skin: tuple[int, int, int]) -> None:
    cv2.fillConvexPoly(canvas, cv2.convexHull(points[:27].astype(np.int32)), skin)
    for part, colour in ((slice(36, 42), (30, 30, 60)), (slice(42, 48), (30, 30, 60)), (slice(48, 60), (150, 40, 40)), (slice(60, 68), (40, 0, 0))):
        cv2.fillConvexPoly(canvas, cv2.convexHull(points[part].astype(np.int32)), colour)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    for seed in range(3):
        draw = np.random.default_rng(seed)
        frames, truth = [], []
        for _ in range(FRAMES):
            points = face_points(tuple(draw.uniform(45, 55, 2)), 60, float(draw.normal(0, 0.1)))
            canvas = np.full((96, 96, 3), 60 + 40 * seed, np.uint8)
            draw_face(canvas, points, (220, 180 - 30 * seed, 150))
            frames.append(canvas)
            truth.append(points + 0.5)
        write_clip(folder / f"head{seed}.mp4", np.stack(frames), 25)
        np.savez(folder / f"head{seed}.npz", landmarks=np.stack(truth).astype(np.float16))
    return folder


def settings(heads: Path, out: Path, *more: str) -> train.TrackerTrain:
    config, _ = train.load("tracker", "tiny", [f"data.train={heads}", f"run.out={out}", *more])
    assert isinstance(config, train.TrackerTrain)
    return config


@pytest.fixture(scope="module")
def task(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> TrackerTask:
    return TrackerTask(settings(heads, tmp_path_factory.mktemp("run"), "run.batch=2"), say=lambda _: None)


def test_it_learns_and_what_is_written_is_a_backend(heads: Path, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    config = settings(heads, tmp_path / "run", *QUICK)
    outcome = train.run(config, show=lambda step, steps, row: rows.append(dict(row)) if step % 5 == 0 else None)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert rows[-1]["anchors"] < rows[0]["anchors"]
    assert outcome.checkpoint is not None
    assert (tmp_path / "run" / "validation" / "step-00000020" / "faces.png").is_file()
    description = outcome.checkpoint / "tracker.yaml"
    assert configs.parse_as(FaceNetConfig, description.read_text(), "tracker.yaml") == config.net
    found = DemoBackend(outcome.checkpoint / "tracker.safetensors", description).detect(np.zeros((50, 70, 3), np.uint8))
    assert isinstance(found, list)


def test_frames_are_kept_with_their_landmarks(task: TrackerTask, heads: Path) -> None:
    """The stored frame is larger than the clip's; the mouth is still where its landmarks say."""
    for index in range(0, len(task.training), 5):
        picture, points = task.training.picture(index), task.training.points[index]
        assert picture.shape == (256, 256, 3)
        x, y = points[60:68].mean(0).round().astype(int)
        assert picture[y, x, 0] < 110  # the inner lips are dark
        x, y = points[28].round().astype(int)
        assert picture[y, x, 0] > 150  # the nose is skin


def test_scenes_and_chips_depend_on_their_generator_alone(task: TrackerTask) -> None:
    for number in range(12):
        one, two = (scene(task.training, np.random.default_rng(number), 64) for _ in range(2))
        assert np.array_equal(one.picture, two.picture)
        assert one.picture.shape == (64, 64, 3)
        assert all(0.05 * 64 < extent(face) < 64 for face in one.faces)
        cut = chip(task.training, np.random.default_rng(number), 32)
        assert cut.picture.shape == (32, 32, 3)
        assert cut.picture.dtype == np.uint8
        if cut.present:
            assert np.linalg.norm((cut.points.min(0) + cut.points.max(0)) / 2 - 15.5) < 0.35 * 32
    assert {len(scene(task.training, np.random.default_rng(k), 64).faces) for k in range(40)} >= {0, 1, 2}


def test_pasting_brings_landmarks_where_the_picture_goes(task: TrackerTask) -> None:
    picture, points = task.training.picture(0), task.training.points[0]
    matrix = similarity(points.mean(0), np.array([40.0, 30.0]), 0.2, 0.3)
    seen, mask = pasted(picture, points, matrix, 80, np.random.default_rng(0), cut=0.0)
    placed = transformed(points, matrix)
    x, y = placed[60:68].mean(0).round().astype(int)
    assert seen[y, x, 0] < 130
    assert mask[y, x] == 1
    x, y = placed[28].round().astype(int)
    assert seen[y, x, 0] > 140
    cut, soft = pasted(picture, points, matrix, 80, np.random.default_rng(0), cut=1.0)
    assert soft[y, x] > 0.9
    assert soft.mean() < 0.9
    assert np.array_equal(cut, seen)


def test_batches_depend_on_seed_and_position_alone(task: TrackerTask) -> None:
    one = next(iter(task.batches(rank=1, world=2, start=0)))
    two = next(iter(task.batches(rank=0, world=1, start=1)))
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_a_network_that_is_right_has_no_loss(task: TrackerTask) -> None:
    batch = next(iter(task.batches(rank=0, world=1, start=0)))
    logits = torch.where(batch["heat"] == 1, 30.0, -30.0)
    maps = torch.cat([logits[:, None], batch["maps"]], 1)
    presence = 60 * batch["present"] - 30

    def right(pictures: torch.Tensor, crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return maps, batch["points"], presence

    terms = task.terms(right, batch)  # type: ignore[arg-type]
    assert float(terms["loss"]) == pytest.approx(0, abs=1e-3)
    assert float(terms["anchors"]) == 0
    assert float(terms["right"]) == 1
    assert float(focal(-logits, batch["heat"])) > 1


def test_what_cannot_be_used_is_named(heads: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no face finder at"):
        TrackerTask(settings(heads, tmp_path, f"start={tmp_path / 'absent'}"), say=lambda _: None)
    (tmp_path / "a.mp4").touch()
    np.savez(tmp_path / "a.npz", landmarks=np.zeros((5, 106, 2)))
    with pytest.raises(InputError, match="68 for each frame"):
        TrackerTask(settings(tmp_path, tmp_path), say=lambda _: None)
