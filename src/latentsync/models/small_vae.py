"""The small autoencoder of the model that ships: convolutions and ReLU alone, no norms, in the manner of TAESD (Ollin Boer Bohan).

It works on half the pixels' grid at most, since pixels are folded into channels at both ends: on a CPU that gives the most picture for the work.
Beside the networks runs a fixed way: a few components of each cell's discrete cosine transform, there and back. The networks begin with nothing and
learn what these leave out, so training starts from a coarse codec (32 dB on drawn faces with 8 channels) whose channels each say something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.config import VAEConfig
from latentsync.errors import UsageError
from latentsync.models.vae import Autoencoder

FOLD = 2  # pixels, each way, that become channels of one cell
LAST = 12  # channels of the whole grid of pixels, from which colours are mixed


# The components, in the order of the latents' channels: (colour axis, waves across, waves down). Luma is 0, the colour differences are 1 and 2.
COMPONENTS = (
    (0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 2, 0), (0, 0, 2),
    (0, 2, 1), (0, 1, 2), (1, 1, 0), (1, 0, 1), (2, 1, 0), (2, 0, 1), (0, 2, 2), (0, 3, 0),
)  # fmt: skip
GAINS = (1.0, 3.0, 6.0)  # of luma's mean, of colours and single waves, of the rest: so that the channels vary about as much as each other


class Block(nn.Module):
    """(n, c, h, w) -> the same shape: two convolutions beside a way straight through."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # without norms, deep stacks begin best as the identity
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class SmallVAE(Autoencoder):
    """One grid for each of `config.channels`, from the finest, at half the pixels' size, to that of the latents.

    The encoder has `layers_per_block` blocks on each grid, the decoder one more. The latents that the U-Net sees are standardised: the buffers
    `latent_mean` and `latent_std` (c,), 0 and 1 until they are measured, hold each channel's over the training set. The posterior has no spread.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.factor = 2 ** len(config.channels)
        fine, coarse = config.channels[0], config.channels[-1]
        if not 1 <= config.latent_channels <= len(COMPONENTS):
            raise UsageError(f"a small autoencoder has 1 to {len(COMPONENTS)} latent channels, found {config.latent_channels}")
        if self.factor != Autoencoder.factor:
            raise UsageError(
                f"a small autoencoder has {Autoencoder.factor.bit_length() - 1} widths, one for each halving; found {len(config.channels)}"
            )
        down: list[nn.Module] = [nn.PixelUnshuffle(FOLD), nn.Conv2d(3 * FOLD**2, fine, 3, padding=1), nn.ReLU()]
        for i, width in enumerate(config.channels):
            if i:
                down += [nn.Conv2d(config.channels[i - 1], width, 3, stride=2, padding=1), nn.ReLU()]
            down += [Block(width) for _ in range(config.layers_per_block)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(coarse, config.latent_channels, 3, padding=1))
        up: list[nn.Module] = [nn.Conv2d(config.latent_channels, coarse, 3, padding=1), nn.ReLU()]
        for i, width in reversed(list(enumerate(config.channels))):
            up += [Block(width) for _ in range(config.layers_per_block + 1)]
            if i:
                up += [nn.Upsample(scale_factor=2), nn.Conv2d(width, config.channels[i - 1], 3, padding=1), nn.ReLU()]
        # the last convolution sees neighbours across the cells' borders, so that these do not show
        up += [nn.Conv2d(fine, LAST * FOLD**2, 3, padding=1), nn.PixelShuffle(FOLD), nn.ReLU(), nn.Conv2d(LAST, 3, 3, padding=1)]
        self.decoder = nn.Sequential(*up)
        for end in (self.encoder[-1], self.decoder[-1]):
            nn.init.zeros_(end.weight)  # type: ignore[arg-type]
            nn.init.zeros_(end.bias)  # type: ignore[arg-type]
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (n, 3, H, W) in [-1, 1] and noise (n, c, H/8, W/8) -> (pixels made of the noisy latents, latents not yet scaled): for training.

        The noise is in units of the latents' own standard deviation, each channel's over this batch.
        """
        latents = self._encoded(pixels)
        spread = latents.detach().float().std(dim=(0, 2, 3), keepdim=True, correction=0)
        return self._pixels(latents + (noise * spread).to(latents.dtype)), latents

    def scale(self, latents: Tensor) -> Tensor:
        """Each channel to mean 0 and standard deviation 1."""
        return (latents - _per_channel(self.latent_mean, latents)) / _per_channel(self.latent_std, latents)

    def unscale(self, latents: Tensor) -> Tensor:
        """The inverse of `scale`."""
        return latents * _per_channel(self.latent_std, latents) + _per_channel(self.latent_mean, latents)

    def published_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The names are its own."""
        return dict(state)

    def _moments(self, pixels: Tensor) -> Tensor:
        mean = self._encoded(pixels).float()
        return torch.cat([mean, torch.zeros_like(mean)], dim=1)

    def _encoded(self, pixels: Tensor) -> Tensor:
        there, _ = cosines(self.config.latent_channels, pixels.device, pixels.dtype)
        return self.encoder(pixels) + F.conv2d(F.pixel_unshuffle(pixels, self.factor), there)

    def _pixels(self, latents: Tensor) -> Tensor:
        _, back = cosines(self.config.latent_channels, latents.device, latents.dtype)
        return self.decoder(latents) + F.pixel_shuffle(F.conv2d(latents, back), self.factor)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept must serve in training too, whoever asked first
def cosines(channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(there (c, 192, 1, 1), back (192, c, 1, 1)): kernels between a cell's 3 * 8 * 8 samples, as `pixel_unshuffle` orders them, and its components.

    There and back again leaves components as they are: their product is the identity.
    """
    size = Autoencoder.factor
    axes = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 2.0], [1.0, -1.0, 0.0]], dtype=torch.float64)
    axes = axes / axes.norm(dim=1, keepdim=True)
    at = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    rows = []
    for axis, across, down in COMPONENTS[:channels]:
        wave_x, wave_y = (torch.cos(math.pi * n * at) * (math.sqrt(2) if n else 1.0) for n in (across, down))
        rows.append((axes[axis][:, None, None] * wave_y[None, :, None] * wave_x[None, None, :]).flatten())
    basis = torch.stack(rows) / size  # orthonormal
    gains = (
        torch.tensor([GAINS[min(2, (axis > 0) + across + down)] for axis, across, down in COMPONENTS[:channels]], dtype=torch.float64)[:, None] / size
    )
    there, back = basis * gains, (basis / gains).T
    return there[:, :, None, None].to(device, dtype), back[:, :, None, None].contiguous().to(device, dtype)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like)[None, :, None, None]
