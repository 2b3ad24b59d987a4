"""Which part of a picture a metric looks at: the generated part, the mouth itself, and what a paste may touch in a frame."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from latentsync.face import align
from latentsync.face.mask import resized_mask

BoolArray = npt.NDArray[np.bool_]

MOUTH_ROWS, MOUTH_COLUMNS = (0.60, 0.86), (0.28, 0.72)  # of an aligned face, in sides: closed and wide open mouths of the drawn corpus lie within
MARGIN = 0.02  # of the face's side by which a place may be wrong: the faces of a result are found again, a little elsewhere
RIM = 3  # pixels of the frame around that: chroma is stored for two by two, and spread again on the way to RGB


@lru_cache(maxsize=8)
def generated(side: int) -> BoolArray:
    """(side, side) bool, read-only: what the mask leaves to the network in an aligned face, mouth, cheeks and jaw (40.7 % of it)."""
    inside = resized_mask(side) < 0.5
    inside.setflags(write=False)
    return inside


def mouth_box(side: int) -> tuple[slice, slice]:
    """Rows and columns of the mouth itself in an aligned face of that side, with room for its movement."""
    rows, columns = (slice(round(low * side), round(high * side)) for low, high in (MOUTH_ROWS, MOUTH_COLUMNS))
    return rows, columns


def touched(points: npt.ArrayLike, width: int, height: int, pixel_aspect: float | Fraction = 1, resolution: int = 256) -> BoolArray:
    """Alignment points (3, 2) in a frame -> (height, width) bool: what a paste of the generated part may change, and a rim of RIM pixels."""
    matrix = align.squeezed(align.alignment(points, resolution, pixel_aspect), resolution)
    reach = 2 * round(MARGIN * resolution) + 1
    inside = cv2.dilate(generated(resolution).astype(np.uint8) * 255, np.ones((reach, reach), np.uint8))
    around = cv2.warpAffine(inside, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return cv2.dilate(around, np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8)) > 0
