"""The step that finds how early or late the sound is, and moves it: planted offsets are found, moved at the sample, and gone when measured again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from latentsync.errors import InputError, UsageError
from latentsync.media.clip import read_audio
from latentsync.media.clip_writer import write_clip
from latentsync.metrics.sync import load_syncnet_v2
from latentsync.models.syncnet_v2 import SyncNetV2
from latentsync.prepare.records import from_plain, to_plain
from latentsync.prepare.steps import sync
from latentsync.prepare.steps.sync import Synced

QUIET, RANGE = 1.5, 2.0  # loudness of level 0, and how much louder level 1 is: powers of ten of 16-bit samples
DARK, BRIGHT = 40, 200


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of SyncNet v2 whose vectors are how bright the middle of the crop is, and how loud the sound is, on one scale."""
    net = SyncNetV2().eval()
    for tensor in net.state_dict().values():
        tensor.zero_()
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.fill_(1)
    for module in net.modules():  # passes the first channel on
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            middle = tuple((side - 1) // 2 for side in module.kernel_size)
            module.weight.data[(0, 0, *middle)] = 1
        elif isinstance(module, torch.nn.Linear):
            module.weight.data[0, 0] = 1
        elif isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.weight.data[0] = 1
    net.netcnnlip[0].weight.data[0, 0, :, 3, 3] = 1 / 5  # the mean of the five frames
    net.netcnnaud[18].weight.data[0, 0] = 0
    net.netcnnaud[18].weight.data[0, 0, 0] = torch.tensor([3, 3, 2, 1]) / 9  # of the energy, around its middle
    silent, loud = (np.log(400 / 2) + 2 * np.log(10) * power for power in (QUIET, QUIET + RANGE))  # columns' energy, about
    silent, loud = (energy + 0.16 * (loud - silent) for energy in (silent, loud))  # the loudest moments of a window count most
    for head, low, high in ((net.netfclip, DARK, BRIGHT), (net.netfcaud, silent, loud)):
        head[0].weight.data[0, 0] = 1 / (high - low)
        head[0].bias.data[0] = -low / (high - low)
        head[3].weight.data[0, 0] = 10
    path = tmp_path_factory.mktemp("judge") / "syncnet_v2.model"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def _forget():
    yield
    load_syncnet_v2.cache_clear()


def levels(frames: int) -> np.ndarray:
    """(frames,) from 0 to 1, up and down within half a second or so, never the same way."""
    slow = np.convolve(np.random.default_rng(1).uniform(0, 1, frames + 8), np.hanning(11)[1:-1], mode="valid")
    return (slow - slow.min()) / np.ptp(slow)


def flashes(path: Path, frames: int = 34, early: int = 0, side: int = 64) -> Path:
    """A clip of one grey that is as bright as the noise is loud that belongs to it; the noise comes that many frames early."""
    rng = np.random.default_rng(1)
    level = levels(frames + 20)
    seen, heard = level[10 : 10 + frames], level[10 + early : 10 + early + frames]
    pictures = np.stack([np.full((side, side, 3), round(DARK + (BRIGHT - DARK) * v), np.uint8) for v in seen])
    loud = np.repeat(10 ** (QUIET + RANGE * heard), 640) / 32768
    write_clip(path, pictures, Fraction(25), (rng.normal(0, 1, 640 * frames) * loud).clip(-1, 1).astype(np.float32))
    return path


# --- measuring


@pytest.mark.parametrize("early", [3, -5])
def test_a_planted_offset_is_found_and_gone_after_the_shift(early: int, judge: Path, tmp_path: Path):
    clip = flashes(tmp_path / "it's a clip.mp4", early=early)
    found = sync.measure(clip, weights=judge)
    assert found.offset == early
    assert found.model == "syncnet"
    assert found.confidence > 1
    assert len(found.seconds) == 2
    assert from_plain(Synced, to_plain(found)) == found
    assert sync.decide(found, min_sync=1).reason.endswith(f"the sound to be moved by {early:+d} frames")
    sync.shift(clip, tmp_path / "moved.mp4", found.offset)
    again = sync.measure(tmp_path / "moved.mp4", weights=judge)
    assert again.offset == 0
    assert again.confidence > 1


def test_the_default_reason_to_drop_names_numbers_and_model():
    assert sync.decide(Synced(3.0, -6, 7.0, "syncnet")) == (True, "sync confidence 3.00 (syncnet), the sound to be moved by -6 frames")
    assert sync.decide(Synced(5.5, 0, 7.0, "syncnet")) == (True, "sync confidence 5.50 (syncnet)")
    low = sync.decide(Synced(2.99, 0, 9.0, "syncnet"))
    assert not low.keep
    assert "2.99 (syncnet), less than 3" in low.reason
    assert sync.decide(Synced(2.99, 0, 9.0, "syncnet"), min_sync=2).keep
    assert sync.decide(Synced(0.4, 0, 0.3, "demo")).keep, "the package's own scale"
    assert not sync.decide(Synced(0.01, 0, 0.9, "demo")).keep
    far = sync.decide(Synced(8.0, 7, 6.0, "syncnet"))
    assert far == (False, "the sound is 7 frames early, more than the 6 that are repaired")
    assert "7 frames late" in sync.decide(Synced(8.0, -7, 6.0, "syncnet")).reason
    assert sync.decide(Synced(8.0, 7, 6.0, "syncnet"), max_offset=9).keep


def test_what_cannot_be_judged_is_named(judge: Path, tmp_path: Path):
    grey = np.full((10, 64, 64, 3), 90, np.uint8)
    silent, short, wide = tmp_path / "silent.mp4", tmp_path / "short.mp4", tmp_path / "wide.mp4"
    write_clip(silent, grey, Fraction(25))
    with pytest.raises(InputError, match=r"silent\.mp4 holds no sound"):
        sync.measure(silent, weights=judge)
    write_clip(short, grey[:4], Fraction(25), np.zeros(640 * 4, np.float32))
    with pytest.raises(InputError, match=r"short\.mp4: 4 frames are too few.*give a longer clip"):
        sync.measure(short, weights=judge)
    write_clip(wide, grey[:, :40], Fraction(25), np.zeros(6400, np.float32))
    with pytest.raises(UsageError, match=r"wide\.mp4 is no aligned face, and there is no wide\.npz"):
        sync.measure(wide, weights=judge)
    with pytest.raises(UsageError, match="known ones are syncnet, demo"):
        sync.measure(wide, model="lips")

    class Nobody:
        name = "nobody"

        def detect(self, rgb):
            return []

        def landmarks(self, picture, near):
            return None

    with pytest.raises(InputError, match=r"wide\.mp4: no face in any frame; .*--face-backend"):
        sync.measure(wide, weights=judge, backend=Nobody())


# --- moving


def packets(path: Path) -> list[tuple[bytes, Fraction | None, bool]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(bytes(p), None if p.pts is None else p.pts * p.time_base, p.is_keyframe) for p in container.demux(stream) if p.size]


def as_stored(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.round(samples * 32768), -32768, 32767) / 32768


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_sound_moves_at_the_sample_and_pictures_are_copied(suffix: str, tmp_path: Path):
    rng = np.random.default_rng(0)
    clip = tmp_path / "a clip.mp4"
    write_clip(clip, rng.integers(0, 255, (30, 32, 32, 3)).astype(np.uint8), Fraction(25), rng.normal(0, 0.2, 19200).astype(np.float32))
    before = as_stored(read_audio(clip))
    for frames in (3, -5, 0, 100):
        target = tmp_path / "new" / f"moved{suffix}"
        sync.shift(clip, target, frames)
        after, by = read_audio(target), 640 * frames
        expected = np.zeros_like(before)
        expected[max(0, by) :] = before[: len(before) - by] if by > 0 else 0
        if by <= 0:
            expected[: len(before) + by] = before[-by:]
        np.testing.assert_array_equal(after, expected if frames < 100 else np.zeros_like(before))
        assert packets(target) == packets(clip)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [f"moved{suffix}"]
    back = tmp_path / "back.mp4"
    sync.shift(target, back, 1)  # from each container, with sound that is lossless already
    assert packets(back) == packets(clip)


def test_other_rates_and_channels_stay(tmp_path: Path):
    rng = np.random.default_rng(0)
    clip, target = tmp_path / "stereo.mov", tmp_path / "moved.mov"
    samples = rng.integers(-9000, 9000, (2, 44100)).astype(np.int16)
    with av.open(str(clip), "w") as container:
        picture = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        voice = container.add_stream("pcm_s16le", rate=44100, layout="stereo")
        for _ in range(30):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8), format="rgb24")))
        container.mux(picture.encode())
        block = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format="s16", layout="stereo")
        block.sample_rate, block.pts = 44100, 0
        container.mux(voice.encode(block))
    sync.shift(clip, target, -2, fps=30)
    with av.open(str(target)) as container:
        moved = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    assert moved.shape == (2, 44100)
    np.testing.assert_array_equal(moved[:, : 44100 - 2940], samples[:, 2940:])  # 44100 * 2 / 30
    assert not moved[:, 44100 - 2940 :].any()
    assert packets(target) == packets(clip)


def test_what_cannot_be_moved_is_refused_and_nothing_is_left(tmp_path: Path):
    clip = flashes(tmp_path / "clip.mp4", 10)
    content = clip.read_bytes()
    with pytest.raises(UsageError, match=r"clips with moved sound are \.mp4"):
        sync.shift(clip, tmp_path / "out.webm", 1)
    with pytest.raises(UsageError, match="is the clip itself"):
        sync.shift(clip, clip, 1)
    silent = tmp_path / "silent.mp4"
    write_clip(silent, np.zeros((5, 32, 32, 3), np.uint8), Fraction(25))
    with pytest.raises(InputError, match="holds no sound"):
        sync.shift(silent, tmp_path / "out.mp4", 1)
    assert clip.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "silent.mp4"]
