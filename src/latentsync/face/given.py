"""Faces whose places the user already knows, from a file: for drawn and three-dimensional characters that no detector finds, for tracks made
in other programs, and for synthetic footage with exact truth. Stands where the tracker stands.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from latentsync.errors import InputError, LatentSyncError
from latentsync.face.align import alignment, check_matrix
from latentsync.face.points import anchor_points, lip_opening, outline
from latentsync.face.protocols import Face, PictureLike
from latentsync.face.track import Tracked

F = TypeVar("F")

_JUMP = 12  # source frames: more than a change of frame rate skips, so the clip began again or was cut


class _Given(NamedTuple):
    """What one entry says."""

    anchors: np.ndarray  # (3, 2) float32
    outline: np.ndarray | None = None  # (k, 2)
    opening: float | None = None


class GivenPoints(Generic[F]):
    """Alignment points for each frame of the source, read from a file.

    A .json file holds {"points": [...]}, a .npz file an array `points` or `landmarks`: one entry for each source frame, in order. An entry is
    3 points (centres of the brows, the one on the picture's left first, and of the nose), or 68 (iBUG), 106 (InsightFace) or 478 (MediaPipe)
    landmarks, each x, y in pixels of the upright picture; null, or NaN in .npz, where there is no face. Points after the last frame's are none.

    Raises InputError for a file that is not so.
    """

    def __init__(self, path: Path, number: Callable[[F], int]) -> None:
        """`number` gives the number of a frame in the source, from 0."""
        self._path = path
        self._number = number
        self._points = [self._anchors(entry, i) for i, entry in enumerate(_read(path))]

    def track(self, frames: Iterable[F], picture: Callable[[F], PictureLike]) -> Iterator[Tracked[F]]:
        """The frames in order, each with its points. Gaps are not faded, nothing is smoothed: the file is believed."""
        before = None
        for frame in frames:
            number = self._number(frame)
            given = self._points[number] if number < len(self._points) else None
            jumped = before is not None and abs(number - before) > _JUMP
            before = number
            if given is None:
                yield Tracked(frame=frame, points=None, strength=0.0, cut=jumped)
                continue
            points = given.anchors
            box = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
            yield Tracked(frame=frame, points=points, strength=1.0, cut=jumped, box=box, outline=given.outline, opening=given.opening)

    def _anchors(self, entry: np.ndarray | None, number: int) -> _Given | None:
        if entry is None or np.isnan(entry).any():
            return None
        if entry.ndim != 2 or entry.shape[1] != 2:
            raise InputError(f"{self._path}: entry {number} has the shape {entry.shape}; it must be 3, 68, 106 or 478 points of x, y")
        try:
            anchors = entry.astype(np.float32) if len(entry) == 3 else anchor_points(Face(box=(0, 0, 1, 1), score=1.0, landmarks=entry))
            check_matrix(alignment(anchors, 64))  # at any size the same: points in one place, or beyond all pictures, align nothing
            return _Given(anchors, outline(entry), lip_opening(entry))
        except LatentSyncError as e:
            raise InputError(f"{self._path}: entry {number}: {e}") from e


def _read(path: Path) -> list[np.ndarray | None]:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                name = next((n for n in ("points", "landmarks") if n in file), None)
                if name is None:
                    raise InputError(f"{path} holds neither 'points' nor 'landmarks', only {', '.join(file) or 'nothing'}")
                return list(np.asarray(file[name], dtype=np.float64))
        entries = json.loads(path.read_text(encoding="utf-8"))["points"]
        return [None if e is None else np.asarray(e, dtype=np.float64) for e in entries]
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as e:
        raise InputError(f"{path} is not a file of points ({type(e).__name__}: {e}); see --points in the documentation") from e
