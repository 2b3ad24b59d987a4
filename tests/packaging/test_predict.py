"""The predictor of Cog: its interface, and the whole of it behind Cog's own server."""

import base64
import inspect
import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import yaml

from latentsync.media.video import open_video
from latentsync.media.writer import VideoWriter
from latentsync.weights import shipped
from tests.conftest import write_wav

pytest.importorskip("cog")

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 6


def uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A few frames of the sample that ships, and a sound of their length."""
    folder = tmp_path_factory.mktemp("inputs")
    with open_video(shipped.folder() / "sample.mp4") as film, VideoWriter(folder / "clip.mp4", film.info, audio=None) as out:
        for frame, _ in zip(film.frames(), range(FRAMES), strict=False):
            out.write(frame)
    sound = write_wav(folder / "sound.wav", np.random.default_rng(0).normal(0, 0.1, 16000 * FRAMES // 25).astype(np.float32))
    return {"video": uri(folder / "clip.mp4", "video/mp4"), "audio": uri(sound, "audio/x-wav"), "inference_steps": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Cog's server around predict.py, as its images start it; the address."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    told = {"LATENTSYNC_MODEL": "demo", "LATENTSYNC_DEVICE": "cpu", "LATENTSYNC_DOWNLOAD": "1", "COG_PREDICT_TYPE_STUB": "predict.py:Predictor"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it starts `python` by name
    env = {**os.environ, **told, "PORT": str(port), "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not become ready"
            try:
                health = httpx.get(f"{address}/health-check", trust_env=False).json()
            except httpx.TransportError:
                health = {}
            assert health.get("status") not in ("SETUP_FAILED", "DEFUNCT"), health
            if health.get("status") == "READY":
                break
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def predict(address: str, given: dict[str, Any]) -> dict[str, Any]:
    return httpx.post(f"{address}/predictions", json={"input": given}, timeout=240, trust_env=False).json()


def test_the_interface_is_the_published_one():
    from predict import Predictor

    names = inspect.signature(Predictor.predict).parameters
    found = {name: (p.annotation.__name__, p.default.default, p.default.ge, p.default.le) for name, p in names.items() if name != "self"}
    assert found == {
        "video": ("Path", None, None, None),
        "audio": ("Path", None, None, None),
        "guidance_scale": ("float", 1.0, 0, 10),
        "inference_steps": ("int", 20, 1, 200),
        "seed": ("int", 0, 0, 2**32 - 1),
    }
    assert names["video"].default.accept == ".jpg,.jpeg,.png,.bmp,.webp,.mp4"
    assert inspect.signature(Predictor.predict).return_annotation.__name__ == "Path"


def test_behind_the_server_of_cog(server, inputs):
    made = predict(server, {**inputs, "seed": 7})
    assert made["status"] == "succeeded", made
    assert re.search(rf"{FRAMES} frames, {FRAMES} with a new mouth, seed 7", made["logs"])
    kind, _, data = made["output"].partition(";base64,")
    assert kind == "data:video/mp4"
    with av.open(io.BytesIO(base64.b64decode(data))) as file:
        assert len(file.streams.audio) == 1
        assert sum(1 for _ in file.decode(video=0)) == FRAMES
    drawn = predict(server, {**inputs, "seed": 0})
    assert int(re.search(r"seed (\d+)", drawn["logs"])[1]) > 0, "0 draws a seed, and the log tells it"
    assert "Loading" not in drawn["logs"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"video": "data:text/plain;base64,aGVsbG8="}, "InputError: .* is not an audio, video or image file that FFmpeg can read"),
        ({"audio": "data:image/png;base64,aGVsbG8="}, "InputError: "),
        ({"guidance_scale": 11.0}, "UsageError: --guidance 11.0: must be a number within 0..10"),
        ({"inference_steps": 0}, "UsageError: --steps 0: must be a whole number within 1..200"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(server, inputs, wrong, said):
    made = predict(server, {**inputs, **wrong})
    assert made["status"] == "failed"
    assert re.search(said, made["error"])
    assert "Traceback" not in made["error"]


def test_cog_yaml_installs_what_the_package_needs():
    described = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    file, _, name = described["predict"].partition(":")
    assert f"class {name}(" in (ROOT / file).read_text(encoding="utf-8")
    block = re.findall(r"^dependencies = \[(.+?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)[0]
    needed = re.findall(r'"([\w.-]+)', block)
    assert len(needed) > 10
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    pins["torch"] = re.findall(r"^TORCH \?= torch==(.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[0]
    pins = {name.lower(): version for name, version in pins.items()}
    wanted = {name: pins[name] for name in (n.lower() for n in needed)}
    assert {n.lower(): v for n, v in (line.split("==") for line in described["build"]["python_packages"])} == wanted
    assert "PYTHONPATH=/src/src" in described["environment"], "Cog copies the repository to /src and does not install it"
