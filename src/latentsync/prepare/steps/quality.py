"""Step: does the clip look good enough? A score of its first, middle and last frame."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync.errors import UsageError
from latentsync.media.clip import probe, read_frames
from latentsync.metrics import quality as judges
from latentsync.prepare.records import Decision

VERSION = "1"
MODELS = ("hyperiqa", "sharpness")
LEAST = {"hyperiqa": 40.0, "sharpness": 30.0}  # the published threshold; and one for the scale of the plain measure


@dataclass(frozen=True)
class Quality:
    """How good a clip looks, on the scale of the model (see `metrics.quality`)."""

    score: float  # mean of the scores
    scores: tuple[float, ...]  # of the first, the middle and the last frame
    model: str


def measure(
    path: str | os.PathLike[str], *, model: str = "hyperiqa", weights: str | Path = "", home: str | Path | None = None, device: str = "cpu"
) -> Quality:
    """Grade the first, the middle and the last frame of a clip, the middle 224 x 224 pixels of each.

    model: "hyperiqa" (fetched with `latentsync models download judges`), or "sharpness", a plain measure with a scale of its own, which needs no
    weights. weights: a file for HyperIQA in place of the published one. Raises InputError for a file that cannot be read, WeightsError where the
    model is not here, UsageError for an unknown one.
    """
    path = Path(path)
    if model not in MODELS:
        raise UsageError(f"no quality model '{model}'; known ones are {', '.join(MODELS)}")
    net = judges.load_hyperiqa(home, weights, device) if model == "hyperiqa" else None
    chosen = _three(path)
    scores = judges.hyperiqa(net, chosen) if net is not None else tuple(judges.sharpness(p) for p in chosen)
    return Quality(float(np.mean(scores)), scores, model)


def decide(quality: Quality, *, least: float | None = None) -> Decision:
    """Keep what scores `least` or more; None is the model's own threshold, `LEAST`."""
    asked = LEAST[quality.model] if least is None else least
    said = f"quality {quality.score:.1f} ({quality.model})"
    return Decision(True, said) if quality.score >= asked else Decision(False, f"{said}, less than {asked:g}")


def _three(path: Path) -> np.ndarray:
    """(3, h, w, 3) uint8 RGB: the first, the middle and the last frame."""
    info = probe(path)
    last = max(Fraction(0), info.duration - 1 / (2 * info.fps))  # within the last frame
    return read_frames(path, [Fraction(0), min(last, (info.frames // 2) / info.fps), last])
