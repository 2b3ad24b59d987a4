"""The routes: each reads its request, asks the desk, and answers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException

from latentsync import __version__
from latentsync.errors import LatentSyncError, UsageError
from latentsync.jobs import Desk, Draft, Job, Model, SegmentInput
from latentsync.jobs import Request as JobRequest
from latentsync.jobs.errors import QueueFull
from latentsync.serve import events, manual, metrics
from latentsync.serve.fetch import fetch
from latentsync.serve.gate import Asker, Gate, Places
from latentsync.serve.problems import AddressRefused, Forbidden, NotReady, UnsupportedMedia, answer, body_of
from latentsync.serve.schemas import Asked, ErrorBody, Health, JobList, JobOut, ModelList, ModelOut, job_out, read_fields, read_json
from latentsync.serve.settings import Settings
from latentsync.serve.uploads import read_form, read_text
from latentsync.serve.webhooks import Messenger, key_of

PAGE = 50  # jobs of a list
MODELS_FOR = 5.0  # seconds for which a look at the files of models is good
_FILE_FIELD = re.compile(r"video|audio(?:[_-]([1-9][0-9]?))?")
_KEY = re.compile(r"[\x21-\x7e]{1,150}")
_TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska", ".avi": "video/x-msvideo"}

DESCRIPTION = """Lip sync: a video (or a still) and a sound in, the same picture speaking that sound out.

Post a job, follow it, fetch its result. Jobs wait in a queue, and expire with their files. With keys, send yours as `Authorization: Bearer KEY`.
Every error is `{"error": {"kind": "...", "message": "..."}}`; the message is a sentence."""

_WHY = {
    401: "No key, or one that is not known.",
    403: "A request that is taken from nobody.",
    404: "No such job, or another key's.",
    408: "The body came too slowly.",
    409: "It does not go together with the state of the job, or with an idempotency key used before.",
    413: "Too large, or too long.",
    415: "A body of a type that is not understood.",
    422: "A field, an option or a file that cannot be used.",
    429: "Too many requests, or too many unfinished jobs; Retry-After says when to come again.",
    500: "A fault of the service.",
    503: "The queue is full, or the service is not ready; Retry-After says when to come again.",
    507: "The disk of the service is full.",
}


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorBody, "description": _WHY[code]} for code in sorted({401, 403, 422, 429, 500, 503, *codes})}


def create_app(desk: Desk, settings: Settings) -> FastAPI:
    """The service over a desk that has been started, and that outlives it. `app.state.stopping` is to be set when the server is told to end."""
    if settings.webhook_secret is not None:
        key_of(settings.webhook_secret)
    meter = metrics.Meter(desk)
    offered: list[tuple[float, list[Model]]] = []  # when it was looked up, and what was found
    stopping = asyncio.Event()
    streams = Places(10 * settings.streams, settings.streams, "event streams")
    uploads = Places(settings.uploads, max(1, settings.uploads // 2), "uploads")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sender = None
        if settings.webhook_secret is not None:
            sender = asyncio.create_task(Messenger(desk, settings.webhook_secret, settings.keeper, meter).run())
        yield
        stopping.set()
        if sender is not None:
            sender.cancel()
            with suppress(asyncio.CancelledError):
                await sender

    app = FastAPI(
        title="LatentSync",
        version=__version__,
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.stopping = stopping
    _handle_errors(app)

    @app.get("/", include_in_schema=False)
    def root(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{_base(request)}/docs", 307)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(manual.page(app.openapi()), headers={"Content-Security-Policy": manual.POLICY})

    @app.get("/healthz", tags=["service"], summary="Whether the service lives", response_model=Health)
    async def healthz() -> Health:
        return Health(status="ok", message="", version=__version__)

    @app.get("/readyz", tags=["service"], summary="Whether jobs would be worked on now", response_model=Health, responses={503: {"model": Health}})
    def readyz() -> JSONResponse:
        message = desk.ready()
        found = Health(status="not ready" if message else "ok", message=message, version=__version__)
        return JSONResponse(found.model_dump(), 503 if message else 200)

    @app.get("/metrics", tags=["service"], summary="Numbers for Prometheus", response_class=Response, responses=_text(_errors()))
    def numbers() -> Response:
        return Response(meter.text(), media_type=metrics.TYPE)

    @app.get("/v1/models", tags=["models"], summary="Models that a job may name", response_model=ModelList, responses=_errors())
    def models() -> ModelList:
        now = time.monotonic()
        if not offered or now - offered[0][0] > MODELS_FOR:
            offered[:] = [(now, desk.models())]
        return ModelList(models=[ModelOut(name=m.name, installed=m.installed, note=m.note.partition("\nlooked in:")[0]) for m in offered[0][1]])

    @app.post(
        "/v1/jobs",
        tags=["jobs"],
        summary="Ask for a job",
        status_code=202,
        response_model=JobOut,
        responses=_errors(408, 409, 413, 415, 507),
        openapi_extra={"requestBody": _request_body(settings), "parameters": [_IDEMPOTENCY]},
    )
    async def create(request: Request) -> JSONResponse:
        asker: Asker = request.scope["asker"]
        key = _idempotency_key(request, asker, settings)
        with uploads.hold(asker.name):
            if key is None or await asyncio.to_thread(desk.known, asker.owner, key) is None:
                await asyncio.to_thread(_room, desk)
            draft = await asyncio.to_thread(desk.new_folder)
            try:
                asked, wanted = await _receive(request, draft, desk, settings)
            except BaseException:
                draft.discard()
                raise
        job = await asyncio.to_thread(desk.submit, draft, wanted, owner=asker.owner, idempotency_key=key, webhook=asked.webhook_url)
        found = job_out(job, _base(request))
        return JSONResponse(found.model_dump(mode="json"), 202, {"Location": found.links.self})

    @app.get("/v1/jobs", tags=["jobs"], summary="Your jobs, newest first", response_model=JobList, responses=_errors(404))
    def index(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=200)] = PAGE,
        before: Annotated[str | None, Query(max_length=64, description="Only those older than this one.")] = None,
        state: Annotated[Literal["queued", "running", "done", "failed", "cancelled"] | None, Query()] = None,
    ) -> JobList:
        if settings.keys is None and not settings.alone:
            raise Forbidden("no list of jobs is given where everybody may ask; keep the ids of yours")
        found = desk.jobs(_owner(request), limit=limit, before=before, state=state)
        return JobList(jobs=[job_out(job, _base(request)) for job in found], next=found[-1].id if len(found) == limit else None)

    @app.get("/v1/jobs/{id}", tags=["jobs"], summary="How far a job is", response_model=JobOut, responses=_errors(404))
    def show(request: Request, id: str) -> JobOut:
        return job_out(desk.get(id, _owner(request)), _base(request))

    @app.delete(
        "/v1/jobs/{id}",
        tags=["jobs"],
        summary="Cancel a job that waits or runs; delete one that is final, with its files",
        response_model=JobOut,
        status_code=202,
        responses=_errors(404, 409) | {202: {"description": "It is being cancelled."}, 204: {"description": "It is deleted."}},
    )
    def remove(request: Request, id: str) -> Response:
        owner = _owner(request)
        job = desk.get(id, owner)
        if job.final:
            desk.delete(id, owner)
            return Response(status_code=204)
        return JSONResponse(job_out(desk.cancel(id, owner), _base(request)).model_dump(mode="json"), 202)

    @app.post(
        "/v1/jobs/{id}/cancel",
        tags=["jobs"],
        summary="Cancel a job that waits or runs; one that is final stays as it is",
        response_model=JobOut,
        status_code=202,
        responses=_errors(404),
    )
    def cancel(request: Request, id: str) -> JobOut:
        return job_out(desk.cancel(id, _owner(request)), _base(request))

    @app.head("/v1/jobs/{id}/result", include_in_schema=False)
    @app.get(
        "/v1/jobs/{id}/result",
        tags=["jobs"],
        summary="The result; ranges are understood",
        response_class=FileResponse,
        responses=_errors(404, 409) | _file("video/mp4", "The video.") | _RANGES,
    )
    def result(request: Request, id: str) -> FileResponse:
        job = desk.get(id, _owner(request))
        if not job.has_result:
            raise NotReady(_without(job))
        path = desk.result_path(job)
        return FileResponse(path, media_type=_TYPES.get(path.suffix, "application/octet-stream"), filename=f"latentsync-{job.id[:8]}{path.suffix}")

    @app.get(
        "/v1/jobs/{id}/preview",
        tags=["jobs"],
        summary="The newest frame of the result, small",
        response_class=FileResponse,
        responses=_errors(404, 409) | _file("image/jpeg", "A picture."),
    )
    def preview(request: Request, id: str) -> Response:
        job = desk.get(id, _owner(request))
        if not job.has_preview:
            raise NotReady("no frame of the result is there yet; ask again while it runs")
        try:
            return Response(desk.preview_path(job).read_bytes(), media_type="image/jpeg")
        except OSError:
            raise NotReady("the picture has just been deleted") from None

    @app.get(
        "/v1/jobs/{id}/events",
        tags=["jobs"],
        summary="A job's changes as they happen, as server-sent events; each `job` event holds what GET /v1/jobs/{id} answers",
        response_class=StreamingResponse,
        responses=_errors(404) | _EVENTS,
    )
    async def follow(request: Request, id: str) -> StreamingResponse:
        owner, base, name = _owner(request), _base(request), request.scope["asker"].name
        look: Callable[[], Job] = lambda: desk.get(id, owner)  # noqa: E731
        first = await asyncio.to_thread(look)
        told = events.stream(first, look, lambda job: job_out(job, base).model_dump_json(), stopping)
        return events.Response(told, streams.hold(name))

    app.add_middleware(Gate, settings=settings, meter=meter)
    return app


def _owner(request: Request) -> str:
    return str(request.scope["asker"].owner)


def _base(request: Request) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/")


def _without(job: Job) -> str:
    """Why a job has no result to fetch."""
    if job.state == "failed":
        return f"the job failed: {job.error}"
    if job.state == "cancelled":
        return "the job was cancelled, so it has no result"
    return f"the job is {job.state}; its result is there once it is done"


def _room(desk: Desk) -> None:
    """Raises QueueFull before a body of gigabytes is read for nothing; `submit` decides."""
    if desk.limits.max_queue and desk.counts().queued >= desk.limits.max_queue:
        raise QueueFull(f"{desk.limits.max_queue} jobs are waiting, which is as many as this service keeps; try again later")


def _idempotency_key(request: Request, asker: Asker, settings: Settings) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise UsageError("the Idempotency-Key is 1 to 150 visible characters without spaces, such as a UUID")
    return key if settings.keys is not None or settings.alone else f"{asker.name} {key}"  # strangers do not share keys


def _kind(name: str) -> str:
    """What the desk calls the file of a form's field. Raises UsageError."""
    found = _FILE_FIELD.fullmatch(name)
    if not found:
        raise UsageError(f"'{name[:60]}' is no file of a job; send video, audio, and audio_2, audio_3, ... for segments")
    return name.replace("_", "-")


async def _receive(request: Request, draft: Draft, desk: Desk, settings: Settings) -> tuple[Asked, JobRequest]:
    """Read a job's body into its folder. Raises what `read_form` and `fetch` raise, UsageError, UnsupportedMedia."""
    kind = parse_options_header(request.headers.get("content-type", ""))[0]
    files: dict[str, Path] = {}
    if kind == b"multipart/form-data":
        form = await read_form(
            request,
            lambda name, upload: draft.path(upload, _kind(name)),
            check=draft.check_space,
            most=desk.limits.max_bytes,
            files=settings.files,
            patience=settings.patience,
            slowest=settings.slowest,
        )
        for name, path in form.files.items():
            if _kind(name) in files:
                raise UsageError(f"'{name}' is in the form twice")
            files[_kind(name)] = path
        asked = read_fields(form.fields)
    elif kind == b"application/json":
        asked = read_json(await read_text(request, patience=settings.patience, slowest=settings.slowest))
    else:
        raise UnsupportedMedia("a job is sent as multipart/form-data (with its files), or as application/json (with their addresses)")
    return asked, await _wanted(asked, files, draft, desk, settings)


async def _wanted(asked: Asked, files: dict[str, Path], draft: Draft, desk: Desk, settings: Settings) -> JobRequest:
    """The job, with what is named by its address fetched."""
    addresses = [u for u in (asked.video_url, asked.audio_url, *(s.audio_url for s in asked.segments or ())) if u]
    if addresses and not settings.allow_urls:
        raise AddressRefused("this service takes no addresses of files; send the files (or start it with --allow-urls)")
    if asked.webhook_url is not None:
        if settings.webhook_secret is None:
            raise AddressRefused("this service sends no webhooks: it was started without a secret to sign them with")
        await settings.keeper.check(asked.webhook_url)
    for url in addresses:
        settings.keeper.read(url)
    if len(files) + len(set(addresses)) > settings.files:
        raise UsageError(f"a job has {settings.files} files at most")
    for name, given in (("video", asked.video_url), ("audio", asked.audio_url)):
        if given and name in files:
            raise UsageError(f"{name} and {name}_url are both given; give one of them")
    if "video" not in files and not asked.video_url:
        raise UsageError("video: missing; send the video or still as the file 'video'" + (", or name it by video_url" if settings.allow_urls else ""))
    if not {"audio"} & set(files) and not asked.audio_url and not asked.segments:
        raise UsageError("audio: missing; send the sound as the file 'audio', or segments with theirs")

    spoken = [_spoken(i, s.audio, s.audio_url, files) for i, s in enumerate(asked.segments or ())]

    async def fetched(url: str, kind: str) -> Path:
        return await fetch(
            url,
            lambda name: draft.path(name, kind),
            settings.keeper,
            most=desk.limits.max_bytes,
            check=draft.check_space,
            seconds=settings.fetch_seconds,
        )

    if asked.video_url:
        files["video"] = await fetched(asked.video_url, "video")
    if asked.audio_url:
        files["audio"] = await fetched(asked.audio_url, "audio")
    from_addresses: dict[str, str] = {}
    segments = []
    for segment, kind in zip(asked.segments or (), spoken, strict=True):
        if segment.audio_url and segment.audio_url not in from_addresses:
            files[kind] = await fetched(segment.audio_url, kind)
            from_addresses[segment.audio_url] = kind
        file = files[from_addresses[segment.audio_url] if segment.audio_url else kind]
        segments.append(SegmentInput(start=segment.start, end=segment.end, audio=file.name, audio_start=segment.audio_start))
    return JobRequest(
        video=files["video"].name,
        audio=files["audio"].name if "audio" in files else None,
        model=asked.model or "",
        options=asked.options(),
        preview=asked.preview,
        face_backend=asked.face_backend,
        report=asked.report,
        segments=tuple(segments),
    )


def _spoken(index: int, name: str | None, url: str | None, files: dict[str, Path]) -> str:
    """What the desk calls the sound of a segment. Raises UsageError where it names none, two, or one that is not there."""
    if (name is None) == (url is None):
        raise UsageError(f"segments.{index}: name its sound by audio (a file of this form, such as audio_2) or by audio_url, and not by both")
    if name is None:
        return f"audio-{100 + index}"  # beyond what a form may name
    if _kind(name) not in files:
        raise UsageError(f"segments.{index}: no file '{name}' was sent")
    return _kind(name)


def _handle_errors(app: FastAPI) -> None:
    """Every error as `problems.body_of` has it."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, LatentSyncError)
        return answer(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        said = [f"{'.'.join(str(p) for p in e['loc'][1:])}: {e['msg'][:1].lower()}{e['msg'][1:]}" for e in error.errors()[:5]]
        return answer(UsageError("; ".join(said) or "the request cannot be used"))

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kinds = {404: "NotFound", 405: "MethodNotAllowed"}
        sentences = {404: "there is nothing at this address; GET /docs says what there is", 405: "this address does not take that method"}
        message = sentences.get(error.status_code, str(error.detail))
        return JSONResponse(body_of(kinds.get(error.status_code, "UsageError"), message), error.status_code, error.headers)

    async def fault(_: Request, error: Exception) -> Response:
        return JSONResponse(
            body_of("InternalError", f"unexpected {type(error).__name__}; this is a fault of the service, and its log says more"), 500
        )

    app.add_exception_handler(LatentSyncError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, fault)


_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key with the same content gives the same job instead of a second one; with other content it is refused.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 150, "pattern": "^[!-~]+$"},
}


_RANGES: dict[int | str, dict[str, Any]] = {206: {"description": "A part of it."}, 416: {"description": "No such part."}}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Ends when the job is final.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


def _file(kind: str, description: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": {kind: {"schema": {"type": "string", "format": "binary"}}}}}


def _text(rest: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    return rest | {200: {"description": "Prometheus text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}}


def _request_body(settings: Settings) -> dict[str, Any]:
    """How a job is sent, for the OpenAPI document: as a form with files, and where addresses are taken as JSON."""
    asked = Asked.model_json_schema(ref_template="#/components/schemas/{model}")
    segment = asked.pop("$defs")["Segment"]
    fields = {**asked["properties"], "segments": {**asked["properties"]["segments"]}}
    for branch in fields["segments"].get("anyOf", ()):
        if branch.get("type") == "array":
            branch["items"] = segment
    binary = {"type": "string", "format": "binary", "minLength": 1}
    form = {
        "type": "object",
        "additionalProperties": False,
        "required": ["video"] if not settings.allow_urls else [],
        "properties": {
            "video": binary | {"description": "The video of the speaking person, or a still."},
            "audio": binary | {"description": "What to say: any audio file, or a video with sound."},
            "audio_2": binary | {"description": "Further sounds, for segments: audio_2, audio_3, ..."},
            **{k: v for k, v in fields.items() if settings.allow_urls or k not in ("video_url", "audio_url")},
        },
    }
    content = {"multipart/form-data": {"schema": form, "encoding": {"segments": {"contentType": "application/json"}}}}
    if settings.allow_urls:
        content["application/json"] = {"schema": {**asked, "properties": fields}}
    return {"required": True, "content": content}
