"""Presets of evaluations: which sound each video of a list is given, with which seed, and what is measured; so that two people get one number.

The list is a folder or a file of one path a line, taken in the order of the file names. What a protocol needs of sounds is written to a folder beside
the results. Settings of the results hold a digest of the videos, by which two people can tell that they used the same ones.
"""

from __future__ import annotations

import hashlib
import math
import os
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from latentsync.errors import InputError, UsageError
from latentsync.media.audio import SPEECH_RATE, open_audio
from latentsync.train.clips import video_files
from latentsync.whole import whole

SOUNDS = ("own", "other", "interrupted", "endless")
REST = 2.0  # seconds of sound, and of silence after it
PAUSE = 0.5  # seconds of silence between two sounds of an endless one


@dataclass(frozen=True)
class Protocol:
    """A preset."""

    name: str
    summary: str
    sound: str  # one of SOUNDS
    reference: bool  # whether the video itself is the truth
    seed: int
    metrics: tuple[str, ...]
    seconds: float = 0.0  # of an endless sound


@dataclass(frozen=True)
class Pair:
    """What is to be evaluated: a video and a sound to be put together, or the result that is there already."""

    name: str
    video: Path
    audio: Path | None = None  # None: the video's own sound
    reference: Path | None = None
    result: Path | None = None


def names() -> list[str]:
    """The presets."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.yaml"))


def load(name: str) -> Protocol:
    """A preset by name. Raises UsageError for an unknown one."""
    if name not in names():
        raise UsageError(f"no protocol '{name}'; known ones are {', '.join(names())}")
    plain: dict[str, Any] = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))
    return Protocol(name=name, **{**plain, "metrics": tuple(plain["metrics"])})


def videos(source: str | os.PathLike[str]) -> list[Path]:
    """The videos of a folder or a list, by file name. Raises InputError where there are none."""
    found = sorted(video_files(source)[0], key=lambda p: (p.name, str(p)))
    return [p.absolute() for p in found]


def digest(files: Sequence[Path]) -> str:
    """Of the contents of files, in their order. Raises InputError for one that cannot be read."""
    whole = hashlib.sha256()
    for path in files:
        try:
            with open(path, "rb") as f:
                one = hashlib.sha256()
                while block := f.read(1 << 20):
                    one.update(block)
        except OSError as e:
            raise InputError(f"cannot read {path}: {e.strerror or e}") from e
        whole.update(one.digest())
    return whole.hexdigest()[:16]


def partners(count: int, seed: int) -> list[int]:
    """Whose sound each of so many videos is given: never its own, each sound once. One seed, one pairing."""
    order = sorted(range(count), key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest())  # libraries change their generators
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [following[i] for i in range(count)]


def pairs(protocol: Protocol, files: Sequence[Path], sounds: Path) -> list[Pair]:
    """What a protocol makes of a list of videos. Sounds that it makes are written to the folder `sounds`, those that are there are kept.

    Raises UsageError where the list is too short, OutputError where a sound cannot be written. A video without sound becomes a pair that fails.
    """
    if protocol.sound == "other" and len(files) < 2:
        raise UsageError(f"protocol {protocol.name} gives each video another one's sound; name two videos at least")
    named = unique([p.stem for p in files])
    out = []
    others = partners(len(files), protocol.seed) if protocol.sound == "other" else []
    for i, (name, path) in enumerate(zip(named, files, strict=True)):
        reference = path if protocol.reference else None
        if protocol.sound == "own":
            out.append(Pair(name, path, path, reference))
        elif protocol.sound == "other":
            out.append(Pair(f"{name} + {named[others[i]]}", path, files[others[i]], reference))
        else:
            target = sounds / f"{name}.wav"
            out.append(Pair(name, path, target, reference))
            if not target.is_file():
                _make(protocol, files, i, target)
    return out


def unique(words: Sequence[str]) -> list[str]:
    """The same words, those that come again with a number behind them."""
    seen: dict[str, int] = {}
    out = []
    for word in words:
        seen[word] = seen.get(word, 0) + 1
        out.append(word if seen[word] == 1 else f"{word} ({seen[word]})")
    return out


def _make(protocol: Protocol, files: Sequence[Path], at: int, target: Path) -> None:
    try:
        samples = interrupted(_sound(files[at])) if protocol.sound == "interrupted" else _endless(files, at, protocol.seconds)
    except InputError:
        return  # the pair fails for want of its sound, and says so
    with whole(target, parents=True) as scratch, wave.open(str(scratch), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(SPEECH_RATE)
        f.writeframes(np.clip(np.rint(samples * 32767), -32768, 32767).astype("<i2").tobytes())


def interrupted(samples: np.ndarray, rate: int = SPEECH_RATE) -> np.ndarray:
    """Samples (m,) with every other stretch of REST seconds silent, the first not."""
    muted = (np.arange(len(samples)) // round(REST * rate)) % 2 == 1
    return np.where(muted, np.float32(0), samples)


def _endless(files: Sequence[Path], at: int, seconds: float) -> np.ndarray:
    wanted = math.ceil(seconds * SPEECH_RATE)
    parts: list[np.ndarray] = []
    known: dict[int, np.ndarray] = {}
    step = 0
    while sum(map(len, parts)) < wanted:
        which = (at + step) % len(files)
        step += 1
        if which not in known:
            try:
                known[which] = _sound(files[which])
            except InputError:
                known[which] = np.zeros(0, np.float32)
        if step >= len(files) and not any(len(v) for v in known.values()):
            raise InputError("no video of the list has a sound")
        if len(known[which]):
            parts += [known[which], np.zeros(round(PAUSE * SPEECH_RATE), np.float32)]
    return np.concatenate(parts)[:wanted]


def _sound(path: Path) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *open_audio(path, beside=path).samples()])
