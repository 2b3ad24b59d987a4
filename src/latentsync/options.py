"""What the user of one job may choose: the same names on the command line, in Python and over HTTP."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from latentsync.errors import UsageError

if TYPE_CHECKING:
    from latentsync.config import DefaultsConfig

DEFAULT_MODEL = "1.6"
SCHEDULERS = ("ddim", "dpm++", "unipc")
MISSING_FACE = ("copy", "error")
AUDIO_LONGER = ("bounce", "loop", "freeze", "cut")
VIDEO_LONGER = ("cut", "keep")
CODECS = ("h264", "hevc", "prores", "ffv1")
FACES = ("largest", "left", "right")
PASTES = ("mask", "crop")
FACE_BACKENDS = ("mediapipe", "insightface", "demo")
DTYPES = ("auto", "fp32", "bf16", "fp16")
MAX_SEED = 2**32 - 1
MAX_STEPS = 200  # beyond, the 1000 training steps no longer divide: samplers would begin far from pure noise, and at 1000 leave the schedule

FaceChoice = Literal["largest", "left", "right"] | int | tuple[float, float]
Span = tuple[float, float]  # seconds; from the first to just before the second


class Sampling(NamedTuple):
    """How latents are drawn: what a job takes of its options, or of its model where they leave it open."""

    steps: int
    guidance: float
    scheduler: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of one job. Raises UsageError, naming the option, for a value that cannot be used."""

    steps: int | None = None  # None, here and below: the model's own (20, 1.5 and ddim for the published ones)
    guidance: float | None = None
    seed: int = 1247
    scheduler: str | None = None
    cache: int = 1  # run the whole network every so many steps; 1 = always
    face: FaceChoice = "largest"
    on_missing_face: str = "copy"
    when_audio_longer: str = "bounce"
    when_video_longer: str = "cut"
    fps: Fraction | None = None  # None = the source's own times
    codec: str = "h264"
    crf: int | None = None  # None = the codec's default here
    batch_windows: int = 1
    paste: str = "mask"  # mask = only where the mouth was made anew; crop = the whole face crop, as published
    only: tuple[Span, ...] = ()  # where mouths are made anew, in order, seconds of the result; () = everywhere

    def __post_init__(self) -> None:
        if self.steps is not None:
            _whole("steps", self.steps, 1, MAX_STEPS)
        if self.guidance is not None:
            _within("guidance", self.guidance, 0, 10)
        _whole("seed", self.seed, 0, MAX_SEED)
        _whole("cache", self.cache, 1, 100)
        _whole("batch-windows", self.batch_windows, 1, 64)
        if self.scheduler is not None:
            _one_of("scheduler", self.scheduler, SCHEDULERS)
        _one_of("on-missing-face", self.on_missing_face, MISSING_FACE)
        _one_of("when-audio-longer", self.when_audio_longer, AUDIO_LONGER)
        _one_of("when-video-longer", self.when_video_longer, VIDEO_LONGER)
        _one_of("codec", self.codec, CODECS)
        _one_of("paste", self.paste, PASTES)
        if isinstance(self.face, str):
            _one_of("face", self.face, FACES)
        if self.fps is not None:
            _within("fps", self.fps, Fraction(1), Fraction(240))
        if self.crf is not None:
            _whole("crf", self.crf, 0, 63)
        object.__setattr__(self, "only", read_spans(self.only))

    def check_spans(self, length: Fraction) -> None:
        """Raises UsageError where a span of `only` begins after `length` seconds, the end of the sound."""
        for start, end in self.only:
            if start >= length:
                raise UsageError(f"--only {start:g}-{end:g} begins after the end of the sound, {float(length):.2f} s")

    def sampling(self, defaults: DefaultsConfig) -> Sampling:
        """Steps, guidance and scheduler as chosen, or else the model's own."""
        return Sampling(
            defaults.steps if self.steps is None else self.steps,
            defaults.guidance if self.guidance is None else self.guidance,
            defaults.scheduler if self.scheduler is None else self.scheduler,
        )


def options(**values: Any) -> Options:
    """Options from plain values as users write them: `seed="random"`, `face="2"` or `"640,200"`, `fps="30000/1001"` and `"source"`,
    `only="3-5,7-9"` are understood.

    Raises UsageError for an unknown name or a value that cannot be used.
    """
    known = {f.name for f in dataclasses.fields(Options)}
    for name in values:
        if name not in known:
            raise UsageError(f"unknown option '{name}'; known options are {', '.join(sorted(known))}")
    readers: dict[str, Any] = {"seed": read_seed, "face": read_face, "fps": read_fps, "only": read_spans}
    return Options(**{k: readers[k](v) if k in readers else v for k, v in values.items()})


def read_seed(value: int | str | None) -> int:
    """A seed from what the user wrote; 0, 'random' and None draw one."""
    if value is None or str(value).strip().lower() in ("0", "random"):
        return secrets.randbelow(MAX_SEED) + 1
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"seed '{value}' is neither a whole number nor 'random'") from None


def read_face(value: str | int | tuple[float, float]) -> FaceChoice:
    """Which face: 'largest', 'left', 'right', a number from 1 (left to right) or a point 'X,Y' in pixels."""
    text = str(value).strip().strip("()")
    if text in FACES:
        return cast(FaceChoice, text)
    try:
        if "," in text:
            x, y = (float(part) for part in text.split(","))
            if not (0 <= x < math.inf and 0 <= y < math.inf):  # NaN fails too
                raise ValueError
            return x, y
        number = int(text)
    except ValueError:
        raise UsageError(f"face '{value}' is none of {', '.join(FACES)}, a number such as 2, or a point such as 640,200") from None
    if number < 1:
        raise UsageError(f"face {number}: faces are numbered from 1, left to right")
    return number


def read_fps(value: Fraction | float | str | None) -> Fraction | None:
    """A frame rate; 'source' and None keep the source's own times. 23.976, 29.97 and 59.94 mean the exact NTSC rates."""
    if value is None or str(value).strip().lower() == "source":
        return None
    try:
        text = str(value).strip()
        if len(text) > 40 or "e" in text.lower():  # '1e999999999' would be worked out to its last digit
            text = str(float(text))
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"fps '{value}' is neither 'source' nor a rate such as 25, 29.97 or 30000/1001") from None
    for whole in (24, 30, 60, 120):
        ntsc = Fraction(whole * 1000, 1001)
        if rate != whole and abs(rate - ntsc) < Fraction(1, 200):
            return ntsc
    return rate


def read_spans(value: str | Iterable[Any] | None, name: str = "only") -> tuple[Span, ...]:
    """Spans of time in order, those that touch joined: from '3-5', '3-5,1:02.5-1:10', or a list of such texts or of pairs of seconds."""
    items = value.split(",") if isinstance(value, str) else [*(value or ())]
    spans: list[Span] = []
    for start, end in sorted(_span(item, name) for item in items if item != ""):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return tuple(spans)


def _span(item: Any, name: str) -> Span:
    if isinstance(item, str):
        first, dash, second = item.partition("-")
        pair = [first, second] if dash else []
    else:
        pair = [*item] if isinstance(item, list | tuple) else []
    if len(pair) != 2:
        raise UsageError(f"--{name} '{item}': write a span of time as START-END in seconds, such as 3-5.5")
    start, end = (clock(part, name) for part in pair)
    if start >= end:
        raise UsageError(f"--{name} {start:g}-{end:g}: it must end after it begins")
    return start, end


def clock(value: Any, name: str) -> float:
    """Seconds from a number, '62.5', '1:02.5' or '0:01:02.5'. Raises UsageError with the name of the option."""
    try:
        parts = [float(part) for part in (value.split(":") if isinstance(value, str) else [value])]
        seconds = sum(part * 60**i for i, part in enumerate(reversed(parts)))
        if isinstance(value, bool) or len(parts) > 3 or not 0 <= min(parts) <= max(parts) < math.inf:  # NaN fails too
            raise ValueError
    except (ValueError, TypeError):
        raise UsageError(f"--{name} '{value}' is no time: pass seconds from 0, such as 62.5, or 1:02.5") from None
    return seconds


def exact(seconds: float) -> Fraction:
    """The number as it was written: 3.04, and not the binary number next to it."""
    return Fraction(str(float(seconds)))


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:  # type: ignore[operator]
        raise UsageError(f"--{name} {value}: must be a whole number within {low}..{high}")


def _within(name: str, value: Any, low: Any, high: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise UsageError(f"--{name} {value}: must be a number within {low}..{high}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"--{name} '{value}' is not known; choose one of {', '.join(known)}")
