"""How well lips follow their sound, frame by frame in constant memory: the judges of `metrics.sync`, fed with a stream.

Frames arrive at their own times and are taken 25 times a second. What the networks say of a window is a vector of a few hundred numbers; only these
are kept, so an hour takes some hundred megabytes. Windows in which the face is not there do not count.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentsync.errors import InputError, UsageError, WeightsError
from latentsync.metrics import sync
from latentsync.metrics.sync import FPS, RATE, REACH, Region, SyncReading
from latentsync.models.syncnet import visual_input
from latentsync.models.syncnet_v2 import WINDOW
from latentsync.speech.sync_mel import mel_start, sync_mel

if TYPE_CHECKING:
    from pathlib import Path

    from latentsync.config import SyncNetConfig
    from latentsync.face.track import Tracked
    from latentsync.media.picture import Picture
    from latentsync.models.syncnet import SyncNet
    from latentsync.models.syncnet_v2 import SyncNetV2

JUDGES = ("auto", "syncnet", "demo")
AROUND = 6  # frames on each side of one whose regions are smoothed together, as published
AT_ONCE = 16  # windows through a network together


class Judge(NamedTuple):
    """A network that judges lip sync."""

    name: str  # "syncnet" (SyncNet v2) or "demo" (the package's own)
    window: int  # frames it sees at a time
    side: int  # of the crops it takes, pixels
    see: Callable[[list[np.ndarray]], Tensor]  # n crops (side, side, 3) uint8 RGB -> (n - window + 1, d)
    hear: Callable[[np.ndarray, int], Tensor]  # samples (m,) at 16 kHz, number of windows wanted -> (at most so many, d)
    distances: Callable[[Tensor, Tensor], np.ndarray]  # as `metrics.sync.distances`


def load(name: str = "auto", *, home: str | Path | None = None, device: str | torch.device = "cpu") -> tuple[Judge, str]:
    """A judge by name, and a note where "auto" did not find the published one. Raises WeightsError where it is not here, UsageError for its name."""
    if name not in JUDGES:
        raise UsageError(f"no judge '{name}'; known ones are {', '.join(JUDGES)}")
    if name == "demo":
        return _demo(*sync.load_demo_judge(device)), ""
    try:
        return _v2(sync.load_syncnet_v2(home, "", device)), ""
    except WeightsError as e:
        if name == "syncnet":
            raise
        absent = e
    try:
        judge = _demo(*sync.load_demo_judge(device))
    except WeightsError:
        raise absent from None
    return judge, "judged by the package's own SyncNet, on another scale than published numbers; for SyncNet v2: latentsync models download judges"


def _v2(net: SyncNetV2) -> Judge:
    def see(crops: list[np.ndarray]) -> Tensor:
        return sync.see(net, crops)

    def hear(samples: np.ndarray, windows: int) -> Tensor:
        with_sound = len(samples) // (RATE // FPS)
        if with_sound < WINDOW:
            raise InputError(f"its sound lasts {len(samples) / RATE:.2f} s: lip sync is judged from 0.2 s on")
        # as published the last window is left out, and all beyond the sound
        return sync.hear(net, samples, max(1, min(windows + WINDOW - 1, with_sound) - WINDOW))

    return Judge("syncnet", WINDOW, sync.SIDE, see, hear, sync.distances)


def _demo(config: SyncNetConfig, net: SyncNet) -> Judge:
    return of_syncnet(net, config, "demo")


def of_syncnet(net: SyncNet, config: SyncNetConfig, name: str) -> Judge:
    """The judge that a SyncNet of the LatentSync kind makes, where it sees pixels. Its distance is 1 - cosine. Raises UsageError for latents."""
    if config.latent:
        raise UsageError(f"SyncNet {name} sees latents; only those that see pixels can judge videos")
    device = next(net.parameters()).device
    columns = config.mel_columns

    @torch.inference_mode()
    def see(crops: list[np.ndarray]) -> Tensor:
        frames = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
        windows = torch.stack([frames[k : k + config.frames] for k in range(len(crops) - config.frames + 1)])
        return net.see(visual_input(windows.to(device), config)).float().cpu()

    @torch.inference_mode()
    def hear(samples: np.ndarray, windows: int) -> Tensor:
        mel = torch.from_numpy(sync_mel(samples))
        places = [p for p in (mel_start(k, FPS) for k in range(windows)) if p + columns <= mel.shape[1]]
        if not places:
            raise InputError(f"its sound lasts {len(samples) / RATE:.2f} s, less than the {config.frames} frames that this judge hears")
        heard = []
        for i in range(0, len(places), AT_ONCE):
            batch = torch.stack([mel[None, :, p : p + columns] for p in places[i : i + AT_ONCE]])
            heard.append(net.hear(batch.to(device)).float().cpu())
        return torch.cat(heard)

    return Judge(name, config.frames, config.resolution, see, hear, banded)


def banded(lips: Tensor, sounds: Tensor, reach: int = REACH) -> np.ndarray:
    """Unit vectors (n, d) of windows and of their sound -> (2 reach + 1, n) of 1 - cosine, as `metrics.sync.cosine_distances` without (n, n)."""
    n = len(lips)
    found = np.full((2 * reach + 1, n), np.nan)
    for i, lag in enumerate(range(-reach, reach + 1)):
        seen, heard = lips[max(0, -lag) : n - max(0, lag)], sounds[max(0, lag) : n - max(0, -lag)]
        if len(seen):
            found[i, max(0, -lag) : n - max(0, lag)] = 1 - (seen.double() * heard.double()).sum(1).numpy()
    return found


class Lips:
    """The vectors of a judge for consecutive crops, as they come; each crop says whether it shows the face."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._held: list[np.ndarray] = []
        self._seen: list[Tensor] = []
        self._shown: list[bool] = []

    def add(self, crop: np.ndarray, shown: bool = True) -> None:
        """The next crop (side, side, 3) uint8 RGB, 1 / 25 s after the one before."""
        self._held.append(crop)
        self._shown.append(shown)
        if len(self._held) == AT_ONCE + self._judge.window - 1:
            self._seen.append(self._judge.see(self._held))
            del self._held[:AT_ONCE]

    def close(self) -> tuple[Tensor, np.ndarray]:
        """(n, d) vectors of all windows, and (n,) bool: whether all frames of one show the face. Raises InputError where there is no window."""
        if len(self._held) >= self._judge.window:
            self._seen.append(self._judge.see(self._held))
        self._held = []
        if not self._seen:
            raise InputError(f"{len(self._shown)} frames at 25 a second are too few: lip sync is judged from {self._judge.window} on")
        seen = torch.cat(self._seen)
        counts = np.concatenate([[0], np.cumsum(self._shown)])
        whole = counts[self._judge.window :] - counts[: -self._judge.window] == self._judge.window
        return seen, whole[: len(seen)]


class SyncMeter:
    """One video's lips, as its frames come; with its sound at the end, the judge's reading."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._lips = Lips(judge)
        self._before: tuple[Fraction, Picture, np.ndarray | None] | None = None
        self._number = 0  # of the next frame of 25 a second
        self._regions: deque[Region | None] = deque(maxlen=2 * AROUND + 1)
        self._waiting: deque[tuple[Picture, bool]] = deque()  # pictures whose regions still need those that follow
        self._last: Region | None = None

    def add(self, time: Fraction, picture: Picture, tracked: Tracked[object]) -> None:
        """The next frame, at `time` seconds from the first, and the face in it."""
        if self._before is not None:
            self._until((self._before[0] + time) / 2)
        self._before = (time, picture, tracked.points)

    def close(self, end: Fraction, samples: np.ndarray) -> tuple[SyncReading, tuple[float, ...]]:
        """After the last frame, which ends at `end`: the reading with the sound (m,) at 16 kHz, and the confidence of each second, NaN where unknown.

        Raises InputError where there is too little of either, or no stretch that shows the face.
        """
        if self._before is not None:
            while self._number < end * FPS or not self._number:
                self._take(self._before[1], self._before[2])
        if self.judge.name == "syncnet" and self._waiting:
            for _ in range(AROUND):
                self._settle(self._regions[-1])
        lips, whole = self._lips.close()
        sounds = self.judge.hear(samples, len(lips))
        count = min(len(lips), len(sounds))
        found = self.judge.distances(lips[:count], sounds[:count])
        found[:, ~whole[:count]] = math.nan
        if not np.isfinite(found).any():
            raise InputError("no stretch long enough for a judge of lip sync shows the face")
        read = sync.reading(found)
        return read, by_second(found, REACH - read.offset)

    def _until(self, middle: Fraction) -> None:
        """The frame before is shown as long as it is the nearest in time."""
        assert self._before is not None
        while Fraction(self._number, FPS) <= middle:
            self._take(self._before[1], self._before[2])

    def _take(self, picture: Picture, points: np.ndarray | None) -> None:
        self._number += 1
        aspect = picture.pixel_aspect
        if self.judge.name != "syncnet":
            if points is None:
                self._lips.add(np.full((self.judge.side, self.judge.side, 3), 127, np.uint8), shown=False)
            else:
                self._lips.add(next(sync.aligned_of([picture], points[None], self.judge.side)))
            return
        place = self._last if points is None else sync.region(points, float(aspect))
        self._last = place
        self._waiting.append((picture, points is not None))
        if self._number == 1:
            for _ in range(AROUND):
                self._regions.append(place)
        self._settle(place)

    def _settle(self, place: Region | None) -> None:
        """The next region is known: the picture `AROUND` frames before can be cut out."""
        self._regions.append(place)
        if len(self._regions) < 2 * AROUND + 1:
            return
        picture, shown = self._waiting.popleft()
        known = [r for r in self._regions if r is not None]
        if not known:
            self._lips.add(np.full((sync.SIDE, sync.SIDE, 3), 110, np.uint8), shown=False)
            return
        where = Region(*np.median(np.array(known), axis=0).tolist())
        self._lips.add(sync.face_crop(picture, where), shown)


def by_second(found: np.ndarray, best: int, fps: int = FPS) -> tuple[float, ...]:
    """Distances (2 reach + 1, n) -> each second's own confidence in the shift of that row: NaN where the second is not judged."""
    curve = []
    for first in range(0, found.shape[1], fps):
        part = found[:, first : first + fps]
        counts = np.isfinite(part).sum(axis=1)
        if not counts[best]:
            curve.append(math.nan)
            continue
        means = np.where(counts > 0, np.nansum(part, axis=1) / np.maximum(counts, 1), math.nan)
        curve.append(float(np.nanmedian(means) - means[best]))
    return tuple(curve)
