"""SyncNet: how well a window of frames and its sound belong together. Parameter names are those of the published files (StableSyncNet).

Two encoders bring a window of frames and a piece of mel spectrogram down to one unit vector each; their cosine is high where lips and
sound agree (arXiv 2412.09262, section 3.3).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsync.config import SyncEncoderConfig, SyncNetConfig
from latentsync.errors import UsageError
from latentsync.models.attention import Attention, FeedForward, pointwise
from latentsync.models.resnet import group_norm

MELS = 80  # rows of the mel spectrogram
_GROUPS = 32
_EPS = 1e-6
_HEADS = 8


class SyncNet(nn.Module):
    """Two encoders without shared weights, for frames and for sound.

    `gradient_checkpointing = True` recomputes each block in the backward pass instead of keeping its activations.
    Raises UsageError where the strides of a description do not bring its inputs down to 1x1.
    """

    def __init__(self, config: SyncNetConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self._audio_shape = (1, MELS, config.mel_columns)
        self._visual_shape = (config.frames * (4 if config.latent else 3), *config.visual_size)
        _check("audio", config.audio, self._audio_shape)
        _check("visual", config.visual, self._visual_shape)
        if config.audio.channels[-1] != config.visual.channels[-1]:
            raise UsageError(
                f"SyncNet compares vectors of one width; its audio encoder ends with {config.audio.channels[-1]}, "
                f"its visual encoder with {config.visual.channels[-1]}"
            )
        self.audio_encoder = Encoder(config.audio)
        self.visual_encoder = Encoder(config.visual)

    def forward(self, frames: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (b, f*c, h, w) as `visual_input` makes them and mel (b, 1, 80, columns) -> vectors (b, d) of each, float32, of length 1.

        The mel is `sync_mel`'s, in [-4, 4]. Raises UsageError where the shapes do not fit.
        """
        return self.see(frames), self.hear(mel)

    def see(self, frames: Tensor) -> Tensor:
        """Frames (b, f*c, h, w), as `visual_input` makes them -> (b, d) float32 of length 1."""
        if frames.dim() != 4 or frames.shape[1:] != self._visual_shape:
            raise UsageError(f"SyncNet sees frames of shape (b, {', '.join(map(str, self._visual_shape))}), not {tuple(frames.shape)}")
        return self._unit(self.visual_encoder, frames)

    def hear(self, mel: Tensor) -> Tensor:
        """Mel (b, 1, 80, columns) -> (b, d) float32 of length 1."""
        if mel.dim() != 4 or mel.shape[1:] != self._audio_shape:
            raise UsageError(f"SyncNet hears mel of shape (b, {', '.join(map(str, self._audio_shape))}), not {tuple(mel.shape)}")
        return self._unit(self.audio_encoder, mel)

    def _unit(self, encoder: Encoder, x: Tensor) -> Tensor:
        x = x.to(encoder.conv_in.weight.dtype).contiguous(memory_format=torch.channels_last)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        return F.normalize(encoder(x, recompute).flatten(1).float())


def visual_input(frames: Tensor, config: SyncNetConfig) -> Tensor:
    """A window of whole aligned faces -> what the visual encoder sees, (b, f*c, *config.visual_size). Gradients pass through.

    Pixels (b, f, 3, h, w) in [-1, 1] are resized to the network's resolution (bicubic) and cut to their lower half where the description
    says so. Scaled latents (b, f, 4, h, w) must have the network's size. Raises UsageError where shapes do not fit.
    """
    channels, size = (4, config.resolution // 8) if config.latent else (3, config.resolution)
    if frames.dim() != 5 or frames.shape[1:3] != (config.frames, channels):
        raise UsageError(f"SyncNet sees windows of shape (b, {config.frames}, {channels}, h, w), not {tuple(frames.shape)}")
    x = frames.flatten(1, 2)
    if frames.shape[3:] != (size, size):
        if config.latent:
            raise UsageError(f"SyncNet sees latents of {size}x{size}, not {frames.shape[3]}x{frames.shape[4]}; train at {config.resolution} px")
        x = F.interpolate(x, size=(size, size), mode="bicubic")
    return x[:, :, size - config.visual_size[0] :]


class Encoder(nn.Module):
    """A picture down to 1x1: ResNet blocks and, here and there, self-attention."""

    def __init__(self, config: SyncEncoderConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        width = config.channels[0]
        for i, (outputs, stride) in enumerate(zip(config.channels, config.strides, strict=True)):
            self.down_blocks.append(DownBlock(width, outputs, stride))
            if i in config.attention:
                self.down_blocks.append(AttentionBlock(outputs))
            width = outputs
        self.norm_out = nn.GroupNorm(_GROUPS, width, eps=_EPS)

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """(b, in_channels, h, w) -> (b, d, 1, 1), not negative; `recompute` keeps only what enters each block for the backward pass."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = cast(Tensor, checkpoint(block, x, use_reentrant=False)) if recompute else block(x)
        return F.relu(group_norm(self.norm_out, x))


class DownBlock(nn.Module):
    """Two 3x3 convolutions and a residual, then a strided convolution where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, inputs, eps=_EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(_GROUPS, outputs, eps=_EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None
        self.downsample_conv = nn.Conv2d(outputs, outputs, 3, stride=stride) if stride != (1, 1) else None
        # A side that shrinks is padded at its end only, one that stays on both sides; F.pad counts from the last dimension.
        height, width = stride
        self.pad = (int(width == 1), 1, int(height == 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) -> (b, outputs, h // stride, w // stride)"""
        hidden = self.conv1(F.silu(group_norm(self.norm1, x)))
        hidden = self.conv2(F.silu(group_norm(self.norm2, hidden)))
        x = hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return x if self.downsample_conv is None else self.downsample_conv(F.pad(x, self.pad))


class AttentionBlock(nn.Module):
    """Every place attends to every other, then a GEGLU feed-forward, between two 1x1 convolutions; a residual around all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, width, eps=_EPS)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)
        self.conv_in = nn.Conv2d(width, width, 1)
        self.conv_out = nn.Conv2d(width, width, 1)
        self.attn = Attention(width, _HEADS, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, width, h, w) -> (b, width, h, w)"""
        tokens = pointwise(self.conv_in, group_norm(self.norm1, x).permute(0, 2, 3, 1).flatten(1, 2))
        tokens = self.attn(self.norm2(tokens)) + tokens
        tokens = self.ff(self.norm3(tokens)) + tokens
        return x + pointwise(self.conv_out, tokens).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _check(which: str, config: SyncEncoderConfig, shape: tuple[int, int, int]) -> None:
    """UsageError where an encoder does not take inputs of `shape` (channels, height, width) or does not bring them down to 1x1."""
    channels, height, width = shape
    if config.in_channels != channels:
        raise UsageError(f"SyncNet's {which} encoder takes {config.in_channels} channels, its inputs have {channels}; set {which}.in_channels")
    bad = [c for c in config.channels if c % _GROUPS]
    if bad:
        raise UsageError(f"SyncNet's {which} width {bad[0]} is not a multiple of {_GROUPS}, the groups of its normalisation")
    for down, across in config.strides:
        height, width = _after(height, down), _after(width, across)
    if (height, width) != (1, 1):
        raise UsageError(f"the strides of SyncNet's {which} encoder leave {height}x{width} of {shape[1]}x{shape[2]}; they must leave 1x1")


def _after(size: int, stride: int) -> int:
    """Length of a side after a padded 3x3 convolution of that stride: rounded down, and nothing is left of what is too short."""
    return size if stride == 1 else max(0, (size + 1 - 3) // stride + 1)
