"""What a job is, as its owner sees it: what was asked for, how far it is, what came of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, get_args

from latentsync.errors import UsageError
from latentsync.options import FACE_BACKENDS

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
FINAL: tuple[State, ...] = ("done", "failed", "cancelled")
WorkerState = Literal["starting", "loading", "idle", "busy", "dead"]
FILE = re.compile(r"(video|audio(-[1-9]\d{0,2})?)(\.[a-z0-9]{1,5})?")  # names of the files in a job's folder


@dataclass(frozen=True, kw_only=True)
class SegmentInput:
    """From `start` to `end`, seconds of the result, the sound of `audio` is spoken, from its second `audio_start` on."""

    start: float
    end: float
    audio: str  # name of a file in the job's folder
    audio_start: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be done. Raises UsageError for what no job could be, before any file is looked at."""

    video: str  # names of files in the job's folder
    audio: str | None = None
    model: str = ""  # one of the desk's; "" is its first
    options: dict[str, Any] = field(default_factory=dict)  # names and values of `options.options`, as JSON holds them
    preview: bool = False
    face_backend: str | None = None
    report: bool = True
    segments: tuple[SegmentInput, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.video, *([self.audio] if self.audio is not None else []), *(s.audio for s in self.segments)):
            if not isinstance(name, str) or not FILE.fullmatch(name):
                raise UsageError(f"'{name}' is not the name of a file of this job")
        if not self.video.startswith("video"):
            raise UsageError(f"'{self.video}' is not the name of a video of this job")
        if self.audio is None and not self.segments:
            raise UsageError("no sound: give an audio file (any file with sound), or segments with theirs")
        if self.face_backend is not None and self.face_backend not in FACE_BACKENDS:
            raise UsageError(f"--face-backend '{self.face_backend}' is not known; choose one of {', '.join(FACE_BACKENDS)}")
        for segment in self.segments:
            times = (segment.start, segment.end, segment.audio_start)
            if not all(isinstance(t, int | float) and not isinstance(t, bool) and 0 <= t < math.inf for t in times) or segment.start >= segment.end:
                raise UsageError(f"segment {segment.start}-{segment.end}: times are seconds from 0 on, and the end comes after the start")

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all its files, each once."""
        return tuple(dict.fromkeys([self.video, *([self.audio] if self.audio else []), *(s.audio for s in self.segments)]))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "segments": [asdict(s) for s in self.segments]}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Request:
        """The inverse of `plain`. Raises UsageError for what does not fit."""
        try:
            segments = tuple(SegmentInput(**s) for s in plain.get("segments", ()))
            return cls(**{**plain, "segments": segments})
        except TypeError as e:
            raise UsageError(f"this is no request for a job: {e}") from e


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job at one moment. Times are seconds since 1970."""

    id: str  # not to be guessed: who knows it may have it, where there are no owners
    owner: str
    state: State
    request: Request
    names: dict[str, str]  # file of the job's folder -> how its upload was called, for people
    created: float
    started: float | None = None  # of the latest attempt
    finished: float | None = None
    expires: float | None = None  # then it is deleted, with its files
    attempts: int = 0
    position: int | None = None  # in the queue, from 1; None where it does not wait
    done: int = 0  # frames written
    total: int | None = None  # frames expected
    step: int = 0  # denoising steps done of the window at work
    steps: int = 0  # of each window
    seconds: float = 0.0  # worked on it
    seconds_left: float | None = None  # an estimate
    message: str = ""  # what is being done, or why it waits
    cancelling: bool = False
    error: str = ""  # a sentence
    error_kind: str = ""  # name of the error's class
    exit_code: int | None = None  # that the command line would have ended with
    result: dict[str, Any] = field(default_factory=dict)  # of `Result.plain`, without paths
    has_result: bool = False
    previews: int = 0  # pictures of the result shown so far; the newest is there
    webhook: str | None = None
    version: int = 0  # grows with every change

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINAL

    @property
    def has_preview(self) -> bool:
        """Whether there is a picture of the result."""
        return self.previews > 0

    def plain(self) -> dict[str, Any]:
        """For JSON, as its owner may see it: times in ISO 8601, UTC."""
        found = {k: v for k, v in self.__dict__.items() if k not in ("owner", "webhook", "version")}
        times = {k: moment(found[k]) for k in ("created", "started", "finished", "expires")}
        return {**found, **times, "request": self.request.plain(), "seconds": round(self.seconds, 3), "has_preview": self.has_preview}


def moment(seconds: float | None) -> str | None:
    """Seconds since 1970 in ISO 8601, UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A process that works on jobs, as it last said itself; `dead` where it has not been heard of."""

    id: str
    host: str
    device: str
    state: WorkerState
    model: str  # the one that is loaded
    message: str
    job: str | None
    jobs_done: int
    seen: float  # seconds since 1970

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__, "seen": moment(self.seen)}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that visitors may name."""

    name: str
    installed: bool
    note: str  # why it is not, with the command that mends it


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of a desk, for its keeper."""

    queued: int
    running: int
    done: int
    failed: int
    cancelled: int
    oldest_wait: float  # seconds that the first of the queue has waited
    free_bytes: int
    totals: dict[str, float]  # since the store was made: submitted, done, failed, cancelled, retried, frames, video_seconds, work_seconds


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A message that is to be sent when a job is final."""

    id: int
    job: str
    url: str
    event: str  # job.done, job.failed or job.cancelled
    state: Literal["due", "delivered", "given up"]
    attempts: int  # that were begun
    created: float
    due: float
    last_error: str
