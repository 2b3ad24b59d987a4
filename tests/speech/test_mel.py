"""The mel stream against a plain float64 computation, against chunking, and against the published numbers."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from latentsync.errors import InputError
from latentsync.speech.mel import filterbank, frame_count, log_mel, normalise


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n).astype(np.float32)


def whole(samples: np.ndarray, mels: int = 80, first: int = 0) -> np.ndarray:
    chunks = list(log_mel([samples], mels, first))
    return torch.cat(chunks).numpy() if chunks else np.zeros((0, mels), np.float32)


def plain(samples: np.ndarray) -> np.ndarray:
    """The definition, all at once in float64: mirrored ends, Hann, |DFT|^2, mel, log10; the last of n // 160 + 1 frames is dropped."""
    padded = np.pad(samples.astype(np.float64), 200, mode="reflect")
    frames = np.stack([padded[i * 160 : i * 160 + 400] for i in range(frame_count(samples.size))])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    return np.log10(np.maximum(power @ filterbank(80).numpy().astype(np.float64), 1e-10))


@pytest.mark.parametrize("n", [1, 2, 159, 160, 161, 199, 200, 201, 202, 319, 320, 321, 359, 360, 361, 4000, 479999, 480000, 480401, 1000003])
def test_equals_the_plain_definition_at_every_length(n: int) -> None:
    x = noise(n)
    ours = whole(x)
    assert ours.shape == (max(1, n // 160), 80)
    np.testing.assert_allclose(ours, plain(x), atol=2e-4)


@pytest.mark.parametrize("size", [1, 7, 160, 201, 5000])
def test_chunking_changes_nothing(size: int) -> None:
    x = noise(20011)
    chunks = [x[i : i + size] for i in range(0, x.size, size)]
    with_empty = [np.zeros(0, np.float32), *chunks, np.zeros(0, np.float32)]
    np.testing.assert_allclose(torch.cat(list(log_mel(with_empty))).numpy(), whole(x), atol=1e-5)


@pytest.mark.parametrize("first", [0, 1, 2, 3001, 6000, 6249, 6250])
def test_starting_later_is_a_slice(first: int) -> None:
    x = noise(1000003)
    np.testing.assert_allclose(whole(x, first=first), whole(x)[first:], atol=1e-5)


def test_no_sample_gives_no_frame() -> None:
    assert list(log_mel([])) == []
    assert list(log_mel([np.zeros(0, np.float32)])) == []


def test_a_tone_sounds_in_its_band() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    loudest = whole(tone)[5:-5].argmax(axis=1)
    centres = filterbank(80).numpy().argmax(axis=0) * 40  # Hz of the bin each band likes best
    assert np.all(np.abs(centres[loudest] - 1000) <= 40)


@pytest.mark.parametrize("mels", [80, 128])
def test_filterbank_is_slaneys(mels: int) -> None:
    theirs = mel_filter_bank(201, mels, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(filterbank(mels).numpy(), theirs, atol=1e-7)


def test_silence_is_finite_and_flat() -> None:
    silence = torch.from_numpy(whole(np.zeros(3200, np.float32)))
    assert torch.all(silence == -10)
    assert torch.all(normalise(silence, float(silence.max())) == -1.5)


def test_normalise_keeps_eight_decades_below_the_peak() -> None:
    x = torch.tensor([2.0, -5.0, -6.0, -7.0])
    torch.testing.assert_close(normalise(x, 2.0), torch.tensor([1.5, -0.25, -0.5, -0.5]))


def test_samples_that_are_not_finite_count_as_zero() -> None:
    x = noise(8000)
    bad, zeroed = x.copy(), x.copy()
    bad[[100, 3000, 7999]] = [np.nan, np.inf, -np.inf]
    zeroed[[100, 3000, 7999]] = 0
    np.testing.assert_array_equal(whole(bad), whole(zeroed))
    assert np.isnan(bad[100]), "the caller's samples must not be changed"
    assert np.isfinite(whole(np.full(3200, np.finfo(np.float32).max, np.float32))).all()


def test_two_channels_are_refused() -> None:
    with pytest.raises(InputError, match=r"mono.*\(2, 800\)"):
        list(log_mel([np.zeros((2, 800), np.float32)]))


def test_golden_mels(whisper_index: dict[str, Any], whisper_numbers: dict[str, np.ndarray], golden_sounds: dict[str, np.ndarray]) -> None:
    for name, samples in golden_sounds.items():
        log_power = torch.from_numpy(whole(samples, whisper_index["dims"]["n_mels"]))
        mel = normalise(log_power, float(log_power.max())).T.numpy()
        assert list(mel.shape) == whisper_index["wavs"][name]["mel_shape"], name
        stride = int(whisper_numbers[f"{name}.mel_stride"])
        np.testing.assert_allclose(mel[:, ::stride], whisper_numbers[f"{name}.mel"], atol=1e-4, err_msg=name)
