"""The engine with stand-ins for the steps: nothing is lost, nothing is done twice, and every end is explained."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from latentsync.errors import InputError, UsageError
from latentsync.prepare.config import STEPS, PrepareConfig, Running, ordered
from latentsync.prepare.engine import Outcome, prepare
from tests.conftest import ROOT
from tests.prepare import films
from tests.prepare.films import config, film, in_this_process, lines, result, rows, running


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch)


def run(tmp: Path, out: str = "out", how: Running | None = None, **values: Any) -> Outcome:
    return prepare(tmp / "raw", tmp / out, config(**values), how or running())


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Films of every kind, and what is no film."""
    folder, log = tmp_path / "raw", tmp_path / "log"
    film(folder / "good.mp4", log)
    film(folder / "other" / "good.mp4", log, cuts=["1/4", "13/50"], fps=30)
    film(folder / "off 'by' 3.mp4", log, offset=3)
    film(folder / "far.mp4", log, offset=-9)
    film(folder / "mute lips.mp4", log, confidence=1.0)
    film(folder / "blurred.mp4", log, quality=10.0)
    film(folder / "nobody.mp4", log, faces=[])
    film(folder / "two.mp4", log, faces=[300.0, 200.0])
    film(folder / "unreadable.mp4", log, faces="unreadable")
    shutil.copy(folder / "good.mp4", folder / "zweites ü.mp4")
    (folder / "text.mp4").write_text("no film")
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.mark.usefixtures("here")
def test_every_file_ends_where_it_should_with_its_reason(raw: Path, tmp_path: Path) -> None:
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in raw.rglob("*.mp4")}
    outcome = run(tmp_path)
    assert outcome.tally is not None
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in raw.rglob("*.mp4")} == before
    ends: dict[str, set[tuple[str, str]]] = {}
    for row in rows(tmp_path / "out"):
        if row["kind"] == "clip":
            ends.setdefault(row["source"], set()).add((row["step"], row["reason"]))
    assert ends == {
        "good.mp4": {("", "")},
        "other/good.mp4": {("", "")},
        "off 'by' 3.mp4": {("", "")},
        "two.mp4": {("", "")},
        "far.mp4": {("sync", "off by -9 frames")},
        "mute lips.mp4": {("sync", "confidence 1.00 is below 3")},
        "blurred.mp4": {("quality", "quality 10.0 is below 40")},
        "nobody.mp4": {("faces", "shows no face")},
        "unreadable.mp4": {("faces", "its video is damaged")},
    }
    by_name = {row["source"]: row for row in rows(tmp_path / "out") if row["kind"] == "source"}
    assert len(by_name) == len(list(raw.rglob("*.mp4")))
    assert (by_name["text.mp4"]["step"], by_name["text.mp4"]["reason"]) == ("check", "is no film")
    assert by_name["zweites ü.mp4"]["same_as"] == "good.mp4"
    left = [row for row in rows(tmp_path / "out") if row["kind"] == "left over"]
    assert [(r["source"], r["span"], r["reason"]) for r in left] == [("other/good.mp4", ["1/4", "13/50"], "0.01 s are shorter than 0.1 s")]
    failed = {row["source"] for row in rows(tmp_path / "out") if row["failed"]}
    assert failed == {"unreadable.mp4"}


@pytest.mark.usefixtures("here")
def test_kept_clips_are_in_place_whole_and_in_sync(raw: Path, tmp_path: Path) -> None:
    run(tmp_path)
    out = tmp_path / "out"
    kept = [row for row in rows(out) if "file" in row]
    assert {p.relative_to(out).as_posix() for p in (out / "clips").rglob("*.mp4")} == {row["file"] for row in kept}
    assert len({Path(row["file"]).name for row in kept}) == len(kept)
    for row in kept:
        clip = json.loads((out / row["file"]).read_text())
        assert clip["span"] == row["span"]
        assert clip.get("offset", 0) == 0
        assert (out / row["file"]).with_suffix(".npz").read_text() == "matrices"
        assert list(row["steps"])[:4] == ["check", "resample", "scenes", "segments"]
        assert ("shift" in row["steps"]) == (row["source"] == "off 'by' 3.mp4")
    assert not list((out / ".work" / "scratch").iterdir())
    films_left = list((out / ".work").rglob("*film.mp4"))
    assert films_left == [], "resampled films make room"


@pytest.mark.usefixtures("here")
def test_equal_names_do_not_meet_and_the_same_file_is_done_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for folder, quality in (("a", 60.0), ("b", 61.0), ("c", 62.0)):
        film(tmp_path / "raw" / folder / "x.mp4", log, quality=quality, name="x")
    shutil.copytree(tmp_path / "raw" / "a", tmp_path / "raw" / "d")
    run(tmp_path)
    scores = {row["source"]: row["steps"]["quality"]["score"] for row in rows(tmp_path / "out") if row["kind"] == "clip"}
    assert scores == {"a/x.mp4": 60.0, "b/x.mp4": 61.0, "c/x.mp4": 62.0}
    assert lines(log).count("check x ") == 3


@pytest.mark.usefixtures("here")
def test_a_changed_threshold_decides_anew_without_measuring(raw: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(tmp_path)
    first, begun = result(tmp_path / "out"), len(lines(log))

    run(tmp_path, min_face=400, max_offset=2)
    assert len(lines(log)) == begun, "numbers are there"
    assert not list((tmp_path / "out" / "clips").rglob("*.mp4"))
    reasons = {r["reason"] for r in rows(tmp_path / "out") if r["kind"] == "clip" and r["source"] == "good.mp4"}
    assert reasons == {"its face is 300 px wide, less than 400"}

    run(tmp_path)
    assert len(lines(log)) == begun
    assert result(tmp_path / "out") == first, "and back"

    run(tmp_path, min_sync=0.5)
    again = lines(log)[begun:]
    assert {line.split()[0] for line in again} == {"quality"}, "only what these clips had not been through"
    assert {r["keep"] for r in rows(tmp_path / "out") if r["kind"] == "clip" and r["source"] == "mute lips.mp4"} == {True}


@pytest.mark.usefixtures("here")
def test_what_changes_numbers_measures_what_builds_on_them(tmp_path: Path) -> None:
    log = tmp_path / "log"
    film(tmp_path / "raw" / "a.mp4", log, fps=30)
    run(tmp_path)
    begun = len(lines(log))
    run(tmp_path, size=512)
    assert {line.split()[0] for line in lines(log)[begun:]} == {"resample", "align", "sync", "quality"}, "the film had made room"
    assert {json.loads(p.read_text())["size"] for p in (tmp_path / "out" / "clips").rglob("*.mp4")} == {512}
    begun = len(lines(log))
    run(tmp_path)
    assert len(lines(log)) == begun
    assert {json.loads(p.read_text())["size"] for p in (tmp_path / "out" / "clips").rglob("*.mp4")} == {256}


@pytest.mark.usefixtures("here")
def test_files_that_come_go_and_move(raw: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(tmp_path)
    begun = len(lines(log))
    (raw / "two.mp4").unlink()
    (raw / "good.mp4").rename(raw / "renamed.mp4")
    film(raw / "new.mp4", log, quality=77.0)
    run(tmp_path)
    assert {line.split()[1] for line in lines(log)[begun:]} == {(raw / "new.mp4").as_posix()}
    kept = {row["source"] for row in rows(tmp_path / "out") if "file" in row}
    assert kept == {"renamed.mp4", "new.mp4", "other/good.mp4", "off 'by' 3.mp4"}
    there = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out" / "clips").rglob("*.mp4")}
    assert there == {row["file"] for row in rows(tmp_path / "out") if "file" in row}


@pytest.mark.usefixtures("here")
def test_steps_are_skipped_and_change_places(raw: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run(tmp_path, skip=("resample", "scenes", "faces", "align", "quality"))
    assert {line.split()[0] for line in lines(log)} == {"check", "cut", "sync"}
    assert {r["step"] for r in rows(tmp_path / "out") if r["kind"] == "clip"} == {"", "sync"}
    run(tmp_path, "second", order=ordered(("quality", "sync")))
    steps = [list(r["steps"]) for r in rows(tmp_path / "second") if "file" in r and r["source"] == "good.mp4"]
    assert {tuple(s[-3:]) for s in steps} == {("align", "quality", "sync")}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"skip": ("chek",)}, "did you mean 'check'"),
        ({"skip": ("check",)}, "cannot be skipped"),
        ({"skip": ("faces",)}, "skip both"),
        ({"order": ("faces", *STEPS[:4], *STEPS[5:])}, "must come before"),
        ({"order": ordered(("align", "faces"))}, "align must come after faces"),
        ({"order": STEPS[1:]}, "every step once"),
        ({"least": 11.0}, "--least"),
        ({"size": 300}, "--size"),
        ({"sync_model": "x"}, "syncnet or demo"),
        ({"min_share": 1.5}, "--min-share"),
    ],
)
def test_settings_that_cannot_be_used_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        PrepareConfig(**values)


def test_footage_and_clips_lie_apart(tmp_path: Path) -> None:
    film(tmp_path / "raw" / "a.mp4", tmp_path / "log")
    for raw, out in (("raw", "raw/out"), ("raw", "raw"), ("raw", ".")):
        with pytest.raises(UsageError, match="within each other"):
            prepare(tmp_path / raw, tmp_path / out, config(), running())
    with pytest.raises(InputError):
        prepare(tmp_path / "nowhere", tmp_path / "out", config(), running())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


# With processes


def test_hung_dead_and_faulty_steps_are_survived(tmp_path: Path) -> None:
    log = tmp_path / "log"
    film(tmp_path / "raw" / "1 good.mp4", log)
    film(tmp_path / "raw" / "2 dies once.mp4", log, faults={"scenes": "die once"})
    film(tmp_path / "raw" / "3 dies.mp4", log, faults={"align": "die"}, seconds="1/5")
    film(tmp_path / "raw" / "4 hangs.mp4", log, faults={"faces": "hang"}, seconds="11/100")
    film(tmp_path / "raw" / "5 crashes.mp4", log, faults={"check": "crash"})
    outcome = run(tmp_path, how=running(2, time_limit=0.5))
    ends = {row["source"]: (row["keep"], row["step"], row["failed"]) for row in rows(tmp_path / "out") if row["kind"] == "clip"}
    assert ends == {
        "1 good.mp4": (True, "", False),
        "2 dies once.mp4": (True, "", False),
        "3 dies.mp4": (False, "align", True),
        "4 hangs.mp4": (False, "faces", True),
    }
    reasons = {row["source"]: row["reason"] for row in rows(tmp_path / "out") if row["failed"]}
    assert "SIGKILL" in reasons["3 dies.mp4"]
    assert "cut off" in reasons["4 hangs.mp4"]
    assert "ZeroDivisionError: planned" in reasons["5 crashes.mp4"]
    assert any("2 dies once.mp4: scenes: its process was ended by SIGKILL" in note and "tried once more" in note for note in outcome.notes)
    assert sum("given up" in note for note in outcome.notes) == 3

    begun = len(lines(log))
    run(tmp_path, how=running(1))
    assert len(lines(log)) == begun, "failures are remembered"
    for path in (tmp_path / "raw").glob("[345]*"):
        assert path.exists()
    run(tmp_path, how=running(1, time_limit=0.5, retry=True))
    assert len(lines(log)) > begun, "and tried again on demand"


GO = """
import sys
from pathlib import Path
from latentsync.prepare.engine import prepare
from tests.prepare.films import config, running
if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), config(), running(2))
"""


def test_killed_at_any_moment_it_ends_up_the_same(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "raw"
    for i in range(5):
        film(folder / f"{i}.mp4", log, fps=25 + i % 2, offset=i, quality=35.0 + 3 * i, slow=0.01)
    prepare(folder, tmp_path / "calm", config(), running(2))
    calm, begun = result(tmp_path / "calm"), len(lines(log))
    log.unlink()

    draw = random.Random(5)
    killed, most = 0, 10
    words = [sys.executable, "-c", GO, str(folder), str(tmp_path / "out")]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    while True:
        process = subprocess.Popen(words, cwd=ROOT, env=surroundings, start_new_session=True)
        until, later = len(lines(log)) + draw.randint(1, 6), draw.uniform(0, 0.02)  # lines; seconds: two steps
        while process.poll() is None and (killed == most or len(lines(log)) < until):
            time.sleep(0.002)
        time.sleep(later)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.kill()
        process.wait()
        killed += 1
    assert killed == most
    assert result(tmp_path / "out") == calm
    assert begun <= len(lines(log)) <= begun + 2 * killed, "at most the step that each of two processes was at is done again"
    assert not list((tmp_path / "out" / ".work" / "scratch").iterdir())


def test_two_runs_do_not_meet(tmp_path: Path) -> None:
    film(tmp_path / "raw" / "a.mp4", tmp_path / "log")
    said = []

    def inner() -> bool:
        if not said:
            said.append("")
            with pytest.raises(UsageError, match="another `latentsync prepare` works in"):
                prepare(tmp_path / "raw", tmp_path / "out", config(), running())
        return True

    outcome = prepare(tmp_path / "raw", tmp_path / "out", config(), running(), stop=inner)
    assert said
    assert outcome.stopped
    assert outcome.tally is None
    assert films.lines(tmp_path / "log") == []
