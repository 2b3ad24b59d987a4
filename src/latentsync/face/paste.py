"""Aligned face -> the frame, as a patch that covers the face's bounding box and nothing else.

The published system (paper arXiv 2412.09262) warps whole frames back and builds its soft mask by erosion and blur over whole frames. Here the
warped field of ones and its erosion by a rectangle are written down in closed form, so the cost depends on the size of the face alone.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from latentsync.errors import LatentSyncError
from latentsync.face.align import Box, bounds, check_matrix, crop_size, invert, warp
from latentsync.face.mask import hull_mask, muzzle_mask

Float32Array = npt.NDArray[np.float32]

EDGE_PART = 20  # the soft edge's unit w is this part of the square root of the face's area
RIM = 2  # pixels taken off the warped face first: its outermost samples are mixed with what lies outside
SHRINK_LIMIT = 0.75  # below this scale bilinear sampling skips pixels, above its inverse it shows: then the face is resized to the scale itself
MOST_ENLARGED = 4.0  # ... and no larger than this, lest a face beyond any sense fill the memory
RIM_SIGMA = 0.02  # softness of the rim inside the generated part, in sides of the face: the step there shows on real faces, a ramp does not
RIM_LOW, RIM_HIGH = 0.5, 0.98  # values of the blurred mask between which that rim rises: from the mask's edge to two sigma inside
PUBLISHED_OUTSIDE = (127 / 2 + 0.5) * 255  # the grey level 127, taken for a value of a face in [-1, 1]
COARSE_EDGE = 16  # a soft edge with w of twice this and more is computed on a grid coarse enough to bring w down to it


class Patch(NamedTuple):
    """What a face changes in a frame: frame * (1 - alpha) + rgb * alpha inside `box`, nothing elsewhere."""

    box: Box  # x0, y0, x1, y1, half-open, pixels; smallest box that holds every alpha > 0; (0, 0, 0, 0) if there is none
    rgb: Float32Array  # (h, w, 3), 0..255
    alpha: Float32Array  # (h, w), 0..1


EMPTY = Patch((0, 0, 0, 0), np.zeros((0, 0, 3), np.float32), np.zeros((0, 0), np.float32))


def paste(
    face: Float32Array,
    matrix: npt.ArrayLike,
    width: int,
    height: int,
    strength: float = 1.0,
    *,
    mask: Float32Array | None = None,
    outline: npt.NDArray[np.float64] | None = None,
    muzzle: bool = False,
    published: bool = False,
) -> Patch:
    """(R, R, 3) float32 RGB 0..255 -> patch for a width x height frame; `matrix` is the (2, 3) map frame -> crop the face was cut with.

    The face is resized to its scale in the frame (bicubic, antialiased) and warped back bilinearly. Its soft mask is the warped field of ones
    eroded by 2 px, then by 2w, and blurred with a Gaussian of 2w + 1 px, where w = floor(sqrt(area) / 20) and the area is that of the
    once-eroded ones. `strength` 0..1 scales alpha (fading in and out).

    `mask` (R, R), 1 = keep and 0 = generated, narrows the patch to the generated part with a soft rim inside it, so that the rest of the face,
    which went through two resamplings, does not touch the frame, and the step at the mask's edge becomes a ramp. None pastes the whole crop,
    as published. `outline` (k, 2), in pixels of the frame, narrows that part further, to their convex hull with a soft edge: what the network
    made of the background beside the jaw stays out of the picture. `muzzle` narrows it to mouth and chin (`muzzle_mask`). Both need a mask.

    `published=True` repeats three habits of the published system, to compare with it: it warps from `crop_size` at every scale (skipping
    pixels of faces much smaller in the frame, showing facets on much larger ones), mixes the crop's outermost samples with white, and
    darkens the outermost pixel of the soft mask.

    A face outside the frame, or too small to have any alpha, gives an empty patch. LatentSyncError if the matrix cannot be inverted or the
    arrays do not fit each other.
    """
    m = check_matrix(matrix)
    if face.ndim != 3 or face.shape[0] != face.shape[1] or face.shape[2] != 3:
        raise LatentSyncError(f"a face to paste has shape (R, R, 3), found {face.shape}")
    if mask is not None and mask.shape != face.shape[:2]:
        raise LatentSyncError(f"the mask has shape {mask.shape}, but the face is {face.shape[0]} x {face.shape[1]}")
    resolution = face.shape[0]
    field = crop_size(resolution)
    box = bounds(invert(m), *field, width, height)
    if box is None or strength <= 0:
        return EMPTY
    # From here on coordinates are relative to the box, which keeps float32 exact enough at any frame size.
    x0, y0, x1, y1 = box
    m = _moved(m, x0, y0)
    area = _Area(m, field, x1 - x0, y1 - y0, (-x0, width - 1 - x0), (-y0, height - 1 - y0))
    edge = area.edge()
    alpha = area.soft(edge)
    if mask is not None:
        within = muzzle_mask(resolution) if muzzle else None
        if outline is not None:
            hull = hull_mask(_in_face(outline, check_matrix(matrix), resolution), resolution)
            within = hull if within is None else hull * within
        alpha *= _generated(mask, m, field, alpha.shape, within)
    columns, rows = _support(alpha.max(axis=0)), _support(alpha.max(axis=1))
    if columns is None or rows is None:
        return EMPTY
    alpha = np.ascontiguousarray(alpha[rows, columns])
    rgb = _warp_back(face, _moved(m, columns.start, rows.start), field, alpha.shape, published)
    if published:
        rgb *= area.eroded(RIM - 1, 0)[rows, columns, None]
    if strength < 1:
        alpha *= np.float32(strength)
    return Patch((x0 + columns.start, y0 + rows.start, x0 + columns.stop, y0 + rows.stop), rgb, alpha)


def _moved(m: npt.NDArray[np.float64], x: int, y: int) -> npt.NDArray[np.float64]:
    """The same map for coordinates that count from pixel (x, y)."""
    return np.column_stack([m[:, :2], m[:, 2] + m[:, :2] @ (x, y)])


class _Area(NamedTuple):
    """The crop's field of ones warped to a box of the frame, in closed form.

    Bilinear sampling makes it a product of two trapezoids, one along each axis of the crop. The minimum of a trapezoid over a rectangle lies at
    a corner of the rectangle, and since the map is affine, the corner's column and row part are found apart, as vectors: an erosion costs a few
    passes over the box whatever its size.
    """

    matrix: npt.NDArray[np.float64]  # box -> crop
    field: tuple[int, int]  # width, height of the crop
    width: int  # of the box
    height: int
    limit_x: tuple[int, int]  # first and last column of the frame; an erosion does not look beyond
    limit_y: tuple[int, int]

    def edge(self) -> int:
        """w: the unit of the soft edge, from the part of the once-eroded area that lies in the frame."""
        (a, b, _), (c, d, _) = self.matrix
        left, right = _eroded_side(self.field[0], a, b)
        top, bottom = _eroded_side(self.field[1], c, d)
        if left >= right or top >= bottom:
            return 0
        quad = np.array([[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]]) @ invert(self.matrix).T
        return int(np.sqrt(_clipped_area(quad, self.limit_x, self.limit_y))) // EDGE_PART

    def eroded(self, before: float, after: float, step: int = 1) -> Float32Array:
        """(ceil(h / step), ceil(w / step)): minimum over `before` pixels to the left and above, `after` to the right and below, of each pixel.

        With step > 1 the edge is as wide as a cell of the coarse grid, so that it keeps its place.
        """
        columns = (np.arange(-(-self.width // step)) + 0.5) * step - 0.5
        rows = (np.arange(-(-self.height // step)) + 0.5) * step - 0.5
        xs = np.clip(columns - before, *self.limit_x), np.clip(columns + after, *self.limit_x)
        ys = np.clip(rows - before, *self.limit_y), np.clip(rows + after, *self.limit_y)
        out: Float32Array | None = None
        for (a, b, c), size in zip(self.matrix, self.field, strict=True):
            ramp = max(1.0, step * float(np.hypot(a, b))) if step > 1 else 1.0
            # Distance to the nearer end of the row of ones, in ramps, plus one half: 1 and more inside, 0 and less outside.
            low_x, low_y = np.minimum(a * xs[0], a * xs[1]), np.minimum(b * ys[0], b * ys[1]) + c
            high_x, high_y = np.maximum(a * xs[0], a * xs[1]), np.maximum(b * ys[0], b * ys[1]) + c
            near = ((low_x + 0.5) / ramp + 0.5).astype(np.float32)[None, :] + (low_y / ramp).astype(np.float32)[:, None]
            far = ((size - 0.5 - high_x) / ramp + 0.5).astype(np.float32)[None, :] - (high_y / ramp).astype(np.float32)[:, None]
            ones = np.clip(np.minimum(near, far, out=near), 0, 1, out=near)
            out = ones if out is None else np.multiply(out, ones, out=out)
        assert out is not None
        return out

    def soft(self, edge: int) -> Float32Array:
        """(h, w): the mask the face is blended with."""
        if edge == 0:  # under 400 pixels of face: nothing to blur
            return self.eroded(RIM - 1, 0)
        sigma = 0.3 * (edge - 1) + 0.8
        step = max(1, edge // COARSE_EDGE)
        size = 2 * round(edge / step) + 1
        out = cv2.GaussianBlur(self.eroded(edge + RIM - 1, edge - 1, step), (size, size), sigma / step)
        if step > 1:
            out = cv2.resize(out, (out.shape[1] * step, out.shape[0] * step), interpolation=cv2.INTER_LINEAR)[: self.height, : self.width]
        return np.minimum(out, 1, dtype=np.float32)  # the blur's weights add up to 1 only within rounding


def _eroded_side(length: int, along_x: float, along_y: float) -> tuple[float, float]:
    """Where a side of the crop begins and ends once RIM - 1 pixels of the frame to the left and above count too; crop pixels."""
    shift = RIM - 1
    return -0.5 + shift * (max(along_x, 0) + max(along_y, 0)), length - 0.5 + shift * (min(along_x, 0) + min(along_y, 0))


def _clipped_area(polygon: npt.NDArray[np.float64], limit_x: tuple[int, int], limit_y: tuple[int, int]) -> float:
    """Area of the part of a convex (n, 2) polygon that lies on the pixels first..last of both limits."""
    for axis, (first, last) in enumerate((limit_x, limit_y)):
        for bound, sign in ((first - 0.5, 1.0), (last + 0.5, -1.0)):
            kept: list[npt.NDArray[np.float64]] = []
            for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                inside, next_inside = sign * (start[axis] - bound) >= 0, sign * (end[axis] - bound) >= 0
                if inside:
                    kept.append(start)
                if inside != next_inside:
                    kept.append(start + (end - start) * ((bound - start[axis]) / (end[axis] - start[axis])))
            if not kept:
                return 0.0
            polygon = np.array(kept)
    x, y = (polygon - polygon.mean(axis=0)).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _support(profile: Float32Array) -> slice | None:
    """From the first to the last positive value; None if there is none."""
    found = np.flatnonzero(profile > 0)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else None


def _in_face(points: npt.NDArray[np.float64], m: npt.NDArray[np.float64], resolution: int) -> npt.NDArray[np.float64]:
    """(k, 2) points of the frame -> the same in the square face of `resolution` that the frame's crop is squeezed to."""
    scale = np.array([resolution / size for size in crop_size(resolution)])
    return (points @ m[:, :2].T + m[:, 2] + 0.5) * scale - 0.5


def _generated(
    mask: Float32Array, m: npt.NDArray[np.float64], field: tuple[int, int], shape: tuple[int, ...], within: Float32Array | None = None
) -> Float32Array:
    """(h, w): 1 well inside the generated part, times `within` (R, R), falling to 0 at its edge, for a box that `m` maps to the crop."""
    resolution = mask.shape[0]
    scale = np.array([[resolution / field[0]], [resolution / field[1]]])
    to_face = m * scale
    to_face[:, 2:] += (scale - 1) / 2
    # At least about a pixel of the frame, else the rim of a small face is sampled as a staircase.
    sigma = max(RIM_SIGMA * resolution, 0.7 * float(np.linalg.norm(to_face[:, :2], 2)))
    region = cv2.GaussianBlur(1 - mask.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    region = np.clip((region - RIM_LOW) / (RIM_HIGH - RIM_LOW), 0, 1)
    if within is not None:
        region = region * within
    return warp(region, to_face, shape[1], shape[0], None)


def _warp_back(face: Float32Array, m: npt.NDArray[np.float64], field: tuple[int, int], shape: tuple[int, ...], published: bool) -> Float32Array:
    """(R, R, 3) -> (h, w, 3) float32 0..255: the face as seen from a box that `m` maps to the crop."""
    linear = np.linalg.inv(m[:, :2])
    size = []
    for length, scale in zip(field, np.hypot(linear[0], linear[1]), strict=True):
        resize = not published and not SHRINK_LIMIT <= scale <= 1 / SHRINK_LIMIT
        size.append(max(1, round(length * min(scale, MOST_ENLARGED))) if resize else length)
    width, height = size
    planes = torch.from_numpy(np.ascontiguousarray(face.transpose(2, 0, 1), dtype=np.float32))[None]
    upright = interpolate(planes, (height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).contiguous().numpy()
    scale = np.array([[width / field[0]], [height / field[1]]])
    to_upright = m * scale
    to_upright[:, 2:] += (scale - 1) / 2
    out = warp(upright, to_upright, shape[1], shape[0], PUBLISHED_OUTSIDE if published else None)
    return np.clip(out, 0, 255, out=out)
