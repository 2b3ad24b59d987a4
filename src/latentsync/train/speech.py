"""Training of the small speech encoder: it hears speech and tells what mouth and tongue do, and so learns what the U-Net needs to hear.

The encoder is of Whisper's shape, and a linear head on its last states regresses the articulation channels and the opening of the lips at 50 Hz.
The head is only for training: what is written is the encoder, which then is frozen, as Whisper is in the published model. Voices and rooms are
varied in the mel itself (`Voices`), so that what is learnt is said by none of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from latentsync import config as configs
from latentsync.config import WhisperConfig
from latentsync.errors import OutputError, UsageError, WeightsError
from latentsync.media.clip import read_audio
from latentsync.models.load import copy_state, read_state
from latentsync.speech.mel import HOP, SAMPLE_RATE, hz_to_mel, log_mel, mel_to_hz, normalise
from latentsync.speech.track import SPEECH_RATE
from latentsync.speech.whisper import SpeechEncoder, load_whisper, openai_checkpoint
from latentsync.train.cache import Cache, content_digest
from latentsync.train.checkpoint import FOLDER, find
from latentsync.train.loop import Batch, Say
from latentsync.train.truth import read_truth, told_split
from latentsync.train.windows import Picks
from latentsync.weights.convert import save

if TYPE_CHECKING:
    from latentsync.device import Compute
    from latentsync.train.config import SpeechTrain

DESCRIPTION = "speech.yaml"
WEIGHTS = "whisper.safetensors"
HEAD = "head.safetensors"
CHANNELS = ("articulation", "lip_gap")
VALIDATION_BATCH = 16  # sounds together
MEASURED = 200  # sounds of which mean and spread of the targets are taken
_MEL_RATE = SAMPLE_RATE // HOP  # frames a second
_CACHED = "speech-mel-1"  # goes up when the same sound leads to other values
_DRAWS = 21  # of this task's random numbers, so that they are shared with no other


class SpeechNet(nn.Module):
    """(b, mels, 2 * positions) normalised log-mel of whole blocks -> (b, positions, channels) standardised articulation, the lips' opening last."""

    mean: Tensor
    spread: Tensor

    def __init__(self, config: WhisperConfig, channels: int) -> None:
        super().__init__()
        self.encoder = SpeechEncoder(config)
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):  # transformers' own start is made for large widths: small ones would begin nearly silent
                nn.init.normal_(module.weight, std=0.7 * module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # the backward pass of the fused attention is slow on CPUs; the plain one gives the same
        self.encoder.encoder.config._attn_implementation = "eager"
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(not name.endswith("embed_positions.weight") and not name.startswith("norm."))
        self.head = nn.Linear(config.width, channels)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))

    def forward(self, mel: Tensor) -> Tensor:
        return self.head(self.encoder.states(mel)[-1])


class Sounds:
    """Sounds with their tracks by number: log10 mel power (n, mels) and targets (rows, channels) at `fps` rows a second."""

    def __init__(self, media: list[Path], *, mels: int, fps: int, cache: Cache) -> None:
        self.media, self.mels, self.fps, self.cache = media, mels, fps, cache

    def __len__(self) -> int:
        return len(self.media)

    def mel(self, index: int) -> np.ndarray:
        """(n, mels) float32, 100 rows a second, not normalised; computed once per content."""
        path = self.media[index]

        def make() -> np.ndarray:
            return np.concatenate([m.numpy() for m in log_mel(iter([read_audio(path)]), self.mels)]).astype(np.float16)

        return self.cache.array(f"{_CACHED}-{self.mels}-{content_digest(path)}", make).astype(np.float32)

    def targets(self, index: int) -> np.ndarray:
        """(rows, channels) float32: the articulation channels, then the opening of the lips."""
        truth = read_truth(self.media[index], CHANNELS)
        articulation, gap = truth["articulation"], truth["lip_gap"]
        rows = min(len(articulation), len(gap))
        return np.column_stack([articulation[:rows], gap[:rows]])

    def at(self, index: int, seconds: np.ndarray) -> np.ndarray:
        """(n, channels): the targets at n times, between their rows on straight lines."""
        return rows_at(self.targets(index), seconds * self.fps)


class Voices:
    """What a sound is turned into before it is heard: other rates, voice tracts, microphones, rooms and noises, all in the mel.

    Everything is drawn from the generator that is given, in a fixed order.
    """

    rate = (0.8, 1.25)  # of speaking
    tract = 0.12  # of the logarithm of all frequencies (Jaitly and Hinton, Vocal Tract Length Perturbation, 2013)
    colour = 0.2  # decades that a microphone may add or take over a band, standard deviation
    noise = (-7.0, -2.5)  # decades of the noise below the loudest value
    noisy, roomy, faded = 0.5, 0.25, 0.1  # shares of the sounds

    def speed(self, draw: np.random.Generator) -> float:
        return float(np.exp(draw.uniform(*np.log(self.rate))))

    def sound(self, mel: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """(n, mels) log10 power of one speaker in one room -> the same of another."""
        bands = np.arange(mel.shape[1])
        mel = rows_at(mel.T, scaled_bands(len(bands), float(np.exp(draw.uniform(-self.tract, self.tract))))).T
        phases = draw.uniform(0, 2 * np.pi, 4)
        waves = np.cos(bands[None] / len(bands) * np.pi * np.arange(1, 5)[:, None] + phases[:, None])
        curve = (draw.normal(0, self.colour, 4)[:, None] * waves).sum(0) + draw.uniform(-0.5, 0.5)
        if draw.random() < self.roomy:
            share, decay = draw.uniform(0.02, 0.3), draw.uniform(0.3, 0.8)
            power = 10.0**mel
            tail = np.zeros_like(power)
            for i in range(1, len(power)):
                tail[i] = decay * (tail[i - 1] + share * power[i - 1])
            mel = np.log10(power + tail)
        return (mel + curve).astype(np.float32)

    def room(self, mel: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Noise over the whole of a sample (n, mels)."""
        bands = np.linspace(-1, 1, mel.shape[1])
        level = mel.max() + draw.uniform(*self.noise) + draw.normal(0, 0.5) * bands + draw.normal(0, 0.4) * np.cos(3 * bands + draw.uniform(0, 6))
        if draw.random() < self.noisy:
            hiss = draw.gamma(4.0, 0.25, mel.shape)
            mel = np.log10(10.0**mel + hiss * 10.0**level)
        return np.asarray(mel, np.float32)


class SpeechTask:
    """The speech encoder with its head, and the sounds."""

    name = "speech"
    sparse: tuple[str, ...] = ()

    def __init__(self, config: SpeechTrain, *, say: Say) -> None:
        net = config.net
        self.config = config
        self.positions = round(config.seconds * SPEECH_RATE)
        self.frames = self.positions
        if not 1 <= self.positions <= net.positions:
            longest = net.positions / SPEECH_RATE
            raise UsageError(f"seconds is {config.seconds}; the encoder's blocks hold more than 0 and at most {longest:g} s (net.positions / 50)")
        training, validation = told_split(config.data.train, config.data.validation)
        cache = Cache(Path(config.data.cache or Path(config.run.out) / "cache").expanduser())
        self.training, self.validation = (Sounds(m, mels=net.mels, fps=config.data.fps, cache=cache) for m in (training, validation))
        say(f"{len(training):,} sounds to train on, {len(validation):,} held out")
        some = np.concatenate([self.training.targets(i) for i in range(0, len(training), -(-len(training) // MEASURED))])
        self.network = SpeechNet(net, some.shape[1])
        self.network.mean.copy_(torch.from_numpy(some.mean(0)))
        self.network.spread.copy_(torch.from_numpy(some.std(0).clip(1e-3)))
        if config.start:
            self._start(Path(config.start).expanduser())
            say(f"starts from {config.start}")
        say(f"speech encoder: {sum(p.numel() for p in self.network.encoder.parameters()):,} parameters")
        self.voices = Voices()

    def place(self, compute: Compute) -> None:
        pass  # there is no frozen network

    def batches(self, *, rank: int, world: int, start: int) -> Iterable[Batch]:
        run = self.config.run
        for picks in Picks(len(self.training), seed=run.seed, batch=run.batch, rank=rank, world=world, start=start):
            yield _stacked([self._sample(pick.index, np.random.default_rng([_DRAWS, run.seed, pick.position])) for pick in picks])

    def held_out(self, *, rank: int, world: int) -> Iterable[Batch]:
        count = min(len(self.validation), self.config.run.validation_clips)
        for first in range(rank * VALIDATION_BATCH, count, world * VALIDATION_BATCH):
            yield _stacked([self._whole(i) for i in range(first, min(first + VALIDATION_BATCH, count))])

    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """loss, the squared error of standardised channels; articulation and lips, its parts; r, the lips' correlation per sample, mean."""
        made = network(batch["mel"]).float()
        true = (batch["target"] - self.network.mean) / self.network.spread
        known = batch["known"][..., None]
        errors = ((made - true).square() * known).sum((0, 1)) / known.sum().clamp_min(1)
        channels, lips = errors[:-1].sum(), errors[-1]
        loss = (channels + self.config.lip_gap * lips) / (len(errors) - 1 + self.config.lip_gap)
        r = correlation(made[..., -1], true[..., -1], batch["known"]).mean()
        return {"loss": loss, "articulation": channels / max(1, len(errors) - 1), "lips": lips, "r": r}

    def preview(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """Curves of the lips' opening, heard and true, of the first held-out sounds."""
        count = min(len(self.validation), self.config.run.validation_videos, 8)
        if not count:
            return {}
        batch = _stacked([self._whole(i) for i in range(count)])
        device = self.network.mean.device
        made = (network(batch["mel"].to(device)).float() * self.network.spread + self.network.mean)[..., -1].cpu()
        _draw(folder / "lips.png", batch["target"][..., -1].numpy(), made.numpy(), batch["known"].numpy(), [m.stem for m in self.validation.media])
        return {}

    def write(self, folder: Path, network: nn.Module) -> None:
        assert isinstance(network, SpeechNet)
        checkpoint = openai_checkpoint(network.encoder)
        notes = {"format": "pt", "latentsync.role": "whisper"} | {f"latentsync.{k}": str(v) for k, v in checkpoint["dims"].items()}
        save(checkpoint["model_state_dict"], folder / WEIGHTS, notes)
        save(_head(network), folder / HEAD, {"format": "pt", "latentsync.role": "speech head"})
        (folder / DESCRIPTION).write_text(configs.dump(network.encoder.config), encoding="utf-8")

    def read(self, folder: Path) -> None:
        self._encoder(folder / WEIGHTS)
        state = self.network.state_dict() | dict(read_state(folder / HEAD))
        copy_state(self.network, state, f"speech head of {folder}")

    def _start(self, path: Path) -> None:
        if path.is_dir():
            path = find(path) if (path / FOLDER).is_dir() else path
            if not (path / WEIGHTS).is_file():
                raise WeightsError(f"{path} holds no {WEIGHTS}; give a checkpoint folder of `latentsync train speech`, or a file of Whisper's shape")
            if (path / HEAD).is_file():
                self.read(path)
                return
            path /= WEIGHTS
        self._encoder(path)

    def _encoder(self, file: Path) -> None:
        if not file.is_file():
            raise WeightsError(f"there is no speech encoder at {file}")
        state = load_whisper(read_state(file), self.config.net).state_dict()
        self.network.encoder.load_state_dict(state)

    # Samples: "mel" (mels, 2 * block) float32, "target" (block, channels), "known" (block,) 1.0 where there is a target.

    def _sample(self, index: int, draw: np.random.Generator) -> dict[str, Tensor]:
        """Sounds one behind the other until the sample is full: every position of a block is trained, as every position is used."""
        mels: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        filled, first = 0, True
        limit = self.positions if draw.random() >= self.voices.faded else max(1, int(draw.uniform(0.3, 1.0) * self.positions))
        while filled < limit:
            mel = self.training.mel(index)
            rate = self.voices.speed(draw)
            length = max(1, int(len(mel) / 2 / rate))  # positions
            begin = int(draw.integers(0, max(1, length - limit // 4))) if first else 0
            count = min(length - begin, limit - filled)
            part = np.arange(2 * begin, 2 * (begin + count))
            mels.append(self.voices.sound(rows_at(mel, part * rate), draw))
            targets.append(self.training.at(index, np.arange(begin, begin + count) * rate / SPEECH_RATE))
            filled, first = filled + count, False
            index = int(draw.integers(len(self.training)))
        mel = self.voices.room(np.concatenate(mels), draw)
        peak = float(mel.max()) + max(0.0, float(draw.normal(0, 0.3)))  # the rest of a sound may be louder
        return self._padded(mel, np.concatenate(targets), peak)

    def _whole(self, index: int) -> dict[str, Tensor]:
        """A held-out sound as it is in use, from its beginning, as much as a block holds."""
        mel = self.validation.mel(index)
        count = min(len(mel) // 2, self.config.net.positions)
        return self._padded(mel[: 2 * count], self.validation.at(index, np.arange(count) / SPEECH_RATE), float(mel.max()))

    def _padded(self, mel: np.ndarray, target: np.ndarray, peak: float) -> dict[str, Tensor]:
        block, count = self.config.net.positions, len(target)
        out = {"mel": torch.zeros(mel.shape[1], 2 * block), "target": torch.zeros(block, target.shape[1]), "known": torch.zeros(block)}
        out["mel"][:, : 2 * count] = normalise(torch.from_numpy(mel), peak).T
        out["target"][:count] = torch.from_numpy(target)
        out["known"][:count] = 1.0
        return out


def scaled_bands(mels: int, factor: float) -> np.ndarray:
    """(mels,) places between mel bands, counted in bands: where each band's frequency, times the factor, lies."""
    lowest, highest = hz_to_mel(0.0), hz_to_mel(SAMPLE_RATE / 2)
    centres = lowest + (highest - lowest) * np.arange(1, mels + 1) / (mels + 1)
    moved = np.array([hz_to_mel(float(hz) * factor) for hz in mel_to_hz(centres)])
    return np.clip((moved - lowest) / (highest - lowest) * (mels + 1) - 1, 0, mels - 1)


def rows_at(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n, c) rows -> (m, c) float32 at places that count rows, on straight lines between them, held at the ends."""
    places = np.clip(places, 0, len(rows) - 1)
    low = np.minimum(places.astype(np.int64), max(0, len(rows) - 2))
    high = np.minimum(low + 1, len(rows) - 1)
    share = (places - low)[:, None].astype(np.float32)
    return np.asarray(rows[low] * (1 - share) + rows[high] * share, np.float32)


def correlation(a: Tensor, b: Tensor, known: Tensor) -> Tensor:
    """(n, t), (n, t) and weights (n, t) -> (n,) Pearson's r of each row; 0 where one of them does not move."""
    total = known.sum(1, keepdim=True).clamp_min(1)
    a = (a - (a * known).sum(1, keepdim=True) / total) * known
    b = (b - (b * known).sum(1, keepdim=True) / total) * known
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt().clamp_min(1e-8)


def _stacked(samples: list[dict[str, Tensor]]) -> Batch:
    batch: Batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    return batch | {"weight": torch.ones(len(samples))}


def _head(network: SpeechNet) -> dict[str, Tensor]:
    state = network.state_dict()
    return {k: v.detach().clone() for k, v in state.items() if not k.startswith("encoder.")}


def _draw(target: Path, true: np.ndarray, made: np.ndarray, known: np.ndarray, names: list[str]) -> None:
    """A panel for each sound: the opening of the lips over time, true and heard."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise UsageError('training needs the packages of the extra "train": pip install "latentsync[train]"') from e
    figure = Figure(figsize=(12, 1.8 * len(true)), layout="constrained")
    panels: Iterator = iter(figure.subplots(len(true), squeeze=False)[:, 0])
    for panel, a, b, k, name in zip(panels, true, made, known.astype(bool), itertools.chain(names), strict=False):
        seconds = np.arange(k.sum()) / SPEECH_RATE
        panel.plot(seconds, a[k], color="#222222", lw=1, label="true")
        panel.plot(seconds, b[k], color="#e07a1f", lw=1, label="heard")
        panel.set_title(name, fontsize=8, loc="left")
    figure.legend(*panel.get_legend_handles_labels(), loc="upper right", fontsize=8)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=100)
    except OSError as e:
        raise OutputError(f"cannot write {target}: {e.strerror or e}") from e
