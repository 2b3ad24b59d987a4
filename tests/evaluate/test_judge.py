"""The judges fed with a stream say what they say of a whole clip; stretches without a face do not count."""

import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentsync.config import SyncNetConfig
from latentsync.errors import InputError, UsageError, WeightsError
from latentsync.evaluate import judge as judges
from latentsync.face import align
from latentsync.media.layout import Colour, layout_of
from latentsync.media.picture import Picture
from latentsync.metrics import sync

POINTS = align.template(256) * 0.3 + 20


class Plain(nn.Module):
    """A SyncNet that sees how bright each frame is, and hears how loud it is then."""

    def __init__(self, config: SyncNetConfig) -> None:
        super().__init__()
        self.config, self.nothing = config, nn.Parameter(torch.zeros(1))

    def see(self, frames: Tensor) -> Tensor:
        bright = frames.unflatten(1, (self.config.frames, 3)).mean(dim=(2, 3, 4))
        return nn.functional.normalize(bright - bright.mean(1, keepdim=True))

    def hear(self, mel: Tensor) -> Tensor:
        loud = nn.functional.adaptive_avg_pool1d(mel.mean(dim=2), self.config.frames)[:, 0]
        return nn.functional.normalize(loud - loud.mean(1, keepdim=True))

    def forward(self, frames: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        return self.see(frames), self.hear(mel)


CONFIG = SyncNetConfig(frames=8, resolution=32)


def flashes(frames: int, early: int, seed: int = 0) -> tuple[list[Picture], np.ndarray]:
    """Grey pictures as bright as the noise is loud that should go with them, and that noise, which comes early."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(0, 1, frames)
    layout = layout_of("gbrp", Colour(), 120, 120)[0]
    pictures = [Picture(tuple(np.full((120, 120), round(40 + 160 * v), np.uint8) for _ in range(3)), layout) for v in level]
    noise = rng.normal(0, 1, 640 * frames) * np.repeat(10 ** (-3 + 2 * np.roll(level, -early)), 640)
    return pictures, noise.astype(np.float32)


def metered(judge: judges.Judge, pictures: list[Picture], samples: np.ndarray, points: dict[int, Any] | None = None, fps: int = 25) -> Any:
    meter = judges.SyncMeter(judge)
    for i, picture in enumerate(pictures):
        where = POINTS if points is None else points.get(i)
        meter.add(Fraction(i, fps), picture, SimpleNamespace(points=where))  # type: ignore[arg-type]
    return meter.close(Fraction(len(pictures), fps), samples)


@pytest.mark.parametrize("early", [-10, 0, 4])
def test_a_stream_is_judged_as_the_whole(early: int) -> None:
    net = Plain(CONFIG)
    pictures, samples = flashes(70, early)
    whole = sync.judged_by_demo(net, CONFIG, sync.aligned_of(pictures, np.repeat(POINTS[None], 70, 0), 32), samples)  # type: ignore[arg-type]
    read, curve = metered(judges.of_syncnet(net, CONFIG, "demo"), pictures, samples)  # type: ignore[arg-type]
    assert read.offset == whole.offset == early
    assert read.confidence == pytest.approx(whole.confidence, abs=1e-6)
    np.testing.assert_allclose(read.distances, whole.distances, atol=1e-6)
    np.testing.assert_allclose([v for v in curve if math.isfinite(v)], whole.seconds, atol=1e-6)


def test_frames_are_taken_25_times_a_second() -> None:
    judge = judges.of_syncnet(Plain(CONFIG), CONFIG, "demo")  # type: ignore[arg-type]
    pictures, samples = flashes(60, 3)
    twice = [p for p in pictures for _ in range(2)]
    once, _ = metered(judge, pictures, samples)
    again, _ = metered(judge, twice, samples, fps=50)
    np.testing.assert_allclose(once.distances, again.distances, atol=1e-6)


def test_what_does_not_show_the_face_does_not_count() -> None:
    judge = judges.of_syncnet(Plain(CONFIG), CONFIG, "demo")  # type: ignore[arg-type]
    pictures, samples = flashes(110, 0)
    other, _ = flashes(110, 0, seed=9)  # the middle would pull the reading down
    mixed = pictures[:26] + other[26:52] + pictures[52:]
    known = {i: POINTS for i in range(110) if not 26 <= i < 52}
    read, curve = metered(judge, mixed, samples, known)
    spoilt, _ = metered(judge, mixed, samples)
    assert read.offset == 0
    assert read.confidence > spoilt.confidence + 0.1
    assert [math.isfinite(v) for v in curve[:4]] == [True, False, True, True]  # a second keeps its place
    with pytest.raises(InputError, match="no stretch long enough"):
        metered(judge, mixed, samples, {i: POINTS for i in range(110) if i % 7})
    with pytest.raises(InputError, match="5 frames at 25 a second are too few"):
        metered(judge, pictures[:5], samples)


def recording() -> tuple[judges.Judge, list[np.ndarray]]:
    crops: list[np.ndarray] = []

    def see(held: list[np.ndarray]) -> Tensor:
        crops.extend(held[: len(held) - 4] if len(held) == judges.AT_ONCE + 4 else held)
        return torch.zeros(len(held) - 4, 3)

    return judges.Judge("syncnet", 5, 224, see, lambda samples, n: torch.ones(n, 3), sync.distances), crops


@pytest.mark.parametrize("count", [5, 9, 41])
def test_syncnet_v2_sees_the_same_crops_as_of_a_whole_clip(count: int) -> None:
    pictures = flashes(count, 0)[0]
    walk = POINTS + np.random.default_rng(1).normal(0, 3, (count, 1, 2))
    judge, crops = recording()
    metered(judge, pictures, np.zeros(640 * count), dict(enumerate(walk)))
    expected = list(sync.crops_of(pictures, walk))
    assert len(crops) == count
    assert all(np.array_equal(a, b) for a, b in zip(crops, expected, strict=True))


def test_a_face_that_comes_later_is_waited_for() -> None:
    judge, crops = recording()
    metered(judge, flashes(30, 0)[0], np.zeros(640 * 30), dict.fromkeys(range(12, 30), POINTS))
    assert len(crops) == 30
    assert (crops[0] == 110).all()
    assert crops[29].std() > 0 or crops[29].mean() != 110


def test_judges_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("LATENTSYNC_WEIGHTS_PATH", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="known ones are auto, syncnet, demo"):
        judges.load("mine")
    with pytest.raises(WeightsError, match="latentsync models download judges"):
        judges.load("syncnet", home=tmp_path)
    monkeypatch.setattr(sync, "load_demo_judge", lambda device: (CONFIG, Plain(CONFIG)))
    judge, note = judges.load("auto", home=tmp_path)
    assert judge.name == "demo"
    assert "another scale" in note
