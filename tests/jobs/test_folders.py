"""Files of jobs: private folders, generated names, and a disk that is full."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections import namedtuple
from pathlib import Path

import pytest

from latentsync.errors import OutputError, UsageError
from latentsync.jobs import DiskFull, Limits, Request, SegmentInput
from latentsync.jobs.folders import Draft, Folders, for_people, new_id, shown

GIB = 1 << 30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    found = Folders(tmp_path / "root", 1 << 20)
    found.prepare()
    return found


HOSTILE = [
    "../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "/etc/shadow.mp4",
    "a\0b.mp4",
    "x.mp4/../../y.mov",
    "CON.mp4",
    "..",
    "",
    "é" * 300 + ".mp4",
    "page.html",
    "a.svg",
    "x.m3u8",
    "x.mp4;rm -rf",
    "\u202egpj.exe.mp4",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_uploads_never_become_paths(folders: Folders, name: str) -> None:
    draft = Draft(folders)
    path = draft.path(name, "video")
    assert path.parent == draft.folder
    assert path.name in ("video", "video.mp4", "video.mov")
    called = draft.names[path.name]
    assert 0 < len(called) <= 100
    assert not set(called) & set("/\\\0\u202e")


@pytest.mark.parametrize("kind", ["../video", "Video", "audio-0", "audio-1000", "result", "", "audio-2/x"])
def test_kinds_are_those_that_there_are(folders: Folders, kind: str) -> None:
    with pytest.raises(UsageError, match="not a kind"):
        Draft(folders).path("a.mp4", kind)


@pytest.mark.parametrize("id", ["", "..", "../" + "a" * 19, "a" * 21, "a" * 23, "a" * 21 + "/", "a" * 21 + "\n"])
def test_what_is_no_id_leads_nowhere(folders: Folders, id: str) -> None:
    with pytest.raises(UsageError, match="not the id"):
        folders.of(id)


def test_ids_are_long_and_differ() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000
    assert {len(new_id()) for _ in range(100)} == {22}  # 128 bits


def test_nobody_else_can_look_in(folders: Folders) -> None:
    draft = Draft(folders)
    for folder in (folders.root, folders.jobs, draft.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folders.make_database().stat().st_mode) == 0o600


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(0o755)
    folders = Folders(tmp_path / "mine", 0)
    folders.prepare()
    assert stat.S_IMODE(folders.root.stat().st_mode) == 0o755
    assert stat.S_IMODE(folders.jobs.stat().st_mode) == 0o700


def test_a_second_upload_of_a_kind_replaces_the_first(folders: Folders) -> None:
    draft = Draft(folders)
    first = draft.path("a.mp4", "video")
    first.write_bytes(b"1")
    second = draft.path("b.mov", "video")
    assert not first.exists()
    assert draft.names == {"video.mov": "b.mov"}
    assert draft.path("c.wav", "audio-2").name == "audio-2.wav"
    assert second.name == "video.mov"


def test_files_are_adopted_or_copied(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "Mein Film.MP4").write_bytes(b"film")
    draft = Draft(folders)
    copy = draft.copy(tmp_path / "Mein Film.MP4", "video")
    assert (copy.name, copy.read_bytes(), draft.names["video.mp4"]) == ("video.mp4", b"film", "Mein Film.MP4")
    moved = draft.adopt(tmp_path / "Mein Film.MP4", "video", "other.mp4")
    assert moved.read_bytes() == b"film"
    assert not (tmp_path / "Mein Film.MP4").exists()
    draft.settle()
    draft.discard()
    assert not draft.folder.exists()


def test_files_from_another_disk_are_adopted(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(a: object, b: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    (tmp_path / "a.mp4").write_bytes(b"film")
    monkeypatch.setattr(os, "replace", elsewhere)
    assert Draft(folders).adopt(tmp_path / "a.mp4", "video").read_bytes() == b"film"
    assert not (tmp_path / "a.mp4").exists()


def test_an_almost_full_disk_takes_no_new_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = Folders(tmp_path / "root", 2 * GIB)
    folders.prepare()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9 * GIB, 6 * GIB, 3 * GIB))
    draft = Draft(folders)
    (tmp_path / "a.mp4").write_bytes(b"film")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9 * GIB, 8 * GIB, GIB))
    for work in (lambda: Draft(folders), draft.check_space, lambda: draft.copy(tmp_path / "a.mp4", "video")):
        with pytest.raises(DiskFull, match=r"almost full \(1.0 GiB free\)"):
            work()
    assert [p.name for p in folders.jobs.iterdir()] == [draft.id]


def test_a_disk_that_fills_up_while_writing_is_told_in_words(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(a: object, b: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.mp4").write_bytes(b"film")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DiskFull, match="the disk is full"):
        Draft(folders).copy(tmp_path / "a.mp4", "video")


def test_other_errors_of_files_are_told_in_words(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        Draft(folders).copy(tmp_path / "missing.mp4", "video")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot keep jobs in"):
        Folders(tmp_path / "file" / "root", 0).prepare()


def test_orphans_are_those_that_nobody_knows_and_nobody_writes_to(folders: Folders) -> None:
    old, known, new = Draft(folders), Draft(folders), Draft(folders)
    busy = Draft(folders)
    for draft in (old, known, busy):
        os.utime(draft.folder, (1, 1))
    upload = busy.path("a.mp4", "video")
    os.utime(busy.folder, (1, 1))
    upload.write_bytes(b"still coming in")
    (folders.jobs / "somebody's notes").mkdir()
    assert list(folders.orphans(lambda ids: {known.id} & set(ids), 3600)) == [old.id]
    assert new.folder.exists()


def test_errors_tell_names_and_not_paths(folders: Folders) -> None:
    draft = Draft(folders)
    path = draft.path("Mein Film.mp4", "video")
    said = for_people(f"cannot read {path}: it is damaged; see {draft.folder}/result.mp4", draft.folder, draft.names)
    assert said == "cannot read Mein Film.mp4: it is damaged; see result.mp4"
    assert shown("C:\\Users\\me\\film.mp4") == "film.mp4"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"video": "../video.mp4"}, "not the name of a file"),
        ({"video": "result-1.mp4"}, "not the name of a file"),
        ({"video": "audio.mp4"}, "not the name of a video"),
        ({"audio": None}, "no sound"),
        ({"audio": "/etc/passwd"}, "not the name of a file"),
        ({"face_backend": "mine"}, "mediapipe"),
        ({"segments": (SegmentInput(start=2, end=1, audio="audio.wav"),)}, "the end comes after"),
        ({"segments": (SegmentInput(start=0, end=float("inf"), audio="audio.wav"),)}, "seconds from 0"),
        ({"segments": (SegmentInput(start=0, end=1, audio="../a.wav"),)}, "not the name of a file"),
    ],
)
def test_requests_that_no_job_could_be(values: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Request(**{"video": "video.mp4", "audio": "audio.wav", **values})  # type: ignore[arg-type]


def test_requests_are_written_and_read() -> None:
    request = Request(video="video.mp4", options={"steps": 3}, segments=(SegmentInput(start=0, end=1, audio="audio-2.wav"),))
    assert Request.read(request.plain()) == request
    assert request.files == ("video.mp4", "audio-2.wav")
    with pytest.raises(UsageError, match="no request"):
        Request.read({"video": "video.mp4", "audio": "audio.wav", "colour": "red"})


@pytest.mark.parametrize(
    "values", [{"max_bytes": -1}, {"keep_hours": float("nan")}, {"max_seconds": "long"}, {"max_queue": True}, {"max_attempts": 0}]
)
def test_limits_make_sense(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        Limits(**values)  # type: ignore[arg-type]
