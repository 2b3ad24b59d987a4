"""Where the tests find what is not in the repository. Golden numbers and clips are read from folders beside the checkout or named by variables."""

import importlib.util
import os
import threading
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from latentsync.cli import app
from latentsync.errors import LatentSyncError

ROOT = Path(__file__).resolve().parents[1]


def beside(variable: str, name: str) -> Path:
    return Path(os.environ.get(variable) or ROOT.parent / "shared" / name)


def shared(variable: str, name: str, what: str) -> Path:
    """The folder `name` beside the checkout, or the one that the variable names; the test is skipped where it is not there."""
    folder = beside(variable, name)
    if not folder.is_dir():
        pytest.skip(f"no {what} at {folder}; set {variable}")
    return folder


def loaded(file: Path) -> Any:
    """A Python file outside every package, as a module."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def invoked(*words: object) -> Result:
    """What the command printed, run in this process; errors of the package are raised."""
    result = CliRunner().invoke(app, [str(w) for w in words])
    if isinstance(result.exception, LatentSyncError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def left_running() -> Callable[[], list[str]]:
    """Tells the package's threads that were started since the test began and still run. A page or a desk of the fixtures has some of its own."""
    before = set(threading.enumerate())
    return lambda: [t.name for t in threading.enumerate() if t not in before and t.name.startswith("latentsync-")]


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the published system's numbers (LATENTSYNC_GOLDEN, else ../shared/golden)."""
    return shared("LATENTSYNC_GOLDEN", "golden", "golden numbers")


@pytest.fixture(scope="session")
def goldenlib(golden: Path) -> Any:
    """The generator of golden weights and inputs, which lies beside the numbers."""
    return loaded(golden / "goldenlib.py")


@pytest.fixture(scope="session")
def clips() -> Path:
    """Folder of real clips (LATENTSYNC_CLIPS, else ../shared/clips)."""
    return shared("LATENTSYNC_CLIPS", "clips", "clips")


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Folder of rendered heads with exact landmarks and exact sound (LATENTSYNC_CORPUS, else ../shared/corpus)."""
    return shared("LATENTSYNC_CORPUS", "corpus", "rendered heads")


@pytest.fixture(scope="session")
def public_weights() -> Path:
    """Folder of small public weights (LATENTSYNC_TEST_WEIGHTS, else ../shared/weights)."""
    return shared("LATENTSYNC_TEST_WEIGHTS", "weights", "public weights")


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    """Mono float samples in -1..1 as a 16-bit file."""
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(rate)
        f.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 2 s of the drawn sample: sample.mp4 (320 px, 25 fps), speech.wav, points.npz."""
    module = loaded(ROOT / "tools" / "sample.py")
    folder = tmp_path_factory.mktemp("sample")
    module.make(folder, seconds=2.0, size=320)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained model of the preset tiny."""
    from latentsync import weights

    return weights.new("tiny", tmp_path_factory.mktemp("models") / "tiny")
