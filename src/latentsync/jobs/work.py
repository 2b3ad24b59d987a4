"""A job's work: files in its folder -> the result beside them. The networks of the last model stay loaded."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2

from latentsync.errors import UsageError
from latentsync.evaluate.short import Short
from latentsync.jobs.folders import is_input
from latentsync.jobs.limits import Limits
from latentsync.jobs.probe import probe
from latentsync.jobs.records import Job, Request
from latentsync.jobs.store import Pulse
from latentsync.jobs.worker import Made, Setting
from latentsync.media.frame import Frame
from latentsync.options import Options, options
from latentsync.pipeline import Finished, LipSync, Progress, Result
from latentsync.preflight import preflight
from latentsync.segments import Segment, settled, soundtrack
from latentsync.whole import whole

PREVIEW = "preview.jpg"
PREVIEW_EVERY = 2.0  # seconds between pictures of the result
PREVIEW_SIDE = 640  # pixels
SUFFIXES = {"h264": ".mp4", "hevc": ".mp4", "prores": ".mov", "ffv1": ".mkv"}  # of results, by codec


class Resident:
    """The model that was used last, loaded. Another one takes its place."""

    def __init__(self, models: Mapping[str, str], *, device: str, dtype: str, home: str | None) -> None:
        """`models`: the name for people -> the name or folder to load."""
        self._models, self._device, self._dtype, self._home = models, device, dtype, home
        self._loaded: LipSync | None = None
        self._key: tuple[str, bool, str | None] | None = None

    @property
    def name(self) -> str:
        """Of the model that is loaded, for people."""
        return self._key[0] if self._key is not None else ""

    @property
    def home(self) -> Path | None:
        """Where weights lie."""
        return Path(self._home) if self._home else None

    def source(self, model: str) -> str:
        """What to load for a model's name; "" is the first. Raises UsageError for one that is not offered."""
        name = model or next(iter(self._models))
        if name not in self._models:
            raise UsageError(f"model '{name}' is not offered here; choose one of {', '.join(self._models)}")
        return self._models[name]

    def get(self, model: str = "", *, preview: bool = False, face_backend: str | None = None, say: Callable[[str], None]) -> LipSync:
        """The networks, ready. Raises WeightsError, DeviceError, UsageError."""
        source = self.source(model)
        key = (model or next(iter(self._models)), preview, face_backend)
        if self._loaded is None or self._key != key:
            say(f"loading {key[0]}")
            self.drop()  # first: two do not fit into every memory
            self._loaded = LipSync.load(source, device=self._device, dtype=self._dtype, preview=preview, face_backend=face_backend, home=self._home)
            self._key = key
        return self._loaded

    def drop(self) -> None:
        """Load anew next time."""
        self._loaded = self._key = None
        gc.collect()

    def prepare(self, say: Callable[[str], None]) -> None:
        """Load the first model."""
        self.get(say=say)

    def perform(self, job: Job, folder: Path, limits: Limits, said: Pulse, check: Callable[[], None], number: int) -> Made:
        """See `perform`."""
        return perform(job, folder, self, limits, said, check, number=number)


def performer(setting: Setting) -> Resident:
    """What does the jobs of a worker."""
    return Resident(setting.models, device=setting.device, dtype=setting.dtype, home=setting.home)


def perform(job: Job, folder: Path, resident: Resident, limits: Limits, said: Pulse, check: Callable[[], None], *, number: int) -> Made:
    """Do the work of a job in its folder.

    How far it is stands in `said` at any time. `check` is asked before each part, at each denoising step and each frame, and ends the work by
    raising. `number` tells this attempt's files from those of another one that may still be at work somewhere. Raises what `LipSync.run`
    raises, and LimitError.
    """

    def say(what: str) -> None:
        said.message = what
        check()

    request = job.request
    chosen = options(**request.options)
    out = folder / f"result-{number}{SUFFIXES[chosen.codec]}"
    say("looking at the files")
    _clear(folder, keep=f"-{number}.")
    probe(folder, request, chosen, job.names, limits)
    video, audio, chosen, notes = _sound(folder, request, chosen, number, say)
    source = resident.source(request.model)
    preflight(
        video,
        audio,
        out,
        chosen,
        overwrite=True,
        model=source,
        preview=request.preview,
        face_backend=request.face_backend,
        home=resident.home,
    )
    lipsync = resident.get(request.model, preview=request.preview, face_backend=request.face_backend, say=say)
    say("syncing")
    looks = Short() if request.report else None
    shown = _Preview(folder / PREVIEW, said)
    said.steps = lipsync.model.config.defaults.steps if chosen.steps is None else chosen.steps
    left = _Left(said.steps, lipsync.config.window * chosen.batch_windows)

    def hear(progress: Progress) -> None:
        said.done, said.total, said.step, said.seconds_left = progress.done, progress.total, progress.step, left(progress)
        limits.check_frames(progress.done)
        check()

    def inspect(item: Finished, frame: Frame) -> None:
        limits.check_seconds(frame.time, "the result")
        check()
        shown(item, frame)
        if looks is not None:
            looks(item, frame)

    result = lipsync.run(video, audio, out, chosen, overwrite=True, progress=hear, inspect=inspect)
    result.notes += notes
    if looks is not None:
        say("judging the result")
        result.report = looks.close(audio, video).plain()
    said.seconds_left = 0.0
    _clear(folder, keep=out.name)
    return Made(out.name, _plain(result, resident.name))


def _sound(folder: Path, request: Request, chosen: Options, number: int, say: Callable[[str], None]) -> tuple[Path, Path, Options, list[str]]:
    """Video, sound and options of the job; where it has segments, their sound is put together first."""
    video = folder / request.video
    base = folder / request.audio if request.audio is not None else None
    if not request.segments:
        assert base is not None
        return video, base, chosen, []
    say("putting the sound together")
    segments = [Segment(s.start, s.end, folder / s.audio, s.audio_start) for s in request.segments]
    sound = folder / f"sound-{number}.wav"
    notes = soundtrack(video, segments, sound, base=base)
    return video, sound, settled(chosen, segments, base=base is not None), notes


class _Left:
    """How long it will take, from how long it took so far. Most of the work is denoising, which is ahead of what is written."""

    def __init__(self, steps: int, window: int) -> None:
        self._steps, self._window = steps, window
        self._calls, self._step = 0, 0  # of the network so far, as far as they can be told apart; steps that the last one's windows have done

    def __call__(self, progress: Progress) -> float | None:
        """Seconds that are left; None while nothing is known."""
        self._calls += progress.step != self._step
        self._step = progress.step
        if progress.total is None:
            return None
        made = max(progress.done, min(progress.total, self._calls / self._steps * self._window))
        done = 0.9 * made + 0.1 * progress.done
        return progress.seconds / done * (progress.total - done) if done else None


def _plain(result: Result, model: str) -> dict[str, Any]:
    return _finite({**{k: v for k, v in result.plain().items() if k != "out"}, "model": model})


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _clear(folder: Path, *, keep: str) -> None:
    """Delete what earlier attempts left, and what this one does not need any more."""
    for path in folder.iterdir():
        if not is_input(path.name) and path.name != PREVIEW and keep not in path.name:
            path.unlink(missing_ok=True)


class _Preview:
    """A small picture of the newest frame with a new mouth, now and then."""

    def __init__(self, path: Path, said: Pulse) -> None:
        self._path, self._said = path, said
        self._next = 0.0

    def __call__(self, item: Finished, frame: Frame) -> None:
        now = time.monotonic()
        if item.face is None or now < self._next:
            return
        self._next = now + PREVIEW_EVERY
        ok, data = cv2.imencode(".jpg", cv2.cvtColor(frame.picture.small(PREVIEW_SIDE), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
        if ok:
            with whole(self._path) as scratch:
                scratch.write_bytes(data.tobytes())
            self._said.previews += 1
