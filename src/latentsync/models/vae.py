"""Autoencoders between pixels and latents: Stable Diffusion's, and a tiny one for previews; `small_vae` has that of the model that ships.

The layers are diffusers'; here they get the published names, explicit noise, scaled latents, and work that is cut over frames.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsync.config import VAEConfig
from latentsync.errors import UsageError

# Frames that pass together are chosen so that this many pixels do. On a GPU 16 at 256 px, 4 at 512 px: the decoder's widest layer
# then holds half a gigabyte in bf16. On a CPU one frame at a time is fastest (by a tenth over 16): its layers stay in memory that
# is already mapped.
PIXELS_AT_ONCE = 1 << 20
PIXELS_AT_ONCE_CPU = 1 << 16

# The same where activations are made anew in the backward pass: 2 frames at 256 px, 1 at 512 px. Such a part keeps 1.5 and 3.1 GB in bf16,
# one part at a time; checkpoints inside the decoder, block by block, would keep 7 GB of 16 frames at 256 px and 28 GB at 512 px.
PIXELS_RECOMPUTED = 1 << 17

# Stable Diffusion's VAE files name the attention layers as diffusers did before 0.18.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Autoencoder(nn.Module):
    """What all kinds share. Latents are always scaled: they are what the U-Net sees and makes.

    `gradient_checkpointing = True` recomputes a few frames at a time in the backward pass instead of keeping their activations.
    """

    encoder: nn.Module
    decoder: nn.Module
    factor = 8  # pixels per latent, each way
    gradient_checkpointing = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, to which inputs are brought."""
        return next(self.parameters()).dtype

    def encode(self, pixels: Tensor, noise: Tensor | None = None, *, frames_at_once: int | None = None) -> Tensor:
        """Pixels (n, 3, H, W) in [-1, 1] -> latents (n, 4, H/8, W/8), scaled, in the dtype of the pixels.

        `noise` (n, 4, H/8, W/8), standard normal, draws a sample of the posterior; None takes its mean. Raises UsageError
        where H or W is not a multiple of 8.
        """
        mean, std = self.posterior(pixels, frames_at_once=frames_at_once)
        return self.scale(mean if noise is None else mean + std * noise.to(mean)).to(pixels.dtype)

    def posterior(self, pixels: Tensor, *, frames_at_once: int | None = None) -> tuple[Tensor, Tensor]:
        """Pixels (n, 3, H, W) in [-1, 1] -> mean and standard deviation (n, 4, H/8, W/8), not yet scaled, float32."""
        h, w = pixels.shape[2:]
        if h % self.factor or w % self.factor:
            raise UsageError(f"pictures of {w}x{h} do not fit the autoencoder; width and height must be multiples of {self.factor}")
        moments = self._chunked(self._moments, pixels, frames_at_once or self._at_once(pixels, h * w))
        mean, std = moments.chunk(2, dim=1)
        return mean, std

    def decode(self, latents: Tensor, *, frames_at_once: int | None = None) -> Tensor:
        """Scaled latents (n, 4, h, w) -> pixels (n, 3, 8h, 8w), about [-1, 1] and not clipped, in the dtype of the latents."""
        h, w = latents.shape[2:]
        at_once = frames_at_once or self._at_once(latents, h * w * self.factor**2)
        return self._chunked(self._pixels, self.unscale(latents), at_once).to(latents.dtype)

    def scale(self, latents: Tensor) -> Tensor:
        """Latents as the encoder makes them -> latents as the U-Net sees them."""
        return latents

    def unscale(self, latents: Tensor) -> Tensor:
        """The inverse of `scale`."""
        return latents

    def published_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict under any of the names that published files use -> under the names of this module."""
        raise NotImplementedError

    def _moments(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, 8, H/8, W/8) float32: mean and standard deviation"""
        raise NotImplementedError

    def _pixels(self, latents: Tensor) -> Tensor:
        """Unscaled latents (n, 4, h, w) -> (n, 3, 8h, 8w)"""
        raise NotImplementedError

    @property
    def _recomputes(self) -> bool:
        return self.gradient_checkpointing and torch.is_grad_enabled()

    def _at_once(self, x: Tensor, pixels: int) -> int:
        """How many frames of so many pixels pass together on the device of `x`."""
        return max(1, (PIXELS_AT_ONCE_CPU if x.is_cpu else PIXELS_RECOMPUTED if self._recomputes else PIXELS_AT_ONCE) // pixels)

    def _chunked(self, work: Callable[[Tensor], Tensor], x: Tensor, at_once: int) -> Tensor:
        def run(part: Tensor) -> Tensor:
            return work(part.to(self.dtype).contiguous(memory_format=torch.channels_last))

        if self._recomputes:  # nothing in the networks is random
            parts = [cast(Tensor, checkpoint(run, part, use_reentrant=False, preserve_rng_state=False)) for part in x.split(at_once)]
        else:
            parts = [run(part) for part in x.split(at_once)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class VAE(Autoencoder):
    """Stable Diffusion's AutoencoderKL, as in sd-vae-ft-mse; parameter names are those of its published files (diffusers layout)."""

    quant_conv: nn.Module
    post_quant_conv: nn.Module

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        blocks = len(config.channels)
        net: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.groups,
            latent_channels=config.latent_channels,
        )
        # Taken over one by one, so that their names carry no prefix.
        for name, part in net.named_children():
            self.add_module(name, part)
        self.factor = 2 ** (blocks - 1)
        self.config = config

    def scale(self, latents: Tensor) -> Tensor:
        """(x - shift) * scale"""
        return (latents - self.config.shift_factor) * self.config.scaling_factor

    def unscale(self, latents: Tensor) -> Tensor:
        """x / scale + shift"""
        return latents / self.config.scaling_factor + self.config.shift_factor

    def published_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Accepts the attention names of before and after diffusers 0.18; other names pass unchanged."""
        pattern = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
        out: dict[str, Tensor] = {}
        for key, tensor in state.items():
            old = pattern.fullmatch(key)
            name = f"{old[1]}.{_OLD_ATTENTION[old[2]]}.{old[3]}" if old else key
            # some of the old files store these matrices as 1x1 convolutions
            out[name] = tensor.flatten(1) if old and tensor.dim() == 4 else tensor
        return out

    def _moments(self, pixels: Tensor) -> Tensor:
        mean, log_variance = self.quant_conv(self.encoder(pixels)).float().chunk(2, dim=1)
        # The bounds are those of the published autoencoder; they keep the exponential finite.
        return torch.cat([mean, torch.exp(0.5 * log_variance.clamp(-30, 20))], dim=1)

    def _pixels(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


class TinyVAE(Autoencoder):
    """TAESD (Ollin Boer Bohan): a hundredth of the work, for previews. It speaks scaled latents and knows no posterior."""

    def __init__(self, config: VAEConfig | None = None) -> None:
        super().__init__()
        from diffusers import AutoencoderTiny

        net: Any = AutoencoderTiny()  # one size exists for Stable Diffusion 1.x
        for name, part in net.named_children():
            self.add_module(name, part)

    def published_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Accepts diffusers' names, and TAESD's own ones of its two files with 'encoder.' and 'decoder.' put before them.

        TAESD's own decoder counts the clamp at its entry as layer 0; diffusers' does not.
        """
        out: dict[str, Tensor] = {}
        for key, tensor in state.items():
            own = re.fullmatch(r"(encoder|decoder)\.(\d+)\.(.+)", key)
            if own:
                key = f"{own[1]}.layers.{int(own[2]) - (own[1] == 'decoder')}.{own[3]}"
            out[key] = tensor
        return out

    def _moments(self, pixels: Tensor) -> Tensor:
        mean = self.encoder(pixels).float()
        return torch.cat([mean, torch.zeros_like(mean)], dim=1)

    def _pixels(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)


def make_vae(config: VAEConfig) -> Autoencoder:
    """The autoencoder of a model description, untrained."""
    if config.kind == "small":
        from latentsync.models.small_vae import SmallVAE

        return SmallVAE(config)
    return TinyVAE(config) if config.kind == "tiny" else VAE(config)


def join_taesd(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TAESD's two files as one state dict that `load_state` accepts."""
    return {f"encoder.{k}": v for k, v in encoder.items()} | {f"decoder.{k}": v for k, v in decoder.items()}
