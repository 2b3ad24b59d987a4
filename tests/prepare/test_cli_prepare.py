"""`latentsync prepare` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import Result

from latentsync.errors import InputError, OutputError, UsageError, WeightsError
from latentsync.media.clip import probe
from latentsync.prepare.config import Running
from latentsync.prepare.engine import prepare
from latentsync.train.clips import video_files
from tests.conftest import invoked
from tests.prepare.films import STEPS, config, film, running
from tests.train.clipmaker import make_clip

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: invoked("prepare", *words)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What preparation wrote of five films, of which four have clips."""
    folder = tmp_path_factory.mktemp("made")
    for i in range(5):
        film(folder / "raw" / f"{i}.mp4", folder / "log", quality=float(39 + i), offset=i % 2)
    prepare(folder / "raw", folder / "out", config(), running(1))
    return folder / "out"


def test_raw_and_out_are_enough(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").mkdir()
    film(tmp_path / "raw" / "list.mp4", tmp_path / "log")
    monkeypatch.setattr(Running, "__init__", _stand_in(Running.__init__))
    words = ("--least", 0.1, "--most", 0.2, "--jobs", 1, "--device", "cpu", "--skip", "quality", "--order", "quality,sync")
    done = run("raw", "out", *words)
    assert "3 of 3 clips kept" in done.stdout
    assert "report.html" in done.stdout
    assert "nothing was kept" not in done.stdout
    assert "nothing was kept; most was dropped at sync: look at --min-sync" in run("raw", "out", *words, "--min-sync", 8).stdout
    told = json.loads(run("run", "raw", "out", *words, "--min-sync", 8, "--json").stdout)
    assert (told["clips"], told["kept"], told["steps"]) == (3, 0, {})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".work", "clips", "manifest.jsonl", "prepare.json", "report.html", "report.txt"]


def _stand_in(init: Callable[..., None]) -> Callable[..., None]:
    return lambda self, **values: init(self, **(values | {"steps": STEPS}))


def test_mistakes_are_named_before_anything_is_done(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film(tmp_path / "raw" / "a.mp4", tmp_path / "log")
    with pytest.raises(UsageError, match="did you mean 'quality'"):
        run("raw", "out", "--skip", "qualty")
    with pytest.raises(UsageError, match="within each other"):
        run("raw", "raw/out")
    with pytest.raises(InputError, match="no folder or list nowhere"):
        run("nowhere", "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]
    for name in ("LATENTSYNC_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "no weights"))
    with pytest.raises(WeightsError, match=r"(?s)--face-backend demo\n.*--sync-model demo\n.*--quality-model sharpness"):
        run("raw", "out", "--device", "cpu")
    assert not (tmp_path / "out").exists()


def test_a_list_is_split_by_source_and_never_by_clip(run: Run, made: Path, tmp_path: Path) -> None:
    assert run("list", made, "-o", "all.txt").stdout == "all.txt: 12 clips\n"
    everything = set(video_files(tmp_path / "all.txt")[0])
    assert {p.parent.parent for p in everything} == {made / "clips"}, "nothing of .work"
    assert run("list", made / "clips", "-o", "same.txt").stdout == "same.txt: 12 clips\n"
    run("list", made, "-o", "train.txt", "--validation", "val.txt", "--share", 0.5)
    train, held = (set(video_files(tmp_path / name)[0]) for name in ("train.txt", "val.txt"))
    assert train | held == everything
    assert not train & held
    assert not {p.parent for p in train} & {p.parent for p in held}
    assert train
    assert held
    run("list", made, "-o", "train2.txt", "--validation", "val2.txt", "--share", 0.5)
    assert (tmp_path / "val2.txt").read_text() == (tmp_path / "val.txt").read_text()
    splits = set()
    for seed in range(8):
        run("list", made, "-o", "t.txt", "--validation", "v.txt", "--share", 0.001, "--seed", seed, "--overwrite")
        assert len(video_files(tmp_path / "v.txt")[0]) == 3, "at least one source"
        splits.add((tmp_path / "v.txt").read_text())
    assert len(splits) > 1
    with pytest.raises(OutputError, match="--overwrite"):
        run("list", made, "-o", "new.txt", "--validation", "val.txt")
    assert not (tmp_path / "new.txt").exists()
    with pytest.raises(UsageError, match="--share"):
        run("list", made, "-o", "new.txt", "--validation", "new2.txt", "--share", 1)


def test_clips_of_unknown_sources_are_not_split(run: Run, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    with pytest.raises(InputError, match=r"a\.mp4 was cut from is not known"):
        run("list", "clips", "-o", "t.txt", "--validation", "v.txt")
    assert not (tmp_path / "t.txt").exists()


def test_one_clip_tells_its_history(run: Run, made: Path) -> None:
    clip = next(iter(sorted((made / "clips").rglob("*.mp4"))))
    shown = run("inspect", clip).stdout
    for word in ("kept", "source", "check", "sync", "confidence 7", "quality", "versions"):
        assert word in shown
    row = json.loads(run("inspect", clip.stem, "--in", made, "--json").stdout)[0]
    assert row["name"] == clip.stem
    assert row["steps"]["sync"]["seconds"] >= 0
    assert row["versions"]["sync"] == "1"
    dropped = run("inspect", "0.mp4", "--in", made).stdout
    assert "dropped at quality: quality 39.0 is below 40" in dropped
    with pytest.raises(InputError, match="knows no clip"):
        run("inspect", "nothing.mp4", "--in", made)
    with pytest.raises(InputError, match="--in OUT"):
        run("inspect", "nothing.mp4")


def test_the_report_is_written_again_on_demand(run: Run, made: Path) -> None:
    (made / "report.html").unlink()
    text = run("report", made, "--text").stdout
    assert not (made / "report.html").exists()
    assert run("report", made).stdout == text
    assert (made / "report.txt").read_text() == text
    assert (made / "report.html").stat().st_size > 1000
    with pytest.raises(InputError, match=r"holds no manifest\.jsonl"):
        run("report", made.parent)


# Single steps, on real media


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("alone") / "a b.mp4", frames=50)


def test_steps_run_alone(run: Run, clip: Path, tmp_path: Path) -> None:
    told = json.loads(run("check", clip, "--json").stdout)
    assert (told["keep"], told["duration"], told["frames"]) == (True, "2", 50)
    assert "25" in run("check", clip).stdout
    spans = json.loads(run("segments", clip, "--keep-short", "--json").stdout)["spans"]
    assert spans[0][0] == "0"
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    scenes = run("scenes", clip)
    assert scenes.exit_code == 0
    assert "spans" in scenes.stdout
    again = json.loads(run("resample", clip, tmp_path / "r.mp4", "--json").stdout)
    assert again["changed"] == (tmp_path / "r.mp4").exists()
    graded = run("quality", clip, "--quality-model", "sharpness", "--min-quality", 1000, "--device", "cpu")
    assert graded.exit_code == 1
    assert "drop: quality" in graded.stdout


def test_the_real_steps_make_a_clip(run: Run, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / clip.name).write_bytes(clip.read_bytes())
    words = ("--skip", "scenes,faces,align,sync", "--quality-model", "sharpness", "--least", 1, "--jobs", 1, "--device", "cpu", "--json")
    told = json.loads(run("raw", "out", *words, "--min-quality", -1000).stdout)
    assert (told["clips"], told["kept"], told["failed"]) == (1, 1, 0)
    assert set(told["steps"]) == {"check", "resample", "cut", "quality"}
    found = probe(next((tmp_path / "out" / "clips").rglob("*.mp4")))
    assert (found.fps, found.frames, found.audio_rate) == (25, 50, 16000)
    assert json.loads(run("raw", "out", *words, "--min-quality", 1000).stdout)["kept"] == 0


def test_what_is_no_film_does_not_pass(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    done = run("check", "text.mp4")
    assert done.exit_code == 1
    assert "drop: " in done.stdout
    (tmp_path / "there.mp4").touch()
    with pytest.raises(UsageError, match="--overwrite"):
        run("resample", "text.mp4", "there.mp4")
