"""Training of the denoising U-Net: what the loop needs to know of it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from latentsync import config as configs
from latentsync import weights
from latentsync.config import VIDEOMAES, ModelConfig, VAEConfig, WhisperConfig
from latentsync.errors import InputError, UsageError, WeightsError
from latentsync.loading import Model
from latentsync.media.clip import read_audio, read_frames
from latentsync.models.load import copy_state, load_state, read_state
from latentsync.models.lpips import LPIPS, join_lpips
from latentsync.models.unet import UNet
from latentsync.models.vae import make_vae
from latentsync.models.videomae import VideoMAE
from latentsync.options import Options
from latentsync.speech.sync_mel import sync_mel
from latentsync.speech.track import SpeechTrack
from latentsync.speech.whisper import SpeechEncoder, load_whisper
from latentsync.train.checkpoint import FOLDER, find
from latentsync.train.clips import ClipSet
from latentsync.train.config import RecipeConfig
from latentsync.train.data import clips_of
from latentsync.train.draws import draws
from latentsync.train.frozen import round_frozen
from latentsync.train.latents import Latents
from latentsync.train.loop import Batch, Say
from latentsync.train.lora import adapter_files, add_lora, base_for, read_adapter
from latentsync.train.start import start_unet
from latentsync.train.syncnet import load_syncnet
from latentsync.train.unet_step import UNetStep
from latentsync.train.validate import HeldOut, preview
from latentsync.train.windows import Pick, Picks, UNetWindows, loader, weights_digest
from latentsync.weights.convert import notes, save

if TYPE_CHECKING:
    from latentsync.config import SyncNetConfig
    from latentsync.device import Compute
    from latentsync.models.syncnet import SyncNet
    from latentsync.train.config import UNetTrain

PREVIEW_WINDOWS = 3  # of each clip: two seconds show whether lips follow


class UNetTask:
    """The U-Net, the frozen networks around it, and the clips."""

    name = "unet"
    sparse: tuple[str, ...] = ()

    def __init__(self, config: UNetTrain, *, home: str | Path | None = None, say: Say) -> None:
        self.config = config
        self.model = describe(config)
        self.frames = self.model.window
        speech, autoencoder = shared_files(config, self.model, home)
        self._whisper_state = read_state(speech)
        self.whisper = partial(whisper_from, speech, self.model.whisper)

        self.network = UNet(self.model.unet)
        for line in start_unet(self.network, config.start, home):
            say(line)
        if config.lora.rank:
            self.base = base_for(self.network, config.start, home)
            add_lora(self.network, config.lora.rank, config.lora.alpha or config.lora.rank, config.lora.patterns)
        else:
            choose_trainable(self.network, config.trainable)
        trained, total = (sum(p.numel() for p in self.network.parameters() if p.requires_grad >= wanted) for wanted in (True, False))
        say(f"U-Net of {total:,} parameters, {trained:,} of them trained ({trained / total:.1%})")
        self.network.gradient_checkpointing = config.run.gradient_checkpointing

        losses = config.losses
        self._vae_state = read_state(autoencoder)
        self.vae = load_state(make_vae(self.model.vae), self._vae_state, f"autoencoder {autoencoder}")
        self.syncnet: SyncNet | None = None
        self.syncnet_config: SyncNetConfig | None = None
        if losses.sync or config.syncnet:
            self.syncnet, self.syncnet_config = load_syncnet(config.syncnet, home)
        self.lpips = None
        if losses.lpips:
            joined = join_lpips(weights.training_state("vgg16", home), weights.training_state("lpips", home))
            self.lpips = load_state(LPIPS(), joined, "LPIPS")
        self.videomae = None
        if losses.trepa:
            state = weights.training_state("videomae", home, config.videomae_file)
            self.videomae = load_state(VideoMAE(VIDEOMAES[config.videomae]), state, f"VideoMAE {config.videomae}")
        if self.syncnet_config is not None and self.syncnet_config.frames != self.frames:
            raise UsageError(
                f"this SyncNet hears windows of {self.syncnet_config.frames} frames, the U-Net makes {self.frames}; take one of {self.frames}"
            )

        self.training, self.validation, self.cache = clips_of(config.data, config.run.out, self.frames, self.model.resolution, say)
        self.latents: Latents | None = None
        self.say = say
        self.compute: Compute
        self.step: UNetStep

    # What the loop asks.

    def place(self, compute: Compute) -> None:
        self.compute = compute
        if compute.device.type != "cpu":  # there the exact weights would lie in the same memory
            round_frozen(self.network, compute.dtype)
        for network in (self.vae, self.syncnet, self.lpips, self.videomae):
            if network is not None:
                network.to(compute.device, compute.dtype)
        self.step = UNetStep(
            diffusion=self.model.diffusion,
            weights=self.config.losses,
            vae=self.vae,
            resolution=self.model.resolution,
            alpha=self.config.noise_alpha,
            kept=self.config.recipe.kept,
            mouth=self.config.recipe.mouth,
            syncnet=self.syncnet,
            syncnet_config=self.syncnet_config,
            lpips=self.lpips,
            videomae=self.videomae,
            gradient_checkpointing=self.config.run.gradient_checkpointing,
        ).to(compute.device)
        if self.config.recipe.latents == "once":
            self.latents = Latents(
                self.cache.folder,
                weights=weights_digest(self.vae),
                resolution=self.model.resolution,
                fps=self.training.fps,
                mirrored=self.config.recipe.flip,
            )
            for clips in (self.training, self.validation):
                self.latents.encode(clips, self.vae, self.step.seen_mask, compute.device, self.say)
        self.held_out_windows = self._windows(self.validation, held_out=True)

    def batches(self, *, rank: int, world: int, start: int) -> Iterable[Batch]:
        run = self.config.run
        picks = Picks(len(self.training), seed=run.seed, batch=run.batch, rank=rank, world=world, start=start)
        return loader(self._windows(self.training), picks, workers=self.config.data.workers, pin_memory=self.compute.device.type != "cpu")

    def held_out(self, *, rank: int, world: int) -> Iterable[Batch]:
        picks = [[Pick(0, index, index)] for index in range(min(len(self.validation), self.config.run.validation_clips))]
        for batch in loader(self.held_out_windows, picks[rank::world], workers=self.config.data.workers):
            yield batch | {"held_out": True}

    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        held_out, recipe = bool(batch.get("held_out")), self.config.recipe
        if held_out:  # as in use, and over all timesteps alike
            recipe = RecipeConfig(shared_noise=float(recipe.shared_noise > 0))
        drawn = draws(
            self.config.run.seed + held_out,  # held-out samples have draws of their own
            batch["position"],
            frames=self.frames,
            latent=self._latent,
            train_steps=self.model.diffusion.train_steps,
            recipe=recipe,
        )
        return self.step(network, batch, drawn)

    def preview(self, network: nn.Module, folder: Path) -> dict[str, float]:
        count = min(len(self.validation), self.config.run.validation_videos)
        if not count:
            return {}
        assert isinstance(network, UNet)
        encoder = self.whisper().to(self.compute.device)
        clips = [clip for i in range(count) if (clip := self._shown(i, encoder)) is not None]
        model = Model(self.model, network, self.vae, encoder, _no_faces, self.compute)
        own = self.model.defaults
        options = Options(steps=own.steps, guidance=own.guidance, scheduler=own.scheduler, seed=self.config.run.seed)
        return preview(model, clips, folder, options, self.syncnet, self.syncnet_config, self.config.data.fps)

    def write(self, folder: Path, network: nn.Module) -> None:
        """A folder that `sync --model` takes as it is."""
        lora = self.config.lora
        description = replace(self.model, name=Path(self.config.run.out).expanduser().resolve().name, summary="trained with latentsync")
        if lora.rank:
            adapter_files(network, folder, description, base=self.base, merged=lora.save == "merged")
        else:
            save(network.state_dict(), folder / "unet.safetensors", notes(description, "unet"))
        (folder / "model.yaml").write_text(configs.dump(description), encoding="utf-8")
        # What every model shares is found by the usual search; what is this model's own goes along.
        if description.vae != VAEConfig():
            save(self._vae_state, folder / "vae.safetensors", notes(description, "vae"))
        if description.whisper != WhisperConfig():
            save(self._whisper_state, folder / "whisper.safetensors", notes(description, "whisper"))

    def read(self, folder: Path) -> None:
        if self.config.lora.rank:
            read_adapter(self.network, folder, base=self.base)
            return
        copy_state(self.network, read_state(folder / "unet.safetensors"), f"U-Net of {folder}")

    # Parts.

    @property
    def _latent(self) -> tuple[int, int, int]:
        return self.model.vae.latent_channels, self.model.latent_size, self.model.latent_size

    def _windows(self, clips: ClipSet, held_out: bool = False) -> UNetWindows:
        """Windows as the recipe draws them; held-out ones are never mirrored and have the kind of reference that the model has in use."""
        config, recipe = self.config, self.config.recipe
        return UNetWindows(
            clips,
            frames=self.frames,
            resolution=self.model.resolution,
            seed=config.run.seed,
            cache=self.cache,
            whisper=self.whisper,
            mels=bool(config.losses.sync),
            fixed_reference=float(self.model.reference == "fixed") if held_out else recipe.fixed_reference,
            flip=recipe.flip and not held_out,
            latents=self.latents,
            latent=self._latent,
            pictures=bool(config.losses.lpips or config.losses.trepa),
        )

    def _shown(self, index: int, encoder: SpeechEncoder) -> HeldOut | None:
        """The first seconds of a held-out clip, whole; None for one that cannot be read, where such clips are left out."""
        clip, fps = self.validation[index], self.config.data.fps
        times = [Fraction(i, fps) for i in range(min(clip.frames, PREVIEW_WINDOWS * self.frames))]
        try:
            frames = read_frames(clip.path, times, side=self.model.resolution)
            samples = read_audio(clip.path)[: -(-len(times) * 16000 // fps)]
        except InputError:  # the validation's losses have named it
            if self.config.data.on_bad == "error":
                raise
            return None
        with closing(SpeechTrack(lambda: iter([samples]), encoder)) as speech:
            contexts = speech.contexts(times)
        mel = torch.from_numpy(np.asarray(sync_mel(samples))) if self.syncnet is not None else None
        return HeldOut(f"{index:02d}-{clip.path.stem}", frames, contexts, samples, mel)


def describe(config: UNetTrain) -> ModelConfig:
    """The model that a configuration trains: a preset of the package or a model.yaml, at its resolution or another."""
    path = Path(config.model).expanduser()
    if config.model in configs.presets():
        model = configs.preset(config.model)
    elif path.is_file():
        model = configs.load(path)
    else:
        raise UsageError(f"model={config.model} is neither a preset ({', '.join(configs.presets())}) nor a model.yaml")
    return replace(model, resolution=config.resolution) if config.resolution else model


def choose_trainable(network: nn.Module, patterns: tuple[str, ...]) -> None:
    """Only parameters whose name contains one of the patterns require gradients; without patterns all do. Raises UsageError."""
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not any(pattern in name for name in names):
            parts = sorted({part + "." for name in names for part in name.split(".")[:-1] if not part.isdigit()})
            raise UsageError(f"trainable: no parameter of this U-Net has '{pattern}' in its name; parts of names are {', '.join(parts)}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not patterns or any(pattern in name for pattern in patterns))


def shared_files(config: UNetTrain, model: ModelConfig, home: str | Path | None) -> tuple[Path, Path]:
    """(speech encoder, autoencoder): the files that are named, else those beside the weights to start from, else the published ones.

    Raises WeightsError where a model with networks of its own does not bring them along.
    """
    start = Path(config.start).expanduser()
    found: dict[str, Path] = {}
    for role, named in (("whisper", config.whisper), ("vae", config.vae)):
        if named:
            path = Path(named).expanduser()
            if not path.is_file():
                raise WeightsError(f"there is no file {role}={named}")
            found[role] = path
    rest = [role for role in ("whisper", "vae") if role not in found]
    if rest:
        beside = start if config.start and start.is_dir() else None
        if beside is not None and (beside / FOLDER).is_dir():
            beside = find(beside)
        files = weights.resolve(beside if beside is not None and (beside / "model.yaml").is_file() else "1.5", home=home, need=rest)
        own = {"whisper": (model.whisper, files.config.whisper), "vae": (model.vae, files.config.vae)}
        for role in rest:
            if own[role][0] != own[role][1]:
                raise WeightsError(
                    f"model {model.name} has a {role} of its own, and it is not here; set {role}=FILE, or start=FOLDER with a model of this kind "
                    f"(`latentsync models new {model.name} FOLDER` writes an untrained one)"
                )
            found[role] = files.ready(role)
    return found["whisper"], found["vae"]


def whisper_from(path: Path, config: WhisperConfig) -> SpeechEncoder:
    """The speech encoder of a weights file; for worker processes, which load their own."""
    return load_whisper(read_state(path), config)


def _no_faces() -> NoReturn:
    raise WeightsError("training sees aligned faces; it has nothing to find them with")
