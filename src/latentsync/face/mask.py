"""The region of the aligned face that is generated anew: mouth, cheeks and jaw, with the nose kept (paper arXiv 2412.09262).

The mask is drawn here from its outline; nothing is read from a picture.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from latentsync.errors import LatentSyncError

Float32Array = npt.NDArray[np.float32]

SIDE = 256  # the outline's own resolution
LATENT_STRIDE = 8  # pixels per latent cell
HULL_SIDE = 0.09  # from the hull's left and right edge inwards, in sides of the face: over so much the new face comes to count fully
HULL_SIGMA = 0.0125  # softness of that, in sides of the face
MUZZLE_SIGMA = 0.045  # softness of the muzzle's edge, in sides of the face: skin meets skin there
MUZZLE_LOW, MUZZLE_HIGH = 0.05, 0.85  # values of the blurred muzzle between which the new face comes to count fully
# (x, y) at 256 px, from below the nose round the mouth to below the chin, wide enough for lips and chins of heads turned by 40 degrees.
MUZZLE = ((66, 120), (190, 120), (200, 160), (200, 200), (184, 236), (150, 256), (106, 256), (72, 236), (56, 200), (56, 160))
# (x, y) at 256 px; pixel i covers i..i + 1, and is inside when its centre is.
OUTLINE = (
    (9.0, 95.0),
    (9.25, 132.75),
    (12.0, 170.75),
    (22.0, 188.0),
    (30.0, 198.0),
    (30.75, 198.0),
    (34.5, 202.5),
    (41.0, 209.0),
    (48.5, 215.0),
    (60.5, 223.0),
    (93.0, 238.5),
    (110.0, 242.0),
    (151.5, 243.0),
    (164.5, 239.5),
    (183.5, 231.5),
    (202.25, 221.25),
    (217.5, 208.5),
    (226.75, 197.75),
    (241.25, 176.75),
    (245.0, 169.5),
    (247.75, 132.0),
    (248.0, 128.0),
    (247.0, 128.0),
    (247.0, 95.0),
    (178.0, 95.0),
    (178.0, 128.0),
    (78.0, 128.0),
    (78.0, 95.0),
)


def _covered(resolution: int, samples: int, corners: tuple[tuple[float, float], ...] = OUTLINE) -> npt.NDArray[np.float64]:
    """(R, R): part of each pixel that lies inside the polygon at 256 px, from samples x samples points (1: the pixel's centre)."""
    # Scan lines: on each line the crossings of the outline, sorted; what lies between an odd and an even crossing is inside.
    scale = resolution / SIDE
    outline = np.array(corners) * scale
    start, end = outline, np.roll(outline, -1, axis=0)
    points = (np.arange(resolution * samples) + 0.5) / samples
    inside = np.zeros((resolution * samples, resolution * samples), dtype=bool)
    for (ax, ay), (bx, by) in zip(start, end, strict=True):
        lines = np.flatnonzero((ay > points) != (by > points))
        if lines.size:
            crossing = ax + (bx - ax) * (points[lines] - ay) / (by - ay)
            inside[lines] ^= points[None, :] < crossing[:, None]
    return inside.reshape(resolution, samples, resolution, samples).mean(axis=(1, 3))


@lru_cache(maxsize=8)
def _mask(resolution: int, soft: bool) -> Float32Array:
    if resolution < LATENT_STRIDE:
        raise LatentSyncError(f"a mask needs a resolution of at least {LATENT_STRIDE}, found {resolution}")
    if soft:
        keep = (1 - _covered(resolution, 4)).astype(np.float32)
        # The published mask's edge is one pixel of 256 wide whatever the resolution: keep that softness, without its steps.
        sigma = 0.5 * resolution / SIDE
        keep = cv2.GaussianBlur(keep, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE).astype(np.float32)
    else:
        keep = (1 - _covered(resolution, 1)).astype(np.float32)
    keep.setflags(write=False)
    return keep


def inpaint_mask(resolution: int, soft: bool | None = None) -> Float32Array:
    """(R, R) float32: 1 = keep, 0 = inpaint. Read-only, since it is shared.

    At 256 px the edge is hard, as the networks were trained with. Above, `soft` (the default there) draws the outline at that resolution with
    an edge as wide as one pixel at 256 px, where the published mask shows the enlarged steps of its 256 px edge.
    """
    return _mask(resolution, resolution > SIDE if soft is None else soft)


def resized_mask(resolution: int) -> Float32Array:
    """(R, R) float32: the hard 256 px mask resized with Lanczos, 8 bits deep: how the published system gets it at other resolutions."""
    levels = np.rint(inpaint_mask(SIDE, soft=False) * 255).astype(np.uint8)
    if resolution != SIDE:
        levels = cv2.resize(levels, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4).astype(np.uint8)
    return (levels / 255).astype(np.float32)


def latent_mask(resolution: int) -> Float32Array:
    """(R/8, R/8) float32: the mask on the latent grid, by nearest neighbour (the first pixel of each cell), as published.

    The network sees this one, so above 256 px it comes from the enlarged 256 px mask that its weights were trained with, not from the softer
    edge with which `inpaint_mask` puts pictures together.
    """
    mask = resized_mask(resolution) if resolution > SIDE else inpaint_mask(resolution)
    return np.ascontiguousarray(mask[::LATENT_STRIDE, ::LATENT_STRIDE])


def hull_mask(outline: npt.ArrayLike, resolution: int) -> Float32Array:
    """(k, 2) points in pixels of a crop of R x R -> (R, R) float32: 1 inside their convex hull, falling to 0 towards its edge.

    It falls inside the hull, along the rows: of a turned head, the frame's own outline stays, sharp, and what the network made of the
    background beside it does not show. The chin, towards which the hull narrows, keeps the frame's edge too, so a jaw opens no further than
    it did. All 0 where the points lie on a line or are not finite.
    """
    points = np.asarray(outline, np.float32)
    if len(points) < 3 or not np.isfinite(points).all() or np.abs(points).max() > 1e4:
        return np.zeros((resolution, resolution), np.float32)
    return _blurred(_from_sides(_filled(points, resolution), HULL_SIDE * resolution), HULL_SIGMA)


def _filled(points: Float32Array, resolution: int) -> Float32Array:
    """(R, R) float32: 1 in the convex hull of (k, 2) points."""
    filled = np.zeros((resolution, resolution), np.float32)
    part = 4  # bits behind the point of OpenCV's whole coordinates
    cv2.fillConvexPoly(filled, np.rint(cv2.convexHull(points) * (1 << part)).astype(np.int32), 1.0, cv2.LINE_8, part)
    return filled


def _blurred(image: Float32Array, sigma: float) -> Float32Array:
    """(R, R) blurred with a Gaussian of `sigma` sides. What lies beyond the crop's edge is neither in nor out: its last row counts."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(sigma * len(image), 0.5), borderType=cv2.BORDER_REPLICATE), np.float32)


def _from_sides(filled: Float32Array, reach: float) -> Float32Array:
    """(R, R) of a convex shape: pixels along the row to the nearer of its two edges, as parts of `reach`, 0..1. The crop's edges are none."""
    inside = filled > 0
    some, last = np.asarray(inside.any(axis=1)), filled.shape[1] - 1
    left = np.where(some & ~inside[:, 0], inside.argmax(axis=1), -np.inf)
    right = np.where(some & ~inside[:, -1], last - inside[:, ::-1].argmax(axis=1), np.inf)
    x = np.arange(last + 1)
    away = np.minimum(x - left[:, None], right[:, None] - x)
    return np.where(some[:, None], np.clip(away / reach, 0, 1), 0).astype(np.float32)


@lru_cache(maxsize=4)
def muzzle_mask(resolution: int) -> Float32Array:
    """(R, R) float32: 1 around the mouth and the chin of an aligned face, falling softly to 0 on the cheeks and beside the jaw. Read-only.

    A model whose pictures of skin are softer than the footage is best put back there only: the cheeks are where its errors show most, and
    lips need them least.
    """
    filled = _covered(resolution, 4, MUZZLE).astype(np.float32)
    soft = _blurred(filled, MUZZLE_SIGMA)
    out = np.clip((soft - MUZZLE_LOW) / (MUZZLE_HIGH - MUZZLE_LOW), 0, 1).astype(np.float32)
    out.setflags(write=False)
    return out
