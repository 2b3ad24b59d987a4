"""Speech with exact phone times, from espeak-ng (a library called in process) and flite (a program).

espeak-ng keeps state between utterances, so what it says depends on what it said before: `speak` lets each clip's speaker live in a process of
its own, and a clip's sound depends on its seed alone.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Callable
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.signal import resample_poly
from tools.synthheads.text import sentence
from tools.synthheads.visemes import Phone

from latentsync.errors import LatentSyncError

SPEECH_RATE = 16000  # Hz
LIBRARY = "libespeak-ng.so.1"
ESPEAK_VOICES = ["en-us", "gmw/en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan"]
ESPEAK_VARIANTS = [
    "m1",
    "m2",
    "m3",
    "m4",
    "m5",
    "m6",
    "m7",
    "m8",
    "f1",
    "f2",
    "f3",
    "f4",
    "f5",
    "Andy",
    "Annie",
    "Alicia",
    "Denis",
    "Diogo",
    "Gene",
    "Hugo",
    "Lee",
    "Marco",
    "Mario",
    "Michael",
    "Mike",
    "adam",
    "anika",
    "antonio",
    "aunty",
    "belinda",
    "benjamin",
    "david",
    "ed",
    "edward",
    "iven",
    "john",
    "linda",
    "marcelo",
    "max",
    "miguel",
    "norbert",
    "pablo",
    "paul",
    "quincy",
    "rob",
    "robert",
    "sandro",
    "shelby",
    "steph",
    "travis",
    "victor",
    "zac",
]
FLITE_VOICES = {"slt": 190, "rms": 105, "awb": 125}  # usual pitch, Hz; kal16 is left out: the times it prints end 0.13 s early
# flite's phones in IPA
ARPA = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "axr": "ɚ", "ay": "aɪ", "b": "b", "ch": "tʃ",
    "d": "d", "dh": "ð", "dx": "ɾ", "eh": "ɛ", "el": "əl", "em": "m", "en": "ən", "er": "ɚ", "ey": "eɪ", "f": "f",
    "g": "ɡ", "hh": "h", "hv": "h", "ih": "ɪ", "iy": "i", "jh": "dʒ", "k": "k", "l": "l", "m": "m", "n": "n",
    "nx": "n", "ng": "ŋ", "ow": "oʊ", "oy": "ɔɪ", "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ", "t": "t", "th": "θ",
    "uh": "ʊ", "uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ", "pau": "_", "h#": "_", "brth": "_",
}  # fmt: skip


class Speech(NamedTuple):
    """One speaker for as long as the clip lasts."""

    samples: np.ndarray  # (n,) float32 at SPEECH_RATE, -1..1
    phones: list[Phone]
    info: dict[str, Any]  # engine, voice, its settings, the text


def check_programs() -> None:
    """LatentSyncError naming the Debian packages to install where a program or library that speaks is missing."""
    missing = []
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        missing.append("espeak-ng")
    if shutil.which("flite") is None:
        missing.append("flite")
    if missing:
        raise LatentSyncError(f"no speech can be made without {' and '.join(missing)}; run: apt-get install {' '.join(missing)}")


# espeak-ng, as declared in its speak_lib.h


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_SYNCHRONOUS, _PHONEME_EVENTS, _IPA = 2, 1, 2
_LIST_END, _PHONEME = 0, 7
_SPEED, _PITCH, _RANGE = 1, 3, 4
_UTF8 = 1


class Espeak:
    """The library; one for each process, since it is one speaker with a memory."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(LIBRARY)
        self._rate: int = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS | _IPA)
        if self._rate <= 0:
            raise LatentSyncError("espeak-ng does not find its voices; run: apt-get install espeak-ng-data")
        self._callback = _CALLBACK(self._heard)
        self._lib.espeak_SetSynthCallback(self._callback)
        self._blocks: list[np.ndarray] = []
        self._begun: list[tuple[int, str]] = []  # sample and symbol of each phone

    def _heard(self, samples: Any, n: int, events: Any) -> int:
        if samples and n > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (n,)).copy())
        i = 0
        while events[i].type != _LIST_END:
            if events[i].type == _PHONEME:
                self._begun.append((events[i].sample, events[i].id.string.decode("utf-8", "ignore")))
            i += 1
        return 0

    def say(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> tuple[np.ndarray, list[Phone]]:
        """Samples at SPEECH_RATE and their phones. `rate` in words a minute, the others 0..100."""
        self._blocks, self._begun = [], []
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise LatentSyncError(f"espeak-ng has no voice {voice}; this tool was tested with espeak-ng 1.51")
        for parameter, value in ((_SPEED, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        self._lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        self._lib.espeak_Synchronize()
        samples = np.concatenate(self._blocks).astype(np.float32) / 32768
        ends = [sample for sample, _ in self._begun[1:]] + [len(samples)]
        phones = [(start / self._rate, end / self._rate, name) for (start, name), end in zip(self._begun, ends, strict=True)]
        return resample_poly(samples, SPEECH_RATE, self._rate).astype(np.float32), phones


def flite_phones(printed: str) -> list[Phone]:
    """What `flite -psdur` prints, "name:end name:end ...", as phones. LatentSyncError where the text was more than one utterance."""
    phones: list[Phone] = []
    t = 0.0
    for token in printed.split():
        name, _, stamp = token.rpartition(":")
        end = float(stamp)
        if end < t:  # each utterance starts its clock anew
            raise LatentSyncError("flite took the text for more than one utterance: leave out full stops")
        phones.append((t, end, ARPA.get(name, "ə")))
        t = end
    return phones


def flite(text: str, voice: str, stretch: float, pitch: float) -> tuple[np.ndarray, list[Phone]]:
    """Samples at SPEECH_RATE and their phones. `stretch` lengthens, `pitch` is the mean in Hz."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speech.wav"
        settings = ["--setf", f"int_f0_target_mean={pitch}", "--setf", f"duration_stretch={stretch}"]
        command = ["flite", *settings, "-voice", voice, "-psdur", "-t", text, "-o", str(out)]
        try:
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as e:
            raise LatentSyncError(f"flite failed ({e}); is it installed? apt-get install flite") from e
        with wave.open(str(out)) as file:
            rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    if rate != SPEECH_RATE:
        samples = resample_poly(samples, SPEECH_RATE, rate).astype(np.float32)
    return samples, flite_phones(done.stdout)


def _speaker(rng: np.random.Generator) -> tuple[Callable[[str], tuple[np.ndarray, list[Phone]]], dict[str, Any]]:
    if rng.random() < 0.5:
        voice = list(FLITE_VOICES)[rng.integers(len(FLITE_VOICES))]
        stretch = float(rng.uniform(0.85, 1.2))
        f0 = FLITE_VOICES[voice] * float(rng.uniform(0.85, 1.2))
        return (lambda text: flite(text, voice, stretch, f0)), {"engine": "flite", "voice": voice, "stretch": stretch, "f0": f0}
    name = f"{ESPEAK_VOICES[rng.integers(len(ESPEAK_VOICES))]}+{ESPEAK_VARIANTS[rng.integers(len(ESPEAK_VARIANTS))]}"
    rate, pitch, spread = int(rng.integers(125, 215)), int(rng.integers(25, 75)), int(rng.integers(30, 80))
    engine = Espeak()
    info = {"engine": "espeak-ng", "voice": name, "rate": rate, "pitch": pitch, "range": spread}
    return (lambda text: engine.say(text, name, rate, pitch, spread)), info


def random_speech(rng: np.random.Generator, seconds: float) -> Speech:
    """One random speaker who says random sentences until the time is full, in a slightly live and noisy room."""
    say, info = _speaker(rng)
    warp = float(rng.uniform(0.92, 1.09))  # resampling: moves formants, pitch and tempo together
    info["warp"] = warp
    pause = np.zeros(int(rng.uniform(0.1, 0.5) * SPEECH_RATE), np.float32)
    t = len(pause) / SPEECH_RATE
    blocks, phones, said = [pause], [(0.0, t, "_")], []
    while t < seconds:
        text = sentence(rng)
        samples, spoken = say(text)
        block = np.interp(np.arange(0, len(samples) - 1, warp), np.arange(len(samples)), samples).astype(np.float32)
        phones += [(t + start / warp, t + end / warp, name) for start, end, name in spoken]
        t += len(block) / SPEECH_RATE
        pause = np.zeros(int(rng.uniform(0.05, 0.6) * SPEECH_RATE), np.float32)
        phones.append((t, t + len(pause) / SPEECH_RATE, "_"))
        t += len(pause) / SPEECH_RATE
        blocks += [block, pause]
        said.append(text)
    n = int(seconds * SPEECH_RATE)
    out = np.concatenate(blocks)[:n]
    out *= 0.5 * float(rng.uniform(0.5, 1.3)) / (np.abs(out).max() + 1e-6)
    phones = [(start, min(end, seconds), name) for start, end, name in phones if start < seconds]
    if rng.random() < 0.6:  # the room's echo: a short tail of decaying noise
        m = int(rng.uniform(0.05, 0.3) * SPEECH_RATE)
        echo = rng.standard_normal(m).astype(np.float32) * np.exp(-np.linspace(0, 6, m)).astype(np.float32)
        echo *= float(rng.uniform(0.005, 0.03))
        echo[0] = 1
        out = np.convolve(out, echo)[:n].astype(np.float32)
    out += rng.standard_normal(n).astype(np.float32) * 10 ** float(rng.uniform(-4.5, -2.7))
    info["text"] = " ".join(said)
    return Speech(np.clip(out, -1, 1), phones, info)


def speak(rng: np.random.Generator, seconds: float) -> Speech:
    """`random_speech` in a fresh process; `rng` goes on from where it ends there. Raises what it raises."""
    context = _processes()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_speak_into, args=(there, rng, seconds), daemon=True)
    process.start()
    there.close()
    try:
        answer = here.recv()
    except EOFError:
        process.join()
        raise LatentSyncError(f"the speaking process ended without an answer (exit code {process.exitcode})") from None
    finally:
        here.close()
    process.join()
    if isinstance(answer, LatentSyncError):
        raise answer
    speech, state = answer
    rng.bit_generator.state = state
    return speech


def _speak_into(answer: Connection, rng: np.random.Generator, seconds: float) -> None:
    try:
        speech = random_speech(rng, seconds)
        answer.send((speech, rng.bit_generator.state))
    except LatentSyncError as e:
        answer.send(e)


@lru_cache(maxsize=1)
def _processes() -> Any:
    """A server with this module loaded that forks speakers: 10 ms each, and no lock of ours is copied."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise LatentSyncError(f"speech needs processes that fork, which {os.name} has not; run this on Linux")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
