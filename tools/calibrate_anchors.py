"""Finds the weights of `face/points.py` for MediaPipe's landmarks from rendered heads with exact 68-point truths.

python tools/calibrate_anchors.py CORPUS WEIGHTS [--golden FOLDER]

CORPUS holds clip_*.mp4 with clip_*.npz (`landmarks` (frames, 68, 2), iBUG order); WEIGHTS holds the backend's files. Every fourth clip is
held out. With --golden, the error against the published system's own points on one real face is shown as well.

A point is a mean of mesh vertices with positive weights that sum to 1, so it moves, turns and grows with the face; the weights of the
two brows are the same for mirrored vertices. They are found by non-negative least squares over errors divided by the face's size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from latentsync.face.detect import find_faces, make_backend
from latentsync.face.points import BROW_LEFT, BROW_RIGHT, NOSE
from latentsync.media.video import open_video

EVERY = 12  # frames: neighbours teach nothing new
BROW = {53: 283, 52: 282, 65: 295, 55: 285, 105: 334, 66: 296}  # candidates on the picture's left, and their mirror images
NOSE_SETS = ((195,), (5,), (4,), (1,), (64, 294), (98, 327), (102, 331))
PLAIN = ((70, 63, 105, 66, 107, 46, 53, 52, 65, 55), (300, 293, 334, 296, 336, 276, 283, 282, 295, 285), (5, 1, 64, 294))


def observe(clips: list[Path], files: Mapping[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """-> mesh (n, 478, 2) and truth (n, 68, 2), pixels."""
    backend = make_backend("mediapipe", files)
    meshes, truths = [], []
    for clip in clips:
        # The renderer counts from the corner of the first pixel, the face room from its centre.
        truth = np.load(clip.with_suffix(".npz"))["landmarks"].astype(np.float64) - 0.5
        with open_video(clip) as video:
            for i, frame in enumerate(video.frames()):
                if i % EVERY == 0 and i < len(truth):
                    faces = find_faces(backend, frame.picture)
                    if faces:
                        meshes.append(faces[0].landmarks.astype(np.float64))
                        truths.append(truth[i])
    return np.stack(meshes), np.stack(truths)


def anchors(truth: np.ndarray) -> np.ndarray:
    """(n, 68, 2) -> (n, 3, 2): the published points of iBUG landmarks."""
    return np.stack([truth[:, 17:22].mean(1), truth[:, 22:27].mean(1), truth[:, [29, 31, 35, 30]].mean(1)], axis=1)


def sizes(landmarks: np.ndarray) -> np.ndarray:
    """(n, k, 2) -> (n,): square root of the area around the landmarks."""
    return np.sqrt(np.prod(landmarks.max(axis=1) - landmarks.min(axis=1), axis=1))


def solve(problems: list[tuple[np.ndarray, np.ndarray]], size: np.ndarray) -> np.ndarray:
    """Shares (k,) that bring the candidates (n, k, 2) of every problem closest to its targets (n, 2)."""
    rows = [((c - t[:, None]) / size[:, None, None]).transpose(0, 2, 1).reshape(-1, c.shape[1]) for c, t in problems]
    sure = 1e3  # weight of "the shares sum to 1"
    a = np.vstack([*rows, np.full((1, rows[0].shape[1]), sure)])
    b = np.append(np.zeros(len(a) - 1), sure)
    shares = nnls(a, b)[0]
    return shares / shares.sum()


def report(name: str, found: np.ndarray, truth: np.ndarray, size: np.ndarray) -> None:
    error = 100 * (found - truth) / size[:, None, None]
    mean, bias = np.linalg.norm(error, axis=-1).mean(axis=0), error.mean(axis=0)
    print(f"{name:24s} mean error % {mean.round(2).tolist()}  bias % {bias.round(2).tolist()}")


def weighted(mesh: np.ndarray, weights: Mapping[int, float]) -> np.ndarray:
    return np.array(list(weights.values())) @ mesh[..., list(weights), :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--step", type=int, default=1, help="take every Nth clip")
    options = parser.parse_args()
    files = {p.name: p for p in options.weights.iterdir()}
    clips = sorted(options.corpus.glob("clip_*.mp4"))
    held = clips[2::4]
    mesh, truth68 = observe([c for c in clips if c not in held][:: options.step], files)
    truth, size = anchors(truth68), sizes(truth68)
    left, right = list(BROW), list(BROW.values())
    brow = solve([(mesh[:, left], truth[:, 0]), (mesh[:, right], truth[:, 1])], size)
    nose = solve([(np.stack([mesh[:, list(s)].mean(axis=1) for s in NOSE_SETS], axis=1), truth[:, 2])], size)
    print("brow", {v: round(float(w), 3) for v, w in zip(left, brow, strict=True)})
    print("nose", {v: round(float(w), 3) for v, w in zip(NOSE_SETS, nose, strict=True)})

    mesh, truth68 = observe(held[:: options.step], files)
    truth, size = anchors(truth68), sizes(truth68)
    print(f"held out: {len(mesh)} frames of {len(held[:: options.step])} heads")

    def candidates(m: np.ndarray) -> dict[str, np.ndarray]:
        best_nose = sum(w * m[..., list(s), :].mean(axis=-2) for s, w in zip(NOSE_SETS, nose, strict=True))
        return {
            "plain means": np.stack([m[..., list(s), :].mean(axis=-2) for s in PLAIN], axis=-2),
            "least squares": np.stack([brow @ m[..., left, :], brow @ m[..., right, :], best_nose], axis=-2),
            "face/points.py": np.stack([weighted(m, w) for w in (BROW_LEFT, BROW_RIGHT, NOSE)], axis=-2),
        }

    for name, found in candidates(mesh).items():
        report(name, found, truth, size)
    if options.golden:
        with open_video(options.golden / "e_frame.png") as still:
            picture = next(iter(still.frames())).picture
        published = np.array(json.loads((options.golden / "e_geometry.json").read_text())["landmarks"])
        face = find_faces(make_backend("mediapipe", files), picture)[0]
        real = face.landmarks.astype(np.float64)
        print("against the published points on a real face:")
        for name, found in candidates(real).items():
            report(name, found[None], published[None], sizes(real[None]))


if __name__ == "__main__":
    main()
