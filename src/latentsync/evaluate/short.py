"""The short form of an evaluation, attached to a result by `latentsync sync --report`: found while the job goes on, for a few percent of its time.

Pictures are looked at as they are pasted, before they are encoded: 3 of every 12 seconds, from the first on. Only how much the mouth moves is
noted of every frame. The judge of lip sync is the SyncNet that comes with the package; `latentsync evaluate sync` has SyncNet v2 too.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from latentsync.errors import InputError, WeightsError
from latentsync.evaluate.judge import Judge, load
from latentsync.face.align import crop
from latentsync.media.audio import open_audio
from latentsync.media.frame import Frame
from latentsync.metrics import sync
from latentsync.metrics.regions import mouth_box
from latentsync.metrics.silence import LEAST, MARGIN, Spans, speech
from latentsync.metrics.sync import FPS, RATE, REACH
from latentsync.metrics.temporal import Flicker, Seam
from latentsync.page import number
from latentsync.pipeline import Finished

LOOK, EVERY = 3.0, 12.0  # seconds looked at, of so many
STRIDE = 4  # windows of frames: the judge sees one of so many
GRID = 5  # frames of 1 / 25 s after which sound and its mel are on one grid again: 16 columns
BLOCK = 600  # seconds of sound that are searched for speech at once
MOUTH = 24  # pixels: side of the mouth in which movement is noted
WORDS = {
    "sync_confidence": "sync confidence {}",
    "sync_offset": "offset {} frames",
    "seam": "seam {}",
    "flicker": "flicker {}",
    "silence_change": "mouth in silence {} of what it moves in speech",
    "faces_missing": "frames without a face {}",
}


@dataclass(frozen=True)
class ShortReport:
    """What was found. The values have the keys and the meaning of `metrics.catalogue`, but for `silence_change`: how much the pixels of the mouth
    change from frame to frame where nobody speaks, over where somebody does."""

    values: dict[str, float]
    missing: dict[str, str]  # why there is no value
    judge: str  # of lip sync; "demo" is the package's own SyncNet
    vad: str  # what told speech from silence: silero | energy
    looked_at: float  # seconds of video
    seconds: float  # that it took

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "values": {k: float(f"{v:.6g}") for k, v in self.values.items()},
            "missing": self.missing,
            "judge": self.judge,
            "vad": self.vad,
            "looked_at_seconds": round(self.looked_at, 3),
            "took_seconds": round(self.seconds, 3),
        }


def lines(report: dict[str, Any]) -> list[str]:
    """`ShortReport.plain` for people."""
    values = {k: number(v) for k, v in report["values"].items()}
    if "faces_missing" in report["values"]:
        values["faces_missing"] = f"{100 * report['values']['faces_missing']:.1f} %"
    told = ", ".join(words.format(values[key]) for key, words in WORDS.items() if key in values)
    judge = "; sync is judged by the package's own SyncNet, not on the scale of SyncNet v2" if "sync_confidence" in values else ""
    out = [f"report on {report['looked_at_seconds']:.1f} s: {told or 'nothing could be measured'}{judge}"]
    reasons: dict[str, list[str]] = {}
    for key, why in report["missing"].items():
        reasons.setdefault(why, []).append(key.replace("_", " "))
    return out + [f"no {', '.join(keys)}: {why}" for why, keys in reasons.items()]


class _Look(NamedTuple):
    """One stretch as the judge saw it."""

    first: int  # number of its first frame at 25 a second, from the video's start
    windows: list[int]  # numbers of the frames at which the windows begin
    lips: Tensor  # (windows, d)


class Short:
    """Looks on while one job is done: give it to `LipSync.run` as `inspect`, then ask it for its report."""

    def __init__(self, judge: Judge | None = None) -> None:
        """`judge` takes aligned faces; None: the package's own SyncNet, and no word on lip sync where that is not there."""
        self._judge = judge
        self._missing: dict[str, str] = {}
        try:
            self._judge = judge or load("demo")[0]
        except WeightsError as e:
            self._missing = dict.fromkeys(("sync_confidence", "sync_offset", "sync_distance"), str(e))
        self._flicker, self._seam = Flicker(), Seam()
        self._spoken = self._faceless = 0
        self._looks: list[_Look] = []
        self._held: list[tuple[float, np.ndarray | None]] = []  # time and the judge's crop (None: no face) of each frame of this stretch
        self._stretch = -1
        self._mouth: np.ndarray | None = None
        self._moves = array("d")  # in turn the time and the change of the mouth a second; 1.4 MB an hour
        self._before = 0.0
        self._looked_at = self._took = 0.0

    def __call__(self, item: Finished, frame: Frame) -> None:
        """The next frame: the generated face, and the frame with it."""
        if not item.aligned.spoken:
            return
        began = time.monotonic()
        at = float(frame.time)
        self._spoken += 1
        self._faceless += item.face is None
        self._note_movement(at, item.face)
        stretch, inside = divmod(at, EVERY)
        if self._held and (int(stretch) != self._stretch or inside >= LOOK):
            self._judged()
        if inside < LOOK:
            self._stretch = int(stretch)
            self._looked_at += float(frame.duration)
            self._look(at, item, frame)
        self._took += time.monotonic() - began

    def close(self, audio: str | Path, video: str | Path) -> ShortReport:
        """After the last frame: the report, with the sound that went with it. Raises InputError where that cannot be read."""
        began = time.monotonic()
        self._judged()
        values = {**self._seam.values(), **self._flicker.values()}
        missing = dict(self._missing)
        if self._spoken:
            values["faces_missing"] = self._faceless / self._spoken
        sound = open_audio(Path(audio), beside=Path(video))
        try:
            values.update(self._sync(sound.samples()))
        except InputError as e:
            missing.setdefault("sync_confidence", str(e))
        spans, vad = _speech(sound.samples())
        relative = self._silence(spans)
        if math.isfinite(relative):
            values["silence_change"] = relative
        else:
            missing["silence_change"] = f"it takes {LEAST:g} s of silence and of speech, with the face seen"
        for key in ("seam", "flicker"):
            if key not in values:
                missing[key] = "no frames with a new mouth" if self._faceless == self._spoken else "too few frames with a new mouth"
        took = self._took + time.monotonic() - began
        return ShortReport(values, missing, self._judge.name if self._judge else "", vad, self._looked_at, took)

    def _note_movement(self, at: float, face: np.ndarray | None) -> None:
        """How much the mouth has changed since the frame before, in levels."""
        small = None
        if face is not None:
            rows, columns = mouth_box(len(face))
            small = cv2.resize(face[rows, columns], (MOUTH, MOUTH), interpolation=cv2.INTER_AREA).mean(axis=2)
            if self._mouth is not None and at > self._before:
                self._moves.extend(((at + self._before) / 2, float(np.abs(small - self._mouth).mean()) / (at - self._before)))
        self._mouth, self._before = small, at

    def _look(self, at: float, item: Finished, frame: Frame) -> None:
        if item.face is None or item.aligned.matrix is None:
            self._flicker.gap()
            self._held.append((at, None))
            return
        made = crop(frame.picture, item.aligned.matrix, len(item.face))
        self._flicker.add(made, item.aligned.crop)
        self._seam.add(made, item.aligned.crop)
        if self._judge is not None:
            side = self._judge.side
            self._held.append((at, made if len(made) == side else cv2.resize(made, (side, side), interpolation=cv2.INTER_AREA)))

    def _judged(self) -> None:
        """The end of a stretch: what the judge sees in it, 25 times a second, of every fourth window."""
        held, self._held = self._held, []
        self._flicker.gap()
        if self._judge is None or not held:
            return
        times = np.array([at for at, _ in held])
        first, last = math.ceil(times[0] * FPS - 1e-6), math.floor(times[-1] * FPS + 1e-6)
        crops = [held[int(np.abs(times - tick / FPS).argmin())][1] for tick in range(first, last + 1)]
        windows, seen = [], []
        for k in range(0, len(crops) - self._judge.window + 1, STRIDE):
            shown = [c for c in crops[k : k + self._judge.window] if c is not None]
            if len(shown) == self._judge.window:
                windows.append(first + k)
                seen.append(self._judge.see(shown))
        if seen:
            self._looks.append(_Look(first, windows, torch.cat(seen)))

    def _sync(self, samples: Iterable[np.ndarray]) -> dict[str, float]:
        """What the judge says of all stretches together. Raises InputError where there is too little to judge."""
        if self._judge is None:
            return {}
        window, found = self._judge.window, []
        starts = [max(0, look.first - REACH) // GRID * GRID for look in self._looks]
        ends = [look.windows[-1] + REACH + window + 1 for look in self._looks]
        part = RATE // FPS
        sounds = _cut(iter(samples), [(a * part, b * part) for a, b in zip(starts, ends, strict=True)])
        for look, start, sound in zip(self._looks, starts, sounds, strict=True):
            if len(sound) < (window + 1) * part:
                continue
            heard = self._judge.hear(sound, look.windows[-1] + REACH + 1 - start)
            columns = np.full((2 * REACH + 1, len(look.windows)), np.nan)
            for k, begins in enumerate(look.windows):
                for i in range(2 * REACH + 1):
                    place = begins + i - REACH - start
                    if 0 <= place < len(heard):
                        columns[i, k] = 1 - float(look.lips[k].double() @ heard[place].double())
            found.append(columns)
        if not any(np.isfinite(columns).any() for columns in found):
            raise InputError(f"no stretch of {window} frames at 25 a second shows the face while the sound goes on")
        read = sync.reading(np.hstack(found))
        return {"sync_confidence": read.confidence, "sync_offset": float(read.offset), "sync_distance": read.distance}

    def _silence(self, spans: Spans) -> float:
        """Change of the mouth a second in silence over that in speech; NaN without enough of both. Near speech is neither."""
        if not self._moves:
            return math.nan
        times, moves = np.array(self._moves).reshape(-1, 2).T
        inside, near = np.zeros(len(times), bool), np.zeros(len(times), bool)
        for start, end in spans:
            inside |= (times >= start) & (times < end)
            near |= (times >= start - MARGIN) & (times < end + MARGIN)
        step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
        if min((~near).sum(), inside.sum()) * step < LEAST:
            return math.nan
        return float(moves[~near].mean() / max(moves[inside].mean(), 1e-6))


def _cut(chunks: Iterator[np.ndarray], spans: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """The samples of each span (first, last), in order; less where the sound ends before."""
    held, at = np.zeros(0, np.float32), 0
    for first, last in spans:
        while at + len(held) < last:
            chunk = next(chunks, None)
            if chunk is None:
                break
            drop = min(max(0, first - at), len(held))
            held, at = np.concatenate([held[drop:], chunk]), at + drop
        yield held[max(0, first - at) : max(0, last - at)]


def _speech(chunks: Iterable[np.ndarray]) -> tuple[Spans, str]:
    """When somebody speaks, and what told it; searched in blocks, so that memory does not grow with length."""
    spans: list[tuple[float, float]] = []
    method = ""
    held: list[np.ndarray] = []
    start = 0.0

    def search() -> None:
        nonlocal start, method
        found = speech(np.concatenate([np.zeros(0, np.float32), *held]))
        method = found.method
        spans.extend((start + a, start + b) for a, b in found.spans)
        start += found.seconds
        held.clear()

    for chunk in chunks:
        held.append(chunk)
        if sum(map(len, held)) >= BLOCK * RATE:
            search()
    if held:
        search()
    return tuple(spans), method
