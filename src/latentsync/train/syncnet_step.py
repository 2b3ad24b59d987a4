"""One training step of SyncNet: windows of frames with their own or another sound in, the loss and what it is worth out (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentsync.errors import UsageError
from latentsync.models.syncnet import visual_input
from latentsync.train.losses import contrast_loss, cosine, cosine_loss, weighted_mean

if TYPE_CHECKING:
    from latentsync.config import SyncNetConfig
    from latentsync.models.vae import Autoencoder

IN_SYNC = 0.5  # a cosine above this is the answer "in sync"


class SyncNetStep:
    """The loss of a SyncNet on a batch. `vae` makes the latents of a SyncNet that sees those; it is frozen here and runs in its own dtype.

    Raises UsageError where a SyncNet of latents comes without one.
    """

    def __init__(self, config: SyncNetConfig, vae: Autoencoder | None = None, temperature: float = 0.07, lips: float = 0.0) -> None:
        if config.latent and vae is None:
            raise UsageError("this SyncNet sees latents, which the autoencoder makes; load it too")
        self.config = config
        self.temperature = temperature
        self.lips = lips
        self.vae = vae.requires_grad_(False).eval() if vae is not None and config.latent else None

    def __call__(self, net: Callable[[Tensor, Tensor], tuple[Tensor, ...]], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Scalars in float32: "loss", with its graph, and without: "accuracy" in 0..1, "positive" and "negative", the mean cosines of both kinds.

        The batch, on the network's device: frames (b, f, 3, H, W) uint8, whole or already cut to what the network sees, mel (b, 1, 80, columns),
        label (b,), 1 = in sync, and weight (b,), of which 0 leaves a sample out. A kind that a batch lacks has the mean NaN.

        Where a sample is k windows of one clip, frames (b, k, f, 3, H, W) and mel (b, k, 1, 80, columns), there is no label: every window is
        compared with every sound. "accuracy" is then the mean of two shares: windows whose own sound is called in sync, and pairs with a sound of
        the same clip that belongs to another window and is called out of sync; "negative" is the cosine of those pairs. Such a batch may have
        lips (b, k, f); the network is then a `LipReader`, and "lips" the squared error of what it tells.
        """
        if batch["frames"].dim() == 6:
            return self._all_pairs(net, batch)
        label, weight = batch["label"].float(), batch["weight"]
        vision, audio = net(self._shown(batch["frames"]), batch["mel"])
        found = cosine(vision, audio)
        loss = weighted_mean(cosine_loss(found, label), weight)
        found = found.detach()
        return {
            "loss": loss,
            "accuracy": weighted_mean(((found > IN_SYNC) == (label > 0.5)).float(), weight),
            "positive": _mean_of(found, weight * label),
            "negative": _mean_of(found, weight * (1 - label)),
        }

    def _all_pairs(self, net: Callable[[Tensor, Tensor], tuple[Tensor, ...]], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The terms where each window is compared with the sounds of all: which is its own (`contrast_loss`), and is it in sync (`cosine_loss`)."""
        windows = batch["frames"].shape[1]
        vision, audio, *told_lips = net(self._shown(batch["frames"].flatten(0, 1)), batch["mel"].flatten(0, 1))
        with torch.autocast(vision.device.type, enabled=False):
            cosines = vision.float() @ audio.float().T
            weight = batch["weight"].repeat_interleave(windows)
            pairs = weight[:, None] * weight
            own = torch.eye(len(weight), device=weight.device)
            clip = torch.arange(len(weight), device=weight.device) // windows
            near = (clip[:, None] == clip).float() - own
            told = weighted_mean(contrast_loss(cosines, weight > 0, self.temperature), weight)
            right = weighted_mean(cosine_loss(cosines, 1.0), pairs * own)
            wrong = weighted_mean(cosine_loss(cosines, 0.0), pairs * (1 - own))
            close = weighted_mean(cosine_loss(cosines, 0.0), pairs * near)
            loss = told + right / 2 + (wrong + close) / 4
            extra = {}
            if told_lips:
                errors = torch.stack([(lips.float() - batch["lips"].flatten(0, 1)).square().mean(dim=1) for lips in told_lips])
                lips = weighted_mean(errors.mean(dim=0), weight)
                loss = loss + self.lips * lips
                extra["lips"] = lips.detach()
        found = cosines.detach()
        hits = weighted_mean((found > IN_SYNC).float(), pairs * own), weighted_mean((found <= IN_SYNC).float(), pairs * near)
        return {
            "loss": loss,
            **extra,
            "contrast": told.detach(),
            "accuracy": sum(hits, torch.zeros_like(told)).detach() / 2,
            "positive": _mean_of(found, pairs * own),
            "negative": _mean_of(found, pairs * near),
        }

    @torch.no_grad()
    def _shown(self, frames: Tensor) -> Tensor:
        """(b, f, 3, H, W) uint8 -> what the visual encoder sees, (b, f*c, h, w) float32."""
        pixels = frames.float() / 127.5 - 1
        if self.vae is not None:
            with torch.autocast(frames.device.type, enabled=False):
                # the mean of the posterior: its spread is far below what lips change
                latents = self.vae.encode(pixels.flatten(0, 1))
            return visual_input(latents.unflatten(0, frames.shape[:2]), self.config)
        if pixels.shape[3:] == self.config.visual_size:
            return pixels.flatten(1, 2)
        return visual_input(pixels, self.config)


def _mean_of(values: Tensor, weight: Tensor) -> Tensor:
    """(b,), (b,) -> scalar: the mean of the samples that count; NaN where none does."""
    return torch.where(weight.sum() > 0, weighted_mean(values, weight), torch.nan)
