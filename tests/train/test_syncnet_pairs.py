"""SyncNet trained on all pairs of near windows: what is drawn, what is compared, and what is measured of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentsync import train
from latentsync.config import SyncNetConfig
from latentsync.errors import InputError, UsageError
from latentsync.models.load import read_state
from latentsync.train.cache import Cache
from latentsync.train.checkpoint import find
from latentsync.train.clips import ClipSet
from latentsync.train.losses import contrast_loss
from latentsync.train.store import FrameStore
from latentsync.train.syncnet import load_syncnet
from latentsync.train.syncnet_step import SyncNetStep
from latentsync.train.validate import judged
from latentsync.train.windows import Pick, SyncNetWindows, changed_mel, changed_pictures, collate, near_starts
from tests.train.clipmaker import SIDE, make_clip

FRAMES = 8


def test_starts_are_near_and_apart():
    for seed in range(200):
        starts = np.sort(near_starts(np.random.default_rng(seed), 100, 4, 3, 40))
        assert np.diff(starts).min() >= 3
        assert starts[-1] - starts[0] <= 40
        assert starts[0] >= 0
        assert starts[-1] <= 100
    assert near_starts(np.random.default_rng(0), 9, 4, 3, 40) == [0, 3, 6, 9], "a clip with room for no more"


def test_contrast_is_the_cross_entropy_of_both_ways_among_what_counts():
    cosines = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    counted = torch.tensor([True, True, False, True, True])
    found = contrast_loss(cosines, counted, 0.1)
    kept = cosines[counted][:, counted] / 0.1
    own = torch.arange(4)
    both = F.cross_entropy(kept, own, reduction="none") + F.cross_entropy(kept.T, own, reduction="none")
    torch.testing.assert_close(found[counted], both / 2)
    assert found[2] == 0
    assert contrast_loss(torch.zeros(6, 6), torch.ones(6, dtype=torch.bool), 0.1).mean().item() == pytest.approx(math.log(6))


def test_a_sample_is_windows_with_their_own_sound(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.mp4", 60, seed=1)
    clips = ClipSet.open(tmp_path, frames=FRAMES, resolution=SIDE)
    cache = Cache(tmp_path / "cache")
    store = FrameStore(cache.folder, fps=clips.fps, side=SIDE)
    settings = {"frames": FRAMES, "resolution": SIDE, "lower_half": True, "seed": 5, "cache": cache}
    many = SyncNetWindows(clips, **settings, windows=3, store=store)
    sample = many[Pick(2, 0, 0)]
    assert sample["frames"].shape == (3, FRAMES, 3, SIDE // 2, SIDE)
    assert sample["mel"].shape[:3] == (3, 1, 80)
    whole = store.frames(clips[0]).transpose(0, 3, 1, 2)[:, :, SIDE // 2 :]
    for frames, mel in zip(sample["frames"].numpy(), sample["mel"], strict=True):
        (start,) = (i for i in range(60 - FRAMES + 1) if np.array_equal(whole[i : i + FRAMES], frames))
        assert torch.equal(mel, many._mel(clips[0], start))
    changed = SyncNetWindows(clips, **settings, windows=3, store=store, augment=True)[Pick(2, 0, 0)]
    assert changed["frames"].shape == sample["frames"].shape
    assert not torch.equal(changed["frames"], sample["frames"])
    assert {k: v.shape for k, v in many._blank().items()} == {k: sample[k].shape for k in ("frames", "mel")}


def test_all_frames_and_sounds_are_changed_alike_and_stay_in_range():
    draw = np.random.default_rng(0)
    still = np.repeat(draw.integers(0, 256, (1, 3, 32, 32), dtype=np.uint8), 3, axis=0)
    for seed in range(5):
        made = changed_pictures(np.random.default_rng(seed), still)
        assert made.shape == still.shape
        assert made.dtype == np.uint8
        assert (made == made[:1]).all()
        mel = changed_mel(np.random.default_rng(seed), torch.full((2, 1, 80, 10), 1.0))
        assert mel.shape == (2, 1, 80, 10)
        assert mel.dtype == torch.float32
        assert mel.abs().max() <= 4


def test_the_step_compares_each_window_with_every_sound():
    vectors = F.normalize(torch.eye(4) + 0.1, dim=1)
    config = SyncNetConfig(frames=2, resolution=16)

    def net(frames: torch.Tensor, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert len(frames) == len(mel) == 4
        return vectors, vectors

    batch = {"frames": torch.zeros(2, 2, 2, 3, 8, 16, dtype=torch.uint8), "mel": torch.zeros(2, 2, 1, 80, 7), "weight": torch.ones(2)}
    terms = SyncNetStep(config)(net, batch)
    assert terms["accuracy"] == 1
    assert terms["positive"].item() == pytest.approx(1)
    assert terms["negative"].item() == pytest.approx((vectors[0] @ vectors[1]).item())
    swapped = SyncNetStep(config)(lambda f, m: (vectors, vectors[[1, 0, 2, 3]]), batch)
    assert swapped["loss"] > terms["loss"]
    assert swapped["accuracy"] == 0.5
    left_out = SyncNetStep(config)(lambda f, m: (vectors, vectors[[1, 0, 2, 3]]), batch | {"weight": torch.tensor([0.0, 1.0])})
    assert left_out["accuracy"] == 1


class _Exact(nn.Module):
    """Sees a number in each frame and hears it in the sound's lowest band."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, frames: torch.Tensor, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heard = mel[:, 0, 0][:, [int(3.2 * i) + 1 for i in range(16)]]
        return F.normalize(frames.unflatten(1, (16, 3))[:, :, 0, 0, 0]), F.normalize(heard)


def test_judged_finds_shifts_by_what_belongs_together_alone():
    numbers = torch.randn(150, generator=torch.Generator().manual_seed(0))
    frames = numbers[:, None, None, None].expand(150, 3, 32, 32)
    mel = numbers[[min(149, int(c / 3.2)) for c in range(481)]].expand(80, -1)
    config = SyncNetConfig(resolution=32)
    good = judged(_Exact(), config, frames, mel, seed=0)  # type: ignore[arg-type]
    assert good is not None
    assert good.two > 0.95
    assert good.offset == 1
    noise = torch.randn(80, 481, generator=torch.Generator().manual_seed(1))
    bad = judged(_Exact(), config, frames, noise, seed=0)  # type: ignore[arg-type]
    assert bad is not None
    assert bad.two < 0.7
    assert bad.offset < 0.5
    assert judged(_Exact(), config, frames[:60], mel, seed=0) is None  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):  # as in training: the comparison stays exact
        assert judged(_Exact(), config, frames, mel, seed=0) == good  # type: ignore[arg-type]


def test_a_clip_that_fails_does_not_change_the_shape_of_a_batch(tmp_path: Path) -> None:
    for i in range(2):
        make_clip(tmp_path / f"{i}.mp4", 30, seed=i)
    clips = ClipSet.open(tmp_path, frames=FRAMES, resolution=SIDE, on_bad="skip")
    (tmp_path / "1.mp4").write_bytes(b"")
    data = SyncNetWindows(clips, frames=FRAMES, resolution=SIDE, lower_half=False, seed=5, cache=Cache(tmp_path / "cache"), windows=2)
    batch = collate([data[Pick(0, i, i)] for i in range(2)])
    assert batch["weight"].tolist() == [1, 0]
    assert batch["frames"].shape == (2, 2, FRAMES, 3, SIDE, SIDE)


def _told(folder: Path) -> None:
    for i in range(3):
        make_clip(folder / f"{i}.mp4", 60, seed=i)
        np.savez(folder / f"{i}.npz", lip_gap=np.sin(np.arange(60) / (2 + i)))


def _run(folder: Path, out: Path, steps: int) -> Path:
    values = [f"data.train={folder}", f"run.out={out}", f"run.steps={steps}", "run.batch=2", "run.validate_every=0", "run.validation_clips=1"]
    config, _ = train.load("syncnet", "tiny", [*values, "recipe.windows=2", "recipe.lips=1", "optimizer.learning_rate=0.001"])
    return find(train.run(config).out)


def test_lips_are_told_while_training_and_the_judge_is_written_without(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    _told(clips)
    whole = _run(clips, tmp_path / "whole", 4)
    _run(clips, tmp_path / "parts", 2)
    parts = _run(clips, tmp_path / "parts", 4)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "events.jsonl").read_text().splitlines()]
    assert all(row["lips"] > 0 for row in rows if row["split"] == "train")
    for name in ("syncnet.safetensors", "lips.safetensors"):
        a, b = read_state(whole / name), read_state(parts / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    net, _ = load_syncnet(str(whole), None)
    assert not any("seen" in name or "heard" in name for name in net.state_dict())


def test_lips_need_their_truth_beside_the_clips(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    _told(clips)
    for truth in clips.glob("*.npz"):
        truth.unlink()
    with pytest.raises(InputError, match=r"cannot read .*\.npz"):
        _run(clips, tmp_path / "out", 1)
    with pytest.raises(UsageError, match=r"set recipe\.windows=4"):
        train.load("syncnet", "tiny", ["recipe.lips=1"])


def test_the_error_of_the_lips_is_part_of_the_loss():
    config = SyncNetConfig(frames=2, resolution=16)
    vectors = F.normalize(torch.eye(4) + 0.1, dim=1)
    batch = {"frames": torch.zeros(2, 2, 2, 3, 8, 16, dtype=torch.uint8), "mel": torch.zeros(2, 2, 1, 80, 7), "weight": torch.ones(2)}
    batch["lips"] = torch.ones(2, 2, 2)
    plain = SyncNetStep(config)(lambda f, m: (vectors, vectors), batch)
    told = SyncNetStep(config, lips=3.0)(lambda f, m: (vectors, vectors, torch.ones(4, 2), torch.zeros(4, 2)), batch)
    assert told["lips"].item() == pytest.approx(0.5)  # one side tells all, the other nothing
    assert (told["loss"] - plain["loss"]).item() == pytest.approx(1.5)
