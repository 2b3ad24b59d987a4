"""What the face room asks of a picture and of a face finder, and what a found face is.

Coordinates are pixels of the upright picture with the centre of the first pixel at (0, 0), as `cv2.warpAffine` counts; x runs right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

FaceBox = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


class PictureLike(Protocol):
    """The little that finding faces needs of a decoded frame; `latentsync.media` has the real one."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def pixel_aspect(self) -> Fraction:
        """Width of one sample divided by its height; 1 for square pixels."""
        ...

    def rgb(self, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """(h, w, 3) uint8 RGB of a half-open region x0, y0, x1, y1 inside the picture, or of all of it."""
        ...

    def small(self, max_side: int) -> np.ndarray:
        """(h, w, 3) uint8 RGB, the whole picture averaged down so that neither side exceeds `max_side`; never enlarged."""
        ...


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Face:
    """One face in one picture."""

    box: FaceBox  # around the detector's face, or around all landmarks once they are known
    score: float  # 0..1, the detector's confidence, or the landmark network's that a face is there
    landmarks: np.ndarray  # (n, 2) float32 pixels; n = 5 (detector only), 68 (iBUG), 106 (InsightFace) or 478 (MediaPipe)
    yaw: float | None = None  # degrees, positive when the face looks towards the right edge of the picture; None where unknown

    @property
    def size(self) -> float:
        """Square root of the box's area, pixels."""
        x0, y0, x1, y1 = self.box
        return float(np.sqrt(max(x1 - x0, 0.0) * max(y1 - y0, 0.0)))

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


class FaceBackend(Protocol):
    """A face finder in two stages: cheap boxes on a small picture, then landmarks on the full-resolution region of one face."""

    name: str

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """(h, w, 3) uint8 RGB with square pixels -> faces in that array's pixels, best score first, with coarse landmarks."""
        ...

    def landmarks(self, picture: PictureLike, near: Face) -> Face | None:
        """The face close to `near` (in pixels of `picture`), with all its landmarks; None where there is none any more."""
        ...


def iou(a: FaceBox, b: FaceBox) -> float:
    """Intersection over union of two boxes, 0..1."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (both - w * h)
