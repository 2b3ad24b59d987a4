"""Following one person through real clips with the real networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync.face import track
from latentsync.face.detect import find_faces
from latentsync.face.points import anchor_points
from latentsync.face.protocols import Face, FaceBackend, PictureLike
from latentsync.face.track import Tracked, Tracker


def follow(backend: FaceBackend, frames, choose="largest") -> list[Tracked]:  # type: ignore[no-untyped-def]
    return list(Tracker(backend, choose).track(frames, lambda p: p))


class Counting:
    """Passes everything on and counts."""

    name = "counting"

    def __init__(self, backend: FaceBackend) -> None:
        self.backend, self.detected, self.looked = backend, 0, 0

    def detect(self, rgb: np.ndarray) -> list[Face]:
        self.detected += 1
        return self.backend.detect(rgb)

    def landmarks(self, picture: PictureLike, near: Face) -> Face | None:
        self.looked += 1
        return self.backend.landmarks(picture, near)


def test_every_talking_clip_has_its_face_in_99_of_100_frames(backend, clips: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    files = sorted((clips / "talking").iterdir())
    assert files
    for file in files:
        tracked = follow(backend, pictures(f"talking/{file.name}", 30))
        share = np.mean([t.points is not None for t in tracked])
        assert share >= 0.99, f"{file.name}: {share:.1%}"
        # where it is, it lies on the face that a fresh look finds
        last = tracked[-1]
        assert last.points is not None
        fresh = anchor_points(find_faces(backend, last.frame)[0])
        assert np.abs(fresh - last.points).max() < 0.05 * (last.box[2] - last.box[0]), file.name


@pytest.mark.parametrize("name", ["learning-area__rabbit320.webm", "Wan2.2__pose.mp4", "torchcodec__nasa_13013.mp4", "torchcodec__av1_video.mkv"])
def test_no_face_where_none_is(backend, pictures, name: str) -> None:  # type: ignore[no-untyped-def]
    tracked = follow(backend, list(pictures(f"special/{name}", 120))[::2])
    assert all(t.points is None and t.strength == 0 and t.box is None for t in tracked)


TWO = "special/ClearerVoice-Studio__001.avi"


@pytest.mark.parametrize(("choose", "left"), [("left", True), ("right", False), (1, True), (2, False), ((350, 250), True), ((1060, 420), False)])
def test_the_chosen_of_two_stays_chosen(backend, pictures, choose, left: bool) -> None:  # type: ignore[no-untyped-def]
    frames = list(pictures(TWO, 201))[::4]  # every fourth: heads turn four times as fast
    tracked = follow(backend, frames, choose)
    shown = [t for t in tracked if t.points is not None]
    assert len(shown) >= 0.95 * len(frames)
    assert all(bool(t.points[:, 0].mean() < 640) == left for t in shown)


def test_a_person_who_is_not_there_is_nobody(backend, pictures) -> None:  # type: ignore[no-untyped-def]
    assert all(t.points is None for t in follow(backend, pictures(TWO, 20), 3))


def test_cuts_of_a_stage_film(backend, pictures) -> None:  # type: ignore[no-untyped-def]
    """The singer, a pianist in full profile, the singer again, the audience in profile."""
    frames = list(pictures("special/face_recognition__short_hamilton_clip.mp4"))[::2]
    tracked = follow(backend, frames)
    cut = [i for i, t in enumerate(tracked) if t.cut]
    assert len(cut) == 3
    first, _, third, _ = np.split(np.arange(len(tracked)), cut)
    for shot in (first, third):
        assert np.mean([tracked[i].points is not None for i in shot]) > 0.9
        assert tracked[shot[0]].strength == 1  # at once, no fade at a cut
    # Chosen as the person in the first shot, the singer is found again and nobody else is taken for him.
    singer = follow(backend, frames, "right")
    shares = [np.mean([singer[i].points is not None for i in shot]) for shot in np.split(np.arange(len(singer)), cut)]
    assert shares[0] > 0.9
    assert shares[1] == 0
    assert shares[2] > 0.9
    assert shares[3] < 0.1


def test_the_person_is_found_again_after_a_cut_and_back(backend, pictures) -> None:  # type: ignore[no-untyped-def]
    """Two people before the cut, one of them alone after it, then both again."""
    both = list(pictures(TWO, 30))
    alone = [type(p)(np.ascontiguousarray(p.pixels[:, 640:])) for p in pictures(TWO, 60, 30)][::2]
    for choose, present in (("right", True), ("left", False)):
        tracked = follow(backend, [*both, *alone, *both], choose)
        assert [i for i, t in enumerate(tracked) if t.cut] == [30, 60]
        assert all(t.points is not None for t in tracked[:30])
        assert np.mean([t.points is not None for t in tracked[30:60]]) == pytest.approx(float(present), abs=0.1)
        back = [t for t in tracked[60:] if t.points is not None]
        assert len(back) >= 28
        assert all(bool(t.points[:, 0].mean() < 640) == (choose == "left") for t in back)


def test_largest_takes_whoever_a_new_shot_shows(backend, pictures) -> None:  # type: ignore[no-untyped-def]
    frames = [*pictures("talking/LipNet__bbaf2n.mpg", 15), *pictures("talking/EDTalk__mouth_source.mp4", 15)]
    tracked = follow(backend, frames)
    assert [i for i, t in enumerate(tracked) if t.cut] == [15]
    assert all(t.points is not None and t.strength == 1 for t in tracked)


def test_a_still_costs_one_look_and_does_not_tremble(backend, image) -> None:  # type: ignore[no-untyped-def]
    counting = Counting(backend)
    picture = image("LivePortrait__s9.jpg")
    tracked = follow(counting, [picture] * 40)
    assert counting.detected == 1
    assert counting.looked == 1
    assert all(t.strength == 1 and (t.points == tracked[0].points).all() for t in tracked)
    np.testing.assert_array_equal(tracked[0].points, anchor_points(find_faces(backend, picture)[0]))


def test_the_detector_rests_while_a_face_is_followed(backend, pictures) -> None:  # type: ignore[no-untyped-def]
    counting = Counting(backend)
    frames = list(pictures("talking/LipNet__bbaf2n.mpg", 61))
    follow(counting, frames)
    assert counting.detected == 1 + 60 // track.VERIFY_EVERY
    assert counting.looked == len(frames)


def moving(backend, still, image) -> Iterator[object]:  # type: ignore[no-untyped-def]
    """A face that slides out of the picture and back, before an even background."""
    portrait = image("LivePortrait__s9.jpg")
    (face,) = find_faces(backend, portrait)
    x0, y0, x1, y1 = (int(v) for v in face.box)
    grown = (x1 - x0) // 2
    head = portrait.pixels[max(0, y0 - grown) : y1 + grown, max(0, x0 - grown) : x1 + grown]
    scale = 240 / head.shape[0]
    head = cv2.resize(head, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    backdrop = np.full((360, 640, 3), head[0, 0], np.uint8)
    out = np.clip(np.arange(60) * 14 - 100, 0, 640)
    for offset in [*out, *out[::-1]]:
        canvas = backdrop.copy()
        left = 300 + int(offset)
        width = max(0, min(head.shape[1], 640 - left))
        canvas[60 : 60 + head.shape[0], left : left + width] = head[:, :width]
        yield still(canvas)


def test_a_face_that_leaves_fades_out_and_in(backend, still, image) -> None:  # type: ignore[no-untyped-def]
    tracked = follow(backend, moving(backend, still, image))
    strengths = np.array([t.strength for t in tracked])
    gone = np.flatnonzero(strengths == 0)
    assert len(gone) > 20
    assert (np.diff(gone) == 1).all()
    assert not any(t.cut for t in tracked)
    step = 1 / (track.FADE + 1)
    np.testing.assert_allclose(strengths[gone[0] - track.FADE - 1 : gone[0]], np.arange(track.FADE + 1, 0, -1) * step)
    np.testing.assert_allclose(strengths[gone[-1] + 1 : gone[-1] + track.FADE + 2], np.arange(1, track.FADE + 2) * step)


def test_points_follow_pixel_aspect(backend, pictures, still) -> None:  # type: ignore[no-untyped-def]
    from fractions import Fraction

    square = list(pictures("talking/LipNet__bbaf2n.mpg", 10))
    wide = [still(cv2.resize(p.pixels, (p.width // 2, p.height), interpolation=cv2.INTER_AREA), Fraction(2)) for p in square]
    for a, b in zip(follow(backend, square), follow(backend, wide), strict=True):
        assert np.abs((b.points + 0.5) * [2, 1] - 0.5 - a.points).max() < 2.5


def test_small_faces_are_marked(backend, pictures) -> None:  # type: ignore[no-untyped-def]
    tracked = follow(backend, pictures("special/face_recognition__short_hamilton_clip.mp4", 10))
    assert all(t.small for t in tracked if t.points is not None)
    assert not any(t.small for t in follow(backend, pictures("talking/LipNet__bbaf2n.mpg", 5)))
