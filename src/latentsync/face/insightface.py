"""Optional backend: InsightFace's SCRFD detector and 106 landmarks, the ones the published system was trained with.

The package (extra `insightface`) is MIT, but its models may be used for non-commercial research only; nothing here downloads them. Files:
`det_10g.onnx` and `2d106det.onnx` of the `buffalo_l` pack.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from latentsync.errors import LatentSyncError, WeightsError
from latentsync.face.protocols import Face, PictureLike, iou

MIN_SCORE = 0.5  # as in the published system
DETECT_SIDE = (640, 640)  # SCRFD's usual input
AROUND = 1.0  # the face is looked for again in its box enlarged by this much of the box on each side


class InsightFaceBackend:
    """`detect` by SCRFD, `landmarks` (106) by 2d106det after another detection close by, for these landmarks carry no confidence."""

    name = "insightface"

    def __init__(self, detector: Path, landmarks: Path) -> None:
        """Raises `LatentSyncError` where the package is missing, `WeightsError` where a file is."""
        try:
            from insightface.app.common import Face as Record  # type: ignore[import-not-found, unused-ignore]
            from insightface.model_zoo import get_model  # type: ignore[import-not-found, unused-ignore]
        except ImportError as e:
            raise LatentSyncError(
                f"the insightface face backend needs the package insightface, which cannot be imported ({e}); "
                "`pip install 'latentsync[insightface]'` mends it (its models are for non-commercial research only), or use the default backend"
            ) from e
        for path in (detector, landmarks):
            if not path.is_file():
                raise WeightsError(f"InsightFace model {path} is missing; take it from the buffalo_l pack (non-commercial research only)")
        self._record = Record
        self._detector: Any = get_model(str(detector), providers=["CPUExecutionProvider"])
        self._landmarks: Any = get_model(str(landmarks), providers=["CPUExecutionProvider"])
        if self._detector is None or self._landmarks is None:
            raise WeightsError(f"{detector} and {landmarks} are not an InsightFace detector and 106-point landmark model")
        self._detector.prepare(-1, input_size=DETECT_SIDE, det_thresh=MIN_SCORE)
        self._landmarks.prepare(-1)

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """(h, w, 3) uint8 RGB with square pixels -> faces in its pixels, best score first, each with 5 coarse points."""
        boxes, points = self._detector.detect(np.ascontiguousarray(rgb[..., ::-1]))
        faces = [Face(tuple(b[:4].tolist()), float(b[4]), np.asarray(p, np.float32)) for b, p in zip(boxes, points, strict=True)]
        return sorted(faces, key=lambda f: -f.score)

    def landmarks(self, picture: PictureLike, near: Face) -> Face | None:
        """106 landmarks of the face close to `near`, or None."""
        x0, y0, x1, y1 = near.box
        w, h = (x1 - x0) * AROUND, (y1 - y0) * AROUND
        left, top = max(0, int(x0 - w)), max(0, int(y0 - h))
        right, bottom = min(picture.width, int(x1 + w) + 1), min(picture.height, int(y1 + h) + 1)
        if right - left < 8 or bottom - top < 8:
            return None
        rgb = picture.rgb((left, top, right, bottom))
        near_here = (x0 - left, y0 - top, x1 - left, y1 - top)
        faces = [f for f in self.detect(rgb) if iou(f.box, near_here) > 0.2]
        if not faces:
            return None
        best = max(faces, key=lambda f: iou(f.box, near_here))
        points = self._landmarks.get(np.ascontiguousarray(rgb[..., ::-1]), self._record(bbox=np.array(best.box)))
        offset = np.array([left, top], np.float32)
        bx0, by0, bx1, by1 = best.box
        return replace(best, box=(bx0 + left, by0 + top, bx1 + left, by1 + top), landmarks=np.asarray(points, np.float32)[:, :2] + offset)
