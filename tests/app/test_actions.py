"""What the buttons do, without a page: who may use which file, what becomes of the fields, and what comes back into them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")

from latentsync.app.actions import Actions
from latentsync.app.models import Models
from latentsync.app.visitors import COOKIE, Uploads, owner
from latentsync.errors import InputError, UsageError
from latentsync.jobs import Desk, Limits
from latentsync.jobs.errors import NotFound

FIELDS = {
    "model": "demo",
    "steps": 4,
    "guidance": 2.5,
    "seed": 7,
    "scheduler": "dpm++",
    "cache": 1,
    "crf": 14,
    "codec": "h264",
    "fps": "source",
    "preview": False,
}


def request(who: str) -> Any:
    return SimpleNamespace(headers={"cookie": f"{COOKIE}={who * 43}"} if who else {})


@pytest.fixture
def actions(tmp_path: Path) -> Iterator[Actions]:
    with Desk(tmp_path / "root", models=["demo", "1.6"], limits=Limits(min_free_bytes=1 << 20), home=tmp_path, workers=False) as desk:
        uploads = Uploads(tmp_path / "root" / "uploads")
        yield Actions(desk, uploads, Models({"demo": "demo", "1.6": "1.6"}, home=tmp_path))


@pytest.fixture
def files(actions: Actions, heads: Path) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Ann's video and sound, as the page hands them over."""
    given = []
    for name in ("one.mp4", "voice.wav"):
        path = actions.uploads.folder / name
        shutil.copy(heads / name, path)
        actions.uploads.add(owner(f"{COOKIE}={'a' * 43}"), [path])
        given.append({"path": str(path), "orig_name": f"my {name}"})
    return ("video", given[0], None), ("sound", given[1], None)


def run(actions: Actions, files: Any, who: str = "a", **fields: Any) -> Any:
    return actions.run(*files, "10,20", {**FIELDS, **fields}, request(who))


def test_fields_become_options_and_uploads_stay_for_another_job(actions, files):
    job = run(actions, files)
    assert job.request.options == {
        "steps": 4, "guidance": 2.5, "seed": 7, "scheduler": "dpm++", "cache": 1, "crf": 14, "codec": "h264", "fps": "source", "face": "10,20",
    }  # fmt: skip
    assert job.names == {"video.mp4": "my one.mp4", "audio.wav": "my voice.wav"}
    again = run(actions, files, codec="prores")
    assert "crf" not in again.request.options, "it has no meaning there"
    assert actions.again(job.id, request("a"))["crf"] == 14
    assert [j.id for j in actions.desk.jobs(owner(request("a").headers["cookie"]))] == [again.id, job.id]
    assert actions.arrive(request("a")) == job.id


def test_files_and_jobs_of_others_are_as_if_they_were_not_there(actions, files):
    job = run(actions, files)
    with pytest.raises(InputError, match="no longer here"):
        run(actions, files, "b")
    for act in (actions.cancel, actions.delete, actions.again):
        with pytest.raises(NotFound):
            act(job.id, request("b"))
    assert actions.arrive(request("b")) == ""
    seen = actions.view(job.id, {}, request("b"))
    assert (seen["status"], seen["history"], seen["active"]) == ("", "", False)
    with pytest.raises(UsageError, match="cookies"):
        run(actions, files, "")
    assert "cookies" in actions.view(job.id, {}, request(""))["notice"]
    assert len(list((actions.desk.root / "jobs").iterdir())) == 1, "what was refused leaves nothing"


def test_only_what_changed_is_sent_again(actions, files):
    job = run(actions, files)
    seen: dict[str, str] = {}
    first = actions.view(job.id, seen, request("a"))
    assert "Next in line" in first["status"]
    assert first["cancel"] == "yes"
    assert actions.view(job.id, seen, request("a")) == {"active": True}
    actions.cancel(job.id, request("a"))
    after = actions.view(job.id, seen, request("a"))
    assert "Cancelled" in after["status"]
    assert (after["cancel"], after["active"]) == ("", False)


def test_what_cannot_be_is_refused_and_leaves_nothing(actions, files):
    with pytest.raises(UsageError, match="download button"):
        run(actions, files, model="1.6")
    with pytest.raises(UsageError, match="steps"):
        run(actions, files, steps=1000)
    with pytest.raises(UsageError, match="not offered"):
        run(actions, files, model="../../etc")
    with pytest.raises(InputError, match="no sound yet"):
        run(actions, (files[0], ("sound", None, None)))
    assert list((actions.desk.root / "jobs").iterdir()) == []


def test_the_example_needs_no_files(actions):
    job = actions.example(request("a"))
    assert (job.request.model, job.names["video.mp4"]) == ("demo", "example.mp4")
