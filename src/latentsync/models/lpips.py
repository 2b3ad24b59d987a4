"""LPIPS: how different two pictures look, from the layers of VGG16 (Zhang et al., arXiv 1801.03924; VGG: arXiv 1409.1556).

Parameter names are those of torchvision's vgg16-397923af.pth and of LPIPS' own heads of version 0.1, which `join_lpips` puts together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsync.errors import UsageError

# ImageNet's mean and standard deviation for pixels in [-1, 1], as LPIPS rounds them.
_MEAN = (-0.030, -0.088, -0.188)
_STD = (0.458, 0.448, 0.450)
_WIDTHS = (64, 128, 256, 512, 512)  # of VGG16's five levels, and how many convolutions each has
_CONVOLUTIONS = (2, 2, 3, 3, 3)
# Where activations are made anew in the backward pass, pictures pass so that this many pixels do together: 8 lower halves of 256 px, 2 of 512 px.
# The first level of such a part, whose heads work in float32, then holds half a gigabyte.
PIXELS_RECOMPUTED = 1 << 18
_CLASSIFIER = re.compile(r"classifier\.[036]\.(weight|bias)")  # the layers of torchvision's file that come after the features
_SLICE = re.compile(r"net\.slice[1-5]\.(\d+\.(?:weight|bias))")
_ALIAS = re.compile(r"lins\.([0-4]\.model\.1\.weight)")


class LPIPS(nn.Module):
    """Distance of two pictures as people see it: 0 for equal ones.

    `gradient_checkpointing = True` recomputes each level of a few pictures at a time in the backward pass instead of keeping its activations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        layers: list[nn.Module] = []
        self.levels: list[range] = []  # which layers make each level; the one after them halves the size
        inputs = 3
        for width, convolutions in zip(_WIDTHS, _CONVOLUTIONS, strict=True):
            self.levels.append(range(len(layers), len(layers) + 2 * convolutions))
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.ModuleList(layers)
        for i, width in enumerate(_WIDTHS):
            self.add_module(f"lin{i}", Head(width))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) in [-1, 1], twice -> their distances (n,) float32. Sides must be of 16 pixels at least.

        Where only one of the two needs gradients, give the other without: its activations are then not kept.
        Raises UsageError where the shapes do not fit.
        """
        if a.shape != b.shape or a.dim() != 4 or a.shape[1] != 3 or min(a.shape[2:]) < 16:
            raise UsageError(f"LPIPS compares two batches of pictures (n, 3, h, w) of at least 16x16, not {tuple(a.shape)} and {tuple(b.shape)}")
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return self._distances(a, b, self._level)

        def recomputed(level: int, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # nothing in the network is random
            return cast("tuple[Tensor, Tensor, Tensor]", checkpoint(self._level, level, a, b, use_reentrant=False, preserve_rng_state=False))

        at_once = max(1, PIXELS_RECOMPUTED // (a.shape[2] * a.shape[3]))
        return torch.cat([self._distances(x, y, recomputed) for x, y in zip(a.split(at_once), b.split(at_once), strict=True)])

    def _distances(self, a: Tensor, b: Tensor, run: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Pictures (n, 3, h, w) in [-1, 1], twice -> (n,): `run` takes them through each level."""
        a, b = self._normalised(a), self._normalised(b)
        total = torch.zeros(len(a), device=a.device)
        for level in range(len(self.levels)):
            a, b, distance = run(level, a, b)
            total = total + distance
        return total

    def _normalised(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=x.device, dtype=torch.float32).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        return ((x - mean) / std).to(cast(nn.Conv2d, self.features[0]).weight.dtype).contiguous(memory_format=torch.channels_last)

    def _level(self, level: int, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What enters a level of VGG, of both pictures -> what enters the next, and the distance (n,) at this one."""
        for i in self.levels[level]:
            a, b = self.features[i](a), self.features[i](b)
        distance = self.get_submodule(f"lin{level}")(a, b)
        if level < len(self.levels) - 1:
            halve = self.features[self.levels[level].stop]
            a, b = halve(a), halve(b)
        return a, b, distance

    def published_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Accepts the names of `join_lpips` and those of a whole LPIPS network, which has every head twice and two constants."""
        out: dict[str, Tensor] = {}
        for key, tensor in state.items():
            if sliced := _SLICE.fullmatch(key):
                key = f"features.{sliced[1]}"
            elif ((alias := _ALIAS.fullmatch(key)) and f"lin{alias[1]}" in state) or key in ("scaling_layer.shift", "scaling_layer.scale"):
                continue
            out[key] = tensor
        return out


class Head(nn.Module):
    """One level's weights of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Index 0 is a dropout in the published network, which only the training of these weights used.
        self.model = nn.ModuleList([nn.Identity(), nn.Conv2d(width, 1, 1, bias=False)])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Activations (n, c, h, w) of two pictures -> (n,) float32: each place's vectors at length 1, weighted squared difference, mean."""
        weight = cast(nn.Conv2d, self.model[1]).weight.float().flatten()
        # An all-black place has an all-zero vector; `normalize` gives it a gradient of zero, a bare square root gives NaN.
        difference = F.normalize(a.float()) - F.normalize(b.float())
        return (difference.square().mean(dim=(2, 3)) * weight).sum(1)


def join_lpips(vgg: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's VGG16 file and LPIPS' heads as one state dict that `load_state` accepts; VGG's classifier is left aside."""
    return {key: tensor for key, tensor in vgg.items() if not _CLASSIFIER.fullmatch(key)} | dict(heads)
