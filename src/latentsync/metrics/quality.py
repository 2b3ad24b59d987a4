"""How good pictures look, without originals to compare with: HyperIQA, and a plain measure of sharpness that needs no weights."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch

from latentsync.errors import InputError
from latentsync.models.hyperiqa import MEAN, SIDE, SPREAD, HyperIQA
from latentsync.models.load import load_state

_BLUR = 9  # pixels
_PLAIN = 0.05  # levels: mean difference of neighbours below which a picture counts as flat


@lru_cache(maxsize=1)
def load_hyperiqa(home: str | Path | None = None, path: str | Path = "", device: str | torch.device = "cpu") -> HyperIQA:
    """HyperIQA with its published weights, or those at `path`, kept for the next call. Raises WeightsError that names what to run."""
    from latentsync import weights

    state = weights.judge_state(
        "hyperiqa", home, path, otherwise=", or take a plain measure that needs no weights: --quality-model sharpness, or skip the step quality"
    )
    with torch.device("meta"):
        net = HyperIQA()
    return load_state(net, state, "HyperIQA").float().to(device).eval().requires_grad_(False)


def centre(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    """(h, w, 3) uint8 -> (side, side, 3): the middle, as published; a picture with a shorter side than that is enlarged first."""
    height, width = picture.shape[:2]
    if min(height, width) < side:
        scale = side / min(height, width)
        height, width = max(side, round(height * scale)), max(side, round(width * scale))
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
    top, left = round((height - side) / 2), round((width - side) / 2)
    return picture[top : top + side, left : left + side]


@torch.inference_mode()
def hyperiqa(net: HyperIQA, pictures: Iterable[np.ndarray]) -> tuple[float, ...]:
    """Scores of pictures (h, w, 3) uint8 RGB, of which the middle 224 x 224 is graded: 0 (worst) to 100, with the published weights."""
    device = next(net.parameters()).device
    crops = [torch.from_numpy(np.ascontiguousarray(centre(p))) for p in pictures]
    if not crops:
        raise InputError("there is no picture to grade")
    x = torch.stack(crops).to(device).permute(0, 3, 1, 2).float() / 255
    mean, spread = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, SPREAD))
    return tuple(net((x - mean) / spread).cpu().tolist())


def sharpness(picture: np.ndarray) -> float:
    """(h, w, 3) uint8 RGB -> how sharp the middle 224 x 224 is, 0 to 100: a plain measure, and no grade of beauty.

    The share of the differences between neighbouring pixels that a blur over 9 takes away, in the direction in which that is less (Crete et al., "The
    blur effect", 2007). Of aligned faces from real clips sharp ones have 40 to 52, ones enlarged four times 26 to 34, ones blurred by 2 pixels 21
    to 30. Brightness and contrast do not count. It takes noise (75) and the edges of blocks (50) for sharpness. 0 for a flat picture.
    """
    grey = cv2.cvtColor(centre(picture), cv2.COLOR_RGB2GRAY).astype(np.float64)
    shares = []
    for axis, kernel in ((0, (1, _BLUR)), (1, (_BLUR, 1))):
        before, after = (np.abs(np.diff(p, axis=axis)) for p in (grey, cv2.blur(grey, kernel)))
        whole = before.sum()
        shares.append(float(np.maximum(0, before - after).sum() / whole) if whole >= _PLAIN * before.size else 0.0)
    return 100 * min(shares)
