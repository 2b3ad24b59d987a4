"""Which face shows the network what to draw, for models that look at one frame of a shot instead of at each frame itself.

The mouth of the frame itself leaks into what is made of it. One frame for all, with the lips as far open as they are in the middle of their
range, shows teeth and lips and says nothing of what is spoken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from latentsync.face.track import Tracked
    from latentsync.media.frame import Frame

# A shot's first frames are held back until its reference is chosen among them: until one of these is reached.
HELD_SECONDS = Fraction(2)
HELD_FRAMES = 50
HELD_BYTES = 256 << 20  # of decoded pictures, lest 4K footage fill the memory

UNSEEN = "the model draws after one frame of each shot, but nothing told how far the lips are open: it is the first frame"


class Aligned(NamedTuple):
    """One frame of the result on its way to the network: what was tracked, and the face cut out of it, if there is one."""

    number: int  # in the result, from 0
    tracked: Tracked[Frame]
    matrix: np.ndarray | None  # (2, 3) frame -> crop
    crop: np.ndarray | None  # (R, R, 3) uint8
    spoken: bool = True  # False where nothing is said anew: after the end of the sound, and outside the spans of `only`
    reference: np.ndarray | None = None  # (R, R, 3) uint8, the face that shows the network what to draw; None: the crop itself


def with_references(items: Iterable[Aligned], notes: list[str]) -> Iterator[Aligned]:
    """The same frames in order, each with the reference of its shot: a crop (R, R, 3) uint8 that all of them share.

    A shot begins at a cut, or where somebody else may be followed. Frames before its first face have no reference. What is worth knowing is
    appended to `notes`.
    """
    held: list[Aligned] = []
    size = 0  # bytes of the pictures held
    chosen: np.ndarray | None = None
    person = 0

    def settled() -> list[Aligned]:
        nonlocal chosen, size
        out: list[Aligned] = []
        if held:
            best, seen = _median(held)
            chosen = best.crop
            out = [item._replace(reference=chosen) for item in held]
            if not seen and UNSEEN not in notes:
                notes.append(UNSEEN)
        held.clear()
        size = 0
        return out

    for item in items:
        if item.tracked.cut or item.tracked.person != person:
            yield from settled()
            chosen, person = None, item.tracked.person
        if chosen is not None or (not held and item.crop is None):
            yield item._replace(reference=chosen)
            continue
        if not held or item.tracked.frame.picture is not held[-1].tracked.frame.picture:
            size += sum(plane.nbytes for plane in item.tracked.frame.picture.planes)
        held.append(item)
        frame = item.tracked.frame
        if len(held) >= HELD_FRAMES or size >= HELD_BYTES or frame.time + frame.duration - held[0].tracked.frame.time >= HELD_SECONDS:
            yield from settled()
    yield from settled()


def _median(items: list[Aligned]) -> tuple[Aligned, bool]:
    """Of those with a face, the one with the median opening of the lips (the lower of two), and whether any lips were seen."""
    faces = [item for item in items if item.crop is not None]
    open_lips = [(item.tracked.opening, item.number, item) for item in faces if item.tracked.opening is not None]
    if not open_lips:
        return faces[0], False
    return sorted(open_lips)[(len(open_lips) - 1) // 2][2], True
