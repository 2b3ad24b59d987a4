"""Inception-v3 as the original FID code had it: a picture to the 2048 numbers that FID compares.

Szegedy et al., arXiv 1512.00567; FID: Heusel et al., arXiv 1706.08500. Parameter names are those of pytorch-fid's port of the original TensorFlow
graph (pt_inception-2015-12-05-6726825d.pth), which differs from the network in the paper and in torchvision: its average pools do not count what
lies beyond the edge, its very last block pools by the maximum, and it knows 1008 kinds of things.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.errors import UsageError

SIDE = 299  # pixels of what it looks at; pictures are scaled to that
WIDTH = 2048
_KINDS = 1008

Pool = Literal["mean", "most", "halve"]  # halve: the maximum of each second place, which goes on as it is
Step = tuple[str, int, int, int, int]  # name, channels out, rows and columns of the kernel, stride
Chain = tuple[Step | tuple[Step, Step], ...]  # one step after the other; a pair looks at the same, and both results go on


def _a(pooled: int) -> tuple[Pool, int, tuple[Chain, ...]]:
    return "mean", pooled, (
        (("branch1x1", 64, 1, 1, 1),),
        (("branch5x5_1", 48, 1, 1, 1), ("branch5x5_2", 64, 5, 5, 1)),
        (("branch3x3dbl_1", 64, 1, 1, 1), ("branch3x3dbl_2", 96, 3, 3, 1), ("branch3x3dbl_3", 96, 3, 3, 1)),
    )  # fmt: skip


def _c(width: int) -> tuple[Pool, int, tuple[Chain, ...]]:
    return "mean", 192, (
        (("branch1x1", 192, 1, 1, 1),),
        (("branch7x7_1", width, 1, 1, 1), ("branch7x7_2", width, 1, 7, 1), ("branch7x7_3", 192, 7, 1, 1)),
        (("branch7x7dbl_1", width, 1, 1, 1), ("branch7x7dbl_2", width, 7, 1, 1), ("branch7x7dbl_3", width, 1, 7, 1),
         ("branch7x7dbl_4", width, 7, 1, 1), ("branch7x7dbl_5", 192, 1, 7, 1)),
    )  # fmt: skip


def _e(pool: Pool) -> tuple[Pool, int, tuple[Chain, ...]]:
    return pool, 192, (
        (("branch1x1", 320, 1, 1, 1),),
        (("branch3x3_1", 384, 1, 1, 1), (("branch3x3_2a", 384, 1, 3, 1), ("branch3x3_2b", 384, 3, 1, 1))),
        (("branch3x3dbl_1", 448, 1, 1, 1), ("branch3x3dbl_2", 384, 3, 3, 1), (("branch3x3dbl_3a", 384, 1, 3, 1), ("branch3x3dbl_3b", 384, 3, 1, 1))),
    )  # fmt: skip


_B: tuple[Pool, int, tuple[Chain, ...]] = ("halve", 0, (
    (("branch3x3", 384, 3, 3, 2),),
    (("branch3x3dbl_1", 64, 1, 1, 1), ("branch3x3dbl_2", 96, 3, 3, 1), ("branch3x3dbl_3", 96, 3, 3, 2)),
))  # fmt: skip
_D: tuple[Pool, int, tuple[Chain, ...]] = ("halve", 0, (
    (("branch3x3_1", 192, 1, 1, 1), ("branch3x3_2", 320, 3, 3, 2)),
    (("branch7x7x3_1", 192, 1, 1, 1), ("branch7x7x3_2", 192, 1, 7, 1), ("branch7x7x3_3", 192, 7, 1, 1), ("branch7x7x3_4", 192, 3, 3, 2)),
))  # fmt: skip
_MIXED = (
    ("5b", _a(32)), ("5c", _a(64)), ("5d", _a(64)),
    ("6a", _B), ("6b", _c(128)), ("6c", _c(160)), ("6d", _c(160)), ("6e", _c(192)),
    ("7a", _D), ("7b", _e("mean")), ("7c", _e("most")),
)  # fmt: skip


class InceptionV3(nn.Module):
    """Pictures to features; for evaluation only, in `eval()`."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), 1, padding=(0, 0))
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3), 1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1), 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), 1, padding=(0, 0))
        width = 192
        for name, (pool, pooled, chains) in _MIXED:
            block = Mixed(width, pool, pooled, chains)
            self.add_module(f"Mixed_{name}", block)
            width = block.width
        self.fc = nn.Linear(WIDTH, _KINDS)  # of the classifier that it was; FID does not ask it

    def forward(self, pictures: Tensor) -> Tensor:
        """(b, 3, h, w) RGB in 0..1 -> (b, 2048): the mean over the places of the last feature map. Raises UsageError for other shapes.

        They are scaled to 299 x 299 as in pytorch-fid: bilinear, corners not aligned, without a blur before shrinking.
        """
        if pictures.dim() != 4 or pictures.shape[1] != 3:
            raise UsageError(f"Inception looks at pictures of shape (b, 3, h, w), not {tuple(pictures.shape)}")
        x = 2 * F.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        for name, _ in _MIXED:
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x.mean(dim=(2, 3))


class Convolution(nn.Module):
    """Convolution, normalisation, ReLU. Without `padding` the edge is padded where the stride is 1, so that the size stays, else not."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int] | None = None) -> None:
        super().__init__()
        if padding is None:
            padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Chains of convolutions side by side, and a pool; their channels one behind the other."""

    def __init__(self, inputs: int, pool: Pool, pooled: int, chains: tuple[Chain, ...]) -> None:
        super().__init__()
        self._pool, self._chains = pool, chains
        self.width = pooled or inputs
        for chain in chains:
            width = inputs
            for step in chain:
                pair = _steps(step)
                for name, outputs, rows, columns, stride in pair:
                    self.add_module(name, Convolution(width, outputs, (rows, columns), stride))
                width = sum(outputs for _, outputs, *_ in pair)
            self.width += width
        if pooled:
            self.branch_pool = Convolution(inputs, pooled, (1, 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, `width`, h, w), h and w halved by blocks that halve."""
        found = []
        for chain in self._chains:
            y = x
            for step in chain:
                y = torch.cat([self.get_submodule(name)(y) for name, *_ in _steps(step)], dim=1)
            found.append(y)
        if self._pool == "halve":
            found.append(F.max_pool2d(x, 3, stride=2))
        elif self._pool == "most":
            found.append(self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1)))
        else:
            found.append(self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)))
        return torch.cat(found, dim=1)


def _steps(step: Step | tuple[Step, Step]) -> tuple[Step, ...]:
    return (cast(Step, step),) if isinstance(step[0], str) else cast(tuple[Step, Step], step)
