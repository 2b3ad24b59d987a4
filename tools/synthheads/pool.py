"""Many clips: one after the other, or by several processes.

The functions that those processes are given live here because a spawned process cannot find what a package's `__main__` defines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
from tools.synthheads import clip
from tools.synthheads.model import HeadModel

_worker: dict[str, Any] = {}  # what one process keeps: the model, the renderer


def start(mesh: Path, size: int | None) -> None:
    """Loads what a process needs; without a size, for sound only, no renderer."""
    cv2.setNumThreads(0)
    model = _worker["model"] = HeadModel(mesh)
    if size is not None:
        from tools.synthheads.render import Renderer  # sound alone needs no OpenGL

        _worker["renderer"] = Renderer(model, size, mesh.with_name("ao.npy"))


def make(folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """One clip, by a process that has started."""
    if "renderer" in _worker:
        return clip.make_clip(_worker["model"], _worker["renderer"], folder, seed, seconds)
    return clip.make_sound(_worker["model"], folder, seed, seconds)


def make_all(folder: Path, seeds: Sequence[int], seconds: float, size: int | None, mesh: Path, jobs: int) -> Iterator[dict[str, Any]]:
    """What each clip's .json holds, as they are finished. Clips that are there already are left out."""
    todo = [seed for seed in seeds if not clip.is_done(folder, seed)]
    if not todo:
        return
    if jobs <= 1:
        start(mesh, size)
        for seed in todo:
            yield make(folder, seed, seconds)
        return
    os.environ.setdefault("LP_NUM_THREADS", "0")  # the software rasteriser then takes one core for each process
    with ProcessPoolExecutor(min(jobs, len(todo)), mp_context=get_context("spawn"), initializer=start, initargs=(mesh, size)) as pool:
        waiting = [pool.submit(make, folder, seed, seconds) for seed in todo]
        try:
            for future in as_completed(waiting):
                yield future.result()
        finally:
            for future in waiting:
                future.cancel()
