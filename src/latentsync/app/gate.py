"""A password in front of the page: one form, asked once for each browser and run."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from latentsync import page

TRIES, WITHIN = 10, 60.0  # wrong passwords from one address, seconds
FORM = 4096  # bytes that a password form may have


class Gate:
    """Asks for the password, as an ASGI application; `open_to` says who gave it."""

    COOKIE = "latentsync_entry"

    def __init__(self, password: str) -> None:
        self._digest = hashlib.sha256(password.encode()).digest()
        self._entered: set[str] = set()
        self._wrong: dict[str, list[float]] = {}

    def open_to(self, entry: str) -> bool:
        """Whether that cookie was given for the password."""
        return bool(entry) and hashlib.sha256(entry.encode()).hexdigest() in self._entered

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """The form, or the answer to it. Everything but the page itself is refused without one."""
        address = (scope.get("client") or ("",))[0]
        if scope["method"] == "POST" and scope["path"] == "/enter":
            if self._tired_of(address):
                await _answer(send, 429, form("Too many wrong passwords. Wait a minute, then try again."), [(b"retry-after", b"60")])
                return
            given = parse_qs((await _body(receive)).decode("utf-8", "replace")).get("password", [""])[0]
            if hmac.compare_digest(hashlib.sha256(given.encode()).digest(), self._digest):
                entry = secrets.token_urlsafe(32)
                self._entered.add(hashlib.sha256(entry.encode()).hexdigest())
                self._wrong.pop(address, None)
                said = f"{self.COOKIE}={entry}; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if scope.get("scheme") == "https" else "")
                await _answer(send, 303, "", [(b"location", b"./"), (b"set-cookie", said.encode())])
                return
            self._wrong.setdefault(address, []).append(time.monotonic())
            await _answer(send, 401, form("That is not the password. Try again."))
        elif scope["path"] in ("/", "/enter"):
            await _answer(send, 401, form())
        else:
            await _answer(send, 401, "the password is asked for first: load the page again")

    def _tired_of(self, address: str) -> bool:
        now = time.monotonic()
        for other, times in list(self._wrong.items()):
            self._wrong[other] = [t for t in times if now - t < WITHIN]
            if not self._wrong[other]:
                del self._wrong[other]
        return len(self._wrong.get(address, ())) >= TRIES


def form(sentence: str = "") -> str:
    """The page that asks."""
    alert = f"<p role='alert' class='wrong'>{page.escape(sentence)}</p>" if sentence else ""
    body = (
        "<form method='post' action='enter'><h1>LatentSync</h1><p>This page has a password.</p>"
        "<label for='password'>Password</label>"
        "<input id='password' name='password' type='password' autocomplete='current-password' autofocus required>"
        f"{alert}<button>Enter</button></form>"
    )
    return page.document("LatentSync", body, style=STYLE)


async def _body(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > FORM or message["type"] == "http.disconnect":
            return b""
        if not message.get("more_body"):
            return body


async def _answer(
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]], status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = text.encode()
    kind = b"text/html; charset=utf-8" if text.startswith("<") else b"text/plain; charset=utf-8"
    said = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": said})
    await send({"type": "http.response.body", "body": body})


STYLE = """
form{max-width:320px;margin:14vh auto 0}label{display:block;font-weight:600;margin-top:18px}
input,button{box-sizing:border-box;width:100%;font:inherit;padding:10px 12px;border-radius:8px;border:1px solid var(--line);margin-top:6px}
input{background:var(--paper);color:var(--ink)}button{background:var(--bar);color:#fff;border:0;font-weight:600;margin-top:14px;cursor:pointer}
input:focus-visible,button:focus-visible{outline:2px solid var(--bar);outline-offset:2px}.wrong{color:var(--mark);margin-top:8px}
"""
