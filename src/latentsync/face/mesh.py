"""MediaPipe's face mesh: 478 landmarks and the confidence that a face is there, on a turned square region of the full-resolution picture.

Weights: `face_landmarker.task` (Apache-2.0), a zip of which only `face_landmarks_detector.tflite` is read; run by LiteRT (Apache-2.0).
The region follows Kartynnik et al., "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs" (2019): turned so that the
eyes are level, half as large again as the landmarks.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from latentsync.errors import LatentSyncError, WeightsError
from latentsync.face.protocols import PictureLike

SIDE = 256  # of the network's input, pixels
MARGIN = 1.5  # region side / longer side of the landmarks' extent
MEMBER = "face_landmarks_detector.tflite"
EYES = (33, 263)  # outer corner of the eye on the picture's left, and on its right, of a face seen upright
SIDES = (234, 454)  # cheek in front of the ear, the same order: their depths tell the yaw


class Region(NamedTuple):
    """A turned square in square-pixel coordinates (x is the picture's x times its pixel aspect)."""

    x: float  # centre
    y: float
    side: float
    angle: float  # radians, clockwise on the screen: the direction from the first eye to the second


class FaceMesh:
    """Landmarks of one face in one region. Not for use from two threads at once."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Raises `WeightsError` where the file is missing or damaged, `LatentSyncError` where LiteRT is not installed."""
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as e:
            raise LatentSyncError(
                f"face landmarks need the package ai-edge-litert, which cannot be imported ({e}); `pip install ai-edge-litert` mends it"
            ) from e
        try:
            with zipfile.ZipFile(path) as bundle:
                model = bundle.read(MEMBER)
        except OSError as e:
            raise WeightsError(
                f"face landmark weights {path} cannot be read: {e.strerror or e}; run `latentsync models download` to fetch them"
            ) from e
        except (zipfile.BadZipFile, KeyError) as e:
            raise WeightsError(f"{path} is not a MediaPipe face_landmarker.task bundle: {e}") from e
        try:
            self._net = Interpreter(model_content=model, num_threads=threads)
            self._net.allocate_tensors()
            self._input = self._net.get_input_details()[0]["index"]
            outputs = {d["name"]: d["index"] for d in self._net.get_output_details()}
            self._points, self._presence = outputs["Identity"], outputs["Identity_1"]
        except (ValueError, RuntimeError, KeyError) as e:
            raise WeightsError(f"{path} does not hold the face landmark network: {e}") from e

    def __call__(self, picture: PictureLike, region: Region) -> tuple[np.ndarray, np.ndarray, float] | None:
        """-> landmarks (478, 2) float32 in pixels of the picture, depths (478,) in square pixels (away from the camera is positive),
        and the probability that the region holds a face; None where the region lies outside the picture."""
        seen = cut_out(picture, region)
        if seen is None:
            return None
        self._net.set_tensor(self._input, np.multiply(seen[None], 1 / 255, dtype=np.float32))
        self._net.invoke()
        mesh = self._net.get_tensor(self._points).reshape(-1, 3)
        presence = 1 / (1 + math.exp(-float(self._net.get_tensor(self._presence).item())))
        matrix = to_region(region, float(picture.pixel_aspect))
        points = (mesh[:, :2] - 0.5 - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
        return points.astype(np.float32), mesh[:, 2] * (region.side / SIDE), presence


def cut_out(picture: PictureLike, region: Region, side: int = SIDE) -> np.ndarray | None:
    """(side, side, 3) uint8 RGB of the region, its edges repeated outside the picture; None where they do not meet.

    A large region is averaged down first, so that fine texture does not alias into the landmarks.
    """
    aspect = float(picture.pixel_aspect)
    matrix = to_region(region, aspect, side)
    corners = (np.array([[0, 0], [side, 0], [0, side], [side, side]]) - 0.5 - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    x0, y0 = np.maximum(np.floor(corners.min(axis=0)) - 1, 0).astype(int).tolist()
    x1, y1 = np.minimum(np.ceil(corners.max(axis=0)) + 2, (picture.width, picture.height)).astype(int).tolist()
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None
    patch = picture.rgb((x0, y0, x1, y1))
    shrink = region.side / side
    if shrink > 1.5:
        new = (max(2, round((x1 - x0) * aspect / shrink)), max(2, round((y1 - y0) / shrink)))
        fx, fy = new[0] / (x1 - x0), new[1] / (y1 - y0)
        patch = cv2.resize(patch, new, interpolation=cv2.INTER_AREA)
    else:
        fx = fy = 1.0
    # patch pixel (u, v) lies at picture pixel ((u + 0.5) / fx - 0.5 + x0, ...)
    linear = matrix[:, :2] / [fx, fy]
    shift = matrix[:, 2] + matrix[:, :2] @ [0.5 / fx - 0.5 + x0, 0.5 / fy - 0.5 + y0]
    return cv2.warpAffine(patch, np.column_stack([linear, shift]), (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def to_region(region: Region, aspect: float, side: int = SIDE) -> np.ndarray:
    """(2, 3) float64: picture pixel -> region pixel, both with pixel centres at whole numbers."""
    scale = side / region.side
    c, s = scale * math.cos(region.angle), scale * math.sin(region.angle)
    linear = np.array([[c * aspect, s], [-s * aspect, c]])
    centre = np.array([region.x / aspect - 0.5, region.y - 0.5])
    return np.column_stack([linear, (side - 1) / 2 - linear @ centre])


def region_of_mesh(points: np.ndarray, aspect: float) -> Region:
    """The region for the next look at a face whose landmarks (478, 2), in pixels of the picture, are known."""
    square = (np.asarray(points, np.float64) + 0.5) * [aspect, 1.0]
    return region_around(square, square[EYES[1]] - square[EYES[0]])


def region_of_box(box: tuple[float, float, float, float], eyes: np.ndarray, aspect: float) -> Region:
    """The region for the first look: a detector's box (brows to chin) and its two eye points (2, 2), all in pixels of the picture."""
    square = (np.asarray(eyes, np.float64) + 0.5) * [aspect, 1.0]
    corners = np.array([[box[0], box[1]], [box[2], box[3]]]) * [aspect, 1.0]
    across = square[1] - square[0]
    width, height = corners[1] - corners[0]
    x, y = corners.mean(axis=0)
    return Region(float(x), float(y), MARGIN * float(max(width, height)), math.atan2(across[1], across[0]))


def region_around(square: np.ndarray, across: np.ndarray) -> Region:
    """The region around landmarks (n, 2) of a face, in square-pixel coordinates, turned so that `across` (2,), from eye to eye, is level."""
    angle = math.atan2(across[1], across[0])
    c, s = math.cos(angle), math.sin(angle)
    turned = square @ np.array([[c, -s], [s, c]])  # the face upright
    low, high = turned.min(axis=0), turned.max(axis=0)
    x, y = np.array([[c, -s], [s, c]]) @ ((low + high) / 2)
    return Region(float(x), float(y), MARGIN * float((high - low).max()), angle)


def yaw_of_mesh(points: np.ndarray, depth: np.ndarray, aspect: float) -> float:
    """Degrees that the face is turned, positive towards the right edge of the picture, from the depths of its two sides."""
    across = (points[SIDES[1]] - points[SIDES[0]]) * [aspect, 1.0]
    return math.degrees(math.atan2(float(depth[SIDES[1]] - depth[SIDES[0]]), float(np.hypot(*across))))
