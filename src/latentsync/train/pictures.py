"""Pieces of aligned faces, to train the small autoencoder on: a pure function of (seed, position), as all samples are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from latentsync.face.align import FIELD, TEMPLATE
from latentsync.face.mask import resized_mask
from latentsync.train.cache import Cache
from latentsync.train.clips import Clip, ClipSet
from latentsync.train.store import FrameStore
from latentsync.train.windows import Pick, _Windows

# Where the mouth lies in an aligned face, in the field of the alignment's template: below the nose, as far as the nose lies below the brows and
# an eighth more. On 60 clips of rendered heads its middle is there within 0.02 of the crop's side.
MOUTH = (TEMPLATE[2][0], TEMPLATE[2][1] + 1.125 * (TEMPLATE[2][1] - TEMPLATE[0][1]))
REACH = (0.22, 0.16)  # how far lips and jaw move from there, across and down, as shares of the crop's side
AIM = 0.08  # standard deviation of the place that a piece is aimed at, as a share of the crop's side

_PIECE = 2  # what is drawn at random here, so that it shares no numbers with what `windows` draws
_GAIN, _TINT, _SHIFT = 0.08, 0.03, 0.05  # standard deviations of contrast, of that of each colour, and of brightness


def mouth_weight(resolution: int) -> np.ndarray:
    """(R, R) float32: 1 in the middle of the mouth of an aligned face, falling to 0 around it."""
    at = (np.arange(resolution) + 0.5) / resolution
    x, y = ((at - place) / reach for place, reach in zip(_place(), REACH, strict=True))
    return np.exp(-0.5 * (x[None, :] ** 2 + y[:, None] ** 2) * 2).astype(np.float32)


def mouth_box(resolution: int) -> tuple[slice, slice]:
    """(rows, columns) of the lips and what is next to them in an aligned face."""
    (x, y), (across, down) = _place(), REACH
    rows = slice(round((y - down) * resolution), round((y + down) * resolution))
    return rows, slice(round((x - across) * resolution), round((x + across) * resolution))


class Pieces(_Windows):
    """Square pieces of faces, or with `whole` whole faces as they are.

    Each sample has "pixels" (3, s, s) float32 in [-1, 1], what an error counts beside 1, "mouth" (1, s, s), noise (c, s/8, s/8) for the latents, and
    "position", "weight", "bad" and "note" as in `UNetWindows`. A pick's epoch and index choose the clip's frame; of whole faces the epoch-th
    of `whole` evenly spaced frames.

    Args:
        crop: side of a piece, pixels.
        mouth: share of the pieces that are aimed at the mouth; the others lie anywhere.
        masked: share of the pieces cut from faces without their lower part, which the U-Net's inputs are as well.
        channels: of the latents.
        whole: frames of each clip that are shown whole, without masks, mirroring or jitter; 0: pieces.
    """

    def __init__(
        self,
        clips: ClipSet,
        *,
        resolution: int,
        crop: int,
        mouth: float,
        masked: float,
        channels: int,
        seed: int,
        cache: Cache,
        whole: int = 0,
    ) -> None:
        super().__init__(clips, frames=1, resolution=resolution, seed=seed, cache=cache)
        self.crop, self.mouth, self.masked, self.channels, self.whole = resolution if whole else crop, mouth, masked, channels, whole
        self.store = FrameStore(cache.folder, fps=clips.fps, side=resolution)
        self._mask = resized_mask(resolution)
        self._weight = mouth_weight(resolution)

    def _sample(self, clip: Clip, pick: Pick) -> dict[str, Any]:
        frames = self.store.frames(clip)
        if self.whole:
            pixels = frames[(2 * pick.epoch + 1) * len(frames) // (2 * self.whole)].astype(np.float32) / 127.5 - 1
            return self._of(pixels, self._weight, np.zeros((self.channels, *[self.resolution // 8] * 2), np.float32))
        draw = np.random.default_rng([_PIECE, self.seed % 2**64, pick.position])
        frame = frames[draw.integers(len(frames))]
        x, y = self._corner(draw)
        size, side = self.crop, self.resolution
        flip, masked = draw.random() < 0.5, draw.random() < self.masked
        pixels = frame[y : y + size, side - x - size : side - x][:, ::-1] if flip else frame[y : y + size, x : x + size]
        pixels = _jittered(pixels.astype(np.float32) / 127.5 - 1, draw)
        weight = self._weight[y : y + size, x : x + size]
        if masked:
            keep = self._mask[y : y + size, x : x + size]
            pixels, weight = pixels * keep[..., None], weight * keep
        return self._of(pixels, weight, draw.standard_normal((self.channels, size // 8, size // 8), dtype=np.float32))

    def _blank(self) -> dict[str, Any]:
        return self._of(
            np.zeros((self.crop, self.crop, 3), np.float32),
            np.zeros((self.crop, self.crop), np.float32),
            np.zeros((self.channels, self.crop // 8, self.crop // 8), np.float32),
        )

    def _corner(self, draw: np.random.Generator) -> tuple[int, int]:
        """(x, y) of a piece's first pixel."""
        room = self.resolution - self.crop
        if draw.random() < self.mouth:
            at = (np.array(_place()) + AIM * draw.standard_normal(2)) * self.resolution - self.crop / 2
            x, y = np.clip(np.rint(at), 0, room).astype(int)
            return int(x), int(y)
        x, y = draw.integers(room + 1, size=2)
        return int(x), int(y)

    @staticmethod
    def _of(pixels: np.ndarray, weight: np.ndarray, noise: np.ndarray) -> dict[str, Any]:
        return {
            "pixels": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            "mouth": torch.from_numpy(np.ascontiguousarray(weight)[None]),
            "noise": torch.from_numpy(noise),
        }


def _place() -> tuple[float, float]:
    """The middle of the mouth, as shares of the crop's sides."""
    return MOUTH[0] / FIELD[0], MOUTH[1] / FIELD[1]


def _jittered(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Other lights and skins: contrast and brightness as a whole, and a tint."""
    gain = np.float32(1 + _GAIN * draw.standard_normal()) + _TINT * draw.standard_normal(3).astype(np.float32)
    return np.clip(pixels * gain + np.float32(_SHIFT * draw.standard_normal()), -1, 1)
