"""YuNet, a small face detector (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023), run by OpenCV.

Weights: `yunet_n_640_640.onnx` of libfacedetection.train, Apache-2.0. It finds faces of roughly 10 to 300 pixels, so it sees a picture
averaged down to some hundred pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from latentsync.errors import WeightsError
from latentsync.face.protocols import Face

NMS_IOU = 0.3  # two boxes that overlap more are one face
CANDIDATES = 200  # boxes kept before overlapping ones are merged


class YuNet:
    """Boxes and five points (eyes, nose tip, mouth corners) of the faces in a picture. Not for use from two threads at once."""

    def __init__(self, path: Path, min_score: float) -> None:
        """`min_score`: faces below it are not reported. Raises `WeightsError` where the file is missing or not the network."""
        try:
            model = np.fromfile(path, np.uint8)
        except OSError as e:
            raise WeightsError(
                f"face detector weights {path} cannot be read: {e.strerror or e}; run `latentsync models download` to fetch them"
            ) from e
        with _quiet():
            try:
                self._net = cv2.FaceDetectorYN.create("onnx", model, np.zeros(0, np.uint8), (320, 320), min_score, NMS_IOU, CANDIDATES)
            except cv2.error as e:
                raise WeightsError(f"{path} is not a YuNet face detector that OpenCV {cv2.__version__} can read: {e.err or e}") from e

    def __call__(self, rgb: np.ndarray) -> list[Face]:
        """(h, w, 3) uint8 RGB -> faces in its pixels, best score first."""
        height, width = rgb.shape[:2]
        self._net.setInputSize((width, height))
        found = self._net.detect(np.ascontiguousarray(rgb[..., ::-1]))[1]
        if found is None:
            return []
        # A row: x, y, width, height, five points of x and y, score.
        faces = [
            Face((x, y, x + w, y + h), float(row[14]), row[4:14].reshape(5, 2).astype(np.float32))
            for row in found
            for x, y, w, h in [row[:4].tolist()]
        ]
        return sorted(faces, key=lambda f: -f.score)


@contextmanager
def _quiet() -> Iterator[None]:
    """OpenCV 5 warns on standard error about a target that nobody asked for; its errors still come as exceptions."""
    logging = getattr(cv2.utils, "logging", None)
    if logging is None:  # OpenCV 4.9, which does not warn
        yield
        return
    level = logging.getLogLevel()
    logging.setLogLevel(min(level, logging.LOG_LEVEL_ERROR))
    try:
        yield
    finally:
        logging.setLogLevel(level)
