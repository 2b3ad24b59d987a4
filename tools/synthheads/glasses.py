"""Glasses that fit an identity: rims, bridge and temples as tubes, lenses as fans. Lengths in centimetres, as in `model`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from tools.synthheads.model import LM68

RIM, TUBE, ARM = 44, 6, 10  # points around a rim, around a tube, along a temple or the bridge
CLEAR = 0.3  # between the skin and the frame
CURVE = 0.022  # how the front bends back: z falls by this times x squared
FRAME_VERTICES = 2 * RIM * TUBE + 3 * ARM * TUBE
LENS_VERTICES = 2 * (RIM + 1)
VERTICES = FRAME_VERTICES + LENS_VERTICES


class Glasses(NamedTuple):
    """Vertices of the frame, then of the lenses."""

    position: np.ndarray  # (VERTICES, 3)
    normal: np.ndarray  # (VERTICES, 3)


def frame_triangles() -> np.ndarray:
    """(t, 3) indexes of the frame's vertices: the same for all glasses."""
    out, first = [], 0
    for length, closed in ((RIM, True), (RIM, True), (ARM, False), (ARM, False), (ARM, False)):
        out.append(first + _tube_triangles(length, closed))
        first += length * TUBE
    return np.concatenate(out)


def lens_triangles() -> np.ndarray:
    """(t, 3) indexes of the lenses' vertices."""
    k = np.arange(RIM)
    fan = np.stack([np.full(RIM, RIM), k, (k + 1) % RIM], 1)
    return FRAME_VERTICES + np.concatenate([fan, fan + RIM + 1])


def fit(verts: np.ndarray, face: slice, style: dict[str, Any]) -> Glasses:
    """(v, 3) rest positions of an identity, of which `face` is the skin of the face, and the style drawn by `texture.vary_look`."""
    skin = verts[face]
    skin = skin[skin[:, 2] > 2]
    eyes = [verts[[LM68[k] for k in ks]].mean(0) for ks in (range(42, 48), range(36, 42))]  # left of the head (+x), right
    a, b, p, thick = style["width"], style["height"], style["square"], style["thick"]
    half = max((eyes[0][0] - eyes[1][0]) / 2, a + 0.75)  # the bridge must leave room for the nose
    middle = (eyes[0] + eyes[1]) / 2 - [0, style["drop"], 0]
    t = np.linspace(0, 2 * np.pi, RIM, endpoint=False)
    c, s = np.cos(t), np.sin(t)
    around = np.stack([a * np.sign(c) * np.abs(c) ** (2 / p), b * np.sign(s) * np.abs(s) ** (2 / p)], 1)
    around[:, 0] *= 1 + 0.06 * around[:, 1] / b  # a little wider above
    flat = [middle[:2] + [side * half, 0] + around * [side, 1] for side in (1, -1)]
    bridge_x = np.linspace(half - a * 0.97, -(half - a * 0.97), ARM)
    bridge = np.stack([middle[0] + bridge_x, middle[1] + 0.45 * b + 0.25 * np.cos(bridge_x / (half - a + 1e-6) * np.pi / 2)], 1)
    points = np.concatenate([*flat, bridge])
    near = ((skin[None, :, :2] - points[:, None]) ** 2).sum(-1) < 0.35**2
    depth = np.where(near, skin[None, :, 2], -np.inf).max(1) + CLEAR + CURVE * (points[:, 0] - middle[0]) ** 2
    front = float(np.max(depth[np.isfinite(depth)], initial=middle[2] + 1.0))
    front = min(front, float(eyes[0][2]) + 3.2)

    def raised(xy: np.ndarray) -> np.ndarray:
        return np.column_stack([xy, front - CURVE * (xy[:, 0] - middle[0]) ** 2])

    tubes = [_tube(raised(f), thick, True) for f in flat]
    tubes.append(_tube(raised(bridge), thick, False))
    ear = float(np.abs(verts[(np.abs(verts[:, 1] - 3) < 1.5) & (np.abs(verts[:, 2] - 2.5) < 1.5), 0]).max(initial=8.0)) + 0.12
    for side in (1, -1):
        hinge = raised(np.array([[middle[0] + side * (half + a * 0.99), middle[1] + 0.45 * b]]))[0]
        u = np.linspace(0, 1, ARM)[:, None]
        arm = hinge + u * np.array([side * ear - hinge[0], 3.3 - hinge[1], -0.5 - hinge[2]])
        arm[:, 0] += side * 0.35 * np.sin(np.pi * u[:, 0])
        tubes.append(_tube(arm, thick * 0.9, False))
    lenses = []
    for f, side in zip(flat, (1, -1), strict=True):
        rim = raised(f)
        centre = rim.mean(0) + np.array([0, 0, 0.05])
        position = np.concatenate([rim, centre[None]])
        normal = np.column_stack([0.13 * (position[:, 0] - centre[0]) + side * 0.12, 0.13 * (position[:, 1] - centre[1]), np.ones(RIM + 1)])
        lenses.append((position, normal / np.linalg.norm(normal, axis=1, keepdims=True)))
    parts = [*tubes, *lenses]
    return Glasses(np.concatenate([v for v, _ in parts]).astype(np.float32), np.concatenate([n for _, n in parts]).astype(np.float32))


def _tube(line: np.ndarray, radius: float, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """(k, 3) centre line -> positions and normals, both (k * TUBE, 3)."""
    along = np.roll(line, -1, 0) - np.roll(line, 1, 0) if closed else np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    up = np.where(np.abs(along[:, 2:]) > 0.8, [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]])
    side = np.cross(along, up)
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-9
    other = np.cross(side, along)
    turn = np.linspace(0, 2 * np.pi, TUBE, endpoint=False)
    normal = np.cos(turn)[None, :, None] * side[:, None] + np.sin(turn)[None, :, None] * other[:, None]
    return (line[:, None] + radius * normal).reshape(-1, 3), normal.reshape(-1, 3)


def _tube_triangles(length: int, closed: bool) -> np.ndarray:
    i, j = (g.ravel() for g in np.meshgrid(np.arange(length if closed else length - 1), np.arange(TUBE), indexing="ij"))
    k, m = (i + 1) % length, (j + 1) % TUBE
    a, b, c, d = i * TUBE + j, k * TUBE + j, i * TUBE + m, k * TUBE + m
    return np.concatenate([np.stack([a, b, c], 1), np.stack([c, b, d], 1)])
