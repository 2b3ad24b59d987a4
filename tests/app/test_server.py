"""The page's server without a browser: uploads that break off or grow beyond what they said, and its own files."""

from __future__ import annotations

import os
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from latentsync.app.visitors import COOKIE

pytest.importorskip("gradio", reason="gradio is not installed")
ANN = {"cookie": f"{COOKIE}={'a' * 43}"}


def form(size: int) -> tuple[bytes, bytes]:
    """A form with a file of so many bytes: (its beginning with the file, its end)."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../evil name.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    return head + bytes(size), b"\r\n--x--\r\n"


def test_uploads_whole_too_large_and_broken_off(page):
    address, desk = page
    kind = {**ANN, "content-type": "multipart/form-data; boundary=x"}
    uploads = desk.root / "uploads"

    whole = httpx.post(f"{address}gradio_api/upload", headers=kind, content=b"".join(form(1000)), timeout=60)
    assert whole.status_code == 200
    file = whole.json()[0]
    assert file.startswith(str(uploads)), "whatever it was called, it lies in its place"
    assert file.endswith("evil name.wav")
    assert os.path.getsize(file) == 1000

    def pieces():
        yield form(0)[0]
        for _ in range(60):
            yield bytes(100_000)
        yield form(0)[1]

    large = httpx.post(f"{address}gradio_api/upload", headers=kind, content=pieces(), timeout=60)
    assert large.status_code == 413

    parts = urlsplit(address)
    with socket.create_connection((parts.hostname, parts.port)) as line:
        said = [
            "POST /gradio_api/upload HTTP/1.1",
            "Host: x",
            f"Cookie: {ANN['cookie']}",
            f"Content-Type: {kind['content-type']}",
            "Content-Length: 90000",
        ]
        line.sendall("\r\n".join([*said, "", ""]).encode() + form(50_000)[0])
        time.sleep(0.5)
    assert httpx.get(address, timeout=60).status_code == 200, "others go on"
    left = [p for p in uploads.iterdir() if p.is_file()]
    for path in left:
        os.utime(path, (time.time() - 700, time.time() - 700))
    from latentsync.app.visitors import Uploads

    Uploads(uploads).sweep()
    assert [p for p in uploads.iterdir() if p.is_file()] == []
    assert os.path.getsize(file) == 1000


def test_it_tells_programs_nothing(page):
    address = page[0]
    assert "svg" in httpx.get(f"{address}favicon.ico", timeout=60).text
    for path in (
        "docs",
        "openapi.json",
        "gradio_api/openapi.json",
        "monitoring",
        "gradio_api/file=/etc/passwd",
        "job/x/result",
        "job/../../etc/passwd",
    ):
        assert httpx.get(f"{address}{path}", headers=ANN, timeout=60).status_code == 404, path
