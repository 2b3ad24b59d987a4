"""A face's looks in some hundred numbers: enough to tell apart people who are seen in the same film, not to recognise anyone.

The colours (without their brightness) of a turned square around the head, upper and lower half apart, as histograms; likeness is
Bhattacharyya's coefficient of two such histograms. Measured on real clips in docs/faces.md.
"""

from __future__ import annotations

import cv2
import numpy as np

from latentsync.face.mesh import Region, cut_out
from latentsync.face.points import five_points
from latentsync.face.protocols import Face, PictureLike

SIDE = 96  # pixels of the head square
BINS = 24  # per colour axis (a and b of CIE Lab)
RANGE = (96.0, 160.0)  # of a and b, as OpenCV codes them (128 = grey): skin and hair, most clothes
WIDTH = 2.6  # head square / (distance of the eyes + distance from the eyes to the mouth)


def head(face: Face, aspect: float) -> Region:
    """The square around a face's head, from its eyes and mouth, so that a detector's five points and a full mesh give the same."""
    eye_left, eye_right, _, mouth_left, mouth_right = (five_points(face).astype(np.float64) + 0.5) * [aspect, 1.0]
    eyes, mouth, across = (eye_left + eye_right) / 2, (mouth_left + mouth_right) / 2, eye_right - eye_left
    span = float(np.hypot(*across) + np.hypot(*(mouth - eyes)))  # a turn of the head shortens only one of the two
    x, y = (eyes + mouth) / 2
    return Region(float(x), float(y), WIDTH * span, float(np.arctan2(across[1], across[0])))


def looks(picture: PictureLike, face: Face) -> np.ndarray:
    """(2 * BINS * BINS,) float32 of length 1: the face's looks in this picture; zeros where the head lies outside it."""
    chip = cut_out(picture, head(face, float(picture.pixel_aspect)), SIDE)
    if chip is None:
        return np.zeros(2 * BINS * BINS, np.float32)
    lab = cv2.cvtColor(chip, cv2.COLOR_RGB2LAB)
    halves = [cv2.calcHist([np.ascontiguousarray(half)], [1, 2], None, [BINS, BINS], [*RANGE, *RANGE]).ravel() for half in np.split(lab, 2)]
    values = np.sqrt(np.concatenate(halves))
    return values / max(float(np.linalg.norm(values)), 1e-6)


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """0..1: how alike two looks are."""
    return float(a @ b)
