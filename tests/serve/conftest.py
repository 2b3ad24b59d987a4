"""A desk without workers, the service over it in this process or on a real port, and a hand that ends jobs as a worker would."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from latentsync.jobs import Desk
from latentsync.serve.api import create_app
from latentsync.serve.settings import Settings
from tests.jobs import conftest as jobs

Service = Callable[..., TestClient]
clip = jobs.clip
SMALL = jobs.SMALL


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Takes jobs for the model demo, and does none."""
    with Desk(tmp_path / "data", models=["demo"], limits=SMALL, workers=False) as desk:
        yield desk


@pytest.fixture
def service(desk: Desk) -> Iterator[Service]:
    """The service with these settings, to be asked in this process."""
    with ExitStack() as stack:

        def start(**settings: Any) -> TestClient:
            app = create_app(desk, Settings(**settings))
            return stack.enter_context(TestClient(app, base_url="http://localhost", raise_server_exceptions=False))

        yield start


@pytest.fixture
def live(desk: Desk) -> Iterator[Callable[..., tuple[str, int]]]:
    """The service with these settings on a real port: (host, port)."""
    running: list[tuple[uvicorn.Server, threading.Thread, Any]] = []

    def start(**settings: Any) -> tuple[str, int]:
        app = create_app(desk, Settings(**settings))
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread, app))
        jobs.until(lambda: server.started)
        return listener.getsockname()[:2]

    yield start
    for server, thread, app in running:
        app.state.stopping.set()
        server.should_exit = True
        thread.join(10)


def files(folder: Path, *names: str) -> dict[str, tuple[str, bytes]]:
    """The form's files: video, audio, and further sounds by these names."""
    sound = (folder / "speech.wav").read_bytes()
    return {"video": ("sample.mp4", (folder / "sample.mp4").read_bytes()), "audio": ("speech.wav", sound)} | {n: (f"{n}.wav", sound) for n in names}


def ask(client: TestClient, folder: Path, headers: dict[str, str] | None = None, **fields: str) -> dict[str, Any]:
    """A job that is taken."""
    answer = client.post("/v1/jobs", files=files(folder), data=fields, headers=headers or {})
    assert answer.status_code == 202, answer.text
    return answer.json()


def end(desk: Desk, state: str = "done", content: bytes = b"0123456789" * 10, **values: Any) -> str:
    """Do the first job of the queue as a worker would: its id."""
    taken = desk.store.claim("a worker", "here", ["demo"])
    assert taken is not None
    claim, job = taken
    if state == "done":
        (desk.root / "jobs" / job.id / "result-1.mp4").write_bytes(content)
        values = {"result": {"frames": 10, "seconds": 0.4}, "out": "result-1.mp4", **values}
    desk.store.finish(claim, state, 3600.0, **values)  # type: ignore[arg-type]
    return job.id


def folders(desk: Desk) -> list[str]:
    """Folders of jobs and of drafts."""
    return sorted(p.name for p in (desk.root / "jobs").iterdir())
