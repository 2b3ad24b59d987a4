"""The small face finder's two networks: one finds faces in a picture, one places points on a face. Tensors in, tensors out; small enough for a CPU.

The finder is anchor-free: at every cell of a grid it says how likely a face has its middle there, and where box and five points then lie
(after Zhou et al., Objects as Points, arXiv 1904.07850). The pointer takes the mean of a probability map for each point (Sun et al.,
Integral Human Pose Regression, arXiv 1711.08229), so that points are finer than its grid.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from latentsync import config as configs
from latentsync.config import FaceNetConfig
from latentsync.errors import LatentSyncError, WeightsError

CELL = 8  # pixels of one cell of the finder's grid
MAPS = 1 + 4 + 10  # of the finder: score; box edges left, top, right, bottom of the cell's middle; five points x, y from it; both in cells
COARSEST = 32  # pixels of one value of the finder's coarsest layer: its input's sides are multiples of it
POINT_CELL = 4  # pixels of one cell of the pointer's maps
PRIOR = -4.0  # first score of every cell, before the sigmoid: few hold a face


def convolution(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    """3x3, normalised, rectified."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """(b, c, h, w) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = convolution(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class FaceFinder(nn.Module):
    """(b, 3, h, w) in -1..1, h and w multiples of 32 -> (b, 15, h / 8, w / 8): see `MAPS`; the score before its sigmoid."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        a, b, c, d = channels
        self.to4 = nn.Sequential(convolution(3, a, 2), convolution(a, b, 2), Residual(b))
        self.to8 = nn.Sequential(convolution(b, c, 2), Residual(c), Residual(c))
        self.to16 = nn.Sequential(convolution(c, d, 2), Residual(d))
        self.to32 = nn.Sequential(convolution(d, d, 2), Residual(d))
        self.back16 = convolution(d, d)
        self.narrow = nn.Conv2d(d, c, 1)
        self.back8 = convolution(c, c)
        self.head = nn.Sequential(convolution(c, c), nn.Conv2d(c, MAPS, 1))
        last = self.head[1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.constant_(last.bias[:1], PRIOR)

    def forward(self, x: Tensor) -> Tensor:
        x8 = self.to8(self.to4(x))
        x16 = self.to16(x8)
        x16 = self.back16(x16 + interpolate(self.to32(x16), scale_factor=2.0))
        return self.head(self.back8(x8 + interpolate(self.narrow(x16), scale_factor=2.0)))


class FacePointer(nn.Module):
    """(b, 3, s, s) in -1..1 -> points (b, n, 2) in pixels of that crop, and how likely a face is there (b,), before its sigmoid."""

    def __init__(self, channels: tuple[int, ...], points: int) -> None:
        super().__init__()
        a, b, c, d = channels
        self.to4 = nn.Sequential(convolution(3, a, 2), convolution(a, b, 2), Residual(b))
        self.to8 = nn.Sequential(convolution(b, c, 2), Residual(c), Residual(c))
        self.to16 = nn.Sequential(convolution(c, d, 2), Residual(d))
        self.narrow8 = nn.Conv2d(d, c, 1)
        self.back8 = convolution(c, c)
        self.narrow4 = nn.Conv2d(c, b, 1)
        self.back4 = convolution(b, b)
        self.maps = nn.Conv2d(b, points, 1)
        self.presence = nn.Linear(d, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x4 = self.to4(x)
        x8 = self.to8(x4)
        x16 = self.to16(x8)
        x8 = self.back8(x8 + interpolate(self.narrow8(x16), scale_factor=2.0))
        x4 = self.back4(x4 + interpolate(self.narrow4(x8), scale_factor=2.0))
        return expected(self.maps(x4).float()) * POINT_CELL + (POINT_CELL - 1) / 2, self.presence(x16.mean((2, 3)))[:, 0]


class FaceNet(nn.Module):
    """Both networks, which are trained and stored together."""

    def __init__(self, config: FaceNetConfig) -> None:
        super().__init__()
        self.config = config
        self.finder = FaceFinder(config.detector_channels)
        self.pointer = FacePointer(config.crop_channels, config.points)

    def forward(self, pictures: Tensor, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures for the finder and crops for the pointer -> what both say; for training."""
        return self.finder(pictures), *self.pointer(crops)


def expected(maps: Tensor) -> Tensor:
    """(b, n, h, w) logits -> (b, n, 2): the mean place x, y of each map's probability, in cells from the first one's middle."""
    _, _, height, width = maps.shape
    shares = maps.flatten(2).softmax(-1).unflatten(-1, (height, width))
    x = shares.sum(2) @ torch.arange(width, dtype=maps.dtype, device=maps.device)
    y = shares.sum(3) @ torch.arange(height, dtype=maps.dtype, device=maps.device)
    return torch.stack([x, y], -1)


def check_config(config: FaceNetConfig, where: str) -> None:
    """Raise UsageError's kin where no network can be made of it."""
    if len(config.detector_channels) != 4 or len(config.crop_channels) != 4 or min(*config.detector_channels, *config.crop_channels) < 1:
        raise LatentSyncError(f"{where}: detector_channels and crop_channels are four widths each, found {config}")
    if config.detector % COARSEST or config.crop % 16 or config.detector < COARSEST or config.crop < 16:
        raise LatentSyncError(f"{where}: detector must be a multiple of {COARSEST} and crop one of 16, found {config.detector} and {config.crop}")


def load_face_net(weights: Path, description: Path) -> FaceNet:
    """The networks of a safetensors file and its YAML description, float32 on the CPU, ready for use. Raises WeightsError where they do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = configs.parse_as(FaceNetConfig, description.read_text(encoding="utf-8"), str(description))
        state = load_file(str(weights))
    except (OSError, SafetensorError) as e:
        raise WeightsError(
            f"cannot read the face finder {weights} with {description.name}: {e}; `pip install --force-reinstall` mends the package"
        ) from e
    check_config(config, str(description))
    net = FaceNet(config)
    own = net.state_dict()
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape] + [k for k in state if k not in own]
    if wrong:
        raise WeightsError(f"{weights} does not fit {description.name}: '{wrong[0]}' is missing, of another shape, or unknown")
    net.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()})
    return net.requires_grad_(False).eval()


def fused(net: nn.Module) -> nn.Module:
    """The network with every normalisation folded into the convolution before it: the same answers, faster. Changes `net`."""
    for module in net.modules():
        if isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                convolution, norm = module[i], module[i + 1]
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[i] = nn.utils.fuse_conv_bn_eval(convolution, norm)
                    module[i + 1] = nn.Identity()
    return net
