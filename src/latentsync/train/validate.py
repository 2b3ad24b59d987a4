"""Something to look at and to measure while training: generated windows of held-out clips beside the real ones, with their sync score."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentsync import denoise
from latentsync.loading import Model
from latentsync.media.clip_writer import write_clip
from latentsync.options import Options
from latentsync.pipeline import LipSync
from latentsync.score import sync_score

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


def generate(model: Model, clip: HeldOut, options: Options) -> np.ndarray:
    """The clip's frames with their mouths made anew from its own sound: (n, R, R, 3) uint8, by the very steps that `sync` takes.

    Where the model's reference is one frame for all, it is the clip's first: how far mouths are open is not known here.
    """
    lipsync = LipSync(model)
    size = model.config.latent_size
    noise = denoise.shared_noise(options.seed, model.config.vae.latent_channels, size, size)
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
