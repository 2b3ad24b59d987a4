"""Convolutional blocks of the U-Net. Frames travel as batch, (b*f, c, h, w), with channels last in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(norm: nn.GroupNorm, x: Tensor, frames: int = 1) -> Tensor:
    """(b*f, c, h, w) -> (b*f, c, h, w): statistics are shared by each run of `frames` images, so 1 means per image.

    With channels last in memory, `frames` images stacked in height are one tall image without moving a byte.
    """
    n, c, h, w = x.shape
    if frames > 1:
        x = x.permute(0, 2, 3, 1).reshape(n // frames, frames * h, w, c).permute(0, 3, 1, 2)
    if x.is_cpu and torch.is_grad_enabled() and norm.weight.requires_grad and not x.requires_grad:
        # With channels last, PyTorch's CPU backward (2.13) writes the input's gradient even where none is wanted, and crashes the process.
        x = x.detach().requires_grad_()
    x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    if frames > 1:
        x = x.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)
    return x


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with the diffusion time added between them, and a residual.

    The statistics of both GroupNorms are shared by all frames of a window: changing one frame moves the others.
    """

    def __init__(self, inputs: int, outputs: int, time_width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-5)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-5)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)
        self.changes_width = inputs != outputs

    def forward(self, x: Tensor, time: Tensor, frames: int) -> Tensor:
        """(b*f, inputs, h, w) and (b, time width) -> (b*f, outputs, h, w)"""
        hidden = self.conv1(F.silu(group_norm(self.norm1, x, frames)))
        shift = self.time_emb_proj(F.silu(time)).repeat_interleave(frames, dim=0, output_size=x.shape[0])
        hidden = hidden + shift[:, :, None, None]
        hidden = self.conv2(F.silu(group_norm(self.norm2, hidden, frames)))
        return hidden + (self.conv_shortcut(x) if self.changes_width else x)


class Downsample(nn.Module):
    """Halves height and width (rounding up) with a strided convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, ceil(h/2), ceil(w/2))"""
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to a given size, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """(n, c, h, w) -> (n, c, *size): the size is that of the skip connection to come, so that odd sizes fit."""
        return self.conv(F.interpolate(x, size=tuple(size), mode="nearest"))
