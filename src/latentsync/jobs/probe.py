"""What can be refused of a job's files before it waits for a worker: what they are, and what they say of their size and length."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from latentsync.errors import InputError
from latentsync.jobs.errors import LimitError
from latentsync.jobs.limits import Limits
from latentsync.jobs.records import Request
from latentsync.media.audio import audio_stream
from latentsync.media.source import check_file, opened, video_streams
from latentsync.media.video import open_video
from latentsync.options import Options
from latentsync.segments import Segment, in_order


class Said(NamedTuple):
    """What a file says of itself: seconds, or None."""

    seconds: Fraction | None
    still: bool = False


def probe(folder: Path, request: Request, chosen: Options, names: Mapping[str, str], limits: Limits) -> None:
    """Raises InputError for a file that is missing, empty, or not what it is given as; LimitError for one that is too large; UsageError for segments
    that overlap."""
    for file in request.files:
        check_file(folder / file)
    limits.check_uploads({folder / file: names.get(file, file) for file in request.files})
    video = _video(folder / request.video, names.get(request.video, request.video), limits)
    sounds = {file: _sound(folder / file, limits) for file in request.files if file != request.video or file == request.audio}
    sound = sounds[request.audio] if request.audio is not None else video
    limits.check_seconds(_length(video, sound, chosen), "the result")
    in_order(Segment(s.start, s.end, Path(names.get(s.audio, s.audio)), s.audio_start) for s in request.segments)
    for segment in request.segments:
        limits.check_seconds(segment.end, "the result")


def _video(path: Path, name: str, limits: Limits) -> Said:
    with opened(path, max_pixels=limits.max_pixels) as container:
        streams = video_streams(container)
        if not streams:
            raise InputError(f"{path} holds no picture; pass a video or a still")
        context = streams[0].codec_context
        if not context.width:
            most = f", or larger than the {limits.max_pixels / 1e6:.1f} million pixels that are taken" if limits.max_pixels else ""
            raise LimitError(f"the pictures of {name} are damaged{most}")
        limits.check_picture(context.width, context.height, name)
        limits.check_rate(streams[0].average_rate, name)
        said = Fraction(container.duration, 1_000_000) if container.duration else None
    with open_video(path) as video:
        limits.check_picture(video.info.width, video.info.height, name)
        limits.check_rate(video.info.rate, name)
        return Said(None, True) if video.info.is_still else Said(video.info.duration or said)


def _sound(path: Path, limits: Limits) -> Said:
    with opened(path, max_pixels=limits.max_pixels) as container:
        stream = audio_stream(container, path)
        if stream.duration is not None and stream.time_base is not None:
            return Said(stream.duration * Fraction(stream.time_base))
        return Said(Fraction(container.duration, 1_000_000) if container.duration else None)


def _length(video: Said, sound: Said, chosen: Options) -> Fraction | None:
    """Seconds of the result, as far as the files say."""
    if sound.seconds is None or video.still or video.seconds is None:
        return sound.seconds
    if video.seconds > sound.seconds:
        return video.seconds if chosen.when_video_longer == "keep" else sound.seconds
    return video.seconds if chosen.when_audio_longer == "cut" else sound.seconds
