"""The Python client against the service in another process: the whole way, broken connections, kill -9 in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentsync import client as library
from latentsync.client import CancelledError, Client, RemoteJob, Segment, ServiceError, UnreachableError
from latentsync.errors import InputError, NoFaceError, OutputError, UsageError
from latentsync.jobs.store import Store, sqlite_url
from tests.conftest import ROOT
from tests.jobs.conftest import until

NO_FACE = 13  # seeds that the stand-in fails at


class Served:
    """A process that serves a folder, on one port for all of its lives."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-m", "tests.serve.server", str(self.folder), str(self.port)]
        self.process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.url
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> str:
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGTERM)
        said = self.process.stdout.read()
        assert self.process.wait(30) == 0
        return said

    def finished(self) -> list[str]:
        """Ids of the jobs that were done, as the stand-ins wrote them down, once for each time."""
        file = self.folder / "finished.txt"
        return file.read_text().split() if file.exists() else []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("served"))
    yield server
    if server.process.poll() is None:
        server.kill()


@pytest.fixture
def client(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(library, "POLL", 0.05)
    with Client(served.url) as client:
        yield client


def test_the_whole_way(client: Client, served: Served, clip: Path, tmp_path: Path) -> None:
    seen: list[RemoteJob] = []
    out = tmp_path / "out.mp4"
    job = client.sync(clip / "sample.mp4", clip / "speech.wav", out, steps=3, face=(80, 80.5), only=[(0, 0.2)], progress=seen.append)
    assert out.read_text() == "attempt 1"
    assert (job.state, job.result["frames"], job.plain["request"]["options"]["face"]) == ("done", 10, "80,80.5")
    assert seen[-1].state == "done"
    assert len({s.state for s in seen}) > 1
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    with pytest.raises(UsageError, match="job"):
        client.status(job.id)
    with pytest.raises(OutputError, match="exists"):
        client.sync(clip / "sample.mp4", clip / "speech.wav", out)


def test_steps_of_the_way(client: Client, clip: Path, tmp_path: Path) -> None:
    segments = [Segment(0, 0.1, clip / "speech.wav"), Segment(0.2, 0.3, str(clip / "speech.wav"), 0.1)]
    job = client.submit(clip / "sample.mp4", segments=segments, model="demo", report=False, fps="25")
    assert [s["audio"] for s in job.plain["request"]["segments"]] == ["speech.wav", "speech.wav"]
    told = list(client.events(job.id))
    assert told[-1].state == "done"
    assert [t.plain["progress"]["step"] for t in told] == sorted(t.plain["progress"]["step"] for t in told)
    assert client.jobs(limit=1)[0].id == job.id
    assert client.result(job.id, tmp_path / "r.mp4").read_text() == "attempt 1"
    assert client.wait(job.id, timeout=0).final
    client.cancel(job.id)
    assert client.status(job.id).state == "done", "what is done stays done"
    client.delete(job.id)
    assert client.models()[0]["name"] == "demo"


def test_failures_are_raised_as_what_they_are(client: Client, clip: Path, tmp_path: Path) -> None:
    video, audio = clip / "sample.mp4", clip / "speech.wav"
    with pytest.raises(NoFaceError, match=r"no face in sample\.mp4"):
        client.sync(video, audio, tmp_path / "o.mp4", seed=NO_FACE)
    with pytest.raises(UsageError, match="steps"):
        client.submit(video, audio, steps=9999)
    with pytest.raises(InputError, match="cannot read"):
        client.submit(tmp_path / "absent.mp4", audio)
    with pytest.raises(InputError):
        client.submit(audio, audio)
    with pytest.raises(UsageError, match="no addresses"):
        client.submit("https://a.example/v.mp4", "https://a.example/a.wav")
    assert list(tmp_path.iterdir()) == []


def test_cancelling_stops_it(client: Client, served: Served, clip: Path) -> None:
    job = client.submit(clip / "sample.mp4", clip / "speech.wav", steps=200)
    until(lambda: client.status(job.id).state == "running")
    client.cancel(job.id)
    ended = client.wait(job.id, timeout=20)
    with pytest.raises(CancelledError):
        ended.check()
    assert job.id not in served.finished()


def test_nothing_is_lost_or_done_twice_when_the_service_is_killed(
    client: Client, served: Served, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "TRIES", 60)
    made: list[str] = []
    lock = threading.Lock()

    def visitor(number: int) -> None:
        for turn in range(4):
            job = client.submit(clip / "sample.mp4", clip / "speech.wav", steps=6, idempotency_key=f"{number}-{turn}")
            with lock:
                made.append(job.id)

    threads = [threading.Thread(target=visitor, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(served.finished()) > 2 and len(made) >= 8)
    served.kill()
    time.sleep(0.2)
    served.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16
    ended = [client.wait(id, timeout=60) for id in made]
    assert {job.state for job in ended} == {"done"}
    again = client.submit(clip / "sample.mp4", clip / "speech.wav", steps=6, idempotency_key="0-0")
    assert again.id in made
    found = [id for id in served.finished() if id in made]
    assert sorted(found) == sorted(made), "each was done, and only once"


def test_stopping_is_graceful(served: Served, clip: Path) -> None:
    """The last test of this process: the job at work goes back, an event stream ends, and it says so."""
    with Client(served.url) as client:
        job = client.submit(clip / "sample.mp4", clip / "speech.wav", steps=100)
        until(lambda: client.status(job.id).state == "running")
        told: list[str] = []
        with httpx.stream("GET", f"{served.url}/v1/jobs/{job.id}/events") as stream:
            lines = stream.iter_lines()
            told.append(next(lines))
            began = time.monotonic()
            assert "closed" in served.stop()
            assert time.monotonic() - began < 20
            told += list(lines)
        assert "event: job" in told
    store = Store(sqlite_url(served.folder / "jobs.sqlite"))
    left = store.get(job.id)
    store.close()
    assert (left.state, left.attempts) == ("queued", 0), "to be stopped is no failed attempt"


def scripted(monkeypatch: pytest.MonkeyPatch, *answers: Callable[[httpx.Request], httpx.Response]) -> tuple[Client, list[httpx.Request]]:
    """A client of a service that gives these answers, one after another."""
    monkeypatch.setattr(library, "_pause", lambda *_: 0.0)
    left, asked = list(answers), []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        asked.append(request)
        return left.pop(0)(request)

    return Client("http://service", "a key", transport=httpx.MockTransport(answer)), asked


def broken(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("broken", request=request)


def says(status: int, **more: Any) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, **more)


def test_broken_answers_are_asked_for_again_with_the_same_key(monkeypatch: pytest.MonkeyPatch, clip: Path) -> None:
    plain = {
        "id": "x", "state": "queued", "position": 1, "message": "", "error": None, "result": None,
        "progress": {"frames_done": 0, "frames_total": None, "seconds": 0, "seconds_left": None},
    }  # fmt: skip
    client, asked = scripted(monkeypatch, broken, says(503, headers={"Retry-After": "1"}), says(202, json=plain))
    assert client.submit(clip / "sample.mp4", clip / "speech.wav").id == "x"
    assert len({r.headers["Idempotency-Key"] for r in asked}) == 1
    assert len({len(r.content) for r in asked}) == 1, "the files are sent whole each time"
    assert {r.headers["Authorization"] for r in asked} == {"Bearer a key"}


def test_a_result_goes_on_where_it_broke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def half() -> Iterator[bytes]:
        yield b"01234"
        raise httpx.ReadError("broken")

    class Stream(httpx.SyncByteStream):
        def __init__(self, blocks: Iterator[bytes]) -> None:
            self._blocks = blocks

        def __iter__(self) -> Iterator[bytes]:
            return self._blocks

    tag = {"ETag": '"a"'}
    first, last = says(200, stream=Stream(half()), headers=tag), says(206, stream=Stream(iter([b"56789"])), headers=tag)
    client, asked = scripted(monkeypatch, first, broken, last)
    assert client.result("x", tmp_path / "r.mp4").read_bytes() == b"0123456789"
    assert (asked[2].headers["Range"], asked[2].headers["If-Range"]) == ("bytes=5-", '"a"')
    assert [p.name for p in tmp_path.iterdir()] == ["r.mp4"]


def test_who_does_not_answer_and_who_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = scripted(monkeypatch, *[broken] * 9)
    with pytest.raises(UnreachableError, match="is `latentsync serve` running"):
        client.models()
    client, _ = scripted(monkeypatch, says(200, text="<html>"), says(404, text="<html>"), says(200, json={"models": []}))
    with pytest.raises(ServiceError, match="look at the address"):
        client.models()
    with pytest.raises(ServiceError, match="404"):
        client.models()
    assert client.models() == []
    client, _ = scripted(monkeypatch, says(401, json={"error": {"kind": "Denied", "message": "no key"}}))
    with pytest.raises(ServiceError, match="no key") as e:
        client.models()
    assert (e.value.status, e.value.kind) == (401, "Denied")


@pytest.mark.parametrize("url", ["http://[", "ftp://x", "nothing"])
def test_addresses_that_are_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_pause", lambda *_: 0.0)
    with pytest.raises((UsageError, UnreachableError)):
        Client(url).models()
