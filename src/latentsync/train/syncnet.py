"""Training of SyncNet: what the loop needs to know of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from latentsync import config as configs
from latentsync import weights
from latentsync.config import SyncNetConfig, VAEConfig
from latentsync.errors import InputError, WeightsError
from latentsync.media.clip import read_audio
from latentsync.models.load import copy_state, load_state, read_state
from latentsync.models.syncnet import SyncNet
from latentsync.models.vae import make_vae
from latentsync.speech.sync_mel import sync_mel
from latentsync.train.checkpoint import FOLDER, find
from latentsync.train.clips import ClipSet
from latentsync.train.data import clips_of
from latentsync.train.loop import Batch, Say
from latentsync.train.store import FrameStore
from latentsync.train.syncnet_step import SyncNetStep
from latentsync.train.validate import Judged, judged
from latentsync.train.windows import Pick, Picks, SyncNetWindows, loader
from latentsync.weights.convert import save

if TYPE_CHECKING:
    from latentsync.device import Compute
    from latentsync.train.config import SyncNetTrain

DESCRIPTION = "syncnet.yaml"
WEIGHTS = "syncnet.safetensors"
VALIDATION_PASSES = 4  # windows of each held-out clip: accuracy on one of each would be coarse
VALIDATION_BATCH = 32  # windows together
READER = "lips.safetensors"
SPREAD = 16.0  # vectors of length 1 have elements this much smaller than a linear layer is made for, at 256 of them


class LipReader(nn.Module):
    """A SyncNet, and two linear layers that tell the opening of the lips from its vectors, in each frame of the window. These are for training only.

    What tells sound and picture apart by their lips is hard to find by comparing alone, and easy once either side has been told what lips are.
    """

    def __init__(self, net: SyncNet) -> None:
        super().__init__()
        self.net = net
        self.seen = nn.Linear(net.config.visual.channels[-1], net.config.frames)
        self.heard = nn.Linear(net.config.audio.channels[-1], net.config.frames)

    def forward(self, frames: Tensor, mel: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As SyncNet's (b, d) and (b, d), then (b, f) and (b, f): the opening as seen and as heard, of mean 0 and spread 1 over a clip."""
        vision, audio = self.net(frames, mel)
        return vision, audio, self.seen(vision * SPREAD), self.heard(audio * SPREAD)


class SyncNetTask:
    """SyncNet, the autoencoder where it sees latents, and the clips."""

    name = "syncnet"
    sparse: tuple[str, ...] = ("positive", "negative")

    def __init__(self, config: SyncNetTrain, *, home: str | Path | None = None, say: Say) -> None:
        self.config = config
        self.net = config.net
        self.frames = self.net.frames
        syncnet = SyncNet(self.net)
        if config.start:
            state, start = syncnet_files(config.start, home)
            if start is not None and start != self.net:
                say(f"note: {config.start} describes another SyncNet than this configuration")
            copy_state(syncnet, state, f"SyncNet {config.start}")
            say(f"starts from {config.start}")
        syncnet.gradient_checkpointing = config.run.gradient_checkpointing
        say(f"SyncNet: {sum(p.numel() for p in syncnet.parameters()):,} parameters, all trained")
        self.network: SyncNet | LipReader = LipReader(syncnet) if config.recipe.lips else syncnet
        self.vae = None
        if self.net.latent:
            state = read_state(Path(config.vae).expanduser()) if config.vae else weights.resolve("1.5", home=home, need=("vae",)).state("vae")
            self.vae = make_vae(VAEConfig())
            load_state(self.vae, state, "autoencoder")
            self.vae.requires_grad_(False).eval()
        self.training, self.validation, self.cache = clips_of(config.data, config.run.out, self.frames, self.net.resolution, say)
        self.compute: Compute
        self.step: SyncNetStep

    def place(self, compute: Compute) -> None:
        self.compute = compute
        if self.vae is not None:
            self.vae.to(compute.device, compute.dtype)
        self.step = SyncNetStep(self.net, vae=self.vae, temperature=self.config.recipe.temperature, lips=self.config.recipe.lips)

    def batches(self, *, rank: int, world: int, start: int) -> Iterable[Batch]:
        run = self.config.run
        picks = Picks(len(self.training), seed=run.seed, batch=run.batch, rank=rank, world=world, start=start)
        return loader(
            self._windows(self.training, augment=self.config.recipe.augment),
            picks,
            workers=self.config.data.workers,
            pin_memory=self.compute.device.type != "cpu",
        )

    def held_out(self, *, rank: int, world: int) -> Iterable[Batch]:
        windows = self._windows(self.validation, augment=False)
        clips = min(len(self.validation), self.config.run.validation_clips)
        picks = [Pick(epoch, index, epoch * clips + index) for epoch in range(VALIDATION_PASSES) for index in range(clips)]
        batches = [picks[i : i + VALIDATION_BATCH] for i in range(0, len(picks), VALIDATION_BATCH)]
        return loader(windows, batches[rank::world], workers=self.config.data.workers)

    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return self.step(network, batch)

    def preview(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """Where training compares near windows: how often the sound of held-out clips is told from one beside it, and found when it is shifted."""
        if self.config.recipe.windows == 1 or self.net.latent:
            return {}
        network = _bare(network)
        store, found = self._store(self.validation), []
        for index in range(min(len(self.validation), self.config.run.validation_clips)):
            clip = self.validation[index]
            try:
                frames = torch.from_numpy(np.array(store.frames(clip))).permute(0, 3, 1, 2).float() / 127.5 - 1
                mel = torch.from_numpy(sync_mel(read_audio(clip.path)))
            except InputError:  # the validation's losses have named it
                if self.config.data.on_bad == "error":
                    raise
                continue
            with torch.autocast(self.compute.device.type, self.compute.dtype, enabled=self.compute.dtype != torch.float32):
                result = judged(network, self.net, frames, mel, seed=index, fps=self.config.data.fps)
            if result is not None:
                found.append(result)
        return {f"told_{name}": float(np.mean([getattr(r, name) for r in found])) for name in Judged._fields} if found else {}

    def write(self, folder: Path, network: nn.Module) -> None:
        save(_bare(network).state_dict(), folder / WEIGHTS, {"format": "pt", "latentsync.role": "syncnet"})
        if isinstance(network, LipReader):
            save(_layers(network), folder / READER, {"format": "pt", "latentsync.role": "syncnet's lip reader"})
        (folder / DESCRIPTION).write_text(configs.dump(self.net), encoding="utf-8")

    def read(self, folder: Path) -> None:
        copy_state(_bare(self.network), read_state(folder / WEIGHTS), f"SyncNet of {folder}")
        if isinstance(self.network, LipReader):
            copy_state(self.network, self.network.state_dict() | read_state(folder / READER), f"lip reader of {folder}")

    def _windows(self, clips: ClipSet, *, augment: bool) -> SyncNetWindows:
        recipe = self.config.recipe
        return SyncNetWindows(
            clips,
            frames=self.frames,
            resolution=self.net.resolution,
            lower_half=self.net.lower_half and not self.net.latent,
            seed=self.config.run.seed,
            cache=self.cache,
            windows=recipe.windows,
            apart=recipe.apart,
            span=recipe.span,
            augment=augment,
            store=self._store(clips) if recipe.windows > 1 else None,
            lips=bool(recipe.lips),
        )

    def _store(self, clips: ClipSet) -> FrameStore:
        return FrameStore(self.cache.folder, fps=clips.fps, side=self.net.resolution)


def _bare(network: nn.Module) -> SyncNet:
    found = network.net if isinstance(network, LipReader) else network
    assert isinstance(found, SyncNet)
    return found


def _layers(reader: LipReader) -> dict[str, Tensor]:
    """State of what a reader has beside its SyncNet."""
    return {name: tensor for name, tensor in reader.state_dict().items() if not name.startswith("net.")}


def syncnet_files(source: str, home: str | Path | None) -> tuple[dict[str, Tensor], SyncNetConfig | None]:
    """A run or a checkpoint folder of ours, a weights file, or '' for the published network -> its state and, where it is said, its description."""
    if not source:
        return weights.training_state("syncnet", home=home), SyncNetConfig()
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / FOLDER).is_dir():  # a run's
            path = find(path)
        file = path / WEIGHTS
        if not file.is_file():
            raise WeightsError(f"{path} holds no {WEIGHTS}; give a checkpoint folder of `latentsync train syncnet`, or a weights file")
        described = path / DESCRIPTION
        return read_state(file), configs.parse_as(SyncNetConfig, described.read_text(encoding="utf-8"), str(described))
    if not path.is_file():
        raise WeightsError(f"there is no SyncNet at {path}; give a checkpoint folder, a weights file, or nothing for the published one")
    return read_state(path), None


def load_syncnet(source: str, home: str | Path | None) -> tuple[SyncNet, SyncNetConfig]:
    """The frozen SyncNet of a source as in `syncnet_files`; a bare file is taken to be the published network."""
    state, described = syncnet_files(source, home)
    config = described or SyncNetConfig()
    net = load_state(SyncNet(config), state, f"SyncNet {source or 'stable_syncnet.pt'}")
    return net.requires_grad_(False).eval(), config
