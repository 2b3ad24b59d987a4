"""One video -> one row: decoded once, its face followed once, every metric fed frame by frame, in constant memory.

A reference (the true video of the same words), a source (the video before its mouth was made anew) and the speaker (where the sound is that of
another video) run along, each frame beside the one nearest in time. Faces are cut out of all of them at the same points. What cannot be measured is
missing, with the reason; nothing raises for bad footage.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from latentsync.errors import InputError, LatentSyncError
from latentsync.evaluate.judge import SyncMeter
from latentsync.evaluate.records import Row
from latentsync.evaluate.tools import GROUPS, Tools
from latentsync.face import align
from latentsync.face.track import Tracked, Tracker
from latentsync.media.audio import SPEECH_RATE, open_audio
from latentsync.media.frame import Frame
from latentsync.media.picture import Picture
from latentsync.media.timeline import AudioLonger, timeline
from latentsync.media.video import Video, open_video
from latentsync.metrics import identity, lips, picture, quality, regions, silence, temporal

SIDE = 256  # of the aligned faces that are compared, pixels
PIECE = 500  # frames whose landmarks are held before they are compared
# What damaged footage can make the libraries below raise, besides the package's own errors.
FAULTS = (LatentSyncError, OSError, ValueError, ArithmeticError, LookupError, RuntimeError, cv2.error, av.error.FFmpegError)

LOSSLESS = ("ffv1", "ffvhuff", "huffyuv", "utvideo", "rawvideo", "png", "magicyuv")
NO_REFERENCE = "no reference was given"
NO_SOURCE = "no source was given"
NO_FACE = "no face in any frame"


def evaluate(
    video: str | os.PathLike[str],
    audio: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
    *,
    tools: Tools | None = None,
    name: str = "",
    settings: dict[str, Any] | None = None,
    when_audio_longer: AudioLonger = "bounce",
    progress: Callable[[int], None] | None = None,
) -> Row:
    """Everything that `tools` measures of a video.

    audio: its sound, by default its own. reference: the true video of the same words. source: the video before its mouth was made anew, which is laid
    over the result's length as `sync` does (`when_audio_longer`). Where `audio` is another video and there is no reference, the lips of who speaks
    there are what the result's should follow. progress hears of every frame. Footage that is broken, silent, without a face or too short gives a row
    with `ok` false, or with metrics missing, and reasons.
    """
    tools = tools or Tools()
    given = {"video": video, "audio": audio, "reference": reference, "source": source}
    paths = {key: "" if path is None else os.path.abspath(path) for key, path in given.items()}
    row = Row(name or Path(video).stem, settings={**tools.plain(), **(settings or {})}, **paths)  # type: ignore[arg-type]
    work = _Work(row, tools, when_audio_longer, progress)
    try:
        return work.run()
    except FAULTS as e:
        return work.row(said(e))


def said(error: BaseException) -> str:
    """An error in words, for a row."""
    if isinstance(error, LatentSyncError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip() or 'no more is said'}"


@dataclass(eq=False)
class Moment:
    """One frame of the video, the ones beside it, and the face in each."""

    time: Fraction
    duration: Fraction
    result: Picture
    source: Picture | None
    reference: Picture | None
    face: Tracked[Any] = field(init=False)  # in the result
    speaker: Picture | None = None
    source_face: Tracked[Any] | None = None
    speaker_face: Tracked[Any] | None = None
    reference_face: Tracked[Any] | None = None

    @cached_property
    def points(self) -> np.ndarray | None:
        """(3, 2) alignment points at which faces are cut out: where the source has the face, or else the reference, or the result itself."""
        for face, other in ((self.source_face, self.source), (self.reference_face, self.reference)):
            if face is not None and other is not None and _same_size(other, self.result):
                return face.points
        return self.face.points

    @cached_property
    def crop(self) -> np.ndarray | None:
        """(SIDE, SIDE, 3) aligned face of the result."""
        return self._cut(self.result, self.points)

    @cached_property
    def source_crop(self) -> np.ndarray | None:
        """The same part of the source."""
        return self._cut(self.source, self.points) if self.source is not None and _same_size(self.source, self.result) else None

    @cached_property
    def reference_crop(self) -> np.ndarray | None:
        """The same part of the reference; of one of another size the part with its own face."""
        if self.reference is None:
            return None
        if self.reference is self.source:
            return self.source_crop
        if _same_size(self.reference, self.result):
            return self._cut(self.reference, self.points)
        return self._cut(self.reference, self.reference_face.points if self.reference_face else None)

    @cached_property
    def rgb(self) -> np.ndarray:
        """(h, w, 3) of the result."""
        return self.result.rgb()

    @cached_property
    def source_rgb(self) -> np.ndarray | None:
        """(h, w, 3) of the source, where it has the result's size."""
        return self.source.rgb() if self.source is not None and _same_size(self.source, self.result) else None

    @cached_property
    def reference_rgb(self) -> np.ndarray | None:
        """(h, w, 3) of the reference, where it has the result's size."""
        if self.reference is self.source:
            return self.source_rgb
        return self.reference.rgb() if self.reference is not None and _same_size(self.reference, self.result) else None

    def _cut(self, picture: Picture | None, points: np.ndarray | None) -> np.ndarray | None:
        if picture is None or points is None:
            return None
        return align.crop(picture, align.alignment(points, SIDE, picture.pixel_aspect), SIDE)


def _same_size(a: Picture, b: Picture) -> bool:
    return (a.width, a.height) == (b.width, b.height)


class Meter:
    """One group of metrics of a video: fed with moments, then asked."""

    group = ""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools

    def add(self, moment: Moment) -> None:
        """The next frame."""

    def values(self, end: _End) -> dict[str, float]:
        """By key; NaN and absent keys are missing. Raises InputError with the reason why nothing can be said."""
        raise NotImplementedError

    def curves(self) -> dict[str, tuple[float, ...]]:
        """What runs over time."""
        return {}


@dataclass
class _End:
    """What is known once all frames have passed."""

    end: Fraction
    frames: int
    openings: np.ndarray  # (frames,) of the lips, NaN where unknown
    asked_openings: np.ndarray  # of the reference's lips, or else of the speaker's
    samples: np.ndarray | None  # (m,) at 16 kHz
    no_sound: str  # why there are none
    reference: bool
    source: bool
    speaker: bool
    faces: int  # frames with a face

    @property
    def fps(self) -> float:
        """Frames a second, on average."""
        return self.frames / float(self.end) if self.end else 25.0

    def sound(self) -> np.ndarray:
        """The samples. Raises InputError where there are none."""
        if self.samples is None:
            raise InputError(self.no_sound)
        return self.samples


class _Sync(Meter):
    group = "sync"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._meter = SyncMeter(tools.judge) if tools.judge else None
        self._curve: tuple[float, ...] = ()

    def add(self, moment: Moment) -> None:
        if self._meter:
            self._meter.add(moment.time, moment.result, moment.face)

    def values(self, end: _End) -> dict[str, float]:
        if self._meter is None:
            raise InputError(self.tools.absent("judge"))
        samples = end.sound()
        if not end.faces:
            raise InputError(NO_FACE)
        read, self._curve = self._meter.close(end.end, samples)
        found = {
            "sync_confidence": read.confidence,
            "sync_offset": float(read.offset),
            "sync_offset_fine": float(read.fine),
            "sync_distance": read.distance,
        }
        return found | ({"lse_c": read.confidence, "lse_d": read.distance} if self._meter.judge.name == "syncnet" else {})

    def curves(self) -> dict[str, tuple[float, ...]]:
        return {"sync": self._curve} if self._curve else {}


class _Lips(Meter):
    group = "lips"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._made: list[np.ndarray] = []
        self._true: list[np.ndarray] = []
        self._in_crop: list[tuple[np.ndarray, np.ndarray]] = []  # landmarks of both in the aligned face
        self._sums = {"lmd": [0.0, 0], "lmd_pixels": [0.0, 0]}

    def add(self, moment: Moment) -> None:
        if moment.reference_face is None or moment.reference is None:
            return
        made, true = moment.face.landmarks, moment.reference_face.landmarks
        if made is None or true is None or made.shape != true.shape:
            return
        self._made.append(made)
        self._true.append(true)
        if moment.face.points is not None and moment.reference_face.points is not None:
            both = (made, moment.face.points, moment.result), (true, moment.reference_face.points, moment.reference)
            a, b = (_placed(marks, points, seen) for marks, points, seen in both)
            self._in_crop.append((a, b))
        if len(self._made) >= PIECE:
            self._fold()

    def _fold(self) -> None:
        pixels = [np.stack(part) for part in zip(*self._in_crop, strict=True)] if self._in_crop else []
        for key, measure, pair in (
            ("lmd", lips.landmark_distance, [np.stack(x) for x in (self._made, self._true)] if self._made else []),
            ("lmd_pixels", lips.landmark_distance_pixels, pixels),
        ):
            if pair:
                value = measure(*pair)
                if math.isfinite(value):
                    self._sums[key][0] += value * len(pair[0])
                    self._sums[key][1] += len(pair[0])
        self._made, self._true, self._in_crop = [], [], []

    def values(self, end: _End) -> dict[str, float]:
        if not end.reference and not end.speaker:
            raise InputError(NO_REFERENCE)
        self._fold()
        found = {key: total / count for key, (total, count) in self._sums.items() if count}
        follow = lips.follow(end.openings, end.asked_openings)
        found |= {"lip_r": follow.r, "lip_lag": follow.lag}
        if not any(math.isfinite(v) for v in found.values()):
            raise InputError("no landmarks of the lips in both videos")
        return found


def _placed(landmarks: np.ndarray, points: np.ndarray, seen: Picture) -> np.ndarray:
    """Landmarks (n, 2) of a picture, in its aligned face of SIDE pixels."""
    matrix = align.squeezed(align.alignment(points, SIDE, seen.pixel_aspect), SIDE)
    return align.mapped(np.asarray(landmarks, np.float64)[None], matrix[None])[0]


class _Likeness(Meter):
    group = "picture"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._like = picture.Likeness()
        self._inside = regions.generated(SIDE)

    def add(self, moment: Moment) -> None:
        if moment.crop is not None and moment.reference_crop is not None:
            self._like.add("face", moment.crop, moment.reference_crop)
            self._like.add("mouth", moment.crop, moment.reference_crop, self._inside)
        if moment.reference_rgb is not None:
            self._like.add("frame", moment.rgb, moment.reference_rgb)

    def values(self, end: _End) -> dict[str, float]:
        if not end.reference:
            raise InputError(NO_REFERENCE)
        return self._like.values()


class _Perceptual(Meter):
    group = "lpips"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        net = tools.get("lpips", lambda: picture.load_lpips(tools.home, tools.device))
        self._like = picture.Perceptual(net) if net is not None else None

    def add(self, moment: Moment) -> None:
        if self._like and moment.crop is not None and moment.reference_crop is not None:
            self._like.add(moment.crop, moment.reference_crop)

    def values(self, end: _End) -> dict[str, float]:
        if not end.reference:
            raise InputError(NO_REFERENCE)
        if self._like is None:
            raise InputError(self.tools.absent("lpips"))
        return self._like.values()


class _Outside(Meter):
    group = "outside"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._changed = picture.Outside()

    def add(self, moment: Moment) -> None:
        if moment.source_rgb is None:
            return
        height, width = moment.rgb.shape[:2]
        free = np.zeros((height, width), bool)
        if moment.points is not None:
            free = regions.touched(moment.points, width, height, moment.result.pixel_aspect)
        self._changed.add(moment.source_rgb, moment.rgb, free)

    def values(self, end: _End) -> dict[str, float]:
        if not end.source:
            raise InputError(NO_SOURCE)
        return self._changed.values()


class _Quality(Meter):
    """Once a second: pictures hardly change within one, and HyperIQA takes its time."""

    group = "quality"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._net = tools.get("hyperiqa", lambda: quality.load_hyperiqa(tools.home, "", tools.device))
        self._every = _Every()
        self._sharp, self._grade = picture.Mean(), picture.Mean()

    def add(self, moment: Moment) -> None:
        if moment.crop is not None and self._every(moment.time):
            self._sharp.add(quality.sharpness(moment.crop))
            if self._net is not None:
                self._grade.add(quality.hyperiqa(self._net, [moment.crop])[0])

    def values(self, end: _End) -> dict[str, float]:
        if not self._sharp.count:
            raise InputError(NO_FACE)
        return {"sharpness": self._sharp.value, "hyperiqa": self._grade.value}


class _Every:
    """True once a second."""

    def __init__(self) -> None:
        self._next = Fraction(0)

    def __call__(self, time: Fraction) -> bool:
        if time < self._next:
            return False
        self._next = time + 1
        return True


class _Identity(Meter):
    group = "identity"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._embedder = tools.get("identity", identity.load_identity)
        self._every = _Every()
        self._alike = picture.Mean()

    def add(self, moment: Moment) -> None:
        true = moment.source_crop if moment.source_crop is not None else moment.reference_crop
        if self._embedder is not None and true is not None and moment.crop is not None and self._every(moment.time):
            self._alike.add(identity.identity(self._embedder, [moment.crop], [true]))

    def values(self, end: _End) -> dict[str, float]:
        if not end.source and not end.reference:
            raise InputError(NO_SOURCE)
        if self._embedder is None:
            raise InputError(self.tools.absent("identity"))
        return {"identity": self._alike.value}


class _Flicker(Meter):
    group = "flicker"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._flicker = temporal.Flicker()
        self._fps = 25.0

    def add(self, moment: Moment) -> None:
        if moment.crop is None or moment.face.cut:  # what changes with the shot is no flicker
            self._flicker.gap()
        else:
            self._flicker.add(moment.crop, moment.reference_crop)

    def values(self, end: _End) -> dict[str, float]:
        self._fps = end.fps
        if not end.faces:
            raise InputError(NO_FACE)
        return self._flicker.values()

    def curves(self) -> dict[str, tuple[float, ...]]:
        curve = tuple(float(v) for v in self._flicker.curve(self._fps))
        return {"flicker": curve} if curve else {}


class _Seam(Meter):
    group = "seam"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._seam = temporal.Seam()

    def add(self, moment: Moment) -> None:
        if moment.crop is not None:
            self._seam.add(moment.crop, moment.source_crop)

    def values(self, end: _End) -> dict[str, float]:
        if not end.faces:
            raise InputError(NO_FACE)
        return self._seam.values()


class _Jitter(Meter):
    group = "jitter"

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._jitter = temporal.Jitter()

    def add(self, moment: Moment) -> None:
        if moment.crop is None or moment.source_crop is None or moment.face.cut:
            self._jitter.gap()
        else:
            self._jitter.add(moment.crop, moment.source_crop)

    def values(self, end: _End) -> dict[str, float]:
        if not end.source:
            raise InputError(NO_SOURCE)
        return self._jitter.values()


class _Silence(Meter):
    group = "silence"

    def values(self, end: _End) -> dict[str, float]:
        found = silence.speech(end.sound(), self.tools.vad, self.tools.home)  # type: ignore[arg-type]
        self.method = found.method
        if not np.isfinite(end.openings).any():
            raise InputError(NO_FACE)
        still = silence.stillness(end.openings, found.spans, end.fps)
        if not math.isfinite(still.silent):
            raise InputError("nobody is silent for long enough")
        return {"silence_motion": still.relative, "silence_speed": still.silent}


class _Faces(Meter):
    group = "faces"

    def values(self, end: _End) -> dict[str, float]:
        return {"faces_missing": 1 - end.faces / end.frames}


METERS: tuple[type[Meter], ...] = (
    _Sync, _Lips, _Likeness, _Perceptual, _Outside, _Quality, _Identity, _Flicker, _Seam, _Jitter, _Silence, _Faces,
)  # fmt: skip


class _Work:
    """The evaluation of one video."""

    def __init__(self, row: Row, tools: Tools, when_audio_longer: AudioLonger, progress: Callable[[int], None] | None) -> None:
        self._row, self._tools, self._bounce, self._progress = row, tools, when_audio_longer, progress
        self._meters = [kind(tools) for kind in METERS if tools.wants(kind.group)]
        self._values: dict[str, float] = {}
        self._missing: dict[str, str] = {}
        self._curves: dict[str, tuple[float, ...]] = {}
        self._notes: list[str] = list(tools.notes)
        self._broken: dict[str, str] = {}
        self._end = Fraction(0)
        self._frames = 0

    def row(self, reason: str = "") -> Row:
        """As far as it is known."""
        return dataclasses.replace(
            self._row,
            ok=not reason,
            reason=reason,
            seconds=round(float(self._end), 6),
            frames=self._frames,
            values=self._values,
            missing=self._missing,
            curves=self._curves,
            notes=tuple(dict.fromkeys(self._notes)),
        )

    def run(self) -> Row:
        row = self._row
        with open_video(Path(row.video)) as video:
            if video.info.is_still:
                raise InputError(f"{row.video} is a still; give a video")
            source = open_video(Path(row.source)) if row.source else None
            reference = source if row.reference == row.source else open_video(Path(row.reference)) if row.reference else None
            samples, no_sound = self._sound()
            speaker = self._speaker(video) if reference is None else None
            end = self._watch(video, source, reference, speaker, samples, no_sound)
        for meter in self._meters:
            self._ask(meter, end)
        if not end.faces and self._meters:
            return self.row(NO_FACE)
        if not self._values and self._missing:
            return self.row(next(iter(self._missing.values())))
        return self.row()

    def _sound(self) -> tuple[np.ndarray | None, str]:
        row = self._row
        if not {"sync", "silence"} & set(self._tools.groups):
            return None, "no sound was asked for"
        try:
            audio = open_audio(Path(row.audio or row.video), beside=Path(row.video))
            samples = np.concatenate([np.zeros(0, np.float32), *audio.samples()])
            self._notes += audio.info.notes
            return samples, ""
        except FAULTS as e:
            return None, said(e)

    def _speaker(self, video: Video) -> Video | None:
        """The video that the sound is from, where that is another one and lips are asked for."""
        path = self._row.audio
        if not path or not self._tools.wants("lips") or path in (self._row.video, self._row.source):
            return None
        try:
            found = open_video(Path(path))
        except FAULTS:
            return None  # a file of sound
        if found.info.is_still:
            return None
        self._notes.append("there is no reference: lips are compared with those of the video that the sound is from")
        return found

    def _watch(
        self, video: Video, source: Video | None, reference: Video | None, speaker: Video | None, samples: np.ndarray | None, no_sound: str
    ) -> _End:
        openings: list[float] = []
        other: list[float] = []
        faces = 0
        for moment in self._moments(video, source, reference, speaker):
            self._frames += 1
            self._end = moment.time + moment.duration
            faces += moment.face.points is not None
            openings.append(_opening(moment.face))
            asked = moment.reference_face if moment.reference is not None else moment.speaker_face if moment.speaker is not None else None
            other.append(_opening(asked))
            for meter in self._meters:
                if meter.group not in self._broken:
                    try:
                        meter.add(moment)
                    except FAULTS as e:
                        self._broken[meter.group] = said(e)
            if self._progress:
                self._progress(self._frames)
        self._notes += video.info.notes
        if any(math.isfinite(v) for v in openings):
            self._curves["lips"] = tuple(openings)
        self._lengths(source, reference, samples)
        if source is not None and self._tools.wants("outside") and video.info.codec not in LOSSLESS:
            self._notes.append(f"{video.info.codec} changes every pixel a little: what changed outside the mask says little (sync --codec ffv1)")
        a, b, c = (v is not None for v in (reference, source, speaker))
        return _End(self._end, self._frames, np.array(openings), np.array(other), samples, no_sound, a, b, c, faces)

    def _moments(self, video: Video, source: Video | None, reference: Video | None, speaker: Video | None) -> Iterator[Moment]:
        """The frames with what runs along, and faces in all of them. Each follower holds a few frames back."""
        one = source is not None and source is reference

        def beside() -> Iterator[Moment]:
            frames = video.frames()
            first = next(frames)
            sources = _Beside(timeline(source, _length(video), when_audio_longer=self._bounce, when_video_longer="keep")) if source else None
            references = None if one or reference is None else _Beside(reference.frames())
            speakers = _Beside(speaker.frames()) if speaker else None
            for frame in _chained(first, frames):
                before = sources.at(frame.time) if sources else None
                true = before if one else references.at(frame.time) if references else None
                yield Moment(frame.time, frame.duration, frame.picture, before, true, speakers.at(frame.time) if speakers else None)

        def follow(moments: Iterator[Moment], which: str) -> Iterator[Moment]:
            """`face` of each, for what is called so."""
            shown: list[Picture] = []

            def seen(moment: Moment) -> Picture:
                found = getattr(moment, which)
                shown[:] = [found if found is not None else shown[0] if shown else moment.result]
                return shown[0]

            for tracked in Tracker(self._tools.finder()).track(moments, seen):
                moment = tracked.frame
                if which == "result":
                    moment.face = tracked
                elif which == "source":
                    moment.source_face = tracked
                    if one:
                        moment.reference_face = tracked
                elif which == "speaker":
                    moment.speaker_face = tracked
                else:
                    moment.reference_face = tracked
                yield moment

        moments = follow(beside(), "result")
        if source is not None:
            moments = follow(moments, "source")
        if reference is not None and not one:
            moments = follow(moments, "reference")
        if speaker is not None:
            moments = follow(moments, "speaker")
        return moments

    def _lengths(self, source: Video | None, reference: Video | None, samples: np.ndarray | None) -> None:
        end = float(self._end)
        if reference is not None and reference is not source and reference.length is not None and abs(float(reference.length) - end) > 0.1:
            self._notes.append(f"the reference lasts {float(reference.length):.2f} s, the video {end:.2f} s: compared as far as both go")
        if samples is not None and abs(len(samples) / SPEECH_RATE - end) > 0.5:
            self._notes.append(f"the sound lasts {len(samples) / SPEECH_RATE:.2f} s, the picture {end:.2f} s: judged as far as both go")

    def _ask(self, meter: Meter, end: _End) -> None:
        keys = GROUPS[meter.group]
        reason = self._broken.get(meter.group, "")
        if not reason:
            try:
                found = meter.values(end)
                self._values |= {k: float(v) for k, v in found.items() if math.isfinite(v)}
                self._curves |= meter.curves()
            except FAULTS as e:
                reason = said(e)
        if isinstance(meter, _Silence) and hasattr(meter, "method"):
            self._row.settings["vad"] = meter.method
        for key in keys:
            if key not in self._values:
                self._missing[key] = reason or self._why(key, end)

    def _why(self, key: str, end: _End) -> str:
        if key in ("lse_c", "lse_d"):
            return "only SyncNet v2 gives it: latentsync models download judges"
        if key == "hyperiqa" and self._tools.absent("hyperiqa"):
            return self._tools.absent("hyperiqa")
        if key in ("flicker_excess", "lmd", "lmd_pixels") and not end.reference:
            return NO_REFERENCE
        if key == "seam_step" and not end.source:
            return NO_SOURCE
        if not end.faces:
            return NO_FACE
        return "too little to measure it: the videos are too short, of different sizes, or nothing in them moves"


def _opening(face: Tracked[Any] | None) -> float:
    return math.nan if face is None or face.opening is None else float(face.opening)


def _length(video: Video) -> Fraction:
    """How long to lay the source out: as long as the video says, and a second more."""
    info = video.info
    return (info.duration or Fraction(10**6)) + 1


def _chained(first: Frame, rest: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from rest


class _Beside:
    """Another video's frames beside those of the one that is evaluated: always the nearest in time, and none beyond its end."""

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames = frames
        self._here: Frame | None = None
        self._next: Frame | None = next(frames, None)

    def at(self, time: Fraction) -> Picture | None:
        """The picture nearest to that time; times must not go back."""
        while self._next is not None and (self._here is None or (self._here.time + self._next.time) / 2 < time):
            self._here, self._next = self._next, next(self._frames, None)
        if self._here is None or (self._next is None and time >= self._here.time + self._here.duration):
            return None
        return self._here.picture
