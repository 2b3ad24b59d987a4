"""What the speech tests share: the golden index with its encoder, the wav files it names, and a very small encoder."""

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentsync.config import WhisperConfig
from latentsync.speech.whisper import SpeechEncoder, load_whisper


@pytest.fixture(scope="session")
def whisper_index(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "c_whisper_index.json").read_text())


@pytest.fixture(scope="session")
def whisper_numbers(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "c_whisper.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def whisper_checkpoint(goldenlib: Any, whisper_index: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as OpenAI's file holds it, decoder included."""
    state = goldenlib.fill(whisper_index["keys"], whisper_index["seed"])
    return {"dims": whisper_index["dims"], "model_state_dict": {k: torch.from_numpy(v) for k, v in state.items()}}


@pytest.fixture(scope="session")
def golden_config(whisper_index: dict[str, Any]) -> WhisperConfig:
    dims = whisper_index["dims"]
    return WhisperConfig(
        mels=dims["n_mels"], positions=dims["n_audio_ctx"], width=dims["n_audio_state"], heads=dims["n_audio_head"], layers=dims["n_audio_layer"]
    )


@pytest.fixture(scope="session")
def golden_encoder(whisper_checkpoint: dict[str, Any], golden_config: WhisperConfig) -> SpeechEncoder:
    return load_whisper(whisper_checkpoint, golden_config)


@pytest.fixture(scope="session")
def golden_sounds(golden: Path, whisper_index: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """Case -> samples, of every case in the index whose file is at hand."""
    sounds = {}
    for name, case in whisper_index["wavs"].items():
        path = golden / case["path"]
        if not path.is_file():  # the published demo sounds lie among the clips, under the repository's name
            clips: Path = request.getfixturevalue("clips")
            path = clips / "audio" / f"LatentSync__{Path(case['path']).name}"
        if path.is_file():
            sounds[name] = read_wav(path)
    assert sounds, "no golden case has its sound file"
    return sounds


@pytest.fixture(scope="session")
def small_encoder() -> SpeechEncoder:
    """Blocks of 2 s, so that a few seconds of sound have many of them."""
    torch.manual_seed(0)
    return SpeechEncoder(WhisperConfig(positions=100, width=16, heads=2, layers=2))


@pytest.fixture(scope="session")
def wav() -> Callable[[Path], np.ndarray]:
    """Reads a 16 kHz, mono, 16-bit file as `read_wav` does."""
    return read_wav


def read_wav(path: Path) -> np.ndarray:
    """(n,) float32 in [-1, 1) of a 16 kHz, mono, 16-bit file."""
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
