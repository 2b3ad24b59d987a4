"""Motion modules: attention over the frames of a window, one sequence per pixel (AnimateDiff, arXiv 2307.04725)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentsync.errors import UsageError
from latentsync.models.attention import Attention, FeedForward
from latentsync.models.resnet import group_norm


class PositionTable(nn.Module):
    """Sinusoidal positions (Vaswani et al. 2017, section 3.5); a buffer that the published files contain."""

    pe: Tensor

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.register_buffer("pe", torch.empty(1, rows, width))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Compute the table anew, for example after `to_empty`."""
        if self.pe.is_meta:
            return
        _, rows, width = self.pe.shape
        position = torch.arange(rows, dtype=torch.float32)[:, None]
        rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
        table = torch.empty(1, rows, width)
        table[0, :, 0::2] = torch.sin(position * rate)
        table[0, :, 1::2] = torch.cos(position * rate)
        with torch.no_grad():
            self.pe.copy_(table)

    def forward(self, x: Tensor) -> Tensor:
        """(n, f, width) -> (n, f, width) with the position added"""
        if x.shape[1] > self.pe.shape[1]:
            raise UsageError(f"a window of {x.shape[1]} frames is longer than the {self.pe.shape[1]} positions of the motion modules")
        return x + self.pe[:, : x.shape[1]].to(x.dtype)


class TemporalAttention(Attention):
    """Self-attention over frames that knows the frame's position."""

    def __init__(self, width: int, heads: int, positions: int) -> None:
        super().__init__(width, heads)
        self.pos_encoder = PositionTable(width, positions)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """(b*h*w, f, width) -> (b*h*w, f, width)"""
        return super().forward(self.pos_encoder(tokens), context)


class TemporalBlock(nn.Module):
    """Two temporal self-attentions and a feed-forward; each normalised before and added after."""

    def __init__(self, width: int, heads: int, positions: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(TemporalAttention(width, heads, positions) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.ff = FeedForward(width)
        self.ff_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b*h*w, f, width) -> (b*h*w, f, width)"""
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            tokens = attention(norm(tokens)) + tokens
        return self.ff(self.ff_norm(tokens)) + tokens


class TemporalTransformer(nn.Module):
    """GroupNorm per frame, linear in, temporal block, linear out (zero at the start of training), residual."""

    def __init__(self, width: int, heads: int, groups: int, positions: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(width, heads, positions)])
        self.proj_out = nn.Linear(width, width)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(b*f, c, h, w) -> (b*f, c, h, w)"""
        n, c, h, w = x.shape
        # One change of layout each way: frames become the sequence and pixels the batch.
        tokens = group_norm(self.norm, x).permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c).transpose(1, 2).reshape(-1, frames, c)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        tokens = self.proj_out(tokens)
        return x + tokens.reshape(n // frames, h * w, frames, c).transpose(1, 2).reshape(n, h, w, c).permute(0, 3, 1, 2)


class MotionModule(nn.Module):
    """The temporal transformer under the name that the published files give it."""

    def __init__(self, width: int, heads: int, groups: int, positions: int) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(width, heads, groups, positions)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(b*f, c, h, w) -> (b*f, c, h, w)"""
        return self.temporal_transformer(x, frames)
