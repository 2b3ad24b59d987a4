"""VideoMAE V2's encoder, whose features say what moves in a video (Wang et al., arXiv 2303.16727). Parameter names are those of its files.

TREPA compares generated and real windows by these features (LatentSync, arXiv 2412.09262, section 3.2).
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsync.config import VideoMAEConfig
from latentsync.errors import UsageError

_EPS = 1e-6


class VideoMAE(nn.Module):
    """A vision transformer over tubelets of two frames.

    `gradient_checkpointing = True` recomputes each block in the backward pass instead of keeping its activations.
    Raises UsageError where the numbers of a description do not divide one another.
    """

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        if config.size % config.patch or config.frames % config.tubelet or config.width % config.heads:
            raise UsageError(
                f"VideoMAE of size {config.size}, frames {config.frames}, width {config.width} cannot be cut evenly "
                f"by patch {config.patch}, tubelet {config.tubelet}, heads {config.heads}"
            )
        self.config = config
        self.gradient_checkpointing = False
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList([Block(config.width, config.heads, int(config.width * config.mlp_ratio)) for _ in range(config.depth)])
        self.fc_norm = nn.LayerNorm(config.width, eps=_EPS)
        self.head = nn.Linear(config.width, config.classes)

    def features(self, video: Tensor) -> Tensor:
        """Video (b, 3, f, H, W) in [0, 1] -> (b, width) float32, the mean over all tokens, normalised. Gradients pass through.

        Other sizes than the network's are resized (bicubic); what then lies outside [0, 1] is clipped. The network was trained on 16
        frames; other counts that are a multiple of the tubelet stretch its positions. Raises UsageError where the shape does not fit.
        """
        config = self.config
        if video.dim() != 5 or video.shape[1] != 3 or not video.shape[2] or video.shape[2] % config.tubelet:
            raise UsageError(f"VideoMAE takes videos of shape (b, 3, frames, h, w), frames a multiple of {config.tubelet}, not {tuple(video.shape)}")
        if video.shape[3:] != (config.size, config.size):
            frames = F.interpolate(video.transpose(1, 2).flatten(0, 1), size=(config.size, config.size), mode="bicubic")
            video = frames.unflatten(0, (-1, video.shape[2])).transpose(1, 2)
        tokens = self.patch_embed(video.clamp(0, 1).to(self.head.weight.dtype)).float()
        tokens = tokens + positions(config, video.shape[2] // config.tubelet, tokens.device, tokens.dtype)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            tokens = cast(Tensor, checkpoint(block, tokens, use_reentrant=False)) if recompute else block(tokens)
        return normalised(self.fc_norm, tokens.mean(1)).float()

    def forward(self, video: Tensor) -> Tensor:
        """Video as for `features` -> logits (b, classes) float32."""
        return self.head(self.features(video).to(self.head.weight.dtype)).float()


@lru_cache(maxsize=4)
def positions(config: VideoMAEConfig, steps: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(steps * patches, width): what is added to the token of every place at every step of time. One tensor is kept for each call of its kind."""
    trained, places = config.frames // config.tubelet, (config.size // config.patch) ** 2
    table = sinusoids(trained * places, config.width)
    if steps != trained:
        # Linear over time. The published code stretches by a factor that is a tenth of a step too long; its numbers are kept.
        over_time = table.unflatten(0, (trained, places)).permute(1, 2, 0)
        table = F.interpolate(over_time, scale_factor=(steps + 0.1) / trained, mode="linear").permute(2, 0, 1).flatten(0, 1)
    return table.to(device, dtype)


def sinusoids(rows: int, width: int) -> Tensor:
    """(rows, width) float32 on the CPU: sines in the even columns, cosines in the odd ones (Vaswani et al., arXiv 1706.03762, section 3.5)."""
    column = torch.arange(width, device="cpu")
    rate = torch.pow(10000.0, -2.0 * (column // 2).double() / width)
    angle = torch.arange(rows, device="cpu", dtype=torch.float64)[:, None] * rate
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


class PatchEmbed(nn.Module):
    """Cuts a video into tubelets of a few frames and one patch, each a token."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        cut = (config.tubelet, config.patch, config.patch)
        self.proj = nn.Conv3d(3, config.width, cut, stride=cut)

    def forward(self, video: Tensor) -> Tensor:
        """(b, 3, f, h, w) -> (b, tokens, width), time first, then rows, then columns"""
        return self.proj(video).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Self-attention over all tokens, then a feed-forward; each normalised before and added after.

    The tokens stay float32 whatever the weights are: 40 additions in bf16 would drown the differences of similar videos.
    """

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = FeedForward(width, inner)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, tokens, width) -> (b, tokens, width)"""
        tokens = tokens + self.attn(normalised(self.norm1, tokens))
        return tokens + self.mlp(normalised(self.norm2, tokens))


def normalised(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """(..., width) float32 -> the same normalised, in the dtype of the weights"""
    return F.layer_norm(tokens, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps).to(norm.weight.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention whose keys have no bias: the published files keep those of queries and values apart."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, tokens, width) -> (b, tokens, width)"""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = F.linear(tokens, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        return self.fc2(F.gelu(self.fc1(x)))
