"""The report on a data set counts what is there and names what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentsync.errors import InputError, WeightsError
from latentsync.train.check import check
from tests.conftest import ROOT, beside, loaded
from tests.train.clipmaker import make_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    make_clip(folder / "a.mp4", 60)
    make_clip(folder / "b.mp4", 150)
    make_clip(folder / "c.mp4", 150, rate=50, size=(32, 32))
    make_clip(folder / "silent.mp4", 60, sound=None)
    make_clip(folder / "wide.mp4", 60, size=(96, 64))
    make_clip(folder / "short.mp4", 30)
    (folder / "text.mp4").write_text("no video")
    (folder / "a.json").write_text('{"av_offset": 2}')
    (folder / "b.json").write_text('{"av_offset": -1.5, "other": 3}')
    (folder / "c.json").write_text('{"av_offset": "unknown"}')
    (folder / "short.json").write_text("not json")
    return folder


def test_everything_is_counted(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check(folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 7) for i in range(1, 8)]
    assert [p.name for p in report.good] == ["a.mp4", "b.mp4", "c.mp4"]
    plain = json.loads(json.dumps(report.plain()))
    assert (plain["files"], plain["usable"]) == (7, 3)
    assert plain["hours"] == pytest.approx((2.4 + 6 + 3 + 2.4 + 2.4 + 1.2) / 3600, abs=1e-4)
    assert {k: v for k, v in plain["durations_s"].items() if v} == {"0-2 s": 1, "2-3 s": 3, "3-5 s": 1, "5-10 s": 1}
    assert plain["sizes"] == {"64x64": 4, "32x32": 1, "96x64": 1}
    assert plain["fps"] == {"25": 5, "50": 1}
    assert plain["sample_rates_hz"] == {"16000": 5}
    assert plain["without_sound"] == [str(folder / "silent.mp4")]
    assert plain["faces"] is None
    assert plain["av_offset_frames"] == {"known": 2, "values": {"-1.5": 1, "2": 1}}
    reasons = {Path(b["path"]).name: b["reason"] for b in plain["unusable"]}
    assert reasons.keys() == {"silent.mp4", "wide.mp4", "short.mp4", "text.mp4"}
    assert reasons["silent.mp4"] == "has no sound"
    assert "not square" in reasons["wide.mp4"]
    assert "too short: 1.20 s are 30 frames" in reasons["short.mp4"]
    assert "not an audio, video or image file" in reasons["text.mp4"]


def test_the_text_says_it_to_people(folder: Path) -> None:
    text = check(folder).text()
    said = ["3 of 7 can be used", "64x64 (4), 32x32 (1), 96x64 (1)", "25 (5), 50 (1)", "16000 Hz (5), none in 1", "known of 2 clips"]
    for words in [*said, "4 cannot be used:"]:
        assert words in text
    assert f"  {folder / 'silent.mp4'}: has no sound" in text


def test_a_clean_list_has_nothing_to_complain_about(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    source.write_text(f"{folder / 'c.mp4'}\n")
    report = check(source)
    assert (report.bad, report.files, len(report.good)) == ([], 1, 1)
    assert "cannot be used" not in report.text()
    assert "not known" in report.text()


def test_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is empty"):
        check(tmp_path)


def test_faces_are_looked_for(tmp_path: Path, public_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSYNC_WEIGHTS_PATH", str(public_weights))
    clips = tmp_path / "clips"
    make_clip(clips / "bars.mp4", 60)
    sample = loaded(ROOT / "tools" / "sample.py")
    import numpy as np

    from latentsync.media.clip_writer import write_clip

    write_clip(clips / "face.mp4", np.stack([sample.draw(i / 25, 128) for i in range(50)]), 25, sample.speech(2.0))
    report = check(clips, faces=True)
    assert [p.name for p in report.good] == ["face.mp4"]
    assert [(b.path.name, b.reason) for b in report.bad] == [("bars.mp4", "shows no face in its first, middle and last frame")]
    assert report.plain()["faces"] == {"frames": 6, "found": 3}
    assert "in 50.0% of 6 frames" in report.text()


def test_faces_need_their_detector(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LATENTSYNC_WEIGHTS_PATH", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(WeightsError, match="latentsync models download face"):
        check(folder, faces=True, home=tmp_path)


def test_the_corpus(public_weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = beside("LATENTSYNC_CORPUS", "corpus")
    if not folder.is_dir():
        pytest.skip(f"no corpus at {folder}; set LATENTSYNC_CORPUS")
    monkeypatch.setenv("LATENTSYNC_WEIGHTS_PATH", str(public_weights))
    source = tmp_path / "list.txt"
    source.write_text("".join(f"{p}\n" for p in sorted(folder.glob("*.mp4"))[:20]))
    report = check(source, faces=True)
    assert len(report.good) == 20
    assert report.frames_with_face >= 0.9 * report.frames_looked_at == 54
