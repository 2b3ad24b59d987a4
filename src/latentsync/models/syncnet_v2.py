"""SyncNet v2, the judge of lip sync that papers quote: five frames of a face and 0.2 s of sound to one vector each, near where they agree.

Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016. Parameter names are those of the published file (syncnet_v2.model of
joonson/syncnet_python). It is another network than LatentSync's own SyncNet, `models.syncnet`, which is trained against.
"""

from __future__ import annotations

from torch import Tensor, nn

from latentsync.errors import UsageError

WINDOW = 5  # frames, at 25 a second
SIDE = 224  # pixels of the face crop
COLUMNS = 20  # MFCC columns, at 100 a second
COEFFICIENTS = 13  # rows
WIDTH = 1024  # of the vectors


class SyncNetV2(nn.Module):
    """Two encoders without shared weights. Its vectors are not of length 1: their Euclidean distance counts."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_conv2d(1, 64, 3, 1),
            nn.MaxPool2d(1),
            *_conv2d(64, 192, 3, 1),
            nn.MaxPool2d(3, stride=(1, 2)),
            *_conv2d(192, 384, 3, 1),
            *_conv2d(384, 256, 3, 1),
            *_conv2d(256, 256, 3, 1),
            nn.MaxPool2d(3, stride=2),
            *_conv2d(256, 512, (5, 4), 0),
        )
        self.netfcaud = _head()
        self.netfclip = _head()
        self.netcnnlip = nn.Sequential(
            *_conv3d(3, 96, (WINDOW, 7, 7), 2, 0),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_conv3d(96, 256, (1, 5, 5), 2, 1),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            *_conv3d(256, 256, (1, 3, 3), 1, 1),
            *_conv3d(256, 256, (1, 3, 3), 1, 1),
            *_conv3d(256, 256, (1, 3, 3), 1, 1),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_conv3d(256, 512, (1, 6, 6), 1, 0),
        )

    def see(self, frames: Tensor) -> Tensor:
        """Consecutive frames (f, 3, 224, 224), channels blue, green, red, values 0..255 -> (f - 4, 1024), one row for each five frames.

        Only the first layer looks across time, so neighbouring windows cost no more than they are. Raises UsageError for other shapes.
        """
        if frames.dim() != 4 or frames.shape[0] < WINDOW or frames.shape[1:] != (3, SIDE, SIDE):
            raise UsageError(f"SyncNet v2 sees at least {WINDOW} frames of shape (f, 3, {SIDE}, {SIDE}), not {tuple(frames.shape)}")
        seen: Tensor = self.netcnnlip(frames.transpose(0, 1)[None])  # (1, 512, f - 4, 1, 1)
        vectors: Tensor = self.netfclip(seen[0, :, :, 0, 0].T)
        return vectors

    def hear(self, mfcc: Tensor) -> Tensor:
        """MFCC windows (b, 1, 13, 20), as `metrics.sync.mfcc` makes them -> (b, 1024). Raises UsageError for other shapes."""
        if mfcc.dim() != 4 or mfcc.shape[1:] != (1, COEFFICIENTS, COLUMNS):
            raise UsageError(f"SyncNet v2 hears MFCC windows of shape (b, 1, {COEFFICIENTS}, {COLUMNS}), not {tuple(mfcc.shape)}")
        vectors: Tensor = self.netfcaud(self.netcnnaud(mfcc).flatten(1))
        return vectors


def _conv2d(inputs: int, outputs: int, kernel: int | tuple[int, int], padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _conv3d(inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int, padding: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv3d(inputs, outputs, kernel, stride=(1, stride, stride), padding=(0, padding, padding))
    return conv, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, WIDTH))
