"""Frames decoded once: what is kept equals what is decoded, whoever asks, and whatever happened to the file."""

import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import InputError, OutputError
from latentsync.media.clip import read_frames
from latentsync.train import store as module
from latentsync.train.clips import Clip
from latentsync.train.store import FrameStore

FPS = Fraction(25)
COUNT = 20


@pytest.fixture
def clip(others: Path, tmp_path: Path) -> Clip:
    path = tmp_path / "clip.mp4"
    shutil.copy(others / "other 00.mp4", path)
    return Clip(path, COUNT)


def decoded(clip: Clip, side: int = 64) -> np.ndarray:
    return read_frames(clip.path, [i / FPS for i in range(clip.frames)], side=side)


def kept(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("at_once", [7, 64])
def test_what_is_kept_is_what_is_decoded(clip, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    for side in (64, 32):
        found = FrameStore(tmp_path / "cache", fps=FPS, side=side).frames(clip)
        assert np.array_equal(found, decoded(clip, side))
        assert not found.flags.writeable


def test_a_clip_is_decoded_once_and_known_again_by_its_content(clip, tmp_path, monkeypatch):
    first = FrameStore(tmp_path / "cache", fps=FPS, side=64).frames(clip)
    monkeypatch.setattr(module, "read_frames", lambda *_, **__: pytest.fail("decoded again"))
    moved = Clip(clip.path.rename(tmp_path / "moved.mp4"), COUNT)
    store = FrameStore(tmp_path / "cache", fps=FPS, side=64)
    assert np.array_equal(store.frames(moved), first)
    assert store.frames(moved) is store.frames(moved)


def test_another_content_is_another_clip(clip, others, tmp_path):
    store = FrameStore(tmp_path / "cache", fps=FPS, side=64)
    before = store.frames(clip)
    shutil.copy(others / "other 01.mp4", clip.path)
    assert np.array_equal(store.frames(clip), decoded(clip))
    assert not np.array_equal(store.frames(clip), before)


@pytest.mark.parametrize("damage", [b"", b"not an array", None])
def test_a_damaged_file_is_made_anew(clip, tmp_path, damage):
    FrameStore(tmp_path / "cache", fps=FPS, side=64).frames(clip)
    (file,) = kept(tmp_path / "cache")
    whole = file.read_bytes()
    file.unlink()  # the mapping of before keeps its own
    file.write_bytes(whole[:-100] if damage is None else damage)
    assert np.array_equal(FrameStore(tmp_path / "cache", fps=FPS, side=64).frames(clip), decoded(clip))
    assert file.read_bytes() == whole


def test_few_files_are_open_at_a_time(others, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_OPEN", 2)
    store = FrameStore(tmp_path / "cache", fps=FPS, side=64)
    clips = [Clip(others / f"other {i:02d}.mp4", 3) for i in range(4)]
    for clip in [*clips, *clips]:
        assert np.array_equal(store.frames(clip), decoded(clip))
        assert len(store._open) <= 2


def test_a_store_travels_to_other_processes(clip, tmp_path):
    store = FrameStore(tmp_path / "cache", fps=FPS, side=64)
    first = store.frames(clip)
    assert np.array_equal(pickle.loads(pickle.dumps(store)).frames(clip), first)


def test_of_many_that_want_one_clip_one_decodes_it(clip, tmp_path, monkeypatch):
    """Threads here; the lock is the same among processes."""
    began = []
    monkeypatch.setattr(module, "read_frames", lambda *a, **k: (began.append(1), time.sleep(0.2), read_frames(*a, **k))[-1])
    stores = [FrameStore(tmp_path / "cache", fps=FPS, side=64) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda store: store.frames(clip), stores))
    assert all(np.array_equal(frames, decoded(clip)) for frames in found)
    assert len(began) == len(kept(tmp_path / "cache")) == 1


def test_a_clip_that_cannot_be_read_leaves_nothing(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"not a clip")
    with pytest.raises(InputError, match=r"broken\.mp4"):
        FrameStore(tmp_path / "cache", fps=FPS, side=64).frames(Clip(path, COUNT))
    assert kept(tmp_path / "cache") == []


def test_a_folder_that_cannot_be_written_is_named(clip, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match=r"clip\.mp4.*data\.cache=FOLDER"):
        FrameStore(tmp_path / "cache", fps=FPS, side=64).frames(clip)
