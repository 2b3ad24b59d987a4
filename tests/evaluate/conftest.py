"""Short films of the drawn head that comes with the package, whole and damaged, for all tests of evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latentsync.evaluate.tools import Tools
from latentsync.media.audio import open_audio
from latentsync.media.clip_writer import write_clip
from latentsync.media.video import open_video
from latentsync.weights import shipped

FRAMES = 30
RATE = 16000


def film() -> tuple[np.ndarray, np.ndarray]:
    """(FRAMES, h, w, 3) uint8 and (m,) samples of the shipped sample's beginning, half as large."""
    path = shipped.folder() / "sample.mp4"
    frames = []
    for frame in open_video(path).frames():
        frames.append(np.ascontiguousarray(frame.picture.rgb()[::2, ::2]))
        if len(frames) == FRAMES:
            break
    samples = np.concatenate(list(open_audio(path, beside=path).samples()))[: FRAMES * RATE // 25]
    return np.stack(frames), samples


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder: true.mp4 (1.2 s), still_lips.mp4 (its first frame throughout), silent.mp4, faceless.mp4, one.mp4 (a frame), small.mp4 (half as large),
    short.mp4 (0.6 s of it), broken.mp4, empty.mp4."""
    folder = tmp_path_factory.mktemp("films")
    frames, samples = film()
    write_clip(folder / "true.mp4", frames, 25, samples)
    write_clip(folder / "still_lips.mp4", np.repeat(frames[:1], FRAMES, 0), 25, samples)
    write_clip(folder / "silent.mp4", frames, 25, None)
    write_clip(folder / "faceless.mp4", np.full_like(frames, 90), 25, samples)
    write_clip(folder / "one.mp4", frames[:1], 25, samples[:640])
    write_clip(folder / "small.mp4", np.ascontiguousarray(frames[:, ::2, ::2]), 25, samples)
    write_clip(folder / "short.mp4", frames[:15], 25, samples[: 15 * 640])
    (folder / "broken.mp4").write_bytes((folder / "true.mp4").read_bytes()[:2000])
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture(scope="session")
def tools() -> Tools:
    """What comes with the package, and nothing else."""
    return Tools(("all",), judge="demo", faces="demo", vad="energy", device="cpu")
