"""25 frames and 16000 samples a second, where a file has another rate; one that has them is left as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from latentsync.errors import UsageError
from latentsync.media.audio import samples_between
from latentsync.media.clip import frames_between
from latentsync.media.clip_writer import ClipStyle, coded_colour, write_stream
from latentsync.media.picture import Picture, square
from latentsync.media.video import open_video
from latentsync.prepare.steps.check import Checked

VERSION = "1"
FPS = 25
RATE = 16000  # Hz
SUFFIXES = (".mp4", ".mkv")
# Between the source and the clip, so better than both: at crf 12 the samples differ by about one level from the source's.
STYLE = ClipStyle(crf=12, key_every=FPS, sound="flac")


@dataclass(frozen=True)
class Resampled:
    """The file to go on with."""

    path: Path  # the target, or the file itself where nothing had to be changed
    changed: bool
    why: str  # in words


def measure(path: Path, checked: Checked, target: Path, *, fps: Fraction | int = FPS, rate: int = RATE) -> Resampled:
    """Write `target` (.mp4 or .mkv, H.264 with mono FLAC) with `fps` and `rate`, or leave the file, which `checked` describes, as it is.

    Each frame is the source frame nearest in time, counted from the first, so nothing drifts over hours; frames are neither blended nor moved.
    The picture is upright with square pixels, its samples are not scaled otherwise; more than 8 bits or 4:2:0 are lost. Memory is constant.
    Raises InputError where the file cannot be read, OutputError where the target cannot be written.
    """
    reasons = []
    if checked.fps != fps:
        reasons.append(f"{float(checked.fps):g} fps")
    if checked.variable:
        reasons.append("frames of uneven length")
    if checked.audio_rate != rate:
        reasons.append(f"sound of {checked.audio_rate} Hz")
    if not reasons:
        return Resampled(path, False, f"{float(fps):g} fps and {rate} Hz already")
    if target.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{target.name}: resampled files end in {' or '.join(SUFFIXES)}")
    info = open_video(path).info
    end = min(checked.audio_duration, checked.duration)
    write_stream(
        target, _pictures(path, Fraction(fps)), fps, samples_between(path, Fraction(0), end, rate), rate,
        style=STYLE, colour=coded_colour(info.colour, info.layout),
    )  # fmt: skip
    return Resampled(target, True, ", ".join(reasons))


def _pictures(path: Path, fps: Fraction) -> Iterator[Picture]:
    for frame in frames_between(path, Fraction(0), None, fps):
        yield square(frame.picture)
