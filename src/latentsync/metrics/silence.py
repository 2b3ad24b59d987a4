"""Does the mouth rest while nobody speaks? Who speaks when, from the sound, and how much the lips move then and otherwise."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from latentsync.errors import LatentSyncError, UsageError

Method = Literal["auto", "silero", "energy"]
Spans = tuple[tuple[float, float], ...]

RATE = 16000  # Hz
_PAUSE = 0.2  # seconds: shorter pauses belong to the speech around them
_SHORTEST = 0.1  # seconds: shorter sounds are no speech
MARGIN = 0.2  # seconds around speech that count neither way: lips open before the first sound and close after the last
LEAST = 0.4  # seconds of silence, and of speech, from which their movement is spoken of

# Silero VAD (version 5 and later): 512 samples at a time, with the last 64 before them, and a state that goes along
_STEP, _CONTEXT = 512, 64
_BEGINS, _ENDS = 0.5, 0.35  # probability of speech, as its authors advise

# The plain way, by loudness
_HOP = 160  # samples: 10 ms
_WINDOW = 480
_FAINT = -55.0  # dB of full scale: what is no louder is silence whatever else there is
_BELOW = 30.0  # dB below the loud parts: nothing quieter is speech
_ABOVE = 8.0  # dB above the quiet parts: what lies under that is the noise of the room
_STEADY = 10.0  # dB from the quiet parts to the loud: less, and the sound has no pauses to tell


class Speech(NamedTuple):
    """When somebody speaks."""

    spans: Spans  # (start, end) in seconds
    method: str  # silero | energy
    seconds: float  # length of the sound


class Stillness(NamedTuple):
    """How much the lips move: mean size of the change of their opening, in distances between the eyes a second."""

    relative: float  # in silence over in speech: 0 rests; NaN without enough of both
    silent: float  # NaN without enough silence
    speaking: float
    seconds: float  # of silence that were judged


# Speech


def speech(samples: np.ndarray, method: Method = "auto", home: str | Path | None = None) -> Speech:
    """Mono samples (m,) in [-1, 1] at 16 kHz -> who speaks when.

    "auto" takes Silero VAD where its file and the package onnxruntime are here, and else the plain way by loudness, which takes any sound for
    speech; the result says which. "silero" raises LatentSyncError or WeightsError that names what to install or fetch.
    """
    if method not in ("auto", "silero", "energy"):
        raise UsageError(f"speech is found by silero, energy or auto, not by '{method}'")
    samples = np.nan_to_num(np.asarray(samples, np.float32), posinf=0.0, neginf=0.0)
    length = len(samples) / RATE
    if method != "energy":
        try:
            return Speech(spans(silero(load_silero(home), samples), _STEP / RATE, _BEGINS, _ENDS, length), "silero", length)
        except LatentSyncError:
            if method == "silero":
                raise
    loud = loudness(samples)
    return Speech(spans(loud, _HOP / RATE, threshold(loud), threshold(loud) - 3, length), "energy", length)


def spans(values: npt.ArrayLike, step: float, begins: float, ends: float, length: float) -> Spans:
    """A value every `step` seconds -> spans in which it reaches `begins` and does not fall under `ends`, without short pauses and short sounds."""
    found: list[list[float]] = []
    speaking = False
    for i, value in enumerate(np.asarray(values, np.float64).tolist()):
        if value >= (ends if speaking else begins):
            start = i * step
            if not speaking and (not found or start - found[-1][1] >= _PAUSE):
                found.append([start, start])
            found[-1][1] = min(start + step, length)
            speaking = True
        else:
            speaking = False
    return tuple((start, end) for start, end in found if end - start >= _SHORTEST)


@lru_cache(maxsize=1)
def load_silero(home: str | Path | None = None) -> Any:
    """Silero VAD in an ONNX session, kept for the next call. LatentSyncError without onnxruntime, WeightsError without the file."""
    from latentsync import weights

    try:
        import onnxruntime
    except ImportError as e:
        raise LatentSyncError(
            f"Silero VAD needs the package onnxruntime, which cannot be imported ({e}); `pip install 'latentsync[evaluate]'` mends it, or find "
            "speech by loudness (energy)"
        ) from e
    file = weights.judge_file("silero_vad", home, otherwise=", or find speech by loudness (energy)", checked=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # it looks at 32 ms at a time: threads only cost
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def silero(session: Any, samples: np.ndarray) -> np.ndarray:
    """Mono samples (m,) at 16 kHz -> probability of speech for every 512 of them, float32."""
    count = -(-len(samples) // _STEP)
    padded = np.zeros(_CONTEXT + count * _STEP, np.float32)
    padded[_CONTEXT : _CONTEXT + len(samples)] = samples
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(RATE, np.int64)
    found = np.zeros(count, np.float32)
    for i in range(count):
        piece = padded[None, i * _STEP : (i + 1) * _STEP + _CONTEXT]
        said, state = session.run(None, {"input": piece, "state": state, "sr": rate})
        found[i] = said[0, 0]
    return found


def loudness(samples: np.ndarray) -> np.ndarray:
    """Mono samples (m,) -> level of each 10 ms, over 30 ms around, in dB of full scale (a full square wave: 0), -120 at least."""
    if not len(samples):
        return np.zeros(0)
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    middles = np.arange(_HOP // 2, len(samples) + _HOP // 2, _HOP)
    low, high = np.clip(middles - _WINDOW // 2, 0, len(samples)), np.clip(middles + _WINDOW // 2, 1, len(samples))
    return np.asarray(10 * np.log10(np.maximum((energy[high] - energy[low]) / np.maximum(high - low, 1), 1e-12)))


def threshold(loud: np.ndarray) -> float:
    """Levels in dB -> the level from which a sound counts as speech. A sound without pauses is speech as a whole, or, if faint, none."""
    if not len(loud):
        return _FAINT
    quiet, full = np.percentile(loud, (5, 95))
    if full - quiet < _STEADY:
        return max(_FAINT, float(quiet) - _STEADY)
    return float(max(_FAINT, full - _BELOW, min(quiet + _ABOVE, full - _STEADY)))


# Movement


def stillness(openings: npt.ArrayLike, speaking: Spans, fps: float = 25.0) -> Stillness:
    """Opening of the lips frame by frame (`lips.opening`; NaN: not known) and when somebody speaks -> how much the lips move in silence.

    The change from one frame to the next lies at the time between them. What is nearer than MARGIN to speech counts as neither. Landmarks tremble
    by themselves: of a resting face `silent` has some 0.03 to 0.1, not 0.
    """
    curve = np.asarray(openings, np.float64)
    moves = np.abs(np.diff(curve)) * fps
    times = (np.arange(len(moves)) + 0.5) / fps
    inside, near = np.zeros(len(moves), bool), np.zeros(len(moves), bool)
    for start, end in speaking:
        inside |= (times >= start) & (times < end)
        near |= (times >= start - MARGIN) & (times < end + MARGIN)
    known = np.isfinite(moves)
    still, talk = moves[known & ~near], moves[known & inside]
    silent = float(still.mean()) if len(still) >= LEAST * fps else float("nan")
    spoken = float(talk.mean()) if len(talk) >= LEAST * fps else float("nan")
    relative = silent / spoken if spoken > 0 else float("nan")
    return Stillness(relative, silent, spoken, len(still) / fps)
