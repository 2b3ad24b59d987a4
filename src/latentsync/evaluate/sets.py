"""Numbers that only a whole set has: Frechet distances between faces of the results and of true footage (FID), and between clips of them (FVD)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentsync.errors import InputError
from latentsync.evaluate.records import Row
from latentsync.evaluate.tools import Tools
from latentsync.evaluate.video import FAULTS, SIDE, said
from latentsync.face import align
from latentsync.face.track import Tracker
from latentsync.media.frame import Frame
from latentsync.media.video import open_video
from latentsync.metrics import frechet
from latentsync.metrics.frechet import Gaussian, Kind

PER_CLIP = 5  # of consecutive frames one is taken for FID: neighbours are nearly the same picture
FVD_SIDE = 224


def measure(kind: Kind, rows: Sequence[Row], tools: Tools) -> dict[str, Any]:
    """The distance between results and their references, or else sources: {"value", "count", "note"}; without "value" where it cannot be had."""
    good = [row for row in rows if row.ok and (row.reference or row.source)]
    if not good:
        return {"count": 0, "note": "no video has a reference or a source to compare with"}
    try:
        see = _seer(kind, tools)
    except FAULTS as e:
        return {"count": 0, "note": said(e)}
    made, true = Gaussian(), Gaussian()
    notes = []
    for row in good:
        for path, into in ((row.video, made), (row.reference or row.source, true)):
            try:
                see(faces(Path(path), tools), into)
            except FAULTS as e:
                notes.append(said(e))
    count = min(made.n, true.n)
    if count < 2:
        return {"count": count, "note": "; ".join([*dict.fromkeys(notes), "too few samples for any number"])}
    other = "" if good[0].reference else "compared with the source videos, which say other words"
    notes = [n for n in (frechet.too_few(count, kind), other, *dict.fromkeys(notes)) if n]
    return {"value": frechet.frechet_distance(made, true), "count": count, "note": "; ".join(notes)}


def faces(path: Path, tools: Tools) -> Iterator[np.ndarray]:
    """The aligned faces (SIDE, SIDE, 3) of a video, frames without one left out."""

    def shown(frame: Frame) -> Any:
        return frame.picture

    with open_video(path) as video:
        for tracked in Tracker(tools.finder()).track(video.frames(), shown):
            if tracked.points is not None:
                seen = tracked.frame.picture
                yield align.crop(seen, align.alignment(tracked.points, SIDE, seen.pixel_aspect), SIDE)


def _seer(kind: Kind, tools: Tools) -> Callable[[Iterator[np.ndarray], Gaussian], None]:
    """What adds a video's faces to a set."""
    name = "inception" if kind == "fid" else "i3d"
    net = tools.get(name, lambda: (frechet.load_inception if kind == "fid" else frechet.load_i3d)(tools.home, "", tools.device))
    if net is None:
        raise InputError(tools.absent(name))

    def fid(crops: Iterator[np.ndarray], into: Gaussian) -> None:
        into.add(frechet.inception_features(net, (c for i, c in enumerate(crops) if i % PER_CLIP == 0)))

    def fvd(crops: Iterator[np.ndarray], into: Gaussian) -> None:
        into.add(frechet.i3d_features(net, frechet.windows16(crops, FVD_SIDE)))

    return fid if kind == "fid" else fvd
