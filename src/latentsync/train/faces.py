"""Pictures of faces whose landmarks are known, disguised in every way that keeps the landmarks true.

The heads are rendered, and real ones are to be found: so colours, light, grain, sharpness, backgrounds, things before the face, size, place and
turn are all drawn at random. Backgrounds are drawn too; no photograph takes part. Everything is a function of the generator that is given.
Landmarks count in pixels with the centre of the first pixel at (0, 0), in iBUG's order of 68.
"""

from __future__ import annotations

import math
import os
import uuid
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from latentsync.errors import InputError, OutputError
from latentsync.face.demo import region_of_points
from latentsync.face.mesh import Region, to_region
from latentsync.face.points import MIRROR
from latentsync.media.clip import read_frames
from latentsync.train.cache import content_digest
from latentsync.train.truth import read_truth

STORED = 256  # side of the frames that are kept, pixels
CROP_EDGE = 0.5  # the corpus' landmarks count from the picture's edge


class Frames:
    """A few frames of each clip, spread over its length, (n, 256, 256, 3) uint8, mapped from a file in `folder`, with landmarks (n, 68, 2)."""

    def __init__(self, media: list[Path], each: int, fps: int, folder: Path) -> None:
        self.media, self.each = media, each
        self.clip: list[int] = []
        points: list[np.ndarray] = []
        stored: list[np.ndarray] = []
        for number, path in enumerate(media):
            truth = read_truth(path, ("landmarks",))["landmarks"]
            if truth.ndim != 3 or truth.shape[1:] != (68, 2):
                raise InputError(f"{path.with_suffix('.npz')}: landmarks are {truth.shape}; 68 for each frame are needed")
            rows = np.unique(np.linspace(0, len(truth) - 1, each + 2).round().astype(int)[1:-1])
            pictures, scale = _kept(path, [Fraction(int(r), fps) for r in rows], folder)
            stored.append(pictures)
            points += [truth[r].astype(np.float64) * scale - CROP_EDGE for r in rows]
            self.clip += [number] * len(rows)
        self._stored = stored
        self._first = np.cumsum([0, *(len(s) for s in stored)])
        self.points = np.stack(points)

    def __len__(self) -> int:
        return len(self.points)

    def picture(self, index: int) -> np.ndarray:
        """(256, 256, 3) uint8 RGB"""
        clip = self.clip[index]
        return np.asarray(self._stored[clip][index - self._first[clip]])


def _kept(path: Path, times: list[Fraction], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The frames of one clip at those times, from the folder or else decoded and put there; and stored pixels per pixel of the clip, x and y."""
    stamp = "-".join(str(t * 1000) for t in times).encode()
    file = folder / f"faces-1-{STORED}-{content_digest(path)}-{len(times)}-{sum(stamp) % 65536:04x}.npy"
    sides = folder / f"{file.stem}.size.npy"
    with suppress(OSError, ValueError):  # not there yet, or damaged: made anew
        return np.load(file, mmap_mode="r"), STORED / np.load(sides)[::-1]
    frames = read_frames(path, times)
    size = np.array(frames.shape[1:3], np.float64)
    small = np.stack([cv2.resize(f, (STORED, STORED), interpolation=cv2.INTER_AREA) for f in frames])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, array in ((sides, size), (file, small)):
            scratch = folder / f".{uuid.uuid4().hex}.npy"
            np.save(scratch, array)
            os.replace(scratch, target)
    except OSError as e:
        raise OutputError(f"cannot keep frames in {folder}: {e.strerror or e}; free some space or set data.cache") from e
    return np.load(file, mmap_mode="r"), STORED / size[::-1]


class Scene(NamedTuple):
    """A picture with faces in it."""

    picture: np.ndarray  # (s, s, 3) uint8
    faces: list[np.ndarray]  # landmarks (68, 2) of each


def scene(frames: Frames, draw: np.random.Generator, side: int) -> Scene:
    """A square picture of that side with no face, one, or several, 8 to 90 % of the side."""
    canvas = texture(draw, side)
    faces: list[np.ndarray] = []
    wanted = int(draw.choice(4, p=[0.1, 0.62, 0.16, 0.12]))
    for _ in range(wanted):
        largest = 0.9 if wanted == 1 else 0.4
        size = side * math.exp(draw.uniform(math.log(0.08), math.log(largest)))
        index = int(draw.integers(len(frames)))
        turn = math.radians(draw.uniform(-30, 30) if draw.random() < 0.6 else draw.normal(0, 7))
        picture, points = mirrored(frames.picture(index), frames.points[index], bool(draw.integers(2)))
        scale = size / extent(points)
        room = max(0.0, 0.5 - 0.35 * size / side)
        centre = side * (0.5 + draw.uniform(-room, room, 2))
        matrix = similarity(points.mean(0), centre, scale, turn)
        placed = transformed(points, matrix)
        seen, mask = pasted(picture, points, matrix, side, draw)
        if any(mask[_box(other, side)].mean() > 0.1 for other in faces):
            continue
        seen = coloured(seen, draw)
        canvas = np.where(mask[..., None] > 0, seen * mask[..., None] + canvas * (1 - mask[..., None]), canvas).astype(np.float32)
        if draw.random() < 0.25:
            spectacles(canvas, placed, draw)
        if draw.random() < 0.15:
            cover(canvas, placed, draw)
        faces.append(placed)
    return Scene(degraded(coloured(canvas, draw, 0.5), draw, fine=True), faces)


class Chip(NamedTuple):
    """A crop as the pointer sees it."""

    picture: np.ndarray  # (s, s, 3) uint8
    points: np.ndarray  # (68, 2)
    present: bool


def chip(frames: Frames, draw: np.random.Generator, side: int) -> Chip:
    """A crop of that side around a face, not quite where it should be; one in seven shows no face, or not enough of one."""
    index = int(draw.integers(len(frames)))
    picture, points = mirrored(frames.picture(index), frames.points[index], bool(draw.integers(2)))
    present = draw.random() > 0.15
    region = region_of_points(points, 1.0)
    if present:
        away, grown, turned = draw.normal(0, 0.05, 2).clip(-0.15, 0.15), math.exp(draw.normal(0, 0.12)), draw.normal(0, 0.15)
    else:
        direction = draw.uniform(0, 2 * math.pi)
        away = draw.uniform(0.55, 0.9) * np.array([math.cos(direction), math.sin(direction)])
        grown, turned = math.exp(draw.uniform(-0.5, 0.3)), draw.normal(0, 0.4)
    region = Region(region.x + away[0] * region.side, region.y + away[1] * region.side, region.side * grown, region.angle + turned)
    matrix = to_region(region, 1.0, side)
    if present or draw.random() < 0.6:
        seen, mask = pasted(picture, points, matrix, side, draw, cut=0.35)
    else:
        seen, mask = texture(draw, side), np.ones((side, side), np.float32)
    canvas = coloured(seen, draw)
    if mask.min() < 1:
        canvas = canvas * mask[..., None] + texture(draw, side) * (1 - mask[..., None])
    placed = transformed(points, matrix)
    if draw.random() < 0.25:
        spectacles(canvas, placed, draw)
    if draw.random() < 0.2:
        cover(canvas, placed, draw)
    return Chip(degraded(canvas, draw, fine=False), placed, present)


# Geometry.


def mirrored(picture: np.ndarray, points: np.ndarray, really: bool) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its landmarks (68, 2), as in a mirror where `really`."""
    if not really:
        return picture, points
    return picture[:, ::-1], (points * [-1, 1] + [picture.shape[1] - 1, 0])[MIRROR]


def extent(points: np.ndarray) -> float:
    """Square root of the area of the upright box around points (n, 2)."""
    return float(np.sqrt(np.prod(points.max(0) - points.min(0))))


def similarity(of: np.ndarray, to: np.ndarray, scale: float, turn: float) -> np.ndarray:
    """(2, 3): the map that scales, turns by radians (clockwise on the screen) and brings one point to another."""
    c, s = scale * math.cos(turn), scale * math.sin(turn)
    linear = np.array([[c, -s], [s, c]])
    return np.column_stack([linear, np.asarray(to) - linear @ np.asarray(of)])


def transformed(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(n, 2) points through a (2, 3) map."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def pasted(
    picture: np.ndarray, points: np.ndarray, matrix: np.ndarray, side: int, draw: np.random.Generator, cut: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """The picture brought onto a canvas (side, side, 3) float32, and where it covers it (side, side) 0..1: whole, or cut out around the head."""
    linear = matrix[:, :2]
    scale = float(np.sqrt(abs(np.linalg.det(linear))))
    shrink = 1.0
    if scale < 0.7:  # averaged down first, or fine texture would alias
        size = max(4, round(picture.shape[0] * scale))
        shrink = size / picture.shape[0]
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    # small pixel v lies at (v + 0.5) / shrink - 0.5 of the picture
    adapted = np.column_stack([linear / shrink, matrix[:, 2] + linear @ np.full(2, 0.5 / shrink - 0.5)])
    seen = cv2.warpAffine(np.ascontiguousarray(picture), adapted, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if draw.random() >= cut:
        cover = np.full(picture.shape[:2], 255, np.uint8)
        mask = cv2.warpAffine(cover, adapted, (side, side), flags=cv2.INTER_LINEAR)
        return seen.astype(np.float32), mask.astype(np.float32) / 255
    chin, brow, size = points[8], points[19:25].mean(0), extent(points)
    grow = draw.uniform(1.0, 1.5)  # from the face alone to all of the hair
    up = (brow - chin) / max(float(np.linalg.norm(brow - chin)), 1e-6)
    middle = transformed((points.mean(0) + up * 0.22 * size * grow)[None], matrix)[0]
    angle = math.degrees(math.atan2(*(linear @ up)[::-1])) + 90
    axes = np.array([0.68, 0.85]) * size * grow * scale * draw.uniform(0.9, 1.1, 2)
    mask = np.zeros((side, side), np.uint8)
    cv2.ellipse(mask, (tuple(middle.tolist()), tuple((2 * axes).tolist()), angle), 255, -1)
    soft = cv2.GaussianBlur(mask, (0, 0), max(0.5, draw.uniform(0.01, 0.1) * size * scale))
    return seen.astype(np.float32), soft.astype(np.float32) / 255


def _box(points: np.ndarray, side: int) -> tuple[slice, slice]:
    (x0, y0), (x1, y1) = np.clip(points.min(0), 0, side - 2).astype(int), np.clip(points.max(0), 1, side - 1).astype(int)
    return slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1))


# What is drawn.


def texture(draw: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3) float32 0..255: blurred noise of some grain, a slope, and perhaps shapes."""
    base = draw.uniform(0, 255, 3) if draw.random() < 0.5 else np.repeat(draw.uniform(0, 255), 3)
    out = np.broadcast_to(base.astype(np.float32), (side, side, 3)).copy()
    for _ in range(int(draw.integers(0, 3))):
        grain = max(2, round(math.exp(draw.uniform(math.log(2), math.log(side)))))
        noise = draw.normal(0, draw.uniform(5, 60), (grain, max(2, int(grain * draw.uniform(0.3, 1))), 3 if draw.random() < 0.6 else 1))
        wide = cv2.resize(
            noise.astype(np.float32), (side, side), interpolation=int(draw.choice([cv2.INTER_LINEAR, cv2.INTER_NEAREST, cv2.INTER_CUBIC]))
        )
        out += wide[..., None] if wide.ndim == 2 else wide
    for _ in range(int(draw.integers(0, 7)) if draw.random() < 0.7 else 0):
        shape(out, draw, side)
    return np.clip(out, 0, 255)


def shape(canvas: np.ndarray, draw: np.random.Generator, side: int, at: np.ndarray | None = None, size: float | None = None) -> None:
    """Draws an ellipse, a box, a line or a polygon of one colour, somewhere or `at` a point, about `size` pixels large."""
    colour = draw.uniform(0, 255, 3) if draw.random() < 0.6 else _skin(draw)
    middle = draw.uniform(0, side, 2) if at is None else at
    reach = math.exp(draw.uniform(math.log(0.03), math.log(0.5))) * side if size is None else size
    kind = int(draw.integers(4))
    if kind == 0:
        axes = np.clip(reach * draw.uniform(0.3, 1.2, 2), 1, 4 * side)
        cv2.ellipse(
            canvas, (tuple(middle.tolist()), tuple((2 * axes).tolist()), draw.uniform(0, 180)), colour.tolist(), -1 if draw.random() < 0.8 else 2
        )
    elif kind == 1:
        half = reach * draw.uniform(0.2, 1.2, 2)
        low, high = (middle - half).astype(int), (middle + half).astype(int)
        cv2.rectangle(canvas, tuple(low.tolist()), tuple(high.tolist()), colour.tolist(), -1)
    elif kind == 2:
        way = draw.normal(0, 1, 2) * reach
        ends = (middle - way).astype(int), (middle + way).astype(int)
        cv2.line(canvas, tuple(ends[0].tolist()), tuple(ends[1].tolist()), colour.tolist(), max(1, int(draw.uniform(0.02, 0.4) * reach)))
    else:
        corners = (middle + draw.normal(0, reach * 0.7, (int(draw.integers(3, 7)), 2))).astype(np.int32)
        cv2.fillPoly(canvas, [corners], colour.tolist())


def _pixel(point: np.ndarray) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


def _skin(draw: np.random.Generator) -> np.ndarray:
    dark = draw.uniform(0.2, 1.0)
    return np.array([235, 190, 160]) * dark + draw.normal(0, 12, 3)


def spectacles(canvas: np.ndarray, points: np.ndarray, draw: np.random.Generator) -> None:
    """Draws glasses on a face with those landmarks, into the canvas."""
    eyes = np.stack([points[36:42].mean(0), points[42:48].mean(0)])
    across = eyes[1] - eyes[0]
    gap = float(np.linalg.norm(across))
    if gap < 4:
        return
    angle = math.degrees(math.atan2(across[1], across[0]))
    colour = (draw.uniform(0, 90, 3) if draw.random() < 0.7 else draw.uniform(60, 230, 3)).tolist()
    thick = max(1, round(gap * draw.uniform(0.02, 0.1)))
    axes = gap * np.array([draw.uniform(0.5, 0.85), draw.uniform(0.35, 0.75)])
    shaded = draw.random() < 0.2
    for eye in eyes:
        if shaded:
            lens = canvas.copy()
            cv2.ellipse(lens, (tuple(eye.tolist()), tuple(axes.tolist()), angle), draw.uniform(0, 80, 3).tolist(), -1)
            canvas += draw.uniform(0.4, 0.95) * (lens - canvas)
        cv2.ellipse(canvas, (tuple(eye.tolist()), tuple(axes.tolist()), angle), colour, thick, cv2.LINE_AA)
    half = across / gap * axes[0] / 2
    cv2.line(canvas, _pixel(eyes[0] + half), _pixel(eyes[1] - half), colour, thick, cv2.LINE_AA)


def cover(canvas: np.ndarray, points: np.ndarray, draw: np.random.Generator) -> None:
    """Draws something before a part of the face: a microphone, a hand, a strand of hair."""
    size = extent(points)
    at = points[int(draw.integers(68))] + draw.normal(0, 0.1 * size, 2)
    shape(canvas, draw, canvas.shape[0], at, size * draw.uniform(0.08, 0.3))


def coloured(picture: np.ndarray, draw: np.random.Generator, share: float = 1.0) -> np.ndarray:
    """(h, w, 3) float32 0..255 in another light, with other colours and contrast; `share` of how far that may go. The same shape."""
    out = picture.astype(np.float32)
    height, width = out.shape[:2]
    if draw.random() < 0.5:  # light from one side
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        way = draw.uniform(0, 2 * math.pi)
        out *= np.exp(share * draw.uniform(0, 0.7) * (math.cos(way) * x + math.sin(way) * y))[..., None]
    if draw.random() < 0.3:  # blotches: pores, freckles, shade
        grain = int(draw.integers(4, 40))
        out *= 1 + cv2.resize(draw.normal(0, 0.12 * share, (grain, grain)).astype(np.float32), (width, height))[..., None]
    grey = out @ np.array([0.299, 0.587, 0.114], np.float32)
    saturation = 0.0 if draw.random() < 0.1 * share else math.exp(share * draw.normal(0, 0.4))
    out = grey[..., None] + saturation * (out - grey[..., None])
    if draw.random() < 0.4:  # hues turned a little
        angle = share * draw.normal(0, 0.25)
        axis = np.full(3, 1 / math.sqrt(3))
        cross = np.cross(np.eye(3), axis)
        turn = math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * np.outer(axis, axis)
        out = out @ turn.T.astype(np.float32)
    out = out * np.exp(share * draw.normal(0, 0.12, 3)).astype(np.float32)
    low = float(out.mean())
    out = (out - low) * math.exp(share * draw.normal(0, 0.3)) + low * math.exp(share * draw.normal(0, 0.4))
    gamma = math.exp(share * draw.normal(0, 0.25))
    return np.asarray(255 * np.clip(out / 255, 0, 1) ** np.float32(gamma), np.float32)


def degraded(picture: np.ndarray, draw: np.random.Generator, *, fine: bool) -> np.ndarray:
    """(h, w, 3) float32 0..255 -> uint8: blur, motion, few pixels, noise, blocks of compression. `fine` keeps small faces visible."""
    out = picture
    side = out.shape[0]
    reach = 0.5 if fine else 1.0
    kind = int(draw.integers(6))
    if kind == 0:
        out = cv2.GaussianBlur(out, (0, 0), 0.3 + reach * draw.uniform(0, 1.6))
    elif kind == 1:
        few = max(8, int(side * draw.uniform(1 - 0.7 * reach, 1)))
        out = cv2.resize(cv2.resize(out, (few, few), interpolation=cv2.INTER_AREA), (side, side), interpolation=cv2.INTER_LINEAR)
    elif kind == 2:
        length = int(draw.integers(2, 3 + int(6 * reach)))
        line = np.zeros((length, length), np.float32)
        way = draw.uniform(0, math.pi)
        end = np.array([math.cos(way), math.sin(way)]) * length / 2
        middle = np.full(2, (length - 1) / 2)
        cv2.line(line, _pixel(middle - end), _pixel(middle + end), 1.0)
        out = cv2.filter2D(out, -1, line / max(float(line.sum()), 1e-6))
    elif kind == 3:
        soft = cv2.GaussianBlur(out, (0, 0), 1.0)
        out = out + draw.uniform(0.2, 1.5) * (out - soft)
    if draw.random() < 0.5:
        grain = draw.normal(0, 1, (*out.shape[:2], 3 if draw.random() < 0.5 else 1)).astype(np.float32)
        out = out + grain * abs(draw.normal(0, 9))
    flat = np.clip(out, 0, 255).astype(np.uint8)
    if draw.random() < 0.4:
        ok, packed = cv2.imencode(".jpg", flat, [cv2.IMWRITE_JPEG_QUALITY, int(draw.integers(15, 90))])
        if ok:
            flat = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return flat
