"""Training clips: what a file holds, the frames shown at given times, and its sound, all on one clock that starts with the first frame.

Random access decodes no more than it must: packets are read ahead up to the wanted time, and decoding begins at the last key frame before
it. Which frame is shown is known from the packets before any is decoded, so a file whose key frames or timestamps mislead is noticed, and
decoded from its beginning instead: the answer never depends on how it was reached.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from latentsync.errors import InputError
from latentsync.media.audio import open_audio
from latentsync.media.frame import Frame
from latentsync.media.picture import Picture
from latentsync.media.source import TIMED, opened
from latentsync.media.timeline import resampled
from latentsync.media.video import _TICKS, STILL_RATE, Video

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv"})
_FAR = 20  # seconds: a wanted frame further ahead is sought in the container instead of reading all packets up to it
_KNOWN = 256  # stamps of packets read that are kept
_CUT = "the file is cut off there"
_CUT_OFF = Fraction(1, 2)  # seconds a file may end before it says so


@dataclass(frozen=True)
class ClipInfo:
    """What a clip holds. The size is that after rotation; times are seconds from the first frame."""

    path: Path
    width: int
    height: int
    pixel_aspect: Fraction  # 1 = square pixels
    fps: Fraction  # frames per second on average
    frames: int  # an estimate where the container does not count
    duration: Fraction  # to the end of the last frame
    audio: bool
    audio_rate: int  # Hz; 0 without sound
    audio_duration: Fraction  # to the end of the last sample; 0 without sound
    notes: tuple[str, ...] = ()


def probe(path: str | os.PathLike[str]) -> ClipInfo:
    """What the clip holds, from its header, its first frame and its last packets: milliseconds, and no more than that is decoded.

    Raises `InputError` for a file that is missing, unreadable, a still, without picture, or cut off.
    """
    with _plain_errors(path):
        return _Clip(Path(path)).describe()


def read_frames(path: str | os.PathLike[str], times: Sequence[Fraction], *, side: int | None = None) -> np.ndarray:
    """(n, h, w, 3) uint8 RGB: the frame shown at each of n times, in seconds from the first frame, in any order.

    The frame shown at a time is the last one that begins by then; what begins within one tick of the container's clock after it counts,
    because containers round times to ticks. Colours are those of `Picture.rgb`, as inference sees them. `side` resizes to (n, side, side, 3)
    without keeping the aspect: averaging areas to shrink, cubic to enlarge. One thread decodes, and only from the key frame before.

    Raises `InputError` naming the file where it cannot be read, is damaged there, or ends before one of the times.
    """
    with _plain_errors(path):
        clip = _known(Path(path))
        shown = clip.at(times)
        arrays: dict[int, np.ndarray] = {}
        for picture in shown:
            if id(picture) not in arrays:
                arrays[id(picture)] = _rgb(picture, side)
        empty = np.empty((0, side or clip.info.height, side or clip.info.width, 3), np.uint8)
        return np.stack([arrays[id(p)] for p in shown]) if shown else empty


def read_audio(path: str | os.PathLike[str]) -> np.ndarray:
    """(n,) float32 mono samples at 16 kHz of the clip's first soundtrack, sample 0 at the time of its first frame.

    Raises `InputError` where there is no sound or none of it can be decoded.
    """
    with _plain_errors(path):
        return np.concatenate([np.zeros(0, np.float32), *open_audio(Path(path), beside=Path(path)).samples()])


def frames_between(path: str | os.PathLike[str], start: Fraction, end: Fraction | None, fps: Fraction | int) -> Iterator[Frame]:
    """Frames at a constant rate from `start` up to `end` (None: the file's own), seconds from the first frame, decoded as they are asked for.

    Frame k stands at k / fps, whatever `start` is, and is the source frame nearest to that time; its `index` is k. Decoding begins at the last
    key frame before `start`, on one thread. Raises `InputError` naming the file where it cannot be read or is damaged.
    """
    rate = Fraction(fps)
    first = math.ceil(start * rate)
    with _plain_errors(path):
        limit = Fraction(1 << 40) if end is None else end
        for frame in resampled(_known(Path(path)).onward(first / rate), limit, rate, first=first):
            yield Frame(round(frame.time * rate), frame.time, frame.duration, frame.picture)


@contextmanager
def _plain_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever libav or the system says about a file becomes an `InputError` with its name."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as e:
        raise InputError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e


def _known(path: Path) -> _Clip:
    """The clip, opened and described only once for as long as its size and time of change stay: that is a seventh of the cost of a window."""
    found = os.stat(path) if path.exists() else None
    return _Clip(path) if found is None else _kept(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4096)
def _kept(path: Path, size: int, changed: int) -> _Clip:
    return _Clip(path)


def _rgb(picture: Picture, side: int | None) -> np.ndarray:
    if side is None or (picture.width, picture.height) == (side, side):
        return picture.rgb()
    if picture.width == picture.height > side:
        return picture.small(side)
    shrinks = picture.width >= side and picture.height >= side
    return cv2.resize(picture.rgb(), (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


class _Clip(Video):
    """A video read at places: one decoder thread, and damage is an error, not a note."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.info.is_still:
            raise InputError(f"{path} is a still picture, not a clip")
        tick, rate = self.info.time_base, self.info.rate or STILL_RATE
        self._start = int(self.info.start / tick)
        self._slack = tick if 4 * tick * rate <= 1 else Fraction(0)

    def at(self, times: Sequence[Fraction]) -> list[Picture]:
        """The picture shown at each time; equal times, and times at which the same frame is shown, share one."""
        order = sorted(set(times))
        if order and order[0] < 0:
            raise ValueError(f"times are counted from the first frame; {float(order[0]):g} s is before it")
        shown = (self._skipping(order) or self._sequential(order)) if order else {}
        return [shown[time] for time in times]

    def onward(self, start: Fraction) -> Iterator[Frame]:
        """The frame shown at `start` and all after it, with their times from the first frame; `index` counts from 0 at the first one given."""
        number, last = 0, Fraction(-1)
        held: tuple[Fraction, VideoFrame] | None = None
        length = Fraction(0)
        for begin, length, frame in self._onward(start):  # noqa: B007 - the last one counts
            if held is not None and begin > start:
                yield Frame(number, held[0], begin - held[0], self._picture(held[1]))
                number += 1
            held, last = (begin, frame), begin
        if held is not None and last + length > start:
            yield Frame(number, held[0], length, self._picture(held[1]))

    def _onward(self, start: Fraction) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
        """(begin, length, frame) from some frame not after `start` on; where the walk from a key frame fails, from the beginning."""
        tick = self.info.time_base
        given: Fraction | None = None
        usual = 1 / (self.info.rate or STILL_RATE)
        with opened(self._path) as container:
            if container.format.name in TIMED and start > 0:
                walk = _Walk(self, container, self._stream(container), self._start)
                try:
                    frame = walk.to(self._start + math.floor(start / tick))
                    while frame is not None:
                        assert frame.pts is not None
                        given = (frame.pts - self._start) * tick
                        yield given, frame.duration * tick if frame.duration else usual, frame
                        frame = walk.following()
                    if walk.done:
                        return
                except (av.error.FFmpegError, InputError):
                    pass  # said by the walk from the beginning
        clock, unit = self._clock(), tick / _TICKS
        with opened(self._path) as container:
            for frame in self._decoded(container, self._stream(container), []):
                begin = clock.place(frame.pts if frame.pts is not None else frame.dts) * unit
                if given is None or begin > given:
                    yield begin, frame.duration * tick if frame.duration else clock.step * unit, frame

    def describe(self) -> ClipInfo:
        info = self.info
        end, sound_end, rate = self._ends()
        last = max(end, sound_end or Fraction(0)) + max(Fraction(0), info.start)  # on the container's clock, as its own word
        if info.duration is not None and last < info.duration - max(_CUT_OFF, info.duration / 20):
            raise InputError(
                f"{self._path} is cut off: it says {float(info.duration):.2f} s, but what it holds ends at {float(last):.2f} s; "
                "copy or export it again"
            )
        fps = info.rate or (info.frames / end if info.frames else STILL_RATE)
        return ClipInfo(
            path=self._path,
            width=info.width,
            height=info.height,
            pixel_aspect=info.pixel_aspect,
            fps=fps,
            frames=info.frames or round(end * fps),
            duration=end,
            audio=sound_end is not None,
            audio_rate=rate,
            audio_duration=max(Fraction(0), sound_end or Fraction(0)),
            notes=info.notes,
        )

    # Decoding strictly

    def _stream(self, container: InputContainer) -> VideoStream:
        stream = super()._stream(container)
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        return stream

    def _frames_of(self, packet: Any) -> list[VideoFrame]:
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return []
        except av.error.FFmpegError as e:
            raise self._damaged(packet.pts, _CUT if packet.is_corrupt else e.strerror or str(e)) from e
        for frame in frames:
            if frame.is_corrupt:
                raise self._damaged(frame.pts, "the decoder calls it corrupt")
        if packet.is_corrupt:
            raise self._damaged(packet.pts, _CUT)
        return frames

    def _damaged(self, stamp: int | None, why: str) -> InputError:
        if not hasattr(self, "info") or stamp is None:
            return InputError(f"{self._path}: its video is damaged ({why})")
        return InputError(f"{self._path}: its video is damaged at {float((stamp - self._start) * self.info.time_base):.2f} s ({why})")

    # Where it ends

    def _ends(self) -> tuple[Fraction, Fraction | None, int]:
        """Ends of the last frame and of the sound (None without), and the sound's rate, from the packets after the last key frame.

        All packets are read where that does not tell.
        """
        for jump in (True, False):
            with opened(self._path) as container:
                video = self._stream(container)
                sound: Any = next((s for s in container.streams.audio if s.codec_context is not None), None)
                if jump and not self._jump_to_end(container, video):
                    continue
                ends: dict[int, Fraction] = {}
                pictures = 0
                for packet in self._packets(container, [video] if sound is None else [video, sound]):
                    stamp = packet.pts if packet.pts is not None else packet.dts
                    pictures += packet.stream.index == video.index
                    if stamp is not None and not packet.is_discard:
                        length = (packet.duration or 0) * Fraction(packet.time_base)
                        if not length and packet.stream.index == video.index:
                            length = 1 / (self.info.rate or STILL_RATE)
                        end = stamp * Fraction(packet.time_base) + length - self.info.start
                        ends[packet.stream.index] = max(end, ends.get(packet.stream.index, end))
                rate = 0 if sound is None else sound.codec_context.sample_rate
                if sound is not None and sound.index not in ends:
                    if jump:
                        continue
                    sound, rate = None, 0
                if video.index in ends or not jump:
                    counted = pictures / (self.info.rate or STILL_RATE)  # a bare stream has no times
                    return ends.get(video.index, counted), None if sound is None else ends[sound.index], rate
        raise AssertionError("the second pass returns")

    def _jump_to_end(self, container: InputContainer, video: VideoStream) -> bool:
        if container.format.name not in TIMED or self.info.duration is None:
            return False
        try:
            container.seek(self._start + int(self.info.duration / self.info.time_base), stream=video, backward=True)
        except (av.error.FFmpegError, OSError):
            return False
        return True

    def _packets(self, container: InputContainer, streams: list[Any]) -> Iterator[Any]:
        """Whole packets, as far as the file goes."""
        packets = container.demux(streams)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                return
            if packet is None or packet.is_corrupt:
                return
            if packet.size:
                yield packet

    # Reading at places

    def _skipping(self, order: Sequence[Fraction]) -> dict[Fraction, Picture] | None:
        """time -> picture, decoding only from key frames; None where that cannot be trusted."""
        shown: dict[Fraction, Picture] = {}
        with opened(self._path) as container:
            if container.format.name not in TIMED:
                return None
            try:
                walk = _Walk(self, container, self._stream(container), self._start)
                for time in order:
                    frame = walk.to(self._start + math.floor((time + self._slack) / self.info.time_base))
                    if frame is None:
                        return None
                    if frame is walk.pictured:
                        shown[time] = walk.picture
                    else:
                        shown[time] = walk.picture = self._picture(frame)
                        walk.pictured = frame
            except (av.error.FFmpegError, InputError):
                return None
        return shown

    def _sequential(self, order: Sequence[Fraction]) -> dict[Fraction, Picture]:
        """time -> picture, decoding from the beginning with timestamps repaired as `frames()` repairs them."""
        shown: dict[Fraction, Picture] = {}
        clock, unit = self._clock(), self.info.time_base / _TICKS
        waiting = deque(order)
        held: VideoFrame | None = None
        end = Fraction(0)
        with opened(self._path) as container:
            stream = self._stream(container)
            for frame in self._decoded(container, stream, []):
                begin = clock.place(frame.pts if frame.pts is not None else frame.dts) * unit
                self._show(waiting, held, begin, shown)
                if not waiting:
                    return shown
                held = frame
                end = begin + (frame.duration * self.info.time_base if frame.duration else clock.step * unit)
            self._show(waiting, held, end + self._slack, shown)
        if waiting:
            raise InputError(f"{self._path} ends at {float(end):.2f} s; a frame at {float(waiting[0]):.2f} s was asked for: is it cut off?")
        return shown

    def _show(self, waiting: deque[Fraction], held: VideoFrame | None, until: Fraction, shown: dict[Fraction, Picture]) -> None:
        """`held` is what is shown at all waiting times before `until`."""
        picture: Picture | None = None
        while waiting and held is not None and waiting[0] + self._slack < until:
            picture = picture or self._picture(held)
            shown[waiting.popleft()] = picture


class _Walk:
    """Forward through the packets of one stream, decoding as little as leads to the wanted frames. Stamps are the container's."""

    def __init__(self, clip: _Clip, container: InputContainer, stream: VideoStream, start: int) -> None:
        self._clip, self._container, self._stream = clip, container, stream
        self._packets = container.demux(stream)
        self._ahead: deque[Any] = deque()  # packets read, not decoded
        self._ready: deque[VideoFrame] = deque()  # frames decoded, not looked at
        self._stamps: list[int] = []  # of all frames whose packets were read, from the key frame at which decoding began
        self._read_to = start  # every frame up to this stamp has had its packet read
        self._end = start
        self._ended = self._drained = self._lost = False
        self._key: int | None = None  # stamp at which decoding began, where packets were left out before it
        self._frame: VideoFrame | None = None
        self._last: int | None = None
        self.pictured: VideoFrame | None = None
        self.picture: Picture

    def to(self, target: int) -> VideoFrame | None:
        """The frame shown at `target`, not before the one asked for last; None where the stream cannot be walked like this."""
        if target - self._read_to > _FAR / self._clip.info.time_base and not self._seek(target):
            return None
        while not self._ended and self._read_to <= target:
            if not self._read(target):
                return None
        if self._ended and target >= self._end:
            return None
        wanted = max((s for s in self._stamps if s <= target), default=None)
        if wanted is None:
            return None
        self._stamps = [s for s in self._stamps if s >= wanted]
        return self._decode(wanted)

    def _seek(self, target: int) -> bool:
        self._container.seek(target, stream=self._stream, backward=True)
        self._packets = self._container.demux(self._stream)
        self._restart(None)
        return self._read(target) and self._key is not None

    def _restart(self, key: int | None) -> None:
        self._stream.codec_context.flush_buffers()
        self._ahead.clear()
        self._ready.clear()
        self._stamps.clear()
        self._frame, self._last, self._key = None, None, key

    def _read(self, target: int | None) -> bool:
        """One more packet. A key frame up to `target` makes all before it needless. False where times are unknown or the file is cut off."""
        packet = next(self._packets, None)
        if packet is None or not packet.size:
            self._ended = True
            return True
        if packet.pts is None or packet.is_corrupt:
            return False
        if target is not None and packet.is_keyframe and not packet.is_discard and packet.pts <= target:
            self._restart(packet.pts)
        self._ahead.append(packet)
        if not packet.is_discard:
            self._stamps.append(packet.pts)
            self._end = max(self._end, packet.pts + (packet.duration or 1))
        if packet.dts is not None:
            self._read_to = max(self._read_to, packet.dts)
        return True

    def following(self) -> VideoFrame | None:
        """The next frame; None at the end (`done`), and where the stream cannot be walked further."""
        if len(self._stamps) > _KNOWN:
            self._stamps = [s for s in self._stamps if self._last is None or s >= self._last]
        return self._frame if self._advance() else None

    @property
    def done(self) -> bool:
        """Every frame up to the end was given."""
        return self._drained and not self._ready and not self._lost

    def _decode(self, wanted: int) -> VideoFrame | None:
        while self._last is None or self._last < wanted:
            if not self._advance():
                return None
        return self._frame if self._last == wanted else None

    def _advance(self) -> bool:
        """On to the next frame; False where there is none, or where what comes cannot be trusted."""
        while True:
            if not self._ready:
                if not self._ahead and not self._ended and not self._read(None):
                    return False
                if self._ahead:
                    self._ready.extend(self._clip._frames_of(self._ahead.popleft()))
                elif self._ended:
                    if self._drained:
                        return False
                    self._drained = True
                    self._ready.extend(self._stream.codec_context.decode(None))
                continue
            frame = self._ready.popleft()
            if frame.pts is None or (self._last is not None and frame.pts <= self._last):
                self._lost = True
                return False
            if self._key is not None and frame.pts < self._key:
                continue
            if self._key is not None and self._last is None and (frame.pts != self._key or frame.pict_type != PictureType.I):
                self._lost = True
                return False  # called a key frame, but it needs those before it (gradual refresh, or a careless muxer)
            self._frame, self._last = frame, frame.pts
            return True
