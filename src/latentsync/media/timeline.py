"""A video laid over the length of a sound: cut, looped, frozen or played back and forth, at its own times or resampled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from latentsync.errors import UsageError
from latentsync.media.frame import Frame
from latentsync.media.video import STILL_RATE, Video

AudioLonger = Literal["bounce", "loop", "freeze", "cut"]
VideoLonger = Literal["cut", "keep"]


def timeline(
    video: Video,
    length: Fraction,
    *,
    when_audio_longer: AudioLonger = "bounce",
    when_video_longer: VideoLonger = "cut",
    fps: Fraction | None = None,
) -> Iterator[Frame]:
    """Frames for `length` seconds of sound, in order, the first at 0.

    Sound longer than the video: `bounce` plays forwards, backwards, forwards ... and shows each turning frame once; `loop` starts
    over; `freeze` repeats the last frame at the video's rate; `cut` ends with the video. On the way back each frame is shown as long
    as on the way there. Video longer than the sound: `cut` keeps the frames that begin before the sound ends, `keep` all of them.
    `fps` None keeps the source's times; a number resamples: each output frame is the source frame nearest in time.
    A still is one frame repeated at `fps` (25 by default) for the length of the sound.
    """
    _check(when_audio_longer, when_video_longer, fps)
    length = Fraction(length)
    if video.info.is_still:
        return _still(video, length, fps or STILL_RATE)
    keep = when_video_longer == "keep"
    if fps is None:
        return _limited(_endless(video, length, when_audio_longer), length, keep, video.info.rate or STILL_RATE)
    return resampled(_endless(video, length, when_audio_longer), length, Fraction(fps), keep=keep)


def timeline_length(
    video: Video,
    length: Fraction,
    *,
    when_audio_longer: AudioLonger = "bounce",
    when_video_longer: VideoLonger = "cut",
    fps: Fraction | None = None,
) -> int | None:
    """Number of frames that `timeline` will give; an estimate where times vary, None where the file does not say."""
    info = video.info
    if info.is_still:
        return max(1, math.ceil(Fraction(length) * (fps or STILL_RATE)))
    rate = fps or info.rate
    own = video.length or info.duration or (info.frames / info.rate if info.frames and info.rate else None)
    if rate is None:
        return None
    if own is None:
        return math.ceil(Fraction(length) * rate) or 1
    shown = Fraction(length)
    if own > length:
        shown = own if when_video_longer == "keep" else shown
    elif when_audio_longer == "cut":
        shown = own
    if fps is None and shown == own:
        return video.count or info.frames or max(1, round(own * rate))
    return max(1, math.ceil(shown * rate))


def _check(when_audio_longer: str, when_video_longer: str, fps: Fraction | None) -> None:
    if when_audio_longer not in ("bounce", "loop", "freeze", "cut"):
        raise UsageError(f"when the audio is longer: '{when_audio_longer}' is not one of bounce, loop, freeze, cut")
    if when_video_longer not in ("cut", "keep"):
        raise UsageError(f"when the video is longer: '{when_video_longer}' is not one of cut, keep")
    if fps is not None and not 0 < fps <= 1000:
        raise UsageError(f"fps {float(fps):g} is not within 0..1000")


def _still(video: Video, length: Fraction, rate: Fraction) -> Iterator[Frame]:
    frame = next(iter(video.frames()))
    for k in range(max(1, math.ceil(length * rate))):
        yield Frame(0, k / rate, 1 / rate, frame.picture)


def _endless(video: Video, length: Fraction, mode: str) -> Iterator[Frame]:
    """The video once, then what `mode` goes on with until `length`; times run on."""
    end = Fraction(0)
    last: Frame | None = None
    for frame in video.frames():
        end = frame.time + frame.duration
        if mode == "freeze":
            last = frame
        single = frame if frame.index == 0 else None
        yield frame
        del frame
    if mode == "cut":
        return
    if mode == "freeze" or (single is not None and video.count == 1):
        still = last or single
        assert still is not None
        tick = video.info.time_base
        step = max(1, round((1 / video.info.rate if video.info.rate else still.duration) / tick)) * tick
        while True:
            yield replace(still, time=end, duration=step)
            end += step
    forwards: Callable[[], Iterator[Frame]] = video.frames
    backwards: Callable[[], Iterator[Frame]] = video.backwards
    ways = [forwards] if mode == "loop" else [backwards, forwards]
    while end < length:
        for way in ways:
            frames = way()
            if mode == "bounce":
                next(frames)  # the turning frame was just shown
            for frame in frames:
                yield replace(frame, time=end)
                end += frame.duration
                del frame


def _limited(frames: Iterator[Frame], length: Fraction, keep: bool, rate: Fraction) -> Iterator[Frame]:
    """Frames that begin before `length`, at least one; with `keep` the source's own frames all stay."""
    highest = -1
    for frame in frames:
        fresh = frame.index > highest
        highest = max(highest, frame.index)
        if frame.time >= length and highest >= 0 and not (keep and fresh) and frame.time != 0:
            return
        over = frame.time + frame.duration - length
        if over > 0 and not keep and frame.duration > 1 / rate:  # a long last frame must not outlast the sound
            frame = replace(frame, duration=max(1 / rate, frame.duration - over))
        yield frame
        del frame


def resampled(frames: Iterator[Frame], length: Fraction, fps: Fraction, *, keep: bool = False, first: int = 0) -> Iterator[Frame]:
    """The frame nearest to k / fps for k = first, first + 1, ... up to `length` seconds; of two equally near the earlier.

    With `keep` source frames that begin after `length` go on. For a `first` other than 0, `frames` may begin with the one shown at first / fps.
    """
    number = first
    before: Frame | None = None
    highest = -1
    end = length
    for frame in frames:
        fresh = frame.index > highest
        highest = max(highest, frame.index)
        if keep and fresh:
            end = max(end, frame.time + frame.duration)
        if before is not None:
            middle = (before.time + frame.time) / 2
            while number / fps <= middle:
                if number / fps >= end:
                    return
                yield Frame(before.index, number / fps, 1 / fps, before.picture)
                number += 1
        if number / fps >= end and not (keep and fresh):
            return
        before = frame
        del frame
    if before is None:
        return
    end = min(end, before.time + before.duration)
    while number / fps < end or not number:  # at least one frame
        yield Frame(before.index, number / fps, 1 / fps, before.picture)
        number += 1
