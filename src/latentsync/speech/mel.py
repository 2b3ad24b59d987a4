"""Samples -> Whisper's log-mel spectrogram, as a stream: memory does not grow with the length of the sound.

Definitions follow Whisper (Radford et al., arXiv 2212.04356, section 2.2, and its released code): 16 kHz, frames of 400 samples
under a periodic Hann window, one every 160, the file's ends mirrored by half a frame, 80 Slaney mel bands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain

import numpy as np
import torch

from latentsync.errors import InputError

SAMPLE_RATE = 16000  # Hz
N_FFT = 400  # 25 ms
HOP = 160  # 10 ms: 100 frames a second
FLOOR = 1e-10  # power under which everything counts as silence
RANGE = 8.0  # decades kept below the loudest value of the whole file
_HALF = N_FFT // 2
_RIGHT = _HALF - HOP  # Whisper pads the end by half a frame and then drops the last frame: only this much is ever looked at
_STEP = 3000  # frames per FFT call: 30 s, about 5 MB of windowed samples
_LOUDEST = 1e6  # float sound has full scale 1; far beyond it the float32 power would overflow to infinity


def log_mel(samples: Iterable[np.ndarray], mels: int = 80, first: int = 0) -> Iterator[torch.Tensor]:
    """Chunks of 16 kHz mono samples -> chunks (frames, mels) of log10 mel power, float32 on the CPU, from frame `first` on.

    Not yet normalised, because that needs the maximum of the whole file: see `normalise`. A file has `frame_count` frames.
    Samples that are not finite count as 0.

    Raises:
        InputError: a chunk is not one-dimensional.
    """
    drop = first * HOP
    waiting: list[np.ndarray] = []
    have = 0
    for piece in _padded(samples):
        if drop >= piece.size:
            drop -= piece.size
            continue
        waiting.append(piece[drop:])
        have += piece.size - drop
        drop = 0
        if have >= _STEP * HOP + N_FFT:
            signal = np.concatenate(waiting)
            while signal.size >= _STEP * HOP + N_FFT:
                yield _transform(signal[: (_STEP - 1) * HOP + N_FFT], mels)
                signal = signal[_STEP * HOP :]
            waiting, have = [signal], signal.size
    if have >= N_FFT:
        yield _transform(np.concatenate(waiting), mels)


def normalise(log_power: torch.Tensor, peak: float) -> torch.Tensor:
    """Log10 mel power -> what the encoder was trained on, given the maximum `peak` of the whole file; same shape."""
    return (log_power.clamp_min(peak - RANGE) + 4.0) / 4.0


def frame_count(samples: int) -> int:
    """Number of mel frames of a file of that many samples: Whisper's, but at least one, so that the shortest sound has one too."""
    return max(1, samples // HOP)


def _padded(samples: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The clean samples with mirrored ends, as a stream: half a frame at the start, what the last frame needs at the end."""
    chunks = map(_clean, samples)
    head = np.zeros(0, np.float32)
    for chunk in chunks:
        head = np.concatenate([head, chunk])
        if head.size > _HALF:
            break
    if head.size <= _HALF:  # the whole file is shorter than its padding: numpy mirrors it as often as needed
        if head.size:
            yield np.pad(head, (_HALF, _RIGHT if head.size >= HOP else _HALF), mode="reflect")
        return
    yield head[_HALF:0:-1]
    tail = head
    for chunk in chain([head], chunks):
        yield chunk
        tail = chunk if chunk.size > _RIGHT else np.concatenate([tail[-_RIGHT - 1 :], chunk])
        tail = tail[-_RIGHT - 1 :].copy()  # a copy, so that it does not hold the chunk
    yield tail[-2::-1]


def _clean(chunk: np.ndarray) -> np.ndarray:
    if chunk.ndim != 1:
        raise InputError(f"speech samples must come as one-dimensional (mono) chunks, found the shape {chunk.shape}; mix the channels first")
    clean = np.nan_to_num(np.asarray(chunk, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(clean, -_LOUDEST, _LOUDEST, out=clean)


def _transform(signal: np.ndarray, mels: int) -> torch.Tensor:
    """(n,) samples -> (frames, mels) log10 mel power, the frames lying wholly within the signal."""
    frames = torch.from_numpy(np.ascontiguousarray(signal)).unfold(0, N_FFT, HOP)
    power = torch.fft.rfft(frames * torch.hann_window(N_FFT)).abs().square_()
    return (power @ filterbank(mels)).clamp_min_(FLOOR).log10_()


@lru_cache(maxsize=4)
def filterbank(mels: int, n_fft: int = N_FFT, lowest: float = 0.0, highest: float = SAMPLE_RATE / 2) -> torch.Tensor:
    """(n_fft // 2 + 1, mels) float32: triangles on Slaney's mel scale (Auditory Toolbox, 1998) between two frequencies (Hz), each of unit area."""
    edges = mel_to_hz(np.linspace(hz_to_mel(lowest), hz_to_mel(highest), mels + 2))[:, None]
    bins = np.linspace(0.0, SAMPLE_RATE / 2, n_fft // 2 + 1)[None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins - low) / (centre - low)
    falling = (high - bins) / (high - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low)
    return torch.from_numpy(np.ascontiguousarray(triangles.T, np.float32))


# Slaney's scale is linear up to 1 kHz (15 mel) and logarithmic above, a factor of 6.4 in 27 mel.
_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def hz_to_mel(hz: float) -> float:
    """Slaney's mel of a frequency (Hz)."""
    return hz / _LINEAR_HZ_PER_MEL if hz < _BREAK_HZ else float(_BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """The inverse of `hz_to_mel`, for any shape."""
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ_PER_MEL, logarithmic)
