"""The first step: can the file be decoded to its end, and does it hold a picture and sound?"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from latentsync.media.examine import examine
from latentsync.prepare.records import Decision

VERSION = "1"


@dataclass(frozen=True)
class Checked:
    """What the whole file holds, up to its end or its damage. Times are seconds from the first frame; the size is that after rotation."""

    duration: Fraction  # to the end of the last frame
    fps: Fraction  # on average; 0 where nothing can be read
    frames: int
    variable: bool  # frames are not all shown for the same time
    width: int
    height: int
    audio_rate: int  # Hz; 0 without sound
    audio_channels: int
    audio_duration: Fraction  # to the end of the last sample
    problem: str  # what hinders its use, and where; "" where nothing does


def measure(path: Path) -> Checked:
    """Decode all of a file, in constant memory. Never raises for what the file is like: `problem` says it."""
    return Checked(**vars(examine(path)))


def decide(checked: Checked) -> Decision:
    """Keep what can be read to its end and has both picture and sound."""
    if checked.problem:
        return Decision(False, checked.problem)
    return Decision(True, f"{float(checked.duration):.2f} s, {checked.width}x{checked.height} at {float(checked.fps):g} fps")
