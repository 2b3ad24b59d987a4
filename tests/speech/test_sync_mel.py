"""SyncNet's mel against its definition, against known sounds, and against the published numbers."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import InputError
from latentsync.speech.mel import filterbank
from latentsync.speech.sync_mel import MEL_RATE, mel_start, sync_mel


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n).astype(np.float32)


def plain(samples: np.ndarray) -> np.ndarray:
    """The definition, column by column."""
    x = samples.astype(np.float64)
    x = np.pad(np.append(x[:1], x[1:] - 0.97 * x[:-1]), 400)
    bands = filterbank(80, 800, 55.0, 7600.0).numpy().astype(np.float64)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 800)
    columns = []
    for c in range(1 + samples.size // 200):
        spectrum = np.abs(np.fft.rfft(x[200 * c : 200 * c + 800] * hann))
        decibels = 20 * np.log10(np.maximum(spectrum @ bands, 1e-5)) - 20
        columns.append(np.clip(8 * (decibels + 100) / 100 - 4, -4, 4))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("n", [0, 1, 2, 199, 200, 201, 400, 799, 800, 16000, 480000, 480200, 500001])
def test_equals_the_plain_definition_at_every_length(n: int) -> None:
    x = noise(n)
    mel = sync_mel(x)
    assert mel.shape == (80, 1 + n // 200)
    assert mel.dtype == np.float32
    np.testing.assert_allclose(mel, plain(x), atol=1e-5)


def test_the_samples_stay_as_they_were() -> None:
    x = noise(4000).astype(np.float64)
    before = x.copy()
    sync_mel(x)
    np.testing.assert_array_equal(x, before)


def test_silence_is_the_floor_and_nothing_leaves_the_bounds() -> None:
    assert (sync_mel(np.zeros(4000, np.float32)) == -4).all()
    loud = sync_mel(noise(4000) * 1e6)
    assert loud.max() == 4
    assert loud.min() >= -4


def test_ten_times_the_sound_is_twenty_decibels_more() -> None:
    quiet, loud = sync_mel(noise(8000) * 0.01), sync_mel(noise(8000) * 0.1)
    heard = quiet > -4
    assert heard.mean() > 0.9
    np.testing.assert_allclose((loud - quiet)[heard], 8 * 20 / 100, atol=1e-4)


@pytest.mark.parametrize("hz", [200, 1000, 6000])
def test_a_tone_sounds_in_its_band(hz: int) -> None:
    tone = np.sin(2 * np.pi * hz * np.arange(16000) / 16000).astype(np.float32)
    centres = filterbank(80, 800, 55.0, 7600.0).numpy().argmax(axis=0) * 20  # Hz of the bin that each band likes best
    assert abs(centres[sync_mel(tone)[:, 40].argmax()] - hz) <= 0.04 * hz + 20


def test_a_click_is_heard_where_it_stands() -> None:
    x = np.zeros(16000, np.float32)
    x[200 * 33] = 1
    assert set(np.flatnonzero(sync_mel(x).max(axis=0) > -4)) == {32, 33, 34}  # the window is zero 400 samples away, and nearly so before


def test_what_is_not_finite_counts_as_silence() -> None:
    x = noise(4000)
    broken = x.copy()
    broken[[5, 900, 3999]] = np.nan, np.inf, -np.inf
    x[[5, 900, 3999]] = 0
    np.testing.assert_array_equal(sync_mel(broken), sync_mel(x))


def test_stereo_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 800\); mix the channels"):
        sync_mel(np.zeros((2, 800), np.float32))


def test_windows_start_where_the_video_does() -> None:
    assert [mel_start(i) for i in (0, 1, 4, 5, 25)] == [0, 3, 12, 16, 80]
    rate = Fraction(30000, 1001)
    for frame in (0, 1, 29, 30, 1001 * 30000, 10**9 + 7):
        column = mel_start(frame, rate)
        assert Fraction(column, MEL_RATE) <= frame / rate < Fraction(column + 1, MEL_RATE)


def test_mel_is_the_published_one(golden: Path, clips: Path, wav: Callable[[Path], np.ndarray]) -> None:
    truth = np.load(golden / "d_mel.npz")
    cases = json.loads((golden / "d_mel_index.json").read_text())
    assert cases
    for name, case in cases.items():
        beside, demo = golden / case["path"], clips / "audio" / f"LatentSync__{Path(case['path']).name}"
        mel = sync_mel(wav(beside if beside.is_file() else demo))
        assert list(mel.shape) == case["mel_shape"]
        np.testing.assert_allclose(mel[:, :: int(truth[f"{name}.stride"])], truth[f"{name}.mel"], atol=1e-5, err_msg=name)
        assert [mel_start(i) for i in range(12)] == case["start_idx_first12"]
        if f"{name}.window_start_3" in truth:
            first = mel_start(3)
            np.testing.assert_allclose(mel[:, first : first + case["mel_window_length"]], truth[f"{name}.window_start_3"], atol=1e-5)


def test_bands_are_the_published_ones(golden: Path) -> None:
    np.testing.assert_allclose(filterbank(80, 800, 55.0, 7600.0).numpy().T, np.load(golden / "d_mel_basis.npz")["basis"], atol=1e-7)
