"""25 frames and 16000 samples a second, where a file has another rate; one that has them is left as it is."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from latentsync.errors import UsageError
from latentsync.media.audio import samples_between
from latentsync.media.clip import frames_between
from latentsync.media.clip_writer import ClipStyle, coded_colour, write_stream
from latentsync.media.picture import Picture, square
from latentsync.media.remux import with_sound
from latentsync.media.video import VideoInfo, open_video
from latentsync.prepare.steps.check import Checked

VERSION = "2"
FPS = 25
RATE = 16000  # Hz
SUFFIXES = (".mp4", ".mkv")
# Between the source and the clip, so better than both: samples differ by about one level from the source's. As quick as can be: 1080p takes a quarter
# of the time of "veryfast" at crf 12 to write and half of it to read, is 1 dB nearer to the source, and twice as large for as long as it is there.
STYLE = ClipStyle(crf=14, preset="ultrafast", key_every=FPS, sound="flac")
COPIED = ("h264", "hevc")  # codecs whose packets go into the target as they are, where only the sound has another rate


@dataclass(frozen=True)
class Resampled:
    """The file to go on with."""

    path: Path  # the target, or the file itself where nothing had to be changed
    changed: bool
    why: str  # in words


def measure(path: Path, checked: Checked, target: Path, *, fps: Fraction | int = FPS, rate: int = RATE) -> Resampled:
    """Write `target` (.mp4 or .mkv, H.264 with mono FLAC) with `fps` and `rate`, or leave the file, which `checked` describes, as it is.

    Each frame is the source frame nearest in time, counted from the first, so nothing drifts over hours; frames are neither blended nor moved.
    The picture is upright with square pixels, its samples are not scaled otherwise; more than 8 bits or 4:2:0 are lost. Memory is constant. Where
    only the sound has another rate, the pictures are copied as they are, which takes a tenth of the time.
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
    if len(reasons) > 1 or checked.audio_rate == rate or not _copied(path, info, checked, target, end, rate):
        write_stream(
            target, _pictures(path, Fraction(fps)), fps, samples_between(path, Fraction(0), end, rate), rate,
            style=STYLE, colour=coded_colour(info.colour, info.layout),
        )  # fmt: skip
    return Resampled(target, True, ", ".join(reasons))


def _copied(path: Path, info: VideoInfo, checked: Checked, target: Path, end: Fraction, rate: int) -> bool:
    """Write `target` with new sound and the pictures as they are, not encoded anew. False, and nothing written, where it would not show the same."""
    if info.codec not in COPIED or info.pixel_aspect != 1:
        return False
    scratch = target.with_name(f".{target.stem}.{uuid.uuid4().hex}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sound = (chunk[None] for chunk in samples_between(path, Fraction(0), end, rate))
        if with_sound(path, scratch, sound, rate, "mono", info.start) != checked.frames:  # some are not shown
            return False
        before, after = (next(frames_between(place, Fraction(0), None, checked.fps)).picture for place in (path, scratch))
        if before.pixel_aspect != after.pixel_aspect or not np.array_equal(before.rgb(), after.rgb()):
            return False
        scratch.replace(target)
        return True
    except (av.error.FFmpegError, OSError):
        return False  # what hinders it, encoding says
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _pictures(path: Path, fps: Fraction) -> Iterator[Picture]:
    for frame in frames_between(path, Fraction(0), None, fps):
        yield square(frame.picture)
