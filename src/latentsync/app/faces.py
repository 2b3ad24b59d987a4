"""The first frame of a video that shows a face, and the faces in it, for a visitor to click on."""

from __future__ import annotations

import base64
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from latentsync import weights
from latentsync.errors import LatentSyncError
from latentsync.face.detect import find_faces
from latentsync.media.video import open_video

if TYPE_CHECKING:
    from latentsync.face.protocols import FaceBackend
    from latentsync.media.frame import Frame

LOOK_SECONDS = 10.0  # how far into a video a face is looked for
LOOK_EVERY = 0.2  # seconds between two looks
SHOWN_SIDE = 960  # longer side of the picture that is shown, pixels
QUALITY = 85  # of its JPEG


@dataclass(frozen=True)
class Spot:
    """One face: its box x0, y0, x1, y1 in pixels of the upright frame."""

    box: tuple[float, float, float, float]

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)

    @property
    def choice(self) -> str:
        """The face as the option `face` names it: its centre."""
        x0, y0, x1, y1 = self.box
        return f"{(x0 + x1) / 2:.0f},{(y0 + y1) / 2:.0f}"


@dataclass(frozen=True)
class Look:
    """What a visitor sees: the frame and the faces in it, from left to right."""

    picture: str  # a JPEG as a data address
    width: int  # of the frame, pixels
    height: int
    time: float  # seconds
    spots: tuple[Spot, ...]

    @property
    def largest(self) -> int | None:
        """Number of the largest face, from 0; the one that a job takes unless told otherwise."""
        return max(range(len(self.spots)), key=lambda i: self.spots[i].area, default=None)


class Finder:
    """Finds faces for all visitors, one video at a time: face finders keep buffers."""

    def __init__(self, home: Path | None = None) -> None:
        """home: where weights lie, None for the usual place."""
        self._home = home
        self._lock = threading.Lock()
        self._backends: dict[str, FaceBackend] = {}

    def look(self, video: Path, model: str) -> Look:
        """The first frame that shows a face to the finder of that model. Raises InputError where the video cannot be read."""
        with self._lock, open_video(video) as source:
            first: Frame | None = None
            due = 0.0
            for frame in source.frames():
                at = float(frame.time)
                first = first or frame
                if at > LOOK_SECONDS:
                    break
                if at + 1e-6 < due:
                    continue
                due = at + LOOK_EVERY
                found = find_faces(self._backend(model), frame.picture)
                if found:
                    boxes = sorted((tuple(float(v) for v in face.box) for face in found), key=lambda box: box[0] + box[2])
                    return _look(frame, tuple(Spot((b[0], b[1], b[2], b[3])) for b in boxes))
            assert first is not None  # `frames` raises rather than yield nothing
            return _look(first, ())

    def warm(self, model: str) -> None:
        """Load the finder of that model, and let it see a picture: the first look takes longest."""
        with self._lock:
            self._backend(model).detect(np.zeros((64, 64, 3), np.uint8))

    def _backend(self, model: str) -> FaceBackend:
        """The finder that jobs of the model use, or the package's own where that one is not here."""
        from latentsync.loading import face_finder

        try:
            name = weights.resolve(model, home=self._home, need=()).config.defaults.face_backend
            if name not in self._backends:
                self._backends[name] = face_finder(name, self._home)
        except LatentSyncError:
            name = "demo"
            if name not in self._backends:
                self._backends[name] = face_finder(name, self._home)
        return self._backends[name]


def _look(frame: Frame, spots: tuple[Spot, ...]) -> Look:
    picture = frame.picture
    seen = picture.small(SHOWN_SIDE)
    aspect = float(picture.pixel_aspect)
    if abs(aspect - 1) > 0.01:  # shown with square pixels
        seen = cv2.resize(seen, (max(1, round(seen.shape[1] * aspect)), seen.shape[0]), interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", np.ascontiguousarray(seen[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    address = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    return Look(address, picture.width, picture.height, float(frame.time), spots)
