"""Whose faces a span shows: every face is followed through it, and measured; the landmarks of the main person's are kept."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync import loading
from latentsync.errors import InputError
from latentsync.face.people import FaceTrack, People
from latentsync.face.protocols import FaceBackend
from latentsync.media.clip import frames_between
from latentsync.prepare.records import Decision, Span
from latentsync.prepare.steps.files import write_arrays

VERSION = "1"
LEAST_FRAMES = 5  # frames that show a face: a fifth of a second; what is shorter is nobody who appears
TURN_FRAMES = 13  # frames over which a turn of the head must last to count


@dataclass(frozen=True)
class Track:
    """One person's face in a span."""

    frames: int  # that show it
    share: float  # of the span's frames
    width: float  # of the box around the landmarks, median, in square pixels of the picture
    height: float
    yaw: float | None  # degrees: the furthest that the head is turned for half a second; None where the face finder does not tell
    first: int  # frame of the span, from 0
    last: int


@dataclass(frozen=True)
class Faces:
    """Everyone in a span, the main person (most face over time) first."""

    frames: int
    tracks: tuple[Track, ...]
    gap: int  # frames of the longest run without the main person's face
    gap_at: Fraction  # seconds from the span's start
    landmarks: Path | None  # .npz of the main person: `landmarks` (frames, p, 2) float32 pixels, `present` (frames,) bool


def finder(name: str = "mediapipe", home: str | Path | None = None) -> FaceBackend:
    """A face finder by name, for one process. Raises UsageError for an unknown name, WeightsError where its files are missing."""
    return loading.face_finder(name, home)


def measure(path: Path, span: Span, target: Path, *, backend: FaceBackend, fps: Fraction | int = 25) -> Faces:
    """Follow all faces through the span of a file, in one pass; the main person's landmarks go to `target` (.npz).

    In frames that do not show that face its landmarks are those between its neighbours. Memory grows with the span (its landmarks are held), not
    with the file. Raises InputError where the file cannot be read or has no frame there, OutputError where the target cannot be written.
    """
    people = People(backend)
    aspect = Fraction(1)
    for frame in frames_between(path, span.start, span.end, fps):
        people.step(frame.picture)
        aspect = frame.picture.pixel_aspect
    count = people.frames
    if not count:
        raise InputError(f"{path} has no frame from {float(span.start):.2f} to {float(span.end):.2f} s")
    found = [track for track in people.tracks() if len(track.frames) >= min(LEAST_FRAMES, count)]
    tracks = tuple(_measured(track, count, aspect) for track in found)
    if not found:
        return Faces(count, (), count, Fraction(0), None)
    main = found[0]
    present = np.zeros(count, bool)
    present[main.frames] = True
    write_arrays(target, landmarks=_filled(main, count), present=present)
    gap, at = _longest_gap(present)
    return Faces(count, tracks, gap, at / Fraction(fps), target)


def decide(
    faces: Faces, *, min_face: float = 0, one_person: bool = False, max_yaw: float | None = None, min_share: float = 0.9, max_gap: int = 6
) -> Decision:
    """Keep a span whose main person's face is there throughout: in `min_share` of the frames, and never away for more than `max_gap` of them.

    min_face: pixels that both sides of its box have at least. one_person: no other face may appear. max_yaw: degrees that the head may turn.
    """
    if not faces.tracks:
        return Decision(False, "no face")
    main, others = faces.tracks[0], len(faces.tracks) - 1
    if main.share < min_share:
        return Decision(False, f"the face is in {main.share:.0%} of the frames, fewer than {min_share:.0%}")
    if faces.gap > max_gap:
        return Decision(False, f"the face is away for {faces.gap} frames at {float(faces.gap_at):.2f} s, more than {max_gap}")
    if one_person and others:
        return Decision(False, f"{others + 1} people")
    if min(main.width, main.height) < min_face:
        return Decision(False, f"the face is {main.width:.0f}x{main.height:.0f} pixels, smaller than {min_face:g}")
    if max_yaw is not None and main.yaw is not None and main.yaw > max_yaw:
        return Decision(False, f"the head turns by {main.yaw:.0f} degrees, more than {max_yaw:g}")
    size = f"a face of {main.width:.0f}x{main.height:.0f} pixels"
    beside = f", {others} other{'s' if others > 1 else ''} beside it" if others else ""
    turn = ", its turn is not known" if max_yaw is not None and main.yaw is None else ""
    return Decision(True, size + beside + turn)


def _measured(track: FaceTrack, count: int, aspect: Fraction) -> Track:
    boxes = np.array([face.box for face in track.faces], np.float64)
    width, height = (float(np.median(boxes[:, i + 2] - boxes[:, i])) for i in (0, 1))
    return Track(
        frames=len(track.frames),
        share=len(track.frames) / count,
        width=round(width * float(aspect), 2),
        height=round(height, 2),
        yaw=_turned([face.yaw for face in track.faces]),
        first=track.frames[0],
        last=track.frames[-1],
    )


def _turned(yaws: list[float | None]) -> float | None:
    """The largest running median of the turn's amount."""
    known = np.abs([yaw for yaw in yaws if yaw is not None])
    if not len(known):
        return None
    width = min(TURN_FRAMES, len(known))
    return round(float(np.median(np.lib.stride_tricks.sliding_window_view(known, width), axis=1).max()), 2)


def _filled(track: FaceTrack, count: int) -> np.ndarray:
    """(count, p, 2) float32 landmarks of every frame: between two that show the face on a straight line, before and after them as they are there."""
    known = np.stack([face.landmarks for face in track.faces]).astype(np.float64)
    places = np.interp(np.arange(count), track.frames, np.arange(len(known)))
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, len(known) - 1)
    share = (places - low)[:, None, None]
    return (known[low] * (1 - share) + known[high] * share).astype(np.float32)


def _longest_gap(present: np.ndarray) -> tuple[int, int]:
    """(length, first frame) of the longest run without the face."""
    best, at, run = 0, 0, 0
    for i, here in enumerate(present.tolist()):
        run = 0 if here else run + 1
        if run > best:
            best, at = run, i - run + 1
    return best, at
