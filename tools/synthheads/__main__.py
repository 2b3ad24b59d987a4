"""Render synthetic talking heads with exact truth.

python -m tools.synthheads DIR --seeds 3000-3099 [--jobs 2] [--size 320] [--seconds 6] [--sound-only] [--assets FOLDER]
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.synthheads import clip, speech
from tools.synthheads.files import make_folder
from tools.synthheads.model import find_mesh
from tools.synthheads.motion import FPS
from tools.synthheads.pool import make_all

from latentsync.errors import LatentSyncError, UsageError


def parse_seeds(text: str) -> list[int]:
    """ "7", "3000-3099", or several of these with commas between, as a list without repeats, in order. UsageError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not found:
            raise UsageError(f"--seeds takes whole numbers and ranges such as 3000-3099,3200; found {part!r}")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UsageError(f"--seeds: the range {part.strip()} ends before it begins")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.synthheads", description="Render synthetic talking heads with exact truth (docs/corpus.md)."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the clips go; those that are there are not made again")
    parser.add_argument("--seeds", required=True, help="such as 3000-3099 or 3000,3005; a clip depends only on its seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--size", type=int, default=320, help="pixels of a frame's side (default 320)")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a clip (default 6)")
    parser.add_argument("--sound-only", action="store_true", help="speech and its articulation without pictures: several clips a second")
    parser.add_argument("--assets", type=Path, help="the packed face mesh or its folder (default: LATENTSYNC_SYNTHHEADS)")
    a = parser.parse_args(arguments)
    try:
        seeds = parse_seeds(a.seeds)
        if a.size < 64 or a.size % 2:
            raise UsageError(f"--size must be an even number of pixels from 64, found {a.size}")
        if not 1 <= a.seconds <= 600:
            raise UsageError(f"--seconds must lie between 1 and 600, found {a.seconds:g}")
        mesh = find_mesh(a.assets)
        speech.check_programs()
        make_folder(a.folder)
        begun, made = time.monotonic(), 0
        for about in make_all(a.folder, seeds, a.seconds, None if a.sound_only else a.size, mesh, a.jobs):
            made += 1
            rate = made * about["frames"] / FPS / (time.monotonic() - begun)
            print(f"{clip.name(about['seed'])}  {about['speech']['engine']} {about['speech']['voice']}  ({rate:.2f} s of clips a second)", flush=True)
    except LatentSyncError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    print(f"{made} clips made, {len(seeds) - made} were there, in {a.folder}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
