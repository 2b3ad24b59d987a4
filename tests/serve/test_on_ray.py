"""The service on a real Ray of this machine: the same routes, a worker that Ray keeps. Skipped without Ray Serve, which the extra `dev` brings."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from latentsync.errors import UsageError
from latentsync.jobs import Limits
from latentsync.media.video import open_video
from latentsync.media.writer import VideoWriter
from latentsync.serve.on_ray import Place, serving
from latentsync.serve.settings import Settings
from latentsync.weights import shipped
from tests.conftest import ROOT, write_wav

ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve")

ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
FRAMES = 6


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """A Ray of two cores, in processes of this test."""

    def start() -> None:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        try:
            start()
        except Exception as e:  # Ray gives its helpers 15 s to come up, which may be too little where other work is going on; then once more
            if "timed out" not in str(e):
                raise
            start()
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    with open_video(shipped.folder() / "sample.mp4") as film, VideoWriter(folder / "clip.mp4", film.info, audio=None) as out:
        for frame, _ in zip(film.frames(), range(FRAMES), strict=False):
            out.write(frame)
    return folder / "clip.mp4", write_wav(folder / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16000 * FRAMES // 25).astype(np.float32))


def until(client: httpx.Client, path: str, good: Callable[[Any], bool], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while not good(found := client.get(path).json()):
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return found


@pytest.mark.slow
def test_the_same_service_on_ray(here: None, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    place = Place(root=tmp_path / "jobs", models=("demo",), limits=Limits(min_free_bytes=0))
    with (
        serving(place, Settings(rate=0), port=port) as workers,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client,
    ):
        assert workers == 1
        assert client.get("/healthz").status_code == 200
        assert client.get("/openapi.json").json()["info"]["title"] == "LatentSync"
        video, sound = inputs
        options = {"steps": "1", "guidance": "1", "seed": "5"}
        sent = client.post("/v1/jobs", files={"video": video.open("rb"), "audio": sound.open("rb")}, data=options)
        assert sent.status_code in (200, 201, 202), sent.text
        job = sent.json()["id"]
        done = until(client, f"/v1/jobs/{job}", lambda j: j["state"] in ("done", "failed"))
        assert done["state"] == "done", done
        result = client.get(f"/v1/jobs/{job}/result")
        (tmp_path / "result.mp4").write_bytes(result.content)
        with open_video(tmp_path / "result.mp4") as film:
            assert len(list(film.frames())) == FRAMES
        wrong = client.post("/v1/jobs", files={"video": ("x.mp4", b"no video"), "audio": sound.open("rb")})
        assert wrong.status_code == 422
        assert "x.mp4" in wrong.json()["error"]["message"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)


def test_ray_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "latentsync\[serve-cluster\]"'), serving(Place(root=tmp_path, models=("demo",)), Settings()):
        pass


@pytest.mark.parametrize(("store", "works"), [(None, False), ("sqlite:///x.db", False), ("postgresql://db/jobs", True)])
def test_several_machines_need_a_store_that_all_of_them_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: str | None, works: bool
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])

    def reached() -> dict[str, float]:
        raise KeyError("got past the check")

    monkeypatch.setattr(ray, "cluster_resources", reached)
    expected, said = (KeyError, "got past") if works else (UsageError, "the cluster has 2 machines: SQLite serves one only")
    with pytest.raises(expected, match=said), serving(Place(root=tmp_path, models=("demo",), store_url=store), Settings()):
        pass
