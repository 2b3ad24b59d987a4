"""One video to one row: truth against itself, and inputs of every bad kind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import UsageError
from latentsync.evaluate.tools import GROUPS, Tools, chosen
from latentsync.evaluate.video import _Beside, evaluate
from latentsync.media.frame import Frame


@pytest.fixture(scope="module")
def cheap() -> Tools:
    """Without what is slow."""
    return Tools(("sync", "picture", "silence", "faces"), judge="demo", faces="demo", vad="energy", device="cpu")


def test_truth_against_itself_is_perfect(films: Path, tools: Tools) -> None:
    true = films / "true.mp4"
    seen: list[int] = []
    row = evaluate(true, reference=true, source=true, tools=tools, settings={"model": "none"}, progress=seen.append)
    assert row.ok, row.reason
    assert (row.name, row.frames, row.seconds) == ("true", 30, pytest.approx(1.2))
    v = row.values
    for key in ("psnr_mouth", "psnr_face", "psnr_frame"):
        assert v[key] == 100
    for key in ("ssim_mouth", "ssim_face", "ssim_frame", "lip_r"):
        assert v[key] == pytest.approx(1)
    for key in ("outside_max", "outside_share", "lmd", "lmd_pixels", "faces_missing", "flicker_excess", "jitter", "paste_offset", "lip_lag"):
        assert v[key] == pytest.approx(0, abs=1e-9), key
    assert {"sync_confidence", "seam", "flicker", "sharpness"} <= set(v)
    assert len(row.curves["lips"]) == 30
    assert seen[-1] == 30
    assert row.settings["judge"] == "demo"
    assert row.settings["vad"] == "energy"
    assert row.settings["model"] == "none"
    # everything that was asked for has a value or a reason
    asked = {key for group in tools.groups if group not in ("speed", "fid", "fvd") for key in GROUPS[group]}
    assert asked == set(v) | set(row.missing)
    assert not set(v) & set(row.missing)
    assert "SyncNet v2" in row.missing["lse_c"]
    assert all(math.isfinite(x) for x in v.values())


def test_frozen_lips_are_noticed(films: Path) -> None:
    tools = Tools(("lips", "flicker", "picture"), faces="demo", device="cpu")
    row = evaluate(films / "still_lips.mp4", reference=films / "true.mp4", tools=tools)
    assert row.ok
    assert row.values["lmd"] > 0.5
    assert row.values["lip_r"] < 0.5
    assert row.values["psnr_mouth"] < 45
    assert row.values["flicker_excess"] < 0


def test_lips_follow_those_of_the_video_that_the_sound_is_from(films: Path) -> None:
    tools = Tools(("lips",), faces="demo", device="cpu")
    row = evaluate(films / "small.mp4", audio=films / "true.mp4", tools=tools)
    assert row.values["lip_r"] > 0.9
    assert row.values["lip_lag"] == pytest.approx(0, abs=0.2)
    assert row.missing["lmd"] == "no reference was given"
    assert any("the video that the sound is from" in note for note in row.notes)
    assert "lip_r" not in evaluate(films / "true.mp4", tools=tools).values


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken.mp4", "moov|damaged|cut off|read"),
        ("empty.mp4", "empty"),
        ("nowhere.mp4", "no such|does not exist|No such"),
        ("faceless.mp4", "no face in any frame"),
        ("picture.png", "a still"),
    ],
)
def test_bad_videos_give_a_row_with_a_reason(films: Path, cheap: Tools, name: str, reason: str) -> None:
    if name == "picture.png":
        import cv2

        cv2.imwrite(str(films / name), np.zeros((64, 64, 3), np.uint8))
    row = evaluate(films / name, tools=cheap)
    assert not row.ok
    import re

    assert re.search(reason, row.reason), row.reason
    if name == "faceless.mp4":
        assert row.values["faces_missing"] == 1
        assert "no face" in row.missing["sync_confidence"]


def test_a_silent_video_lacks_only_what_needs_sound(films: Path, cheap: Tools) -> None:
    row = evaluate(films / "silent.mp4", reference=films / "true.mp4", tools=cheap)
    assert row.ok
    assert row.values["psnr_frame"] > 40
    assert "sound" in row.missing["sync_confidence"]
    assert "sound" in row.missing["silence_motion"]


def test_one_frame_is_too_few_for_some(films: Path, cheap: Tools) -> None:
    row = evaluate(films / "one.mp4", reference=films / "true.mp4", tools=cheap)
    assert row.frames == 1
    assert row.values["psnr_face"] > 30
    assert "too few" in row.missing["sync_confidence"]


def test_other_lengths_and_sizes_are_said(films: Path) -> None:
    cheap = Tools(("picture",), faces="demo", device="cpu")
    row = evaluate(films / "true.mp4", reference=films / "short.mp4", tools=cheap)
    assert row.ok
    assert any("the reference lasts 0.60 s, the video 1.20 s" in note for note in row.notes)
    assert row.values["psnr_frame"] > 40  # over what both have
    row = evaluate(films / "true.mp4", reference=films / "small.mp4", tools=cheap)
    assert row.ok
    assert row.values["psnr_face"] > 20  # faces are cut out of each at its own size
    assert "sizes" in row.missing["psnr_frame"]
    row = evaluate(films / "true.mp4", audio=films / "nowhere.wav", reference=films / "broken.mp4", tools=cheap)
    assert not row.ok


def test_what_runs_along_is_the_nearest_in_time() -> None:
    def frames(rate: int, count: int) -> Iterator[Frame]:
        return (Frame(i, Fraction(i, rate), Fraction(1, rate), i) for i in range(count))  # type: ignore[arg-type]

    def shown(rate: int, other: int, seconds: int = 1) -> list[object]:
        beside = _Beside(frames(other, other * seconds))
        return [beside.at(Fraction(i, rate)) for i in range(rate * seconds + rate // 5)]

    assert shown(25, 25)[:26] == [*range(25), None]
    assert shown(50, 25)[:6] == [0, 0, 1, 1, 2, 2]  # of two equally near the earlier
    assert shown(10, 30)[:4] == [0, 3, 6, 9]
    assert shown(30, 25)[30:] == [None] * 6
    assert _Beside(iter(())).at(Fraction(0)) is None


def test_names_of_metrics() -> None:
    assert chosen(["all"]) == tuple(GROUPS)
    assert chosen(["psnr_face", "sync"]) == ("sync", "picture")
    with pytest.raises(UsageError, match="no metric 'nice'"):
        chosen(["nice"])
    with pytest.raises(UsageError, match="no voice detector"):
        Tools(vad="ear")
    with pytest.raises(UsageError, match="no face finder"):
        Tools(faces="eye")
