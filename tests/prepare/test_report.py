"""The report adds up, is one page, and shows what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from latentsync.prepare import manifest, report
from latentsync.prepare.store import Local
from tests.pages import Page
from tests.train.clipmaker import make_clip


def clip(name: str, source: str, start: float, keep: bool = True, step: str = "", reason: str = "", **steps: Any) -> manifest.Row:
    row = {"kind": "clip", "name": name, "source": source, "content": source * 4, "start": start, "end": start + 2, "keep": keep}
    row |= {"step": step, "reason": reason, "failed": False, "steps": {k: {"seconds": 1.0, **v} for k, v in steps.items()}}
    return row | ({"file": f"clips/{name}.mp4"} if keep else {})


def source(name: str, keep: bool = True, step: str = "", reason: str = "", failed: bool = False) -> manifest.Row:
    check = {"check": {"seconds": 0.5, "duration": "6", "fps": "30000/1001"}}
    row = {"kind": "source", "source": name, "content": name * 4, "keep": keep, "step": step, "reason": reason, "failed": failed}
    return row | {"steps": check if keep else {}}


FACES, SYNC, OFF = {"tracks": [{"width": 300.0, "height": 310.0}]}, {"confidence": 7.2, "offset": 0}, {"confidence": 1.1, "offset": 9}
ROWS = [
    source("a<b>.mp4"),
    clip("one", "a<b>.mp4", 0, faces=FACES, align={}, sync=SYNC, quality={"score": 61.0}),
    clip("two", "a<b>.mp4", 2, keep=False, step="sync", reason="confidence 1.10 is below 3", faces=FACES, align={}, sync=OFF),
    clip("three", "a<b>.mp4", 4, keep=False, step="faces", reason="no face", faces={"tracks": []}),
    {**clip("x", "a<b>.mp4", 5, keep=False, step="segments", reason="1.00 s are shorter than 5 s"), "kind": "left over"},
    source("broken.mp4", keep=False, step="check", reason="damaged at 3.1 s"),
    source("same.mp4", keep=False, step="same", reason="holds the same as a<b>.mp4"),
]


@pytest.fixture
def store(tmp_path: Path) -> Local:
    store = Local(tmp_path / "out")
    make_clip(tmp_path / "out" / "clips" / "one.mp4")
    (tmp_path / "raw").mkdir()
    make_clip(tmp_path / "raw" / "a<b>.mp4", frames=160)
    manifest.write(store, map(manifest.line, ROWS))
    store.write("prepare.json", json.dumps({"raw": str(tmp_path / "raw"), "values": {"min_sync": 3.0, "order": []}}).encode())
    store.write("prepare.json", json.dumps({"raw": str(tmp_path / "raw"), "values": {"min_sync": 3.0}}).encode())
    return store


def test_a_manifest_adds_up(store: Local) -> None:
    total = report.tally(store)
    assert [(s.name, s.count, s.seconds) for s in total.stages] == [
        ("footage", 3, 6.0),
        ("check", 1, 6.0),
        ("segments", 3, 6.0),
        ("faces", 2, 4.0),
        ("align", 2, 4.0),
        ("sync", 1, 2.0),
        ("quality", 1, 2.0),
    ]
    assert (total.files, total.same, total.clips, total.kept, total.failures) == (3, 1, 3, 1, 1)
    assert total.failed == [("broken.mp4", "damaged at 3.1 s")]
    assert total.reasons["sync", "confidence ... is below ..."] == 1
    assert [dict(c) for c in total.bins] == [{30: 1}, {18: 2}, {360: 1, 55: 1}, {0: 1, 9: 1}, {24: 1}]
    assert total.reasons["segments", "... s are shorter than 5 s"] == 1, "the threshold stays"
    assert total.times["faces"] == [3, 3.0, 6.0]
    assert total.times["check"] == [1, 0.5, 6.0]
    assert total.slowest == "faces"
    words = report.text(total)
    assert "1 of 3 clips kept, 2.0 s of 6.0 s of footage in 3 files" in words
    assert "broken.mp4: damaged at 3.1 s" in words


def test_the_page_needs_nothing_else_and_shows_pictures(store: Local) -> None:
    report.write(store)
    raw = (store.root / "report.html").read_text(encoding="utf-8")
    page = Page(raw)
    assert not re.search(r"https?://|url\(|@import|<script|<link", raw), "no other file, no network"
    assert "prefers-color-scheme:dark" in raw
    images = [about["src"] for tag, about in page.tags if tag == "img"]
    assert len(images) == 4, "the kept one from its clip, the others from the footage"
    assert all(src and src.startswith("data:image/jpeg;base64,") for src in images)
    assert sum(tag == "svg" for tag, _ in page.tags) == len(report.SCALES)
    for words in ("a<b>.mp4", "confidence 1.10 is below 3", "no face", "damaged at 3.1 s", "Dropped by sync", "threshold 3"):
        assert words in page.text
    assert (store.root / "report.txt").read_text(encoding="utf-8") == report.text(report.tally(store))


def test_an_empty_result_has_a_page_too(tmp_path: Path) -> None:
    store = Local(tmp_path)
    manifest.write(store, [])
    Page(report.page(report.write(store), store))


def test_samples_are_of_many_films_and_few(tmp_path: Path) -> None:
    store = Local(tmp_path)
    many = [clip(f"{i}-{k}", f"{i}.mp4", k) for i in range(40) for k in range(100)]
    manifest.write(store, map(manifest.line, many))
    shown = report.tally(store).samples[""]
    assert len(shown) == 24
    assert len({row["content"] for row in shown}) == 24
