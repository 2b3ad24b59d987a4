"""The clips of a run, as its configuration names them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentsync.train.cache import Cache
from latentsync.train.clips import ClipSet, Report, split

if TYPE_CHECKING:
    from latentsync.train.config import DataConfig


def clips_of(data: DataConfig, out: str, frames: int, resolution: int, say: Report) -> tuple[ClipSet, ClipSet, Cache]:
    """(training clips, validation clips, where computed features are kept). `frames` are those of a window. Raises InputError, UsageError."""
    cache = Cache(Path(data.cache or Path(out) / "cache").expanduser())
    training, validation = split(
        data.train, data.validation, fps=data.fps, frames=frames, resolution=resolution, size=data.size, on_bad=data.on_bad, report=say, cache=cache
    )
    say(f"{len(training):,} clips to train on, {len(validation):,} held out")
    return training, validation, cache
