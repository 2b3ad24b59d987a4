"""Faces in one picture: which backend, and the step from a small look at the whole picture to landmarks at full resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from latentsync.errors import UsageError, WeightsError
from latentsync.face.protocols import Face, FaceBackend, FaceBox, PictureLike, iou

__all__ = ["BACKENDS", "Face", "FaceBackend", "FaceBox", "PictureLike", "detect", "find_faces", "iou", "make_backend"]

# Backend -> the files it needs, by the name each is published under: first the detector, then the landmarks.
BACKENDS: dict[str, tuple[str, str]] = {
    "mediapipe": ("yunet_n_640_640.onnx", "face_landmarker.task"),
    "insightface": ("det_10g.onnx", "2d106det.onnx"),
    "demo": ("tracker.safetensors", "tracker.yaml"),  # one network and its description, which come with the package
}
DETECT_SIDE = 640  # longer side of the picture the detector sees: a face of 1/40 of that side is 16 pixels, YuNet's smallest are 10
MIN_FACE = 24.0  # pixels, square root of the area: smaller faces are ignored, there is nothing to see in their mouths


def make_backend(name: str, files: Mapping[str, Path]) -> FaceBackend:
    """The named backend; `files` maps the names in `BACKENDS[name]` to where they lie.

    Raises `UsageError` for an unknown name, `WeightsError` for a missing or damaged file.
    """
    if name not in BACKENDS:
        raise UsageError(f"no face backend '{name}'; known ones are {', '.join(BACKENDS)}")
    for file in BACKENDS[name]:
        if file not in files:
            if name == "insightface":
                mend = "it is for non-commercial use and never fetched: put it into the folder that LATENTSYNC_HOME names"
            elif name == "demo":
                mend = "it comes with the package: install that anew"
            else:
                mend = "run: latentsync models download face"
            raise WeightsError(f"the face backend '{name}' needs the file {file}; {mend}")
    detector, landmarks = (Path(files[file]) for file in BACKENDS[name])
    if name == "insightface":
        from latentsync.face.insightface import InsightFaceBackend

        return InsightFaceBackend(detector, landmarks)
    if name == "demo":
        from latentsync.face.demo import DemoBackend

        return DemoBackend(detector, landmarks)
    from latentsync.face.mediapipe import MediaPipeBackend

    return MediaPipeBackend(detector, landmarks)


def detect(backend: FaceBackend, picture: PictureLike, max_side: int = DETECT_SIDE, min_face: float = MIN_FACE) -> list[Face]:
    """Boxes and coarse points of the faces in a picture, in its pixels, best score first; ones smaller than `min_face` pixels are left out."""
    seen = picture.small(max_side)
    aspect = float(picture.pixel_aspect)
    height, width = seen.shape[:2]
    if abs(aspect - 1) > 0.01:  # the detector expects square pixels; shrink the longer direction
        size = (max(1, round(width * aspect)), height) if aspect < 1 else (width, max(1, round(height / aspect)))
        seen = cv2.resize(seen, size, interpolation=cv2.INTER_AREA)
        height, width = seen.shape[:2]
    sx, sy = picture.width / width, picture.height / height
    faces = []
    for face in backend.detect(seen):
        x0, y0, x1, y1 = face.box
        points = ((face.landmarks + 0.5) * [sx, sy] - 0.5).astype(np.float32)
        found = replace(face, box=(x0 * sx, y0 * sy, x1 * sx, y1 * sy), landmarks=points)
        if found.size >= min_face:
            faces.append(found)
    return faces


def find_faces(backend: FaceBackend, picture: PictureLike, max_side: int = DETECT_SIDE, min_face: float = MIN_FACE) -> list[Face]:
    """Faces with all landmarks, largest first. A box in which the landmark network sees no face is dropped, and so is a second box on one face."""
    faces: list[Face] = []
    for coarse in detect(backend, picture, max_side, min_face):
        face = backend.landmarks(picture, coarse)
        if face is not None and all(iou(face.box, other.box) < 0.5 for other in faces):
            faces.append(face)
    return sorted(faces, key=lambda f: -f.size)
