"""How good is the demo model? The figures of its card, on clips that its training never saw; writes bench/results/demo.md.

    python -m bench.demo CORPUS [--seeds 2073-2092] [--pairs 20] [--model demo] [--keep DIR] [--judge PROGRAM ...]

CORPUS holds clips of `tools/synthheads` (docs/corpus.md). Lips: each face is given the sound of another clip, and the opening of its lips is
measured by MediaPipe's landmarks, which took no part in the training; --judge names a program to measure with instead, run as
`PROGRAM VIDEO TRUTH.npz --source SOURCE.npz`, which prints one line of JSON with r, best_lag and r_source. Picture: each face is given its own
sound, and its frames are compared with the true ones inside the mask.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tools.crops import EDGE, track

from latentsync import LipSync
from latentsync.device import peak_memory
from latentsync.face.align import alignment, crop
from latentsync.face.detect import find_faces
from latentsync.face.mask import muzzle_mask
from latentsync.face.protocols import FaceBackend
from latentsync.media.video import open_video
from latentsync.metrics.lips import correlation, follow
from latentsync.metrics.picture import psnr, ssim
from latentsync.metrics.regions import generated, mouth_box

RESULT = Path(__file__).resolve().parent / "results" / "demo.md"
RATE = 25  # of the corpus, frames a second
# Each face hears the clip so many places after its own: voices and faces are then others. Of the odd steps up to 11 this is among those whose clips'
# true curves have least to do with each other (mean of abs(r) 0.08; 0.14 at 7), so that chance does not pass for leakage.
STEP = 9


def opening(video: Path, finder: FaceBackend) -> np.ndarray:
    """(frames,) distance of the inner lips over that of the outer corners of the eyes, by MediaPipe's mesh; NaN without a face."""
    out = []
    with open_video(video) as source:
        near = None
        for frame in source.frames():
            face = finder.landmarks(frame.picture, near) if near is not None else None
            if face is None:
                face = next(iter(find_faces(finder, frame.picture)), None)
            near = face
            if face is None:
                out.append(np.nan)
                continue
            p = face.landmarks
            out.append(float(np.linalg.norm(p[13] - p[14]) / np.linalg.norm(p[33] - p[263])))
    return np.array(out)


def lips(video: Path, truth: Path, source: Path, finder: FaceBackend | None, judge: Sequence[str]) -> dict[str, float]:
    """r with the opening that the sound asks for, the lag in frames at which it is highest, and r with the opening of the face's own clip."""
    if judge:
        done = subprocess.run([*judge, str(video), str(truth), "--source", str(source)], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{judge[0]} failed: {done.stderr.strip()[-500:]}")
        row = json.loads(done.stdout.strip().splitlines()[-1])
        return {"r": row["r"], "lag": row["best_lag"], "leak": row["r_source"]}
    assert finder is not None
    seen = opening(video, finder)
    asked, own = (np.load(path)["lip_gap"].astype(float) for path in (truth, source))
    found = follow(seen, asked)
    return {"r": found.r, "lag": found.lag, "leak": correlation(seen, own)}


def crops(video: Path, truth: Path, size: int) -> np.ndarray:
    """(n, size, size, 3) uint8 aligned faces of a video that shows the clip of that truth, by its true landmarks."""
    with np.load(truth) as file:
        points = track(file["landmarks"].astype(np.float64) - EDGE)
    with open_video(video) as source:
        return np.stack([crop(f.picture, alignment(p, size), size) for f, p in zip(source.frames(), points, strict=False)])


def motion(frames: np.ndarray, box: tuple[slice, slice]) -> float:
    """Mean squared difference of neighbouring frames in a box."""
    part = frames[:, box[0], box[1]].astype(np.float64)
    return float((np.diff(part, axis=0) ** 2).mean())


def picture(made: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """SSIM and PSNR (dB) inside the mask, and inside mouth and chin, all that the demo model puts back; and the motion of the mouth's region, made
    over true. Frames (n, size, size, 3) uint8."""
    size = true.shape[1]
    inside, muzzle = generated(size), generated(size) & (muzzle_mask(size) > 0.5)
    n = min(len(made), len(true))
    made, true = made[:n], true[:n]
    mouth = mouth_box(size)
    return {
        "psnr": float(np.mean([psnr(a, b, inside) for a, b in zip(made, true, strict=True)])),
        "ssim": float(np.mean([ssim(a, b, inside) for a, b in zip(made, true, strict=True)])),
        "psnr_muzzle": float(np.mean([psnr(a, b, muzzle) for a, b in zip(made, true, strict=True)])),
        "ssim_muzzle": float(np.mean([ssim(a, b, muzzle) for a, b in zip(made, true, strict=True)])),
        "motion": motion(made, mouth) / motion(true, mouth),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--seeds", default="2073-2092", help="of the clips that are held out")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--keep", type=Path, help="folder for the videos that are made")
    parser.add_argument("--skip-picture", action="store_true", help="only the lips")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="options of the jobs, such as steps=4")
    parser.add_argument("--judge", nargs="+", default=[], help="program that measures the lips; by default MediaPipe's mesh within this package")
    given = parser.parse_args()
    first, last = (int(x) for x in given.seeds.split("-"))
    clips = [path for s in range(first, last + 1) if (path := given.corpus / f"clip_{s:06d}.mp4").is_file()]
    if not clips:
        parser.error(
            f"no clip of the seeds {given.seeds} in {given.corpus}; make them: python -m tools.synthheads {given.corpus} --seeds {given.seeds}"
        )
    settings: dict[str, Any] = dict(text.split("=", 1) for text in given.set)
    settings = {k: float(v) if k == "guidance" else int(v) if v.isdigit() else v for k, v in settings.items()}

    lipsync = LipSync.load(given.model)
    finder = None if given.judge else LipSync.load(given.model, face_backend="mediapipe").model.faces()
    rows, looks, costs = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(min(given.pairs, len(clips))):
            face, heard = clips[i], clips[(i + STEP) % len(clips)]
            out = folder / f"{face.stem}-{heard.stem}.mp4"
            began = time.process_time()
            result = lipsync.sync(face, heard, out, overwrite=True, **settings)
            costs.append((result.elapsed / result.seconds, (time.process_time() - began) / result.seconds))
            row = lips(out, heard.with_suffix(".npz"), face.with_suffix(".npz"), finder, given.judge)
            row["chance"] = correlation(*(np.load(clip.with_suffix(".npz"))["lip_gap"].astype(float) for clip in (face, heard)))
            rows.append(row)
            print(f"{out.stem}: r {row['r']:.3f}, best lag {row['lag']:+.1f}, leak {row['leak']:+.3f}, {costs[-1][0]:.2f} s a second", flush=True)
        for face in [] if given.skip_picture else clips[: given.pairs]:
            out = folder / f"{face.stem}-own.mkv"
            lipsync.sync(face, face, out, overwrite=True, codec="ffv1", **settings)
            truth = face.with_suffix(".npz")
            look = picture(crops(out, truth, lipsync.config.resolution), crops(face, truth, lipsync.config.resolution))
            looks.append(look)
            print(f"{face.stem}: PSNR {look['psnr']:.1f} dB, SSIM {look['ssim']:.3f}, motion {look['motion']:.2f} of the true", flush=True)
    text = table(rows, looks, costs, peak_memory(lipsync.compute.device) / 1e9, settings)
    print(text)
    if not given.skip_picture and not settings and given.model == "demo":
        RESULT.write_text(text, encoding="utf-8")


def table(rows: list[dict[str, float]], looks: list[dict[str, float]], costs: list[tuple[float, float]], memory: float, settings: Any) -> str:
    """The figures as a page."""
    r, leak, chance = (np.array([row[k] for row in rows]) for k in ("r", "leak", "chance"))
    near = np.mean([abs(row["lag"]) < 1.5 for row in rows])
    wall, cpu = np.array(costs).mean(axis=0)
    lines = [
        f"{len(rows)} pairs of held-out clips, each face with the sound of another one" + (f"; options {settings}" if settings else "") + ".",
        "",
        "| measure | value | aim |",
        "| --- | --- | --- |",
        f"| lips against the speech they are given: r, mean | {r.mean():.3f} | 0.80 |",
        f"| the lowest of the pairs | {r.min():.3f} | 0.55 |",
        f"| best lag within one frame | {near:.0%} | 95 % |",
        f"| leakage of the old mouth: mean of abs(r) | {np.abs(leak).mean():.3f} (chance alone: {np.abs(chance).mean():.3f}) | 0.15 |",
    ]
    if looks:
        level, similar, level_muzzle, similar_muzzle, moves = (
            np.array([look[k] for look in looks]) for k in ("psnr", "ssim", "psnr_muzzle", "ssim_muzzle", "motion")
        )
        lines += [
            f"| own sound, inside the mask: PSNR | {level.mean():.1f} dB (mouth and chin alone {level_muzzle.mean():.1f}) | 27 dB |",
            f"| own sound, inside the mask: SSIM | {similar.mean():.3f} (mouth and chin alone {similar_muzzle.mean():.3f}) | 0.85 |",
            f"| motion around the mouth, made over true | {moves.mean():.2f} ({moves.min():.2f} to {moves.max():.2f}) | 0.75-1.25 |",
        ]
    lines += [
        f"| seconds for a second of video | {wall:.2f} ({cpu:.2f} CPU seconds) | 4 |",
        f"| peak memory of all this in one process | {memory:.2f} GB | 1.5 GB |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
