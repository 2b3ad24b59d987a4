"""Aligned face crops of corpus clips, with the truth in crop pixels: what the training of the small models reads.

    python -m tools.crops CORPUS OUT [--size 128] [--jobs 2]

For every finished clip of CORPUS (NAME.mp4, .npz, .json of `tools/synthheads`; docs/corpus.md) it writes
- NAME.mp4: (size, size) crops at the clip's rate, H.264 4:4:4 at crf 8 with a key frame every second, and the clip's sound, copied;
- NAME.npz: `landmarks` (n, 68, 2) float32 in crop pixels; `matrix` (n, 2, 3) float64, frame pixels -> crop pixels; `articulation`, `lip_gap` (n).
All pixel coordinates here are those of `latentsync.face.align`: the centre of the first pixel is 0. (The corpus counts from its edge: 0.5.)

The crop is the one that inference makes: alignment points from the landmarks, smoothed as the tracker smooths, then `alignment` and `crop`.
The .npz comes last, so a clip that has one is finished and is not made again; an interrupted one leaves nothing but hidden scratch files.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from tools.synthheads.files import copied, make_folder, write_arrays, write_video

from latentsync.errors import InputError, LatentSyncError, UsageError
from latentsync.face.align import alignment, crop, mapped, squeezed
from latentsync.face.track import smoothed_anchors
from latentsync.media.video import open_video

EDGE = 0.5  # where the corpus puts the centre of the first pixel
CRF = 8  # visually lossless: 44 dB
TRUTHS = ("articulation", "lip_gap")  # arrays of the clip's .npz that pass unchanged


def track(landmarks: np.ndarray) -> np.ndarray:
    """(n, 68, 2) landmarks -> (n, 3, 2) float64: the alignment points of each frame, smoothed over time as the tracker does.

    Raises InputError for arrays of another shape.
    """
    if landmarks.ndim != 3 or landmarks.shape[1:] != (68, 2) or not len(landmarks):
        raise InputError(f"the landmarks must have the shape (frames, 68, 2), found {landmarks.shape}")
    return smoothed_anchors(landmarks)


def make(clip: Path, out: Path, size: int) -> int:
    """Crops of one clip (`clip` is its .mp4) into the folder `out`; the number of frames, 0 where it was there already.

    Raises InputError for a damaged clip or one whose truth has another number of frames, OutputError where nothing can be written.
    """
    done = out / f"{clip.stem}.npz"
    if done.exists():
        return 0
    with _truth(clip.with_suffix(".npz")) as truth:
        landmarks = truth["landmarks"].astype(np.float64) - EDGE
        kept = {name: truth[name] for name in TRUTHS}
    upright = np.stack([alignment(points, size) for points in track(landmarks)])
    with open_video(clip) as video:
        rate = video.info.rate or Fraction(25)
        faces = (_face(i, frame.picture, upright, size, clip) for i, frame in enumerate(video.frames()))
        frames = _write(out / clip.name, faces, rate, size, clip)
    if frames != len(landmarks):
        with suppress(OSError):
            (out / clip.name).unlink()
        raise InputError(f"{clip} has {frames} frames, its .npz the truth of {len(landmarks)}; make this clip again")
    matrix = np.stack([squeezed(m, size) for m in upright])
    write_arrays(done, landmarks=mapped(landmarks, matrix).astype(np.float32), matrix=matrix, **kept)
    return frames


def _face(i: int, picture: Any, matrices: np.ndarray, size: int, clip: Path) -> np.ndarray:
    if i >= len(matrices):
        raise InputError(f"{clip} has more frames than the {len(matrices)} of its .npz; make this clip again")
    return crop(picture, matrices[i], size)


def _truth(path: Path) -> Any:
    try:
        file = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise InputError(f"cannot read the truth of a clip, {path}: {e}") from e
    missing = [name for name in ("landmarks", *TRUTHS) if name not in file]
    if missing:
        file.close()
        raise InputError(f"{path} lacks {', '.join(missing)}; crops are made of clips with picture (no --sound-only)")
    return file


def _write(path: Path, faces: Iterable[np.ndarray], rate: Fraction, size: int, sound: Path) -> int:
    """Encodes faces (size, size, 3) uint8 RGB with the sound packets of `sound` beside them; the number of frames."""
    with av.open(str(sound)) as source:
        return write_video(path, faces, rate, size, crf=CRF, pixels="yuv444p", key_every=max(1, round(rate)), add_sound=copied(source))


def finished(corpus: Path) -> list[Path]:
    """The .mp4 files of the finished clips in a folder: those with a .json, which the corpus tool writes last. InputError where there is none."""
    clips = [path for path in sorted(corpus.glob("*.mp4")) if path.with_suffix(".json").exists()]
    if not clips:
        raise InputError(f"no finished clip (NAME.mp4 with NAME.npz and NAME.json) in {corpus}; make some with python -m tools.synthheads")
    return clips


def make_all(corpus: Path, out: Path, size: int = 128, jobs: int = 1) -> Iterator[tuple[Path, int]]:
    """(clip, frames made) for every clip of the folder, 0 frames where the crops were there already. Raises what `make` raises."""
    if size < 16 or size % 2:
        raise UsageError(f"the size of crops must be an even number of pixels from 16, found {size}")
    clips = finished(corpus)
    make_folder(out)
    work = partial(make, out=out, size=size)
    if jobs <= 1:
        _one_thread()
        yield from ((clip, work(clip)) for clip in clips)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        yield from zip(clips, pool.map(work, clips), strict=True)


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.crops", description="Aligned face crops of corpus clips, with the truth in crop pixels.")
    parser.add_argument("corpus", type=Path, help="folder of clips made by tools.synthheads")
    parser.add_argument("out", type=Path, help="folder for the crops")
    parser.add_argument("--size", type=int, default=128, help="pixels of a crop's side (default 128)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)")
    a = parser.parse_args(arguments)
    clips = frames = 0
    try:
        for _, made in make_all(a.corpus, a.out, a.size, a.jobs):
            clips, frames = clips + 1, frames + made
    except LatentSyncError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    print(f"{clips} clips in {a.out}, {frames} frames made now")
    return 0


if __name__ == "__main__":
    sys.exit(main())
