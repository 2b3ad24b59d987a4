"""The denoising U-Net: Stable Diffusion 1.5 inflated over frames (LatentSync, arXiv 2412.09262), with the published names and shapes.

Inside, frames travel as batch, (b*f, c, h, w), with channels last in memory: convolutions like it, 1x1 convolutions become
matrix products, and a GroupNorm over a whole window is a view. Only the motion modules change the layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsync.config import UNetConfig
from latentsync.errors import UsageError
from latentsync.models.attention import SpatialTransformer
from latentsync.models.cache import FeatureCache
from latentsync.models.motion import MotionModule
from latentsync.models.resnet import Downsample, ResnetBlock, Upsample, group_norm

__all__ = ["FeatureCache", "UNet"]

Run = Callable[..., Tensor]  # calls a module with what follows


class TimeEmbedding(nn.Module):
    """Sinusoids of the diffusion time, then two linear layers."""

    def __init__(self, sinusoids: int, width: int) -> None:
        super().__init__()
        self.sinusoids = sinusoids
        self.linear_1 = nn.Linear(sinusoids, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timestep: Tensor) -> Tensor:
        """(b,) -> (b, width)"""
        half = self.sinusoids // 2
        # Computed in float32 whatever the network's dtype: bf16 cannot tell timestep 751 from 752.
        rate = torch.exp(torch.arange(half, dtype=torch.float32, device=timestep.device) * (-math.log(10000.0) / half))
        angle = timestep.float()[:, None] * rate
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


class Block(nn.Module):
    """One resolution: layers of ResNet block, spatial transformer (where there is one) and motion module (where there is one).

    The order of the lists is that of the published files.
    """

    def __init__(self, config: UNetConfig, inputs: list[int], width: int, *, attends: bool, moves: bool) -> None:
        super().__init__()
        if attends:
            self.attentions = nn.ModuleList(SpatialTransformer(width, config.heads, config.audio_dim, config.groups) for _ in inputs)
        self.resnets = nn.ModuleList(ResnetBlock(c, width, config.channels[0] * 4, config.groups) for c in inputs)
        if moves:
            self.motion_modules = nn.ModuleList(MotionModule(width, config.heads, config.groups, config.motion_positions) for _ in inputs)
        self.layers = len(inputs)
        self.attends = attends
        self.moves = moves

    def layer(self, run: Run, i: int, x: Tensor, time: Tensor, audio: Tensor | None, frames: int) -> Tensor:
        """(b*f, c, h, w) -> (b*f, width, h, w): the i-th layer, its parts called by `run`."""
        x = run(self.resnets[i], x, time, frames)
        if self.attends:
            x = run(self.attentions[i], x, audio)
        if self.moves:
            x = run(self.motion_modules[i], x, frames)
        return x


class DownBlock(Block):
    """A block of the encoder; all but the last halve the size afterwards."""

    def __init__(self, config: UNetConfig, inputs: list[int], width: int, *, attends: bool, moves: bool, shrinks: bool) -> None:
        super().__init__(config, inputs, width, attends=attends, moves=moves)
        if shrinks:
            self.downsamplers = nn.ModuleList([Downsample(width)])
        self.shrinks = shrinks

    def shrink(self, x: Tensor) -> Tensor:
        """(b*f, c, h, w) -> (b*f, c, ceil(h/2), ceil(w/2))"""
        return self.downsamplers[0](x)


class UpBlock(Block):
    """A block of the decoder; all but the last enlarge afterwards."""

    def __init__(self, config: UNetConfig, inputs: list[int], width: int, *, attends: bool, moves: bool, grows: bool) -> None:
        super().__init__(config, inputs, width, attends=attends, moves=moves)
        if grows:
            self.upsamplers = nn.ModuleList([Upsample(width)])

    def grow(self, x: Tensor, size: torch.Size) -> Tensor:
        """(b*f, c, h, w) -> (b*f, c, *size)"""
        return self.upsamplers[0](x, size)


class MiddleBlock(nn.Module):
    """ResNet block, spatial transformer, ResNet block; no motion."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.channels[-1]
        self.attentions = nn.ModuleList([SpatialTransformer(width, config.heads, config.audio_dim, config.groups)])
        self.resnets = nn.ModuleList(ResnetBlock(width, width, config.channels[0] * 4, config.groups) for _ in range(2))

    def forward(self, run: Run, x: Tensor, time: Tensor, audio: Tensor | None, frames: int) -> Tensor:
        """(b*f, c, h, w) -> (b*f, c, h, w), the parts called by `run`."""
        x = run(self.resnets[0], x, time, frames)
        x = run(self.attentions[0], x, audio)
        return run(self.resnets[1], x, time, frames)


class UNet(nn.Module):
    """Predicts the noise in a window of latents, given mask, masked and reference latents, and audio.

    `gradient_checkpointing = True` recomputes each part of each layer in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        channels, layers = config.channels, config.layers_per_block
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], channels[0] * 4)

        self.down_blocks = nn.ModuleList()
        skips = [channels[0]]
        previous = channels[0]
        for i, width in enumerate(channels):
            inputs = [previous] + [width] * (layers - 1)
            self.down_blocks.append(DownBlock(config, inputs, width, attends=i < last, moves=config.motion == "all", shrinks=i < last))
            skips += [width] * (layers + (i < last))
            previous = width

        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(reversed(channels)):
            inputs = [(previous if j == 0 else width) + skips.pop() for j in range(layers + 1)]
            self.up_blocks.append(UpBlock(config, inputs, width, attends=i > 0, moves=config.motion != "none", grows=i < last))
            previous = width

        self.mid_block = MiddleBlock(config)
        self.conv_norm_out = nn.GroupNorm(config.groups, channels[0], eps=1e-5)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)
        # The published training starts from Stable Diffusion, whose input and output these two replace.
        for conv in (self.conv_in, self.conv_out):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, to which inputs are brought."""
        return self.conv_in.weight.dtype

    def forward(self, sample: Tensor, timestep: Tensor | float, audio: Tensor | None, *, cache: FeatureCache | None = None) -> Tensor:
        """(b, 13, f, h, w), (b,) or one number, (b, f, tokens, audio_dim) | None -> (b, 4, f, h, w) in the sample's dtype.

        Audio may also come with frames as batch, (b*f, tokens, audio_dim); None skips the cross-attention. With a `cache`
        the call counts as one step of its sampling run. Raises UsageError where the shapes do not fit.
        """
        b, c, f, h, w = sample.shape
        if c != self.config.in_channels:
            raise UsageError(f"the U-Net takes {self.config.in_channels} channels, not {c}: latent, mask, masked latent, reference latent")
        x = sample.to(self.dtype).permute(0, 2, 1, 3, 4).reshape(b * f, c, h, w).contiguous(memory_format=torch.channels_last)
        time = torch.as_tensor(timestep, device=sample.device).expand(b)
        if audio is not None:
            if audio.dim() == 4:
                audio = audio.flatten(0, 1)
            if audio.shape[0] != b * f or audio.shape[2] != self.config.audio_dim:
                want = (b, f, "tokens", self.config.audio_dim)
                raise UsageError(f"audio of shape {tuple(audio.shape)} does not fit a sample of {b} x {f} frames; expected {want}")
            audio = audio.to(self.dtype)
        if cache is not None and cache.reuses:
            out = self.shallow(x, time, audio, f, cache.take(tuple(sample.shape)))
        else:
            out, deep = self.whole(x, time, audio, f)
            if cache is not None:
                cache.put(deep, tuple(sample.shape))
        return out.reshape(b, f, -1, h, w).transpose(1, 2).to(sample.dtype)

    def whole(self, x: Tensor, timestep: Tensor, audio: Tensor | None, frames: int) -> tuple[Tensor, Tensor]:
        """(b*f, 13, h, w), (b,), (b*f, tokens, audio_dim) | None -> noise (b*f, 4, h, w) and the feature entering the last layer."""
        time = self.time_embedding(timestep)
        x = self.conv_in(x)
        skips = [x]
        downs, ups = cast("list[DownBlock]", self.down_blocks), cast("list[UpBlock]", self.up_blocks)
        for down in downs:
            for i in range(down.layers):
                x = down.layer(self._run, i, x, time, audio, frames)
                skips.append(x)
            if down.shrinks:
                x = down.shrink(x)
                skips.append(x)
        x = self.mid_block(self._run, x, time, audio, frames)
        for up in ups[:-1]:
            for i in range(up.layers):
                x = up.layer(self._run, i, torch.cat([x, skips.pop()], dim=1), time, audio, frames)
            x = up.grow(x, skips[-1].shape[2:])
        for i in range(ups[-1].layers - 1):
            x = ups[-1].layer(self._run, i, torch.cat([x, skips.pop()], dim=1), time, audio, frames)
        return self._last(x, skips.pop(), time, audio, frames), x

    def shallow(self, x: Tensor, timestep: Tensor, audio: Tensor | None, frames: int, deep: Tensor) -> Tensor:
        """The same from a stored `deep` feature: only the input convolution, the last layer and the output convolution run."""
        return self._last(deep, self.conv_in(x), self.time_embedding(timestep), audio, frames)

    def _last(self, deep: Tensor, skip: Tensor, time: Tensor, audio: Tensor | None, frames: int) -> Tensor:
        up = cast("UpBlock", self.up_blocks[-1])
        x = up.layer(self._run, up.layers - 1, torch.cat([deep, skip], dim=1), time, audio, frames)
        return self.conv_out(F.silu(group_norm(self.conv_norm_out, x, frames)))

    def _run(self, part: nn.Module, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():  # nothing in the network is random
            return cast(Tensor, checkpoint(part, *args, use_reentrant=False, preserve_rng_state=False))
        return part(*args)

    def make_cache(self, interval: int = 3) -> FeatureCache:
        """A fresh cache for one sampling run; give it to every `forward` of the run."""
        return FeatureCache(interval)

    def compile(self, **options: Any) -> None:
        """Compile both ways through the network, so that a feature cache's step counter does not cause recompilation."""
        self.whole = torch.compile(self.whole, **options)  # type: ignore[method-assign]
        self.shallow = torch.compile(self.shallow, **options)  # type: ignore[method-assign]
