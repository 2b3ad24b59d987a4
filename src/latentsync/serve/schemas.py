"""What goes in and what comes out, as data: a job that is asked for, a job as it is, models, errors.

The options of a job are made from `options.Options`, so that the service cannot know others than the command line does.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from latentsync import options as opt
from latentsync.errors import UsageError
from latentsync.jobs import Job
from latentsync.jobs.records import moment

# What the type of a field does not say. A test compares it with what Options takes.
CHOICES: dict[str, tuple[str, ...]] = {
    "scheduler": opt.SCHEDULERS,
    "on_missing_face": opt.MISSING_FACE,
    "when_audio_longer": opt.AUDIO_LONGER,
    "when_video_longer": opt.VIDEO_LONGER,
    "codec": opt.CODECS,
    "paste": opt.PASTES,
}
BOUNDS: dict[str, tuple[float, float]] = {
    "steps": (1, opt.MAX_STEPS),
    "guidance": (0, 10),
    "cache": (1, 100),
    "crf": (0, 63),
    "batch_windows": (1, 64),
}
Number = Annotated[float, Field(ge=0)]
WRITTEN: dict[str, Any] = {  # fields that users may write in several ways, which `options.options` reads
    "seed": Annotated[int, Field(ge=0, le=opt.MAX_SEED)] | Literal["random"],
    "face": Annotated[int, Field(ge=1)] | str,
    "fps": Number | str,
    "only": list[Annotated[list[Number], Field(min_length=2, max_length=2)]] | str,
}
SAID: dict[str, str] = {
    "steps": "Denoising steps; by default the model's own.",
    "guidance": "How strongly the sound leads; up to 1 it is off, which halves the work. By default the model's own.",
    "seed": "0 or 'random' draws one, which the job then names.",
    "scheduler": "The sampler; by default the model's own.",
    "cache": "Run the whole network every so many steps only; 1 is always.",
    "face": "Whose mouth: largest, left, right, a number from 1 (left to right), or 'X,Y' in pixels of the first frame where it shows.",
    "on_missing_face": "Frames without a usable face: copy them, or fail.",
    "when_audio_longer": "Sound longer than the video: play it back and forth, again from the start, hold the last frame, or cut the sound.",
    "when_video_longer": "Video longer than the sound: cut the video, or keep its rest untouched.",
    "fps": "Frame rate of the result, such as 25 or '30000/1001'; 'source' keeps every frame's time.",
    "codec": "How to encode; ffv1 is lossless.",
    "crf": "Quality of h264 and hevc: smaller is better and larger.",
    "batch_windows": "Windows of 16 frames to run together.",
    "paste": "What to put back: only where the mouth was made anew, or the whole face crop.",
    "only": "Spans in which mouths are made anew, such as '3-5,7-9' or [[3, 5], [7, 9]] in seconds; by default everywhere.",
}
_ADDRESS = Annotated[str, Field(min_length=8, max_length=2048, pattern=r"^https?://")]


class Strict(BaseModel):
    """Takes what it knows, in the type it says, and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Segment(Strict):
    """From `start` to `end`, seconds of the result, this sound is spoken. Outside all segments the video stays as it is."""

    start: Number
    end: Number
    audio: str | None = Field(None, pattern=r"^audio([_-][1-9][0-9]?)?$", description="The field of the form that holds the sound, such as audio_2.")
    audio_url: _ADDRESS | None = Field(None, description="Or its address, where this service takes addresses.")
    audio_start: Number = Field(0.0, description="Second of the sound to begin with.")


def _option(field: dataclasses.Field[Any], hint: Any) -> tuple[Any, Any]:
    """(type, description and default) of one option."""
    kind: Any = WRITTEN.get(field.name)
    if kind is None:
        kind = next(k for k in (get_args(hint) or (hint,)) if k is not type(None))
        if field.name in CHOICES:
            kind = Literal[CHOICES[field.name]]
        elif field.name in BOUNDS:
            low, high = BOUNDS[field.name]
            kind = Annotated[kind, Field(ge=low, le=high)]
    return kind | None, Field(None, description=SAID.get(field.name))


_HINTS = get_type_hints(opt.Options)
OPTIONS: dict[str, Any] = {f.name: _option(f, _HINTS[f.name]) for f in dataclasses.fields(opt.Options)}


class _Asked(Strict):
    video_url: _ADDRESS | None = Field(None, description="Address of the video or still, where this service takes addresses.")
    audio_url: _ADDRESS | None = Field(None, description="Address of the sound, where this service takes addresses.")
    model: str | None = Field(None, max_length=200, description="One of GET /v1/models; by default the first.")
    segments: list[Segment] | None = Field(None, max_length=100, description="Several stretches, each with its own sound.")
    preview: bool = Field(False, description="Decode with the tiny autoencoder: faster and softer.")
    face_backend: Literal[opt.FACE_BACKENDS] | None = Field(None, description="Who finds the faces; by default the model's own.")  # type: ignore[valid-type]
    report: bool = Field(True, description="Judge the result: sync, the mask's edge, flicker, the mouth in silence, missing faces.")
    webhook_url: _ADDRESS | None = Field(None, description="Asked with a signed POST when the job is final, where this service sends webhooks.")


class Asked(create_model("Asked", __base__=_Asked, **OPTIONS)):  # type: ignore[misc,call-overload]
    """A job to do. Every option of `latentsync sync` under its own name."""

    def options(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}


def read_json(data: bytes) -> Asked:
    """A job from JSON. Raises UsageError that names the fields."""
    try:
        return Asked.model_validate_json(data)
    except ValidationError as e:
        raise UsageError(why(e)) from None


def read_fields(fields: Mapping[str, str]) -> Asked:
    """A job from the text fields of a form. An empty field is one that was left out. Raises UsageError that names the fields."""
    unknown = sorted(set(fields) - set(Asked.model_fields))
    if unknown:
        known = ", ".join(Asked.model_fields)
        raise UsageError(f"'{unknown[0][:60]}' is no field of a job; known are {known}, and the files video, audio, audio_2, ...")
    values = {name: _typed(name, text) for name, text in fields.items() if text != ""}
    return read_json(json.dumps(values).encode())


def _typed(name: str, text: str) -> Any:
    """What a text of a form means in a field. What cannot be read stays text, and is refused with the rest."""
    kinds = _kinds(Asked.model_fields[name].annotation)
    stripped = text.strip()
    if bool in kinds and stripped.lower() in ("true", "false", "1", "0"):
        return stripped.lower() in ("true", "1")
    if int in kinds and re.fullmatch(r"[+-]?[0-9]{1,18}", stripped):
        return int(stripped)
    if float in kinds and str not in kinds and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", stripped.lower()):
        return float(stripped)
    if list in kinds and stripped.startswith("["):
        try:
            return json.loads(stripped)
        except (ValueError, RecursionError):
            return text
    return text


def _kinds(annotation: Any) -> set[Any]:
    """The plain types within an annotation."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return set().union(*(_kinds(a) for a in get_args(annotation)))
    if origin is Literal:
        return {str}
    return {origin or annotation}


def why(error: ValidationError) -> str:
    """A sentence for each field that cannot be used, the first five of them."""
    said: dict[str, str] = {}
    for found in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in found["loc"][:1] if isinstance(part, str)) or "the body"
        said.setdefault(where, found["msg"][:1].lower() + found["msg"][1:])
    return "; ".join(f"{where[:60]}: {message}" for where, message in list(said.items())[:5])


class Progress(BaseModel):
    """How far a job is."""

    frames_done: int = Field(examples=[120])
    frames_total: int | None = Field(examples=[250])
    step: int = Field(description="Denoising steps done of the window at work.", examples=[7])
    steps: int = Field(description="Steps of each window.", examples=[20])
    seconds: float = Field(description="Seconds worked on it.", examples=[31.5])
    seconds_left: float | None = Field(description="An estimate.", examples=[34.0])


class RequestOut(BaseModel):
    """What was asked for."""

    model_config = ConfigDict(protected_namespaces=())

    model: str = Field(examples=["1.6"])
    video: str = Field(description="How the upload was called.", examples=["speaker.mp4"])
    audio: str | None = Field(examples=["speech.wav"])
    options: dict[str, Any] = Field(examples=[{"steps": 20, "seed": 1247}])
    segments: list[dict[str, Any]]
    preview: bool
    face_backend: str | None
    report: bool


class ErrorOut(BaseModel):
    """What went wrong: the name of an error's class, and a sentence."""

    kind: str = Field(examples=["InputError"])
    message: str = Field(examples=["video.mp4 is not an audio, video or image file that FFmpeg can read, or its beginning is damaged"])


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorOut


class Links(BaseModel):
    """Where more of a job is, as paths below this service's address."""

    self: str
    events: str
    result: str | None = Field(description="Once it is done.")
    preview: str | None = Field(description="Once a frame of the result is there.")


class JobOut(BaseModel):
    """A job as it is now. Times are ISO 8601, UTC."""

    model_config = ConfigDict(protected_namespaces=())

    id: str = Field(examples=["x1J3mC1jT6mJ0uQ2wq3zZg"])
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    created: str
    started: str | None
    finished: str | None
    expires: str | None = Field(description="Then the job and its files are deleted.")
    attempts: int
    position: int | None = Field(description="Place in the queue, from 1.")
    progress: Progress
    message: str = Field(description="What is being done, or why it waits.")
    cancelling: bool
    error: ErrorOut | None
    request: RequestOut
    result: dict[str, Any] | None = Field(description="What was done: frames, seconds, faces, and the report where one was asked for.")
    links: Links


class JobList(BaseModel):
    """Jobs of this key, newest first."""

    jobs: list[JobOut]
    next: str | None = Field(description="For `before`, to see older ones; null where there are none.")


class ModelOut(BaseModel):
    """A model that a job may name."""

    name: str = Field(examples=["1.6"])
    installed: bool
    note: str = Field(description="Why it is not, and what mends it.")


class ModelList(BaseModel):
    """The first is what is used where a job names none."""

    models: list[ModelOut]


class Health(BaseModel):
    """Whether the service lives, or is ready."""

    status: Literal["ok", "not ready"]
    message: str
    version: str


def job_out(job: Job, base: str = "") -> JobOut:
    """A job as it is shown. `base`: the path below which the service lies."""
    asked, here = job.request, f"{base}/v1/jobs/{job.id}"
    return JobOut(
        id=job.id,
        state=job.state,
        created=moment(job.created) or "",
        started=moment(job.started),
        finished=moment(job.finished),
        expires=moment(job.expires),
        attempts=job.attempts,
        position=job.position,
        progress=Progress(
            frames_done=job.done,
            frames_total=job.total,
            step=job.step,
            steps=job.steps,
            seconds=round(job.seconds, 3),
            seconds_left=None if job.seconds_left is None else round(job.seconds_left, 1),
        ),
        message=job.message,
        cancelling=job.cancelling,
        error=ErrorOut(kind=job.error_kind or "LatentSyncError", message=job.error) if job.error else None,
        request=RequestOut(
            model=asked.model,
            video=job.names.get(asked.video, asked.video),
            audio=None if asked.audio is None else job.names.get(asked.audio, asked.audio),
            options=asked.options,
            segments=[{**dataclasses.asdict(s), "audio": job.names.get(s.audio, s.audio)} for s in asked.segments],
            preview=asked.preview,
            face_backend=asked.face_backend,
            report=asked.report,
        ),
        result=job.result or None,
        links=Links(
            self=here,
            events=f"{here}/events",
            result=f"{here}/result" if job.has_result else None,
            preview=f"{here}/preview" if job.has_preview else None,
        ),
    )
