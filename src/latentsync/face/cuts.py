"""Where the shot changes: a streaming detector on a very small picture that looks two frames ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import cv2
import numpy as np

from latentsync.face.protocols import PictureLike

F = TypeVar("F")

SEEN_SIDE = 96  # longer side of the picture that is looked at
GRID = (16, 16)  # the two pictures are compared in this many cells
HISTOGRAM = (6, 6, 6)  # bins of R, G, B
BACK = 6  # earlier changes that tell what is usual here
AHEAD = 2  # frames awaited, so that a flash can be told from a cut
LEAST = 0.055  # a change below this is never a cut; on real clips movement stays below 0.054, hidden jump cuts start at 0.069
USUAL = 4.0  # a cut changes the picture this many times as much as its neighbours do (median); real cuts reach 10 and more
CERTAIN = 0.5  # a change from here on is a cut however busy its neighbours are; movement on real clips stays below 0.43
ELSEWHERE = 0.3  # change over any number of frames from which a scene is another one, without any cut


class Scene(NamedTuple):
    """What is kept of one frame to compare it."""

    cells: np.ndarray  # (GRID) + (3,) float32 0..1
    histogram: np.ndarray  # float32, sums to 1


@dataclass(frozen=True)
class Shot(Generic[F]):
    """A frame with what its neighbours say about it."""

    frame: F
    picture: PictureLike
    cut: bool  # first frame after a cut; False for the very first frame
    still: bool  # shows exactly what the frame before it shows
    scene: Scene


def scene(picture: PictureLike) -> Scene:
    """A frame boiled down to a grid of colours and a histogram."""
    small = picture.small(SEEN_SIDE)
    cells = cv2.resize(small, GRID, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    counts = cv2.calcHist([small], [0, 1, 2], None, list(HISTOGRAM), [0, 256] * 3).ravel()
    return Scene(cells, counts / counts.sum())


def change(a: Scene, b: Scene) -> float:
    """0..1: how much two frames differ, in place and in colours together (a camera move changes only the first, a flicker little of either)."""
    place = float(np.abs(a.cells - b.cells).mean())
    colours = 0.5 * float(np.abs(a.histogram - b.histogram).sum())
    return float(np.sqrt(min(1.0, 2.5 * place) * colours))


def shots(frames: Iterable[F], picture: Callable[[F], PictureLike]) -> Iterator[Shot[F]]:
    """Frames with their cuts, `AHEAD` frames late."""
    window: deque[tuple[F, PictureLike, bool, Scene]] = deque()
    changes: deque[float] = deque()  # between each waiting frame and the one before it
    usual: deque[float] = deque(maxlen=BACK)
    past: deque[Scene] = deque(maxlen=AHEAD + 1)  # the frames last given out
    last: tuple[PictureLike, Scene] | None = None

    def give() -> Shot[F]:
        frame, image, still, here = window.popleft()
        moved = changes.popleft()
        cut = bool(past) and not still and _is_cut(moved, usual, changes, past, here, [w[3] for w in window])
        if not cut and not still:
            usual.append(moved)
        elif cut:
            usual.clear()
        past.append(here)
        return Shot(frame, image, cut, still, here)

    for frame in frames:
        image = picture(frame)
        if last is not None and image is last[0]:
            here, still = last[1], True
        else:
            here = scene(image)
            still = last is not None and np.array_equal(here.cells, last[1].cells) and np.array_equal(here.histogram, last[1].histogram)
        changes.append(change(here, last[1]) if last is not None else 0.0)
        window.append((frame, image, still, here))
        last = (image, here)
        if len(window) > AHEAD:
            yield give()
    while window:
        yield give()


def _is_cut(moved: float, usual: Iterable[float], coming: Iterable[float], past: Sequence[Scene], here: Scene, after: list[Scene]) -> bool:
    if moved < LEAST:
        return False
    around = [*usual, *coming]
    if around and moved < min(CERTAIN, USUAL * float(np.median(around))):
        return False
    # A flash: what comes next looks again like what was before; and its end: this looks again like what was before it.
    begins = any(change(past[-1], s) < 0.5 * moved for s in after)
    ends = any(change(s, here) < 0.5 * moved for s in list(past)[:-1])
    return not (begins or ends)
