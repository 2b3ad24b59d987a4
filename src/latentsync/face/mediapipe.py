"""The default backend: YuNet finds faces, MediaPipe's mesh gives their landmarks. Code and weights are under permissive licences."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from latentsync.face.mesh import FaceMesh, Region, region_of_box, region_of_mesh, yaw_of_mesh
from latentsync.face.points import five_points
from latentsync.face.protocols import Face, PictureLike
from latentsync.face.yunet import YuNet

MIN_SCORE = 0.5  # of the detector, as in the published system
MIN_PRESENCE = 0.5  # of the landmark network, MediaPipe's own default
FIRST_LOOKS = 3  # a detector's box frames the face only roughly, so earlier looks only place the region for the last, which counts
# Mean distance between the mesh's eyes, nose and mouth corners and the detector's, over the face's size: 0.02 to 0.07 on real faces up to 45
# degrees of yaw; above, the mesh lies on something else, on the cheek of a full profile say. On heads tilted sideways the detector's points
# are worse (measured: 0.10 at 30 degrees, 0.20 at 45, 0.25 at 60).
AGREE, AGREE_TILTED = 0.10, 0.25


class MediaPipeBackend:
    """`detect` by YuNet, `landmarks` (478) by MediaPipe's mesh. One per thread."""

    name = "mediapipe"

    def __init__(self, detector: Path, landmarks: Path, *, min_score: float = MIN_SCORE, threads: int = 1) -> None:
        """Paths of `yunet_n_640_640.onnx` and `face_landmarker.task`. Raises `WeightsError` naming the file that cannot be used."""
        self._detector = YuNet(detector, min_score)
        self._mesh = FaceMesh(landmarks, threads)

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """(h, w, 3) uint8 RGB with square pixels -> faces in its pixels, best score first, each with 5 coarse points."""
        return self._detector(rgb)

    def landmarks(self, picture: PictureLike, near: Face) -> Face | None:
        """478 landmarks of the face close to `near`: one look from another frame's landmarks, `FIRST_LOOKS` from a detector's box."""
        aspect = float(picture.pixel_aspect)
        if len(near.landmarks) == 478:
            return self._look(picture, region_of_mesh(near.landmarks, aspect))
        region = region_of_box(near.box, near.landmarks[:2], aspect)
        for _ in range(FIRST_LOOKS - 1):
            rough = self._look(picture, region, 0.0)
            if rough is None:
                return None
            region = region_of_mesh(rough.landmarks, aspect)
        found = self._look(picture, region)
        if found is None:
            return None
        apart = float(np.linalg.norm(five_points(found) - near.landmarks, axis=1).mean()) / near.size
        if apart > AGREE + AGREE_TILTED * math.sin(region_of_mesh(found.landmarks, aspect).angle) ** 2:
            return None
        return replace(found, score=min(found.score, near.score))

    def _look(self, picture: PictureLike, region: Region, min_presence: float = MIN_PRESENCE) -> Face | None:
        seen = self._mesh(picture, region)
        if seen is None or seen[2] < min_presence:
            return None
        points, depth, presence = seen
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return Face((x0, y0, x1, y1), presence, points, yaw_of_mesh(points, depth, float(picture.pixel_aspect)))
