"""What was computed once stays, whole, whoever else writes and whatever happens to the disk."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentsync.errors import InputError
from latentsync.train.cache import Cache, content_digest

KEY = "mel-1-0123"


def entries(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (2, 1, 5)])
def test_what_was_made_comes_back(tmp_path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    wanted = np.random.default_rng(0).normal(size=shape).astype(dtype)
    calls = []
    for _ in range(3):
        got = Cache(tmp_path).array(KEY, lambda: calls.append(1) or wanted)
        assert (got.dtype, got.shape) == (dtype, shape)
        np.testing.assert_array_equal(got, wanted)
    assert len(calls) == 1


def test_keys_do_not_meet(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for i in range(50):
        cache.array(f"speech-1-{i:04x}", lambda i=i: np.full(3, i))
    assert [int(cache.array(f"speech-1-{i:04x}", lambda: np.zeros(3))[0]) for i in range(50)] == list(range(50))
    for wrong in ("../../etc", "a/b", "Upper", "", "x" * 300):
        with pytest.raises(ValueError, match="cache key"):
            cache.array(wrong, lambda: np.zeros(1))


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "foreign", "folder"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    wanted = np.arange(1000, dtype=np.float32)
    cache.array(KEY, lambda: wanted)
    (entry,) = entries(tmp_path)
    data = bytearray(entry.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    new = {"cut": data[: len(data) // 2], "flipped": data, "emptied": b"", "foreign": b"something else altogether", "folder": b""}[damage]
    entry.write_bytes(new)
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    np.testing.assert_array_equal(cache.array(KEY, lambda: wanted), wanted)
    if damage != "folder":
        np.testing.assert_array_equal(Cache(tmp_path).array(KEY, lambda: pytest.fail("not mended")), wanted)


def work(folder: str, seed: int) -> int:
    """Many keys in another order than the other writers; every array read must be the right one, whole."""
    cache = Cache(folder)
    draw = np.random.default_rng(seed)
    for number in draw.integers(0, 12, 150):
        got = cache.array(f"key-{number}", lambda number=number: np.full(5000, number))
        assert got.shape == (5000,)
        assert (got == number).all()
        if draw.integers(10) == 0:  # damage is among what must be survived
            path = cache._path(f"key-{number}")
            path.write_bytes(path.read_bytes()[: int(draw.integers(0, 100))])
    assert not cache.note
    return 1


def test_many_processes_write_at_a_time(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(6) as pool:
        assert pool.starmap(work, [(str(tmp_path), seed) for seed in range(6)]) == [1] * 6
    assert not list((tmp_path / "scratch").iterdir())


FULL = """
import resource, sys
import numpy as np
from latentsync.train.cache import Cache
cache = Cache(sys.argv[1])
cache.array("small-1", lambda: np.zeros(10))
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
for _ in range(2):
    got = cache.array("large-1", lambda: np.arange(100000.0))
    assert (got == np.arange(100000.0)).all()
print(cache.note)
cache.array("small-2", lambda: np.zeros(10))
assert (cache.array("small-1", lambda: 1 / 0) == 0).all()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_full_disk_costs_time_only(tmp_path: Path) -> None:
    """A file size limit stands for the full disk: writing fails in the middle of the file, as there."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing more is kept in the cache" in done.stdout
    assert "the disk is full" in done.stdout
    assert len(entries(tmp_path)) == 1, "half a file was left behind"


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache")
    for _ in range(2):
        assert (cache.array(KEY, lambda: np.ones(3)) == 1).all()
    assert "nothing more is kept in the cache" in cache.note
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        cache = Cache(closed)
        assert (cache.array(KEY, lambda: np.ones(3)) == 1).all()
        assert cache.note


def test_only_old_scratch_is_swept(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    old, new = scratch / "old", scratch / "new"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 200_000,) * 2)
    Cache(tmp_path)
    assert [p.name for p in scratch.iterdir()] == ["new"]


def test_text_is_kept_and_replaced(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.text("note-1") is None
    cache.keep_text("note-1", "clip ä\udc80.mp4")
    assert Cache(tmp_path).text("note-1") == "clip ä\udc80.mp4"
    cache.keep_text("note-1", "two")
    assert cache.text("note-1") == "two"


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one" * 1_000_000)
    b.write_bytes(b"one" * 1_000_000)
    first = content_digest(a)
    assert first == content_digest(b) == content_digest(str(a))
    assert len(first) == 32
    a.write_bytes(b"two" * 1_000_000)
    os.utime(a, ns=(1, 1))
    assert content_digest(a) != first
    a.unlink()
    with pytest.raises(InputError, match="cannot read"):
        content_digest(a)


def test_the_digest_is_read_once(tmp_path: Path) -> None:
    """Changed behind its time of change and size, the file is not read again: that is how it can be known."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    os.utime(path, ns=(5, 5))
    first = content_digest(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(5, 5))
    assert content_digest(path) == first
