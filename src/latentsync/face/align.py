"""Frame -> aligned face crop, in double precision and on the face's region only.

The template, the similarity transform and the two-step resampling are those of the published system (paper arXiv 2412.09262), so that its
weights see the crops they were trained on. Two of its habits are left out on purpose: half-precision matrices (errors up to 0.9 px at 4K) and
a 'smoothing' bias that is computed in normalised units but added as pixels.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import grid_sample

from latentsync.errors import LatentSyncError

Box = tuple[int, int, int, int]

OUTSIDE = 127.0  # grey level of what lies outside the frame
TEMPLATE = ((17.0, 20.0), (58.0, 20.0), (37.5, 40.0))  # brow on the image's left, the other brow, nose; in a field of 75 x 100
FIELD = (75, 100)  # width and height of that field
FIELD_SCALE = 2.8  # pixels per unit of the field, at 256 px
SHRINK_LIMIT = 0.75  # below this scale plain bilinear sampling skips pixels, so the source is area-averaged first


class PictureRegion(Protocol):
    """What cropping needs to know of a picture."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    def rgb(self, box: Box | None = None) -> npt.NDArray[np.uint8]: ...


def crop_size(resolution: int) -> tuple[int, int]:
    """(width, height) in pixels of the upright crop that the matrix maps to, before it is squeezed to resolution x resolution.

    210 x 280 at 256 and 420 x 560 at 512.
    """
    ratio = resolution / 256 * FIELD_SCALE
    return int(FIELD[0] * ratio), int(FIELD[1] * ratio)


def template(resolution: int) -> npt.NDArray[np.float64]:
    """(3, 2): where the three alignment points come to lie in the crop, pixels."""
    return np.array(TEMPLATE) * (resolution / 256 * FIELD_SCALE)


def alignment(points: npt.ArrayLike, resolution: int, pixel_aspect: float | Fraction = 1) -> npt.NDArray[np.float64]:
    """(3, 2) points -> (2, 3) float64 matrix that maps frame pixels to crop pixels (integer coordinates are pixel centres).

    `points` are the centre of the brow on the image's left, of the other brow, and of the nose, in pixels of the frame. The map is the
    proper similarity (rotation, one scale, shift) that brings the normalised points onto the normalised template: both sets are centred
    and divided by their standard deviation, and the rotation comes from the SVD of their covariance (orthogonal Procrustes).
    With `pixel_aspect` (width of a sample over its height) other than 1 the similarity holds in square display pixels; the matrix still
    starts from the frame's own samples, so it is then a general affine map.

    Raises LatentSyncError if the points are not finite or all lie in one place.
    """
    source = np.asarray(points, dtype=np.float64)
    if source.shape != (3, 2):
        raise LatentSyncError(f"alignment needs 3 points (x, y), found an array of shape {source.shape}")
    if not np.isfinite(source).all():
        raise LatentSyncError(f"alignment points must be finite numbers, found {source.tolist()}")
    aspect = float(pixel_aspect)
    if not (np.isfinite(aspect) and aspect > 0):
        raise LatentSyncError(f"the pixel aspect must be a positive number, found {pixel_aspect}")
    # Sample centres: sample i covers [i - 0.5, i + 0.5], which in display pixels starts at the same edge.
    to_display = np.array([[aspect, 0.0, (aspect - 1) / 2], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    source = source @ to_display[:2, :2].T + to_display[:2, 2]
    target = template(resolution)
    source_centre, target_centre = source.mean(axis=0), target.mean(axis=0)
    source_spread, target_spread = (source - source_centre).std(ddof=1), (target - target_centre).std(ddof=1)
    if source_spread < 1e-6:
        raise LatentSyncError(f"the three alignment points lie in one place, {source_centre.tolist()}; the frame has no usable face there")
    u, _, vt = np.linalg.svd((source - source_centre).T @ (target - target_centre) / (source_spread * target_spread))
    if np.linalg.det(u @ vt) < 0:  # the best fit would mirror the face: take the best proper rotation instead
        u[:, -1] *= -1
    linear = (u @ vt).T * (target_spread / source_spread)
    matrix = np.column_stack([linear, target_centre - linear @ source_centre])
    return matrix @ to_display


def check_matrix(matrix: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The (2, 3) matrix as a float64 copy; LatentSyncError if it is not finite or cannot be inverted."""
    m = np.array(matrix, dtype=np.float64)
    if m.shape != (2, 3):
        raise LatentSyncError(f"an alignment matrix has shape (2, 3), found {m.shape}")
    if not np.isfinite(m).all():
        raise LatentSyncError(f"the alignment matrix holds values that are not finite: {m.tolist()}")
    size = np.abs(m[:, :2]).max()
    if not 1e-9 < size < 1e9 or abs(np.linalg.det(m[:, :2] / size)) < 1e-9 or np.abs(m[:, 2]).max() > 1e15:
        raise LatentSyncError(f"the alignment matrix cannot be inverted: {m.tolist()}; its points lie in one place or on one line")
    return m


def invert(matrix: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(2, 3) -> (2, 3): the inverse map. LatentSyncError if there is none."""
    m = check_matrix(matrix)
    linear = np.linalg.inv(m[:, :2])
    return np.column_stack([linear, -linear @ m[:, 2]])


def bounds(matrix: npt.ArrayLike, width: int, height: int, limit_width: int, limit_height: int, margin: float = 1.0) -> Box | None:
    """Box of the pixels that `matrix` can reach from a width x height picture (its samples grown by `margin`), cut to the limits.

    None if nothing is left. `matrix` maps that picture's pixels to the pixels the box is given in.
    """
    m = np.asarray(matrix, dtype=np.float64)
    left, top, right, bottom = -margin, -margin, width - 1 + margin, height - 1 + margin
    corners = np.array([[left, top, 1], [right, top, 1], [left, bottom, 1], [right, bottom, 1]]) @ m.T
    low = np.clip(np.floor(corners.min(axis=0)), 0, (limit_width, limit_height)).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)) + 1, 0, (limit_width, limit_height)).astype(int)
    if (low >= high).any():
        return None
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def warp(
    image: npt.NDArray[np.uint8] | npt.NDArray[np.float32], matrix: npt.NDArray[np.float64], width: int, height: int, outside: float | None
) -> npt.NDArray[np.float32]:
    """(h, w) or (h, w, c) -> (height, width, ...) float32: bilinear samples at the places that `matrix` maps the output's pixels to.

    Beyond its outermost pixel centres the image fades into `outside` over one pixel, or repeats its edge if that is None. OpenCV's warpAffine
    would be quicker, but up to 4.12 it rounds places to 1/32 pixel, which is off by several levels at sharp edges.
    """
    planes = np.atleast_3d(image).transpose(2, 0, 1)
    source_height, source_width = planes.shape[1:]
    grid = np.empty((height, width, 2), dtype=np.float32)  # in halves of the image, from its middle, edges at -1 and 1
    columns, rows = np.arange(width), np.arange(height)
    for i, ((a, b, c), size) in enumerate(zip(matrix, (source_width, source_height), strict=True)):
        along_x, along_y = (2 * (a * columns + c) + 1) / size - 1, 2 * b * rows / size
        np.add(along_x.astype(np.float32)[None, :], along_y.astype(np.float32)[:, None], out=grid[..., i])
    np.clip(grid, -4, 4, out=grid)  # all outside, even of an image of one pixel; larger numbers would overflow where pixels are counted
    source = torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32))[None]
    if outside is not None:
        source = source - outside
    padding = "border" if outside is None else "zeros"
    out = grid_sample(source, torch.from_numpy(grid)[None], mode="bilinear", padding_mode=padding, align_corners=False)[0]
    if outside is not None:
        out = out + outside
    return out.permute(1, 2, 0).contiguous().numpy().reshape((height, width, *image.shape[2:]))


def crop(picture: PictureRegion, matrix: npt.ArrayLike, resolution: int) -> npt.NDArray[np.uint8]:
    """(R, R, 3) uint8 RGB: the aligned face, read from the face's region of the picture only; outside the frame it is 127.

    Bilinear sampling to `crop_size`, cut down to whole levels, then Lanczos to R x R, as published. A face that is much larger than the
    crop (scale under 0.75, close-ups at 4K) is area-averaged first, where the published system skips pixels and aliases.
    LatentSyncError if the matrix cannot be inverted.
    """
    m = check_matrix(matrix)
    width, height = crop_size(resolution)
    out = np.full((height, width, 3), OUTSIDE, dtype=np.float32)
    box = bounds(invert(m), width, height, picture.width, picture.height)
    if box is not None:
        region = picture.rgb(box)
        m[:, 2] += m[:, :2] @ box[:2]
        region, m = _shrink(region, m)
        out = warp(region, invert(m), width, height, OUTSIDE)
    upright = (out + np.float32(1e-3)).astype(np.uint8)  # cut down, as published; the sliver keeps exact levels where float32 fell just short
    return cv2.resize(upright, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4).astype(np.uint8, copy=False)


def squeezed(matrix: npt.ArrayLike, resolution: int) -> npt.NDArray[np.float64]:
    """(2, 3) frame -> upright crop of `crop_size`, as `alignment` gives it -> (2, 3) frame -> the resolution x resolution crop."""
    scale = resolution / np.array(crop_size(resolution))
    out = np.asarray(matrix, dtype=np.float64) * scale[:, None]
    out[:, 2] += (scale - 1) / 2
    return out


def mapped(points: npt.NDArray[np.float64], matrices: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, p, 2) points and (n, 2, 3) matrices, one for each frame -> (n, p, 2)."""
    return np.einsum("nij,npj->npi", matrices[:, :, :2], points) + matrices[:, None, :, 2]


def _shrink(region: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Area-average the region along each axis that the matrix shrinks below SHRINK_LIMIT; the matrix then starts from the smaller region."""
    height, width = region.shape[:2]
    across, down = np.hypot(matrix[0, 0], matrix[1, 0]), np.hypot(matrix[0, 1], matrix[1, 1])
    new_width = max(1, round(width * across)) if across < SHRINK_LIMIT else width
    new_height = max(1, round(height * down)) if down < SHRINK_LIMIT else height
    if (new_width, new_height) == (width, height):
        return region, matrix
    sx, sy = width / new_width, height / new_height
    grow = np.array([[sx, 0.0, (sx - 1) / 2], [0.0, sy, (sy - 1) / 2], [0.0, 0.0, 1.0]])
    return cv2.resize(region, (new_width, new_height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False), matrix @ grow
