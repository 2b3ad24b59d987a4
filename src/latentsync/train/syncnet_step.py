"""One training step of SyncNet: windows of frames with their own or another sound in, the loss and what it is worth out (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentsync.errors import UsageError
from latentsync.models.syncnet import visual_input
from latentsync.train.losses import cosine, cosine_loss, weighted_mean

if TYPE_CHECKING:
    from latentsync.config import SyncNetConfig
    from latentsync.models.vae import Autoencoder

IN_SYNC = 0.5  # a cosine above this is the answer "in sync"


class SyncNetStep:
    """The loss of a SyncNet on a batch. `vae` makes the latents of a SyncNet that sees those; it is frozen here and runs in its own dtype.

    Raises UsageError where a SyncNet of latents comes without one.
    """

    def __init__(self, config: SyncNetConfig, vae: Autoencoder | None = None) -> None:
        if config.latent and vae is None:
            raise UsageError("this SyncNet sees latents, which the autoencoder makes; load it too")
        self.config = config
        self.vae = vae.requires_grad_(False).eval() if vae is not None and config.latent else None

    def __call__(self, net: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Scalars in float32: "loss", with its graph, and without: "accuracy" in 0..1, "positive" and "negative", the mean cosines of both kinds.

        The batch, on the network's device: frames (b, f, 3, H, W) uint8, whole or already cut to what the network sees, mel (b, 1, 80, columns),
        label (b,), 1 = in sync, and weight (b,), of which 0 leaves a sample out. A kind that a batch lacks has the mean NaN.
        """
        label, weight = batch["label"].float(), batch["weight"]
        found = cosine(*net(self._shown(batch["frames"]), batch["mel"]))
        loss = weighted_mean(cosine_loss(found, label), weight)
        found = found.detach()
        return {
            "loss": loss,
            "accuracy": weighted_mean(((found > IN_SYNC) == (label > 0.5)).float(), weight),
            "positive": _mean_of(found, weight * label),
            "negative": _mean_of(found, weight * (1 - label)),
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
