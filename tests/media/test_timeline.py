"""A video laid over a sound."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from latentsync.errors import UsageError
from latentsync.media.timeline import timeline, timeline_length
from latentsync.media.video import open_video


@pytest.fixture
def five(make_video: Any) -> Any:
    """Five frames of 1/25 s."""
    return open_video(make_video("five.mp4", 5))


def indices(*args: Any, **kwargs: Any) -> list[int]:
    frames = list(timeline(*args, **kwargs))
    assert frames[0].time == 0
    for a, b in pairwise(frames):
        assert b.time == a.time + a.duration
    return [f.index for f in frames]


S = Fraction(1, 25)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("bounce", [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4]),
        ("loop", [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2]),
        ("freeze", [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4]),
        ("cut", [0, 1, 2, 3, 4]),
    ],
)
def test_longer_audio(five: Any, mode: Any, expected: list[int]) -> None:
    assert indices(five, 13 * S, when_audio_longer=mode) == expected
    assert indices(five, 12 * S + S / 3, when_audio_longer=mode) == expected  # a frame that has begun is shown
    assert timeline_length(five, 13 * S, when_audio_longer=mode) == len(expected)


def test_longer_video(five: Any) -> None:
    assert indices(five, 3 * S) == [0, 1, 2]
    assert indices(five, 3 * S, when_video_longer="keep") == [0, 1, 2, 3, 4]
    assert indices(five, 5 * S) == [0, 1, 2, 3, 4]
    assert indices(five, S / 1000) == [0]
    assert timeline_length(five, 3 * S) == 3
    assert timeline_length(five, 3 * S, when_video_longer="keep") == 5


def test_keep_does_not_shorten_longer_audio(five: Any) -> None:
    assert indices(five, 7 * S, when_video_longer="keep") == [0, 1, 2, 3, 4, 3, 2]
    assert indices(five, 7 * S, when_video_longer="keep", when_audio_longer="loop") == [0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("mode", ["bounce", "loop", "freeze"])
def test_one_frame_video(make_video: Any, mode: Any) -> None:
    video = open_video(make_video("one.mp4", 1))
    assert indices(video, 4 * S, when_audio_longer=mode) == [0, 0, 0, 0]


def test_two_frames_bounce(make_video: Any) -> None:
    assert indices(open_video(make_video("two.mp4", 2)), 5 * S) == [0, 1, 0, 1, 0]


def test_variable_durations_are_mirrored(make_video: Any) -> None:
    times = [Fraction(k, 600) for k in (0, 10, 40, 60, 100)]
    video = open_video(make_video("v.mp4", 5, times=times, time_base=Fraction(1, 600)))
    frames = list(timeline(video, Fraction(250, 600)))
    own = {f.index: f.duration for f in frames[:5]}
    assert [f.time for f in frames[:5]] == times
    assert [f.index for f in frames[5:8]] == [3, 2, 1]
    assert all(f.duration == own[f.index] for f in frames[:-1])
    assert all(b.time == a.time + a.duration for a, b in pairwise(frames))


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(50), Fraction(10)])
@pytest.mark.parametrize("mode", ["bounce", "loop", "freeze", "cut"])
def test_resampling_takes_the_nearest_frame(make_video: Any, fps: Fraction, mode: Any) -> None:
    video = open_video(make_video("r.mp4", 20))
    length = Fraction(3, 2)
    source = [(f.index, f.time) for f in timeline(video, length + 1, when_audio_longer=mode)]
    frames = list(timeline(video, length, when_audio_longer=mode, fps=fps))
    assert [f.time for f in frames] == [k / fps for k in range(len(frames))]
    assert all(f.duration == 1 / fps for f in frames)
    end = Fraction(20, 25) if mode == "cut" else length
    assert len(frames) == -(-(end * fps) // 1)
    for f in frames:
        best = min(abs(f.time - t) for _, t in source)
        assert any(i == f.index and abs(f.time - t) == best for i, t in source)


@pytest.mark.parametrize("keep", ["cut", "keep"])
def test_resampling_reaches_the_end_of_the_sound_through_long_frames(make_video: Any, keep: Any) -> None:
    """A frame every two seconds, as in recorded slides; the sound ends between two of them."""
    video = open_video(make_video("slides.mp4", 3, times=[Fraction(0), Fraction(2), Fraction(4)], time_base=Fraction(1, 600)))
    frames = list(timeline(video, Fraction(3, 2), fps=Fraction(10), when_video_longer=keep))
    assert [f.index for f in frames[:15]] == [0] * 11 + [1] * 4
    assert (len(frames) == 15) == (keep == "cut")


@pytest.mark.parametrize("mode", ["bounce", "loop", "freeze", "cut"])
@pytest.mark.parametrize("over", ["cut", "keep"])
@pytest.mark.parametrize(("length", "own"), [(Fraction(1, 5), True), (Fraction(21, 4), False)])
def test_resampling_ends_where_the_source_or_the_sound_does(make_video: Any, mode: Any, over: Any, length: Fraction, own: bool) -> None:
    """Frames shown for 0.1, 1.4 and 0.04 s, under a shorter and a longer sound."""
    video = open_video(make_video("slides.mp4", 3, times=[Fraction(0), Fraction(1, 10), Fraction(3, 2)], time_base=Fraction(1, 600)))
    whole = sum((f.duration for f in video.frames()), Fraction(0))
    wanted = whole if (over == "keep" and own) or (mode == "cut" and not own) else length
    frames = list(timeline(video, length, when_audio_longer=mode, when_video_longer=over, fps=Fraction(10)))
    assert len(frames) == -(-(wanted * 10) // 1)
    assert all(b.time == a.time + a.duration for a, b in pairwise(frames))


def test_resampling_with_keep(five: Any) -> None:
    frames = list(timeline(five, S, fps=Fraction(50), when_video_longer="keep"))
    assert len(frames) == 10
    assert len(list(timeline(five, S, fps=Fraction(50)))) == 2


def test_still_is_repeated(make_video: Any) -> None:
    still = open_video(make_video("s.png", 1, codec="png", pix_fmt="rgb24"))
    assert still.info.is_still
    frames = list(timeline(still, Fraction(1, 2), when_audio_longer="cut"))
    assert [f.time for f in frames] == [k * S for k in range(13)]
    frames = list(timeline(still, Fraction(1, 2), fps=Fraction(30)))
    assert len(frames) == 15 == timeline_length(still, Fraction(1, 2), fps=Fraction(30))
    assert all(f.picture is frames[0].picture for f in frames)


def test_pictures_follow_their_index(make_video: Any) -> None:
    video = open_video(make_video("p.mp4", 9))
    own = {f.index: f.picture.rgb() for f in video.frames()}
    for f in timeline(video, Fraction(1)):
        np.testing.assert_array_equal(f.picture.rgb(), own[f.index])


def test_wrong_options_are_refused(five: Any) -> None:
    with pytest.raises(UsageError, match="bounce, loop, freeze, cut"):
        timeline(five, Fraction(1), when_audio_longer="stop")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="fps"):
        timeline(five, Fraction(1), fps=Fraction(0))
