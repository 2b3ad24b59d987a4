"""What the report shows of one video: a short clip of all systems side by side, or a strip of frames, and the mouths at some moments.

Everything is read again from the videos, at the place where they are worst. What cannot be read is left out, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import numpy as np

from latentsync.errors import InputError, WeightsError
from latentsync.face.align import Box, alignment, crop
from latentsync.face.detect import find_faces
from latentsync.face.points import anchor_points
from latentsync.face.protocols import FaceBackend, FaceBox
from latentsync.media.audio import samples_between
from latentsync.media.clip import frames_between, probe
from latentsync.media.clip_writer import ClipStyle, write_stream
from latentsync.media.picture import Picture, square

SECONDS = 4  # of a clip
FPS = 25
TALL = 256  # pixels of a panel
WIDEST = 3.0  # of a panel, in heights
CLIP_STYLE = ClipStyle(crf=27, preset="veryfast")
SMALLER = ClipStyle(crf=34, preset="veryfast")
SOUND = 24000  # Hz of a clip's sound
STRIP = 6  # frames
MOMENTS = 6  # of the mouths
IN_A_ROW = 3  # panels; more are shown in two rows
SIDE = 256  # of the aligned face that mouths are cut from, pixels
MOUTH = (slice(108, 250), slice(36, 220))  # rows and columns of mouth and chin in it
TILE = (140, 144)  # width and height of one mouth: the aligned face is squeezed sideways, this is not
AROUND = 1.7  # sizes of the face that a panel shows
SMALL_FACE = 0.45  # of the picture's height, below which a panel shows the face and not the whole picture


class Panel(NamedTuple):
    """One of the videos that are shown side by side."""

    name: str
    path: Path


@dataclass
class Shown:
    """A case's pictures, ready for the page."""

    panels: list[str] = field(default_factory=list)  # names, left to right
    columns: int = 1  # of panels in the clip, in rows from the top
    clip: bytes = b""  # MP4
    poster: np.ndarray | None = None  # (h, w, 3) uint8: the clip's middle frame
    strips: list[np.ndarray] = field(default_factory=list)  # one for each panel, (h, w, 3) uint8; only without a clip
    mouths: list[np.ndarray] = field(default_factory=list)  # one for each panel, (h, w, 3) uint8; none where no face was found
    start: float = 0.0  # seconds
    end: float = 0.0
    reasons: list[str] = field(default_factory=list)  # why something is not here


def finder() -> FaceBackend | None:
    """The best face finder that is here; None where there is none."""
    from latentsync.loading import face_finder

    for name in ("mediapipe", "demo"):
        try:
            return face_finder(name)
        except WeightsError:
            continue
    return None


def show(panels: Sequence[Panel], sound: Path | None, worst: float, faces: FaceBackend | None, most: int) -> Shown:
    """The pictures of a case around the second `worst`. A clip has at most `most` bytes, else there are strips; 0: strips."""
    shown = Shown()
    there: list[Panel] = []
    length = math.inf
    for panel in panels:
        try:
            length = min(length, float(probe(panel.path).duration))
            there.append(panel)
        except InputError as e:
            shown.reasons.append(f"{panel.name}: {e}")
    if not there:
        return shown
    start = max(0.0, min(worst + 0.5 - SECONDS / 2, length - SECONDS))
    shown.start, shown.end = start, min(start + SECONDS, length)
    try:
        _fill(shown, there, sound, faces, most)
    except InputError as e:
        shown.reasons.append(str(e))
    return shown


def _fill(shown: Shown, there: Sequence[Panel], sound: Path | None, faces: FaceBackend | None, most: int) -> None:
    span = Fraction(shown.start).limit_denominator(1000), Fraction(shown.end).limit_denominator(1000)
    count = max(1, math.floor((span[1] - span[0]) * FPS))

    def read(panel: Panel) -> Iterator[Picture]:
        return (square(frame.picture) for frame in islice(frames_between(panel.path, *span, FPS), count))

    picks = _evenly(count, MOMENTS)
    points, box = _faces({k: picture for k, picture in enumerate(read(there[-1])) if k in picks}, faces)
    views = [_view(first, box) for panel in there for first in islice(read(panel), 1)]
    if len(views) < len(there):
        raise InputError("one of the videos has no frame there")
    mouths: list[list[np.ndarray]] = [[] for _ in there]

    def frames() -> Iterator[np.ndarray]:
        for row in mouths:
            row.clear()
        for k, pictures in enumerate(zip(*map(read, there), strict=False)):
            for row, picture in zip(mouths, pictures, strict=True):
                if points and k in picks:
                    row.append(_mouth(picture, points.get(k)))
            panels = [_padded(view.of(picture), width) for view, picture in zip(views, pictures, strict=True)]
            whole = _grid(panels, shown.columns)
            if k == count // 2:
                shown.poster = whole
            yield whole

    width = max(view.width for view in views)
    shown.panels = [panel.name for panel in there]
    shown.columns = len(there) if len(there) <= IN_A_ROW else -(-len(there) // 2)
    if most:
        shown.clip = _clip(frames, sound, span, most, shown.reasons)
    if not shown.clip:
        picked = _evenly(count, STRIP)
        some = [frame for k, frame in enumerate(frames()) if k in picked]
        places = [divmod(i, shown.columns) for i in range(len(there))]
        shown.strips = [np.hstack([f[r * TALL : (r + 1) * TALL, c * width : (c + 1) * width] for f in some]) for r, c in places]
    shown.mouths = [np.hstack(row) for row in mouths if row]


def _padded(panel: np.ndarray, width: int) -> np.ndarray:
    """The panel in the middle of that width, on black."""
    left = (width - panel.shape[1]) // 2
    return np.pad(panel, ((0, 0), (left, width - panel.shape[1] - left), (0, 0)))


def _grid(panels: list[np.ndarray], columns: int) -> np.ndarray:
    """Panels of one size in rows of so many; black where the last row ends early."""
    panels = panels + [np.zeros_like(panels[0])] * (-len(panels) % columns)
    return np.vstack([np.hstack(panels[i : i + columns]) for i in range(0, len(panels), columns)])


def _evenly(count: int, some: int) -> set[int]:
    """Numbers of frames, from the first to the last."""
    return set(np.linspace(0, count - 1, min(some, count)).round().astype(int).tolist())


def _faces(pictures: dict[int, Picture], faces: FaceBackend | None) -> tuple[dict[int, np.ndarray], FaceBox | None]:
    """Alignment points of the largest face in each picture that shows one, and a box around all of them, in shares of its width and height."""
    points: dict[int, np.ndarray] = {}
    boxes = []
    for k, picture in pictures.items() if faces is not None else ():
        assert faces is not None
        found = find_faces(faces, picture)
        if found:
            size = np.array([picture.width, picture.height])
            points[k] = (anchor_points(found[0]) + 0.5) / size
            boxes.append(np.array(found[0].box) / np.tile(size, 2))
    if not boxes:
        return {}, None
    x0, y0 = np.min(boxes, axis=0)[:2]
    x1, y1 = np.max(boxes, axis=0)[2:]
    return points, (float(x0), float(y0), float(x1), float(y1))


class _View(NamedTuple):
    """The part of a video that shows."""

    box: Box
    width: int  # of the panel, pixels

    def of(self, picture: Picture) -> np.ndarray:
        """(TALL, width, 3) uint8; black where the picture's size is another than that of the first."""
        if self.box[2] > picture.width or self.box[3] > picture.height:
            return np.zeros((TALL, self.width, 3), np.uint8)
        part = picture.rgb(self.box)
        return cv2.resize(part, (self.width, TALL), interpolation=cv2.INTER_AREA if part.shape[0] > TALL else cv2.INTER_CUBIC)


def _view(first: Picture, face: FaceBox | None) -> _View:
    """The whole picture, or what is around a small face."""
    x0, y0, x1, y1 = 0, 0, first.width, first.height
    if face is not None and face[3] - face[1] < SMALL_FACE:
        side = AROUND * max((face[2] - face[0]) * first.width, (face[3] - face[1]) * first.height)
        across, down = (face[0] + face[2]) / 2 * first.width, (face[1] + face[3]) / 2 * first.height
        x0, x1 = (int(np.clip(across + s * side / 2, 0, first.width)) for s in (-1, 1))
        y0, y1 = (int(np.clip(down + s * side / 2, 0, first.height)) for s in (-1, 1))
    width = min(WIDEST, (x1 - x0) / max(1, y1 - y0)) * TALL
    return _View((x0, y0, x1, y1), max(2, 2 * round(width / 2)))


def _clip(frames: Callable[[], Iterator[np.ndarray]], sound: Path | None, span: tuple[Fraction, Fraction], most: int, reasons: list[str]) -> bytes:
    """The frames as an MP4 with sound; empty where it would be larger than `most` bytes."""
    samples = None
    if sound is not None:
        try:
            samples = list(samples_between(sound, *span, rate=SOUND))
        except InputError as e:
            reasons.append(f"the clip is silent: {e}")
    with TemporaryDirectory(prefix="latentsync-report-") as folder:
        for style in (CLIP_STYLE, SMALLER):
            path = Path(folder, "clip.mp4")
            write_stream(path, frames(), FPS, samples, SOUND, style=style)
            data = path.read_bytes()
            if len(data) <= most:
                return data
    reasons.append(f"the clip is larger than {most / 1e6:.1f} MB: frames are shown instead")
    return b""


def _mouth(picture: Picture, where: np.ndarray | None) -> np.ndarray:
    """(h, w, 3) uint8: the mouth, with an edge on the right; grey where the face was not found. `where` (3, 2) in shares of width and height."""
    tile = np.full((TILE[1], TILE[0] + 3, 3), 128, np.uint8)
    if where is not None:
        matrix = alignment(where * [picture.width, picture.height] - 0.5, SIDE)
        tile[:, :-3] = cv2.resize(crop(picture, matrix, SIDE)[MOUTH], TILE, interpolation=cv2.INTER_AREA)
    return tile
