"""Everyone in a shot is one track, whoever comes, goes, hides or crosses; on drawn discs, which a tiny finder of their colours finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from latentsync.face.people import EMPTY_EVERY, FaceTrack, People
from latentsync.face.protocols import Face, PictureLike
from latentsync.face.track import UNSEEN, VERIFY_EVERY

COLOURS = {"red": (150, 105, 100), "green": (105, 140, 100), "blue": (105, 110, 150)}
Place = tuple[float, float, float]  # centre and radius, pixels
Scene = Mapping[str, Place]


class Discs:
    """Faces are discs. `detect` finds those whose name is not in `blind`, `landmarks` the one nearest to a place."""

    name = "discs"

    def __init__(self, score: float = 0.95, blind: frozenset[str] = frozenset()) -> None:
        self.score, self.blind, self.looks = score, blind, 0

    def detect(self, rgb: np.ndarray) -> list[Face]:
        self.looks += 1
        return [face for name, face in self._all(rgb) if name not in self.blind]

    def landmarks(self, picture: PictureLike, near: Face) -> Face | None:
        found = [face for _, face in self._all(picture.rgb())]
        nearest = min(found, key=lambda f: np.hypot(f.centre[0] - near.centre[0], f.centre[1] - near.centre[1]), default=None)
        if nearest is None or np.hypot(nearest.centre[0] - near.centre[0], nearest.centre[1] - near.centre[1]) > near.size / 2:
            return None
        return nearest

    def _all(self, rgb: np.ndarray) -> Iterable[tuple[str, Face]]:
        for name, colour in COLOURS.items():
            rows, columns = np.nonzero((rgb == colour).all(-1))
            if len(rows) < 50:
                continue
            x0, x1, y0, y1 = columns.min(), columns.max(), rows.min(), rows.max()
            x, y, w, h = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
            five = [(-0.1, -0.08), (0.1, -0.08), (0, 0), (-0.07, 0.1), (0.07, 0.1)]  # so close that looks see the disc, not what is behind it
            points = np.array([(x + a * w, y + b * h) for a, b in five], np.float32)
            yield name, Face((float(x0), float(y0), float(x1), float(y1)), self.score, points)


Y, X = np.mgrid[0:200, 0:320].astype(np.float32)


def draw(scene: Scene) -> np.ndarray:
    out = np.zeros((200, 320, 3), np.uint8)
    for name, (cx, cy, radius) in scene.items():  # later ones hide earlier ones
        out[(X - cx) ** 2 + (Y - cy) ** 2 <= radius**2] = COLOURS[name]
    return out


def followed(still, scenes: Iterable[Scene], finder: Discs | None = None) -> list[FaceTrack]:  # type: ignore[no-untyped-def]
    people = People(finder or Discs())
    for scene in scenes:
        people.step(still(draw(scene)))
    return people.tracks()


def test_two_who_stay_and_their_order(still) -> None:  # type: ignore[no-untyped-def]
    tracks = followed(still, [{"red": (80 + k, 90, 30), "green": (220, 90 + k, 50)} for k in range(30)])
    assert [t.frames for t in tracks] == [list(range(30))] * 2
    assert tracks[0].size > tracks[1].size
    assert abs(tracks[1].faces[29].centre[0] - 109) < 1


def test_one_who_comes_later_and_one_who_goes(still) -> None:  # type: ignore[no-untyped-def]
    comes, goes = {"green": (220, 90, 40)}, {"blue": (150, 160, 30)}
    scenes = [{"red": (80, 90, 40)} | (comes if k >= 15 else {}) | (goes if k < 20 else {}) for k in range(40)]
    red, green, blue = followed(still, scenes)
    assert red.frames == list(range(40))
    assert green.frames[-1] == 39
    assert 15 <= green.frames[0] < 15 + VERIFY_EVERY
    assert blue.frames == list(range(20))


def test_one_who_hides_is_the_same_afterwards(still) -> None:  # type: ignore[no-untyped-def]
    scenes = [{} if 10 <= k < 14 else {"red": (80 + k, 90, 40)} for k in range(40)]
    (track,) = followed(still, scenes)
    assert track.frames == [k for k in range(40) if not 10 <= k < 14]
    elsewhere = [{} if 10 <= k < 34 else {"red": (80 if k < 20 else 230, 90, 40)} for k in range(60)]
    (track,) = followed(still, elsewhere)  # known again by its looks
    assert len(track.frames) > 60 - 24 - VERIFY_EVERY


def test_two_of_other_looks_one_after_the_other_are_two(still) -> None:  # type: ignore[no-untyped-def]
    scenes: list[Scene] = [{"red": (80, 90, 40)} if k < 20 else {"blue": (240, 100, 40)} for k in range(45)]
    tracks = followed(still, scenes)
    assert len(tracks) == 2
    assert tracks[0].frames[0] in range(20, 20 + EMPTY_EVERY)
    assert tracks[1].frames == list(range(20))


def test_who_is_hidden_by_another_does_not_become_the_other(still) -> None:  # type: ignore[no-untyped-def]
    scenes: list[Scene] = [{"red": (80, 100, 40), "green": (40 + 6 * k, 100, 42)} for k in range(36)]
    tracks = followed(still, scenes)
    assert len(tracks) == 2
    green, red = ([f.centre[0] for f in t.faces] for t in tracks)
    assert len(green) == 36
    assert min(np.diff(green)) > 0
    assert len(red) > 20
    assert max(red) < 125


def test_what_the_detector_does_not_see_again_is_nobody(still) -> None:  # type: ignore[no-untyped-def]
    class Once(Discs):
        def detect(self, rgb: np.ndarray) -> list[Face]:
            found = super().detect(rgb)
            return found if self.looks == 1 else [f for f in found if f.centre[0] < 150]

    scenes: list[Scene] = [{"red": (80, 90, 40), "green": (230, 90, 30)}] * 20
    finder = Once()
    (track,) = followed(still, scenes, finder)
    assert track.faces[0].centre[0] < 150
    assert finder.looks <= 1 + UNSEEN + 20 // VERIFY_EVERY + 1


def test_doubtful_faces_are_nobody_beside_a_sure_one(still) -> None:  # type: ignore[no-untyped-def]
    class Unsure(Discs):
        def _all(self, rgb: np.ndarray) -> Iterable[tuple[str, Face]]:
            for name, face in super()._all(rgb):
                yield name, Face(face.box, 0.95 if name == "red" else 0.5, face.landmarks)

    both: Scene = {"red": (80, 90, 30), "green": (220, 90, 50)}
    (track,) = followed(still, [both] * 15, Unsure())
    assert track.faces[0].centre[0] < 150
    (alone,) = followed(still, [{"green": (220, 90, 50)}] * 15, Unsure())
    assert alone.frames == list(range(15))


def test_nobody_and_no_frame(still) -> None:  # type: ignore[no-untyped-def]
    assert followed(still, [{}] * 10) == []
    assert People(Discs()).tracks() == []
