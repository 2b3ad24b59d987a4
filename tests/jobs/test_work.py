"""The work itself, with a real network: the result, progress, cancelling within a step, and files that lie about their length."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentsync.errors import NoFaceError, UsageError
from latentsync.jobs import Desk, Job, LimitError, Limits, Request, SegmentInput
from latentsync.jobs.errors import Cancelled
from latentsync.jobs.probe import probe
from latentsync.jobs.store import Pulse
from latentsync.jobs.work import Resident, _finite, perform
from latentsync.media.video import open_video
from latentsync.options import options
from tests.conftest import write_wav
from tests.jobs.conftest import SMALL


@pytest.fixture(scope="module")
def resident(tiny_model: Path) -> Resident:
    return Resident({"tiny": str(tiny_model)}, device="cpu", dtype="fp32", home=None)


@pytest.fixture
def job(tmp_path: Path, clip: Path) -> Any:
    """Makes a job that waits, and its folder."""
    with Desk(tmp_path / "root", models=["demo"], limits=SMALL, workers=False) as desk:

        def make(**values: Any) -> tuple[Job, Path]:
            draft = desk.new_folder()
            draft.copy(clip / "sample.mp4", "video", "Film.mp4")
            draft.copy(clip / "speech.wav", "audio", "Rede.wav")
            asked = {"video": "video.mp4", "audio": "audio.wav", "face_backend": "demo", "report": False, "options": {"steps": 2}, **values}
            made = desk.submit(draft, Request(**asked))
            return replace(made, request=replace(made.request, model="tiny")), draft.folder

        yield make


def nothing() -> None:
    pass


def test_a_result_with_its_progress_picture_and_report(job: Any, resident: Resident) -> None:
    told, folder = job(report=True)
    (folder / "result-0.mp4").write_text("of an attempt whose worker died")
    (folder / ".latentsync-1234.mp4").write_text("the same")
    said, seen = Pulse(), []
    made = perform(told, folder, resident, SMALL, said, lambda: seen.append((said.message, said.done, said.step)), number=3)
    assert made.out == "result-3.mp4"
    assert sorted(p.name for p in folder.iterdir()) == ["audio.wav", "preview.jpg", "result-3.mp4", "video.mp4"]
    with open_video(folder / made.out) as video:
        assert len(list(video.frames())) == 10
    assert (said.done, said.total, said.steps, said.previews, said.seconds_left) == (10, 10, 2, 1, 0.0)
    messages = list(dict.fromkeys(message for message, _, _ in seen))
    assert messages == ["looking at the files", "loading tiny", "syncing", "judging the result"]
    assert [d for _, d, _ in seen] == sorted(d for _, d, _ in seen)
    assert (made.result["frames"], made.result["model"], made.result["seed"]) == (10, "tiny", 1247)
    assert "flicker" in made.result["report"]["values"]
    assert str(folder.parent) not in str(made.result)
    assert resident.name == "tiny"


def test_cancelling_acts_within_a_step(job: Any, resident: Resident) -> None:
    told, folder = job(options={"steps": 50})
    said = Pulse()

    def check() -> None:
        if said.step == 2:
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        perform(told, folder, resident, SMALL, said, check, number=1)
    assert (said.step, said.done) == (2, 0)
    assert sorted(p.name for p in folder.iterdir()) == ["audio.wav", "video.mp4"]


def test_segments_are_put_together(job: Any, resident: Resident) -> None:
    told, folder = job(audio=None, segments=(SegmentInput(start=0.12, end=0.24, audio="audio.wav"),), options={"steps": 1, "codec": "ffv1"})
    made = perform(told, folder, resident, SMALL, Pulse(), nothing, number=1)
    assert made.out == "result-1.mkv"
    assert made.result["frames"] == 10
    assert made.result["frames_with_face"] == 3
    assert not list(folder.glob("sound*"))


def test_errors_are_those_of_a_sync(job: Any, resident: Resident, tmp_path: Path) -> None:
    told, folder = job(options={"steps": 1, "on_missing_face": "error"})
    with av.open(str(folder / "video.mp4"), "w") as out:
        stream = out.add_stream("h264", rate=25, options={"crf": "40"})
        stream.width = stream.height = 64
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    with pytest.raises(NoFaceError):
        perform(told, folder, resident, SMALL, Pulse(), nothing, number=1)
    with pytest.raises(UsageError, match="not offered"):
        perform(replace(told, request=replace(told.request, model="other")), folder, resident, SMALL, Pulse(), nothing, number=1)


def liar(path: Path, seconds: float) -> Path:
    """A sound of 3 s that says it has fewer."""
    with av.open(str(path), "w", format="matroska") as out:
        stream = out.add_stream("pcm_s16le", rate=16000, layout="mono")
        for k in range(3):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16000, 16000 * k
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # Duration, a float of eight bytes, in milliseconds
    path.write_bytes(data[:at] + struct.pack(">d", 1000 * seconds) + data[at + 8 :])
    return path


def test_a_file_that_lies_about_its_length_is_stopped_on_the_way(job: Any, resident: Resident) -> None:
    told, folder = job(options={"steps": 1})
    limits = Limits(max_seconds=1.0, min_free_bytes=0)
    write_wav(folder / "audio.wav", np.zeros(48000))
    with pytest.raises(LimitError, match="longer than 1 s"):  # an honest one, at once
        probe(folder, told.request, options(), told.names, limits)
    liar(folder / "audio.wav", 0.5)
    probe(folder, told.request, options(), told.names, limits)
    said = Pulse()
    with pytest.raises(LimitError, match="longer than 1 s"):
        perform(told, folder, resident, limits, said, nothing, number=1)
    assert said.done <= 27
    assert not list(folder.glob("result*"))


def test_frames_are_counted_whatever_their_times_say(job: Any, resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    told, folder = job(options={"steps": 1})
    monkeypatch.setattr("latentsync.jobs.work.probe", lambda *_: None)  # what could be told before is told there
    with pytest.raises(LimitError, match="more than 5 frames"):
        perform(told, folder, resident, Limits(max_seconds=1.0, max_rate=5.0, min_free_bytes=0), Pulse(), nothing, number=1)


def test_numbers_that_json_does_not_know_are_left_out() -> None:
    assert _finite({"a": [float("nan"), 1.5], "b": float("inf"), "c": "x"}) == {"a": [None, 1.5], "b": None, "c": "x"}


def test_another_model_takes_the_place_of_the_first(job: Any, tiny_model: Path) -> None:
    said: list[str] = []
    resident = Resident({"a": str(tiny_model), "b": str(tiny_model)}, device="cpu", dtype="fp32", home=None)
    first = resident.get("a", face_backend="demo", say=said.append)
    assert resident.get("a", face_backend="demo", say=said.append) is first
    assert resident.get("b", face_backend="demo", say=said.append) is not first
    assert said == ["loading a", "loading b"]
    assert resident.name == "b"
