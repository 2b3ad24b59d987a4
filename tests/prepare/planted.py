"""A folder of footage with planted faults: rendered heads whose lips and sound are exact, real clips, and files that are no film."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from latentsync.media.clip import read_audio, read_frames
from tests.prepare.footage import make

FRAMES = 60  # of a film: 2.4 s
SIDE = 320  # pixels of a rendered frame
PER_FRAME = 640  # samples
FIRST = 20  # the frame of the rendered clip with which films begin: its sound can be moved either way
CUT = 55  # the frame of "two scenes.mp4" that begins the second one
GREY = 90
SEEDS = (2087, 2074, 2075, 2092, 2081, 2086, 2078, 2091, 2088)  # of those that the package's own networks have not seen


class Head(NamedTuple):
    """A rendered head that speaks."""

    frames: np.ndarray  # (n, 320, 320, 3) uint8
    samples: np.ndarray  # (m,) float32 at 16 kHz

    def shown(self, count: int = FRAMES, first: int = FIRST) -> np.ndarray:
        return self.frames[first : first + count]

    def heard(self, count: int = FRAMES, first: int = FIRST, early: int = 0) -> np.ndarray:
        """The sound of those frames, or what comes `early` frames later, so that it comes so many too early."""
        return self.samples[(first + early) * PER_FRAME : (first + early + count) * PER_FRAME]


def head(corpus: Path, seed: int, count: int = FRAMES + 2 * FIRST) -> Head:
    """One of SEEDS; `count` frames of it, and all of its sound."""
    path = corpus / f"clip_{seed:06d}.mp4"
    return Head(read_frames(path, [Fraction(k, 25) for k in range(count)]), read_audio(path))


def film(path: Path, pictures: np.ndarray, sound: np.ndarray | None, rate: Fraction | int = 25) -> Path:
    """A film of those pictures (n, h, w, 3) at 25 a second, told in frames of another rate: the nearest of them each."""
    count = int(len(pictures) * rate / 25)
    nearest = [min(round(k * 25 / rate), len(pictures) - 1) for k in range(count)]
    return make(path, count, picture=lambda k: pictures[nearest[k]], rate=rate, sound=sound, crf=18)


def pasted(pictures: np.ndarray, size: int, at: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """(n, h, w, 3): the pictures, `size` pixels, at (x, y) of a grey canvas of (width, height)."""
    out = np.full((len(pictures), canvas[1], canvas[0], 3), GREY, np.uint8)
    for k, picture in enumerate(pictures):
        out[k, at[1] : at[1] + size, at[0] : at[0] + size] = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    return out


def plant(raw: Path, corpus: Path, clips: Path) -> None:
    """Write the folder. Names say what is wrong, or are odd themselves."""
    (raw / "again").mkdir(parents=True)
    good, first, second, late, early, far, tall, fast, ntsc = (head(corpus, seed) for seed in SEEDS)

    film(raw / "good.mp4", good.shown(), good.heard())
    shutil.copy(raw / "good.mp4", raw / "again" / "the same.mp4")
    film(raw / "again" / "good.mp4", fast.shown(), fast.heard(), 30)
    film(raw / "29.97 & $HOME;.mp4", ntsc.shown(), ntsc.heard(), Fraction(30000, 1001))
    times = [Fraction(k, 25) for k in range(FRAMES) if k % 5 not in (1, 2)]
    make(raw / "variable %03d.mkv", len(times), picture=lambda k: second.shown()[int(times[k] * 25)], times=times, sound=second.heard(), crf=18)

    film(
        raw / "two scenes.mp4",
        np.concatenate([first.shown(CUT), second.shown()]),
        np.concatenate([first.heard(CUT), second.heard()]),
    )
    film(raw / "it's 5 late.mp4", late.shown(), late.heard(early=-5))
    film(raw / '3 "early".mp4', early.shown(), early.heard(early=3))
    film(raw / "9 früh 口 с.mp4", far.shown(), far.heard(early=9))
    film(raw / "wrong sound.mp4", first.shown(), fast.heard())

    upright = pasted(tall.shown(), 240, (0, 90), (240, 426))
    make(raw / "-portrait.mp4", FRAMES, picture=lambda k: np.rot90(upright[k], 1), rotation=-90, sound=tall.heard(), crf=18)
    film(raw / "two people.mp4", np.concatenate([good.shown(50), late.shown(50)], axis=2), good.heard(50))
    film(raw / "tiny face.mp4", pasted(good.shown(50), 56, (200, 100), (480, 270)), good.heard(50))
    film(raw / "silent.mp4", good.shown(50), None)

    whole = make(raw / "truncated.mp4", FRAMES, picture=lambda k: good.shown()[k], sound=good.heard(), faststart=True)
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) * 2 // 3])
    (raw / "empty.mp4").touch()
    (raw / "text.mp4").write_text("This is no film.\n" * 50)
    shutil.copy(clips / "talking" / "LipNet__bbaf2n.mpg", raw / "real person.mpg")
    animal = clips / "special" / "learning-area__rabbit320.webm"
    film(raw / "real animal.mp4", read_frames(animal, [Fraction(k, 25) for k in range(50)]), read_audio(animal)[: 50 * PER_FRAME])
