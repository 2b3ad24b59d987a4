"""Video files and stills as streams of frames, forwards and backwards, in constant memory."""

from __future__ import annotations

import os
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from latentsync.errors import InputError
from latentsync.media.frame import Frame
from latentsync.media.layout import Colour, Layout, layout_of, read_planes
from latentsync.media.picture import Picture, orient, oriented_layout
from latentsync.media.source import STILL_SUFFIXES, exif_orientation, has_cover, opened, video_streams

STILL_RATE = Fraction(25)  # frames per second of a still, unless the caller says otherwise
BACKWARDS_BYTES = 40 << 20  # of decoded frames held while playing backwards; a longer group of pictures is decoded again in pieces
BACKWARDS_FRAMES = 12  # held in any case: with fewer, a large picture's long groups would be decoded too often
_DECODER_THREADS = 8  # frame threads each hold a frame, so their number bounds memory on big machines
_TICKS = 1024  # repaired times lie between the container's ticks: so many steps in one
_NO_PTS = -(1 << 63)

_EXIF = {1: (False, False, False), 2: (False, True, False), 3: (False, True, True), 4: (False, False, True),
         5: (True, False, False), 6: (True, True, False), 7: (True, True, True), 8: (True, False, True)}  # fmt: skip
_CLOCKWISE = {(False, False, False): 0, (True, True, False): 90, (False, True, True): 180, (True, False, True): 270}


@dataclass(frozen=True)
class VideoInfo:
    """What is known about a video or still before reading it through. Sizes and aspect are those after rotation."""

    path: Path
    width: int
    height: int
    pixel_aspect: Fraction  # 1 = square pixels
    rate: Fraction | None  # frames per second on average; None where the file does not say
    time_base: Fraction  # seconds per tick of the container's clock
    duration: Fraction | None  # seconds, as the container says
    frames: int | None  # an estimate where the container does not count
    codec: str
    pixel_format: str  # the planar format of the pictures that `Video` gives
    bit_depth: int
    colour: Colour
    layout: Layout
    rotation: int  # degrees clockwise that were applied to show it upright
    is_still: bool
    interlaced: bool
    start: Fraction  # time of the first frame on the container's clock, seconds
    notes: tuple[str, ...] = ()


@dataclass
class _Index:
    """What one whole pass learned: per frame its raw timestamp, place in time and a checksum; and where decoding can begin."""

    stamps: array[int]
    times: array[int]  # in units of time_base / 1024 from the first frame, plus the end of the last
    sums: array[int]
    keys: list[tuple[int, int]]  # (presentation, decoding) timestamp of each keyframe

    @property
    def seekable(self) -> bool:
        s = self.stamps
        return len(s) > 0 and s[0] != _NO_PTS and all(s[i] < s[i + 1] for i in range(len(s) - 1))


class _Clock:
    """Raw timestamps -> strictly increasing times in 1/1024 ticks from the first frame. Good timestamps pass exactly."""

    def __init__(self, time_base: Fraction, rate: Fraction) -> None:
        self.step = max(1, round(_TICKS / (rate * time_base)))
        self._first: int | None = None
        self._last: int | None = None
        self._shift = 0
        self._crowded = 0
        self.repaired = 0

    def place(self, stamp: int | None) -> int:
        if self._last is None:
            self._first, self._last = stamp, 0
            return 0
        if stamp is None:
            time = self._last + self.step
        else:
            if self._first is None:
                self._first = stamp
                self._shift = self._last + self.step
            time = (stamp - self._first) * _TICKS + self._shift
            if time > self._last:
                self._crowded = 0
            elif self._last - time > 10 * self.step:  # the clock was set back: go on from here
                self.repaired += 1
                self._shift += self._last + self.step - time
                time = self._last + self.step
            else:  # repeated or out of order: squeeze in before the next regular frame
                self.repaired += 1
                self._crowded += 1
                time = self._last + max(1, self.step >> min(self._crowded, 9))
        self._last = time
        return time


def open_video(path: Path) -> Video:
    """A video file or a still image, ready to read. Raises `InputError` saying what is wrong with the file."""
    return Video(Path(path))


class Video:
    """One video file or still. Every iterator reads the file on its own, so several may run at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index: _Index | None = None
        with opened(path) as container:
            stream = self._stream(container)
            decoder = self._decoded(container, stream, [])
            first = next(decoder, None)
            if first is None:
                raise InputError(f"{path}: no frame of its {stream.codec_context.name} video can be decoded; the file is damaged or cut off")
            animated = not container.format.name.endswith("_pipe")
            if animated and path.suffix.lower() in STILL_SUFFIXES:
                animated = next(decoder, None) is not None
            self._describe(container, stream, first, not animated)
            decoder.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exc: object) -> None:
        self._index = None

    def frames(self) -> Iterator[Frame]:
        """First to last, times from 0. Whatever decodes is given; `info.notes` says afterwards what did not."""
        if self.info.is_still:
            yield self._still()
            return
        unit = self.info.time_base / _TICKS
        index = _Index(array("q"), array("q"), array("L"), [])
        clock = self._clock()
        held: tuple[int, Picture] | None = None
        length = 0
        for number, (frame, picture) in enumerate(self._pictures(index.keys)):
            stamp = _stamp(frame)
            time = clock.place(stamp)
            index.stamps.append(_NO_PTS if stamp is None else stamp)
            index.times.append(time)
            index.sums.append(_checksum(picture))
            length = frame.duration * _TICKS if frame.duration else 0
            del frame
            if held is not None:
                yield Frame(number - 1, held[0] * unit, (time - held[0]) * unit, held[1])
            held = (time, picture)
        if held is None:
            raise InputError(f"{self._path}: no frame can be decoded; the file is damaged or cut off")
        if length <= 0:
            length = index.times[-1] - index.times[-2] if len(index.times) > 1 else clock.step
        index.times.append(held[0] + length)
        self._index = index
        self._closing_notes(clock, index)
        yield Frame(len(index.sums) - 1, held[0] * unit, length * unit, held[1])

    def backwards(self) -> Iterator[Frame]:
        """Last to first, the same frames with mirrored times from 0.

        Needs one whole forward pass to know the frames; if `frames()` has not run through yet, the file is decoded once for that.
        Holds at most `BACKWARDS_BYTES` of frames (but at least `BACKWARDS_FRAMES`). Each frame is checked against the forward pass,
        so a file that seeks badly costs time, never a wrong frame.
        """
        if self.info.is_still:
            yield self._still()
            return
        if self._index is None:
            for _ in self.frames():
                pass
        index = self._index
        assert index is not None
        unit = self.info.time_base / _TICKS
        end, count = index.times[-1], len(index.sums)
        piece = max(BACKWARDS_FRAMES, BACKWARDS_BYTES // self.info.layout.frame_bytes(self.info.width, self.info.height))
        keys = self._key_frames(index)
        with opened(self._path) as container:
            stream = self._stream(container)
            while count > 0:
                start = max(0, count - piece)
                if start and keys:  # begin at a keyframe where one lies in reach
                    k = bisect_left(keys, start)
                    if k < len(keys) and keys[k] < count:
                        start = keys[k]
                pictures = self._piece(container, stream, index, keys, start, count)
                while pictures:
                    count -= 1
                    picture = pictures.pop()
                    time, after = index.times[count], index.times[count + 1]
                    yield Frame(count, (end - after) * unit, (after - time) * unit, picture)

    @property
    def length(self) -> Fraction | None:
        """Exact seconds from the first frame to the end of the last, once a forward pass has run through."""
        return None if self._index is None else self._index.times[-1] * self.info.time_base / _TICKS

    @property
    def count(self) -> int | None:
        """Exact number of frames, once a forward pass has run through."""
        return 1 if self.info.is_still else None if self._index is None else len(self._index.sums)

    # opening

    def _stream(self, container: InputContainer) -> VideoStream:
        streams = video_streams(container)
        if not streams:
            why = "its only picture is cover art" if has_cover(container) else "it has no video stream"
            raise InputError(f"{self._path} holds no video: {why}; pass a video or a still image")
        stream = streams[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = min(_DECODER_THREADS, os.cpu_count() or 1)
        return stream

    def _describe(self, container: InputContainer, stream: VideoStream, first: VideoFrame, still: bool) -> None:
        notes = []
        streams = video_streams(container)
        if len(streams) > 1:
            notes.append(f"{len(streams)} video streams, using the first ({stream.codec_context.name}, {first.width}x{first.height})")
        context = stream.codec_context  # PyAV before 17 shows primaries and transfer only here
        colour = Colour(int(first.colorspace), int(first.color_range), int(context.color_primaries), int(context.color_trc))
        self._coded = (first.width, first.height, first.format.name)
        self._coded_layout, self._alpha = layout_of(first.format.name, colour, first.width, first.height, image=still)
        self._turn = _EXIF[exif_orientation(self._path)] if still else _turn(first)
        if still and not any(self._turn):
            self._turn = _turn(first)
        layout = oriented_layout(self._coded_layout, first.width, first.height, *self._turn)
        if (layout.sub_x, layout.sub_y) != (self._coded_layout.sub_x, self._coded_layout.sub_y):
            notes.append(f"{self._coded_layout.name} cannot be turned as it is; chroma is repeated to {layout.name}")
        if self._alpha:
            notes.append("transparency is shown over white")
        aspect = Fraction(1) if still else _aspect(stream)
        self._coded_aspect = aspect
        transposed = self._turn[0]
        width, height = (first.height, first.width) if transposed else (first.width, first.height)
        rate = STILL_RATE if still else stream.average_rate or stream.guessed_rate or None
        rate = Fraction(rate) if rate is not None and rate > 0 else None  # PyAV 19 has a number of its own
        time_base = Fraction(1, 25) if still else Fraction(first.time_base or stream.time_base or Fraction(1, 25))
        stamp = _stamp(first) or 0
        duration = None
        if not still:
            if stream.duration and stream.time_base:
                duration = stream.duration * Fraction(stream.time_base)
                if container.format.name == "avi" and rate:  # which shortens its duration by itself when it is cut off
                    duration = max(duration, stream.frames / rate)
            elif container.duration:
                duration = Fraction(container.duration, av.time_base)
        frames = 1 if still else stream.frames or (round(duration * rate) if duration and rate else None)
        self.info = VideoInfo(
            path=self._path,
            width=width,
            height=height,
            pixel_aspect=1 / aspect if transposed else aspect,
            rate=rate,
            time_base=time_base,
            duration=duration,
            frames=frames or None,
            codec=stream.codec_context.codec.canonical_name,
            pixel_format=layout.name,
            bit_depth=layout.bits,
            colour=colour,
            layout=layout,
            rotation=_CLOCKWISE.get(self._turn, 0),
            is_still=still,
            interlaced=bool(first.interlaced_frame),
            start=stamp * time_base,
            notes=tuple(notes),
        )

    def _note(self, text: str) -> None:
        if text not in self.info.notes:
            self.info = replace(self.info, notes=(*self.info.notes, text))

    def _clock(self) -> _Clock:
        return _Clock(self.info.time_base, self.info.rate or STILL_RATE)

    def _closing_notes(self, clock: _Clock, index: _Index) -> None:
        if clock.repaired:
            self._note(f"{clock.repaired} frames had repeated or disordered timestamps, which were repaired")
        said, found = self.info.duration, index.times[-1] * self.info.time_base / _TICKS
        if said is not None and found < said - max(Fraction(1), said / 20):
            self._note(f"the file says {float(said):.2f} s but its frames end at {float(found):.2f} s (cut off or damaged); what decodes is used")

    # decoding

    def _decoded(self, container: InputContainer, stream: VideoStream, keys: list[tuple[int, int]]) -> Generator[VideoFrame, None, None]:
        """Frames as they come from the decoder, in presentation order; undecodable packets are skipped."""
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as e:
                if hasattr(self, "info"):
                    self._note(f"reading stopped early ({e.strerror or e}): the file is cut off or damaged; what decodes is used")
                packet = None
            except OSError as e:
                raise InputError(f"cannot read {self._path}: {e}") from e
            if packet is None:
                break
            if packet.is_keyframe and packet.size:
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is not None:
                    keys.append((stamp, packet.dts if packet.dts is not None else stamp))
            yield from self._frames_of(packet)
        try:
            yield from stream.codec_context.decode(None)
        except (av.error.FFmpegError, EOFError):
            return

    def _frames_of(self, packet: Any) -> list[VideoFrame]:
        try:
            return packet.decode()
        except av.error.EOFError:
            return []
        except av.error.FFmpegError:
            if hasattr(self, "info"):
                self._note("parts of the video are damaged and were skipped")
            return []

    def _pictures(self, keys: list[tuple[int, int]]) -> Iterator[tuple[VideoFrame, Picture]]:
        with opened(self._path) as container:
            stream = self._stream(container)
            for frame in self._decoded(container, stream, keys):
                yield frame, self._picture(frame)

    def _picture(self, frame: VideoFrame) -> Picture:
        if (frame.width, frame.height, frame.format.name) != self._coded:
            width, height, name = self._coded
            self._note(f"the picture changes to {frame.width}x{frame.height} {frame.format.name} on the way; such frames are scaled to the first")
            frame = frame.reformat(width=width, height=height, format=name)
        picture = Picture(read_planes(frame, self._coded_layout, self._alpha), self._coded_layout, self._coded_aspect)
        return orient(picture, *self._turn) if any(self._turn) else picture

    def _still(self) -> Frame:
        with opened(self._path) as container:
            for frame in self._decoded(container, self._stream(container), []):
                return Frame(0, Fraction(0), 1 / STILL_RATE, self._picture(frame))
        raise InputError(f"{self._path}: the image cannot be decoded any more; has it changed?")

    # backwards

    def _key_frames(self, index: _Index) -> list[int]:
        """Numbers of the frames where decoding can begin, ascending; empty where timestamps cannot be trusted."""
        if not index.seekable:
            return []
        found = set()
        for stamp, _ in index.keys:
            i = bisect_left(index.stamps, stamp)
            if i < len(index.stamps) and index.stamps[i] == stamp:
                found.add(i)
        return sorted(found)

    def _piece(self, container: InputContainer, stream: VideoStream, index: _Index, keys: list[int], start: int, stop: int) -> list[Picture]:
        """Pictures start..stop-1 in order: from the nearest keyframe, an earlier one, or at last from the beginning of the file."""
        decoding = dict(index.keys)
        at = bisect_right(keys, start) - 1
        for back in (0, 1, 4, 16):
            if at - back < 0:
                break
            stamp = index.stamps[keys[at - back]]
            found = self._sought(container, stream, index, start, stop, decoding.get(stamp, stamp))
            if found is not None:
                return found
        return self._linear(start, stop)

    def _sought(self, container: InputContainer, stream: VideoStream, index: _Index, start: int, stop: int, stamp: int) -> list[Picture] | None:
        """Pictures start..stop-1 after a seek, or None if any differs from the forward pass."""
        try:
            container.seek(stamp, stream=stream, backward=True)
        except (av.error.FFmpegError, OSError):
            return None
        found: list[Picture] = []
        decoder = self._decoded(container, stream, [])
        try:
            for frame in decoder:
                at = _stamp(frame)
                if at is None or at < index.stamps[start]:
                    continue
                number = start + len(found)
                if at != index.stamps[number]:
                    return None
                picture = self._picture(frame)
                if _checksum(picture) != index.sums[number]:
                    return None
                found.append(picture)
                if number + 1 == stop:
                    return found
        finally:
            decoder.close()
        return None

    def _linear(self, start: int, stop: int) -> list[Picture]:
        found = []
        with opened(self._path) as container:
            stream = self._stream(container)
            for number, frame in enumerate(self._decoded(container, stream, [])):
                if number >= start:
                    found.append(self._picture(frame))
                if number + 1 >= stop:
                    break
        if len(found) != stop - start:
            raise InputError(f"{self._path}: frames {start}-{stop - 1} cannot be decoded any more; has the file changed?")
        return found


def _stamp(frame: VideoFrame) -> int | None:
    return frame.pts if frame.pts is not None else frame.dts


def _checksum(picture: Picture) -> int:
    """Of every fourth row of the first plane: enough to notice a frame decoded from wrong references, at a fraction of the cost."""
    return zlib.crc32(picture.planes[0][::4].tobytes())


def _aspect(stream: VideoStream) -> Fraction:
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return Fraction(aspect) if aspect and aspect > 0 else Fraction(1)


def _turn(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, mirror left-right, mirror top-bottom) that show a frame upright, from its display matrix."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 knows no name for EXIF side data
        data = None
    if data is not None:
        a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()  # type: ignore[call-overload]
        if abs(b) + abs(c) > abs(a) + abs(d):
            return True, c < 0, b < 0
        return False, a < 0, d < 0
    return {90: (True, False, True), -90: (True, True, False), 270: (True, True, False)}.get(
        round(frame.rotation / 90) * 90, (False, abs(frame.rotation) > 135, abs(frame.rotation) > 135)
    )
