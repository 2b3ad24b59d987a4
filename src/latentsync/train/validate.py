"""Something to look at and to measure while training: generated windows of held-out clips beside the real ones, with their sync score."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentsync.loading import Model
from latentsync.media.clip_writer import write_clip
from latentsync.options import Options
from latentsync.pipeline import LipSync
from latentsync.score import agreement, sync_score

if TYPE_CHECKING:
    from latentsync.config import SyncNetConfig
    from latentsync.models.syncnet import SyncNet


class HeldOut(NamedTuple):
    """One held-out clip, as the network gets it."""

    name: str
    frames: np.ndarray  # (n, R, R, 3) uint8
    contexts: Tensor  # (n, tokens, width)
    samples: np.ndarray  # (m,) 16 kHz
    mel: Tensor | None  # (80, t)


class Judged(NamedTuple):
    """How often SyncNet is right on one real clip."""

    two: float  # share of windows whose own sound is nearer than that of the same clip 3 to 10 frames away
    offset: float  # share of stretches of 2 seconds whose sound, shifted by up to 10 frames, is found within one frame of its place


@torch.no_grad()
def judged(net: SyncNet, config: SyncNetConfig, frames: Tensor, mel: Tensor, *, seed: int, fps: int = 25) -> Judged | None:
    """Frames (n, 3, h, w) in [-1, 1] of a clip in sync, its mel (80, t) -> `Judged`; None where it is not 2.8 seconds long, or all one stretch.

    Which shifts are tried is drawn from the seed. Shifts up to 15 frames from where the sound then lies are compared.
    """
    agreed = agreement(net, config, frames, mel, fps)
    stretch = 2 * fps - config.frames + 1
    if agreed is None or len(agreed) < stretch + 20:
        return None
    cosines = agreed.numpy()
    draw, n = np.random.default_rng(seed), len(cosines)
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    rows, others = np.nonzero((apart >= 3) & (apart <= 10))
    two = float((cosines.diagonal()[rows] > cosines[rows, others]).mean())
    found = []
    for first in range(0, n - stretch + 1, stretch // 2):
        shift = int(draw.integers(-10, 11))
        windows = np.arange(first, first + stretch)
        by_lag: dict[int, float] = {}
        for lag in range(-shift - 15, -shift + 16):  # the sound that belongs here lies at lag 0
            inside = windows[(windows + lag >= 0) & (windows + lag < n)]
            if len(inside) >= stretch // 2:
                by_lag[lag] = float(cosines[inside, inside + lag].mean())
        best = max(by_lag, key=lambda lag: by_lag[lag])
        found.append(abs(best) <= 1)
    return Judged(two, float(np.mean(found)))


def generate(model: Model, clip: HeldOut, options: Options) -> np.ndarray:
    """The clip's frames with their mouths made anew from its own sound: (n, R, R, 3) uint8, as `sync` makes them, in windows that stay.

    Where the model's reference is one frame for all, it is the clip's first: how far mouths are open is not known here.
    """
    lipsync = LipSync(model)
    noise = lipsync.noise(options.seed)
    references = torch.from_numpy(clip.frames[None, 0]) if model.config.reference == "fixed" else None
    made = []
    for start in range(0, len(clip.frames), model.config.window):
        stop = min(start + model.config.window, len(clip.frames))
        crops = torch.from_numpy(clip.frames[None, start:stop])
        numbers = list(range(start, stop))
        made.append(
            lipsync.synthesise(crops, clip.contexts[None, start:stop], noise=noise, numbers=numbers, options=options, references=references)[0]
        )
    return torch.cat(made).round().clamp(0, 255).to(torch.uint8).numpy()


def preview(
    model: Model, clips: Sequence[HeldOut], folder: Path, options: Options, syncnet: SyncNet | None, config: SyncNetConfig | None, fps: int = 25
) -> dict[str, float]:
    """Write one video for each clip, generated left and real right with the sound, and return the mean scores of both sides.

    Without a SyncNet there are videos and no scores.
    """
    scores: dict[str, list[float]] = {}
    for clip in clips:
        made = generate(model, clip, options)
        write_clip(folder / f"{clip.name}.mp4", np.concatenate([made, clip.frames], axis=2), Fraction(fps), clip.samples)
        if syncnet is None or config is None or clip.mel is None or config.latent:
            continue
        for side, frames in (("", made), ("_real", clip.frames)):
            pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
            score = sync_score(syncnet, config, pixels, clip.mel, fps)
            if score is not None:
                scores.setdefault(f"sync_cosine{side}", []).append(score.cosine)
                scores.setdefault(f"sync_confidence{side}", []).append(score.confidence)
                scores.setdefault(f"sync_offset{side}", []).append(abs(score.offset))
    return {name: float(np.mean(values)) for name, values in scores.items()}
