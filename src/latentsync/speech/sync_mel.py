"""Samples -> the mel spectrogram that SyncNet hears, which is not Whisper's: 80 columns a second, wider frames, decibels.

Definitions follow Wav2Lip (Prajwal et al., arXiv 2008.10010, and its released code), from which LatentSync's SyncNet took them: 16 kHz,
pre-emphasis, frames of 800 samples under a periodic Hann window, one every 200, zeros beyond the ends, 80 Slaney mel bands.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch

from latentsync.errors import InputError
from latentsync.speech.mel import SAMPLE_RATE, filterbank

N_FFT = 800  # 50 ms
HOP = 200  # 12.5 ms
MEL_RATE = SAMPLE_RATE // HOP  # columns a second: 80
MELS = 80
LOWEST, HIGHEST = 55.0, 7600.0  # Hz
PRE_EMPHASIS = 0.97
REFERENCE = 20.0  # dB that count as 0
RANGE = 100.0  # dB below which all is silence
BOUND = 4.0  # the spectrogram's values lie in [-4, 4]
_FAINTEST = 10 ** (-RANGE / 20)
_AT_ONCE = 2400  # columns per FFT call: 30 s, about 15 MB of windowed samples


def sync_mel(samples: np.ndarray) -> np.ndarray:
    """Mono samples (n,) in [-1, 1] at 16 kHz -> (80, 1 + n // 200) float32 in [-4, 4], also for sound of a single sample.

    Column c is centred at sample 200 c. Samples that are not finite count as 0.

    Raises:
        InputError: the samples are not one-dimensional.
    """
    if samples.ndim != 1:
        raise InputError(f"speech samples must be one-dimensional (mono), found the shape {samples.shape}; mix the channels first")
    # float64, because the faintest of the 100 dB would drown in the rounding of the loudest.
    signal = torch.from_numpy(np.pad(np.nan_to_num(samples.astype(np.float64), posinf=0.0, neginf=0.0), N_FFT // 2))
    signal[N_FFT // 2 + 1 : N_FFT // 2 + samples.size] -= PRE_EMPHASIS * signal[N_FFT // 2 : N_FFT // 2 + samples.size - 1].clone()
    frames = signal.unfold(0, N_FFT, HOP)
    window = torch.hann_window(N_FFT, dtype=torch.float64)
    bands = filterbank(MELS, N_FFT, LOWEST, HIGHEST).double()
    parts = [torch.fft.rfft(part * window).abs() @ bands for part in frames.split(_AT_ONCE)]
    decibels = 20 * torch.cat(parts).clamp_min(_FAINTEST).log10() - REFERENCE
    normalised = (2 * BOUND * (decibels + RANGE) / RANGE - BOUND).clamp(-BOUND, BOUND)
    return np.ascontiguousarray(normalised.T.float().numpy())


def mel_start(frame: int, fps: Fraction | int = 25) -> int:
    """First mel column of a window that starts at that video frame: 80 frame / fps, rounded down, exactly."""
    return int(MEL_RATE * frame / Fraction(fps))
