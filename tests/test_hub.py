"""The downloader against a real server on loopback that also misbehaves: cuts connections, damages files, demands tokens, redirects elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from latentsync import hub
from latentsync.errors import WeightsError
from latentsync.hub import Progress, fetch

VARIABLES = ("LATENTSYNC_MIRROR", "HF_ENDPOINT", "HF_TOKEN", "LATENTSYNC_OFFLINE", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")


@dataclass
class Server:
    """Files by path; `faults` are taken one per request to that path."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    ranges: bool = True
    slow: float = 0.0  # seconds per 64 kB
    port: int = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def asked(self, path: str) -> list[dict[str, str]]:
        return [headers for p, headers in self.seen if p == path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        state = self.state
        state.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        waiting = state.faults.get(self.path, [])
        fault = waiting.pop(0) if waiting else ""
        if fault.isdigit():
            return self.answer(int(fault), Retry_After="0")
        if self.path in state.redirects:
            return self.answer(302, Location=state.redirects[self.path], **state.headers.get(self.path, {}))
        if self.path not in state.files:
            return self.answer(404)
        content = state.files[self.path]
        if fault == "damaged":
            content = content[:-1] + bytes([content[-1] ^ 1])
        etag = '"' + hashlib.md5(state.files[self.path]).hexdigest() + '"'
        start, code = 0, 200
        asked = self.headers.get("Range")
        if asked and state.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self.answer(416, Content_Range=f"bytes */{len(content)}")
            code = 206
        self.send_response(code)
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", etag)
        for name, value in state.headers.get(self.path, {}).items():
            self.send_header(name, value)
        self.end_headers()
        body = content[start:]
        if fault == "cut":
            body = body[: max(1, len(body) // 2)]
            self.close_connection = True
        try:
            for i in range(0, len(body), 1 << 16):
                self.wfile.write(body[i : i + (1 << 16)])
                time.sleep(state.slow)
        except ConnectionError:  # the other side was killed, or has left
            self.close_connection = True
        return None


def serve() -> tuple[Server, ThreadingHTTPServer]:
    state = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    state.port = http.server_address[1]
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    return state, http


@pytest.fixture
def server() -> Iterator[Server]:
    state, http = serve()
    yield state
    http.shutdown()
    http.server_close()


CONTENT = os.urandom(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_arrives_whole_and_alone(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    told: list[Progress] = []
    path = fetch(server.url("/a.bin"), tmp_path / "deep er" / "a.bin", size=len(CONTENT), sha256=DIGEST, report=told.append, pause=0)
    assert path.read_bytes() == CONTENT
    assert leftovers(path.parent) == ["a.bin"]
    assert [p.state for p in told][-2:] == ["checking", "done"]
    assert told[-1].done == told[-1].total == len(CONTENT)


def test_a_present_file_asks_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    fetch(server.url("/a.bin"), tmp_path / "a.bin", size=len(CONTENT), sha256=DIGEST)
    assert server.seen == []


def test_a_cut_connection_resumes_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    server.faults["/a.bin"] = ["cut", "cut"]
    path = fetch(server.url("/a.bin"), tmp_path / "a.bin", size=len(CONTENT), sha256=DIGEST, pause=0)
    assert path.read_bytes() == CONTENT
    asked = [h.get("range") for h in server.asked("/a.bin")]
    assert asked == [None, "bytes=150000-", "bytes=225000-"]


def test_a_part_of_an_earlier_run_is_continued(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    server.faults["/a.bin"] = ["cut", *["503"] * 10]
    with pytest.raises(WeightsError, match="150000 bytes are kept"):
        fetch(server.url("/a.bin"), tmp_path / "a.bin", pause=0)
    server.faults.clear()
    server.seen.clear()
    assert fetch(server.url("/a.bin"), tmp_path / "a.bin", pause=0).read_bytes() == CONTENT
    assert [h.get("range") for h in server.asked("/a.bin")] == ["bytes=150000-"]


def test_a_file_that_changed_meanwhile_starts_anew(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    server.faults["/a.bin"] = ["cut", *["503"] * 10]
    with pytest.raises(WeightsError):
        fetch(server.url("/a.bin"), tmp_path / "a.bin", pause=0)
    other = os.urandom(len(CONTENT))
    server.files["/a.bin"], server.faults = other, {}
    assert fetch(server.url("/a.bin"), tmp_path / "a.bin", pause=0).read_bytes() == other


def test_a_server_without_ranges_starts_anew(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"], server.ranges = CONTENT, False
    server.faults["/a.bin"] = ["cut"]
    assert fetch(server.url("/a.bin"), tmp_path / "a.bin", sha256=DIGEST, pause=0).read_bytes() == CONTENT


def test_a_complete_part_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    (tmp_path / "a.bin.part.json").write_text(json.dumps({"url": server.url("/a.bin"), "sha256": DIGEST, "validator": None}))
    assert fetch(server.url("/a.bin"), tmp_path / "a.bin", sha256=DIGEST, pause=0).read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["a.bin"]


def test_a_part_of_another_address_is_not_trusted(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(os.urandom(1000))
    (tmp_path / "a.bin.part.json").write_text(json.dumps({"url": "http://elsewhere/a.bin", "sha256": DIGEST, "validator": None}))
    assert fetch(server.url("/a.bin"), tmp_path / "a.bin", sha256=DIGEST, pause=0).read_bytes() == CONTENT
    assert server.asked("/a.bin")[0].get("range") is None


def test_a_damaged_file_is_fetched_once_more(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    server.faults["/a.bin"] = ["damaged"]
    assert fetch(server.url("/a.bin"), tmp_path / "a.bin", size=len(CONTENT), sha256=DIGEST, pause=0).read_bytes() == CONTENT
    assert len(server.seen) == 2


def test_a_file_damaged_at_its_source_is_refused_and_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    with pytest.raises(WeightsError, match=f"damaged twice: sha256 {DIGEST} instead of {'0' * 64}"):
        fetch(server.url("/a.bin"), tmp_path / "a.bin", sha256="0" * 64, pause=0)
    assert leftovers(tmp_path) == []
    assert len(server.seen) == 2


def test_a_page_instead_of_the_file_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = b"<html>please log in to this network</html>"
    with pytest.raises(WeightsError, match="has 42 bytes, not 300000"):
        fetch(server.url("/a.bin"), tmp_path / "a.bin", size=len(CONTENT), sha256=DIGEST, pause=0)
    assert leftovers(tmp_path) == []


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    server.faults["/a.bin"] = ["500", "503", "429"]
    told: list[Progress] = []
    fetch(server.url("/a.bin"), tmp_path / "a.bin", report=told.append, pause=0)
    assert [p.note for p in told if p.state == "retrying"] == [f"the server answers {c}" for c in (500, 503, 429)]


def test_a_server_that_stays_busy_is_left(server: Server, tmp_path: Path) -> None:
    server.faults["/a.bin"] = ["500"] * 50
    with pytest.raises(WeightsError, match=r"a\.bin \(the server answers 500\), tried 5 times"):
        fetch(server.url("/a.bin"), tmp_path / "a.bin", pause=0)
    assert len(server.seen) == 5


@pytest.mark.parametrize(("code", "says"), [("404", "no such file"), ("401", "HF_TOKEN"), ("403", "HF_TOKEN"), ("418", "answers 418")])
def test_a_refusal_is_not_repeated(server: Server, tmp_path: Path, code: str, says: str) -> None:
    server.faults["/a.bin"] = [code]
    with pytest.raises(WeightsError, match=says) as e:
        fetch(server.url("/a.bin"), tmp_path / "a.bin", pause=0)
    assert server.url("/a.bin") in str(e.value)
    assert len(server.seen) == 1


def test_messages_do_not_show_a_password(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file") as e:
        fetch(server.url("/a.bin").replace("//", "//me:secret@"), tmp_path / "a.bin", pause=0)
    assert "secret" not in str(e.value)


def test_nobody_there(tmp_path: Path) -> None:
    state, http = serve()
    http.shutdown()
    http.server_close()
    with pytest.raises(WeightsError, match="ConnectError"):
        fetch(state.url("/a.bin"), tmp_path / "a.bin", pause=0)


def test_the_hub_states_size_and_digest(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url("/mirror"))
    server.redirects["/mirror/org/m/resolve/main/a.bin"] = server.url("/blob")
    server.headers["/mirror/org/m/resolve/main/a.bin"] = {"X-Linked-Size": str(len(CONTENT)), "X-Linked-Etag": f'"{DIGEST}"'}
    server.files["/blob"] = CONTENT
    server.faults["/blob"] = ["damaged"]  # found out although the caller knows no digest
    path = fetch("https://huggingface.co/org/m/resolve/main/a.bin", tmp_path / "a.bin", pause=0)
    assert path.read_bytes() == CONTENT
    assert len(server.asked("/blob")) == 2


def test_a_replaced_file_is_refused_before_its_bytes_come(server: Server, tmp_path: Path) -> None:
    server.redirects["/a.bin"] = server.url("/blob")
    server.headers["/a.bin"] = {"X-Linked-Etag": f'"{"1" * 64}"'}
    server.files["/blob"] = CONTENT
    with pytest.raises(WeightsError, match="offers another file"):
        fetch(server.url("/a.bin"), tmp_path / "a.bin", sha256=DIGEST, pause=0)
    assert server.asked("/blob") == []


def test_the_token_stays_with_the_hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", server.url(""))
    server.redirects["/org/m/resolve/main/a.bin"] = "/second"  # same origin: still the hub
    server.redirects["/second"] = server.url("/blob", host="localhost")  # another host
    server.files["/blob"] = CONTENT
    fetch("https://huggingface.co/org/m/resolve/main/a.bin", tmp_path / "a.bin", pause=0)
    assert server.asked("/org/m/resolve/main/a.bin")[0]["authorization"] == "Bearer hf_secret"
    assert server.asked("/second")[0]["authorization"] == "Bearer hf_secret"
    assert "authorization" not in server.asked("/blob")[0]


def test_files_of_other_hosts_never_see_the_token(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LATENTSYNC_MIRROR", server.url(""))
    server.files["/example.org/a.bin"] = CONTENT
    fetch("https://example.org/a.bin", tmp_path / "a.bin", pause=0)
    assert "authorization" not in server.asked("/example.org/a.bin")[0]


def test_endless_redirects_end(server: Server, tmp_path: Path) -> None:
    server.redirects["/a.bin"] = "/a.bin"
    with pytest.raises(WeightsError, match="redirects more than"):
        fetch(server.url("/a.bin"), tmp_path / "a.bin", pause=0)


def test_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_file, other = "https://huggingface.co/o/m/resolve/main/x", "https://example.org/x?y=1"
    assert [hub.mirrored(hub_file), hub.mirrored(other)] == [hub_file, other]
    monkeypatch.setenv("HF_ENDPOINT", "https://endpoint/")
    assert [hub.mirrored(hub_file), hub.mirrored(other)] == ["https://endpoint/o/m/resolve/main/x", other]
    monkeypatch.setenv("LATENTSYNC_MIRROR", "http://mirror/sub")
    assert [hub.mirrored(hub_file), hub.mirrored(other)] == ["http://mirror/sub/o/m/resolve/main/x", "http://mirror/sub/example.org/x?y=1"]


@pytest.mark.parametrize("variable", ["LATENTSYNC_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_asks_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    server.files["/a.bin"] = CONTENT
    monkeypatch.setenv(variable, "1")
    with pytest.raises(WeightsError, match=f"{variable}=1 forbids"):
        fetch(server.url("/a.bin"), tmp_path / "a.bin")
    assert server.seen == []
    monkeypatch.setenv(variable, "0")
    fetch(server.url("/a.bin"), tmp_path / "a.bin")


def test_a_full_disk_is_known_beforehand(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = CONTENT
    with pytest.raises(WeightsError, match=r"needs .* GB and .* GB free"):
        fetch(server.url("/a.bin"), tmp_path / "a.bin", size=10**18)
    assert server.seen == []


def test_an_address_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not an address"):
        fetch("nonsense://x/a.bin", tmp_path / "a.bin", pause=0)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="LATENTSYNC_HOME"):
        fetch("http://127.0.0.1:9/a.bin", tmp_path / "file" / "a.bin")


FETCH = "import sys; from pathlib import Path; from latentsync.hub import fetch; fetch(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], pause=0)"


def test_two_processes_fetch_one_file_once(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"], server.slow = CONTENT, 0.2
    command = [sys.executable, "-c", FETCH, server.url("/a.bin"), str(tmp_path / "a.bin"), DIGEST]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        assert process.wait(60) == 0, process.communicate()[1]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert len(server.seen) == 1
    assert leftovers(tmp_path) == ["a.bin"]


def test_a_killed_process_frees_its_lock_and_leaves_its_part(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"], server.slow = CONTENT, 0.5
    part = tmp_path / "a.bin.part"
    process = subprocess.Popen([sys.executable, "-c", FETCH, server.url("/a.bin"), str(tmp_path / "a.bin"), DIGEST])
    deadline = time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    server.slow = 0.0
    kept = part.stat().st_size
    assert 0 < kept < len(CONTENT)
    assert fetch(server.url("/a.bin"), tmp_path / "a.bin", sha256=DIGEST, pause=0).read_bytes() == CONTENT
    assert server.asked("/a.bin")[-1]["range"] == f"bytes={kept}-"
