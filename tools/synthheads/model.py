"""The morphable head: packed ICT-FaceKit data, random identities, posing many frames at once. Lengths are centimetres; +x is the head's left
(the picture's right), +y up, +z forward."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
from scipy import sparse
from tools.synthheads.pack import PARTS

from latentsync.errors import InputError

MESH = "ict_face.npz"
VARIABLE = "LATENTSYNC_SYNTHHEADS"
# Numbers by which the shaders know the parts; the kit's lacrimal fluid and eye-blend strips are left out.
PART_ID = {
    "face": 0, "headneck": 1, "mouthsocket": 2, "eyesocket_l": 3, "eyesocket_r": 3, "gumstongue": 4,
    "teeth": 5, "eye_l": 6, "eye_r": 6, "eyeocc_l": 8, "eyeocc_r": 8, "lash_l": 9, "lash_r": 9,
}  # fmt: skip
# Mesh vertices of the 68 landmarks, in iBUG order.
LM68 = [
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443,
    268, 493, 1914, 2044, 1401, 3615, 4240, 4114, 2734, 2509, 978, 4527, 4942, 4857, 1140, 2075, 1147,
    4269, 3360, 1507, 1542, 1537, 1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732, 5708, 5695,
    2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841, 5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966,
]  # fmt: skip
TONGUE_UV = ((2.76, 0.33), (2.11, 0.28))  # middles of the tongue's two islands in texture space: top and underside


def find_mesh(given: Path | None = None) -> Path:
    """The mesh file: `given` (the file, or its folder), else what the variable LATENTSYNC_SYNTHHEADS names. InputError where there is none."""
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    how = (
        f"get ICT-FaceKit (https://github.com/USC-ICT/ICT-FaceKit, MIT), run `python -m tools.synthheads.pack --ict ICT-FaceKit "
        f"--out FOLDER/{MESH}` once, then pass --assets FOLDER or set {VARIABLE}=FOLDER"
    )
    if named is None:
        raise InputError(f"no face mesh is named: {how}")
    path = named / MESH if named.is_dir() else named
    if not path.is_file():
        raise InputError(f"there is no face mesh at {path}: {how}")
    return path


class HeadModel:
    """The mesh of the kit with the tongue shapes it lacks."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for a file that is no packed mesh."""
        try:
            with np.load(path, allow_pickle=False) as z:
                self.v0 = z["v0"]  # (v, 3) neutral
                self.expr_names = [str(n) for n in z["expr_names"]]
                self.expr = z["expr"].astype(np.float32)  # (e, v, 3) deltas of the expression shapes
                self.ident = z["ident"].astype(np.float32)  # (i, v, 3) deltas of the identity modes
                tri, tuv, uv = z["tri"], z["tri_uv"], z["uv"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            raise InputError(f"{path} is not a packed face mesh ({e}); make it with python -m tools.synthheads.pack") from e
        self.eidx = {n: i for i, n in enumerate(self.expr_names)}
        self.tri = tri
        part = np.full(len(self.v0), -1, np.int32)
        for name, (a, b) in PARTS.items():
            if name in PART_ID:
                part[a:b] = PART_ID[name]
        self.part_v = part
        pairs, inverse = np.unique(tri.astype(np.int64) * len(uv) + tuv, return_inverse=True)
        self.src = (pairs // len(uv)).astype(np.int32)  # render vertex -> mesh vertex
        self.uv = uv[pairs % len(uv)]
        self.rtri = inverse.reshape(-1, 3).astype(np.int32)
        self.tri_part = np.where((part[tri] >= 0).all(1), part[tri[:, 0]], -1)
        n = len(tri)
        self._incidence = sparse.csr_matrix((np.ones(3 * n, np.float32), (tri.ravel(), np.repeat(np.arange(n), 3))), shape=(len(self.v0), n))
        self._add_tongue()

    def _add_tongue(self) -> None:
        """Shapes the kit lacks: tongue tip up, tongue forward."""
        a, b = PARTS["gumstongue"]
        selected = (self.src >= a) & (self.src < b)
        _, label = _components(self.rtri[selected[self.rtri].all(1)], len(self.src))
        self.tongue = np.zeros(len(self.v0), bool)
        for k in np.unique(label[selected]):
            island = (label == k) & selected
            centre = self.uv[island].mean(0)
            if min(np.hypot(*(centre - np.array(c))) for c in TONGUE_UV) < 0.03:
                self.tongue[self.src[island]] = True
        v = self.v0[self.tongue]
        f = np.clip((v[:, 2] - v[:, 2].min()) / np.ptp(v[:, 2]), 0, 1)
        up, forward = np.zeros_like(self.v0), np.zeros_like(self.v0)
        up[self.tongue, 1], up[self.tongue, 2] = 1.1 * f**2.5, -0.25 * f**2
        forward[self.tongue, 2], forward[self.tongue, 1] = 0.9 * f**1.5, 0.45 * f**1.5
        for name, delta in (("tongueUp", up), ("tongueFwd", forward)):
            self.eidx[name] = len(self.expr_names)
            self.expr_names.append(name)
            self.expr = np.concatenate([self.expr, delta[None].astype(np.float32)])

    def teeth(self) -> np.ndarray:
        """(v,) int: number of the tooth that a mesh vertex belongs to, -1 elsewhere."""
        a, b = PARTS["teeth"]
        t = self.tri[((self.tri >= a) & (self.tri < b)).all(1)]
        _, label = _components(t, len(self.v0))
        out = np.full(len(self.v0), -1)
        out[a:b] = np.unique(label[a:b], return_inverse=True)[1]
        return out

    def normals(self, v: np.ndarray) -> np.ndarray:
        """(v, 3) positions -> (v, 3) unit normals, weighted by area."""
        p = v[self.tri]
        n = self._incidence @ np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])
        return n / (np.linalg.norm(n, axis=1, keepdims=True) + 1e-12)

    def make_identity(self, rng: np.random.Generator, strength: float = 0.8) -> np.ndarray:
        """(v, 3) positions of a random head at rest."""
        c = rng.standard_normal(len(self.ident)).astype(np.float32) * strength
        return np.tensordot(np.clip(c, -2.2, 2.2), self.ident, 1) + self.v0

    def landmarks(self, verts: np.ndarray, w: np.ndarray) -> np.ndarray:
        """(t, e) weights -> (t, 68, 3) landmarks of an identity (v, 3)."""
        return verts[LM68] + np.tensordot(w, self.expr[:, LM68], 1)

    def bind(self, verts: np.ndarray) -> Bound:
        """The identity with tables of how each expression moves its positions and normals."""
        n0 = self.normals(verts)
        return Bound(self, verts, n0, np.stack([self.normals(verts + e) - n0 for e in self.expr]))


class Bound:
    """One identity, ready to pose: normals are blended like positions."""

    def __init__(self, model: HeadModel, verts: np.ndarray, normals: np.ndarray, normal_deltas: np.ndarray) -> None:
        s = model.src
        self._base = np.concatenate([verts[s], normals[s]], 1).ravel().astype(np.float32)
        self._table = np.concatenate([model.expr[:, s], normal_deltas[:, s]], 2).reshape(len(model.expr), -1).astype(np.float32)

    def pose(self, w: np.ndarray) -> np.ndarray:
        """(t, e) weights -> (t, render vertices, 6) float32 positions and normals."""
        use = np.flatnonzero(np.abs(w).max(0) > 1e-4)
        return (w[:, use].astype(np.float32) @ self._table[use] + self._base).reshape(len(w), -1, 6)


def _components(triangles: np.ndarray, n: int) -> tuple[int, np.ndarray]:
    edges = np.r_[triangles[:, [0, 1]], triangles[:, [1, 2]]]
    graph = sparse.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    count, label = sparse.csgraph.connected_components(graph, directed=False)
    return int(count), label
