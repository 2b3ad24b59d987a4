"""Memory does not grow with the length of the video, nor where a clip is bounced under a long sound. bench/memory.py does it at full size."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# 30 s more of 640x360 are 260 MB of frames, were they kept. Allocators and thread pools settle within less than this.
ALLOWED_MIB = 40


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("footage", ROOT / "bench" / "footage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Footage(tmp_path_factory.mktemp("footage"), 640, 360, unit=10)


def peak(footage, model, video: int, audio: int, out: Path) -> float:
    """MiB that a job of its own process took at most."""
    job = {
        "model": str(model),
        "video": str(footage.video(video)),
        "audio": str(footage.sound(audio)),
        "points": str(footage.points(video)),
        "out": str(out),
        "preset": "ultrafast",
        "limit": 300,
    }
    command = [sys.executable, str(ROOT / "bench" / "memory.py"), "--child", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["done"]
    return found["peak"]


@pytest.mark.slow
def test_a_long_job_takes_no_more_memory_than_a_short_one(footage, tiny_model, tmp_path):
    short = peak(footage, tiny_model, 10, 10, tmp_path / "short.mp4")
    long = peak(footage, tiny_model, 40, 40, tmp_path / "long.mp4")
    bounced = peak(footage, tiny_model, 10, 40, tmp_path / "bounced.mp4")
    assert long - short < ALLOWED_MIB, f"40 s took {long:.0f} MiB, 10 s {short:.0f}"
    # playing backwards holds one bounded piece of a group of pictures (media/video.py) besides
    assert bounced - short < ALLOWED_MIB + 64, f"10 s bounced to 40 s took {bounced:.0f} MiB, 10 s {short:.0f}"
