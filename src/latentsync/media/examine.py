"""A file looked at whole: all of its picture and sound is decoded, in constant memory, and the first damage is named with its time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from latentsync.errors import InputError
from latentsync.media.audio import Placer, frame_time
from latentsync.media.clip import _CUT_OFF, _Clip, _plain_errors
from latentsync.media.source import opened
from latentsync.media.video import _TICKS, STILL_RATE

UNEVEN = Fraction(1, 4)  # of a frame: frames that are shown so much longer than others make a variable rate; rounding to milliseconds does not


@dataclass
class Examined:
    """What was found up to the end, or up to the damage. Times are seconds from the first frame; the size is that after rotation."""

    width: int = 0
    height: int = 0
    frames: int = 0
    duration: Fraction = Fraction(0)  # to the end of the last frame
    fps: Fraction = Fraction(0)
    variable: bool = False  # frames are not all shown for the same time
    audio_rate: int = 0  # Hz; 0 without sound
    audio_channels: int = 0
    audio_duration: Fraction = Fraction(0)  # to the end of the last sample
    problem: str = ""  # what is wrong, and where


def examine(path: str | os.PathLike[str]) -> Examined:
    """All of a file. Never raises for what the file is like: `problem` says what hinders its use, "" where nothing does."""
    seen = Examined()
    try:
        with _plain_errors(path):
            _Examination(Path(path), seen).run()
    except InputError as e:
        text = str(e)
        name = str(path)
        if text.startswith(f"cannot read {name}: "):
            text = f"cannot be read: {text.removeprefix(f'cannot read {name}: ')}"
        seen.problem = text.removeprefix(f"{name} ").removeprefix(f"{name}: ")
    except (ValueError, ArithmeticError, LookupError, MemoryError) as e:  # sizes, rates or times that make no sense
        seen.problem = f"its values make no sense, so it is damaged ({type(e).__name__}: {e})"
    return seen


class _Examination:
    """One pass over one file."""

    def __init__(self, path: Path, seen: Examined) -> None:
        self._clip = _Clip(path)
        self._seen = seen
        info = self._info = self._clip.info
        seen.width, seen.height = info.width, info.height
        self._clock = self._clip._clock()
        self._last = 0  # time of the last frame, in ticks / _TICKS
        self._least, self._most, self._length = 0, 0, 0  # of the frames' intervals; length of the last frame
        self._placer: Placer | None = None
        self._packets = 0  # with picture
        self._cut = ""  # why reading ended early

    def run(self) -> None:
        """Raises InputError at the first damage."""
        with opened(self._info.path) as container:
            video = self._clip._stream(container)
            sound: Any = next((s for s in container.streams.audio if s.codec_context is not None), None)
            try:
                self._read(container, video, sound)
            finally:
                self._settle()
            written = video.frames if container.format.name.startswith("mov") else 0
        if not self._seen.frames:
            raise InputError("no frame can be decoded; the file is damaged or cut off")
        end = max(self._seen.duration, self._seen.audio_duration) + max(Fraction(0), self._info.start)
        said = self._info.duration
        if self._cut:
            raise InputError(self._cut)
        if said is not None and end < said - max(_CUT_OFF, said / 20):
            raise InputError(f"cut off at {float(end):.2f} s, it says {float(said):.2f} s")
        if written and self._packets < written and said is not None and end < said - _CUT_OFF:
            raise InputError(f"cut off at {float(end):.2f} s: {self._packets} of its {written} frames are there")
        if sound is None:
            raise InputError("no sound")
        if self._placer is None or not self._placer.position:
            raise InputError("no sound: none of it can be decoded, or it ends before the picture begins")

    def _read(self, container: InputContainer, video: Any, sound: Any) -> None:
        packets = container.demux([video] if sound is None else [video, sound])
        while True:
            try:
                packet: Any = next(packets, None)
            except av.error.FFmpegError as e:
                self._cut = f"cut off or damaged at {float(self._end):.2f} s: reading stops there ({e.strerror or e})"
                return
            if packet is None:
                return
            if packet.stream.index == video.index:
                self._packets += packet.size > 0
                for frame in self._decoded(packet):
                    self._place(frame)
            else:
                self._hear(packet)

    @property
    def _end(self) -> Fraction:
        """Of the last frame."""
        return (self._last + self._length) * self._info.time_base / _TICKS

    def _decoded(self, packet: Any) -> list[Any]:
        try:
            return self._clip._frames_of(packet)
        except InputError:
            if not self._seen.frames and not packet.is_corrupt:
                return []  # a recording that begins between two key frames
            raise

    def _place(self, frame: Any) -> None:
        seen = self._seen
        time = self._clock.place(frame.pts if frame.pts is not None else frame.dts)
        if seen.frames:
            step = time - self._last
            self._least = min(self._least or step, step)
            self._most = max(self._most, step)
        seen.frames += 1
        self._last = time
        self._length = frame.duration * _TICKS if frame.duration else self._least or self._clock.step

    def _settle(self) -> None:
        seen, steps, unit = self._seen, self._seen.frames - 1, self._info.time_base / _TICKS
        seen.duration = self._end
        said = self._info.rate or STILL_RATE
        if steps < 1 or abs(self._last * unit - steps / said) <= 2 * self._info.time_base:
            seen.fps = said
        else:
            seen.fps = (steps / (self._last * unit)).limit_denominator(1001)
        seen.variable = steps > 1 and self._most - self._least > UNEVEN * self._last / steps

    def _hear(self, packet: Any) -> None:
        seen = self._seen
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError as e:
            if self._placer is None:
                return  # a recording that begins within a packet
            raise InputError(f"its sound is damaged at {float(seen.audio_duration):.2f} s ({e.strerror or e})") from e
        if packet.is_corrupt:
            raise InputError(f"its sound is cut off or damaged at {float(seen.audio_duration):.2f} s")
        for frame in frames:
            if not frame.samples:
                continue
            if self._placer is None:
                seen.audio_rate, seen.audio_channels = frame.sample_rate, len(frame.layout.channels)
                self._placer = Placer(frame.sample_rate, self._info.start)
            self._placer.place(None, frame_time(frame), round(Fraction(frame.samples * seen.audio_rate, frame.sample_rate)))
            seen.audio_duration = Fraction(self._placer.position, seen.audio_rate)
