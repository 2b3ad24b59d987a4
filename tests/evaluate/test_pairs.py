"""Lists of pairs: read, made, measured, stopped anywhere, and gone on with."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentsync.errors import InputError, UsageError
from latentsync.evaluate import pairs as work
from latentsync.evaluate.compare import compare
from latentsync.evaluate.pairs import Generation, Progress, read_list, run
from latentsync.evaluate.protocols import Pair
from latentsync.evaluate.records import ROWS, Results
from latentsync.evaluate.tools import Tools


@pytest.fixture(scope="module")
def quick() -> Tools:
    return Tools(("faces", "speed"), faces="demo", device="cpu")


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_lists_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path / "p.csv",
        "video, audio,reference,result,name",
        "a.mp4,b.wav,,,",
        '"c, d.mp4",/abs/b.wav,r.mp4,,mine',
        "a.mp4,b.wav,,,",
        ",,,e.mp4,",
        "",
    )
    found = read_list(path)
    assert [p.name for p in found] == ["a + b", "mine", "a + b (2)", "e"]
    assert found[0] == Pair("a + b", tmp_path / "a.mp4", tmp_path / "b.wav")
    assert found[1].video == tmp_path / "c, d.mp4"
    assert found[1].audio == Path("/abs/b.wav")
    assert found[3].result == found[3].video == tmp_path / "e.mp4"
    for lines, message in (
        (["video,sound", "a,b"], "column 'sound' is not known"),
        (["audio", "b"], "no column video"),
        (["video,audio", "a,b,c"], "line 2: more cells"),
        (["video,audio", ",b"], "line 2: it names no video"),
    ):
        with pytest.raises(UsageError, match=message):
            read_list(written(tmp_path / "bad.csv", *lines))
    with pytest.raises(InputError, match="lists no pairs"):
        read_list(written(tmp_path / "bad.csv", "video,audio"))
    with pytest.raises(InputError, match="cannot read"):
        read_list(tmp_path / "nowhere.csv")


def results_of(films: Path, *names: str) -> list[Pair]:
    return [Pair(Path(n).stem, films / "true.mp4", None, None, films / n) for n in names]


def test_what_is_there_is_measured_once(films: Path, tmp_path: Path, quick: Tools) -> None:
    shutil.copy(films / "one.mp4", tmp_path / "mine.mp4")
    listed = [*results_of(films, "short.mp4", "broken.mp4", "nowhere.mp4"), Pair("mine", films / "true.mp4", None, None, tmp_path / "mine.mp4")]
    out = tmp_path / "out"
    told: list[Progress] = []
    assert run(listed, out, quick, progress=told.append, stop=lambda: bool(told) and told[-1].done == 2) is None
    assert len((out / ROWS).read_bytes().splitlines()) == 2
    found = run(listed, out, quick)
    assert found is not None
    before = (out / ROWS).read_bytes()
    assert [(r.name, r.ok) for r in found.rows] == [("short", True), ("broken", False), ("nowhere", False), ("mine", True)]
    assert found.rows[0].missing["seconds_per_second"] == "the result was there already"
    assert "nowhere.mp4" in found.rows[2].reason
    assert found.settings["judge"] == ""
    assert found.settings["faces"] == "demo"
    run(listed, out, quick)
    assert (out / ROWS).read_bytes() == before
    shutil.copy(films / "short.mp4", tmp_path / "mine.mp4")  # it changed: measured again
    again = run(listed, out, quick)
    assert again is not None
    assert again.rows[3].frames == 15
    assert (out / ROWS).read_bytes().startswith(before)
    assert len((out / ROWS).read_bytes().splitlines()) == 5
    with open(out / "results.csv", encoding="utf-8", newline="") as f:
        table = list(csv.DictReader(f))
    assert [row["name"] for row in table] == ["short", "broken", "nowhere", "mine"]
    assert table[0]["faces_missing"] == "0.0"
    assert json.loads((out / "summary.json").read_text())["metrics"]["faces_missing"]["count"] == 2
    with pytest.raises(UsageError, match="other settings"):
        run(listed, out, Tools(("faces",), faces="demo", device="cpu"))


def test_pairs_are_made_once_and_offline(films: Path, tmp_path: Path, quick: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", refused)
    listed = [Pair("a: b/c", films / "short.mp4", films / "short.mp4"), Pair("silent", films / "short.mp4", films / "silent.mp4")]
    made = Generation("demo", {"steps": 1}, "cpu")
    out = tmp_path / "out"
    found = run(listed, out, quick, generation=made)
    assert found is not None
    first, second = found.rows
    assert first.ok
    assert Path(first.video) == out / "videos" / "a_ b_c.mp4"
    assert first.source == str(films / "short.mp4")
    assert first.values["seconds_per_second"] > 0
    assert first.settings["model"] == "demo"
    assert (first.settings["steps"], first.settings["seed"]) == (1, 1247)
    assert not second.ok
    assert "not made" in second.reason
    assert "sound" in second.reason
    video = Path(first.video)
    when = video.stat().st_mtime_ns
    (out / ROWS).unlink()  # killed between making and measuring
    (out / "videos" / ".latentsync-1234.mp4").touch()
    again = run(listed[:1], out, quick, generation=made)
    assert again is not None
    assert video.stat().st_mtime_ns == when
    assert not list((out / "videos").glob(".*"))
    assert again.rows[0].values["seconds_per_second"] == pytest.approx(first.values["seconds_per_second"])
    with pytest.raises(UsageError, match=r"--model"):
        run(listed, tmp_path / "other", quick)
    with pytest.raises(UsageError, match="options"):
        run(listed, out, quick, generation=dataclasses.replace(made, options={"steps": 2}))


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_killed_in_the_middle_it_redoes_nothing(films: Path, tmp_path: Path) -> None:
    lines = ["video,result,name", *(f"{films}/true.mp4,{films}/short.mp4,{i}" for i in range(40))]
    words = ["evaluate", "pairs", str(written(tmp_path / "p.csv", *lines)), "-o", str(tmp_path / "out"), "--metrics", "faces"]
    words += ["--face-backend", "demo", "--device", "cpu", "--no-report"]
    started = subprocess.Popen([sys.executable, "-m", "latentsync", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = tmp_path / "out" / ROWS
    until = time.monotonic() + 120
    while not (rows.is_file() and rows.read_bytes().count(b"\n") >= 2):
        assert started.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    before = rows.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    names = [json.loads(line)["name"] for line in whole.splitlines()]
    assert 2 <= len(names) < 40
    found = run(read_list(tmp_path / "p.csv")[: len(names) + 1], tmp_path / "out", Tools(("faces",), faces="demo", device="cpu"))
    assert found is not None
    after = rows.read_bytes()
    assert after.startswith(whole)
    assert [json.loads(line)["name"] for line in after.splitlines()] == [*names, found.rows[len(names)].name]


def test_two_videos_and_two_systems_are_compared(films: Path, tmp_path: Path) -> None:
    tools = Tools(("picture",), faces="demo", device="cpu")
    found = compare(films / "short.mp4", films / "still_lips.mp4", tmp_path / "out", tools, reference=films / "true.mp4")
    assert found is not None
    assert (found.a.system, found.b.system) == ("short", "still_lips")
    assert found.differences["psnr_mouth"].difference < -3  # frozen lips are further from the truth
    again = compare(tmp_path / "out" / "short", tmp_path / "out" / "still_lips", tmp_path, tools)
    assert again is not None
    assert again.differences == found.differences
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shutil.copy(films / "one.mp4", tmp_path / "a" / "x.mp4")
    shutil.copy(films / "one.mp4", tmp_path / "b" / "x.mp4")
    shutil.copy(films / "one.mp4", tmp_path / "b" / "y.mp4")
    same = compare(tmp_path / "a", tmp_path / "b", tmp_path / "ab", tools, reference=films / "true.mp4")
    assert same is not None
    assert {r.name for r in Results.read(tmp_path / "ab" / "b").rows} == {"x"}
    assert same.differences["psnr_frame"].difference == 0
    with pytest.raises(InputError, match="has the name"):
        compare(tmp_path / "a", films, tmp_path / "no", tools)


def test_names_become_files() -> None:
    assert work.file_name('a/b\\c:"d"?') == "a_b_c__d__"
    assert work.file_name("...") == "_"
    assert len(work.file_name("ä" * 300).encode()) <= 200
    files = work.file_names(["a/b", "a_b", "A_b", "c"])
    assert files["c"] == "c"
    assert len({f.casefold() for f in files.values()}) == 4
    assert files["a/b"].startswith("a_b ")
