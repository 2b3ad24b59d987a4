"""One person followed through a video: which face in each frame, where its alignment points are, and how strongly it counts.

A stream in, a stream out, some `LOOKAHEAD` frames later: cuts are told from flashes (2 frames), short gaps are bridged, points are
smoothed without lag and the face fades in and out where it appears or leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import numpy as np

from latentsync.errors import UsageError
from latentsync.face import cuts
from latentsync.face.appearance import head, likeness, looks
from latentsync.face.detect import DETECT_SIDE, detect
from latentsync.face.points import anchor_points, lip_opening, outline
from latentsync.face.protocols import Face, FaceBackend, FaceBox, PictureLike

F = TypeVar("F")
Choice = Literal["largest", "left", "right"] | int | tuple[float, float]

FADE = 4  # frames over which a face that appears or leaves fades
BRIDGE = 4  # frames without the face that are filled in by interpolation
SMOOTH = 4  # frames on each side that take part in smoothing
LOOKAHEAD = cuts.AHEAD + BRIDGE + max(FADE, SMOOTH)  # frames that are held at once

VERIFY_EVERY = 12  # frames between two looks of the detector at a face that is being followed
UNSEEN = 3  # looks in a row at which the detector may miss the face that the landmarks still see
SURE = 0.8  # detector's score from which a face counts as somebody's even where no landmarks can be had, in full profile say
NEAR_FRAMES = 12  # a face that reappears this soon where it was lost is taken for the same
ALIKE = 0.78  # likeness from which a face elsewhere or later is taken for the same person (docs/faces.md)
UNLIKE = 0.45  # likeness below which a face is not the same person, wherever it is
RIVAL = 0.10  # another face must be this much more like the person than the followed one is to be followed instead
POINTED = 1.5  # sizes of a face that a point may lie beside its box and still mean it: hair, neck, a careless click
MEMORY = 8  # looks remembered of the person, at different times and angles
PATIENCE = 75  # frames without the chosen person after which "largest" chooses again within a shot
PUBLISHED_LEAST = (50.0, 80.0)  # the published system ignores faces whose box is smaller than this (width, height in pixels)


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Tracked(Generic[F]):
    """A frame and the followed face in it."""

    frame: F
    points: np.ndarray | None  # (3, 2) float32 pixels: image-left brow, image-right brow, nose; None where the face is not there
    strength: float  # 0..1, how much of the new face to show: fades over `FADE` frames, 0 without points
    cut: bool  # first frame of a new shot
    box: FaceBox | None = None  # around all landmarks, pixels
    yaw: float | None = None  # degrees, positive towards the right edge of the picture
    small: bool = False  # smaller than the least the published system takes; expect a soft mouth
    outline: np.ndarray | None = None  # (k, 2) pixels: points whose convex hull is the face; None where the landmarks do not tell
    opening: float | None = None  # of the lips, in distances between the eyes; None where they were not seen
    person: int = 0  # another number: somebody else may be followed from here on, without a cut
    landmarks: np.ndarray | None = None  # (n, 2) float32 pixels, as found in this very frame; None where they were not


class Tracker:
    """Follows the chosen person through one video (one tracker, and one backend, per video).

    `choose`:
    - "largest": the largest face in the first frame that shows any, then that person; a shot that does not show the person (nobody in its
      first frames looks alike) has its own largest face followed;
    - "left", "right": the face nearest to that edge in the first frame that shows any, then that person;
    - a number N: the Nth face from the left, from 1, in the first frame that shows at least N, then that person;
    - (x, y) pixels: the face that contains the point, or else the nearest that is no further away than one and a half of its size, in the first frame
      that shows such a face, then that person.
    Except with "largest", a shot in which nobody looks like the chosen person is left untouched.
    """

    def __init__(self, backend: FaceBackend, choose: Choice = "largest", *, max_side: int = DETECT_SIDE) -> None:
        """Raises `UsageError` for a choice that is none of the above."""
        self._follower = _Follower(backend, _checked(choose), max_side)

    def track(self, frames: Iterable[F], picture: Callable[[F], PictureLike]) -> Iterator[Tracked[F]]:
        """Every frame of `frames`, in order, with the followed face. `picture` gives the picture of a frame (the same object for a repeated one)."""
        seen = (self._seen(shot) for shot in cuts.shots(frames, picture))
        return _settle(_bridge(seen))

    def _seen(self, shot: cuts.Shot[F]) -> _Seen[F]:
        face = self._follower.step(shot)
        if face is None:
            return _Seen(shot.frame, shot.cut, person=self._follower.person)
        marks = face.landmarks
        return _Seen(
            shot.frame,
            shot.cut,
            anchor_points(face).astype(np.float64),
            face.box,
            face.yaw,
            outline(marks),
            lip_opening(marks),
            self._follower.person,
            marks,
        )


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class _Seen(Generic[F]):
    frame: F
    cut: bool
    points: np.ndarray | None = None  # (3, 2) float64
    box: FaceBox | None = None
    yaw: float | None = None
    outline: np.ndarray | None = None  # (k, 2) float64
    opening: float | None = None
    person: int = 0
    landmarks: np.ndarray | None = None  # (n, 2)


def _checked(choose: Choice) -> Choice:
    if isinstance(choose, str) and choose in ("largest", "left", "right"):
        return choose
    if isinstance(choose, int) and not isinstance(choose, bool) and choose >= 1:
        return choose
    if isinstance(choose, tuple) and len(choose) == 2 and all(isinstance(v, int | float) for v in choose):
        return choose
    raise UsageError(f"face choice {choose!r} is not 'largest', 'left', 'right', a number from 1 (counted from the left), or a point x,y")


def choose_face(faces: list[Face], choose: Choice) -> Face | None:
    """The face that `choose` means among those of one picture; None where there is no such face."""
    if not faces:
        return None
    across = sorted(faces, key=lambda f: f.centre[0])
    if choose == "largest":
        return max(faces, key=lambda f: f.size)
    if choose == "left":
        return across[0]
    if choose == "right":
        return across[-1]
    if isinstance(choose, int):
        return across[choose - 1] if choose <= len(across) else None
    x, y = choose  # type: ignore[misc]

    def distance(face: Face) -> tuple[float, float]:
        x0, y0, x1, y1 = face.box
        outside = np.hypot(max(x0 - x, 0, x - x1), max(y0 - y, 0, y - y1))
        return float(outside), float(np.hypot(face.centre[0] - x, face.centre[1] - y))

    nearest = min(faces, key=distance)
    return nearest if distance(nearest)[0] <= POINTED * nearest.size else None


class _Follower:
    """Which face is the chosen person's in each frame, from the past alone."""

    def __init__(self, backend: FaceBackend, choose: Choice, max_side: int) -> None:
        self._backend, self._choose, self._max_side = backend, choose, max_side
        self._chosen: list[np.ndarray] = []  # looks of the person chosen for the whole video; empty until then
        self._person: list[np.ndarray] = []  # looks of the person followed in this shot: the chosen one, or a stand-in for "largest"
        self._here: Face | None = None  # in the frame before this one, with landmarks
        self._last: Face | None = None  # where the person was last seen in this shot, perhaps by the detector only
        self._unseen = 0  # frames since then
        self._unusable = 0  # frames since there were landmarks
        self._scene: cuts.Scene | None = None  # of the frame where the person was last seen in this shot
        self._unverified = 0  # frames since the detector saw the followed face
        self._missed = 0  # looks of the detector in a row that did not see it
        self.person = 0  # counts how often the person followed changed within a shot

    def step(self, shot: cuts.Shot[F]) -> Face | None:
        """The chosen person's face in the next frame; None where it is not there, or not turned to the camera enough to be used."""
        if shot.still and not shot.cut:
            return self._here
        if shot.cut:
            self._here = self._last = self._scene = None
            self._person = []
            self._unusable = 0
        face = self._follow(shot.picture) if self._here is not None else None
        if face is None:
            face = self._search(shot)
        if face is None:
            self._unusable += 1
        else:
            self._last, self._unseen, self._unusable, self._scene = face, 0, 0, shot.scene
        self._here = face
        return face

    def _follow(self, picture: PictureLike) -> Face | None:
        """The landmarks of the last frame lead to those of this one; the detector is asked only now and then."""
        last = self._here
        assert last is not None
        face = self._backend.landmarks(picture, last)
        if face is None or not continues(last, face):
            return None
        self._unverified += 1
        if self._unverified < VERIFY_EVERY and not self._missed:
            return face
        self._unverified = 0
        found = detect(self._backend, picture, self._max_side)
        if not any(continues(face, f) for f in found):
            self._missed += 1
            return face if self._missed < UNSEEN else None
        self._missed = 0
        mine = looks(picture, face)
        alike = _likeness(mine, self._person)
        if alike < ALIKE:
            rivals = [(_likeness(looks(picture, f), self._person), f) for f in found if not continues(face, f)]
            best = max(rivals, key=lambda r: r[0], default=None)
            if best is not None and best[0] > max(alike + RIVAL, ALIKE):
                self.person += 1
                return self._backend.landmarks(picture, best[1])
        if alike >= UNLIKE:
            self._remember(mine, alike)
        return face

    def _search(self, shot: cuts.Shot[F]) -> Face | None:
        """The person among all faces of the picture."""
        self._unverified = self._missed = 0
        self._unseen += 1
        found = detect(self._backend, shot.picture, self._max_side)
        if not found:
            return None
        if self._choose == "largest" and self._person and self._given_up(shot):
            self._person = []
            self.person += 1
        if not self._person and self._chosen and self._recognised(shot.picture, found, self._chosen, None):
            self._person = self._chosen  # back again in a later shot
        if self._person:
            face = self._recognised(shot.picture, found, self._person, self._last if self._unseen <= NEAR_FRAMES else None)
        elif not self._chosen or self._choose == "largest":
            face = choose_face([f for f in found if self._is_somebody(shot.picture, f)], self._choose)
            if face is not None:
                self._person = [looks(shot.picture, face)]
                self._chosen = self._chosen or self._person
        else:
            face = None
        if face is None:
            return None
        self._last, self._unseen, self._scene = face, 0, shot.scene
        return self._backend.landmarks(shot.picture, face)

    def _given_up(self, shot: cuts.Shot[F]) -> bool:
        if self._unusable > PATIENCE:
            return True
        # A slow transition, which is no cut, may have led to another scene.
        return self._unusable > NEAR_FRAMES and self._scene is not None and cuts.change(self._scene, shot.scene) > cuts.ELSEWHERE

    def _is_somebody(self, picture: PictureLike, face: Face) -> bool:
        return face.score >= SURE or self._backend.landmarks(picture, face) is not None

    def _recognised(self, picture: PictureLike, found: list[Face], person: list[np.ndarray], last: Face | None) -> Face | None:
        """The face most like the person, among those alike or, a little alike, close to where the person just was."""
        scored = []
        for face in found:
            alike = _likeness(looks(picture, face), person)
            near = last is not None and continues(last, face, slack=2.0)
            if alike >= ALIKE or (near and alike >= UNLIKE):
                scored.append((alike + (0.3 if near else 0.0), face))
        return max(scored, key=lambda s: s[0])[1] if scored else None

    def _remember(self, mine: np.ndarray, alike: float) -> None:
        if alike > 0.95:
            return  # nothing new
        self._person.append(mine)
        if len(self._person) > MEMORY:
            del self._person[1]  # the first look is the one that was chosen


def _likeness(mine: np.ndarray, person: list[np.ndarray]) -> float:
    return max((likeness(mine, p) for p in person), default=0.0)


def continues(last: Face, face: Face, slack: float = 1.0) -> bool:
    """Whether two faces of neighbouring frames may be one: the heads about as large, and not far apart."""
    a, b = head(last, 1.0), head(face, 1.0)
    ratio = b.side / max(a.side, 1e-6)
    moved = float(np.hypot(a.x - b.x, a.y - b.y)) / max(a.side, 1e-6)
    return 1 / (1 + 0.4 * slack) < ratio < 1 + 0.4 * slack and moved < 0.25 * slack


def _bridge(seen: Iterable[_Seen[F]]) -> Iterator[_Seen[F]]:
    """Fills gaps of up to `BRIDGE` frames within a shot by interpolation."""
    before: _Seen[F] | None = None  # the last frame given out that has the face, in this shot
    gap: list[_Seen[F]] = []
    for item in seen:
        if item.cut:
            yield from gap
            gap, before = [], None
        if item.points is None:
            gap.append(item)
            if before is None or len(gap) > BRIDGE:
                yield from gap
                gap, before = [], None
            continue
        for i, missing in enumerate(gap):
            assert before is not None
            yield _between(missing, before, item, (i + 1) / (len(gap) + 1))
        gap, before = [], item
        yield item
    yield from gap


def _between(missing: _Seen[F], a: _Seen[F], b: _Seen[F], t: float) -> _Seen[F]:
    assert a.points is not None
    assert b.points is not None
    assert a.box is not None
    assert b.box is not None
    x0, y0, x1, y1 = ((1 - t) * p + t * q for p, q in zip(a.box, b.box, strict=True))
    yaw = None if a.yaw is None or b.yaw is None else (1 - t) * a.yaw + t * b.yaw
    around = None if a.outline is None or b.outline is None or a.outline.shape != b.outline.shape else (1 - t) * a.outline + t * b.outline
    return replace(missing, points=(1 - t) * a.points + t * b.points, box=(x0, y0, x1, y1), yaw=yaw, outline=around)


def _settle(seen: Iterable[_Seen[F]]) -> Iterator[Tracked[F]]:
    """Smooths points and sets strengths, looking at both sides of each frame within its shot."""
    reach = max(FADE, SMOOTH)
    window: deque[_Seen[F]] = deque(maxlen=2 * reach + 1)
    at = 0  # place in the window of the next frame to give out

    for item in seen:
        if len(window) == window.maxlen:
            at -= 1
        window.append(item)
        if len(window) - at > reach:
            yield _settled(list(window), at)
            at += 1
    while at < len(window):
        yield _settled(list(window), at)
        at += 1


def _settled(window: list[_Seen[F]], at: int) -> Tracked[F]:
    item = window[at]
    if item.points is None or item.box is None:
        return Tracked(item.frame, None, 0.0, item.cut, person=item.person)
    back, back_fades = _run(window, at, -1)
    ahead, ahead_fades = _run(window, at, 1)
    strength = 1.0
    if back_fades:
        strength = min(strength, (back + 1) / (FADE + 1))
    if ahead_fades:
        strength = min(strength, (ahead + 1) / (FADE + 1))
    near = window[at - min(back, SMOOTH) : at + min(ahead, SMOOTH) + 1]
    points = smooth(np.stack([w.points for w in near if w.points is not None]), min(back, SMOOTH))
    around = item.outline
    if around is not None and all(w.outline is not None and w.outline.shape == around.shape for w in near):
        around = smooth(np.stack([w.outline for w in near if w.outline is not None]), min(back, SMOOTH))
    x0, y0, x1, y1 = item.box
    small = x1 - x0 < PUBLISHED_LEAST[0] or y1 - y0 < PUBLISHED_LEAST[1]
    return Tracked(
        item.frame, points.astype(np.float32), strength, item.cut, item.box, item.yaw, small, around, item.opening, item.person, item.landmarks
    )


def _run(window: list[_Seen[F]], at: int, way: int) -> tuple[int, bool]:
    """How many frames in a row beside `at` also have the face, and whether the run ends because the face is not there (and not at a cut)."""
    count, i = 0, at
    while True:
        if way < 0 and window[i].cut:
            return count, False
        i += way
        if not 0 <= i < len(window) or (way > 0 and window[i].cut):
            return count, False
        if window[i].points is None:
            return count, True
        count += 1


def smoothed_anchors(landmarks: np.ndarray) -> np.ndarray:
    """(n, p, 2) landmarks of n frames in a row -> (n, 3, 2) float64: the alignment points of each, smoothed over time as `Tracker` does.

    Raises `LatentSyncError` for a number of landmarks that no known layout has.
    """
    raw = np.stack([anchor_points(Face(box=(0, 0, 1, 1), score=1.0, landmarks=frame)) for frame in landmarks]).astype(np.float64)
    n = len(raw)
    return np.stack([smooth(raw[max(0, i - SMOOTH) : min(n, i + SMOOTH + 1)], min(i, SMOOTH)) for i in range(n)])


def smooth(points: np.ndarray, at: int) -> np.ndarray:
    """(n, k, 2) points of neighbouring frames -> (k, 2) for frame `at`: a parabola through them by least squares (Savitzky and Golay, 1964).

    No lag, also at the ends; a straight or evenly accelerated motion passes unchanged, and frames that do not move stay bit for bit.
    """
    n = len(points)
    if n < 4:
        return points[at]
    t = np.arange(n, dtype=np.float64) - at
    weights = np.linalg.pinv(np.stack([np.ones(n), t, t * t], axis=1))[0]
    return points[at] + np.tensordot(weights, points - points[at], axes=1)
