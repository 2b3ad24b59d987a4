"""Several stretches of one result, each with a sound of its own: what they are, and the one soundtrack that they make together.

A job has one soundtrack, and the mouth follows it. So segments become a soundtrack: the sound of each in its span, the film's own sound (or a
given one) outside. What the network hears at an edge is what a listener hears there.
"""

from __future__ import annotations

import itertools
import math
import os
import secrets
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from latentsync.errors import InputError, OutputError, UsageError
from latentsync.media.audio import Audio, as_float, audio_stream, open_audio
from latentsync.media.source import opened
from latentsync.media.video import Video, open_video
from latentsync.options import Options, clock, exact, read_spans
from latentsync.whole import whole

FADE = 0.005  # seconds in which one sound gives way to another, within the segment: long enough against clicks, too short to be heard
FULL_RATE = 32000  # Hz; a sound outside the segments that is coarser than this does not make them as coarse
SLACK = Fraction(1, 10)  # seconds by which a segment may reach past the end: people round up
_BLOCK = 1 << 14  # samples in memory at a time


@dataclass(frozen=True)
class Segment:
    """From `start` to `end`, seconds of the result, the sound of `audio` from its second `audio_start` on.

    Raises UsageError for times that are none.
    """

    start: float
    end: float
    audio: Path
    audio_start: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "audio", Path(self.audio))
        read_spans([(self.start, self.end)], "segment")
        if not 0 <= self.audio_start < math.inf:
            raise UsageError(f"segment {self}: its sound cannot begin at {self.audio_start:g} s; pass seconds from 0")

    def __str__(self) -> str:
        return f"{self.start:g}-{self.end:g}={self.audio.name}"


def read_segment(text: str) -> Segment:
    """A segment as the command line writes it: '3-5=a.wav', or '3-5@1.5=a.wav' for the sound from its second 1.5 on."""
    span, equals, name = text.partition("=")
    span, at, begin = span.partition("@")
    if not equals or not name or (at and not begin.strip()):
        raise UsageError(f"segment '{text}': write it as START-END=FILE, such as 3-5=a.wav, or 3-5@1.5=a.wav to begin at 1.5 s of the file")
    ((start, end),) = read_spans([span], "segment")
    return Segment(start, end, Path(name), clock(begin, "segment") if at else 0.0)


def in_order(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """The segments by their start. Raises UsageError where two overlap."""
    ordered = tuple(sorted(segments, key=lambda s: s.start))
    for a, b in itertools.pairwise(ordered):
        if b.start < a.end:
            raise UsageError(f"segments {a} and {b} overlap; end the first at {b.start:g} or earlier")
    return ordered


def settled(chosen: Options, segments: Sequence[Segment], *, base: bool) -> Options:
    """The options of a job whose soundtrack `soundtrack` made, `base` telling whether a sound for the rest was given.

    Mouths are made anew in the segments only, unless `only` says where. Without a given sound the result is as long as the film.
    """
    if not segments:
        return chosen
    if not chosen.only:
        chosen = replace(chosen, only=tuple((s.start, s.end) for s in in_order(segments)))
    return chosen if base else replace(chosen, when_audio_longer="cut", when_video_longer="keep")


def soundtrack(video: Path, segments: Sequence[Segment], out: Path, base: Path | None = None) -> list[str]:
    """Write the sound of a whole result to `out` (.wav, lossless): each segment's in its span, and `base` elsewhere (None: the video's own).

    It is as long as `base`, or else as the video, or for a still up to the last segment's end. Rate and channels are those of the sound
    outside the segments (but see FULL_RATE), samples outside are unchanged, and within a segment all but those of the fades at its ends. A sound
    shorter than its segment is followed by silence. In constant memory. Returns what is worth knowing; `out` appears whole or not at all.

    Raises UsageError for segments that overlap or lie past the end, InputError for files that cannot be read, OutputError.
    """
    ordered = in_order(segments)
    notes: list[str] = []
    with open_video(video) as film:
        own = open_audio(base, beside=video) if base is not None else _own_sound(film, notes)
        length = own.info.duration if base is not None and own is not None else _length(film)
    sounds = {s.audio: open_audio(s.audio, beside=video) for s in ordered}
    if own is None and not sounds:
        raise InputError(f"{video} holds no sound, and no segment brings one")
    if length is None:
        length = exact(ordered[-1].end)
    _check_places(ordered, sounds, length, notes)
    form = _form(own, list(sounds.values()))
    plan = _planned(ordered, sounds, form.rate, round(length * form.rate))
    with whole(out) as scratch:
        _write(scratch, _composed(own, plan, form, round(length * form.rate)), form)
    return notes


@contextmanager
def spoken(video: Path, audio: Path | None, out: Path, segments: Sequence[Segment]) -> Iterator[tuple[Path, list[str]]]:
    """The soundtrack file of one job and what is worth knowing of it: `audio` itself, or one made of the segments beside `out`, gone afterwards.

    Raises UsageError where there is neither, and what `soundtrack` raises.
    """
    if not segments:
        if audio is None:
            raise UsageError("no sound to say: pass AUDIO, or segments such as --segment 3-5=a.wav")
        yield audio, []
        return
    if not out.parent.is_dir():
        raise OutputError(f"the folder {out.parent} does not exist; create it first")
    scratch = out.with_name(f".latentsync-{secrets.token_hex(8)}.wav")
    try:
        yield scratch, soundtrack(video, segments, scratch, audio)
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


class _Form(NamedTuple):
    """How the soundtrack is kept."""

    rate: int
    layout: str
    channels: int
    codec: str


class _Planned(NamedTuple):
    """One sound in its place. All numbers but the last are samples of the soundtrack."""

    start: int
    stop: int
    heard: int  # up to here the sound goes
    audio: Audio
    skip: Fraction  # seconds left out at the beginning of the sound
    after_another: bool  # the segments before and after adjoin: between them nothing of the rest is heard
    before_another: bool


def _own_sound(film: Video, notes: list[str]) -> Audio | None:
    path = film.info.path
    if film.info.is_still:
        return None
    with opened(path) as container:
        if not len(container.streams.audio):
            return None
    try:
        return open_audio(path, beside=path)
    except InputError as e:
        notes.append(f"outside the segments there is silence: {e}")
        return None


def _length(film: Video) -> Fraction | None:
    """Seconds of a video, as the file says or else counted; None for a still."""
    info = film.info
    if info.is_still:
        return None
    if info.duration is None and not (info.frames and info.rate):
        for _ in film.frames():
            pass
        return film.length
    return info.duration or Fraction(info.frames or 0) / (info.rate or 1)


def _check_places(segments: Sequence[Segment], sounds: dict[Path, Audio], length: Fraction, notes: list[str]) -> None:
    for s in segments:
        if exact(s.end) > length + SLACK:
            raise UsageError(f"segment {s} ends past the end of the result, {float(length):.2f} s; end it there or earlier")
        left = sounds[s.audio].info.duration - exact(s.audio_start)
        if left <= 0:
            lasts = float(sounds[s.audio].info.duration)
            raise UsageError(f"segment {s}: its sound shall begin at {s.audio_start:g} s, but {s.audio} ends at {lasts:.2f} s")
        if left < min(exact(s.end), length) - exact(s.start):
            notes.append(f"segment {s}: its sound lasts {float(left):.2f} s only, and silence follows")


def _form(own: Audio | None, sounds: list[Audio]) -> _Form:
    """That of the sound outside the segments, or else of the first segment's."""
    every = [own, *sounds] if own is not None else sounds
    info = every[0].info
    rate = info.rate if info.rate >= FULL_RATE else max(a.info.rate for a in every)
    codec = "pcm_s16le" if all(_deep(a) <= 16 for a in every) else "pcm_f32le"
    return _Form(rate, info.layout, info.channels, codec)


def _deep(audio: Audio) -> int:
    """Bits of a sample as decoded."""
    with opened(audio.info.path) as container:
        name = audio_stream(container, audio.info.path).codec_context.format.name
    return {"u8": 8, "u8p": 8, "s16": 16, "s16p": 16}.get(name, 32)


def _planned(segments: Sequence[Segment], sounds: dict[Path, Audio], rate: int, count: int) -> list[_Planned]:
    plan: list[_Planned] = []
    for s in segments:
        audio, skip = sounds[s.audio], exact(s.audio_start)
        start, stop = round(exact(s.start) * rate), min(count, round(exact(s.end) * rate))
        heard = min(stop, start + math.floor((audio.info.duration - skip) * rate))
        if stop <= start:
            continue
        before = plan[-1] if plan else None
        adjoins = before is not None and before.stop == start
        if before is not None and adjoins:
            if before.audio is audio and before.skip + Fraction(before.stop - before.start, rate) == skip:  # one sound that goes on
                plan[-1] = before._replace(stop=stop, heard=heard)
                continue
            plan[-1] = before._replace(before_another=True)
        plan.append(_Planned(start, stop, heard, audio, skip, adjoins or start == 0, stop == count))
    return plan


def _composed(own: Audio | None, plan: list[_Planned], form: _Form, count: int) -> Iterator[np.ndarray]:
    """(channels, n) float32: `count` samples in all."""
    rest = _Tape(own, form, Fraction(0))
    at = 0
    with closing(rest):
        for part in plan:
            yield from rest.give(part.start - at)
            with closing(_Tape(part.audio, form, part.skip)) as tape:
                for first in range(part.start, part.stop, _BLOCK):
                    n = min(_BLOCK, part.stop - first)
                    share, under = _shares(part, np.arange(first, first + n), form.rate)
                    yield share * tape.read(n) + under * rest.read(n)
            at = part.stop
        yield from rest.give(count - at)


def _shares(part: _Planned, at: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) float32 each: how much of a segment's sound and of the rest is heard at these samples of the segment."""
    fade = min(round(FADE * rate), (part.heard - part.start) // 2) + 1
    share = np.clip(np.minimum(at - part.start + 1, part.heard - at) / fade, 0, 1)
    away = np.zeros(len(at))
    if not part.after_another:
        away = np.maximum(away, 1 - (at - part.start + 1) / fade)
    if not part.before_another:
        away = np.maximum(away, 1 - (part.stop - at) / fade)
    return share.astype(np.float32), away.astype(np.float32)


class _Tape:
    """A sound, read on and on at the soundtrack's rate and channels from a place in it; zeros after its end, or without one."""

    def __init__(self, audio: Audio | None, form: _Form, skip: Fraction) -> None:
        self._blocks = None if audio is None else _at_rate(_mapped(audio, form.channels), audio.info.rate, form)
        self._held = np.zeros((form.channels, 0), np.float32)
        left = round(skip * form.rate)
        while left > 0:
            n = min(left, _BLOCK)
            self.read(n)
            left -= n

    def read(self, count: int) -> np.ndarray:
        """(channels, count)"""
        while self._held.shape[1] < count and self._blocks is not None:
            block = next(self._blocks, None)
            if block is None:
                self._blocks = None
            else:
                self._held = np.concatenate([self._held, block], axis=1)
        given, self._held = self._held[:, :count], self._held[:, count:]
        return np.pad(given, ((0, 0), (0, count - given.shape[1])))

    def give(self, count: int) -> Iterator[np.ndarray]:
        """`count` samples in pieces."""
        while count > 0:
            yield self.read(min(count, _BLOCK))
            count -= _BLOCK

    def close(self) -> None:
        """Closes the file."""
        if self._blocks is not None:
            self._blocks.close()


def _mapped(audio: Audio, channels: int) -> Generator[np.ndarray, None, None]:
    """(channels, n): the same channels where their number is; else the mean of all, in the two front ones of many."""
    with closing(audio.blocks()) as source:
        for block in source:
            if len(block) == channels:
                yield block
                continue
            made = np.zeros((channels, block.shape[1]), np.float32)
            made[:2] = block if len(block) == 2 else block.mean(axis=0)
            yield made if channels > 1 else block.mean(axis=0, keepdims=True)


def _at_rate(chunks: Generator[np.ndarray, None, None], rate: int, form: _Form) -> Generator[np.ndarray, None, None]:
    with closing(chunks):
        if rate == form.rate:
            yield from chunks
            return
        resampler = AudioResampler("flt", form.layout, form.rate)
        for chunk in chunks:
            for frame in resampler.resample(_frame(chunk, "flt", form.layout, rate)) if chunk.shape[1] else ():
                yield as_float(frame)
        for frame in resampler.resample(None):
            yield as_float(frame)


def _write(path: Path, chunks: Iterator[np.ndarray], form: _Form) -> None:
    name = "s16" if form.codec == "pcm_s16le" else "flt"
    try:
        with av.open(f"file:{os.path.abspath(path)}", "w", format="wav", options={"rf64": "auto"}) as file:
            track: Any = file.add_stream(form.codec, rate=form.rate, layout=form.layout)
            position = 0
            for chunk in chunks:
                frame = _frame(chunk, name, form.layout, form.rate)
                frame.pts = position
                position += chunk.shape[1]
                file.mux(track.encode(frame))
            file.mux(track.encode(None))
    except av.error.FFmpegError as e:
        raise OSError(e.errno, e.strerror or str(e)) from e


def _frame(values: np.ndarray, name: str, layout: str, rate: int) -> AudioFrame:
    """A frame of interleaved samples, from (channels, n) float32; 16 bits take the nearest value."""
    flat = np.ascontiguousarray(values.T).reshape(1, -1)
    if name == "s16":
        flat = np.clip(np.round(flat.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    frame = AudioFrame.from_ndarray(flat, name, layout)
    frame.sample_rate = rate
    frame.time_base = Fraction(1, rate)
    return frame
