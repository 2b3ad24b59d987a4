"""The clip where nothing is aligned: the span as it is, with the whole frame."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from latentsync.media.audio import SPEECH_RATE, samples_between
from latentsync.media.clip import frames_between
from latentsync.media.clip_writer import coded_colour, write_stream
from latentsync.media.picture import square
from latentsync.media.video import open_video
from latentsync.prepare.records import Span
from latentsync.prepare.steps.align import STYLE

VERSION = "1"


@dataclass(frozen=True)
class Cut:
    """A finished clip."""

    path: Path  # .mp4
    frames: int


def measure(path: Path, span: Span, target: Path, *, fps: Fraction | int = 25) -> Cut:
    """Write the span to `target` (.mp4, H.264 with a key frame each second, FLAC of 16 kHz), upright and with square pixels.

    Raises InputError where the file cannot be read, OutputError where nothing can be written.
    """
    info = open_video(path).info
    frames = write_stream(
        target,
        (square(frame.picture) for frame in frames_between(path, span.start, span.end, fps)),
        fps,
        samples_between(path, span.start, span.end),
        SPEECH_RATE,
        style=STYLE,
        colour=coded_colour(info.colour, info.layout),
    )
    return Cut(target, frames)
