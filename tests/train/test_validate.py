"""Sync scores against their analytic values, and videos of what a model makes of held-out clips."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentsync import loading
from latentsync.config import SyncNetConfig
from latentsync.loading import Model
from latentsync.media.clip import probe, read_audio, read_frames
from latentsync.models.syncnet import SyncNet
from latentsync.options import Options
from latentsync.score import SCORED_AT_ONCE, sync_score
from latentsync.speech.sync_mel import mel_start, sync_mel
from latentsync.train.config import load
from latentsync.train.validate import HeldOut, generate, preview
from tests.models.conftest import randomise

TURN = 0.1  # radians from one frame to the next
CONFIG = SyncNetConfig(resolution=32)


class Clock(nn.Module):
    """A SyncNet that reads the hour: a picture's first frame is grey at its angle, a mel has its angle in the first column."""

    def __init__(self) -> None:
        super().__init__()
        self.dial = nn.Parameter(torch.ones(()))
        self.calls: list[int] = []

    def forward(self, frames: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        assert frames.shape[1:] == (48, 16, 32)
        assert mel.shape[1:] == (1, 80, 52)
        self.calls.append(len(frames))
        seen, heard = 10 * frames[:, 0, -1, -1], mel[:, 0, 40, 0]
        return torch.stack([seen.cos(), seen.sin()], 1), torch.stack([heard.cos(), heard.sin()], 1)


def shown(frames: int, size: int = 32) -> Tensor:
    """Frame k at the angle k * TURN."""
    return (torch.arange(frames) * TURN / 10).view(-1, 1, 1, 1).expand(-1, 3, size, size)


def heard(frames: int, late: int, fps: int = 25) -> Tensor:
    """A mel whose column at frame k has the angle that the frame has `late` frames before."""
    mel = torch.full((80, mel_start(frames, fps)), 99.0)
    for k in range(frames):
        mel[:, mel_start(k, fps)] = (k - late) * TURN
    return mel


def expected(windows: int, late: int) -> tuple[float, float]:
    """The cosine in place, and how far the best one stands out."""
    cosines = [math.cos((late - lag) * TURN) for lag in range(-10, 11) if abs(lag) < windows]
    return math.cos(late * TURN), max(cosines) - float(np.median(cosines))


@pytest.mark.parametrize("late", [0, 4, -7, 10])
def test_the_score_of_a_known_offset(late: int) -> None:
    net = Clock()
    score = sync_score(net, CONFIG, shown(60), heard(60, late))  # type: ignore[arg-type]
    assert score is not None
    cosine, confidence = expected(45, late)
    assert score.cosine == pytest.approx(cosine, abs=1e-5)
    assert score.confidence == pytest.approx(confidence, abs=1e-5)
    assert score.offset == late
    assert sum(net.calls) == 45, "each window once"
    assert max(net.calls) <= SCORED_AT_ONCE


def test_offsets_beyond_the_clip_are_not_looked_for() -> None:
    """Of 18 frames there are three windows, and the sound ends before the third one's: shifts from -1 to 1 are left."""
    score = sync_score(Clock(), CONFIG, shown(18), heard(18, 5))  # type: ignore[arg-type]
    assert score is not None
    assert score.offset == 1
    assert score.confidence == pytest.approx(math.cos(4 * TURN) - math.cos(5 * TURN), abs=1e-5)
    assert score.cosine == pytest.approx(math.cos(5 * TURN), abs=1e-5)


def test_pictures_are_resized_to_what_the_network_sees() -> None:
    score = sync_score(Clock(), CONFIG, shown(40, size=64), heard(40, 3))  # type: ignore[arg-type]
    assert score is not None
    assert score.offset == 3


def test_less_than_one_window_has_no_score() -> None:
    assert sync_score(Clock(), CONFIG, shown(15), heard(60, 0)) is None  # type: ignore[arg-type]
    assert sync_score(Clock(), CONFIG, shown(60), heard(16, 0)[:, :51]) is None  # type: ignore[arg-type]
    assert sync_score(Clock(), CONFIG, shown(16), heard(17, 0)) is not None  # type: ignore[arg-type]


# What is shown


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return loading.load(tiny_model, device="cpu", dtype="fp32", preview=False, face_backend="mediapipe", faces=False, compile=False, home=None)


@pytest.fixture(scope="module")
def clip(talking: Path) -> HeldOut:
    """20 frames of 64 px: one window of the model and a part of another."""
    path = sorted(talking.iterdir())[0]
    frames = read_frames(path, [Fraction(k, 25) for k in range(20)], side=64)
    samples = read_audio(path)[:12800]
    contexts = torch.randn(20, 50, 32, generator=torch.Generator().manual_seed(0))
    return HeldOut("00-first", frames, contexts, samples, torch.from_numpy(sync_mel(samples)))


QUICK = Options(steps=1, guidance=1.0, seed=3)


def test_what_is_made_keeps_the_face_around_the_mouth(model: Model, clip: HeldOut) -> None:
    made = generate(model, clip, QUICK)
    assert made.shape == clip.frames.shape
    assert made.dtype == np.uint8
    difference = np.abs(made.astype(int) - clip.frames).mean((0, 3))
    assert difference[:16].max() < 2, "above the mouth all is as it was"
    assert difference[32:].mean() > 10, "an untrained model's mouth is noise"
    assert np.array_equal(made, generate(model, clip, QUICK))
    assert not np.array_equal(made, generate(model, clip, Options(steps=1, guidance=1.0, seed=4)))


def test_videos_play_and_scores_are_those_of_both_sides(model: Model, clip: HeldOut, tmp_path: Path) -> None:
    config = load("syncnet", "tiny")[0].net  # type: ignore[union-attr]
    torch.manual_seed(0)
    net = randomise(SyncNet(config)).eval()
    second = clip._replace(name="01-second", frames=clip.frames[:18], contexts=clip.contexts[:18], samples=clip.samples[:11520])
    scores = preview(model, [clip, second], tmp_path / "new" / "videos", QUICK, net, config)
    assert sorted(p.name for p in (tmp_path / "new" / "videos").iterdir()) == ["00-first.mp4", "01-second.mp4"]
    for held, seconds in ((clip, 0.8), (second, 0.72)):
        path = tmp_path / "new" / "videos" / f"{held.name}.mp4"
        info = probe(path)
        assert (info.width, info.height, info.fps, info.frames) == (128, 64, 25, len(held.frames))
        assert float(info.audio_duration) == pytest.approx(seconds, abs=0.1)
        pictures = read_frames(path, [Fraction(k, 25) for k in range(len(held.frames))]).astype(int)
        assert np.abs(pictures[:, :, 64:] - held.frames).mean() < 3, "the real one is on the right"
        assert np.abs(pictures[:, :, :64] - generate(model, held, QUICK)).mean() < 12, "what was made is on the left"
        sound = read_audio(path)[: len(held.samples)]
        assert np.corrcoef(sound, held.samples[: len(sound)])[0, 1] > 0.9
    assert set(scores) == {f"sync_{what}{side}" for what in ("cosine", "confidence", "offset") for side in ("", "_real")}
    assert clip.mel is not None
    for side, pictures in (("", [generate(model, c, QUICK) for c in (clip, second)]), ("_real", [clip.frames, second.frames])):
        found = [sync_score(net, config, torch.from_numpy(p).permute(0, 3, 1, 2) / 127.5 - 1, clip.mel) for p in pictures]
        assert scores[f"sync_cosine{side}"] == pytest.approx(np.mean([s.cosine for s in found if s]), abs=1e-5)
        assert scores[f"sync_confidence{side}"] == pytest.approx(np.mean([s.confidence for s in found if s]), abs=1e-5)
        assert scores[f"sync_offset{side}"] == pytest.approx(np.mean([abs(s.offset) for s in found if s]))


def test_without_a_syncnet_there_are_videos_alone(model: Model, clip: HeldOut, tmp_path: Path) -> None:
    assert preview(model, [clip], tmp_path, QUICK, None, None) == {}
    assert [p.name for p in tmp_path.iterdir()] == ["00-first.mp4"]
