"""Pictures from arrays, and the backend with the public weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync.face.detect import BACKENDS, make_backend
from latentsync.face.protocols import FaceBackend


class Still:
    """A picture from an (h, w, 3) uint8 RGB array."""

    def __init__(self, pixels: np.ndarray, pixel_aspect: Fraction = Fraction(1)) -> None:
        self.pixels, self.pixel_aspect = pixels, pixel_aspect
        self.height, self.width = pixels.shape[:2]

    def rgb(self, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        x0, y0, x1, y1 = box or (0, 0, self.width, self.height)
        assert 0 <= x0 < x1 <= self.width
        assert 0 <= y0 < y1 <= self.height
        return self.pixels[y0:y1, x0:x1]

    def small(self, max_side: int) -> np.ndarray:
        scale = max_side / max(self.width, self.height)
        if scale >= 1:
            return self.pixels
        return cv2.resize(self.pixels, (max(1, round(self.width * scale)), max(1, round(self.height * scale))), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="session")
def still() -> type[Still]:
    return Still


@pytest.fixture(scope="session")
def face_files(public_weights: Path) -> dict[str, Path]:
    """The default backend's files."""
    files = {name: public_weights / name for name in BACKENDS["mediapipe"]}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        pytest.skip(f"no {missing[0]} in {public_weights}")
    return files


@pytest.fixture
def backend(face_files: dict[str, Path]) -> FaceBackend:
    return make_backend("mediapipe", face_files)


@pytest.fixture(scope="session")
def image(clips: Path) -> Callable[[str], Still]:
    """An image of the clips folder by name."""

    def read(name: str) -> Still:
        bgr = cv2.imread(str(clips / "images" / name))
        if bgr is None:
            pytest.skip(f"no image {name} in {clips}")
        return Still(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))

    return read


@pytest.fixture(scope="session")
def pictures(clips: Path) -> Callable[..., Iterator[Still]]:
    """The pictures of a clip, by its path inside the clips folder."""
    from latentsync.media.video import open_video

    def read(name: str, count: int | None = None, start: int = 0) -> Iterator[Still]:
        if not (clips / name).is_file():
            pytest.skip(f"no clip {name} in {clips}")
        with open_video(clips / name) as video:
            for frame in itertools.islice(video.frames(), start, None if count is None else start + count):
                yield Still(frame.picture.rgb(), frame.picture.pixel_aspect)

    return read
