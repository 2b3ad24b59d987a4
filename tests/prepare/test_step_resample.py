"""25 frames and 16000 samples a second, each at its time; nothing is written where they are there already."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import InputError, UsageError
from latentsync.media.clip import probe, read_audio, read_frames
from latentsync.prepare.steps import check, resample
from latentsync.prepare.steps.resample import Resampled
from tests.prepare.footage import NAMES, make, moving, noise
from tests.train.clipmaker import number, numbered


def resampled(path: Path, target: Path) -> Resampled:
    return resample.measure(path, check.measure(path), target)


def seen(path: Path) -> list[int]:
    """Numbers drawn in all frames."""
    times = [Fraction(k, 25) for k in range(check.measure(path).frames)]
    return [number(f.transpose(2, 0, 1)) for f in read_frames(path, times)]


def lag(a: np.ndarray, b: np.ndarray, reach: int = 40) -> int:
    """Samples by which `b` comes later."""
    n = min(len(a), len(b))
    return max(range(-reach, reach + 1), key=lambda s: float(a[reach : n - reach] @ b[reach + s : n - reach + s]))


def test_what_fits_is_left_alone(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 25, sound=noise(1))
    assert resampled(path, tmp_path / "b.mp4") == Resampled(path, False, "25 fps and 16000 Hz already")
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30000, 1001), Fraction(50), Fraction(15)])
def test_each_frame_is_the_nearest_in_time(tmp_path: Path, rate: Fraction) -> None:
    count = int(3 * rate)
    path = make(tmp_path / "a.mp4", count, picture=numbered, rate=rate, sound=noise(count / float(rate)))
    made = resampled(path, tmp_path / "b.mp4")
    assert (made.changed, made.path) == (True, tmp_path / "b.mp4")
    assert f"{float(rate):g} fps" in made.why
    found = check.measure(made.path)
    assert (found.problem, found.fps, found.variable, found.audio_rate, found.audio_channels) == ("", 25, False, 16000, 1)
    assert found.frames == -(-count * 25 // rate)
    numbers = seen(made.path)
    assert all(abs(n / rate - Fraction(k, 25)) <= 1 / rate / 2 or n == count - 1 for k, n in enumerate(numbers))
    assert lag(read_audio(path), read_audio(made.path)) == 0


def test_uneven_frames(tmp_path: Path) -> None:
    shown = [k for k in range(60) if k % 7 not in (3, 4)]
    path = make(tmp_path / "a.mp4", len(shown), picture=lambda i: numbered(shown[i]), times=[Fraction(k, 25) for k in shown], sound=noise(2.4))
    made = resampled(path, tmp_path / "b.mkv")
    assert "uneven" in made.why
    numbers = seen(made.path)
    assert len(numbers) == shown[-1] + 1
    assert all(abs(n - k) <= 1 and (k not in shown or n == k) for k, n in enumerate(numbers))


def test_only_the_sound_is_wrong(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 50, picture=numbered, sound=noise(2, 44100), sound_rate=44100)
    made = resampled(path, tmp_path / "b.mp4")
    assert made.why == "sound of 44100 Hz"
    assert seen(made.path) == list(range(50))
    assert lag(read_audio(path), read_audio(made.path)) == 0
    assert np.abs(read_audio(path) - np.pad(read_audio(made.path), (0, 16000))[: len(read_audio(path))])[:31000].max() < 1e-3


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv"])
def test_pictures_are_copied_where_only_the_sound_is_wrong(name: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 60, picture=numbered, sound=noise(2.4, 48000), sound_rate=48000)
    made = resampled(path, tmp_path / name).path
    times = [Fraction(k, 25) for k in range(60)]
    assert np.array_equal(read_frames(path, times), read_frames(made, times))
    found = check.measure(made)
    assert (found.problem, found.fps, found.frames, found.variable, found.audio_rate) == ("", 25, 60, False, 16000)
    assert abs(found.audio_duration - Fraction(12, 5)) < Fraction(1, 1000)


def test_pictures_that_cannot_be_copied_are_encoded(tmp_path: Path) -> None:
    turned = make(tmp_path / "a.mp4", 10, rotation=90, aspect=Fraction(4, 3), sound=noise(0.4, 48000), sound_rate=48000)
    made = resampled(turned, tmp_path / "b.mp4").path
    assert (probe(made).width, probe(made).height, probe(made).pixel_aspect) == (48, 84, 1)
    tilted = make(tmp_path / "c.mp4", 10, rotation=90, sound=noise(0.4, 48000), sound_rate=48000)
    made = resampled(tilted, tmp_path / "d.mp4").path
    assert (probe(made).width, probe(made).height) == (48, 64)
    assert np.abs(read_frames(tilted, [Fraction(0)]).astype(int) - read_frames(made, [Fraction(0)])).mean() < 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


def test_pictures_hardly_change(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 20, rate=50, sound=noise(0.4, 48000), sound_rate=48000, crf=20)
    made = resampled(path, tmp_path / "b.mp4")
    a, b = (read_frames(p, [Fraction(k, 25) for k in range(10)]).astype(float) for p in (path, made.path))
    assert 10 * np.log10(255**2 / np.mean((a - b) ** 2)) > 42


def test_upright_with_square_pixels(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 6, rate=30, rotation=90, aspect=Fraction(4, 3), sound=noise(0.2))
    before = probe(path)
    assert (before.width, before.height, before.pixel_aspect) == (48, 64, Fraction(3, 4))
    made = resampled(path, tmp_path / "b.mp4")
    after = probe(made.path)
    assert (after.width, after.height, after.pixel_aspect) == (48, 84, 1)
    a, b = (read_frames(p, [Fraction(0)])[0] for p in (path, made.path))
    assert np.abs(a[::8, 10].astype(int) - b[::10, 10][: len(a[::8])].astype(int)).mean() < 30


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str, tmp_path: Path) -> None:
    path = make(tmp_path / name, 6, rate=30, sound=noise(0.2))
    assert resampled(path, tmp_path / f"to {name}").path.name == f"to {name}"


def test_what_fails_leaves_nothing_and_twice_is_the_same(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 40, rate=30, sound=noise(1.3), picture=lambda k: np.random.default_rng(k).integers(0, 256, (48, 64, 3), np.uint8))
    checked = check.measure(path)
    with pytest.raises(UsageError, match="end in"):
        resample.measure(path, checked, tmp_path / "b.avi")
    first, second = (resample.measure(path, checked, tmp_path / name).path.read_bytes() for name in ("b.mp4", "c.mp4"))
    assert first == second
    content = path.read_bytes()
    place = content.index(b"mdat") + 30000
    path.write_bytes(content[:place] + b"\xff" * 20000 + content[place + 20000 :])
    with pytest.raises(InputError, match="damaged"):
        resample.measure(path, checked, tmp_path / "d.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]


def test_one_frame(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", 1, rate=30, sound=noise(0.1))
    assert check.measure(resampled(path, tmp_path / "b.mp4").path).frames == 1
    assert moving(0).shape == (48, 64, 3)
