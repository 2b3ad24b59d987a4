"""The face finder that comes with the package, and a few frames of the drawn head that does, alone and beside itself."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync.face.protocols import FaceBackend
from latentsync.media.clip import read_frames
from latentsync.prepare.steps import faces
from latentsync.weights import shipped

HEADS = 24  # frames


@pytest.fixture(scope="session")
def finder() -> FaceBackend:
    return faces.finder("demo")


@pytest.fixture(scope="session")
def head() -> Callable[..., np.ndarray]:
    """head(k, size, at, picture): (h, w, 3) uint8 with the head of frame k, `size` pixels, pasted at (x, y) into a grey picture or the given one."""
    sample: Path = shipped.folder() / "sample.mp4"
    frames = read_frames(sample, [Fraction(k, 25) for k in range(HEADS)])

    def draw(k: int, size: int = 320, at: tuple[int, int] = (0, 0), picture: np.ndarray | tuple[int, int] = (320, 320)) -> np.ndarray:
        out = np.full((*picture[::-1], 3), 90, np.uint8) if isinstance(picture, tuple) else picture
        small = cv2.resize(frames[k % HEADS], (size, size), interpolation=cv2.INTER_AREA if size < 320 else cv2.INTER_CUBIC)
        out[at[1] : at[1] + size, at[0] : at[0] + size] = small
        return out

    return draw
