"""HyperIQA: how good a picture looks, without one to compare it with; 0 to 100 for the published weights (KonIQ-10k).

Su et al., "Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network", CVPR 2020. A ResNet-50 says what the picture shows, and
from that a hyper network makes the weights of a small network that grades details of all scales. Parameter names are those of the published
file (koniq_pretrained.pkl of SSL92/hyperIQA).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.errors import UsageError

SIDE = 224  # pixels of the crop that it grades
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB, which ResNet-50 was trained on
_BLOCKS = (3, 4, 6, 3)  # of ResNet-50
_EXPANSION = 4
_CELLS = 7  # side of the last feature map
_DETAIL = 16  # numbers kept of each of the first three scales
_HYPER = 112  # channels that the hyper network works on
_GRADER = (224, 112, 56, 28, 14, 1)  # widths of the network whose weights it makes


class HyperIQA(nn.Module):
    """Pictures to scores; for evaluation only, in `eval()`."""

    def __init__(self) -> None:
        super().__init__()
        self.res = Backbone()
        self.conv1 = nn.Sequential(
            nn.Conv2d(512 * _EXPANSION, 1024, 1), nn.ReLU(inplace=True), nn.Conv2d(1024, 512, 1), nn.ReLU(inplace=True),
            nn.Conv2d(512, _HYPER, 1), nn.ReLU(inplace=True),
        )  # fmt: skip
        for i in range(1, len(_GRADER)):
            inputs, outputs = _GRADER[i - 1], _GRADER[i]
            if i < len(_GRADER) - 1:
                self.add_module(f"fc{i}w_conv", nn.Conv2d(_HYPER, inputs * outputs // _CELLS**2, 3, padding=1))
            else:
                self.add_module(f"fc{i}w_fc", nn.Linear(_HYPER, inputs * outputs))
            self.add_module(f"fc{i}b_fc", nn.Linear(_HYPER, outputs))

    def forward(self, pictures: Tensor) -> Tensor:
        """(b, 3, 224, 224) RGB, each channel less its `MEAN` and divided by its `SPREAD` -> (b,) scores. Raises UsageError for other shapes."""
        if pictures.dim() != 4 or pictures.shape[1:] != (3, SIDE, SIDE):
            raise UsageError(f"HyperIQA grades pictures of shape (b, 3, {SIDE}, {SIDE}), not {tuple(pictures.shape)}")
        shown, x = self.res(pictures)
        shown = self.conv1(shown)
        last = len(_GRADER) - 1
        for i, (weight, bias) in enumerate(self.layers(shown), 1):
            x = torch.baddbmm(bias[:, :, None], weight, x[:, :, None])[:, :, 0]
            x = x.sigmoid() if i < last else x
        return x[:, 0]

    def layers(self, shown: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What the pictures show (b, 112, 7, 7) -> each picture's own weights (b, outputs, inputs) and biases (b, outputs), layer by layer."""
        mean = shown.mean(dim=(2, 3))
        made = []
        for i in range(1, len(_GRADER)):
            source, maker = (shown, f"fc{i}w_conv") if i < len(_GRADER) - 1 else (mean, f"fc{i}w_fc")
            weight = self.get_submodule(maker)(source).reshape(len(shown), _GRADER[i], _GRADER[i - 1])
            made.append((weight, self.get_submodule(f"fc{i}b_fc")(mean)))
        return made


class Backbone(nn.Module):
    """ResNet-50 without its classifier, and a few numbers about each of its four scales."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for i, blocks in enumerate(_BLOCKS, 1):
            width = 32 * 2**i
            layer = [Bottleneck(inputs, width, 1 if i == 1 else 2)]
            inputs = width * _EXPANSION
            layer += [Bottleneck(inputs, width, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{i}", nn.Sequential(*layer))
        # Local distortions: each scale averaged over cells of 7x7 and brought down to a few numbers.
        for i in (1, 2, 3):
            channels, cells = 64 * _EXPANSION * 2 ** (i - 1), 8 // 2 ** (i - 1)
            kept = 8 * 2**i
            self.add_module(f"lda{i}_pool", nn.Sequential(nn.Conv2d(channels, kept, 1, bias=False), nn.AvgPool2d(_CELLS)))
            self.add_module(f"lda{i}_fc", nn.Linear(kept * cells**2, _DETAIL))
        self.lda4_fc = nn.Linear(inputs, _GRADER[0] - 3 * _DETAIL)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, 224, 224) -> what is shown (b, 2048, 7, 7), and details of all scales (b, 224)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        details = []
        for i in (1, 2, 3):
            x = self.get_submodule(f"layer{i}")(x)
            details.append(self.get_submodule(f"lda{i}_fc")(self.get_submodule(f"lda{i}_pool")(x).flatten(1)))
        x = self.get_submodule("layer4")(x)
        details.append(self.lda4_fc(x.mean(dim=(2, 3))))
        return x, torch.cat(details, dim=1)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a residual; the stride is that of the 3x3."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * _EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        rest = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + rest)
