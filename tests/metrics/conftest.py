"""Faces whose truth is known, for every metric: some drawn here, and the rendered heads of the corpus where it is."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync.face.track import smoothed_anchors
from latentsync.media.video import open_video
from latentsync.metrics import sync

SIDE, FRAMES = 128, 20
EDGE = 0.5  # the corpus counts from the picture's edge, this package from the first pixel's middle


def texture(side: int, seed: int) -> np.ndarray:
    """(side, side, 3) float64: soft spots of several sizes, around the colour of skin."""
    rng = np.random.default_rng(seed)
    out = np.zeros((side, side, 3))
    for sigma, strength in ((1.5, 6.0), (4.0, 10.0), (12.0, 16.0)):
        spots = cv2.GaussianBlur(rng.normal(0, 1, (side, side, 3)), (0, 0), sigma)
        out += strength * spots / spots.std()
    return np.clip(out + np.array([190.0, 150.0, 130.0]), 0, 255)


def drawn(frames: int = FRAMES, side: int = SIDE) -> np.ndarray:
    """(frames, side, side, 3) uint8: a textured face that sways a little, with a mouth that opens and shuts."""
    still, out = texture(side, 1), []
    for i in range(frames):
        face = still.copy()
        opening = 0.012 + 0.05 * (1 - np.cos(2 * np.pi * 3.1 * i / 25)) / 2
        centre, axes = (0.5 * side, 0.73 * side), (0.13 * side, opening * side)
        part = 4  # bits behind the point
        cv2.ellipse(face, [round(c * 2**part) for c in centre], [round(a * 2**part) for a in axes], 0, 0, 360, (80, 30, 30), -1, cv2.LINE_8, part)
        sway = np.array([[1.0, 0.0, 0.4 * np.sin(i / 4)], [0.0, 1.0, 0.3 * np.cos(i / 5)]])
        out.append(cv2.warpAffine(face, sway, (side, side), borderMode=cv2.BORDER_REFLECT))
    return np.round(np.stack(out)).astype(np.uint8)


def rendered(corpus: Path, seed: int, frames: int = FRAMES, side: int = SIDE) -> np.ndarray:
    """(frames, side, side, 3) uint8: the aligned faces of a clip of the corpus, by its true landmarks."""
    with np.load(corpus / f"clip_{seed:06d}.npz") as truth:
        points = smoothed_anchors(truth["landmarks"][: frames + 1].astype(np.float64) - EDGE)[:frames]
    with open_video(corpus / f"clip_{seed:06d}.mp4") as source:
        return np.stack(list(sync.aligned_of((f.picture for f in source.frames()), points, side)))


@pytest.fixture(scope="session", params=["drawn", "rendered"])
def faces(request: pytest.FixtureRequest) -> np.ndarray:
    """(20, 128, 128, 3) uint8 aligned faces, one after the other."""
    return drawn() if request.param == "drawn" else rendered(request.getfixturevalue("corpus"), 2090)
