"""Pack the OBJ files of ICT-FaceKit (MIT) into the one mesh file that this tool reads.

    python -m tools.synthheads.pack --ict ICT-FaceKit --out FOLDER/ict_face.npz

Deltas are stored as float16 (unit: centimetre; largest rounding error below 0.002 cm), so that the file stays at 11 MB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tools.synthheads.files import make_folder, write_arrays

from latentsync.errors import InputError, LatentSyncError

IDENTITIES = 60  # modes that are kept of the kit's 100: the later ones are fine detail
# Vertex ranges by material, in the order of the kit's OBJ files (table in its README).
PARTS = {
    "face": (0, 9409),
    "headneck": (9409, 11248),
    "mouthsocket": (11248, 13294),
    "eyesocket_l": (13294, 13678),
    "eyesocket_r": (13678, 14062),
    "gumstongue": (14062, 17039),
    "teeth": (17039, 21451),
    "eye_l": (21451, 23021),
    "eye_r": (23021, 24591),
    "lacrimal_l": (24591, 24795),
    "lacrimal_r": (24795, 24999),
    "eyeblend_l": (24999, 25023),
    "eyeblend_r": (25023, 25047),
    "eyeocc_l": (25047, 25199),
    "eyeocc_r": (25199, 25351),
    "lash_l": (25351, 26035),
    "lash_r": (26035, 26719),
}


def read_vertices(path: Path) -> np.ndarray:
    """(v, 3) float64 positions of an OBJ file."""
    with path.open("rb") as file:
        rows = [line[2:] for line in file if line.startswith(b"v ")]
    return np.array(b" ".join(rows).split(), dtype=np.float64).reshape(-1, 3)


def read_topology(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(u, 2) texture coordinates, and triangles (t, 3) as indexes of vertices and of texture coordinates; polygons are cut into fans."""
    uv: list[list[float]] = []
    triangles: list[tuple[tuple[int, ...], ...]] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("vt "):
                uv.append([float(x) for x in line.split()[1:3]])
            elif line.startswith("f "):
                corners = [tuple(int(y) - 1 for y in x.split("/")[:2]) for x in line.split()[1:]]
                triangles += [(corners[0], corners[i], corners[i + 1]) for i in range(1, len(corners) - 1)]
    t = np.array(triangles, dtype=np.int32)
    return np.array(uv, dtype=np.float32), t[:, :, 0], t[:, :, 1]


def pack(kit: Path, out: Path) -> dict[str, int]:
    """Reads FaceXModel of the kit, writes the mesh file; what it holds. InputError where the folder is not the kit."""
    folder = kit / "FaceXModel"
    neutral = folder / "generic_neutral_mesh.obj"
    if not neutral.is_file():
        raise InputError(f"{neutral} is missing: --ict must be a checkout of ICT-FaceKit (https://github.com/USC-ICT/ICT-FaceKit)")
    base = read_vertices(neutral)
    uv, triangles, triangles_uv = read_topology(neutral)
    names = sorted(path.stem for path in folder.glob("*.obj"))
    expressions = [n for n in names if not n.startswith(("identity", "generic"))]
    identities = [n for n in names if n.startswith("identity")][:IDENTITIES]

    def deltas(chosen: list[str]) -> np.ndarray:
        return np.stack([(read_vertices(folder / f"{n}.obj") - base).astype(np.float16) for n in chosen])

    make_folder(out.absolute().parent)
    write_arrays(
        out,
        v0=base.astype(np.float32),
        uv=uv,
        tri=triangles,
        tri_uv=triangles_uv,
        expr=deltas(expressions),
        expr_names=np.array(expressions),
        ident=deltas(identities),
    )
    return {"vertices": len(base), "triangles": len(triangles), "expressions": len(expressions), "identities": len(identities)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.synthheads.pack", description="Pack ICT-FaceKit into one mesh file.")
    parser.add_argument("--ict", type=Path, required=True, help="checkout of ICT-FaceKit")
    parser.add_argument("--out", type=Path, required=True, help="mesh file to write, FOLDER/ict_face.npz")
    a = parser.parse_args(arguments)
    try:
        held = pack(a.ict, a.out)
    except LatentSyncError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    print(", ".join(f"{count} {name}" for name, count in held.items()), f"in {a.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
