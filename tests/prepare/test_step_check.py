"""What is wrong with a file is said, with its place; a good one is measured."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync.prepare.steps import check
from tests.prepare.footage import NAMES, make, moving, noise


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds with their index in front."""
    return make(tmp_path_factory.mktemp("whole") / "a.mp4", 75, sound=noise(3), faststart=True)


def test_a_good_file(whole: Path) -> None:
    found = check.measure(whole)
    assert found.problem == ""
    assert (found.frames, found.fps, found.duration, found.variable) == (75, 25, 3, False)
    assert (found.width, found.height, found.audio_rate, found.audio_channels) == (64, 48, 16000, 1)
    assert abs(found.audio_duration - 3) < Fraction(1, 10)
    assert check.decide(found) == (True, "3.00 s, 64x48 at 25 fps")


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str, tmp_path: Path) -> None:
    assert check.measure(make(tmp_path / name, 5, sound=noise(0.2))).problem == ""


def test_what_is_no_video(tmp_path: Path) -> None:
    def said(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        decision = check.decide(check.measure(tmp_path / name))
        assert not decision.keep
        assert str(tmp_path) not in decision.reason  # the row of a manifest names the file already
        return decision.reason

    assert "empty" in said("zero.mp4", b"")
    assert "not an audio, video or image file" in said("text.mp4", b"I am no video, whatever my name says.\n" * 50)
    assert "not an audio, video or image file" in said("random.mkv", bytes(np.random.default_rng(1).integers(0, 256, 5000, np.uint8)))
    assert "no such file" in check.measure(tmp_path / "gone.mp4").problem
    (tmp_path / "folder.mp4").mkdir()
    assert "folder" in check.measure(tmp_path / "folder.mp4").problem


def test_only_sound_only_picture_and_a_still(tmp_path: Path) -> None:
    silent = check.measure(make(tmp_path / "silent.mp4", 10))
    assert silent.problem == "no sound"
    assert silent.frames == 10
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        track = out.add_stream("aac", rate=16000, layout="mono")
        block = av.AudioFrame.from_ndarray(noise(1)[None], "fltp", "mono")
        block.sample_rate = 16000
        out.mux([*track.encode(block), *track.encode(None)])
    assert "no video" in check.measure(tmp_path / "sound.mp4").problem
    with av.open(str(tmp_path / "still.png"), "w", format="image2", options={"update": "1"}) as out:
        stream = out.add_stream("png")
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        out.mux([*stream.encode(av.VideoFrame.from_ndarray(moving(0), "rgb24")), *stream.encode(None)])
    assert "still" in check.measure(tmp_path / "still.png").problem


@pytest.mark.parametrize("share", [0.35, 0.7, 0.95])
def test_cut_off_behind_its_index(whole: Path, tmp_path: Path, share: float) -> None:
    content = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(len(content) * share)])
    found = check.measure(tmp_path / "cut.mp4")
    assert "cut off" in found.problem
    assert " s" in found.problem
    assert 0 < found.frames < 75


def test_cut_off_before_its_index(tmp_path: Path) -> None:
    content = make(tmp_path / "a.mp4", 75, sound=noise(3)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    assert "no index" in check.measure(tmp_path / "cut.mp4").problem


def test_cut_off_matroska(tmp_path: Path) -> None:
    content = make(tmp_path / "a.mkv", 75, sound=noise(3)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    assert "cut off" in check.measure(tmp_path / "cut.mkv").problem


def test_damage_in_the_middle_is_named_with_its_time(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 75, sound=noise(3), picture=lambda k: np.random.default_rng(k).integers(0, 256, (48, 64, 3), np.uint8))
    with av.open(str(path)) as container:
        place = next(p.pos for p in container.demux(video=0) if p.pts is not None and p.pts * p.time_base >= Fraction(8, 5))
    content = bytearray(path.read_bytes())
    content[place : place + 3000] = b"\xff" * 3000
    path.write_bytes(content)
    found = check.measure(path)
    assert "damaged at 1." in found.problem
    assert 30 < found.frames < 50


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30000, 1001), Fraction(24000, 1001)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_constant_rates(tmp_path: Path, rate: Fraction, suffix: str) -> None:
    found = check.measure(make(tmp_path / f"a{suffix}", 45, rate=rate, sound=noise(1.5)))
    assert (found.problem, found.fps, found.variable, found.frames) == ("", rate, False, 45)


def test_variable_rates(tmp_path: Path) -> None:
    times = [Fraction(k, 25) for k in range(40) if k % 7 != 3]
    found = check.measure(make(tmp_path / "dropped.mp4", len(times), times=times, sound=noise(1.6)))
    assert (found.problem, found.variable) == ("", True)
    jitter = [Fraction(k, 25) + Fraction(k % 3 - 1, 1000) if k else Fraction(0) for k in range(40)]
    assert not check.measure(make(tmp_path / "jitter.mp4", 40, times=jitter, sound=noise(1.6))).variable


def test_rotation_and_one_frame(tmp_path: Path) -> None:
    found = check.measure(make(tmp_path / "portrait.mp4", 1, rotation=90, sound=noise(0.1)))
    assert (found.problem, found.width, found.height, found.frames) == ("", 48, 64, 1)
    assert found.duration == Fraction(1, 25)


def test_nothing_raises_whatever_the_bytes(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    draw = np.random.default_rng(0)
    problems = set()
    for count in (1, 2, 4, 8, 16, 32) * 4:
        changed = bytearray(content)
        for at in draw.integers(0, 3000, count):
            changed[at] = draw.integers(0, 256)
        (tmp_path / "a.mp4").write_bytes(changed)
        problems.add(check.measure(tmp_path / "a.mp4").problem)
    assert len(problems) > 3
