"""A SyncNet over a data set of clips in sync: how often it tells the sound of a mouth from one that is not its own, and finds a planted offset.

Clips are aligned faces with their sound, as `latentsync prepare` writes them (others go through a face finder). Each clip is judged by itself, on its
own windows: the negatives are sound of the same voice at another time, which is harder than another clip's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentsync.errors import InputError
from latentsync.evaluate import judge as judges
from latentsync.evaluate.judge import Judge, Lips
from latentsync.evaluate.video import FAULTS, said
from latentsync.loading import face_finder
from latentsync.media.clip import read_audio
from latentsync.media.picture import Picture
from latentsync.media.timeline import timeline
from latentsync.media.video import open_video
from latentsync.metrics import sync
from latentsync.metrics.sync import FPS
from latentsync.train.clips import video_files

THRESHOLD = 0.5  # cosine above which the published evaluation takes lips and sound for one
STRETCH = 2.0  # seconds in which an offset is looked for
SHIFT = 10  # frames, the largest that is planted
REACH = 15  # frames either way in which it is looked for
NEAR = (3, 10)  # frames that the other sound of the hard choice lies away
POINTS = 101  # of the ROC curve


@dataclass(frozen=True)
class Verdict:
    """What a SyncNet is worth on a data set. Shares are 0 to 1; chance is 0.5 but for offsets, where it is about 0.1."""

    judge: str
    clips: int
    windows: int  # positive pairs; as many negative ones
    accuracy: float | None  # at a cosine of 0.5, as published; None for SyncNet v2, which has distances
    best_accuracy: float  # at the threshold that suits it best
    threshold: float  # that one, a cosine (SyncNet v2: a distance, negative)
    auc: float  # area under the ROC curve
    roc: tuple[tuple[float, float], ...]  # (false, true positive rate), POINTS of them
    two: float  # share in which the own sound is nearer than that of 3 to 10 frames away
    offset: float  # share of 2 s stretches whose planted offset is found within one frame
    offset_exact: float  # and to the frame
    stretches: int
    failed: tuple[tuple[str, str], ...]  # clips that could not be judged, and why

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__, "roc": [[round(x, 5), round(y, 5)] for x, y in self.roc], "failed": [list(f) for f in self.failed]}

    def lines(self) -> list[str]:
        """For people."""
        said_accuracy = "" if self.accuracy is None else f"accuracy {self.accuracy:.2%} at a cosine of {THRESHOLD}; "
        return [
            f"{self.judge}: {self.clips} clips, {self.windows} windows in sync and as many out of sync",
            f"{said_accuracy}{self.best_accuracy:.2%} at the best threshold ({self.threshold:.3f}); area under the ROC curve {self.auc:.4f}",
            f"own sound or that of {NEAR[0]} to {NEAR[1]} frames away: right in {self.two:.2%}",
            f"offsets of up to {SHIFT} frames in {self.stretches} stretches of {STRETCH:g} s: {self.offset:.2%} within one frame, "
            f"{self.offset_exact:.2%} exact",
            *(f"left out: {name}: {why}" for name, why in self.failed),
        ]


class _Clip(NamedTuple):
    """What a judge makes of one clip."""

    positive: np.ndarray  # scores of own sounds
    negative: np.ndarray
    choices: np.ndarray  # bool
    misses: np.ndarray  # frames by which planted offsets were missed


def evaluate(
    source: str | Path,
    judge: Judge,
    *,
    faces: str = "",
    home: str | Path | None = None,
    seed: int = 1247,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Judge the judge on the clips of a folder or a list.

    faces: a face finder, for clips that are whole pictures; by default they are taken for aligned faces. Raises InputError where no clip can be
    judged.
    """
    files = video_files(source)[0]
    found, failed = [], []
    for number, path in enumerate(files):
        try:
            found.append(clip(*vectors(path, judge, faces, home), judge, np.random.default_rng([seed, number])))
        except FAULTS as e:
            failed.append((path.name, said(e)))
        if progress:
            progress(number + 1, len(files))
    if not found:
        raise InputError(f"none of the {len(files)} clips of {source} can be judged; the first: {failed[0][0]}: {failed[0][1]}")
    return verdict(judge, found, failed)


def vectors(path: Path, judge: Judge, faces: str = "", home: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """What a judge makes of a clip's pictures and of its sound: (n, d) both, at 25 windows a second. Raises InputError where it is too short."""
    samples = read_audio(path)
    lips = Lips(judge)
    with open_video(path) as video:
        square = video.info.width == video.info.height
        if not faces and not square:
            raise InputError(f"{path} is no aligned face (not square); name a face finder (--face-backend)")

        def pictures() -> Iterator[Picture]:
            return (f.picture for f in timeline(video, Fraction(0), when_audio_longer="cut", when_video_longer="keep", fps=Fraction(FPS)))

        points = sync.follow(pictures(), face_finder(faces, home)) if faces else None
        crops = sync.crops_of(pictures(), points) if judge.name == "syncnet" else sync.aligned_of(pictures(), points, judge.side)
        for crop in crops:
            lips.add(crop)
    seen, _ = lips.close()
    heard = judge.hear(samples, len(seen))
    count = min(len(seen), len(heard))
    return seen[:count], heard[:count]


def clip(lips: Tensor, sounds: Tensor, judge: Judge, draw: np.random.Generator) -> _Clip:
    """Scores of one clip in sync; higher is nearer. Raises InputError where it is too short for windows that do not overlap."""
    n = len(lips)
    if n <= judge.window:
        raise InputError(f"too short: {n} windows, where those that do not overlap need more than {judge.window}")
    scores = _scores(judge, lips, sounds)
    own = scores.diagonal().numpy().astype(np.float64)
    every = np.arange(n)
    apart = np.abs(every[:, None] - every[None])
    far = np.array([draw.choice(np.flatnonzero(row >= judge.window)) for row in apart if (row >= judge.window).any()])
    rows = np.array([i for i, row in enumerate(apart) if (row >= judge.window).any()])
    other = scores[torch.from_numpy(rows), torch.from_numpy(far)].numpy().astype(np.float64)
    a, b = np.nonzero((apart >= NEAR[0]) & (apart <= NEAR[1]))
    choices = own[a] > scores.numpy()[a, b]
    return _Clip(own[rows], other, choices, _misses(scores.numpy(), judge, draw))


def _scores(judge: Judge, lips: Tensor, sounds: Tensor) -> Tensor:
    """(n, n): of each window of pictures with each window of sound."""
    if judge.name == "syncnet":
        return -torch.cdist(lips.float(), sounds.float())
    return lips.float() @ sounds.float().T


def _misses(scores: np.ndarray, judge: Judge, draw: np.random.Generator) -> np.ndarray:
    """A shift is planted in each stretch; where the scores are highest in the mean, less where that shift lies."""
    n = len(scores)
    stretch = round(STRETCH * FPS) - judge.window + 1
    found = []
    for first in range(0, n - stretch + 1, max(1, stretch // 2)):
        shift = int(draw.integers(-SHIFT, SHIFT + 1))
        windows = np.arange(first, first + stretch)
        by_lag: dict[int, float] = {}
        for lag in range(-shift - REACH, -shift + REACH + 1):  # the own sound lies at lag 0
            inside = windows[(windows + lag >= 0) & (windows + lag < n)]
            if len(inside) >= stretch // 2:
                by_lag[lag] = float(scores[inside, inside + lag].mean())
        if len(by_lag) > REACH:
            found.append(max(by_lag, key=lambda lag: by_lag[lag]))
    return np.array(found, int)


def verdict(judge: Judge, clips: Sequence[_Clip], failed: Sequence[tuple[str, str]] = ()) -> Verdict:
    """All clips together; each window counts the same."""
    positive, negative = (np.concatenate([getattr(c, name) for c in clips]) for name in ("positive", "negative"))
    false, true, limits = roc(positive, negative)
    accuracies = (true + 1 - false) / 2
    at = int(accuracies.argmax())
    misses = np.concatenate([c.misses for c in clips])
    choices = np.concatenate([c.choices for c in clips])
    grid = np.linspace(0, 1, POINTS)
    has_cosine = judge.name != "syncnet"
    return Verdict(
        judge=judge.name,
        clips=len(clips),
        windows=len(positive),
        accuracy=float(((positive > THRESHOLD).mean() + (negative <= THRESHOLD).mean()) / 2) if has_cosine else None,
        best_accuracy=float(accuracies[at]),
        threshold=float(limits[at]),
        auc=area(false, true),
        roc=tuple((float(x), float(y)) for x, y in zip(grid, np.interp(grid, false, true), strict=True)),
        two=float(choices.mean()) if len(choices) else 0.5,
        offset=float((np.abs(misses) <= 1).mean()) if len(misses) else 0.0,
        offset_exact=float((misses == 0).mean()) if len(misses) else 0.0,
        stretches=len(misses),
        failed=tuple(failed),
    )


def roc(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores -> (false positive rates, true positive rates, thresholds), from (0, 0) to (1, 1): "in sync" is at or above."""
    limits = np.concatenate([[np.inf], np.unique(np.concatenate([positive, negative]))[::-1]])
    p, q = np.sort(positive), np.sort(negative)
    true = 1 - np.searchsorted(p, limits, side="left") / len(p)
    false = 1 - np.searchsorted(q, limits, side="left") / len(q)
    return false, true, limits


def area(false: np.ndarray, true: np.ndarray) -> float:
    """Under the curve, by trapezia: the chance that a positive pair scores higher than a negative one."""
    return float(((false[1:] - false[:-1]) * (true[1:] + true[:-1]) / 2).sum())


def load(model: str, *, home: str | Path | None = None, device: str = "cpu") -> Judge:
    """A judge by name ("demo", "syncnet" for SyncNet v2, "auto"), or a SyncNet trained here: a run, a checkpoint folder or a weights file.

    "published" is LatentSync's own (stable_syncnet.pt). Raises WeightsError, UsageError.
    """
    if model in judges.JUDGES:
        return judges.load(model, home=home, device=device)[0]
    from latentsync.train.syncnet import load_syncnet

    net, config = load_syncnet("" if model == "published" else model, home)
    return judges.of_syncnet(net.to(device), config, model if model == "published" else Path(model).name)
