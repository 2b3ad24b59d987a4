"""What is shown: sentences, numbers, and nothing that a file's name could smuggle in."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")

from latentsync.app import pieces
from latentsync.app.faces import Finder, Look, Spot
from latentsync.app.models import Models
from latentsync.errors import InputError, WeightsError
from latentsync.jobs import Job, Request
from latentsync.weights import shipped

HOSTILE = "a\"'><script>alert(1)</script>.mp4"
RESULT: dict[str, Any] = {
    "model": "demo", "seed": 7, "frames": 25, "seconds": 1.0, "frames_with_face": 25, "elapsed_seconds": 75.0, "device": "cpu", "dtype": "bf16",
    "steps": 8, "guidance": 3.0, "scheduler": "ddim", "notes": ["<b>note</b>"],
    "report": {"values": {"sync_confidence": 3.214, "faces_missing": 0.25}, "missing": {}},
}  # fmt: skip


def job(**more: Any) -> Job:
    request = Request(video="video.mp4", audio="audio.wav", model="demo", options={"face": "10,20"})
    names = {"video.mp4": HOSTILE, "audio.wav": "voice.wav"}
    return replace(Job(id="i" * 22, owner="o", state="queued", request=request, names=names, created=1000.0, position=1), **more)


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_spans_of_time_are_words():
    assert [pieces.clock(s) for s in (0, 8.4, 59.6, 80, 600, 3600, 7500)] == ["0 s", "8 s", "1 min", "1 min 20 s", "10 min", "1 h", "2 h 5 min"]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (job(), "Next in line"),
        (job(position=3), "Number 3 in line 2 jobs before yours."),
        (job(position=2), "1 job before yours."),
        (job(state="running", message="loading demo"), "Getting ready Loading demo."),
        (
            job(state="running", done=10, total=40, step=3, steps=8, seconds=9, seconds_left=27.0),
            "25 % About 27 s left. frame 10 of 40 · step 3 of 8 · 9 s so far",
        ),
        (job(state="running", done=10, total=40, cancelling=True), "Stopping"),
        (job(state="failed", error="no face in frame 3"), "That did not work No face in frame 3."),
        (job(state="cancelled"), "Cancelled"),
    ],
)
def test_each_state_is_said(found, said):
    assert said in words(pieces.status(found))


def test_progress_is_told_to_screen_readers():
    html = pieces.status(job(state="running", done=10, total=40, step=1))
    assert "role='progressbar'" in html
    assert "aria-valuenow='25'" in html
    assert {pieces.spoken(job(state="running", done=n, total=40)) for n in range(10, 20)} == {"25 percent done"}, "not at every frame"
    assert "role='alert'" in pieces.status(job(state="failed", error="x"))


def test_a_result_says_what_was_used_and_how_good_it_is():
    found = job(state="done", has_result=True, result=RESULT)
    html = pieces.result(found)
    said = words(html)
    for part in ("3.21 confidence", "25.0 %", "Seed 7", "the one you clicked", "1 min 15 s on cpu", "25 of 25"):
        assert part in said, part
    assert f"href='job/{found.id}/result?download=1'" in html
    assert "No usable face" not in said
    assert "No usable face" in pieces.result(replace(found, result={**RESULT, "frames_with_face": 0}))
    still = replace(found, request=replace(found.request, video="video.png"), names={"video.png": "me.png"})
    assert f"<img src='job/{found.id}/before'" in pieces.result(still)


def test_names_and_errors_are_text():
    everything = (
        pieces.status(job(state="failed", error=HOSTILE)) + pieces.result(job(state="done", has_result=True, result=RESULT))
        + pieces.history([job()]) + pieces.notice(HOSTILE) + pieces.download(HOSTILE, 0.5, HOSTILE)
    )  # fmt: skip
    assert "<script" not in everything
    assert "<b>note" not in everything
    assert "alert(1)" in everything


def test_history_marks_what_is_shown_and_offers_what_can_be_done():
    html = pieces.history([job(), job(id="k" * 22, state="done", has_result=True)], "k" * 22, keep_hours=24, now=1125.0)
    assert html.count("data-act='open'") == 2
    assert html.count("data-act='cancel'") == html.count("data-act='delete'") == 1
    assert html.count("aria-current='true'") == 1
    assert "2 min ago" in html
    assert "24 hours" in html
    assert pieces.history([]) == ""


def test_faces_lie_where_they_are_and_the_largest_is_taken():
    look = Look("data:,", 200, 100, 0.0, (Spot((20, 10, 60, 50)), Spot((100, 10, 190, 100))))
    html = pieces.faces(look, None)
    assert "left:10.00%;top:10.00%;width:20.00%;height:40.00%" in html
    assert re.search(r"data-id='1' aria-pressed='true'", html)
    assert "Face 2 will speak" in html
    assert re.search(r"data-id='0' aria-pressed='true'", pieces.faces(look, 0))
    assert look.spots[0].choice == "40,30"
    assert "every frame will be looked at" in pieces.faces(Look("data:,", 9, 9, 0.0, ()), None)
    assert pieces.faces(None, None) == ""


def test_faces_are_found_in_videos_and_pictures(heads, tmp_path):
    finder = Finder(tmp_path)
    two = finder.look(heads / "two.mp4", "demo")
    assert (two.width, two.height, two.time) == (640, 320, 0.0)
    left, right = two.spots
    assert left.box[2] < 320 < right.box[0]
    assert two.picture.startswith("data:image/jpeg;base64,")
    assert len(finder.look(heads / "still.png", "1.6").spots) == 1, "a model whose own finder is not here: the package's"
    assert finder.look(heads / "nobody.mp4", "demo").spots == ()
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError):
        finder.look(tmp_path / "text.mp4", "demo")


def test_speeds_follow_the_model(tmp_path):
    models = Models({"demo": "demo", "1.6": "1.6"}, home=tmp_path)
    own = yaml.safe_load((shipped.folder() / "model.yaml").read_text(encoding="utf-8"))["defaults"]
    wanted = {"steps": own["steps"], "guidance": own["guidance"], "scheduler": "ddim", "cache": 1, "crf": ""}
    assert models.speed("demo", "balanced") == wanted
    assert models.speed("1.6", "balanced")["steps"] == 20
    fast, best = models.speed("1.6", "fast"), models.speed("1.6", "best")
    assert (fast["steps"], fast["scheduler"], fast["cache"]) == (8, "dpm++", 2)
    assert (best["steps"], best["cache"], best["crf"]) == (40, 1, 14)


def test_models_say_what_is_here_and_a_failed_download_is_a_sentence(tmp_path, monkeypatch):
    models = Models({"1.6": "1.6", "demo": "demo"}, home=tmp_path)
    demo, big = models.choices()
    assert (demo.name, demo.here, demo.downloadable) == ("demo", True, False)
    assert (big.name, big.here, big.downloadable) == ("1.6", False, True)
    assert (big.label, round(big.size / 1e9, 2)) == ("1.6 · 512 px · not here yet", 5.49)
    assert not Models({"1.6": "1.6"}, home=tmp_path, downloads=False).choices()[0].downloadable
    monkeypatch.setattr("latentsync.app.models.weights.download", lambda *a, **k: (_ for _ in ()).throw(WeightsError("the hub does not answer")))
    models.download("1.6")
    for _ in range(200):
        state = models.state()
        if state is not None and state.over:
            break
        import time

        time.sleep(0.01)
    assert state is not None
    assert (state.over, state.wrong) == (True, True)
    assert state.said == "model 1.6 could not be fetched: the hub does not answer"
