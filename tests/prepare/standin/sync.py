from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from latentsync.prepare.records import Decision
from tests.prepare.standin import about, film

VERSION = "1"


@dataclass(frozen=True)
class Synced:
    confidence: float
    offset: int
    model: str


def measure(path: Path, *, model: str, device: str, home: str | None, points: Path | None = None, backend: str = "") -> Synced:
    told = about(path, "sync", told_span(path))
    return Synced(told.get("confidence", 7.0), told.get("offset", 0), model)


def told_span(path: Path) -> str:
    return str(film(path)["span"][0])


def decide(synced: Synced, *, min_sync: float | None, max_offset: int) -> Decision:
    min_sync = 3.0 if min_sync is None else min_sync
    if synced.confidence < min_sync:
        return Decision(False, f"confidence {synced.confidence:.2f} is below {min_sync:g}")
    return Decision(abs(synced.offset) <= max_offset, f"off by {synced.offset} frames")


def shift(path: Path, target: Path, offset_frames: int, *, fps: int = 25) -> None:
    told = film(path)
    target.write_text(json.dumps(told | {"offset": told["offset"] - offset_frames}))
