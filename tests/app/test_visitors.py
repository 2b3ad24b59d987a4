"""The door: whose request it is, whose files are whose, what is shut, and how much may come in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from latentsync.app.gate import TRIES, Gate
from latentsync.app.visitors import COOKIE, Door, Uploads, owner
from latentsync.errors import InputError

ANN, BOB = "a" * 43, "b" * 43


def cookies(value: str, name: str = COOKIE) -> dict[str, str]:
    return {"cookie": f"{name}={value}"}


class Behind:
    """What stands behind the door: takes an upload as Gradio does, and notes what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        answer = b"[]"
        if scope["path"] == "/gradio_api/upload":
            body, more = b"", True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError("the visitor left")
                body += message.get("body", b"")
                more = message.get("more_body", False)
            file = self.folder / f"{len(self.asked)}.wav"
            file.write_bytes(body)
            answer = json.dumps([str(file)]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})


def ask(door: Any, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, pieces: tuple[bytes, ...] = (b"",), **more: Any) -> Any:
    """(status, headers, body) of one request."""
    sent: list[dict[str, Any]] = []
    coming = [{"type": "http.request", "body": piece, "more_body": i + 1 < len(pieces)} for i, piece in enumerate(pieces)]

    async def receive() -> dict[str, Any]:
        return coming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    given = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": given, "client": ("1.2.3.4", 5), "scheme": "http", **more}
    with contextlib.suppress(ConnectionError):  # as a server takes it
        asyncio.run(door(scope, receive, send))
    start = next(m for m in sent if m["type"] == "http.response.start")
    body = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
    return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, body


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads")


@pytest.fixture
def behind(uploads: Uploads) -> Behind:
    return Behind(uploads.folder)


def test_a_browser_gets_a_cookie_once_and_its_digest_is_its_name(uploads, behind):
    door = Door(behind, uploads)
    _, headers, _ = ask(door, "/")
    said = headers["set-cookie"]
    assert all(word in said for word in ("HttpOnly", "SameSite=Lax", "Path=/"))
    assert "Secure" not in said
    value = said.split("=", 1)[1].split(";")[0]
    who = owner(f"x=1; {COOKIE}={value}")
    assert who.startswith("visitor-")
    assert value not in who
    assert "set-cookie" not in ask(door, "/", headers=cookies(value))[1]
    assert "Secure" in ask(door, "/", scheme="https")[1]["set-cookie"]
    assert {owner(None), owner(""), owner(f"{COOKIE}=short"), owner(f"{COOKIE}={'é' * 43}"), owner("=;=,\x00")} == {""}


def test_every_answer_keeps_the_browser_here(uploads, behind):
    _, headers, _ = ask(Door(behind, uploads), "/")
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_an_upload_is_open_to_its_visitor_only(uploads, behind):
    door = Door(behind, uploads)
    status, _, body = ask(door, "/gradio_api/upload", method="POST", headers=cookies(ANN), pieces=(b"abc", b"def"))
    assert status == 200
    file = Path(json.loads(body)[0])
    assert file.read_bytes() == b"abcdef"
    assert ask(door, f"/gradio_api/file={file}", headers=cookies(ANN))[0] == 200
    detour = f"{file.parent}/../{file.parent.name}/{file.name}"
    for path, who in (
        (f"{file}", BOB),
        (f"{file}", ""),
        ("/etc/passwd", ANN),
        ("http://example.com/x", ANN),
        (f"{file.parent}/other.wav", ANN),
        (detour, BOB),
    ):
        assert ask(door, f"/gradio_api/file={path}", headers=cookies(who) if who else {})[0] == 404, path
    assert uploads.path(owner(f"{COOKIE}={ANN}"), {"path": str(file)}, "sound") == file
    with pytest.raises(InputError, match="no longer here"):
        uploads.path(owner(f"{COOKIE}={BOB}"), {"path": str(file)}, "sound")
    with pytest.raises(InputError, match="no sound yet"):
        uploads.path(owner(f"{COOKIE}={ANN}"), None, "sound")


def test_both_who_sent_the_same_file_keep_it_until_neither_does(tmp_path):
    uploads = Uploads(tmp_path / "u", most=1)
    same, other = uploads.folder / "same", uploads.folder / "other"
    for file in (same, other):
        file.write_text("x")
    uploads.add("ann", [same])
    uploads.add("bob", [same])
    uploads.add("ann", [other])  # one is all that a visitor keeps
    assert (uploads.has("ann", same), uploads.has("bob", same)) == (False, True)
    assert same.exists()
    uploads.add("bob", [other])
    assert not same.exists()


def test_what_nobody_uses_is_swept(tmp_path):
    uploads = Uploads(tmp_path / "u", keep=0.05)
    mine, broken, sample = (uploads.folder / name for name in ("mine", "broken off", "sample.mp4"))
    for file in (mine, broken):
        file.write_text("x")
    (tmp_path / "sample.mp4").write_text("x")
    sample = uploads.publish(tmp_path / "sample.mp4")
    uploads.add("ann", [mine])
    for file in (broken, sample):
        os.utime(file, (time.time() - 9, time.time() - 9))
    uploads.sweep()
    assert (mine.exists(), broken.exists(), sample.exists()) == (True, False, True)
    time.sleep(0.1)
    uploads.sweep()
    assert (mine.exists(), sample.exists()) == (False, True)


def test_too_much_is_refused_whatever_it_says_of_itself(uploads, behind):
    door = Door(behind, uploads, max_bytes=1000)
    headers = {**cookies(ANN), "content-length": str(1 << 22)}
    status, _, body = ask(door, "/gradio_api/upload", method="POST", headers=headers)
    assert (status, behind.asked) == (413, [])
    assert b"too large" in body
    lie = {**cookies(ANN), "content-length": "10"}
    assert ask(door, "/gradio_api/upload", method="POST", headers=lie, pieces=(bytes(1 << 20),) * 3)[0] == 413
    assert list(uploads.folder.iterdir()) == []


def test_a_full_disk_and_a_browser_without_cookies_are_told(uploads, behind):
    assert ask(Door(behind, uploads, min_free_bytes=1 << 60), "/gradio_api/upload", method="POST", headers=cookies(ANN))[0] == 507
    status, _, body = ask(Door(behind, uploads), "/gradio_api/upload", method="POST")
    assert status == 403
    assert b"cookies" in body
    assert behind.asked == []


def test_other_names_do_not_lead_here(uploads, behind):
    door = Door(behind, uploads, hosts=("localhost", "127.0.0.1", "[::1]", "lips.example"))
    answers = {
        host: ask(door, "/", headers={"host": host})[0] for host in ("localhost:7860", "127.0.0.1", "[::1]:7860", "LIPS.example", "evil.example", "")
    }
    assert answers == {"localhost:7860": 200, "127.0.0.1": 200, "[::1]:7860": 200, "LIPS.example": 200, "evil.example": 403, "": 403}


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://10.0.0.1/",
        "/gradio_api/file=http://10.0.0.1/",
        "/monitoring/x",
        "/gradio_api/mcp/",
        "/gradio_api/openapi.json",
        "/gradio_api/component_server",
        "/docs",
        "/proxy=x",
        "/file=/etc/passwd",
        "/gradio_api/runs",
        "/gradio_api/deep_link",
    ],
)
def test_routes_that_the_page_does_not_need_are_shut(uploads, behind, path):
    assert ask(Door(behind, uploads), path, headers=cookies(ANN))[0] == 404
    assert behind.asked == []


def test_the_password_is_asked_for_before_anything_else(uploads, behind):
    gate = Gate("open sesame é")
    door = Door(behind, uploads, gate=gate)
    for path in ("/", "/gradio_api/upload", "/job/x/result", "/config"):
        assert ask(door, path, headers=cookies(ANN))[0] == 401, path
    assert b"type='password'" in ask(door, "/")[2]
    wrong = ask(door, "/enter", method="POST", pieces=(b"password=open+sesam",))
    assert wrong[0] == 401
    assert b"not the password" in wrong[2]
    right = ask(door, "/enter", method="POST", pieces=(b"password=open+ses", b"ame+%C3%A9"))
    assert right[0] == 303
    assert "HttpOnly" in right[1]["set-cookie"]
    entry = right[1]["set-cookie"].split("=", 1)[1].split(";")[0]
    assert ask(door, "/", headers=cookies(entry, Gate.COOKIE))[0] == 200
    assert ask(door, "/", headers=cookies(entry + "x", Gate.COOKIE))[0] == 401
    for _ in range(TRIES):
        ask(door, "/enter", method="POST", pieces=(b"password=guess",))
    assert ask(door, "/enter", method="POST", pieces=(b"password=open+sesame+%C3%A9",))[0] == 429
    assert ask(door, "/enter", method="POST", pieces=(b"password=open+sesame+%C3%A9",), client=("9.9.9.9", 1))[0] == 303
    assert ask(door, "/enter", method="POST", pieces=(b"password=" + b"x" * 9000,), client=("9.9.9.9", 1))[0] == 401
