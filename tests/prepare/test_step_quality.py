"""The step that grades pictures: which frames, which thresholds, which files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from latentsync.errors import InputError, UsageError
from latentsync.media.clip_writer import write_clip
from latentsync.metrics.quality import load_hyperiqa, sharpness
from latentsync.models.hyperiqa import HyperIQA
from latentsync.prepare.records import from_plain, to_plain
from latentsync.prepare.steps import quality
from latentsync.prepare.steps.quality import Quality


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """11 frames of drawn dots, sharper from frame to frame."""
    rng = np.random.default_rng(0)
    dots = np.full((256, 256, 3), 90, np.uint8)
    for _ in range(300):
        cv2.circle(dots, rng.integers(0, 256, 2).tolist(), int(rng.integers(1, 12)), rng.integers(0, 255, 3).tolist(), -1)
    frames = np.stack([cv2.GaussianBlur(dots, (0, 0), 6 - 0.5 * i) for i in range(11)])
    write_clip(tmp_path / "dots.mp4", frames, Fraction(25))
    return tmp_path / "dots.mp4"


def test_first_middle_and_last_frame_count(clip: Path):
    found = quality.measure(clip, model="sharpness")
    assert found.model == "sharpness"
    assert len(found.scores) == 3
    assert found.scores[0] < found.scores[1] < found.scores[2]
    assert found.score == pytest.approx(np.mean(found.scores))
    from latentsync.media.clip import read_frames

    shown = read_frames(clip, [Fraction(i, 25) for i in (0, 5, 10)])
    assert found.scores == tuple(sharpness(p) for p in shown)
    assert from_plain(Quality, to_plain(found)) == found


def test_hyperiqa_grades_the_same_frames(clip: Path, tmp_path: Path):
    torch.manual_seed(0)
    torch.save(HyperIQA().state_dict(), tmp_path / "koniq.pkl")
    try:
        found = quality.measure(clip, model="hyperiqa", weights=tmp_path / "koniq.pkl")
        assert quality.measure(clip, weights=tmp_path / "koniq.pkl") == found
    finally:
        load_hyperiqa.cache_clear()
    assert found.model == "hyperiqa"
    assert len(set(found.scores)) == 3


def test_each_model_has_its_own_threshold():
    good, bad = Quality(41.0, (41.0,) * 3, "hyperiqa"), Quality(39.9, (39.9,) * 3, "hyperiqa")
    assert quality.decide(good).keep
    assert quality.decide(bad) == (False, "quality 39.9 (hyperiqa), less than 40")
    assert quality.decide(bad, least=30).keep
    assert quality.decide(Quality(33.0, (33.0,) * 3, "sharpness")).keep
    assert "(sharpness)" in quality.decide(Quality(10.0, (10.0,) * 3, "sharpness")).reason


def test_what_cannot_be_graded_is_named(tmp_path: Path):
    (tmp_path / "a.mp4").write_text("no clip")
    with pytest.raises(InputError, match=r"a\.mp4"):
        quality.measure(tmp_path / "a.mp4", model="sharpness")
    with pytest.raises(UsageError, match="no quality model 'brisque'; known ones are hyperiqa, sharpness"):
        quality.measure(tmp_path / "a.mp4", model="brisque")
