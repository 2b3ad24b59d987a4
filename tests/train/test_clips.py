"""Which files become clips, and how each of the others is named."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentsync.errors import InputError, UsageError
from latentsync.train import clips as clips_module
from latentsync.train.cache import Cache
from latentsync.train.clips import Clip, ClipSet, list_line, split
from tests.conftest import beside
from tests.train.clipmaker import make_clip

SETTINGS: dict[str, Any] = {"resolution": 64}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """stock(**settings of make_clip) -> the bytes of such a clip, encoded once."""
    made: dict[str, bytes] = {}

    def clip(**settings: Any) -> bytes:
        key = repr(sorted(settings.items()))
        if key not in made:
            made[key] = make_clip(tmp_path_factory.mktemp("stock") / "clip.mp4", **settings).read_bytes()
        return made[key]

    return clip


@pytest.fixture
def put(tmp_path: Path, stock: Callable[..., bytes]) -> Callable[..., Path]:
    """put(name, **settings of make_clip) -> a clip of that name below the test's folder."""

    def place(name: str, **settings: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stock(**settings))
        return path

    return place


def names(clips: ClipSet) -> list[str]:
    return [clip.path.name for clip in clips]


def test_a_folder_is_searched_through_in_a_fixed_order(tmp_path: Path, put: Any) -> None:
    for name in ("b.mp4", "a/z.MP4", "a/ä ö.mov", "c d/e.mkv", "c d/.hidden.mp4", ".cache/x.mp4", "a.mp4"):
        put(name)
    (tmp_path / "notes.txt").write_text("no clip")
    (tmp_path / "clip.json").write_text("{}")
    (tmp_path / "c d" / "loop").symlink_to(tmp_path)
    clips = ClipSet.open(tmp_path, **SETTINGS)
    assert [c.path.relative_to(tmp_path).as_posix() for c in clips] == ["a/z.MP4", "a/ä ö.mov", "a.mp4", "b.mp4", "c d/e.mkv"]
    assert all(c.frames == 60 for c in clips)
    assert clips.bad == []


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_as_people_write_them(tmp_path: Path, put: Any, ending: str, encoding: str) -> None:
    far = put("elsewhere/far.mp4")
    for name in ("lists/a.mp4", "lists/deep/b c.mp4", "lists/ü.mp4", "lists/#d.mp4", "lists/'e'.mp4"):
        put(name)
    lines = ["# a comment", "", "a.mp4", '  "deep/b c.mp4"  ', "'ü.mp4'", '"#d.mp4"', "'e'.mp4", "   ", str(far), "../elsewhere/far.mp4", "a.mp4"]
    source = tmp_path / "lists" / "train.txt"
    source.write_bytes(ending.join(lines).encode(encoding))
    assert names(ClipSet.open(source, **SETTINGS)) == ["a.mp4", "b c.mp4", "ü.mp4", "#d.mp4", "'e'.mp4", "far.mp4", "far.mp4"]


def test_names_survive_being_written_to_a_list(tmp_path: Path) -> None:
    odd = [" lead.mp4", "trail.mp4 ", "#x.mp4", '"q".mp4', '"q"', "'", "a b.mp4", "ü\u2028x.mp4", "\udcff.mp4", "tab\t.mp4", "\x0bv.mp4"]
    source = tmp_path / "list.txt"
    source.write_bytes("".join(list_line(tmp_path / "in" / n, tmp_path / "in") + "\n" for n in odd).encode("utf-8", "surrogateescape"))
    paths, _ = clips_module.video_files(source)
    assert [str(p.relative_to(tmp_path)) for p in paths] == odd
    assert list_line(tmp_path / "in" / "a.mp4", tmp_path / "other") == str(tmp_path / "in" / "a.mp4")
    with pytest.raises(ValueError, match="line break"):
        list_line(tmp_path / "a\nb.mp4", tmp_path)


def test_sources_that_are_none(tmp_path: Path, put: Any) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"no clips in .*empty: it is empty"):
        ClipSet.open(empty, **SETTINGS)
    (empty / "a.txt").write_text("x")
    (empty / "b.wav").write_text("x")
    with pytest.raises(InputError, match="none of its 2 files has a video's suffix"):
        ClipSet.open(empty, **SETTINGS)
    with pytest.raises(InputError, match="no folder or list"):
        ClipSet.open(tmp_path / "nowhere", **SETTINGS)
    with pytest.raises(InputError, match="is one video; give the folder"):
        ClipSet.open(put("one.mp4"), **SETTINGS)
    blank = tmp_path / "blank.txt"
    blank.write_text("\n# nothing\n")
    with pytest.raises(InputError, match="names no clip"):
        ClipSet.open(blank, **SETTINGS)
    blank.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(InputError, match="not a text file"):
        ClipSet.open(blank, **SETTINGS)
    with pytest.raises(UsageError, match="choose exact or resize"):
        ClipSet.open(empty, resolution=64, size="scale")
    with pytest.raises(UsageError, match=r"data\.train=FOLDER"):
        split("", "", **SETTINGS)


@pytest.fixture
def mixed(tmp_path: Path, put: Any, stock: Any) -> Path:
    """Two good clips, and one of every kind that cannot be used, in a list."""
    put("good.mp4")
    put("long.mp4", frames=90)
    put("short.mp4", frames=47)
    put("silent.mp4", sound=None)
    put("half_heard.mp4", frames=90, sound=1.0)
    put("wide.mp4", size=(96, 64))
    put("big.mp4", size=(96, 96))
    (tmp_path / "cut.mp4").write_bytes(stock(faststart=True)[:5000])
    (tmp_path / "headless.mp4").write_bytes(stock()[:-3000])
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    source = tmp_path / "list.txt"
    files = [*sorted(p.name for p in tmp_path.iterdir()), "missing.mp4"]
    source.write_text("\n".join(files), encoding="utf-8")
    return source


REASONS = {
    "big.mp4": "is 96x96, not 64x64 (data.size=resize",
    "cut.mp4": "is cut off",
    "empty.mp4": "is empty (0 bytes)",
    "folder.mp4": "is a folder",
    "half_heard.mp4": "its sound is too short: 1.0",
    "headless.mp4": "has no index",
    "missing.mp4": "there is no such file",
    "short.mp4": "is too short: 1.88 s are 47 frames at 25 fps, and 3 windows of 16 are needed",
    "silent.mp4": "has no sound",
    "text.mp4": "is not an audio, video or image file",
    "wide.mp4": "is 96x64, not 64x64",
}


def test_bad_files_are_named_with_their_reason(mixed: Path) -> None:
    heard: list[str] = []
    clips = ClipSet.open(mixed, on_bad="skip", report=heard.append, **SETTINGS)
    assert names(clips) == ["good.mp4", "long.mp4"]
    assert {b.path.name for b in clips.bad} == set(REASONS)
    for bad in clips.bad:
        assert bad.reason.startswith(REASONS[bad.path.name]), bad
        assert str(bad.path) not in bad.reason
        assert f"left out {bad}" in heard
    assert heard[-1] == f"left out 11 of 13 files of {mixed}"


def test_bad_files_stop_training_by_default(mixed: Path) -> None:
    with pytest.raises(InputError) as caught:
        ClipSet.open(mixed, **SETTINGS)
    text = str(caught.value)
    assert "11 of the 13 files" in text
    assert text.count(str(mixed.parent)) >= 5
    assert "and 6 more" in text
    assert f"latentsync train check {mixed}" in text
    assert "data.on_bad=skip" in text


def test_nothing_left_is_an_error_either_way(mixed: Path) -> None:
    for on_bad in ("skip", "error"):
        with pytest.raises(InputError, match=r"no clip of .* can be used, of 13 looked at:\n.*big\.mp4: is 96x96"):
            ClipSet.open(mixed, resolution=32, on_bad=on_bad)


def test_resize_takes_any_square(mixed: Path) -> None:
    clips = ClipSet.open(mixed, resolution=32, size="resize", on_bad="skip")
    assert names(clips) == ["big.mp4", "good.mp4", "long.mp4"]
    assert "is 96x64, not square" in next(b.reason for b in clips.bad if b.path.name == "wide.mp4")


def test_other_rates_and_windows(put: Any, tmp_path: Path) -> None:
    put("a.mp4", frames=150, rate=50)
    (clip,) = ClipSet.open(tmp_path, **SETTINGS)
    assert clip == Clip(tmp_path / "a.mp4", 75)
    assert len(ClipSet.open(tmp_path, frames=25, **SETTINGS)) == 1
    with pytest.raises(InputError, match="75 frames at 25 fps, and 3 windows of 26"):
        ClipSet.open(tmp_path, frames=26, **SETTINGS)
    assert ClipSet.open(tmp_path, fps=Fraction(30), **SETTINGS)[0].frames == 90


def test_probing_is_remembered_until_the_file_changes(tmp_path: Path, put: Any, monkeypatch: Any) -> None:
    clips = tmp_path / "clips"
    for name in ("clips/a.mp4", "clips/b.mp4", "clips/c.mp4"):
        put(name)
    (clips / "d.mp4").write_text("bad")
    probed: list[str] = []
    original = clips_module.probe
    monkeypatch.setattr(clips_module, "probe", lambda path: probed.append(path.name) or original(path))

    def look() -> ClipSet:
        probed.clear()
        return ClipSet.open(clips, cache=tmp_path / "cache", on_bad="skip", **SETTINGS)

    first = look()
    assert sorted(probed) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    again = look()
    assert probed == ["d.mp4"]  # a bad file is looked at again: it may have been mended, or the disk been away
    assert list(again) == list(first)
    assert again.bad == first.bad
    put("clips/b.mp4", frames=75)
    assert [c.frames for c in look()] == [60, 75, 60]
    assert sorted(probed) == ["b.mp4", "d.mp4"]
    for entry in (tmp_path / "cache").rglob("probes*"):
        entry.write_bytes(b"rubbish")
    assert len(look()) == 3
    assert len(probed) == 4
    (tmp_path / "file").touch()
    assert len(ClipSet.open(clips, cache=Cache(tmp_path / "file" / "x"), on_bad="skip", **SETTINGS)) == 3


def test_many_files_in_many_threads_come_in_order(tmp_path: Path, put: Any) -> None:
    for i in range(40):
        put(f"{i:03}.mp4")
    clips = ClipSet.open(tmp_path, **SETTINGS)
    assert names(clips) == [f"{i:03}.mp4" for i in range(40)]


def made_up(count: int) -> ClipSet:
    return ClipSet(
        (Clip(Path(f"/data/clip_{i}.mp4"), 60) for i in range(count)), fps=Fraction(25), frames=16, resolution=64, size="exact", on_bad="error"
    )


def test_held_out_clips_are_the_same_as_the_set_grows() -> None:
    training, validation = made_up(2000).held_out()
    assert sorted([*names(training), *names(validation)]) == sorted(names(made_up(2000)))
    assert 20 <= len(validation) <= 65
    more_training, more_validation = made_up(3000).held_out()
    assert set(names(validation)) <= set(names(more_validation))
    assert set(names(training)) <= set(names(more_training))
    for count in (2, 3, 10):
        training, validation = made_up(count).held_out()
        assert len(training) >= 1
        assert len(validation) >= 1
        assert len(training) + len(validation) == count
    one = made_up(1).held_out()
    assert names(one[0]) == names(one[1]) == ["clip_0.mp4"]


def test_split_takes_a_set_of_its_own_for_validation(tmp_path: Path, put: Any) -> None:
    put("train/a.mp4")
    put("train/b.mp4")
    put("val/c.mp4")
    training, validation = split(str(tmp_path / "train"), str(tmp_path / "val"), **SETTINGS)
    assert (names(training), names(validation)) == (["a.mp4", "b.mp4"], ["c.mp4"])
    training, validation = split(str(tmp_path / "train"), "", **SETTINGS)
    assert sorted(names(training) + names(validation)) == ["a.mp4", "b.mp4"]


def test_a_set_is_small_and_travels() -> None:
    clips = made_up(20_000)
    data = pickle.dumps(clips)
    assert len(data) < 60 * len(clips)
    back = pickle.loads(data)
    assert list(back)[:5] == list(clips)[:5]
    assert back[3:5] == [clips[3], clips[4]]
    assert (back.fps, back.window, back.resolution, back.size, back.on_bad) == (25, 16, 64, "exact", "error")
    assert names(clips.take([5, 2])) == ["clip_5.mp4", "clip_2.mp4"]
    with pytest.raises(IndexError):
        clips[20_000]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the super-user may look everywhere")
def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path: Path, put: Any) -> None:
    put("good.mp4")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with pytest.raises(InputError, match="closed: cannot be looked into"):
        ClipSet.open(tmp_path, **SETTINGS)


def test_the_corpus_is_usable() -> None:
    folder = beside("LATENTSYNC_CORPUS", "corpus")
    if not folder.is_dir():
        pytest.skip(f"no corpus at {folder}; set LATENTSYNC_CORPUS")
    clips = ClipSet.open(folder, resolution=64, size="resize")
    assert len(clips) > 50
    assert np.array([c.frames for c in clips]).min() >= 48
    assert clips.bad == []
