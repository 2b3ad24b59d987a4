"""Sound files as streams of samples placed by their timestamps: sound time 0 is the file's time 0."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer

from latentsync.errors import InputError
from latentsync.media.source import TIMED, opened, video_streams

SPEECH_RATE = 16000  # what Whisper hears
_TOLERANCE = Fraction(1, 20)  # seconds by which timestamps may disagree with the sample count before silence is put in or sound left out
_LONGEST_GAP = 3600  # seconds; a longer jump of the clock is taken for a fault, not for silence
_LONGEST_OVERLAP = 1  # seconds; a longer jump back is taken for a restarted clock
MANY = 8  # channels from which PyAV (up to 18.1) miscounts the planes of a frame: it then crashes on reading and fails on filling them
_LEAD = 1  # seconds decoded before a wanted place, in which decoders and resamplers settle
_CHUNK = 16000  # samples handed out at a time, roughly
_BLOCK = 4096  # samples of silence at a time, per packet or handed to an encoder


@dataclass(frozen=True)
class AudioInfo:
    """What is known about a soundtrack; the duration is counted in decoded samples."""

    path: Path
    rate: int
    channels: int
    layout: str
    codec: str
    duration: Fraction  # seconds from the file's time 0 to the last sample
    notes: tuple[str, ...] = ()


class Piece(NamedTuple):
    """The next stretch of a soundtrack: `silence` samples of nothing, then samples start..stop-1 of a frame (or packet)."""

    silence: int
    item: Any
    start: int
    stop: int


class Placer:
    """Puts consecutive frames of samples where their timestamps say, at sample accuracy for the first and with a tolerance after it."""

    def __init__(self, rate: int, origin: Fraction) -> None:
        self._rate = rate
        self._origin = origin
        self._started = False
        self.position = 0  # samples placed so far
        self.filled = 0  # samples of silence put into gaps after the start

    def place(self, item: Any, time: Fraction | None, count: int) -> Piece:
        """Where `count` samples at `time` (seconds on the container's clock, None = right behind the last) go."""
        silence = skip = 0
        if time is not None:
            off = round((time - self._origin) * self._rate) - self.position
            if off > _LONGEST_GAP * self._rate or (self._started and off < -_LONGEST_OVERLAP * self._rate):
                self._origin += Fraction(off, self._rate)
            elif not self._started or abs(off) > _TOLERANCE * self._rate:
                silence, skip = max(0, off), min(count, max(0, -off))
                self.filled += silence if self._started else 0
        if skip < count or silence:
            self._started = True
        self.position += silence + count - skip
        return Piece(silence, item, skip, count)


def audio_stream(container: InputContainer, path: Path) -> Any:
    """The first audio stream that can be decoded. Raises `InputError` where there is none."""
    for stream in container.streams.audio:
        if stream.codec_context is not None:
            return stream
    if len(container.streams.audio):
        raise InputError(f"{path}: no decoder for its sound; convert it, for example to .wav")
    what = "it is a picture or a silent video" if len(container.streams.video) else "it has no audio stream"
    raise InputError(f"{path} holds no sound: {what}; pass a file with speech")


def decoded(container: InputContainer, stream: Any, broken: list[str]) -> Iterator[AudioFrame]:
    """Frames of samples; undecodable packets are skipped and named in `broken`."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as e:
            broken.append(f"reading the sound stopped early ({e.strerror or e}): the file is cut off or damaged")
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.error.EOFError:
            continue
        except av.error.FFmpegError:
            broken.append("parts of the sound are damaged and were left silent")
            continue
        for frame in frames:
            if frame.samples:
                yield frame


def file_origin(path: Path) -> Fraction | None:
    """Time 0 of a file on its own clock: that of its first video frame; None for a file without video."""
    with opened(path) as container:
        streams = video_streams(container)
        if not streams:
            return None
        try:
            for frame in container.decode(streams[0]):
                stamp = frame.pts if frame.pts is not None else frame.dts
                return None if stamp is None else stamp * Fraction(frame.time_base or streams[0].time_base)
        except av.error.FFmpegError:
            return None
    return None


def frame_time(frame: AudioFrame) -> Fraction | None:
    return None if frame.pts is None or frame.time_base is None else frame.pts * Fraction(frame.time_base)


def open_audio(path: Path, *, beside: Path | None = None) -> Audio:
    """The first soundtrack of an audio or video file. Decodes it once to count it. Raises `InputError`.

    `beside` is the video that the sound will go with. If both are one file, sound that begins before its picture is cut there, so that they
    stay in step; from any other file all of the sound is used.
    """
    return Audio(Path(path), beside=beside)


def samples_between(path: Path, start: Fraction, end: Fraction, rate: int = SPEECH_RATE) -> Iterator[np.ndarray]:
    """(n,) float32 chunks, the mean of the channels at `rate` Hz from `start` to `end`, seconds from the file's time 0; zeros where it has no sound.

    In all round(end * rate) - round(start * rate) samples, those that `Audio.samples` gives there; no more is decoded than they need.
    Raises `InputError` for a file without sound that can be decoded.
    """
    part = _Part(Path(path), max(0, math.floor(start) - _LEAD))
    position = part.begin * rate
    first, last = round(start * rate), round(end * rate)
    for chunk in _resampled(part._mono(), part.info.rate, rate):
        if position >= last:
            break
        piece = chunk[max(0, first - position) : last - position]
        position += len(chunk)
        if len(piece):
            yield piece
    yield from _zeros(last - max(first, position))


class Audio:
    """One soundtrack. `samples` may be called as often as wanted, also at the same time: each call reads the file on its own."""

    def __init__(self, path: Path, beside: Path | None = None) -> None:
        self._path = path
        own_picture = False
        if beside is not None:
            with suppress(OSError):
                own_picture = os.path.samefile(path, beside)
        with opened(path) as container:
            audio_stream(container, path)
        self._origin = file_origin(path)
        notes: list[str] = []
        rate, position, first = 0, 0, None
        with opened(path) as container:
            stream = audio_stream(container, path)
            if len(container.streams.audio) > 1:
                context = stream.codec_context
                notes.append(f"{len(container.streams.audio)} audio streams, using the first ({context.name}, {context.sample_rate} Hz)")
            broken: list[str] = []
            placer: Placer | None = None
            for frame in decoded(container, stream, broken):
                if placer is None:
                    first, rate = frame, frame.sample_rate
                    start = frame_time(frame) or Fraction(0)
                    if self._origin is None or (start < self._origin and not own_picture):
                        self._origin = start
                    placer = Placer(rate, self._origin)
                placer.place(None, frame_time(frame), _at_rate(frame.samples, frame.sample_rate, rate))
            codec = stream.codec_context.codec.canonical_name
        if first is None or placer is None:
            raise InputError(f"{path}: none of its sound ({codec}) can be decoded; the file is damaged or empty")
        position = placer.position
        if not position:
            raise InputError(f"{path}: its sound ends before its picture begins")
        if placer.filled:
            notes.append(f"{placer.filled / rate:.2f} s of gaps in the sound are kept as silence")
        notes += dict.fromkeys(broken)
        channels = len(first.layout.channels)
        self.info = AudioInfo(path, rate, channels, first.layout.name, codec, Fraction(position, rate), tuple(notes))

    @property
    def origin(self) -> Fraction:
        """The file's time 0 on the container's clock, seconds."""
        return self._origin or Fraction(0)

    def pieces(self) -> Iterator[Piece]:
        """The soundtrack as silences and decoded frames, from the file's time 0 on."""
        with opened(self._path) as container:
            placer = Placer(self.info.rate, self.origin)
            for frame in decoded(container, audio_stream(container, self._path), []):
                piece = placer.place(frame, frame_time(frame), _at_rate(frame.samples, frame.sample_rate, self.info.rate))
                if piece.silence or piece.stop > piece.start:
                    yield piece

    def blocks(self) -> Generator[np.ndarray, None, None]:
        """(channels, n) float32 of the whole soundtrack in its own rate and layout, silences included."""
        info = self.info
        converters: dict[tuple[int, str], AudioResampler] = {}
        for piece in self.pieces():
            for n in blocks(piece.silence):
                yield np.zeros((info.channels, n), np.float32)
            frame = piece.item
            if (frame.sample_rate, frame.layout.name) == (info.rate, info.layout):
                values = as_float(frame)
            else:  # a stream that changes on the way
                converter = converters.setdefault((frame.sample_rate, frame.layout.name), AudioResampler("fltp", info.layout, info.rate))
                frame.pts = None
                parts = [as_float(f) for f in converter.resample(frame)]
                values = np.concatenate(parts, axis=1) if parts else np.zeros((info.channels, 0), np.float32)
                values = np.pad(values, ((0, 0), (0, max(0, piece.stop - values.shape[1]))))
            yield values[:, piece.start : piece.stop]

    def samples(self, rate: int = SPEECH_RATE) -> Iterator[np.ndarray]:
        """(n,) float32 chunks, the mean of the channels at `rate` Hz; ceil(duration * rate) samples in all."""
        wanted = math.ceil(self.info.duration * rate)
        given = 0
        held: list[np.ndarray] = []
        for chunk in _resampled(self._mono(), self.info.rate, rate):
            chunk = chunk[: max(0, wanted - given)]
            given += len(chunk)
            held.append(chunk)
            if sum(map(len, held)) >= _CHUNK:
                yield np.concatenate(held)
                held = []
        if given < wanted:
            held.append(np.zeros(wanted - given, np.float32))
        if held:
            yield np.concatenate(held)

    def _mono(self) -> Iterator[np.ndarray]:
        converters: dict[int, AudioResampler] = {}
        for piece in self.pieces():
            yield from _zeros(piece.silence)
            mono = as_float(piece.item).mean(axis=0, dtype=np.float32)
            other = piece.item.sample_rate
            if other != self.info.rate:  # a stream that changes its rate on the way
                converter = converters.setdefault(other, AudioResampler("flt", "mono", self.info.rate))
                mono = _fitted(_through(converter, mono, other), piece.stop)
            yield mono[piece.start : piece.stop]


class _Part(Audio):
    """A soundtrack from a whole second on, which is a whole number of samples at every rate. It is not counted: its duration is 0."""

    def __init__(self, path: Path, begin: int) -> None:
        self._path = path
        self._origin = file_origin(path)
        with opened(path) as container:
            context = audio_stream(container, path).codec_context
            self._jump = begin > 0 and container.format.name in TIMED
            self.begin = begin if self._jump else 0
            name = context.codec.canonical_name
            if not context.sample_rate:
                raise InputError(f"{path}: its sound ({name}) does not say its rate; the file is damaged")
            self.info = AudioInfo(path, context.sample_rate, context.channels, context.layout.name, name, Fraction(0))

    def pieces(self) -> Iterator[Piece]:
        """From `begin` on."""
        with opened(self._path) as container:
            placer = Placer(self.info.rate, self.origin)
            if self._jump:
                placer.position = self.begin * self.info.rate
                with suppress(av.error.FFmpegError, OSError):  # else it is read from its beginning
                    container.seek(math.floor((self.origin + self.begin - _LEAD) * av.time_base), backward=True)
            for frame in decoded(container, audio_stream(container, self._path), []):
                piece = placer.place(frame, frame_time(frame), _at_rate(frame.samples, frame.sample_rate, self.info.rate))
                if piece.silence or piece.stop > piece.start:
                    yield piece


def as_float(frame: AudioFrame) -> np.ndarray:
    """(channels, samples) float32 in -1..1 of a decoded frame of any sample format."""
    name, channels = frame.format.name, len(frame.layout.channels)
    if name.endswith("p") and channels >= MANY:
        frame, name = _interleaved(frame), name[:-1]
    values: np.ndarray = frame.to_ndarray()
    if not name.endswith("p"):
        values = values.reshape(-1, channels).T
    if name.startswith(("flt", "dbl")):
        return np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
    if name.startswith("u8"):
        return (values.astype(np.float32) - 128) / 128
    return np.multiply(values, 0.5 ** (values.dtype.itemsize * 8 - 1), dtype=np.float64).astype(np.float32)


def blocks(count: int) -> Iterator[int]:
    """`count` samples in blocks."""
    while count > 0:
        yield min(count, _BLOCK)
        count -= _BLOCK


def _interleaved(frame: AudioFrame) -> AudioFrame:
    """The same samples in one plane."""
    return AudioResampler(frame.format.name[:-1], frame.layout, frame.sample_rate, frame_size=frame.samples).resample(frame)[0]


def _at_rate(count: int, rate: int, wanted: int) -> int:
    return count if rate == wanted else round(Fraction(count * wanted, rate))


def _zeros(count: int) -> Iterator[np.ndarray]:
    while count > 0:
        yield np.zeros(min(count, 1 << 16), np.float32)
        count -= 1 << 16


def _fitted(values: np.ndarray, count: int) -> np.ndarray:
    return np.pad(values, (0, max(0, count - len(values))))[:count]


def _through(resampler: AudioResampler, mono: np.ndarray | None, rate: int) -> np.ndarray:
    frame = None
    if mono is not None:
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(mono, np.float32)[None], "flt", "mono")
        frame.sample_rate = rate
    found = [f.to_ndarray().reshape(-1) for f in resampler.resample(frame)]
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def _resampled(chunks: Iterator[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    if rate == wanted:
        yield from chunks
        return
    resampler = AudioResampler("flt", "mono", wanted)
    fed = False
    for chunk in chunks:
        if len(chunk):
            fed = True
            yield _through(resampler, chunk, rate)
    if fed:
        yield _through(resampler, None, rate)
