"""Convolutional blocks of the U-Net. Frames travel as batch, (b*f, c, h, w), with channels last in memory."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The gradient of a GroupNorm is made for as many images at a time as hold so many numbers, which then stay in a processor core's own cache.
_CACHED_NUMBERS = 1 << 17


def group_norm(norm: nn.GroupNorm, x: Tensor, frames: int = 1) -> Tensor:
    """(b*f, c, h, w) -> (b*f, c, h, w): statistics are shared by each run of `frames` images, so 1 means per image.

    With channels last in memory, `frames` images stacked in height are one tall image without moving a byte.
    """
    n, c, h, w = x.shape
    if frames > 1:
        x = x.permute(0, 2, 3, 1).reshape(n // frames, frames * h, w, c).permute(0, 3, 1, 2)
    if x.is_cpu and torch.is_grad_enabled() and (x.requires_grad or norm.weight.requires_grad) and not torch.compiler.is_compiling():
        x = cast(Tensor, _GroupNorm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps))  # type: ignore[no-untyped-call]
    else:
        x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    if frames > 1:
        x = x.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)
    return x


class _GroupNorm(torch.autograd.Function):
    """GroupNorm with a backward pass of its own, for training on CPUs with channels last in memory.

    PyTorch's (2.13) takes up to ten times as long there where groups are narrow, and crashes where the input's gradient is not wanted.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """(n, c, h, w), (c,), (c,) -> (n, c, h, w)"""
        n, c, h, w = x.shape
        out, mean, scale = torch.native_group_norm(x, weight, bias, n, c, h * w, groups, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Sums over each channel's pixels give the gradients of weight and bias; with them the input's is linear in `x` and in the gradient."""
        x, weight, mean, scale = ctx.saved_tensors
        n, c, h, w = x.shape
        groups, exact = mean.shape[1], torch.promote_types(mean.dtype, torch.float32)
        rows, given = (t.permute(0, 2, 3, 1).reshape(n, h * w, c) for t in (x, gradients[0]))
        mean, scale = (t.to(exact).repeat_interleave(c // groups, dim=1) for t in (mean, scale))  # (n, c)
        gamma = weight.to(exact)
        wanted = ctx.needs_input_grad[0]
        out = torch.empty_like(rows) if wanted else None
        to_weight, to_bias = torch.zeros_like(gamma), torch.zeros_like(gamma)
        at_once = max(1, _CACHED_NUMBERS // (h * w * c))
        for begin in range(0, n, at_once):
            part = slice(begin, begin + at_once)
            values, slopes, m, r = rows[part].to(exact), given[part].to(exact), mean[part], scale[part]
            total = slopes.sum(1)
            along = ((slopes * values).sum(1) - m * total) * r  # with the normalised input
            to_weight += along.sum(0)
            to_bias += total.sum(0)
            if out is not None:
                level, slant = ((gamma * t).unflatten(1, (groups, -1)).mean(2).repeat_interleave(c // groups, 1) / (h * w) for t in (total, along))
                made = torch.addcmul((r * (slant * r * m - level))[:, None], slopes, (gamma * r)[:, None])
                out[part] = made.addcmul_(values, (-slant * r * r)[:, None])
        back = None if out is None else out.unflatten(1, (h, w)).permute(0, 3, 1, 2)
        return back, to_weight.to(weight.dtype), to_bias.to(weight.dtype), None, None


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
