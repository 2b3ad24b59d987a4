"""The face finder that comes with the package: small networks of the project's own, trained on rendered heads (see `latentsync train tracker`).

Faces are found on the picture at two sizes, and at a third where those show none; 68 landmarks (iBUG's order) are placed on a turned square
region of the full-resolution picture, which another frame's landmarks lead to.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch

from latentsync.face.face_net import CELL, COARSEST, FaceNet, fused, load_face_net
from latentsync.face.mesh import Region, cut_out, region_around, region_of_box, to_region
from latentsync.face.points import FIVE, MIRROR
from latentsync.face.protocols import Face, FaceBox, PictureLike, iou

MIN_SCORE = 0.4  # of the finder
MIN_PRESENCE = 0.5  # of the pointer
FIRST_LOOKS = 3  # the finder's box frames the face only roughly: earlier looks place the region for the last, which counts
ONE_FACE = 0.35  # overlap from which two finds are one face
SMALLEST = 7.0  # pixels, side of a find in the picture that the finder saw; what is smaller is noise
LEVELS = (1, 2)  # sizes of the picture, in the finder's own
LAST_LEVEL = 4  # where those show no face
DIFFERENT = 0.5  # of the face's size: finder and pointer speak of different things when their five points are further apart in the mean
EYES = (36, 45)  # outer corners of the eyes, image-left first


class DemoBackend:
    """`detect` by the finder, `landmarks` (68) by the pointer. One per thread."""

    name = "demo"

    def __init__(self, weights: Path, description: Path, *, min_score: float = MIN_SCORE) -> None:
        """Paths of `tracker.safetensors` and `tracker.yaml`. Raises `WeightsError` naming the file that cannot be used."""
        self._set(load_face_net(weights, description), min_score)

    @classmethod
    def of(cls, net: FaceNet, *, min_score: float = MIN_SCORE) -> DemoBackend:
        """A backend around a network at hand, in eval mode, which is not changed."""
        made = cls.__new__(cls)
        made._set(net, min_score, fuse=False)
        return made

    def _set(self, net: FaceNet, min_score: float, *, fuse: bool = True) -> None:
        self._net = net
        if fuse:
            fused(net)
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._side, self._crop = net.config.detector, net.config.crop
        self._min_score = min_score

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """(h, w, 3) uint8 RGB with square pixels -> faces in its pixels, best score first, each with 5 coarse points."""
        longer = max(rgb.shape[:2])
        found: list[Face] = []
        for level in (*LEVELS, LAST_LEVEL):
            if level == LAST_LEVEL and found:
                break
            if level > 1 and longer <= self._side * level / 2:  # nothing would be seen that the level before did not show
                break
            found += self._found(rgb, min(1.0 if level > 1 else math.inf, self._side * level / longer))
        return distinct(found)

    def landmarks(self, picture: PictureLike, near: Face) -> Face | None:
        """68 landmarks of the face close to `near`: one look from another frame's landmarks, `FIRST_LOOKS` from a detector's box."""
        aspect = float(picture.pixel_aspect)
        if len(near.landmarks) == 68:
            return self._look(picture, region_of_points(near.landmarks, aspect))
        region = region_of_box(near.box, near.landmarks[:2], aspect)
        for _ in range(FIRST_LOOKS - 1):
            rough = self._look(picture, region, 0.0)
            if rough is None:
                return None
            region = region_of_points(rough.landmarks, aspect)
        found = self._look(picture, region)
        if found is None:
            return None
        apart = float(np.linalg.norm(five_of(found.landmarks) - near.landmarks, axis=1).mean()) / max(near.size, 1e-6)
        return found if apart <= DIFFERENT else None

    @torch.inference_mode()
    def _found(self, rgb: np.ndarray, scale: float) -> list[Face]:
        """What the finder sees in the picture at that scale, in the pixels of `rgb`."""
        height, width = (max(1, round(n * scale)) for n in rgb.shape[:2])
        seen = rgb if scale == 1 else cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        padded = np.full((-(-height // COARSEST) * COARSEST, -(-width // COARSEST) * COARSEST, 3), 127, np.uint8)
        padded[:height, :width] = seen
        maps = self._net.finder(as_input(padded))[0].float().numpy()
        sx, sy = rgb.shape[1] / width, rgb.shape[0] / height
        return [
            Face((box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy), score, ((points + 0.5) * [sx, sy] - 0.5).astype(np.float32))
            for score, box, points in peaks(maps, self._min_score)
        ]

    @torch.inference_mode()
    def _look(self, picture: PictureLike, region: Region, min_presence: float = MIN_PRESENCE) -> Face | None:
        if not region.side > 1:
            return None
        seen = cut_out(picture, region, self._crop)
        if seen is None:
            return None
        placed, presence = self._net.pointer(as_input(np.stack([seen, seen[:, ::-1]])))
        score = float(presence.sigmoid().mean())
        if score < min_presence:
            return None
        plain, mirrored = placed.double().numpy()
        middle = (plain + (mirrored * [-1, 1] + [self._crop - 1, 0])[MIRROR]) / 2  # two views err less than one
        matrix = to_region(region, float(picture.pixel_aspect), self._crop)
        points = ((middle - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T).astype(np.float32)
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return Face((x0, y0, x1, y1), score, points, yaw_of_points(points, float(picture.pixel_aspect)))


def as_input(rgb: np.ndarray) -> torch.Tensor:
    """(h, w, 3) or (b, h, w, 3) uint8 -> (b, 3, h, w) float32 in -1..1, channels last."""
    pixels = torch.from_numpy(np.ascontiguousarray(rgb if rgb.ndim == 4 else rgb[None]))
    return pixels.permute(0, 3, 1, 2).to(torch.float32).mul_(1 / 127.5).sub_(1)


def peaks(maps: np.ndarray, min_score: float) -> list[tuple[float, FaceBox, np.ndarray]]:
    """(15, h, w) maps of the finder -> (score, box, five points (5, 2)) of each local maximum, in pixels of its input, best first."""
    logits = maps[0]
    if not np.isfinite(logits).all():
        return []
    around = cv2.dilate(logits, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    rows, columns = np.nonzero((logits >= around) & (logits > math.log(min_score / (1 - min_score))))
    out = []
    for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
        middle = np.array([x, y]) * CELL + (CELL - 1) / 2
        left, top, right, bottom = (maps[1:5, y, x] * CELL).tolist()
        if left + right < SMALLEST or top + bottom < SMALLEST:
            continue
        box = (float(middle[0]) - left + 0.5, float(middle[1]) - top + 0.5, float(middle[0]) + right + 0.5, float(middle[1]) + bottom + 0.5)
        points = maps[5:, y, x].reshape(5, 2) * CELL + middle
        out.append((1 / (1 + math.exp(-float(logits[y, x]))), box, points))
    return sorted(out, key=lambda p: -p[0])


def distinct(faces: list[Face]) -> list[Face]:
    """The faces, best score first, without those that lie on a better one."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -f.score):
        if all(iou(face.box, other.box) < ONE_FACE and not _within(face, other) for other in kept):
            kept.append(face)
    return kept


def _within(a: Face, b: Face) -> bool:
    """Whether one face's middle lies in the inner half of the other: a nose or an eye taken for a face of its own, say."""
    (ax, ay), (bx, by) = a.centre, b.centre
    reach = 0.3 * max(a.size, b.size)
    return abs(ax - bx) < reach and abs(ay - by) < reach


def region_of_points(points: np.ndarray, aspect: float) -> Region:
    """The region for the next look at a face whose 68 landmarks, in pixels of the picture, are known."""
    square = (np.asarray(points, np.float64) + 0.5) * [aspect, 1.0]
    return region_around(square, square[EYES[1]] - square[EYES[0]])


def five_of(points: np.ndarray) -> np.ndarray:
    """(68, 2) landmarks -> (5, 2) eyes, nose tip, mouth corners."""
    return np.stack([np.array(list(w.values())) @ np.asarray(points, np.float64)[list(w)] for w in FIVE[68]])


def yaw_of_points(points: np.ndarray, aspect: float) -> float:
    """Degrees that the face is turned, positive towards the right edge of the picture, roughly: from where the nose stands between the ears.

    On a head that is a cylinder with the nose tip a fifth of its radius before it, seen from afar.
    """
    square = np.asarray(points, np.float64) * [aspect, 1.0]
    left, right, nose = square[[0, 1, 2]].mean(0), square[[14, 15, 16]].mean(0), square[30]
    across = right - left
    share = float((nose - left) @ across) / max(float(across @ across), 1e-9)  # 0.5: in the middle
    return math.degrees(math.asin(min(max((2 * share - 1) / 1.2, -1.0), 1.0)))
