"""Bodies that lie, dawdle, break off or attack: each ends with a sentence and leaves nothing behind."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from latentsync.jobs import Desk, Limits
from latentsync.serve.settings import Settings
from latentsync.serve.uploads import PARTS
from tests.jobs.conftest import until
from tests.serve.conftest import Service, files, folders

Live = Callable[..., tuple[str, int]]
HEAD = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    called = "" if filename is None else f'; filename="{filename}"'
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{called}\r\n\r\n'.encode() + content + b"\r\n"


def post(client: object, *parts: bytes, end: bytes = b"--b--\r\n") -> tuple[int, str]:
    answer = client.post("/v1/jobs", content=b"".join(parts) + end, headers={"Content-Type": "multipart/form-data; boundary=b"})  # type: ignore[attr-defined]
    return answer.status_code, answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "name", ["../../../../tmp/evil.mp4", "/etc/passwd", "..\\..\\evil.mp4", "a/../../b.mp4", "%2e%2e%2fevil.mp4", "nul\0.mp4", ".", "..", "x" * 5000]
)
def test_names_of_uploads_are_words_never_paths(service: Service, desk: Desk, clip: Path, name: str) -> None:
    client = service()
    before = {p for p in desk.root.parent.rglob("*") if "jobs" not in p.parts}
    sent = files(clip)
    form = [part("video", sent["video"][1], name), part("audio", sent["audio"][1], name)]
    answer = client.post("/v1/jobs", content=b"".join(form) + b"--b--\r\n", headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 202 or "header" in answer.text, answer.text
    if answer.status_code == 202:
        job = answer.json()
        assert "/" not in job["request"]["video"]
        assert "\\" not in job["request"]["video"]
        assert {p.suffix or p.name for p in (desk.root / "jobs" / job["id"]).iterdir()} <= {".mp4", "video", "audio"}
    assert {p for p in desk.root.parent.rglob("*") if "jobs" not in p.parts} == before


def test_names_of_fields_are_those_of_a_job(service: Service, desk: Desk) -> None:
    client = service()
    for name in ("video2", "../video", "audio_0", "audio_100", "result.mp4", "", "video\n"):
        status, message = post(client, part(name, b"x", "a.mp4"))
        assert (status, folders(desk)) == (422, []), name
        assert "file of a job" in message or "no name" in message or "multipart" in message


@pytest.mark.parametrize(
    ("parts", "end", "status", "says"),
    [
        ([part("video", b"x", "v.mp4")], b"", 422, "ends in the middle"),
        ([part("video", b"x", "v.mp4")[:-9]], b"", 422, "ends in the middle"),
        ([], b"", 422, "ends in the middle"),
        ([b"no form"], b"", 422, "multipart/form-data"),
        ([part("video", b"", "v.mp4")], b"--b--\r\n", 422, "is empty"),
        ([part("video", b"x", "v.mp4")] * 2, b"--b--\r\n", 422, "twice"),
        ([part("audio_2", b"x", "v"), part("audio-2", b"x", "v")], b"--b--\r\n", 422, "twice"),
        ([part("steps", b"2")] * 2, b"--b--\r\n", 422, "twice"),
        ([part("steps", b"\xff")], b"--b--\r\n", 422, "UTF-8"),
        ([b"--b\r\nX: y\r\n\r\nz\r\n"], b"--b--\r\n", 422, "no name"),
        ([b"--b\r\nX: " + b"y" * 9000 + b"\r\n\r\nz\r\n"], b"--b--\r\n", 0, "header"),
        ([part("model", b"x" * (1 << 20) + b"x")], b"--b--\r\n", 413, "fields of the form"),
        ([part(f"f{i}", b"x" * 20_000) for i in range(60)], b"--b--\r\n", 413, "fields of the form"),
        ([part(f"f{i}", b"") for i in range(PARTS + 1)], b"--b--\r\n", 413, "parts"),
        ([part(f"audio_{i}", b"x", "a.wav") for i in range(1, 30)], b"--b--\r\n", 413, "files"),
    ],
)
def test_forms_that_are_none(service: Service, desk: Desk, parts: list[bytes], end: bytes, status: int, says: str) -> None:
    found, message = post(service(), *parts, end=end)
    assert (found, says in message) == (status or found, True), message  # of long headers the parser, or we, may know first
    assert folders(desk) == []


def test_forms_without_a_boundary(service: Service) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", f"multipart/form-data; boundary={'b' * 99}"):
        answer = service().post("/v1/jobs", content=b"x", headers={"Content-Type": kind})
        assert (answer.status_code, "boundary" in answer.text) == (422, True)


@pytest.fixture
def narrow(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Takes uploads of 100 kB at most."""
    monkeypatch.setattr(desk, "limits", Limits(min_free_bytes=1 << 20, max_bytes=100_000))
    return desk


def test_files_that_are_too_large(service: Service, narrow: Desk) -> None:
    client = service()
    status, message = post(client, part("video", b"x" * 100_001, "v.mp4"))
    assert (status, "at most" in message) == (413, True)
    assert folders(narrow) == []


def talk(place: tuple[str, int], *said: bytes, pause: float = 0.0, seconds: float = 20.0) -> bytes:
    """Say these things over a connection of our own; what is answered until it is closed, or for so long."""
    with socket.create_connection(place, timeout=seconds) as s:
        for words in said:
            try:
                s.sendall(words)
            except OSError:
                break
            time.sleep(pause)
        answer = b""
        try:
            while block := s.recv(65536):
                answer += block
        except OSError:
            pass
        return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_lengths_that_are_stated_are_not_believed(live: Live, narrow: Desk) -> None:
    place = live(files=2)
    said = HEAD.encode() + b"Content-Length: 99999999999\r\n\r\n"
    assert status_of(talk(place, said)) == 413, "before a byte of it was read"
    body = part("video", b"x" * 3_000_000, "v.mp4")
    chunked = HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + f"{len(body):x}\r\n".encode() + body
    answer = talk(place, chunked)
    assert (status_of(answer), b"at most" in answer) == (413, True), "no length was stated, and it is counted"
    assert until(lambda: folders(narrow) == [])


def test_half_an_upload_leaves_nothing(live: Live, desk: Desk) -> None:
    place = live()
    with socket.create_connection(place) as s:
        s.sendall(HEAD.encode() + b"Content-Length: 5000000\r\n\r\n" + part("video", b"x" * 2_000_000, "v.mp4"))
        until(lambda: folders(desk) != [])
    assert until(lambda: folders(desk) == [])


def test_an_upload_that_stops_is_given_up(live: Live, desk: Desk) -> None:
    place = live(patience=0.3)
    began = time.monotonic()
    answer = talk(place, HEAD.encode() + b"Content-Length: 5000000\r\n\r\n" + part("video", b"x" * 1000, "v.mp4"))
    assert (status_of(answer), b"nothing came" in answer) == (408, True)
    assert time.monotonic() - began < 10
    assert until(lambda: folders(desk) == [])


def test_an_upload_that_dawdles_is_given_up(live: Live, desk: Desk) -> None:
    """Never silent for long, and never done."""
    place = live(patience=0.4, slowest=5000)
    begin = HEAD.encode() + b"Content-Length: 5000000\r\n\r\n" + part("video", b"x", "v.mp4")[:-2]
    answer = talk(place, begin, *[b"x" for _ in range(40)], pause=0.05)
    assert (status_of(answer), b"less than 5000 bytes a second" in answer) == (408, True)
    assert until(lambda: folders(desk) == [])


def test_many_slow_uploads_do_not_hold_up_the_rest(live: Live, desk: Desk) -> None:
    place = live(uploads=4, patience=20.0)
    held = []
    try:
        for i in range(2):
            s = socket.create_connection(place)
            s.sendall(HEAD.encode() + b"Content-Length: 5000000\r\n\r\n" + part("video", b"x", "v.mp4"))
            held.append(s)
            until(lambda n=i: len(folders(desk)) == n + 1)
        refused = talk(place, HEAD.encode() + b"Content-Length: 50\r\n\r\n", seconds=3)
        assert (status_of(refused), b"uploads at the same time" in refused) == (429, True)
        began = time.monotonic()
        assert status_of(talk(place, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")) == 200
        assert time.monotonic() - began < 5
    finally:
        for s in held:
            s.close()
    assert until(lambda: folders(desk) == [])


def test_a_storm_of_requests_is_turned_away_and_survived(live: Live) -> None:
    """Far more than are taken, at once and on many connections: each is answered, and the service still lives."""
    place = live(rate=2.0, burst=50)
    seen: list[int] = []

    def storm() -> None:
        request = b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n"
        last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        answer = talk(place, request * 49 + last)
        seen.extend(int(code) for code in re.findall(rb"HTTP/1\.1 (\d+)", answer))

    threads = [threading.Thread(target=storm) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {200, 429}
    assert len(seen) == 400
    assert 50 <= seen.count(200) < 300
    assert status_of(talk(place, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")) == 200


def test_the_settings_are_sane() -> None:
    settings = Settings()
    assert settings.keys is None
    assert not settings.allow_urls
    assert settings.webhook_secret is None
    assert settings.rate > 0
    assert 0 < settings.patience <= 60
