"""`latentsync evaluate ...`: words in, words or JSON out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentsync.errors import UsageError, WeightsError
from latentsync.evaluate.records import find
from tests.conftest import invoked
from tests.train.conftest import talk

PLAIN = ("--face-backend", "demo", "--device", "cpu")


def test_sync(films: Path) -> None:
    said = invoked("evaluate", "sync", films / "true.mp4", films / "silent.mp4", "--judge", "demo", *PLAIN)
    assert said.exit_code == 3
    lines = said.stdout.splitlines()
    assert "true.mp4: confidence 0." in lines[0]
    assert "by the package's SyncNet" in lines[0]
    assert lines[1].startswith("  by second: ")
    assert "silent.mp4: not judged: " in lines[2]
    assert "sound" in lines[2]
    told = invoked("evaluate", "sync", films / "true.mp4", "--judge", "demo", *PLAIN, "--json")
    assert told.exit_code == 0
    (row,) = json.loads(told.stdout)
    assert row["values"]["sync_confidence"] > 0
    assert row["settings"]["judge"] == "demo"


def test_pairs_compare_and_report(films: Path, tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    table.write_text(f"result,name\n{films}/short.mp4,a\n{films}/one.mp4,b\n{films}/broken.mp4,c\n")
    out = tmp_path / "out"
    words = ("evaluate", "pairs", table, "-o", out, "--metrics", "faces", "--name", "ours", *PLAIN)
    said = invoked(*words)
    assert "ours: 2 of 3 videos measured" in said.stdout
    assert "failed: c: " in said.stdout
    assert (out / "report.html").is_file()
    summary = json.loads(invoked(*words, "--json").stdout)
    assert summary["metrics"]["faces_missing"]["mean"] == 0
    assert [r.system for r in find(out)] == ["ours"]
    page = tmp_path / "page.html"
    assert str(page) in invoked("evaluate", "report", out, "-o", page, "--no-clips").stdout
    compared = invoked("evaluate", "compare", films / "short.mp4", films / "short.mp4", "--metrics", "sharpness", *PLAIN, "--json")
    assert json.loads(compared.stdout)["differences"]["sharpness"]["difference"] == 0
    said = invoked("evaluate", "compare", films / "short.mp4", films / "one.mp4", "--metrics", "sharpness", *PLAIN)
    assert "A short, B one: 1 and 1 videos measured" in said.stdout
    assert "B - A" in said.stdout


def test_syncnet(tmp_path: Path) -> None:
    talk(tmp_path / "clip.mp4", seed=1)
    told = json.loads(invoked("evaluate", "syncnet", tmp_path, "--model", "demo", "--device", "cpu", "--json").stdout)
    assert told["clips"] == 1
    assert 0 <= told["auc"] <= 1


def test_mistakes_are_named(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSYNC_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("LATENTSYNC_WEIGHTS_PATH", raising=False)
    table = tmp_path / "p.csv"
    table.write_text("video,audio\na.mp4,b.wav\n")
    with pytest.raises(UsageError, match="--model"):
        invoked("evaluate", "pairs", table, "-o", tmp_path / "out", "--metrics", "faces", *PLAIN)
    with pytest.raises(UsageError, match="give NAME=VALUE"):
        invoked("evaluate", "pairs", table, "-o", tmp_path / "out", "--model", "demo", "--set", "steps", *PLAIN)
    with pytest.raises(UsageError, match="unknown option 'stepz'"):
        invoked("evaluate", "pairs", table, "-o", tmp_path / "out", "--model", "demo", "--set", "stepz=1", *PLAIN)
    with pytest.raises(UsageError, match="no protocol 'mine'"):
        invoked("evaluate", "pairs", films, "-o", tmp_path / "out", "--protocol", "mine", *PLAIN)
    with pytest.raises(UsageError, match="no metric 'nice'"):
        invoked("evaluate", "pairs", table, "-o", tmp_path / "out", "--metrics", "nice", *PLAIN)
    with pytest.raises(WeightsError, match="models download judges"):
        invoked("evaluate", "sync", films / "true.mp4", "--judge", "syncnet", *PLAIN)
    assert not (tmp_path / "out").exists()
