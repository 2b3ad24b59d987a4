"""Where one scene ends and the next begins: PySceneDetect's adaptive detector, on our own frames."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from latentsync.errors import InputError
from latentsync.media.clip import frames_between
from latentsync.prepare.records import Span

VERSION = "1"
SIDE = 256  # pixels of the longer side that the detector looks at; its own default
AROUND = 2  # frames on each side that tell what change is usual; its own default


@dataclass(frozen=True)
class Scenes:
    """The scenes of a file: spans without a cut that cover it, in order."""

    spans: tuple[Span, ...]


def measure(path: Path, *, threshold: float = 2.0, fps: Fraction | int = 25) -> Scenes:
    """The scenes of a file on frames of `fps`, in constant memory.

    `threshold`: a cut changes the picture so many times as much as the frames around it do. Two cuts may follow at any distance, and may stand
    next to the first or the last frame: what is later cut out of a scene must not hold any. Raises InputError where the file cannot be read.
    """
    count = 0
    borders = [0]

    def small() -> Iterator[np.ndarray]:
        nonlocal count
        for frame in frames_between(path, Fraction(0), None, fps):
            count += 1
            yield frame.picture.small(SIDE)

    borders += cuts(small(), threshold)
    if not count:
        raise InputError(f"{path}: no frame can be decoded; the file is damaged or cut off")
    borders.append(count)
    return Scenes(tuple(Span(a / Fraction(fps), b / Fraction(fps)) for a, b in itertools.pairwise(borders)))


def cuts(pictures: Iterable[np.ndarray], threshold: float) -> Iterator[int]:
    """Numbers of the frames (h, w, 3) uint8 RGB that begin a scene, without the first, ascending."""
    from scenedetect.common import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=1, window_width=AROUND)
    number = 0

    def show(picture: np.ndarray) -> list[int]:
        nonlocal number
        found = detector.process_frame(FrameTimecode(number, 25.0), picture)
        number += 1
        return [cut.frame_num - AROUND for cut in found]

    # The detector says nothing about a frame without neighbours, so the first and the last are shown more often: nothing changes there.
    last: np.ndarray | None = None
    for picture in pictures:
        seen = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        for _ in range(AROUND if last is None else 0):
            show(seen)
        yield from show(seen)
        last = seen
    for _ in range(AROUND if last is not None else 0):
        assert last is not None
        yield from show(last)
