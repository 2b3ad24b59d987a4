"""Measures the face finders on real clips and prints the tables of docs/faces.md.

python bench/faces.py CLIPS WEIGHTS [--every 5] [--seconds 12]

CLIPS holds talking/ and special/; WEIGHTS holds yunet_n_640_640.onnx, face_landmarker.task and, to compare, blaze_face_short_range.tflite.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from latentsync.face.detect import detect, find_faces, make_backend
from latentsync.face.points import anchor_points
from latentsync.face.protocols import Face, FaceBackend, PictureLike
from latentsync.face.track import Tracker
from latentsync.face.yunet import YuNet
from latentsync.media.video import open_video

SIDES = (320, 480, 640, 960)  # of the picture that YuNet sees
SIZES = ((360, 288), (512, 512), (1280, 720), (1080, 1920), (3840, 2160))
REPEATS = 40


class Still:
    """A picture from an array."""

    pixel_aspect = Fraction(1)

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def rgb(self, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        x0, y0, x1, y1 = box or (0, 0, self.width, self.height)
        return self.pixels[y0:y1, x0:x1]

    def small(self, max_side: int) -> np.ndarray:
        scale = max_side / max(self.width, self.height)
        if scale >= 1:
            return self.pixels
        size = (max(1, round(self.width * scale)), max(1, round(self.height * scale)))
        return cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA)


class BlazeFace:
    """MediaPipe's short-range detector, whole frame at 128 pixels: only to compare."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.net = Interpreter(str(path), num_threads=1)
        self.net.allocate_tensors()
        grids = [(16, 2), (8, 6)]
        cells = [((x + 0.5) / n, (y + 0.5) / n) for n, k in grids for y in range(n) for x in range(n) for _ in range(k)]
        self.anchors = np.array(cells)

    def __call__(self, picture: PictureLike) -> list[Face]:
        small = picture.small(128)
        h, w = small.shape[:2]
        square = np.zeros((128, 128, 3), np.uint8)
        square[:h, :w] = small
        self.net.set_tensor(self.net.get_input_details()[0]["index"], square[None].astype(np.float32) / 127.5 - 1)
        self.net.invoke()
        out = {d["name"]: self.net.get_tensor(d["index"])[0] for d in self.net.get_output_details()}
        scores = 1 / (1 + np.exp(-np.clip(out["classificators"][:, 0], -50, 50)))
        best = int(scores.argmax())
        if scores[best] < 0.5:
            return []
        x, y = self.anchors[best] * 128 + out["regressors"][best, :2]
        bw, bh = out["regressors"][best, 2:4]
        k = picture.width / w
        return [Face(tuple(k * v for v in (x - bw / 2, y - bh / 2, x + bw / 2, y + bh / 2)), float(scores[best]), np.zeros((5, 2), np.float32))]


def clock(repeats: int, work: Callable[..., object], *arguments: object) -> float:
    """Milliseconds of CPU time per call, the first call not counted."""
    work(*arguments)
    start = time.process_time()
    for _ in range(repeats):
        work(*arguments)
    return 1e3 * (time.process_time() - start) / repeats


def row(*cells: object) -> None:
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def pictures(path: Path, seconds: float) -> Iterable[PictureLike]:
    with open_video(path) as video:
        for frame in video.frames():
            if frame.time >= seconds:
                return
            yield frame.picture


def detection(files: list[Path], backend: FaceBackend, yunet: YuNet, blaze: BlazeFace | None, every: int, seconds: float) -> None:
    print(f"\nFrames with a face, in percent (tracker: of all frames; the others: of every {every}th)\n")
    row("file", "size", "face px", *(["BlazeFace 128"] if blaze else []), *(f"YuNet {s}" for s in SIDES), "YuNet 640 + mesh", "tracker", "yaw")
    row(*["---"] * (6 + len(SIDES) + bool(blaze)))
    for path in files:
        counts = np.zeros(len(SIDES) + 2)
        seen = 0
        for picture in itertools.islice(pictures(path, seconds), 0, None, every):
            seen += 1
            counts[0] += bool(blaze and blaze(picture))
            for i, side in enumerate(SIDES):
                counts[1 + i] += bool(yunet(picture.small(side)))
            counts[-1] += bool(find_faces(backend, picture))
        tracked = list(Tracker(backend).track(pictures(path, seconds), lambda p: p))
        shown = [t for t in tracked if t.points is not None]
        yaw = [t.yaw for t in shown if t.yaw is not None]
        width = np.median([t.box[2] - t.box[0] for t in shown if t.box]) if shown else 0
        size = f"{tracked[0].frame.width}x{tracked[0].frame.height}"
        rates = [f"{100 * c / seen:.0f}" for c in (counts if blaze else counts[1:])]
        row(path.name, size, f"{width:.0f}", *rates, f"{100 * len(shown) / len(tracked):.1f}", f"{min(yaw):.0f}..{max(yaw):.0f}" if yaw else "")


def spread(points: list[np.ndarray], size: float) -> str:
    """Root mean square distance from the mean, % of the face's size."""
    p = np.stack(points).astype(np.float64)
    return f"{100 * np.sqrt(((p - p.mean(axis=0)) ** 2).sum(axis=-1).mean()) / size:.3f}"


def jitter(files: list[Path], backend: FaceBackend) -> None:
    print(f"\nSpread of points on a still face over {REPEATS} noisy (sigma 2) and recompressed (JPEG 85) copies, % of the face's size\n")
    row("file", "face px", "YuNet's nose", "mesh from a detection", "mesh from the last frame", "tracker")
    row(*["---"] * 6)
    rng = np.random.default_rng(0)
    for path in files:
        clean = next(iter(pictures(path, 1))).rgb()
        copies = []
        for _ in range(REPEATS):
            noisy = np.clip(clean + rng.normal(0, 2, clean.shape), 0, 255).astype(np.uint8)
            copies.append(Still(cv2.imdecode(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])[1], cv2.IMREAD_COLOR)))
        size = find_faces(backend, copies[0])[0].size
        nose = [detect(backend, c)[0].landmarks[2] for c in copies]
        fresh = [anchor_points(find_faces(backend, c)[0]) for c in copies]
        chained: list[Face] = [find_faces(backend, copies[0])[0]]
        for c in copies[1:]:
            face = backend.landmarks(c, chained[-1])
            assert face is not None
            chained.append(face)
        tracked = follow(backend, copies)
        row(path.name, f"{size:.0f}", *(spread(p, size) for p in (nose, fresh, [anchor_points(f) for f in chained], tracked)))


def follow(backend: FaceBackend, pictures: Iterable[PictureLike]) -> list[np.ndarray]:
    """The points that the tracker finds."""
    return [t.points for t in Tracker(backend).track(pictures, lambda p: p) if t.points is not None]


def cost(path: Path, backend: FaceBackend) -> None:
    print("\nMilliseconds of CPU time, one thread\n")
    row("picture", *(f"YuNet {s}" for s in SIDES), "landmarks, followed", "landmarks, new face", "tracker, per frame")
    row(*["---"] * (4 + len(SIDES)))
    frames = [p.rgb() for p in itertools.islice(pictures(path, 10), 30)]
    side = min(frames[0].shape[:2])
    for width, height in SIZES:
        scale = min(width, height) / side  # the picture keeps its shape and fills a square in the middle
        stills = []
        for f in frames:
            canvas = np.full((height, width, 3), 90, np.uint8)
            s = cv2.resize(f[:side, :side], (round(side * scale), round(side * scale)), interpolation=cv2.INTER_LINEAR)
            y, x = (height - s.shape[0]) // 2, (width - s.shape[1]) // 2
            canvas[y : y + s.shape[0], x : x + s.shape[1]] = s
            stills.append(Still(canvas))
        first = stills[0]
        coarse = detect(backend, first)[0]
        face = backend.landmarks(first, coarse)
        assert face is not None
        times = [clock(8, detect, backend, first, s) for s in SIDES]
        times += [clock(20, backend.landmarks, first, face), clock(8, backend.landmarks, first, coarse)]
        times.append(clock(1, follow, backend, stills) / len(stills))
        row(f"{width}x{height}", *(f"{t:.1f}" for t in times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--only", choices=("detection", "jitter", "cost"))
    options = parser.parse_args()
    cv2.setNumThreads(1)
    files = {p.name: p for p in options.weights.iterdir()}
    backend = make_backend("mediapipe", files)
    yunet = YuNet(files["yunet_n_640_640.onnx"], 0.5)
    blaze = BlazeFace(files["blaze_face_short_range.tflite"]) if "blaze_face_short_range.tflite" in files else None
    talking = sorted((options.clips / "talking").iterdir())
    special = sorted((options.clips / "special").iterdir())
    if options.only in (None, "detection"):
        detection([*talking, *special], backend, yunet, blaze, options.every, options.seconds)
    if options.only in (None, "jitter"):
        jitter([p for p in talking if p.suffix == ".mp4" or p.name.endswith("bbaf2n.mpg")], backend)
    if options.only in (None, "cost"):
        cost(next(p for p in talking if "cnn2" in p.name), backend)


if __name__ == "__main__":
    main()
