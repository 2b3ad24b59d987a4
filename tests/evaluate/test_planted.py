"""Offsets planted in the sound of a drawn head are found by the judge that comes with the package, to the frame and to a fraction of it."""

from __future__ import annotations

import numpy as np

from latentsync.evaluate import judge as judges
from latentsync.face.track import Tracker
from latentsync.loading import face_finder
from latentsync.media.audio import open_audio
from latentsync.media.frame import Frame
from latentsync.media.picture import Picture
from latentsync.media.video import open_video
from latentsync.metrics import sync
from latentsync.weights import shipped

FRAMES = 100


def test_planted_offsets_are_found() -> None:
    judge, _ = judges.load("demo")
    path = shipped.folder() / "sample.mp4"
    lips = judges.Lips(judge)

    def picture(frame: Frame) -> Picture:
        return frame.picture

    for number, tracked in enumerate(Tracker(face_finder("demo")).track(open_video(path).frames(), picture)):
        if number == FRAMES:
            break
        assert tracked.points is not None
        lips.add(next(sync.aligned_of([tracked.frame.picture], tracked.points[None], judge.side)))
    seen, _ = lips.close()
    samples = np.concatenate(list(open_audio(path, beside=path).samples()))

    def read(early: float) -> sync.SyncReading:
        heard = judge.hear(np.roll(samples, -round(early * 640))[: FRAMES * 640 + 640], len(seen))
        count = min(len(seen), len(heard))
        return sync.reading(judge.distances(seen[:count], heard[:count]))

    own = read(0).fine  # a judge has a constant error of its own, part of a frame
    for planted in (-10, -4, 3, 10):
        found = read(planted)
        assert found.offset == planted
        assert abs(found.fine - planted - own) < 0.25
