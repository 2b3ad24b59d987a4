"""Lip-sync a drawn sample with an untrained model: shows that everything runs, from set-up to the finished file.

    python tools/demo.py [FOLDER]

Writes the sample, the result, and a sheet of both to FOLDER (default: demo).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from sample import make

from latentsync import LipSync, weights
from latentsync.cli import closing
from latentsync.media.video import open_video

WARNING = """
    ************************************************************************
    *  This demo runs an UNTRAINED model: random weights, no speech in its *
    *  mouths, only noise. It shows that every part works on this machine. *
    *  For real results: latentsync models download 1.6                    *
    ************************************************************************
"""
SHOWN = 6  # frames on the sheet


def sheet(before: Path, after: Path, out: Path) -> None:
    """A picture of frames of both videos: the source above, the result below."""
    rows = []
    for path in (before, after):
        with open_video(path) as video:
            frames = [frame.picture.rgb() for frame in video.frames()]
        rows.append(np.hstack([frames[i] for i in np.linspace(0, len(frames) - 1, SHOWN).astype(int)]))
    cv2.imwrite(str(out), np.vstack(rows)[..., ::-1])


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    print(WARNING)
    print(f"drawing a sample face and a sound into {folder}")
    make(folder, seconds=4.0, size=320)
    out = folder / "synced.mp4"
    with tempfile.TemporaryDirectory(prefix="latentsync-demo-") as place:
        model = weights.new("tiny", Path(place) / "tiny")
        lipsync = LipSync.load(model, faces=False)  # the sample brings the places of its face along
        print(f"latentsync sync {folder}/sample.mp4 {folder}/speech.wav -o {out} --points {folder}/points.npz --steps 8")
        result = lipsync.sync(folder / "sample.mp4", folder / "speech.wav", out, points=folder / "points.npz", steps=8, overwrite=True, progress=tell)
    print()
    for line in closing(result):
        print(line)
    sheet(folder / "sample.mp4", out, folder / "sheet.png")
    print(f"{folder}/sheet.png shows frames of the sample above and of the result below")
    print(WARNING)


def tell(progress: object) -> None:
    """One line that counts frames."""
    print(f"\r{progress.done} of {progress.total} frames, {progress.done / progress.seconds:.1f} frames/s", end="", flush=True)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
