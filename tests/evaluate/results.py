"""Results to report on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentsync.evaluate.records import Book, Row

HOSTILE = "a \"b\" <script>alert(1)</script> 'c' & </title>\u202e.mp4"


def results(folder: Path, rows: Sequence[Row], system: str = "ours", **settings: Any) -> Path:
    """A folder of results."""
    given = {"system": system, "judge": "demo", "versions": {"torch": "2.13"}, **settings}
    with Book(folder, given, [row.name for row in rows]) as book:
        for row in rows:
            book.add(row)
    return folder


def row(name: str, sync: float, video: Path | str = "nowhere.mp4", **values: float) -> Row:
    curve = (sync, sync / 2, float("nan"), sync)
    return Row(name, str(video), seconds=4, frames=100, values={"sync_confidence": sync, "seam": 1.5, **values}, curves={"sync": curve})
