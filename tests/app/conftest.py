"""A page over a desk, on a port of this machine, and the smallest clips with a face that the package's own finder sees."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentsync.media.clip_writer import write_clip
from latentsync.media.video import open_video
from latentsync.weights import shipped
from tests.conftest import write_wav

FRAMES = 10


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one.mp4 (a drawn head, 0.4 s), two.mp4 (it and its mirror image, darker), nobody.mp4, still.png and a voice.wav of 0.4 s."""
    import cv2

    folder = tmp_path_factory.mktemp("heads")
    with open_video(shipped.folder() / "sample.mp4") as video:
        frames = np.stack([frame.picture.rgb() for frame, _ in zip(video.frames(), range(FRAMES), strict=False)])
    mirrored = (frames[:, :, ::-1] * 0.85).astype(np.uint8)
    for name, pictures in (("one", frames), ("two", np.concatenate([frames, mirrored], axis=2)), ("nobody", np.full_like(frames[:3], 90))):
        write_clip(folder / f"{name}.mp4", pictures, Fraction(25))
    cv2.imwrite(str(folder / "still.png"), frames[0][..., ::-1])
    time = np.arange(6400) / 16000
    write_wav(folder / "voice.wav", (0.3 * np.sin(2 * np.pi * 180 * time) * (np.sin(2 * np.pi * 5 * time) > 0)).astype(np.float32))
    return folder


@pytest.fixture(scope="package")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, object]]:
    """(address, desk) of a page with the model that comes with the package, and with one that is not here."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    from latentsync.app.server import Server, application
    from latentsync.cli_serve import listen
    from latentsync.jobs import Desk, Limits

    empty = tmp_path_factory.mktemp("no weights")
    models = ("demo", "1.6")
    limits = Limits(min_free_bytes=1 << 20, max_bytes=3_000_000)
    desk = Desk(tmp_path_factory.mktemp("desk") / "root", models=models, limits=limits, devices=("cpu",), home=empty)
    with desk, listen("127.0.0.1", 0) as listener, Server(application(desk, models, home=empty), listener) as server:
        yield server.address, desk
