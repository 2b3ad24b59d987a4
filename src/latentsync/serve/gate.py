"""What every request passes first: is its host ours, who asks, and does he ask too often. And what every answer carries."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentsync.errors import LatentSyncError
from latentsync.serve.metrics import Meter
from latentsync.serve.problems import Denied, Forbidden, TooOften, answer
from latentsync.serve.rate import Buckets, visitor
from latentsync.serve.settings import Settings

LIVE = "/healthz"  # asked every few seconds by what watches over the service: always answered
OPEN = (LIVE, "/readyz", "/", "/docs", "/openapi.json")  # need no key


@dataclass(frozen=True)
class Asker:
    """Who asks. `owner`: whose jobs he sees; `name`: under which his requests are counted."""

    owner: str
    name: str


class Gate:
    """ASGI middleware. Puts the `Asker` into the request's scope."""

    def __init__(self, app: ASGIApp, settings: Settings, meter: Meter) -> None:
        self._app, self._settings, self._meter = app, settings, meter
        self._buckets = Buckets(settings.rate, settings.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "private, no-store")
                headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
                headers.setdefault("Referrer-Policy", "no-referrer")
                if status >= 400 and scope["method"] not in ("GET", "HEAD"):
                    headers["Connection"] = "close"  # the rest of its body is not read
            await send(message)

        try:
            try:
                scope["asker"] = self._admit(scope)
            except LatentSyncError as e:
                await answer(e)(scope, receive, answered)
                return
            await self._app(scope, receive, answered)
        finally:
            self._meter.asked(scope, status, time.perf_counter() - began)

    def _admit(self, scope: Scope) -> Asker:
        """Who asks. Raises Forbidden, Denied, TooOften."""
        settings, headers, path = self._settings, Headers(scope=scope), _below(scope)
        host = _bare(headers.get("host", ""))
        if path == LIVE:
            return Asker("", "")
        if settings.hosts is not None and host not in settings.hosts:
            raise Forbidden(f"this service does not answer to the name {host[:80]!r}; ask for it by {settings.hosts[0]}, or start it with --name")
        address = visitor((scope.get("client") or ("",))[0])
        if path in OPEN:
            self._count(address)
            return Asker("", address)
        if settings.keys is None:
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
                raise Forbidden("a web page of another origin asks; without keys this service takes requests from programs only")
            self._count(address)
            return Asker("", address)
        owner = settings.keys.owner(_key(headers))
        if owner is None:
            self._count(address)
            raise Denied("no key, or one that is not known; send it as 'Authorization: Bearer KEY'")
        self._count(f"key {owner}")
        return Asker(owner, f"key {owner}")

    def _count(self, name: str) -> None:
        wait = self._buckets.take(name)
        if wait:
            raise TooOften(f"too many requests: {self._settings.rate:g} a second are taken; the next one in {wait:.2f} s", wait)


def _below(scope: Scope) -> str:
    """The path of a request, without that below which a proxy offers the service."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def _key(headers: Headers) -> str:
    """The key of a request, or an empty text."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _bare(host: str) -> str:
    """A host without its port: of localhost:8000 and [::1]:8000."""
    host = host.strip().lower()
    return host[: host.rfind("]") + 1] if host.startswith("[") else host.partition(":")[0]


class Places:
    """How many of something each asker has at the same time."""

    def __init__(self, most: int, each: int, what: str) -> None:
        self._most, self._each, self._what = most, each, what
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Take a place for as long as the block lasts. Raises TooOften where there is none."""
        if self._held.total() >= self._most or self._held[name] >= self._each:
            raise TooOften(f"too many {self._what} at the same time; try again when one has ended", 5.0)
        self._held[name] += 1
        try:
            yield
        finally:
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]
