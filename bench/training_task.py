"""Training steps of the presets without files: networks of full size with random weights, batches that are made up.

The step is the loop's own (`latentsync.train.loop`), with accelerate, autocast, clipping and AdamW; only what it reads is replaced. Used by
`training.py`, which computes memory and measures on the CPU, and by `training_gpu.py`, which measures on a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from latentsync.config import VIDEOMAES, SyncNetConfig, VAEConfig, VideoMAEConfig
from latentsync.models.lpips import LPIPS
from latentsync.models.syncnet import SyncNet
from latentsync.models.unet import UNet
from latentsync.models.vae import Autoencoder, make_vae
from latentsync.models.videomae import VideoMAE
from latentsync.train import SyncNetTrain, UNetTrain, load
from latentsync.train.loop import Batch, Position, _accelerator, _Loop, _Stop
from latentsync.train.lora import add_lora
from latentsync.train.syncnet import SyncNetTask
from latentsync.train.unet import UNetTask, choose_trainable, describe

# Preset -> GB of GPU memory that the published project says it needs, at batch 1.
UNETS = {"stage1": 23, "stage2": 30, "stage2_efficient": 20, "stage1_512": 30, "stage2_512": 55}
SIZES = ("full", "mid", "tiny")
TOKENS = 50

# A quarter and a sixteenth of the widths: what is tried on a CPU.
MID_UNET = {"channels": (64, 128, 256, 256), "heads": 4}
MID_VAE = VAEConfig(channels=(32, 64, 128, 128))
MID_VIDEOMAE = VideoMAEConfig(width=384, depth=12, heads=6, mlp_ratio=4.0, patch=16)
TINY_UNET = {"channels": (32, 32), "layers_per_block": 1, "heads": 2}
TINY_VAE = VAEConfig(channels=(16, 16, 16, 16), layers_per_block=1, groups=8)
TINY_VIDEOMAE = VideoMAEConfig(size=32, patch=16, width=32, depth=2, heads=2)

# A function that makes a network and whether it is frozen -> the network with weights: float32 where they are trained, else those of the run.
Maker = Callable[[Callable[[], nn.Module], bool], Any]


def settings(preset: str, *others: str, **run: Any) -> UNetTrain | SyncNetTrain:
    """The configuration of a preset, with these values of its `run` changed, and others ("lora.rank=16")."""
    config, _ = load("syncnet" if preset.startswith("syncnet") else "unet", preset, [*(f"run.{k}={v}" for k, v in run.items()), *others])
    return config


class UNetBench(UNetTask):
    """The U-Net's task of a preset."""

    def __init__(self, config: UNetTrain, make: Maker, size: str = "full") -> None:
        self.config = config
        self.model = describe(config)
        syncnet, videomae = SyncNetConfig(), VIDEOMAES[config.videomae]
        if size == "mid":
            self.model = replace(self.model, unet=replace(self.model.unet, **MID_UNET), vae=MID_VAE)
            syncnet, videomae = narrower(syncnet, 4), MID_VIDEOMAE
        elif size == "tiny":
            self.model = replace(self.model, resolution=64, unet=replace(self.model.unet, **TINY_UNET), vae=TINY_VAE)
            syncnet, videomae = narrower(syncnet, 32), TINY_VIDEOMAE
        self.frames = self.model.window
        self.network = cast(UNet, make(self._unet, False))
        if config.lora.rank:
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(".lora_" in name)
        else:
            choose_trainable(self.network, config.trainable)
        self.network.gradient_checkpointing = config.run.gradient_checkpointing
        losses = config.losses
        self.vae = cast(Autoencoder, make(lambda: make_vae(self.model.vae), True))
        self.syncnet = cast(SyncNet, make(lambda: SyncNet(syncnet), True)) if losses.sync else None
        self.syncnet_config = syncnet if losses.sync else None
        self.lpips = cast(LPIPS, make(LPIPS, True)) if losses.lpips else None
        self.videomae = cast(VideoMAE, make(lambda: VideoMAE(videomae), True)) if losses.trepa else None
        self.syncnet_of = syncnet

    def _unet(self) -> UNet:
        unet, lora = UNet(self.model.unet), self.config.lora
        if lora.rank:
            add_lora(unet, lora.rank, lora.alpha or lora.rank, lora.patterns)
        return unet

    def batches(self, *, rank: int, world: int, start: int) -> Iterator[Batch]:
        b, f, side = self.config.run.batch, self.frames, self.model.resolution
        generator = torch.Generator().manual_seed(start)

        def pictures() -> Tensor:
            return torch.randint(0, 256, (b, f, 3, side, side), generator=generator, dtype=torch.uint8)

        batch: Batch = {
            "frames": pictures(),
            "reference": pictures(),
            "audio": torch.randn(b, f, TOKENS, self.model.unet.audio_dim, generator=generator),
            "position": torch.arange(b),
            "weight": torch.ones(b),
        }
        if self.syncnet is not None:
            batch["mel"] = torch.randn(b, 1, 80, self.syncnet_of.mel_columns, generator=generator).clamp(-4, 4)
        while True:
            yield dict(batch)


class SyncNetBench(SyncNetTask):
    """SyncNet's task of a preset."""

    def __init__(self, config: SyncNetTrain, make: Maker, size: str = "full") -> None:
        self.config = config
        self.net = {"full": config.net, "mid": narrower(config.net, 4), "tiny": narrower(config.net, 32)}[size]
        self.frames = self.net.frames
        self.network = cast(SyncNet, make(lambda: SyncNet(self.net), False).requires_grad_(True))
        self.network.gradient_checkpointing = config.run.gradient_checkpointing
        vae = TINY_VAE if size == "tiny" else MID_VAE if size == "mid" else VAEConfig()
        self.vae = make(lambda: make_vae(vae), True) if self.net.latent else None

    def batches(self, *, rank: int, world: int, start: int) -> Iterator[Batch]:
        b = self.config.run.batch
        generator = torch.Generator().manual_seed(start)
        height, width = (self.net.resolution,) * 2 if self.net.latent else self.net.visual_size
        batch: Batch = {
            "frames": torch.randint(0, 256, (b, self.frames, 3, height, width), generator=generator, dtype=torch.uint8),
            "mel": torch.randn(b, 1, 80, self.net.mel_columns, generator=generator).clamp(-4, 4),
            "label": (torch.arange(b) % 2).float(),
            "weight": torch.ones(b),
        }
        while True:
            yield dict(batch)


def narrower(net: SyncNetConfig, factor: int) -> SyncNetConfig:
    """The same SyncNet with narrower layers; the last keeps several channels for each of the 32 groups of its normalisation."""
    encoders = {
        which: replace(encoder, channels=(*(max(32, c // factor) for c in encoder.channels[:-1]), max(256, encoder.channels[-1] // factor)))
        for which, encoder in (("audio", net.audio), ("visual", net.visual))
    }
    return replace(net, **encoders)  # type: ignore[arg-type]


def task(config: UNetTrain | SyncNetTrain, make: Maker, size: str = "full") -> UNetBench | SyncNetBench:
    """The task of a configuration."""
    return UNetBench(config, make, size) if isinstance(config, UNetTrain) else SyncNetBench(config, make, size)


@contextmanager
def stepper(work: UNetBench | SyncNetBench, config: UNetTrain | SyncNetTrain) -> Iterator[_Loop]:
    """The loop of a task, whose `_step` may be called. Nothing is saved."""
    accelerator, compute = _accelerator(config.run)
    with tempfile.TemporaryDirectory() as folder, _Stop() as stop:
        loop = _Loop(
            cast(Any, work), config.run, config.optimizer, "", Path(folder), accelerator, compute, Position(0, None), stop, lambda _: None, None
        )
        try:
            yield loop
        finally:
            loop.close()
