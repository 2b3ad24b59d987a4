"""Crops of corpus clips: the truth moves with the picture, and what is finished stays."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from tools.synthheads import files

from latentsync.errors import InputError, UsageError
from latentsync.face.align import crop_size
from latentsync.media.clip import probe, read_audio, read_frames
from tools import crops

SIZE, FRAMES, CROP = 160, 12, 64
MARKS = [37, 44, 30, 48, 54, 8]  # landmarks that are drawn


def landmarks() -> np.ndarray:
    """(FRAMES, 68, 2) pixels from the edge: a face of ovals that drifts and nods."""
    k = np.arange(68)
    face = np.stack([26 * np.cos(k * 2.4), 30 * np.sin(k * 1.7)], 1)
    face[17:22] = np.stack([np.linspace(-22, -8, 5), np.full(5, -20)], 1)
    face[22:27] = np.stack([np.linspace(8, 22, 5), np.full(5, -20)], 1)
    face[27:36] = np.stack([np.linspace(-3, 3, 9), np.linspace(-10, 4, 9)], 1)
    face[[37, 44, 30, 48, 54, 8]] = [[-15, -12], [15, -12], [0, 2], [-11, 18], [11, 18], [0, 34]]
    out = []
    for i in range(FRAMES):
        a = 0.02 * i
        out.append(face @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + [78.3 + 0.9 * i, 77.6 - 0.4 * i])
    return np.array(out, np.float32)


@pytest.fixture
def corpus(tmp_path):
    """A folder with one clip of white dots at the drawn landmarks, on grey."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    truth, frames = landmarks(), []
    for points in truth:
        image = np.full((SIZE, SIZE, 3), 60, np.uint8)
        for x, y in (points[MARKS] - crops.EDGE) * 16:
            cv2.circle(image, (round(x), round(y)), 40, (250, 250, 250), -1, cv2.LINE_AA, 4)
        frames.append(image)
    sound = files.spoken(np.sin(np.arange(FRAMES * 640) / 9).astype(np.float32) / 2, 16000)
    files.write_video(folder / "clip_1.mp4", frames, 25, SIZE, crf=10, add_sound=sound)
    files.write_arrays(
        folder / "clip_1.npz", landmarks=truth, articulation=np.ones((FRAMES, 10), np.float16), lip_gap=np.arange(FRAMES, dtype=np.float32)
    )
    files.write_json(folder / "clip_1.json", {})
    return folder


def test_the_truth_lies_where_the_crop_shows_it(corpus, tmp_path):
    assert dict(crops.make_all(corpus, tmp_path / "out", CROP)) == {corpus / "clip_1.mp4": FRAMES}
    made = tmp_path / "out" / "clip_1.mp4"
    info = probe(made)
    assert (info.width, info.height, info.frames) == (CROP, CROP, FRAMES)
    assert np.array_equal(read_audio(made), read_audio(corpus / "clip_1.mp4"))
    with np.load(made.with_suffix(".npz")) as z:
        truth, matrix = z["landmarks"], z["matrix"]
        assert z["articulation"].shape == (FRAMES, 10)
        assert z["lip_gap"].tolist() == list(range(FRAMES))
    ahead = crops.mapped(landmarks().astype(np.float64) - crops.EDGE, matrix)
    assert np.abs(ahead - truth).max() < 1e-3
    rows, columns = np.mgrid[:CROP, :CROP]
    for frame, points in zip(read_frames(made, [k * info.duration / FRAMES for k in range(FRAMES)]), truth, strict=True):
        light = np.clip(frame.mean(2) - 75, 0, None)
        for x, y in points[MARKS]:
            w = light * (np.hypot(columns - x, rows - y) < 5)
            seen = np.array([(w * columns).sum(), (w * rows).sum()]) / w.sum()
            assert np.abs(seen - (x, y)).max() < 0.3


def test_the_crop_size_is_reached_whatever_the_upright_crop_is():
    m = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    corner = crops.squeezed(m, 128) @ [crop_size(128)[0] - 0.5, crop_size(128)[1] - 0.5, 1]
    assert np.allclose(corner, 127.5)


def test_points_that_do_not_move_stay_and_shapes_are_checked():
    still = np.repeat(landmarks()[:1], 9, 0)
    assert np.ptp(crops.track(still), axis=0).max() == 0
    with pytest.raises(InputError, match="shape"):
        crops.track(np.zeros((4, 5, 2)))


def test_only_finished_clips_are_cropped_and_only_once(corpus, tmp_path):
    files.write_video(corpus / "clip_2.mp4", [np.zeros((64, 64, 3), np.uint8)], 25, 64, crf=30, add_sound=lambda _: lambda: None)
    out = tmp_path / "out"
    assert [n for _, n in crops.make_all(corpus, out, CROP)] == [FRAMES]
    before = (out / "clip_1.mp4").stat().st_mtime_ns
    assert [n for _, n in crops.make_all(corpus, out, CROP)] == [0]
    assert (out / "clip_1.mp4").stat().st_mtime_ns == before
    assert sorted(p.name for p in out.iterdir()) == ["clip_1.mp4", "clip_1.npz"]


def test_a_clip_whose_truth_is_of_another_length_leaves_nothing(corpus, tmp_path):
    files.write_arrays(corpus / "clip_1.npz", landmarks=landmarks()[:-2], articulation=np.ones(1), lip_gap=np.ones(1))
    with pytest.raises(InputError, match="more frames"):
        list(crops.make_all(corpus, tmp_path / "out", CROP))
    assert not list((tmp_path / "out").iterdir())


def test_errors_say_what_to_do(corpus, tmp_path, capsys):
    assert crops.main([str(tmp_path), str(tmp_path / "out")]) == 3
    assert "python -m tools.synthheads" in capsys.readouterr().err
    with pytest.raises(UsageError, match="even"):
        list(crops.make_all(corpus, tmp_path / "out", 77))
    np.savez(corpus / "clip_1.npz", articulation=np.ones(1), lip_gap=np.ones(1))
    with pytest.raises(InputError, match="lacks landmarks"):
        list(crops.make_all(corpus, tmp_path / "out", CROP))
    assert json.loads((corpus / "clip_1.json").read_text()) == {}
