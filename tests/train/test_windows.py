"""What a sample holds, and that it depends on seed, epoch and index alone: not on workers, processes, order or interruption."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from latentsync.errors import InputError
from latentsync.media.clip import read_audio
from latentsync.speech.sync_mel import sync_mel
from latentsync.speech.track import SpeechTrack
from latentsync.train import windows as windows_module
from latentsync.train.cache import Cache
from latentsync.train.clips import ClipSet
from latentsync.train.windows import Pick, Picks, SyncNetWindows, UNetWindows, collate, loader, two_starts, weights_digest
from tests.train.clipmaker import SIDE, make_clip, number, small_whisper

FRAMES = 8
SEED = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for i, count in enumerate((24, 30, 41, 60, 75)):
        make_clip(folder / f"{i}.mp4", count, seed=i)
    return folder


@pytest.fixture(scope="module")
def clips(folder: Path) -> ClipSet:
    return ClipSet.open(folder, frames=FRAMES, resolution=SIDE)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that all tests may share, because what it holds never differs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def unet(clips: ClipSet, warm: Path) -> UNetWindows:
    return UNetWindows(clips, frames=FRAMES, resolution=SIDE, seed=SEED, cache=Cache(warm), whisper=small_whisper, mels=True)


@pytest.fixture(scope="module")
def syncnet(clips: ClipSet, warm: Path) -> SyncNetWindows:
    return SyncNetWindows(clips, frames=FRAMES, resolution=SIDE, lower_half=True, seed=SEED, cache=Cache(warm))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


# Picks


def some(picks: Picks, batches: int) -> list[list[Pick]]:
    return list(itertools.islice(picks, batches))


@pytest.mark.parametrize(("count", "batch"), [(10, 1), (10, 4), (7, 3), (3, 8), (1, 2)])
def test_every_clip_once_an_epoch_whatever_the_batch(count: int, batch: int) -> None:
    flat = [p for b in some(Picks(count, seed=1, batch=batch), 60) for p in b]
    assert [p.position for p in flat] == list(range(60 * batch))
    assert [p.epoch for p in flat] == [p.position // count for p in flat]
    whole = [p for p in flat if p.epoch < flat[-1].epoch]
    for _, group in itertools.groupby(whole, key=lambda p: p.epoch):
        assert sorted(p.index for p in group) == list(range(count))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first, second = (tuple(p.index for b in some(Picks(50, seed=1, batch=50), 2)[e : e + 1] for p in b) for e in (0, 1))
    assert first != second
    assert some(Picks(50, seed=1, batch=7), 20) == some(Picks(50, seed=1, batch=7), 20)
    assert some(Picks(50, seed=2, batch=50), 1) != some(Picks(50, seed=1, batch=50), 1)
    assert [p.index for b in some(Picks(5, seed=1, batch=5, shuffle=False), 2) for p in b] == [0, 1, 2, 3, 4] * 2


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_processes_share_one_sequence(world: int, batch: int) -> None:
    """Process r's micro-batches, laid side by side, are those of one process with the whole batch."""
    ranks = [some(Picks(13, seed=4, batch=batch, rank=r, world=world), 20) for r in range(world)]
    together = [[p for r in ranks for p in r[m]] for m in range(20)]
    assert together == some(Picks(13, seed=4, batch=batch * world), 20)


@pytest.mark.parametrize("start", [0, 1, 5, 17, 1000])
def test_resuming_goes_on_where_it_stopped(start: int) -> None:
    for rank in (0, 1):
        whole = some(Picks(13, seed=4, batch=3, rank=rank, world=2), start + 10)
        assert some(Picks(13, seed=4, batch=3, rank=rank, world=2, start=start), 10) == whole[start:]


@pytest.mark.parametrize("wrong", [{"count": 0}, {"batch": 0}, {"rank": 2, "world": 2}, {"start": -1}])
def test_picks_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cannot pick"):
        Picks(**({"count": 5, "batch": 1} | wrong), seed=0)


# Windows within a clip


@pytest.mark.parametrize(("count", "frames"), [(48, 16), (49, 16), (3, 1), (75, 25), (150, 16), (1000, 16)])
def test_two_windows_never_overlap_and_lie_within(count: int, frames: int) -> None:
    draw = np.random.default_rng(0)
    pairs = [two_starts(draw, count, frames) for _ in range(3000)]
    for start, other in pairs:
        assert 0 <= start <= count - frames
        assert 0 <= other <= count - frames
        assert abs(start - other) >= frames
    starts = Counter(start for start, _ in pairs)
    if count <= 75:
        assert set(starts) == set(range(count - frames + 1)), "every place is used"
        assert {other for _, other in pairs} == set(range(count - frames + 1))
    assert 0.4 < np.mean([start for start, _ in pairs]) / (count - frames) < 0.6


# Samples


def test_a_unet_sample_shows_and_hears_the_same_moment(unet: UNetWindows, clips: ClipSet) -> None:
    for index, epoch in itertools.product(range(len(clips)), range(3)):
        sample = unet[Pick(epoch, index, 100)]
        assert {k: (tuple(v.shape), v.dtype) for k, v in sample.items() if isinstance(v, torch.Tensor)} == {
            "frames": ((FRAMES, 3, SIDE, SIDE), torch.uint8),
            "reference": ((FRAMES, 3, SIDE, SIDE), torch.uint8),
            "audio": ((FRAMES, 20, 16), torch.float32),
            "mel": ((1, 80, 26), torch.float32),
        }
        assert (sample["position"], sample["weight"], sample["bad"], sample["note"]) == (100, 1.0, "", "")
        shown = [number(f) for f in sample["frames"]]
        start = shown[0]
        assert shown == list(range(start, start + FRAMES))
        other = [number(f) for f in sample["reference"]]
        assert other == list(range(other[0], other[0] + FRAMES))
        assert abs(other[0] - start) >= FRAMES

        samples = read_audio(clips[index].path)
        first = int(80 * start / 25)
        whole = sync_mel(samples)
        expected = whole[:, np.minimum(np.arange(first, first + 26), whole.shape[1] - 1)]
        np.testing.assert_array_equal(sample["mel"][0].numpy(), expected)
        track = SpeechTrack(lambda samples=samples: iter([samples]), small_whisper())
        contexts = track.contexts([Fraction(i, 25) for i in shown])
        torch.testing.assert_close(sample["audio"], contexts, rtol=1e-3, atol=1e-3)  # kept in float16
        assert torch.equal(sample["audio"], sample["audio"].half().float())


def test_a_syncnet_sample_has_its_own_sound_or_another(syncnet: SyncNetWindows, clips: ClipSet) -> None:
    labels = []
    for index, clip in enumerate(clips):
        whole = sync_mel(read_audio(clip.path))
        for epoch in range(30):
            sample = syncnet[Pick(epoch, index, 0)]
            assert sample["frames"].shape == (FRAMES, 3, SIDE // 2, SIDE)
            assert sample["mel"].shape == (1, 80, 26)
            start = number(sample["frames"][0])
            padded = np.concatenate([whole, np.repeat(whole[:, -1:], 3, 1)], 1)
            places = [i for i in range(clip.frames - FRAMES + 1) if np.array_equal(padded[:, int(3.2 * i) : int(3.2 * i) + 26], sample["mel"][0])]
            labels.append(sample["label"])
            if sample["label"] == 1.0:
                assert places == [start]
            else:
                assert len(places) == 1
                assert abs(places[0] - start) >= FRAMES
    assert 0.4 < np.mean(labels) < 0.6


def test_the_lower_half_is_cut_from_the_whole(clips: ClipSet, warm: Path, syncnet: SyncNetWindows) -> None:
    whole = SyncNetWindows(clips, frames=FRAMES, resolution=SIDE, lower_half=False, seed=SEED, cache=Cache(warm))[Pick(0, 3, 0)]
    assert whole["frames"].shape == (FRAMES, 3, SIDE, SIDE)
    assert torch.equal(whole["frames"][:, :, SIDE // 2 :], syncnet[Pick(0, 3, 0)]["frames"])


def test_samples_depend_on_seed_epoch_and_index_alone(unet: UNetWindows, clips: ClipSet, warm: Path, tmp_path: Path) -> None:
    again = UNetWindows(clips, frames=FRAMES, resolution=SIDE, seed=SEED, cache=Cache(tmp_path), whisper=small_whisper, mels=True)
    picks = [Pick(e, i, 0) for e in range(3) for i in range(len(clips))]
    first = [unet[p] for p in picks]
    for pick, sample in reversed(list(zip(picks, first, strict=True))):  # in another order, with a cold cache
        assert same(again[pick], sample)
    starts = {number(s["frames"][0]) for p, s in zip(picks, first, strict=True) if p.index == 4}
    assert len(starts) == 3, "epochs should differ"
    other = UNetWindows(clips, frames=FRAMES, resolution=SIDE, seed=SEED + 1, cache=Cache(warm), whisper=small_whisper, mels=True)
    assert [number(other[p]["frames"][0]) for p in picks] != [number(s["frames"][0]) for s in first]


def test_without_mels_there_is_none(clips: ClipSet, warm: Path) -> None:
    sample = UNetWindows(clips, frames=FRAMES, resolution=SIDE, seed=SEED, cache=Cache(warm), whisper=small_whisper, mels=False)[Pick(0, 0, 0)]
    assert "mel" not in sample


def test_clips_of_another_kind_are_refused(clips: ClipSet, warm: Path) -> None:
    with pytest.raises(ValueError, match="8 frames at 64 px, not for 16 at 64"):
        SyncNetWindows(clips, frames=16, resolution=SIDE, lower_half=True, seed=0, cache=Cache(warm))


def test_other_sizes_and_rates(tmp_path: Path) -> None:
    """A clip of 50 frames a second: every second frame is seen, and the sound runs along."""
    make_clip(tmp_path / "a.mp4", 100, rate=50)
    clips = ClipSet.open(tmp_path, frames=FRAMES, resolution=32, size="resize")
    data = SyncNetWindows(clips, frames=FRAMES, resolution=32, lower_half=False, seed=0, cache=Cache(tmp_path / "cache"))
    for epoch in range(6):
        sample = data[Pick(epoch, 0, 0)]
        assert sample["frames"].shape == (FRAMES, 3, 32, 32)
        shown = [number(f) for f in sample["frames"]]
        assert shown == list(range(shown[0], shown[0] + 2 * FRAMES, 2))
        assert shown[0] % 2 == 0


# The cache


def test_warm_caches_need_neither_sound_nor_encoder(unet: UNetWindows, clips: ClipSet, warm: Path, monkeypatch: Any) -> None:
    for index in range(len(clips)):
        unet[Pick(0, index, 0)]
    monkeypatch.setattr(windows_module, "read_audio", lambda path: pytest.fail("the sound was read again"))
    data = pickle.loads(pickle.dumps(unet))
    data._whisper = lambda: pytest.fail("the encoder was loaded again")
    for index in range(len(clips)):
        data[Pick(5, index, 0)]


def test_other_weights_are_cached_apart(clips: ClipSet, warm: Path, unet: UNetWindows) -> None:
    def other() -> Any:
        encoder = small_whisper()
        encoder.encoder.conv1.weight.data.mul_(1.5)
        return encoder

    assert weights_digest(other()) != weights_digest(small_whisper())
    data = UNetWindows(clips, frames=FRAMES, resolution=SIDE, seed=SEED, cache=Cache(warm), whisper=other, mels=False)
    assert not torch.allclose(data[Pick(0, 0, 0)]["audio"], unet[Pick(0, 0, 0)]["audio"])


def test_copies_share_what_was_computed(clips: ClipSet, tmp_path: Path) -> None:
    """The cache goes by content: a file under another name is the same."""
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(clips[0].path.read_bytes())
    copies = ClipSet.open(tmp_path, frames=FRAMES, resolution=SIDE)
    data = SyncNetWindows(copies, frames=FRAMES, resolution=SIDE, lower_half=True, seed=0, cache=Cache(tmp_path / "cache"))
    for index in (0, 1):
        data[Pick(0, index, 0)]
    assert len([p for p in (tmp_path / "cache").rglob("mel-*") if p.is_file()]) == 1


def test_a_cache_that_fails_is_noted_once(clips: ClipSet, tmp_path: Path, syncnet: SyncNetWindows) -> None:
    (tmp_path / "file").touch()
    data = SyncNetWindows(clips, frames=FRAMES, resolution=SIDE, lower_half=True, seed=SEED, cache=Cache(tmp_path / "file" / "cache"))
    items = [data[Pick(0, i, i)] for i in range(3)]
    assert ["nothing more is kept" in item["note"] for item in items] == [True, False, False]
    assert torch.equal(items[2]["mel"], syncnet[Pick(0, 2, 2)]["mel"])
    batch = collate(items)
    assert len(batch["notes"]) == 1
    assert batch["bad"] == []


# Clips that fail while training


def vanish(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def overwrite(path: Path) -> None:
    path.write_text("no video any more")


@pytest.mark.parametrize("harm", [vanish, cut, overwrite])
@pytest.mark.parametrize("kind", ["unet", "syncnet"])
def test_a_clip_that_fails_is_named_and_never_replaced(tmp_path: Path, harm: Callable[[Path], None], kind: str) -> None:
    for name in ("good.mp4", "lost.mp4"):
        make_clip(tmp_path / name, 60, faststart=True)
    for on_bad in ("skip", "error"):
        make_clip(tmp_path / "lost.mp4", 60, faststart=True)
        clips = ClipSet.open(tmp_path, frames=FRAMES, resolution=SIDE, on_bad=on_bad)
        cache = Cache(tmp_path / f"cache-{on_bad}")
        settings: dict[str, Any] = {"frames": FRAMES, "resolution": SIDE, "seed": 2, "cache": cache}
        if kind == "unet":
            data: Any = UNetWindows(clips, whisper=small_whisper, mels=True, **settings)
        else:
            data = SyncNetWindows(clips, lower_half=True, **settings)
        good = data[Pick(0, 0, 0)]
        harm(tmp_path / "lost.mp4")
        if on_bad == "error":
            with pytest.raises(InputError, match=r"lost\.mp4: .*\n.*data\.on_bad=skip"):
                data[Pick(0, 1, 1)]
            continue
        item = data[Pick(0, 1, 1)]
        assert item["weight"] == 0.0
        assert item["bad"].startswith(f"{tmp_path / 'lost.mp4'}: ")
        assert item["bad"].count("lost.mp4") == 1
        assert {k: v.shape for k, v in item.items() if isinstance(v, torch.Tensor)} == {
            k: v.shape for k, v in good.items() if isinstance(v, torch.Tensor)
        }
        assert not any(v.any() for v in item.values() if isinstance(v, torch.Tensor))
        batch = collate([good, item])
        assert batch["weight"].tolist() == [1.0, 0.0]
        assert batch["bad"] == [item["bad"]]
        assert batch["position"].tolist() == [0, 1]


def test_sound_shorter_than_the_header_said_is_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    make_clip(tmp_path / "a.mp4", 60)
    clips = ClipSet.open(tmp_path, frames=FRAMES, resolution=SIDE)
    monkeypatch.setattr(windows_module, "read_audio", lambda path: read_audio(path)[:6000])
    data = SyncNetWindows(clips, frames=FRAMES, resolution=SIDE, lower_half=True, seed=0, cache=Cache(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"its sound ends at 0\.39 s, a window ends at"):
        for epoch in range(9):
            data[Pick(epoch, 0, 0)]


# The loader


def batches(data: Any, count: int, workers: int = 0, **settings: Any) -> list[dict[str, Any]]:
    picks = Picks(len(data), seed=SEED, batch=2, **{k: settings.pop(k) for k in ("start", "rank", "world") if k in settings})
    return list(itertools.islice(loader(data, picks, workers, **settings), count))


@pytest.mark.parametrize(("workers", "method"), [(1, None), (2, "fork"), (1, "spawn")])
def test_workers_change_nothing(syncnet: SyncNetWindows, workers: int, method: str | None, left_running: Callable[[], list[str]]) -> None:
    expected = batches(syncnet, 7)
    got = batches(syncnet, 7, workers, start_method=method)
    assert all(same(a, b) for a, b in zip(expected, got, strict=True))
    assert expected[0]["position"].dtype == torch.int64
    assert expected[0]["label"].dtype == expected[0]["weight"].dtype == torch.float32
    assert left_running() == []


@pytest.mark.timeout(120)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_workers_are_forked_off_a_process_whose_opencv_has_threads(syncnet: SyncNetWindows) -> None:
    """A forked worker has none of those threads; it must not wait for them."""
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 5)  # starts them
        assert len(batches(syncnet, 2, 1, start_method="fork")) == 2
        assert cv2.getNumThreads() == 4
    finally:
        cv2.setNumThreads(before)


def test_workers_compute_what_this_process_would(clips: ClipSet, unet: UNetWindows, tmp_path: Path) -> None:
    """Whisper runs in the workers, several at a time on one cold cache."""
    cold = UNetWindows(clips, frames=FRAMES, resolution=SIDE, seed=SEED, cache=Cache(tmp_path), whisper=small_whisper, mels=True)
    got = batches(cold, 6, 2)
    for a, b in zip(batches(unet, 6), got, strict=True):
        assert torch.equal(a["frames"], b["frames"])
        assert torch.equal(a["mel"], b["mel"])
        torch.testing.assert_close(a["audio"], b["audio"], rtol=1e-3, atol=1e-3)  # threads may round otherwise


def test_two_processes_and_a_resumed_one_see_the_same(syncnet: SyncNetWindows) -> None:
    wide = list(itertools.islice(loader(syncnet, Picks(5, seed=1, batch=2), 0), 6))
    for rank in (0, 1):
        narrow = list(itertools.islice(loader(syncnet, Picks(5, seed=1, batch=1, rank=rank, world=2), 0), 6))
        for a, b in zip(wide, narrow, strict=True):
            assert torch.equal(a["frames"][rank : rank + 1], b["frames"])
            assert torch.equal(a["mel"][rank : rank + 1], b["mel"])
            assert a["position"][rank] == b["position"][0]
    assert all(same(a, b) for a, b in zip(batches(syncnet, 3, 1, start=3), batches(syncnet, 6)[3:], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_about_data_comes_out_as_it_is(tmp_path: Path, workers: int) -> None:
    make_clip(tmp_path / "a.mp4", 60)
    clips = ClipSet.open(tmp_path, frames=FRAMES, resolution=SIDE)
    (tmp_path / "a.mp4").unlink()
    data = SyncNetWindows(clips, frames=FRAMES, resolution=SIDE, lower_half=True, seed=0, cache=Cache(tmp_path / "cache"))
    said = ""
    try:
        batches(data, 1, workers)
    except InputError as e:
        said = str(e)
    began = time.monotonic()
    gc.collect()
    assert said.startswith(f"{tmp_path / 'a.mp4'}: ")
    assert "Traceback" not in said
    assert time.monotonic() - began < 3, "workers should have ended by themselves"


def test_skipped_clips_come_through_the_loader(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        make_clip(tmp_path / name, 60)
    clips = ClipSet.open(tmp_path, frames=FRAMES, resolution=SIDE, on_bad="skip")
    (tmp_path / "b.mp4").unlink()
    data = SyncNetWindows(clips, frames=FRAMES, resolution=SIDE, lower_half=True, seed=0, cache=Cache(tmp_path / "cache"))
    found = list(itertools.islice(loader(data, Picks(3, seed=0, batch=3), 1), 3))
    for batch in found:
        assert sorted(batch["weight"].tolist()) == [0.0, 1.0, 1.0]
        assert len(batch["bad"]) == 1
        assert "b.mp4" in batch["bad"][0]


@pytest.mark.parametrize("workers", [0, 1])
def test_nobody_elses_random_numbers_are_touched(syncnet: SyncNetWindows, workers: int) -> None:
    """A resumed run makes its loader anew: that must not move the networks' random numbers."""
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.random.get_rng_state(), np.random.get_state()[1]
    batches(syncnet, 2, workers)
    assert torch.equal(torch.random.get_rng_state(), expected[0])
    np.testing.assert_array_equal(np.random.get_state()[1], expected[1])


def test_a_fixed_list_of_batches_ends(syncnet: SyncNetWindows) -> None:
    fixed = [[Pick(0, i, i)] for i in range(3)]
    assert [b["position"].tolist() for b in loader(syncnet, fixed, 0)] == [[0], [1], [2]]


def test_the_encoder_stays_out_of_what_workers_get(unet: UNetWindows) -> None:
    assert len(pickle.dumps(unet)) < 20_000
    back = pickle.loads(pickle.dumps(unet))
    assert all(same(back[Pick(0, i, 0)], unet[Pick(0, i, 0)]) for i in range(3))
