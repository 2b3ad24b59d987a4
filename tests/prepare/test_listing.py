"""Lists that training reads back as they were meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentsync.errors import InputError, OutputError, UsageError
from latentsync.prepare.listing import write_list, write_paths
from latentsync.train.clips import video_files

NAMES = ["a.mp4", "b c.mp4", "deep/ü.mov", "deep/#x.mp4", "'q'.mkv"]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "notes.txt").touch()
    return folder


def test_what_is_listed_is_read_back(clips: Path, tmp_path: Path) -> None:
    expected, _ = video_files(clips)
    assert write_list([clips], tmp_path / "train.txt") == len(NAMES)
    assert video_files(tmp_path / "train.txt") == (expected, [])
    assert str(tmp_path) not in (tmp_path / "train.txt").read_text(encoding="utf-8")
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    assert all(p.is_file() for p in video_files(moved / "train.txt")[0]), "list and clips can be moved together"
    moved.rename(tmp_path)


def test_a_list_elsewhere_has_whole_paths(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lists").mkdir()
    monkeypatch.chdir(tmp_path)
    assert write_list(["clips"], Path("lists/train.txt")) == len(NAMES)
    assert all(p.is_absolute() and p.is_file() for p in video_files(tmp_path / "lists" / "train.txt")[0])


def test_several_folders_in_their_order_each_clip_once(clips: Path, tmp_path: Path) -> None:
    assert write_list([clips / "deep", clips], tmp_path / "a.txt") == len(NAMES)
    assert [p.name for p in video_files(tmp_path / "a.txt")[0]] == ["#x.mp4", "ü.mov", "'q'.mkv", "a.mp4", "b c.mp4"]


def test_an_existing_list_is_kept_unless_asked(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.txt"
    out.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        write_list([clips], out)
    assert out.read_text() == "mine"
    write_list([clips], out, overwrite=True)
    assert len(video_files(out)[0]) == len(NAMES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "clips"]


def test_mistakes_are_named_and_leave_nothing(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.txt"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="which folders"):
        write_list([], out)
    with pytest.raises(InputError, match="it is empty"):
        write_list([clips, empty], out)
    with pytest.raises(InputError, match=r"nowhere is not a folder"):
        write_list([tmp_path / "nowhere"], out)
    with pytest.raises(InputError, match="no clip to list"):
        write_paths([], out)
    with pytest.raises(OutputError, match="create its folder first"):
        write_list([clips], tmp_path / "nowhere" / "a.txt")
    (clips / "line\nbreak.mp4").touch()
    with pytest.raises(InputError, match="line break"):
        write_list([clips], out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clips", "empty"]
