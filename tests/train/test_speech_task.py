"""Training of the speech encoder, on tones whose loudness is the opening of the lips."""

from __future__ import annotations

import dataclasses
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from latentsync import config as configs
from latentsync import train
from latentsync.config import WhisperConfig
from latentsync.errors import InputError, UsageError
from latentsync.models.load import read_state
from latentsync.speech.mel import hz_to_mel
from latentsync.speech.track import SpeechTrack
from latentsync.speech.whisper import SpeechEncoder, load_whisper
from latentsync.train.speech import SpeechNet, SpeechTask, Voices, correlation, rows_at, scaled_bands
from latentsync.train.truth import read_truth, told, told_split

SECONDS = 3.0
RATE = 16000


def sound(path: Path, seed: int) -> Path:
    """A tone that is loud where the lips are open, with its truth beside it."""
    draw = np.random.default_rng(seed)
    rows = int(SECONDS * 25)
    gap = np.interp(np.arange(rows), np.arange(0, rows + 10, 8), draw.uniform(0, 1, len(range(0, rows + 10, 8))))
    time = np.arange(int(SECONDS * RATE)) / RATE
    pitch = draw.uniform(150, 400)
    loud = np.interp(time * 25, np.arange(rows), gap)
    samples = 0.3 * loud * sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 6)) + 1e-3 * draw.normal(size=time.size)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 20000).astype("<i2").tobytes())
    np.savez(path.with_suffix(".npz"), articulation=np.stack([gap, 1 - gap], 1).astype(np.float16), lip_gap=gap.astype(np.float32))
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for seed in range(6):
        sound(folder / f"s{seed}.wav", seed)
    return folder


def settings(sounds: Path, out: Path, *more: str) -> train.SpeechTrain:
    config, _ = train.load("speech", "tiny", [f"data.train={sounds}", f"run.out={out}", *more])
    assert isinstance(config, train.SpeechTrain)
    return config


def test_it_learns_to_hear_the_lips_and_what_is_written_is_a_whisper(sounds: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    config = settings(sounds, tmp_path / "run", "run.steps=60", "optimizer.learning_rate=0.01", "run.ema=0.9", "run.validate_every=0")
    outcome = train.run(config, say=heard.append)
    last = next(line for line in reversed(heard) if "validation" in line)
    assert float(last.split(", r ")[1].split(",")[0]) > 0.75, last
    assert outcome.checkpoint is not None
    assert (tmp_path / "run" / "validation" / "step-00000060" / "lips.png").is_file()
    for folder in (outcome.checkpoint, outcome.checkpoint / "ema"):
        described = configs.parse_as(WhisperConfig, (folder / "speech.yaml").read_text(), "speech.yaml")
        assert described == config.net
        encoder = load_whisper(read_state(folder / "whisper.safetensors"), described)  # strict: no head in it
        assert encoder.features(torch.zeros(80, 10)).shape == (5, 1, 32)
    with safe_open(str(outcome.checkpoint / "whisper.safetensors"), "pt") as file:
        assert file.metadata()["latentsync.n_audio_state"] == "32"


def test_a_checkpoint_holds_all_that_is_trained(sounds: Path, tmp_path: Path) -> None:
    config = settings(sounds, tmp_path / "run")
    one, other = (SpeechTask(config, say=lambda _: None) for _ in range(2))
    with torch.no_grad():
        for parameter in one.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        one.network.mean.add_(1)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    one.write(folder, one.network)
    other.read(folder)
    for name, value in one.network.state_dict().items():
        torch.testing.assert_close(other.network.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_samples_depend_on_seed_and_position_alone(sounds: Path, tmp_path: Path) -> None:
    task = SpeechTask(settings(sounds, tmp_path / "run", "run.batch=2"), say=lambda _: None)

    def batch(start: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        return next(iter(task.batches(rank=rank, world=world, start=start)))

    assert torch.equal(batch(1)["mel"], batch(0, rank=1, world=2)["mel"])
    assert not torch.equal(batch(1)["mel"], batch(0)["mel"])
    for name, shape in {"mel": (2, 80, 200), "target": (2, 100, 3), "known": (2, 100)}.items():
        assert batch(0)[name].shape == shape


def test_held_out_sounds_are_heard_as_in_use(sounds: Path, tmp_path: Path) -> None:
    """The task's mel of a whole sound is that which the encoder gets when a video is synchronised."""
    task = SpeechTask(settings(sounds, tmp_path / "run", "net.positions=200"), say=lambda _: None)
    batch = next(iter(task.held_out(rank=0, world=1)))
    from latentsync.media.clip import read_audio

    samples = read_audio(task.validation.media[0])
    encoder = task.network.encoder
    track = SpeechTrack(lambda: iter([samples]), encoder)
    expected = track.features()[:, 0]
    with torch.no_grad():
        found = encoder.states(batch["mel"][:1])[-1][0, : len(expected)]
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)  # mels are kept in half precision


def test_only_the_last_depth_is_heard_where_asked() -> None:
    full = SpeechEncoder(WhisperConfig(positions=50, width=16, heads=2, layers=2))
    last = SpeechEncoder(dataclasses.replace(full.config, depths="last"))
    last.load_state_dict(full.state_dict())
    mel = torch.randn(80, 60)
    assert (full.depths, last.depths) == (3, 1)
    assert torch.equal(last.features(mel), full.features(mel)[:, -1:])
    track = SpeechTrack(lambda: iter([np.zeros(RATE, np.float32)]), last)
    assert track.context(Fraction(1, 2)).shape == (track.tokens, 16) == (10, 16)


def test_the_network_is_trained_without_what_is_fixed() -> None:
    net = SpeechNet(WhisperConfig(positions=50, width=16, heads=2, layers=1), 3)
    fixed = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert fixed == {"encoder.encoder.embed_positions.weight", "encoder.norm.weight", "encoder.norm.bias"}
    assert net(torch.zeros(2, 80, 100)).shape == (2, 50, 3)


def test_voices_keep_the_shape_and_change_the_sound() -> None:
    draw = np.random.default_rng(0)
    mel = draw.normal(-3, 1, (40, 80)).astype(np.float32)
    for _ in range(5):
        changed = Voices().room(Voices().sound(mel, draw), draw)
        assert changed.shape == mel.shape
        assert np.isfinite(changed).all()
        assert not np.allclose(changed, mel)


def test_frequencies_are_scaled_in_bands() -> None:
    np.testing.assert_allclose(scaled_bands(80, 1.0), np.arange(80), atol=1e-9)
    moved = scaled_bands(80, 1.1) - np.arange(80)
    assert moved[:20].max() < moved[30] == pytest.approx(moved[60])  # linear below 1 kHz, logarithmic above
    assert moved[30] == pytest.approx(np.log(1.1) / np.log(6.4) * 27 / (hz_to_mel(8000.0) / 81))


def test_rows_between_rows() -> None:
    rows = np.array([[0.0, 10.0], [2.0, 30.0]])
    np.testing.assert_allclose(rows_at(rows, np.array([-1, 0, 0.25, 1, 5])), [[0, 10], [0, 10], [0.5, 15], [2, 30], [2, 30]])
    np.testing.assert_allclose(rows_at(rows[:1], np.array([0.5])), [[0, 10]])


def test_correlation_is_pearsons_over_what_is_known() -> None:
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=(2, 1, 30))
    known = np.ones((1, 30))
    known[:, 20:] = 0
    expected = np.corrcoef(a[0, :20], b[0, :20])[0, 1]
    assert float(correlation(*map(torch.from_numpy, (a, b, known)))[0]) == pytest.approx(expected)
    assert float(correlation(torch.ones(1, 5), torch.rand(1, 5), torch.ones(1, 5))[0]) == 0


def test_what_cannot_be_used_is_named(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"seconds is 3\.0.*2 s"):
        SpeechTask(settings(sounds, tmp_path, "seconds=3"), say=lambda _: None)
    with pytest.raises(InputError, match="nothing in"):
        told(tmp_path)
    with pytest.raises(InputError, match="there is no folder or list"):
        told(tmp_path / "absent")
    (tmp_path / "list.txt").write_text("absent.wav\n")
    with pytest.raises(InputError, match=r"absent\.npz beside it"):
        told(tmp_path / "list.txt")
    np.savez(tmp_path / "x.npz", lip_gap=np.array([0, np.nan]))
    with pytest.raises(InputError, match="holds no 'articulation'"):
        read_truth(tmp_path / "x.wav", ("articulation",))
    with pytest.raises(InputError, match="not finite"):
        read_truth(tmp_path / "x.wav", ("lip_gap",))
    (tmp_path / "y.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"cannot read .*y\.npz"):
        read_truth(tmp_path / "y.wav", ("lip_gap",))


def test_truth_is_found_beside_media_and_held_out_by_name(tmp_path: Path) -> None:
    for stem in "abcdef":
        (tmp_path / f"{stem}.mp4").touch()
        np.savez(tmp_path / f"{stem}.npz", lip_gap=np.zeros(3))
    (tmp_path / "a.wav").touch()
    (tmp_path / "alone.mp4").touch()
    assert [p.name for p in told(tmp_path)] == ["a.wav", "b.mp4", "c.mp4", "d.mp4", "e.mp4", "f.mp4"]
    training, validation = told_split(str(tmp_path), "")
    assert len(validation) == 1
    assert sorted(training + validation) == told(tmp_path)
    assert told_split(str(tmp_path), str(tmp_path))[1] == told(tmp_path)
