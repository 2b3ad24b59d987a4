"""Speech and silence: spans of drawn sounds, two detectors against true phones, and mouths that move when nobody speaks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import LatentSyncError, UsageError, WeightsError
from latentsync.media.clip import read_audio
from latentsync.metrics import silence


def sound(pattern: str, level: float = 0.1, noise: float = 0.0, seconds: float = 0.5) -> np.ndarray:
    """Half a second for each letter: s speech (noise that swells as syllables do), . silence."""
    rng = np.random.default_rng(0)
    n = round(seconds * 16000)
    swell = 0.3 + 0.7 * np.abs(np.sin(np.arange(n) * 2 * np.pi * 2 / 16000))
    parts = [rng.normal(0, level, n) * swell if letter == "s" else np.zeros(n) for letter in pattern]
    whole = np.concatenate(parts) if parts else np.zeros(0)
    return (whole + rng.normal(0, 1, len(whole)) * noise).astype(np.float32)


def covered(spans: silence.Spans, seconds: float) -> np.ndarray:
    t = np.arange(0, seconds, 0.01)
    return np.any([(t >= a) & (t < b) for a, b in spans], axis=0) if spans else np.zeros(len(t), bool)


# --- loudness


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize("level", [0.02, 0.2])
def test_speech_is_found_by_loudness(level: float, noise: float):
    found = silence.speech(sound("..ss.s...", level, min(noise, level / 10)), "energy")
    assert found.method == "energy"
    assert found.seconds == pytest.approx(4.5)
    assert len(found.spans) == 2
    np.testing.assert_allclose(found.spans, [(1.0, 2.0), (2.5, 3.0)], atol=0.05)


def test_what_has_no_pauses_is_speech_as_a_whole_or_none():
    steady = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    assert silence.speech(steady, "energy").spans == ((0.0, 1.0),)
    assert silence.speech(steady * 1e-3, "energy").spans == ()  # -80 dB
    assert silence.speech(np.zeros(16000), "energy").spans == ()
    assert silence.speech(np.zeros(0), "energy") == ((), "energy", 0.0)
    broken = np.full(16000, np.nan)
    assert silence.speech(broken, "energy").spans == ()


def test_levels_are_decibels_of_full_scale():
    assert silence.loudness(np.ones(1600)) == pytest.approx(0, abs=1e-9)
    assert silence.loudness(np.full(1600, 0.1)) == pytest.approx(-20)
    assert len(silence.loudness(np.ones(1601))) == 11


def test_short_pauses_join_and_short_sounds_go():
    values = [0, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0]  # 50 ms each
    assert silence.spans(values, 0.05, 0.5, 0.5, 0.8) == (pytest.approx((0.05, 0.45)),)
    assert silence.spans([0.6, 0.4, 0.4, 0.4, 0.3, 0.4], 0.1, 0.5, 0.35, 0.55) == (pytest.approx((0.0, 0.4)),)  # goes on above the lower bound
    assert silence.spans([1, 1, 1], 0.1, 0.5, 0.35, 0.25) == (pytest.approx((0.0, 0.25)),)  # not beyond the sound


# --- Silero


@pytest.fixture
def silero_here(public_weights: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("LATENTSYNC_WEIGHTS_PATH", str(public_weights))
    silence.load_silero.cache_clear()
    yield
    silence.load_silero.cache_clear()


@pytest.mark.parametrize("method", ["silero", "energy"])
def test_true_phones_are_found(method: silence.Method, corpus: Path, request: pytest.FixtureRequest):
    if method == "silero":
        request.getfixturevalue("silero_here")
    for seed in (2080, 2085):
        samples = read_audio(corpus / f"clip_{seed:06d}.mp4")
        phones = json.loads((corpus / f"clip_{seed:06d}.json").read_text())["phones"]
        quiet = np.concatenate([samples, np.zeros(32000, np.float32)])
        found = silence.speech(quiet, method)
        assert found.method == method
        length = len(quiet) / 16000
        said = covered(tuple((a, b) for a, b, phone in phones if phone != "_"), length)
        heard = covered(found.spans, length)
        assert heard[said].mean() > 0.93
        assert heard[-150:].mean() == 0
        assert (heard == said).mean() > 0.85


def test_silero_lets_noise_pass_that_is_as_loud_as_speech(silero_here: None):
    noise = np.random.default_rng(0).normal(0, 0.05, 32000).astype(np.float32)
    assert silence.speech(noise, "silero").spans == ()
    assert silence.speech(noise, "energy").spans == ((0.0, 2.0),)
    assert silence.speech(noise).method == "silero"


def test_without_its_file_the_other_way_is_taken_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("LATENTSYNC_WEIGHTS_PATH", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert silence.speech(sound("s."), home=tmp_path).method == "energy"
    pytest.importorskip("onnxruntime")
    with pytest.raises(WeightsError, match=r"Silero VAD .*silero_vad\.onnx \(2\.3 MB\).*download evaluation.*or find speech by loudness"):
        silence.speech(sound("s."), "silero", home=tmp_path)
    (tmp_path / "silero_vad.onnx").write_bytes(b"x" * 2_327_524)
    with pytest.raises(WeightsError, match=r"is not the published silero_vad\.onnx"):
        silence.speech(sound("s."), "silero", home=tmp_path)
    with pytest.raises(UsageError, match="not by 'webrtc'"):
        silence.speech(sound("s."), "webrtc")


def test_without_its_package_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    silence.load_silero.cache_clear()
    with pytest.raises(LatentSyncError, match=r"pip install 'latentsync\[evaluate\]'"):
        silence.speech(sound("s."), "silero", home=tmp_path)
    assert silence.speech(sound("s."), home=tmp_path).method == "energy"


# --- movement


def test_movement_is_eye_distances_a_second_in_and_out_of_speech():
    """Two seconds: in the first the lips move by 0.02 a frame, in the second by 0.001."""
    curve = np.cumsum(np.where(np.arange(50) < 26, 0.02, 0.001) * (-1) ** np.arange(50))
    found = silence.stillness(curve, ((0.0, 1.0),))
    assert found.speaking == pytest.approx(0.5, rel=0.02)
    assert found.silent == pytest.approx(0.025, rel=0.02)
    assert found.relative == pytest.approx(0.05, rel=0.05)
    assert found.seconds == pytest.approx(0.8, abs=0.05)  # 0.2 s beside the speech left out


def test_too_little_silence_or_speech_is_said():
    curve = np.random.default_rng(0).uniform(0, 0.1, 50)
    nothing_said = silence.stillness(curve, ())
    assert np.isnan(nothing_said.relative)
    assert np.isnan(nothing_said.speaking)
    assert nothing_said.silent > 0
    all_said = silence.stillness(curve, ((0.0, 2.0),))
    assert np.isnan(all_said.relative)
    assert np.isnan(all_said.silent)
    assert np.isnan(silence.stillness([], ()).silent)
    unseen = silence.stillness(np.full(50, np.nan), ())
    assert np.isnan(unseen.silent)


def test_a_mouth_that_moves_on_in_silence_has_more(corpus: Path):
    """The true opening of a speaker who stops after four seconds, and mouths that babble on, more and more."""
    with np.load(corpus / "clip_002080.npz") as truth:
        gap = truth["lip_gap"].astype(np.float64)
    talk = np.concatenate([gap[:100], np.full(50, gap[99])])
    found = [silence.stillness(talk + dose * np.concatenate([np.zeros(100), gap[:50] - gap[99]]), ((0.3, 4.0),)) for dose in (0.0, 0.3, 1.0)]
    assert found[0].relative == pytest.approx(0, abs=1e-5)
    assert found[0].relative < found[1].relative < found[2].relative
    assert found[2].relative > 0.4
