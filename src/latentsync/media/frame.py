"""A picture with its place in time."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from latentsync.media.picture import Picture


@dataclass(frozen=True)
class Frame:
    """One frame of a timeline."""

    index: int  # number of the frame in the source, from 0; repeats under loop, bounce and freeze
    time: Fraction  # seconds; the first frame of a timeline is at 0
    duration: Fraction  # seconds that the frame is shown
    picture: Picture
