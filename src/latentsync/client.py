"""A client of the HTTP service (`latentsync serve`), with the errors of this package: what fails there is raised here as the same class.

with Client("http://localhost:8000", key="...") as client:
    client.sync("speaker.mp4", "speech.wav", "out.mp4", steps=20)

Files are streamed in both directions. A connection that breaks is tried again; a job is never made twice by that.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import httpx

from latentsync import __version__, errors
from latentsync.errors import InputError, LatentSyncError, OutputError, UsageError
from latentsync.whole import whole

State = Literal["queued", "running", "done", "failed", "cancelled"]
FINAL = ("done", "failed", "cancelled")
POLL = 1.0  # seconds between two looks at a job
TRIES = 6  # in a row without an answer
_AGAIN = (429, 502, 503, 504)


class ServiceError(LatentSyncError):
    """The service answered with an error that has no class here, or with what is no answer of it."""

    def __init__(self, message: str, *, status: int = 0, kind: str = "") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class UnreachableError(LatentSyncError):
    """The service did not answer."""


class CancelledError(LatentSyncError):
    """The job was cancelled, so it has no result."""


@dataclass(frozen=True)
class Segment:
    """From `start` to `end`, seconds of the result, the sound of `audio` (a file, or an address) is spoken, from its second `audio_start` on."""

    start: float
    end: float
    audio: str | Path
    audio_start: float = 0.0


@dataclass(frozen=True)
class RemoteJob:
    """A job as the service last described it. `plain` is all that it said."""

    id: str
    state: State
    position: int | None  # in the queue, from 1
    done: int  # frames
    total: int | None
    seconds: float  # worked on it
    seconds_left: float | None
    message: str
    error: str  # a sentence, of a failed one
    error_kind: str
    result: dict[str, Any]
    plain: dict[str, Any] = field(repr=False)

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINAL

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> RemoteJob:
        """From what the service answers. Raises ServiceError for what is no job."""
        try:
            progress, error = plain["progress"], plain["error"] or {"kind": "", "message": ""}
            return cls(
                id=plain["id"],
                state=plain["state"],
                position=plain["position"],
                done=progress["frames_done"],
                total=progress["frames_total"],
                seconds=progress["seconds"],
                seconds_left=progress["seconds_left"],
                message=plain["message"],
                error=error["message"],
                error_kind=error["kind"],
                result=plain["result"] or {},
                plain=dict(plain),
            )
        except (KeyError, TypeError) as e:
            raise ServiceError(f"the answer is not a job as this client knows it ({e!r}); is the address that of `latentsync serve`?") from e

    def check(self) -> RemoteJob:
        """Itself, where it did not fail. Raises what it failed with, or CancelledError."""
        if self.state == "failed":
            raise _error(self.error_kind, self.error, 0)
        if self.state == "cancelled":
            raise CancelledError(f"job {self.id} was cancelled")
        return self


class Client:
    """One service. Safe to use from several threads."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """key: by default LATENTSYNC_API_KEY of the environment. timeout: seconds of silence before a connection counts as broken."""
        key = key or os.environ.get("LATENTSYNC_API_KEY")
        headers = {"User-Agent": f"latentsync-client/{__version__}", **({"Authorization": f"Bearer {key}"} if key else {})}
        try:
            self._http = httpx.Client(
                base_url=url.rstrip("/"), headers=headers, timeout=httpx.Timeout(timeout, connect=10.0), transport=transport, follow_redirects=False
            )
        except (httpx.InvalidURL, UnicodeError) as e:
            raise UsageError(f"'{url}' is not the address of a service: {e}") from e

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    # The whole way.

    def sync(
        self,
        video: str | Path,
        audio: str | Path | None,
        out: str | Path,
        *,
        overwrite: bool = False,
        progress: Callable[[RemoteJob], None] | None = None,
        keep: bool = False,
        **settings: Any,
    ) -> RemoteJob:
        """Have `video` speak `audio`, and write the result to `out`, whole or not at all. `settings` are those of `submit`.

        progress: called at every change. keep: leave the job with the service until it expires, instead of deleting it. Stopped before its end (by
        Ctrl-C, for one), the job is cancelled. Raises what the job failed with.
        """
        target = Path(out)
        if target.exists() and not overwrite:
            raise OutputError(f"{target} exists; pass overwrite=True to replace it, or name another file")
        job = self.submit(video, audio, **settings)
        try:
            job = self.wait(job.id, progress=progress).check()
            self.result(job.id, target, overwrite=overwrite)
        except BaseException:
            with contextlib.suppress(LatentSyncError):
                self.cancel(job.id)
            raise
        if not keep:
            with contextlib.suppress(LatentSyncError):
                self.delete(job.id)
        return job

    # Step by step.

    def submit(
        self,
        video: str | Path,
        audio: str | Path | None = None,
        *,
        segments: Sequence[Segment] = (),
        idempotency_key: str | None = None,
        **settings: Any,
    ) -> RemoteJob:
        """Ask for a job. Files are sent; texts that begin with http:// or https:// are addresses, which the service fetches where it may.

        settings: `model`, `preview`, `face_backend`, `report`, `webhook_url`, and the options of a job by their names. idempotency_key: the same key
        with the same content gives the same job; by default a new one. Raises InputError for a file that cannot be read, or what the service answers.
        """
        fields = {name: value for name, value in settings.items() if value is not None}
        files: dict[str, Path] = {}
        for name, source in (("video", video), ("audio", audio)):
            if source is not None:
                _put(fields, files, name, source)
        spoken: list[dict[str, Any]] = []
        for number, segment in enumerate(segments, 2):
            entry: dict[str, Any] = {"start": segment.start, "end": segment.end, "audio_start": segment.audio_start}
            if _is_address(segment.audio):
                entry["audio_url"] = str(segment.audio)
            else:
                entry["audio"] = f"audio_{number}"
                files[entry["audio"]] = Path(segment.audio)
            spoken.append(entry)
        if spoken:
            fields["segments"] = spoken
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        fields = {name: _simple(name, value) for name, value in fields.items()}
        if not files:
            return RemoteJob.read(self._json("POST", "/v1/jobs", json=fields, headers=headers))
        with ExitStack() as stack:
            opened: dict[str, tuple[str, IO[bytes]]] = {}
            for name, path in files.items():
                try:
                    opened[name] = (path.name, stack.enter_context(open(path, "rb")))
                except OSError as e:
                    raise InputError(f"cannot read {path}: {e.strerror or e}") from e

            def again() -> None:
                for _, file in opened.values():
                    file.seek(0)

            return RemoteJob.read(self._json("POST", "/v1/jobs", data=_form(fields), files=opened, headers=headers, before=again))

    def status(self, id: str) -> RemoteJob:
        """How far a job is."""
        return RemoteJob.read(self._json("GET", f"/v1/jobs/{id}"))

    def jobs(self, *, limit: int = 50, before: str | None = None) -> list[RemoteJob]:
        """Jobs of this key, newest first; `before` goes on with those older than that one."""
        found = self._json("GET", "/v1/jobs", params={"limit": limit, **({"before": before} if before else {})})
        return [RemoteJob.read(job) for job in found["jobs"]]

    def wait(self, id: str, *, timeout: float | None = None, progress: Callable[[RemoteJob], None] | None = None) -> RemoteJob:
        """The job once it is final, or as it is after `timeout` seconds. `progress` is called at every change."""
        until = None if timeout is None else time.monotonic() + timeout
        last: RemoteJob | None = None
        while True:
            job = self.status(id)
            if progress is not None and job != last:
                progress(job)
            last = job
            left = POLL if until is None else min(POLL, until - time.monotonic())
            if job.final or left <= 0:
                return job
            time.sleep(left)

    def events(self, id: str) -> Iterator[RemoteJob]:
        """The job now and at each change, as the service tells of them, until it is final. A stream that breaks off is taken up again."""
        while True:
            seen: RemoteJob | None = None
            with contextlib.suppress(httpx.TransportError), self._http.stream("GET", f"/v1/jobs/{id}/events") as response:
                if response.status_code != 200:
                    response.read()
                    self._refuse(response)
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        seen = RemoteJob.read(json.loads(line[5:]))
                        yield seen
            if seen is not None and seen.final:
                return
            time.sleep(POLL)
            seen = self.status(id)  # raises where the service is gone, or the job
            if seen.final:
                yield seen
                return

    def result(self, id: str, out: str | Path, *, overwrite: bool = False) -> Path:
        """Fetch the result into `out`, whole or not at all. A connection that breaks goes on where it broke."""
        target = Path(out)
        if target.exists() and not overwrite:
            raise OutputError(f"{target} exists; pass overwrite=True to replace it, or name another file")
        with whole(target) as scratch, open(scratch, "wb") as f:
            self._fetch(f"/v1/jobs/{id}/result", f)
        return target

    def preview(self, id: str) -> bytes:
        """The newest frame of the result, a JPEG."""
        return self._ask("GET", f"/v1/jobs/{id}/preview").content

    def cancel(self, id: str) -> None:
        """Stop a job that waits or runs. One that is final stays."""
        self._ask("POST", f"/v1/jobs/{id}/cancel")

    def delete(self, id: str) -> None:
        """Delete a final job with its files. Raises UsageError for one that waits or runs: cancel it first."""
        if not self.status(id).final:
            raise UsageError(f"job {id} is not final; cancel it first")
        self._ask("DELETE", f"/v1/jobs/{id}")

    def models(self) -> list[dict[str, Any]]:
        """Models that a job may name: `name`, `installed`, `note`. The first is what is used where none is named."""
        return list(self._json("GET", "/v1/models")["models"])

    # What they share.

    def _json(self, method: str, path: str, *, before: Callable[[], None] | None = None, **request: Any) -> dict[str, Any]:
        response = self._ask(method, path, before=before, **request)
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ServiceError(f"{self._http.base_url} does not answer as `latentsync serve` does; look at the address", status=response.status_code)
        return found

    def _ask(self, method: str, path: str, *, before: Callable[[], None] | None = None, **request: Any) -> httpx.Response:
        """An answer that is no error. Tried again where that can help. Raises the error that was answered, or UnreachableError."""
        for attempt in range(1, TRIES + 1):
            if before is not None:
                before()
            try:
                response = self._http.request(method, path, **request)
            except httpx.TransportError as e:
                if attempt == TRIES or (attempt >= 3 and not isinstance(e, httpx.ConnectError)):
                    raise UnreachableError(f"{self._http.base_url} does not answer ({type(e).__name__}: {e}); is `latentsync serve` running?") from e
                time.sleep(_pause(attempt))
                continue
            if response.is_success:
                return response
            if response.status_code in _AGAIN and attempt < TRIES:
                time.sleep(_pause(attempt, response.headers.get("Retry-After")))
                continue
            self._refuse(response)
        raise AssertionError("the last attempt returns or raises")

    def _refuse(self, response: httpx.Response) -> None:
        try:
            said = response.json()["error"]
            kind, message = str(said["kind"]), str(said["message"])
        except (ValueError, KeyError, TypeError):
            raise ServiceError(f"{response.request.url} answers {response.status_code}", status=response.status_code) from None
        raise _error(kind, message, response.status_code)

    def _fetch(self, path: str, f: IO[bytes]) -> None:
        failures, tag = 0, ""
        while True:
            start = f.tell()
            headers = {"Range": f"bytes={start}-", "If-Range": tag} if start and tag else {}
            try:
                with self._http.stream("GET", path, headers=headers) as response:
                    if response.status_code not in (200, 206):
                        response.read()
                        self._refuse(response)
                    if response.status_code == 200:
                        f.seek(0)
                        f.truncate()
                    tag = response.headers.get("ETag", "")
                    for block in response.iter_raw():
                        f.write(block)
                return
            except httpx.TransportError as e:
                failures = 1 if f.tell() > start else failures + 1
                if failures >= TRIES:
                    raise UnreachableError(f"{self._http.base_url} broke off while sending the result ({type(e).__name__}: {e})") from e
                time.sleep(_pause(failures))


def _is_address(source: str | Path) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def _put(fields: dict[str, Any], files: dict[str, Path], name: str, source: str | Path) -> None:
    if _is_address(source):
        fields[f"{name}_url"] = source
    else:
        files[name] = Path(source)


def _simple(name: str, value: Any) -> Any:
    """A value as JSON holds it: a face's (x, y) as 'x,y', a fraction as it is written."""
    if name == "face" and isinstance(value, list | tuple):
        return ",".join(str(v) for v in value)
    return value if isinstance(value, bool | int | float | list | tuple | dict) else str(value)


def _form(fields: Mapping[str, Any]) -> dict[str, str]:
    """Values as the fields of a form: texts as they are, the rest as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


def _pause(attempt: int, after: str | None = None) -> float:
    """Seconds before the next attempt: as long as the service asks, else growing; spread, so that many do not come back at once."""
    wait = float(after) if after is not None and after.isdecimal() else min(15.0, 0.5 * 2 ** (attempt - 1))
    return min(wait, 60.0) * random.uniform(1.0, 1.25)


def _error(kind: str, message: str, status: int) -> LatentSyncError:
    """The error of that class, where it is one of this package's own."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, LatentSyncError):
        return found(message)
    for known in (UnreachableError, CancelledError):
        if known.__name__ == kind:
            return known(message)
    if status in (404, 409, 415, 422):
        return UsageError(message)
    return ServiceError(message, status=status, kind=kind)
