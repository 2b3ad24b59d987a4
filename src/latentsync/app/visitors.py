"""Who is who, and which files are whose. A browser gets a random cookie; jobs belong to its digest, and so do the files it uploads.

`Door` stands in front of everything that the page serves: it hands out the cookie, lets nobody fetch what somebody else uploaded, keeps uploads
within their limits, and forbids the page to ask any other host for anything.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.requests import ClientDisconnect

from latentsync.app.gate import Gate
from latentsync.errors import InputError

COOKIE = "latentsync_visitor"
COOKIE_SECONDS = 30 * 24 * 3600
MOST_UPLOADS = 12  # of one visitor; the oldest goes when another comes
STRAY = 600.0  # seconds after which an upload that does not grow has broken off
FORM = 1 << 20  # bytes that a form may hold beside its file
API = "/gradio_api/"
FILE = API + "file="
# What the page itself asks for. The rest of Gradio's routes fetch addresses, record, monitor or describe the page to programs.
ROUTES = re.compile(
    r"/(?:$|assets/|static/|favicon\.ico$|theme\.css$|config/?$|login_check/?$|robots\.txt$|manifest\.json$|job/|enter$"
    r"|gradio_api/(?:file=|upload$|upload_progress$|queue/|run/|call/|heartbeat/|startup-events$|info/?$|app_id/?$|cancel$|reset/?$"
    r"|theme\.css$|login_check/?$|token/?$))"
)
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)  # Gradio writes its templates with eval; no other host is named anywhere
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(self)",
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def owner(cookies: str | None) -> str:
    """Whose request that is, from its cookie header; '' without a cookie of ours. A digest: the records of jobs hold nothing that opens them."""
    value = cookie(cookies, COOKIE)
    if not re.fullmatch(r"[\w-]{43}", value, re.ASCII):
        return ""
    return "visitor-" + hashlib.sha256(value.encode()).hexdigest()[:32]


def cookie(cookies: str | None, name: str) -> str:
    """One value of a cookie header; '' where it is not there."""
    try:
        found = SimpleCookie(cookies or "").get(name)
    except CookieError:
        return ""
    return found.value if found else ""


class Uploads:
    """The files that visitors uploaded and have not yet used up, in a private folder of this run. A file is open to those who uploaded it, only."""

    def __init__(self, folder: Path, *, keep: float = 6 * 3600.0, most: int = MOST_UPLOADS) -> None:
        """keep: seconds that an upload lies unused before it is deleted."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self._keep, self._most = keep, most
        self._held: dict[Path, dict[str, float]] = {}  # file -> visitor -> when last used
        self._public: set[Path] = set()
        self._lock = threading.Lock()

    def add(self, visitor: str, paths: Iterable[str | Path]) -> None:
        """These files were uploaded by that visitor."""
        with self._lock:
            for path in paths:
                self._held.setdefault(Path(path).resolve(), {})[visitor] = time.monotonic()
            own = sorted((held[visitor], path) for path, held in self._held.items() if visitor in held)
            for _, path in own[: max(0, len(own) - self._most)]:
                self._let_go(path, visitor)

    def publish(self, path: Path) -> Path:
        """A copy of a file that everybody may see: a sample."""
        to = self.folder / "sample" / path.name
        to.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(path, to)
        self._public.add(to)
        return to

    def has(self, visitor: str, path: str | Path) -> bool:
        """Whether the visitor may see that file."""
        found = Path(path).resolve()
        with self._lock:
            held = self._held.get(found, {})
            if visitor and visitor in held:
                held[visitor] = time.monotonic()
                return True
            return found in self._public

    def path(self, visitor: str, value: Any, what: str) -> Path:
        """The file that a field of the page names. Raises InputError where there is none, or it is not this visitor's."""
        said = value.get("path") if isinstance(value, dict) else value
        if not said:
            raise InputError(f"there is no {what} yet; add one first")
        if not self.has(visitor, said) or not Path(said).is_file():
            raise InputError(f"the {what} is no longer here, because it lay unused for long; add it again")
        return Path(said).resolve()

    def sweep(self) -> None:
        """Delete what nobody used for long, and what no visitor holds: the rest of an upload that broke off."""
        now = time.monotonic()
        with self._lock:
            for path, held in list(self._held.items()):
                for visitor, used in list(held.items()):
                    if now - used > self._keep:
                        self._let_go(path, visitor)
            for path in self.folder.rglob("*"):
                keep = min(STRAY, self._keep) if path.parent == self.folder else self._keep  # there they lie while they come in
                if path.is_file() and path not in self._held and path not in self._public and time.time() - path.stat().st_mtime > keep:
                    path.unlink(missing_ok=True)

    def _let_go(self, path: Path, visitor: str) -> None:
        held = self._held[path]
        del held[visitor]
        if not held:
            del self._held[path]
            path.unlink(missing_ok=True)


class Door:
    """The ASGI application in front of the page."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        uploads: Uploads,
        *,
        gate: Gate | None = None,
        max_bytes: int | None = None,
        min_free_bytes: int = 0,
        hosts: Collection[str] | None = None,
    ) -> None:
        """max_bytes: of one upload. min_free_bytes: of the disk, which uploads leave. hosts: names under which the page may be asked for, so that no
        other site can have its own name lead here; None: any."""
        self._app, self.uploads, self._gate = app, uploads, gate
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._max_bytes, self._min_free = max_bytes, min_free_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page needs no sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        cookies = headers.get("cookie")
        path = scope["path"]
        visitor = owner(cookies)
        fresh = ""
        if not visitor and path == "/" and scope["method"] in ("GET", "HEAD"):
            fresh = secrets.token_urlsafe(32)
        answer = self._dressed(send, fresh, secure=scope.get("scheme") == "https")
        if self._hosts is not None and re.sub(r":\d*$", "", headers.get("host", "")).lower() not in self._hosts:
            await _refuse(answer, 403, "this page is not asked for under that name; the one who runs it can allow it with --name")
        elif self._gate is not None and path != f"{API}startup-events" and not self._gate.open_to(cookie(cookies, Gate.COOKIE)):
            await self._gate(scope, receive, answer)
        elif not ROUTES.match(path) or (path.startswith(FILE) and not self.uploads.has(visitor, unquote(path[len(FILE) :]))):
            await _refuse(answer, 404, "there is nothing here, or it is not yours")
        elif path == f"{API}upload":
            await self._upload(scope, receive, answer, visitor, headers)
        else:
            await self._app(scope, receive, answer)

    def _dressed(self, send: Send, fresh: str, *, secure: bool) -> Send:
        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {k.lower() for k, _ in message.get("headers", [])}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in there]
                if fresh:
                    said = f"{COOKIE}={fresh}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")
                    extra.append((b"set-cookie", said.encode()))
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        return dressed

    async def _upload(self, scope: Scope, receive: Receive, send: Send, visitor: str, headers: dict[str, str]) -> None:
        """Pass an upload on, as long as it keeps within its limits, and note whose it is."""
        if not visitor:
            await _refuse(send, 403, "this page needs cookies, to know whose files are whose; allow them for this site and load it again")
            return
        said = headers.get("content-length", "")
        size = int(said) if said.isdigit() else 0
        most = None if self._max_bytes is None else self._max_bytes + FORM
        if most is not None and size > most:
            await _refuse(send, 413, self._too_large())
            return
        if shutil.disk_usage(self.uploads.folder).free - size < self._min_free:
            await _refuse(send, 507, "the disk of this server is full; try again later")
            return
        read, begun = 0, False
        body = bytearray()
        start: Message = {}

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if most is not None and read > most:
                return {"type": "http.disconnect"}  # it said less than it sent
            return message

        async def noted(message: Message) -> None:
            nonlocal start, begun
            if message["type"] == "http.response.start":
                start = message
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            begun = True
            if most is not None and read > most:
                await _refuse(send, 413, self._too_large())
                return
            if start["status"] == 200:
                self.uploads.add(visitor, json.loads(bytes(body)))
            await send(start)
            await send({"type": "http.response.body", "body": bytes(body)})

        try:
            await self._app(scope, counted, noted)
        except ClientDisconnect:  # visitors leave, and lines break
            pass
        finally:
            if not begun and most is not None and read > most:
                await _refuse(send, 413, self._too_large())

    def _too_large(self) -> str:
        return f"that file is too large; at most {(self._max_bytes or 0) / 1e6:.0f} MB are taken"


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = sentence.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
