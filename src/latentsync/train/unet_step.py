"""One training step of the U-Net: a batch of windows and its random numbers in, the loss and its terms out (paper, sections 3.2 to 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from latentsync.denoise import NoisePredictor
from latentsync.errors import UsageError
from latentsync.face.mask import latent_mask, resized_mask
from latentsync.models.syncnet import visual_input
from latentsync.train.losses import (
    add_noise,
    emphasis,
    mixed_noise,
    one_step_estimate,
    perceptual_loss,
    prediction_target,
    reconstruction,
    signal_shares,
    sync_loss,
    trepa_loss,
    weighted_mean,
)

if TYPE_CHECKING:
    from latentsync.config import DiffusionConfig, SyncNetConfig
    from latentsync.models.lpips import LPIPS
    from latentsync.models.syncnet import SyncNet
    from latentsync.models.vae import Autoencoder
    from latentsync.models.videomae import VideoMAE
    from latentsync.train.draws import Draws

N = TypeVar("N", bound=nn.Module)


# Of all timesteps, the one at which the clean latents are estimated from held-out samples. There the picture is nearly gone: what the network
# does not know from the sound and the reference, it must guess.
PROBED = 0.7


class LossWeights(Protocol):
    """How much each term counts; what counts nothing is not computed."""

    @property
    def recon(self) -> float: ...
    @property
    def sync(self) -> float: ...
    @property
    def lpips(self) -> float: ...
    @property
    def trepa(self) -> float: ...


class UNetStep:
    """The loss of a U-Net on a batch. It holds the networks that judge or encode and are not trained: they are frozen here.

    They run in the dtype of their own weights, whatever autocast says; only the U-Net obeys autocast. The losses are float32.
    `mask` (R, R), 1 = keep, stands in for the package's own, with which the released weights were trained. An error of the prediction outside of
    what is made anew counts `kept`, around the mouth `mouth`, elsewhere 1.
    `gradient_checkpointing` makes the activations of the frozen networks anew in the backward pass; the U-Net has its own switch.
    Raises UsageError where a term that counts lacks its network.
    """

    def __init__(
        self,
        *,
        diffusion: DiffusionConfig,
        weights: LossWeights,
        vae: Autoencoder,
        resolution: int,
        alpha: float = 1.0,
        syncnet: SyncNet | None = None,
        syncnet_config: SyncNetConfig | None = None,
        lpips: LPIPS | None = None,
        videomae: VideoMAE | None = None,
        mask: Tensor | None = None,
        kept: float = 1.0,
        mouth: float = 1.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        if not any((weights.recon, weights.sync, weights.lpips, weights.trepa)):
            raise UsageError("every loss has weight 0; there is nothing to learn. Set losses.recon=1")
        needs = (("sync", weights.sync, syncnet), ("lpips", weights.lpips, lpips), ("trepa", weights.trepa, videomae))
        for name, weight, judge in needs:
            if weight and judge is None:
                raise UsageError(f"losses.{name} is {weight:g} but the network that judges it is not there; load it or set losses.{name}=0")
        if weights.sync and syncnet_config is None:
            raise UsageError("losses.sync needs the description of its SyncNet")
        self.weights = weights
        self.alpha = alpha
        self.prediction_type = diffusion.prediction_type
        self.shares = signal_shares(diffusion)
        self.vae = _frozen(vae)
        self.syncnet = _frozen(syncnet) if syncnet is not None and weights.sync else None
        self.syncnet_config = syncnet_config
        self.lpips = _frozen(lpips) if lpips is not None and weights.lpips else None
        self.videomae = _frozen(videomae) if videomae is not None and weights.trepa else None
        for network in (self.vae, self.syncnet, self.lpips, self.videomae):
            if network is not None:
                network.gradient_checkpointing = gradient_checkpointing
        if mask is None:
            self.seen_mask, self.latent_mask = (torch.from_numpy(make(resolution)) for make in (resized_mask, latent_mask))
        else:
            self.seen_mask, self.latent_mask = mask, mask[:: vae.factor, :: vae.factor]
        self.emphasis = emphasis(self.latent_mask, kept, mouth)

    def to(self, device: torch.device | str) -> UNetStep:
        """Bring all that the step holds to a device; returns the step."""
        for network in (self.vae, self.syncnet, self.lpips, self.videomae):
            if network is not None:
                network.to(device)
        self.shares, self.seen_mask, self.latent_mask = (x.to(device) for x in (self.shares, self.seen_mask, self.latent_mask))
        self.emphasis = None if self.emphasis is None else self.emphasis.to(device)
        return self

    def __call__(self, unet: NoisePredictor, batch: Mapping[str, Any], draws: Draws) -> dict[str, Tensor]:
        """Scalars in float32: "loss", with its graph, and without theirs the terms that count among "recon", "sync", "lpips", "trepa".

        The batch, on the step's device: frames and reference (b, f, 3, R, R) uint8, audio (b, f, tokens, dim), weight (b,), of which 0 leaves a
        sample out, and for the sync term mel (b, 1, 80, columns). Where pictures were encoded beforehand, clean, masked and seen (b, c, f, h, w),
        scaled latents of the frames, the masked frames and the reference, are used instead; of the pictures only what a judge wants must be
        there. A batch without any sample that counts has loss 0 and gradients 0.

        A held-out batch ("held_out") has "estimate" too: the squared error, inside of what is made anew, of the clean latents that one
        prediction from nearly pure noise implies.
        """
        device = batch["audio"].device
        draws = draws.to(device)
        frames = _pixels(batch["frames"]) if "frames" in batch else None
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            clean, masked, seen = self._encoded(frames, batch, draws)
            noise = mixed_noise(draws.shared, draws.independent, self.alpha)
            audio = batch["audio"]
            if draws.alike is not None:
                noise = torch.where(draws.alike.reshape(-1, 1, 1, 1, 1), draws.shared, noise)
            if draws.silent is not None:  # as guidance does: the sound that is not heard is zeros
                audio = torch.where(draws.silent.reshape(-1, 1, 1, 1), torch.zeros_like(audio), audio)
            share = self.shares[draws.timesteps]
            noisy = add_noise(clean, noise, share)
            mask = self.latent_mask.expand(len(clean), 1, clean.shape[2], -1, -1)
            condition = torch.cat([mask, masked, seen], dim=1)

        predicted = unet(torch.cat([noisy, condition], dim=1), draws.timesteps, audio).float()

        with torch.autocast(device.type, enabled=False):
            losses: dict[str, Tensor] = {}
            if self.weights.recon:
                losses["recon"] = reconstruction(predicted, prediction_target(clean, noise, share, self.prediction_type), self.emphasis)
            if self.syncnet is not None or self.lpips is not None or self.videomae is not None:
                losses |= self._judged(one_step_estimate(noisy, predicted, share, self.prediction_type), frames, batch)
            terms = {name: weighted_mean(loss, batch["weight"]) for name, loss in losses.items()}
            total = torch.stack([getattr(self.weights, name) * term for name, term in terms.items()]).sum()
        if batch.get("held_out"):
            terms["estimate"] = weighted_mean(self._probed(unet, clean, noise, condition, audio), batch["weight"])
        return {"loss": total} | {name: term.detach() for name, term in terms.items()}

    def _encoded(self, frames: Tensor | None, batch: Mapping[str, Any], draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled latents (b, c, f, h, w) float32 of the frames, the masked frames and the reference: the batch's own, or made here."""
        if "clean" in batch:
            return batch["clean"].float(), batch["masked"].float(), batch["seen"].float()
        assert frames is not None
        reference = _pixels(batch["reference"])
        clean, masked = self._latents(frames, draws.target), self._latents(frames * self.seen_mask, draws.masked)
        return clean, masked, self._latents(reference, draws.reference)

    @torch.no_grad()
    def _probed(self, unet: NoisePredictor, clean: Tensor, noise: Tensor, condition: Tensor, audio: Tensor) -> Tensor:
        """(b,): squared error of the estimated clean latents inside of what is made anew, from one prediction at PROBED of all timesteps."""
        timesteps = torch.full((len(clean),), int(PROBED * len(self.shares)), device=clean.device)
        share = self.shares[timesteps]
        noisy = add_noise(clean, noise, share)
        predicted = unet(torch.cat([noisy, condition], dim=1), timesteps, audio).float()
        return reconstruction(one_step_estimate(noisy, predicted, share, self.prediction_type), clean, 1 - self.latent_mask)

    def _judged(self, estimate: Tensor, frames: Tensor | None, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Estimated latents (b, c, f, h, w), true frames (b, f, 3, R, R) -> per sample (b,), what the frozen networks think of them."""
        losses: dict[str, Tensor] = {}
        latent = self.syncnet_config is not None and self.syncnet_config.latent
        pixels = estimate  # never looked at where latents are enough
        if self.lpips is not None or self.videomae is not None or not latent:
            pixels = self._decoded(estimate)
        if self.syncnet is not None and self.syncnet_config is not None:
            shown = visual_input(estimate.transpose(1, 2) if latent else pixels, self.syncnet_config)
            vision, audio = self.syncnet(shown, batch["mel"])
            losses["sync"] = sync_loss(vision, audio, 1.0)
        if self.lpips is not None and frames is not None:
            losses["lpips"] = perceptual_loss(self.lpips, pixels, frames)
        if self.videomae is not None and frames is not None:
            losses["trepa"] = trepa_loss(self.videomae, pixels, frames)
        return losses

    def _latents(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """(b, f, 3, R, R), (b*f, 4, h, w) -> samples of the posterior (b, 4, f, h, w), scaled, float32."""
        return self.vae.encode(pixels.flatten(0, 1), noise).unflatten(0, pixels.shape[:2]).transpose(1, 2)

    def _decoded(self, latents: Tensor) -> Tensor:
        """(b, 4, f, h, w) -> (b, f, 3, R, R) float32, about [-1, 1]."""
        return self.vae.decode(latents.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(latents), -1))


def _pixels(levels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]"""
    return levels.float() / 127.5 - 1


def _frozen(network: N) -> N:
    return network.requires_grad_(False).eval()
