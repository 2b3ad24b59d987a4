"""The clip: the main person's face, upright in a square as inference sees it, or the whole frame with the matrices that lead there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync.errors import InputError, UsageError
from latentsync.face.align import alignment, mapped, squeezed
from latentsync.face.align import crop as cut_out
from latentsync.face.track import smoothed_anchors
from latentsync.media.audio import SPEECH_RATE, samples_between
from latentsync.media.clip import frames_between
from latentsync.media.clip_writer import ClipStyle, coded_colour, write_stream
from latentsync.media.picture import Picture, square
from latentsync.media.video import open_video
from latentsync.prepare.records import Span
from latentsync.prepare.steps.faces import Faces
from latentsync.prepare.steps.files import read_arrays, write_arrays

VERSION = "1"
LEAST_SIZE = 16  # pixels
# 44 dB on faces of real clips, 56 kB a second; 4:4:4 would add 0.2 dB, and then browsers do not play it.
STYLE = ClipStyle(crf=13, preset="medium", key_every=25, sound="flac")


@dataclass(frozen=True)
class Aligned:
    """A finished clip."""

    path: Path  # .mp4
    matrices: Path  # .npz: `matrix` (frames, 2, 3) float64, `landmarks` (frames, p, 2) float32
    frames: int


def measure(path: Path, span: Span, faces: Faces, target: Path, *, size: int = 256, crop: bool = True, fps: Fraction | int = 25) -> Aligned:
    """Write the clip of a span to `target` (.mp4, H.264 with a key frame each second, FLAC of 16 kHz), and `target` .npz before it.

    `matrix` maps pixels of the frame to those of the size x size face; `landmarks` are in pixels of the clip. The centre of the first pixel is 0.
    The crop is the one that inference makes: alignment points smoothed over time, then `face.align`. With crop=False the frame stays whole, with
    square pixels. Raises InputError where the file cannot be read or `faces` has no landmarks, OutputError where nothing can be written.
    """
    if faces.landmarks is None:
        raise InputError(f"{path} shows no face from {float(span.start):.2f} to {float(span.end):.2f} s, so no clip can be made of it")
    if size < LEAST_SIZE or size % 2:
        raise UsageError(f"the size of a face must be an even number of pixels from {LEAST_SIZE}, found {size}")
    landmarks = read_arrays(faces.landmarks, "landmarks")[0].astype(np.float64)
    info = open_video(path).info
    aspect = info.pixel_aspect
    if not crop and aspect != 1:
        landmarks = (landmarks + 0.5) * ([float(aspect), 1.0] if aspect > 1 else [1.0, float(1 / aspect)]) - 0.5
        aspect = Fraction(1)
    upright = np.stack([alignment(points, size, aspect) for points in smoothed_anchors(landmarks)])
    matrix = np.stack([squeezed(m, size) for m in upright])
    pictures = _pictures(path, span, len(upright), Fraction(fps))
    matrices = target.with_suffix(".npz")
    write_arrays(matrices, matrix=matrix, landmarks=(mapped(landmarks, matrix) if crop else landmarks).astype(np.float32))
    frames = write_stream(
        target,
        (cut_out(picture, m, size) for picture, m in zip(pictures, upright, strict=True)) if crop else map(square, pictures),
        fps,
        samples_between(path, span.start, span.start + len(upright) / Fraction(fps)),
        SPEECH_RATE,
        style=STYLE,
        colour=None if crop else coded_colour(info.colour, info.layout),
    )
    return Aligned(target, matrices, frames)


def _pictures(path: Path, span: Span, count: int, fps: Fraction) -> Iterator[Picture]:
    """Those of the span; InputError where they are not `count`."""
    seen = 0
    for frame in frames_between(path, span.start, span.end, fps):
        seen += 1
        if seen <= count:
            yield frame.picture
    if seen != count:
        raise InputError(f"{path} has {seen} frames from {float(span.start):.2f} s on where {count} had been found; has the file changed?")
