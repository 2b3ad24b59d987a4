"""Training of the small autoencoder: what the loop needs to know of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync import config as configs
from latentsync.config import VAEConfig
from latentsync.errors import OutputError, UsageError, WeightsError
from latentsync.models.load import copy_state, read_state
from latentsync.models.small_vae import SmallVAE
from latentsync.train.checkpoint import FOLDER, find
from latentsync.train.data import clips_of
from latentsync.train.pictures import Pieces, mouth_box
from latentsync.train.windows import Pick, Picks, loader
from latentsync.weights.convert import save

if TYPE_CHECKING:
    from latentsync.device import Compute
    from latentsync.train.clips import ClipSet
    from latentsync.train.config import AutoencoderLosses, AutoencoderTrain
    from latentsync.train.loop import Batch, Say

DESCRIPTION = "vae.yaml"
WEIGHTS = "vae.safetensors"
VALIDATION_FRAMES = 4  # of each held-out clip, evenly spaced
VALIDATION_BATCH = 8  # faces together
MEASURED = 512  # training frames over which the latents' mean and standard deviation are taken
SHOWN_SIDE = 384  # pixels of a face on the sheet, about


class AutoencoderTask:
    """The small autoencoder and the faces."""

    name = "autoencoder"
    sparse: tuple[str, ...] = ()
    frames = 1

    def __init__(self, config: AutoencoderTrain, *, say: Say) -> None:
        self.config = config
        self.net = config.net
        self.network = SmallVAE(self.net)
        if config.start:
            state, described = autoencoder_files(config.start)
            if described is not None and described != self.net:
                say(f"note: {config.start} describes another autoencoder than this configuration")
            copy_state(self.network, state, f"autoencoder {config.start}")
            say(f"starts from {config.start}")
        sizes = [sum(p.numel() for p in part.parameters()) for part in (self.network.encoder, self.network.decoder)]
        say(f"autoencoder: {sum(sizes):,} parameters, {sizes[1]:,} of them the decoder's")
        self.training, self.validation, self.cache = clips_of(config.data, config.run.out, 1, config.resolution, say)
        self.compute: Compute

    def place(self, compute: Compute) -> None:
        self.compute = compute

    def batches(self, *, rank: int, world: int, start: int) -> Iterable[Batch]:
        run = self.config.run
        picks = Picks(len(self.training), seed=run.seed, batch=run.batch, rank=rank, world=world, start=start)
        return loader(self._pieces(self.training), picks, workers=self.config.data.workers, pin_memory=self.compute.device.type != "cpu")

    def held_out(self, *, rank: int, world: int) -> Iterable[Batch]:
        clips = min(len(self.validation), self.config.run.validation_clips)
        for batch in self._whole(self.validation, clips, VALIDATION_FRAMES, rank=rank, world=world):
            yield batch | {"held_out": True}

    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Of held-out faces also how well they come back: PSNR in dB, of the whole face and around the mouth, and the gradients' error there."""
        pixels, counts = batch["pixels"], batch["weight"]
        made, latents = network(pixels.contiguous(memory_format=torch.channels_last), self.config.noise * batch["noise"])
        terms = losses(made.float(), pixels, latents.float(), batch["mouth"], counts, self.config.losses)
        if batch.get("held_out"):
            rows, columns = mouth_box(self.config.resolution)
            shown, true = made.float().clamp(-1, 1), pixels
            lips, true_lips = shown[..., rows, columns], true[..., rows, columns]
            terms["psnr"] = _mean(psnr(shown, true), counts)
            terms["psnr_mouth"] = _mean(psnr(lips, true_lips), counts)
            across, down = _differences(lips - true_lips)
            terms["gradient_mouth"] = _mean(across.abs().mean(dim=(1, 2, 3)) + down.abs().mean(dim=(1, 2, 3)), counts)
        return terms

    @torch.no_grad()
    def preview(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """sheet.png: for each of the first held-out clips a true face, the same as it comes back, and both mouths, larger."""
        clips = min(len(self.validation), self.config.run.validation_videos)
        rows, columns = mouth_box(self.config.resolution)
        scale = max(1, round(SHOWN_SIDE / self.config.resolution))
        lines = []
        for batch in self._whole(self.validation, clips, 1):
            pixels = batch["pixels"].to(self.compute.device)
            made, _ = network(pixels.contiguous(memory_format=torch.channels_last), batch["noise"].to(self.compute.device))
            for pair in torch.stack([pixels, made.float()], dim=1):
                faces = [_enlarged(face, scale) for face in pair]
                lips = [_enlarged(face[:, rows, columns], 2 * scale) for face in pair]
                high = max(len(x) for x in (*faces, *lips))
                lines.append(np.hstack([np.pad(x, ((0, high - len(x)), (0, 0), (0, 0))) for x in (*faces, *lips)]))
        if lines:
            _write_picture(folder / "sheet.png", np.vstack(lines))
        return {}

    def write(self, folder: Path, network: nn.Module) -> None:
        """The network with its latents' mean and standard deviation over training faces, and its description."""
        mean, std = self.measured(network)
        state = network.state_dict() | {"latent_mean": mean, "latent_std": std}
        save(state, folder / WEIGHTS, {"format": "pt", "latentsync.role": "vae"})
        (folder / DESCRIPTION).write_text(configs.dump(self.net), encoding="utf-8")

    def read(self, folder: Path) -> None:
        copy_state(self.network, read_state(folder / WEIGHTS), f"autoencoder of {folder}")

    @torch.no_grad()
    def measured(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) (c,) of each channel of the latents that this network makes of some whole training faces."""
        assert isinstance(network, SmallVAE)
        clips = min(len(self.training), MEASURED)
        count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for batch in self._whole(self.training, clips, max(1, MEASURED // clips)):
            good = batch["pixels"][batch["weight"] > 0].to(self.compute.device)
            if not len(good):
                continue
            latents, _ = network.posterior(good)
            latents = latents.double().cpu()
            count += latents.numel() // latents.shape[1]
            total = total + latents.sum(dim=(0, 2, 3))
            squares = squares + latents.square().sum(dim=(0, 2, 3))
        if not count:
            raise OutputError("none of the training clips can be read any more, so the latents cannot be measured; are the clips still there?")
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-6)  # a dead channel must not make infinities
        return mean.float(), std.float()

    # Parts.

    def _pieces(self, clips: ClipSet, whole: int = 0) -> Pieces:
        config = self.config
        return Pieces(
            clips,
            resolution=config.resolution,
            crop=config.crop,
            mouth=config.mouth,
            masked=config.masked,
            channels=self.net.latent_channels,
            seed=config.run.seed,
            cache=self.cache,
            whole=whole,
        )

    def _whole(self, clips: ClipSet, count: int, frames: int, *, rank: int = 0, world: int = 1) -> Iterable[Batch]:
        """Batches of `frames` whole faces of each of the first `count` clips, or of this process's share of them."""
        picks = [Pick(epoch, index, epoch * count + index) for epoch in range(frames) for index in range(count)]
        batches = [picks[i : i + VALIDATION_BATCH] for i in range(0, len(picks), VALIDATION_BATCH)]
        return loader(self._pieces(clips, whole=frames), batches[rank::world], workers=0)


def losses(made: Tensor, true: Tensor, latents: Tensor, mouth: Tensor, counts: Tensor, weights: AutoencoderLosses) -> dict[str, Tensor]:
    """Terms of pictures (n, 3, H, W) in [-1, 1] and their latents (n, c, h, w); "loss" is their weighted sum.

    mouth (n, 1, H, W): 1 in its middle, 0 far away; errors count 1 + (weights.mouth - 1) times that. counts (n,): 0 for a sample that is none.
    """
    emphasis = 1 + (weights.mouth - 1) * mouth
    error = made - true
    gradient = torch.zeros_like(counts)
    for e, m in ((error, emphasis), (F.avg_pool2d(error, 2), F.avg_pool2d(emphasis, 2))):
        across, down = _differences(e)
        gradient = gradient + (across.abs() * m[..., :, 1:]).mean(dim=(1, 2, 3)) + (down.abs() * m[..., 1:, :]).mean(dim=(1, 2, 3))
    terms = {
        "l1": _mean((error.abs() * emphasis).mean(dim=(1, 2, 3)), counts),
        "gradient": _mean(gradient, counts),
        "squared": _mean((error.square() * emphasis).mean(dim=(1, 2, 3)), counts),
        "latent": _mean(latents.square().mean(dim=(1, 2, 3)), counts),
    }
    loss = weights.l1 * terms["l1"] + weights.gradient * terms["gradient"] + weights.squared * terms["squared"] + weights.latent * terms["latent"]
    return {"loss": loss, **terms}


def psnr(made: Tensor, true: Tensor) -> Tensor:
    """(n, 3, H, W) in [-1, 1] twice -> (n,) dB; a picture that comes back exactly is given 100."""
    return -10 * ((made - true).square().mean(dim=(1, 2, 3)) / 4).clamp_min(1e-10).log10()


def autoencoder_files(source: str) -> tuple[dict[str, Tensor], VAEConfig | None]:
    """A run's or a checkpoint's folder of ours, or a weights file -> its state and, where it is said, its description. Raises WeightsError."""
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / FOLDER).is_dir():  # a run's
            path = find(path)
        file, described = path / WEIGHTS, path / DESCRIPTION
        if not file.is_file():
            raise WeightsError(f"{path} holds no {WEIGHTS}; give a checkpoint's folder of `latentsync train autoencoder`, or a weights file")
        if not described.is_file():
            return read_state(file), None
        return read_state(file), configs.parse_as(VAEConfig, described.read_text(encoding="utf-8"), str(described))
    if not path.is_file():
        raise WeightsError(f"there is no autoencoder at {path}; give a checkpoint's folder, a weights file, or nothing for random weights")
    return read_state(path), None


def _differences(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Between neighbours: (..., H, W-1) across and (..., H-1, W) down."""
    return pixels.diff(dim=-1), pixels.diff(dim=-2)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """The mean over the samples that count, 0 where none does."""
    return (values * counts).sum() / counts.sum().clamp_min(1)


def _enlarged(face: Tensor, scale: int) -> np.ndarray:
    """(3, h, w) in [-1, 1] -> (h * scale, w * scale, 3) uint8"""
    levels = ((face.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return levels.repeat(scale, axis=0).repeat(scale, axis=1)


def _write_picture(path: Path, rgb: np.ndarray) -> None:
    done, data = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))
    if not done:
        raise UsageError(f"a picture of {rgb.shape[1]}x{rgb.shape[0]} is too large for {path.name}; set run.validation_videos lower")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror or e}; make room, or choose another run.out") from e
