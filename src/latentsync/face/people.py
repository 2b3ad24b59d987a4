"""Everyone in a shot: one track for each face, from its first frame to its last. (`track.Tracker` follows one chosen person.)

As there, landmarks lead from frame to frame, and the detector is asked only now and then: for faces that came, and whether those
followed are still seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from latentsync.face.appearance import likeness, looks
from latentsync.face.detect import DETECT_SIDE, detect
from latentsync.face.protocols import Face, FaceBackend, PictureLike, iou
from latentsync.face.track import ALIKE, NEAR_FRAMES, SURE, UNSEEN, VERIFY_EVERY, continues

ONE_FACE = 0.5  # overlap of two faces' boxes from which they are one
EMPTY_EVERY = 4  # frames between two looks of the detector where no face is followed


@dataclass(eq=False)
class FaceTrack:
    """One person's face: the numbers of the frames that show it, ascending, and the face in each, with all its landmarks."""

    frames: list[int] = field(default_factory=list)
    faces: list[Face] = field(default_factory=list)
    _looks: np.ndarray | None = None
    _best: float = 0.0  # score that the detector gave it
    _seen: int = 0  # looks of the detector that saw it
    _missed: int = 0  # looks in a row that did not

    @property
    def last(self) -> Face:
        return self.faces[-1]

    @property
    def size(self) -> float:
        """Median of the square root of its box's area, pixels."""
        return float(np.median([face.size for face in self.faces]))

    @property
    def score(self) -> float:
        """0..1: how certain it is that this is a face, by the detector's best look or by the landmarks' usual word."""
        return max(self._best, float(np.median([face.score for face in self.faces])))


class People:
    """Follows all faces through one shot (one, and one backend, per shot): `step` for each frame, then `tracks`."""

    def __init__(self, backend: FaceBackend, *, max_side: int = DETECT_SIDE) -> None:
        self._backend, self._max_side = backend, max_side
        self.frames = 0
        self._live: list[FaceTrack] = []
        self._lost: list[FaceTrack] = []

    def step(self, picture: PictureLike) -> None:
        """The next frame."""
        number = self.frames
        self.frames += 1
        for track in list(self._live):
            face = self._backend.landmarks(picture, track.last)
            if face is None or not continues(track.last, face):
                self._lose(track)
            else:
                track.frames.append(number)
                track.faces.append(face)
        self._part(number)
        if self._is_due(number):
            self._look(picture, number)

    def tracks(self) -> list[FaceTrack]:
        """Everyone, the one with the most face over time first. One look of the detector is not enough, where there was time for two.

        Where nobody's face is beyond doubt, the first alone of those that may be one.
        """
        seen = [t for t in (*self._live, *self._lost) if t._seen > 1 or t.frames[0] + 1 >= self.frames]
        seen.sort(key=lambda t: (-len(t.frames) * t.size, t.frames[0]))
        return [t for t in seen if t.score >= SURE] or seen[:1]

    def _is_due(self, number: int) -> bool:
        if number % VERIFY_EVERY == 0 or (not self._live and number % EMPTY_EVERY == 0):
            return True
        if any(t._missed or t._seen < 2 for t in self._live):
            return True
        return any(number - t.frames[-1] <= NEAR_FRAMES for t in self._lost)

    def _lose(self, track: FaceTrack) -> None:
        self._live.remove(track)
        if track._seen > 1:
            self._lost.append(track)

    def _part(self, number: int) -> None:
        """Two tracks that came to lie on one face: the shorter ends before that."""
        for track in sorted(self._live, key=lambda t: len(t.frames)):
            if any(other is not track and iou(track.last.box, other.last.box) >= ONE_FACE for other in self._live):
                del track.frames[-1], track.faces[-1]
                if track.frames:
                    self._lose(track)
                else:
                    self._live.remove(track)

    def _look(self, picture: PictureLike, number: int) -> None:
        seen: set[int] = set()
        for found in detect(self._backend, picture, self._max_side):
            track = self._one_of(self._live, found)
            if track is None:
                face = self._backend.landmarks(picture, found)
                if face is None:
                    continue
                track = next((t for t in self._live if iou(t.last.box, face.box) >= ONE_FACE), None) or self._begin(picture, face, number)
            if id(track) not in seen:
                seen.add(id(track))
                track._seen, track._missed = track._seen + 1, 0
                track._best = max(track._best, found.score)
        for track in list(self._live):
            if id(track) not in seen:
                track._missed += 1
                if track._missed >= UNSEEN:
                    self._lose(track)

    @staticmethod
    def _one_of(tracks: list[FaceTrack], face: Face) -> FaceTrack | None:
        """The track whose last face this one continues, the nearest where there are several."""
        near = [t for t in tracks if continues(t.last, face)]
        return min(near, key=lambda t: np.hypot(t.last.centre[0] - face.centre[0], t.last.centre[1] - face.centre[1]), default=None)

    def _begin(self, picture: PictureLike, face: Face, number: int) -> FaceTrack:
        """A new track, or one that was lost and goes on: close by and a moment ago, or of the same looks."""
        mine = looks(picture, face)
        track = next(self._again(face, mine, number), None)
        if track is None:
            track = FaceTrack(_looks=mine)
        else:
            self._lost.remove(track)
        track._missed = 0
        track.frames.append(number)
        track.faces.append(face)
        self._live.append(track)
        return track

    def _again(self, face: Face, mine: np.ndarray, number: int) -> Iterator[FaceTrack]:
        recent = sorted((t for t in self._lost if t.frames[-1] < number), key=lambda t: -t.frames[-1])
        yield from (t for t in recent if number - t.frames[-1] <= NEAR_FRAMES and continues(t.last, face, slack=2.0))
        yield from (t for t in recent if t._looks is not None and likeness(mine, t._looks) >= ALIKE)
