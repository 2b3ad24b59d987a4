"""Attention over space and over audio: the parts that the U-Net's transformers share. Names follow the published files."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.models.resnet import group_norm

# CUDA's fused attention kernels put the batch in a grid dimension that ends at 65,535.
_MAX_ATTENTION_BATCH = 65535

# On CPUs the feed-forward runs over as many tokens at a time as keep its widest buffer at this size. Larger ones are mapped and
# zeroed by the system at every use: the cut saves a few percent of the time and several hundred megabytes at the peak.
_CPU_BUFFER_BYTES = 16 << 20


class Attention(nn.Module):
    """Multi-head attention; keys and values come from `context` or from the tokens themselves."""

    def __init__(self, width: int, heads: int, context_width: int | None = None, *, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context_width or width, width, bias=bias)
        self.to_v = nn.Linear(context_width or width, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """(n, tokens, width) and (n, keys, context width) | None -> (n, tokens, width)"""
        source = tokens if context is None else context
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, x in ((self.to_q, tokens), (self.to_k, source), (self.to_v, source))
        )
        if q.is_cpu and torch.is_grad_enabled() and q.requires_grad:
            out = _plain_attention(q, k, v)
        elif q.shape[0] <= _MAX_ATTENTION_BATCH:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            parts = zip(*(x.split(_MAX_ATTENTION_BATCH) for x in (q, k, v)), strict=True)
            out = torch.cat([F.scaled_dot_product_attention(*part) for part in parts])
        return self.to_out[0](out.transpose(1, 2).flatten(2))


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(n, heads, tokens, d), (n, heads, keys, d) twice -> (n, heads, tokens, d), for training on CPUs.

    The backward pass of PyTorch's fused attention (2.13) takes several times as long there as that of two matrix products and a softmax.
    """
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1)
    return weights.to(v.dtype) @ v


def pointwise(convolution: nn.Module, tokens: Tensor) -> Tensor:
    """(n, tokens, c) -> (n, tokens, c'): a 1x1 convolution. On channels-last pixels it is a matrix product, which needs no change of layout."""
    if isinstance(convolution, nn.Conv2d):
        return F.linear(tokens, convolution.weight.flatten(1), convolution.bias)
    return convolution(tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)  # with an adapter around it, in training


class GEGLU(nn.Module):
    """Gated GELU (Shazeer 2020, arXiv 2002.05202): one half of a projection gates the other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., inner)"""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Index 1 is a dropout of rate 0 in the published network; it keeps the index of the second projection.
        self.net = nn.ModuleList([GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        if x.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            rows = x.flatten(0, -2)
            out = torch.empty_like(rows)
            at_once = max(1, _CPU_BUFFER_BYTES // (8 * x.shape[-1] * x.element_size()))
            for part, place in zip(rows.split(at_once), out.split(at_once), strict=True):
                place.copy_(self._layers(part))
            return out.view_as(x)
        return self._layers(x)

    def _layers(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nn.Module):
    """Self-attention over space, cross-attention to audio, feed-forward; each normalised before and added after."""

    def __init__(self, width: int, heads: int, audio_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, audio_dim)
        self.ff = FeedForward(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, audio: Tensor | None) -> Tensor:
        """(b*f, h*w, width) and (b*f, audio tokens, audio_dim) | None -> (b*f, h*w, width)"""
        tokens = self.attn1(self.norm1(tokens)) + tokens
        if audio is not None:
            tokens = self.attn2(self.norm2(tokens), audio) + tokens
        return self.ff(self.norm3(tokens)) + tokens


class SpatialTransformer(nn.Module):
    """Each frame alone: its pixels attend to one another and to the frame's audio."""

    def __init__(self, width: int, heads: int, audio_dim: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, heads, audio_dim)])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, audio: Tensor | None) -> Tensor:
        """(b*f, c, h, w) and (b*f, audio tokens, audio_dim) | None -> (b*f, c, h, w)"""
        tokens = group_norm(self.norm, x).permute(0, 2, 3, 1).flatten(1, 2)
        tokens = pointwise(self.proj_in, tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, audio)
        tokens = pointwise(self.proj_out, tokens)
        return x + tokens.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
