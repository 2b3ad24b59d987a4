"""Handing jobs in and fetching them, without any worker: what is refused leaves nothing behind, and what expires is gone."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentsync.errors import InputError, UsageError, WeightsError
from latentsync.jobs import Conflict, Desk, LimitError, NotFound, Request, SegmentInput
from tests.conftest import write_wav
from tests.jobs.conftest import SMALL, submit


def folders_of(desk: Desk) -> list[str]:
    return sorted(p.name for p in (desk.root / "jobs").iterdir())


def test_a_job_waits_as_it_was_handed_in(shut: Desk, clip: Path) -> None:
    job = submit(shut, clip, owner="me", seed="random", steps=2, fps=Fraction(30000, 1001), face=(10, 20))
    assert (job.state, job.position, job.owner) == ("queued", 1, "me")
    assert job.request.model == "demo"
    assert 0 < job.request.options["seed"] < 2**32  # drawn, so that a second attempt gives the same
    assert job.request.options["fps"] == "30000/1001"
    assert job.request.options["face"] == "10,20"
    assert job.names == {"video.mp4": "sample.mp4", "audio.wav": "speech.wav"}
    assert shut.input_path(job, "video").read_bytes() == (clip / "sample.mp4").read_bytes()
    assert shut.input_path(job, "audio.wav").is_file()
    plain = job.plain()
    assert plain["created"].endswith("Z")
    assert not {"owner", "webhook"} & set(plain)
    assert str(shut.root) not in str(plain)
    for path in (shut.result_path, shut.preview_path, lambda j: shut.input_path(j, "audio-2"), lambda j: shut.input_path(j, "../../jobs.sqlite")):
        with pytest.raises(NotFound):
            path(job)


def png(width: int, height: int) -> bytes:
    """A picture of one colour, which unpacks to thousands of times its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (1 + 4 * width)) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def refused(change: Callable[[Path], Any], audio: bool = False, **request: Any) -> tuple[Callable[[Path], Any], bool, dict[str, Any]]:
    return change, audio, request


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "text": (refused(lambda p: p.write_text("hello")), InputError, "Film.mp4 is not an audio, video or image file"),
    "empty": (refused(lambda p: p.write_bytes(b"")), InputError, "Film.mp4 is empty"),
    "missing": (refused(lambda p: p.unlink()), InputError, "no video file"),
    "cut off": (refused(lambda p: p.write_bytes(p.read_bytes()[:2000])), InputError, "Film.mp4"),
    "bomb": (refused(lambda p: p.write_bytes(png(4000, 4000))), LimitError, "larger than the 9.4 million"),
    "no sound": (refused(lambda p: p.write_bytes(png(8, 8)), audio=True), InputError, "holds no sound"),
    "long": (refused(lambda p: write_wav(p, np.zeros(16000 * 61)), audio=True), LimitError, "longer than 60 s"),
    "steps": (refused(lambda p: None, options={"steps": 0}), UsageError, "--steps 0"),
    "option": (refused(lambda p: None, options={"colour": 1}), UsageError, "unknown option 'colour'"),
    "model": (refused(lambda p: None, model="9.9"), UsageError, "not offered here; choose one of demo, big"),
    "path as model": (refused(lambda p: None, model="/etc"), UsageError, "not offered"),
    "overlap": (
        refused(lambda p: None, segments=tuple(SegmentInput(start=k, end=k + 2, audio="audio.wav") for k in (0, 1))),
        UsageError,
        "0-2=Rede.wav and 1-3=Rede.wav overlap",
    ),
    "weights": (refused(lambda p: None, model="big"), WeightsError, "big holds no U-Net"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(tmp_path: Path, clip: Path, case: str) -> None:
    (change, audio, values), kind, words = REFUSED[case]
    big = tmp_path / "big"
    big.mkdir()
    with Desk(tmp_path / "root", models=["demo", str(big)], limits=replace(SMALL, max_seconds=60), workers=False) as desk:
        draft = desk.new_folder()
        names = {k: draft.copy(clip / f, k, n) for k, f, n in (("video", "sample.mp4", "Film.mp4"), ("audio", "speech.wav", "Rede.wav"))}
        change(names["audio" if audio else "video"])
        with pytest.raises(kind, match=words) as caught:
            desk.submit(draft, Request(**{"video": names["video"].name, "audio": names["audio"].name, **values}))
        assert str(tmp_path) not in str(caught.value)
        assert folders_of(desk) == []
        assert desk.jobs() == []


def test_large_files_are_refused(tmp_path: Path, clip: Path) -> None:
    with Desk(tmp_path / "root", models=["demo"], limits=replace(SMALL, max_bytes=1000), workers=False) as desk:
        with pytest.raises(LimitError, match=r"sample\.mp4 has .* at most"):
            submit(desk, clip)
        assert folders_of(desk) == []


def test_a_bomb_is_refused_without_unpacking_it(tmp_path: Path, clip: Path) -> None:
    with Desk(tmp_path / "root", models=["demo"], limits=SMALL, workers=False) as desk:
        draft = desk.new_folder()
        draft.path("a.png", "video").write_bytes(png(8000, 8000))  # 256 MB in memory
        draft.copy(clip / "speech.wav", "audio")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(LimitError, match="larger than"):
            desk.submit(draft, Request(video="video.png", audio="audio.wav"))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_the_same_key_gives_the_same_job(shut: Desk, clip: Path, tmp_path: Path) -> None:
    first = submit(shut, clip, owner="me", key="k", seed=0)
    again = submit(shut, clip, owner="me", key="k", seed=0)
    assert again.id == first.id
    assert folders_of(shut) == [first.id]
    assert shut.known("me", "k") == first
    assert shut.known("you", "k") is None
    with pytest.raises(Conflict):
        submit(shut, clip, owner="me", key="k", seed=5)
    other = tmp_path / "other"
    other.mkdir()
    (other / "sample.mp4").write_bytes((clip / "sample.mp4").read_bytes())
    write_wav(other / "speech.wav", np.zeros(6400))
    with pytest.raises(Conflict):  # the same names, another sound
        submit(shut, other, owner="me", key="k", seed=0)
    with pytest.raises(UsageError, match="1 to 200"):
        submit(shut, clip, owner="me", key="k" * 201)
    assert folders_of(shut) == [first.id]


def test_files_that_the_request_does_not_name_are_not_kept(shut: Desk, clip: Path) -> None:
    draft = shut.new_folder()
    for kind in ("audio", "audio-2"):
        draft.copy(clip / "speech.wav", kind)
    draft.copy(clip / "sample.mp4", "video")
    job = shut.submit(draft, Request(video="video.mp4", audio="audio.wav"))
    assert sorted(p.name for p in draft.folder.iterdir()) == ["audio.wav", "video.mp4"]
    assert set(job.names) == {"audio.wav", "video.mp4"}


def test_other_peoples_jobs_are_not_there(shut: Desk, clip: Path) -> None:
    job = submit(shut, clip, owner="me")
    for ask in (shut.get, shut.cancel, shut.delete, lambda i, o: next(shut.watch(i, owner=o))):
        with pytest.raises(NotFound):
            ask(job.id, "you")
    assert shut.jobs("you") == []
    assert shut.jobs("me") == [job]
    with pytest.raises(NotFound):
        shut.get("x" * 22)


def test_watching_tells_of_places_and_ends_with_the_job(shut: Desk, clip: Path) -> None:
    first, second = submit(shut, clip), submit(shut, clip)
    seen = shut.watch(second.id, timeout=30, every=0.01)
    assert next(seen).position == 2
    shut.cancel(first.id)
    assert next(seen).position == 1
    shut.cancel(second.id)
    assert next(seen).state == "cancelled"
    assert list(seen) == []
    assert [j.state for j in shut.watch(submit(shut, clip).id, timeout=0.05, every=0.01)] == ["queued"]


def test_deleting_takes_the_files_along(shut: Desk, clip: Path) -> None:
    job = submit(shut, clip)
    with pytest.raises(Conflict, match="cancel it first"):
        shut.delete(job.id)
    shut.cancel(job.id)
    shut.delete(job.id)
    assert folders_of(shut) == []
    with pytest.raises(NotFound):
        shut.get(job.id)


def test_what_has_expired_is_gone(tmp_path: Path, clip: Path) -> None:
    with Desk(tmp_path / "root", models=["demo"], limits=replace(SMALL, keep_hours=1e-7), workers=False) as desk:
        old, waiting = submit(desk, clip), submit(desk, clip)
        desk.cancel(old.id)
        assert desk.sweep() == 1
        assert folders_of(desk) == [waiting.id]
        with pytest.raises(NotFound, match="expired"):
            desk.get(old.id)


def test_numbers_and_readiness(shut: Desk, clip: Path) -> None:
    submit(shut, clip)
    shut.cancel(submit(shut, clip).id)
    counts = shut.counts()
    assert (counts.queued, counts.cancelled, counts.running) == (1, 1, 0)
    assert counts.totals["submitted"] == 2
    assert counts.oldest_wait > 0
    assert "no worker" in shut.ready()
    assert [(m.name, m.installed) for m in shut.models()] == [("demo", True)]


def test_a_private_folder_goes_with_its_desk(clip: Path) -> None:
    with Desk(models=["demo"], limits=SMALL, workers=False) as desk:
        submit(desk, clip)
        assert desk.root.is_dir()
    assert not desk.root.exists()


def test_a_desk_that_cannot_open_leaves_nothing() -> None:
    desk = Desk(models=["demo"], store_url="nonsense")
    with pytest.raises(UsageError, match="not the address"):
        desk.start()
    assert not desk.root.exists()


def test_models_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two models are called 'tiny'"):
        Desk(models=[str(tmp_path / "a" / "tiny"), str(tmp_path / "b" / "tiny")])
    with pytest.raises(UsageError, match="no model"):
        Desk(models=[])
