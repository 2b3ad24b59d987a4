"""How near a picture comes to the true one: PSNR, SSIM and LPIPS; and what changed where nothing may change.

Pictures are (h, w, 3) uint8 RGB. The classes take frame after frame and hold none, so that videos may be hours long.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch

from latentsync.errors import UsageError
from latentsync.metrics.regions import BoolArray
from latentsync.models.load import load_state
from latentsync.models.lpips import LPIPS, join_lpips

Region = Literal["mouth", "face", "frame"]
Picture = npt.NDArray[np.uint8]

CAP = 100.0  # dB, given to equal pictures, whose PSNR has no end; one level off in one of 65,000 samples has 96
_WINDOW, _SIGMA = 11, 1.5  # pixels
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_MIDDLE = 128.0  # taken off first: squares then lose less in float32
_STRIP = 32  # rows
_AT_ONCE = 8  # pairs of crops through VGG together


def psnr(a: Picture, b: Picture, where: BoolArray | None = None) -> float:
    """Peak signal-to-noise ratio of two pictures in dB, over all three channels, at most CAP; where: (h, w) of the pixels that count.

    10 log10(255^2 / mean squared difference). NaN where no pixel counts.
    """
    _same(a, b)
    difference = cv2.absdiff(a, b)
    if where is not None:
        difference = difference[where]
    if not difference.size:
        return float("nan")
    error = float((difference.astype(np.float32) ** 2).mean(dtype=np.float64))
    return CAP if error == 0 else min(CAP, float(10 * np.log10(255**2 / error)))


def ssim(a: Picture, b: Picture, where: BoolArray | None = None) -> float:
    """Structural similarity of two pictures, -1 to 1 (equal): Wang et al. 2004, mean over the pixels `where` and the three channels.

    Their window, a Gaussian of 1.5 px on 11 x 11, their constants 0.01 and 0.03 of 255; covariances of the population, no shrinking beforehand. The
    outermost 5 pixels, whose windows reach beyond the picture, do not count. NaN where no pixel counts. UsageError below 11 x 11 pixels.
    """
    _same(a, b)
    if min(a.shape[:2]) < _WINDOW:
        raise UsageError(f"SSIM needs pictures of {_WINDOW} x {_WINDOW} pixels at least, found {a.shape[1]} x {a.shape[0]}")
    rim = _WINDOW // 2
    whole = np.ones((a.shape[0] - 2 * rim, a.shape[1] - 2 * rim, 3), np.float32)
    box = _changed(a, b)
    if box is not None:  # beyond where windows reach what differs it is 1: nothing to compute
        rows, columns = (slice(max(0, part.start - 2 * rim), min(n, part.stop + 2 * rim)) for part, n in zip(box, a.shape, strict=False))
        inner = whole[rows.start : rows.stop - 2 * rim, columns.start : columns.stop - 2 * rim]
        for top in range(0, len(inner), _STRIP):  # so many rows stay in the processor's cache
            strip = slice(rows.start + top, min(rows.stop, rows.start + top + _STRIP + 2 * rim))
            inner[top : top + _STRIP] = _similarity(a[strip, columns], b[strip, columns])[rim:-rim, rim:-rim]
    values = whole if where is None else whole[where[rim:-rim, rim:-rim]]
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")


def _changed(a: Picture, b: Picture) -> tuple[slice, slice] | None:
    """Rows and columns between which the pictures differ; None where they do not."""
    difference = _largest(cv2.absdiff(a, b))
    rows, columns = (np.flatnonzero(cv2.reduce(difference, axis, cv2.REDUCE_MAX).ravel()) for axis in (1, 0))
    return (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)) if len(rows) else None


def _largest(x: np.ndarray) -> npt.NDArray[np.uint8]:
    """(h, w, 3) -> (h, w): the largest of the three channels."""
    first, second, third = cv2.split(x)
    return np.asarray(cv2.max(cv2.max(first, second), third), np.uint8)


def _similarity(a: Picture, b: Picture) -> npt.NDArray[np.float32]:
    """(h, w, 3) SSIM of each pixel and channel."""
    x, y = (p.astype(np.float32) - _MIDDLE for p in (a, b))
    mx, my = _blurred(x), _blurred(y)
    spread = _blurred(x * x + y * y) - mx * mx - my * my + _C2
    both = 2 * (_blurred(x * y) - mx * my) + _C2
    mx += _MIDDLE
    my += _MIDDLE
    values: npt.NDArray[np.float32] = (2 * mx * my + _C1) / (mx * mx + my * my + _C1) * both / spread
    return values


def _blurred(x: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(x, (_WINDOW, _WINDOW), _SIGMA)


def _same(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise UsageError(f"pictures of one size can be compared, these are {a.shape[1]} x {a.shape[0]} and {b.shape[1]} x {b.shape[0]}; scale one")


class Likeness:
    """PSNR and SSIM of regions, means over frames."""

    def __init__(self) -> None:
        self._means: dict[str, Mean] = {}

    def add(self, region: Region, made: Picture, true: Picture, where: BoolArray | None = None) -> None:
        """A picture and the true one; `where` as in `psnr`. For the face and the mouth give aligned faces, cut out at the same points."""
        for name, measure in (("psnr", psnr), ("ssim", ssim)):
            self._means.setdefault(f"{name}_{region}", Mean()).add(measure(made, true, where))

    def values(self) -> dict[str, float]:
        """psnr_mouth, ssim_mouth, ... of the regions that were given."""
        return {key: mean.value for key, mean in self._means.items() if mean.count}


class Mean:
    """Mean of numbers that come one by one; NaN does not count."""

    def __init__(self) -> None:
        self.count, self._sum = 0, 0.0

    def add(self, value: float) -> None:
        if np.isfinite(value):
            self.count += 1
            self._sum += value

    @property
    def value(self) -> float:
        """NaN where nothing was added."""
        return self._sum / self.count if self.count else float("nan")


class Outside:
    """What differs from the source where a lip sync must not touch anything.

    tolerance: levels of difference that do not count in the share. A lossy encoder moves all samples a little: judge lossless results with 0.
    """

    def __init__(self, tolerance: int = 0) -> None:
        self.tolerance = tolerance
        self._most, self._changed, self._seen = 0, 0, 0

    def add(self, source: Picture, result: Picture, touched: BoolArray) -> None:
        """A frame before and after, and (h, w) of the samples that may change (`regions.touched`; all False for a frame without a face)."""
        _same(source, result)
        difference = _largest(cv2.absdiff(source, result))
        difference[touched] = 0
        self._most = max(self._most, int(difference.max(initial=0)))
        self._changed += int(np.count_nonzero(difference > self.tolerance))
        self._seen += int(touched.size - np.count_nonzero(touched))

    def values(self) -> dict[str, float]:
        """outside_max: the largest difference, 0 to 255 levels; outside_share: pixels of which a channel differs, 0 to 1."""
        return {"outside_max": float(self._most), "outside_share": self._changed / self._seen} if self._seen else {}


# LPIPS


@lru_cache(maxsize=1)
def load_lpips(home: str | Path | None = None, device: str | torch.device = "cpu") -> LPIPS:
    """LPIPS on VGG16 with its published weights, kept for the next call. Raises WeightsError that names what to run."""
    from latentsync import weights

    state = join_lpips(weights.judge_state("vgg16", home), weights.judge_state("lpips", home))
    with torch.device("meta"):
        net = LPIPS()
    return load_state(net, state, "LPIPS").float().to(device).eval().requires_grad_(False)


class Perceptual:
    """LPIPS (VGG) of aligned faces, and of their lower halves, which hold the mouth; means over frames."""

    def __init__(self, net: torch.nn.Module) -> None:
        self._net = net
        self._held: list[tuple[Picture, Picture]] = []
        self._face, self._mouth = Mean(), Mean()

    def add(self, made: Picture, true: Picture) -> None:
        """An aligned face (R, R, 3) and the true one, R 32 at least. A few are held, to go through the network together."""
        _same(made, true)
        self._held.append((made, true))
        if len(self._held) == _AT_ONCE:
            self._look()

    @torch.inference_mode()
    def _look(self) -> None:
        if not self._held:
            return
        device = next(self._net.parameters()).device
        made, true = (torch.from_numpy(np.stack(faces)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1 for faces in zip(*self._held, strict=True))
        half = made.shape[2] // 2
        for mean, distances in ((self._face, self._net(made, true)), (self._mouth, self._net(made[:, :, half:], true[:, :, half:]))):
            for distance in distances.tolist():
                mean.add(distance)
        self._held.clear()

    def values(self) -> dict[str, float]:
        """lpips_face and lpips_mouth; 0 for equal pictures."""
        self._look()
        return {"lpips_face": self._face.value, "lpips_mouth": self._mouth.value} if self._face.count else {}
