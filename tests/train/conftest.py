"""Clips that the tests make, whose mouths follow their sound, and a model so small that it is trained in seconds."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latentsync import config
from latentsync.hub import locked
from latentsync.media.clip_writer import write_clip
from latentsync.weights import untrained

Once = Callable[[str, Callable[[Path], object]], Path]

FPS = 25
SECONDS = 2.4

TOY = """
name: toy
resolution: 64
unet: {channels: [16, 16, 32, 32], layers_per_block: 1, heads: 4, groups: 8, audio_dim: 16}
vae: {channels: [8, 8, 16, 16], layers_per_block: 1, groups: 4}
whisper: {positions: 100, width: 16, heads: 2, layers: 1}
"""


def envelope(random: np.random.Generator) -> np.ndarray:
    """(SECONDS * 100,) in 0..1: four syllables of 0.6 s, each as loud as no other, with soft edges. Windows that do not overlap sound different."""
    steps = np.repeat(random.permutation(4) / 3, int(SECONDS * 25))
    soft = np.hanning(15) / np.hanning(15).sum()
    return np.convolve(np.pad(steps, 7, "edge"), soft, "valid")


def talk(path: Path, *, seed: int, size: int = 64) -> Path:
    """Write one clip: a face of a few shapes, 25 fps, 16 kHz."""
    random = np.random.default_rng(seed)
    loud = envelope(random)
    at = np.arange(loud.size) / 100
    time = np.arange(int(SECONDS * 16000)) / 16000
    pitch = random.uniform(120, 180)
    tone = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 12))
    sound = 0.2 * tone * np.interp(time, at, loud) + 0.001 * random.standard_normal(time.size)
    y, x = np.mgrid[:size, :size] / size
    skin = random.uniform(0.65, 0.8, 3)
    frames = []
    for i in range(int(SECONDS * FPS)):
        opening = 0.02 + 0.16 * np.interp(i / FPS, at, loud)
        picture = np.ones((size, size, 3)) * skin
        picture[((x - 0.5) / 0.25) ** 2 + ((y - 0.75) / opening) ** 2 < 1] = (0.25, 0.05, 0.05)
        for eye in (0.3, 0.7):
            picture[(x - eye) ** 2 + (y - 0.3) ** 2 < 0.004] = 0.1
        frames.append((picture * 255).astype(np.uint8))
    write_clip(path, np.stack(frames), FPS, sound.astype(np.float32))
    return path


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """once(name, make) -> a folder that `make` has filled, by one of the processes that run the tests, for all of them."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"

    def go(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = root / name, root / f"{name}.made"
        root.mkdir(exist_ok=True)
        with locked(folder):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return go


@pytest.fixture(scope="session")
def talking(once: Once) -> Path:
    """Folder of 48 clips of 64 px."""
    return once("talking", lambda folder: [talk(folder / f"clip {i:02d}.mp4", seed=i) for i in range(48)])


@pytest.fixture(scope="session")
def others(once: Once) -> Path:
    """Folder of 12 other such clips, to be held out."""
    return once("others", lambda folder: [talk(folder / f"other {i:02d}.mp4", seed=100 + i) for i in range(12)])


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained model with 0.6 million parameters, 64 px, all networks its own."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    folder.mkdir()
    untrained.write(config.parse(TOY, "toy"), folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def still(toy: Path) -> Path:
    """Description of the toy without motion modules, for the first stage."""
    path = toy.parent / "still.yaml"
    path.write_text(TOY.replace("unet: {", "unet: {motion: none, ").replace("name: toy", "name: still"))
    return path
