"""A job's changes as they happen: server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from latentsync.errors import LatentSyncError
from latentsync.jobs import Job

EVERY = 0.3  # seconds between two looks at a job
BREATH = 15.0  # seconds after which a comment is sent, so that nobody between takes the connection for dead
AGAIN = 2000  # milliseconds before a browser connects again


class Response(StreamingResponse):
    """A stream of events, which holds `place` for as long as it lasts."""

    def __init__(self, content: AsyncIterator[bytes], place: AbstractContextManager[None]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


async def stream(first: Job, look: Callable[[], Job], tell: Callable[[Job], str], stopping: asyncio.Event) -> AsyncIterator[bytes]:
    """An event `job` at once and at each change, with the job's version as its id, until the job is final, is deleted, or the service stops."""
    yield f"retry: {AGAIN}\n\n".encode()
    job, quiet = first, 0.0
    yield event("job", tell(job), job.version)
    while not job.final and not stopping.is_set():
        try:
            await asyncio.wait_for(stopping.wait(), EVERY)
            return
        except asyncio.TimeoutError:
            pass
        quiet += EVERY
        try:
            seen = await asyncio.to_thread(look)
        except LatentSyncError:  # deleted
            return
        if (seen.version, seen.position) != (job.version, job.position):
            job, quiet = seen, 0.0
            yield event("job", tell(job), job.version)
        elif quiet >= BREATH:
            quiet = 0.0
            yield b": still here\n\n"


def event(kind: str, data: str, number: int) -> bytes:
    """One event. Data is one line, as JSON is."""
    return f"event: {kind}\nid: {number}\ndata: {data}\n\n".encode()
