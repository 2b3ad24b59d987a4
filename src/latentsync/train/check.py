"""A walk through a data set before training: what is there, what is missing, and which clips can be used."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from latentsync import weights
from latentsync.errors import InputError, WeightsError
from latentsync.face.detect import detect
from latentsync.face.mediapipe import MIN_SCORE
from latentsync.face.protocols import Face, FaceBackend, PictureLike
from latentsync.face.yunet import YuNet
from latentsync.media.clip import ClipInfo, read_frames
from latentsync.media.layout import Layout
from latentsync.media.picture import Picture
from latentsync.train.clips import BadClip, probe_all, reason, too_short, video_files
from latentsync.weights import places

FRAMES, FPS = 16, Fraction(25)  # of the windows of every preset but one
LENGTHS = (0, 2, 3, 5, 10, 20, 60, math.inf)  # seconds, edges of the histogram
_NAMED = 20  # unusable files named in the text; all are in the JSON
_ROWS = 8  # commonest values of each kind in the text


@dataclass
class Report:
    """What a data set holds. Counters go from a value to the number of clips with it."""

    source: str
    files: int = 0
    seconds: float = 0.0  # of the clips that can be read
    lengths: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    fps: Counter[str] = field(default_factory=Counter)
    sample_rates: Counter[str] = field(default_factory=Counter)
    silent: list[Path] = field(default_factory=list)  # without sound
    bad: list[BadClip] = field(default_factory=list)  # all that cannot be used, with the first reason found, the silent ones included
    looked_for_faces: bool = False
    frames_looked_at: int = 0
    frames_with_face: int = 0
    offsets: dict[str, float] = field(default_factory=dict)  # clip -> frames at 25 fps by which its sound is late, where a file beside it says so
    good: list[Path] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            "files": self.files,
            "usable": len(self.good),
            "hours": round(self.seconds / 3600, 4),
            "durations_s": dict(self.lengths),
            "sizes": _sorted(self.sizes),
            "fps": _sorted(self.fps),
            "sample_rates_hz": _sorted(self.sample_rates),
            "without_sound": [str(p) for p in self.silent],
            "faces": {"frames": self.frames_looked_at, "found": self.frames_with_face} if self.looked_for_faces else None,
            "av_offset_frames": {"known": len(self.offsets), "values": _sorted(Counter(f"{v:g}" for v in self.offsets.values()))},
            "unusable": [{"path": str(b.path), "reason": b.reason} for b in self.bad],
        }

    def text(self) -> str:
        """For people."""
        rows = [
            ("clips", f"{len(self.good)} of {self.files} can be used, {self.seconds / 3600:.2f} hours can be read"),
            ("durations", _line(self.lengths, commonest=False)),
            ("sizes", _line(self.sizes)),
            ("fps", _line(self.fps)),
            ("sound", ", ".join(filter(None, (_line(self.sample_rates, " Hz"), f"none in {len(self.silent)}" if self.silent else "")))),
        ]
        if self.looked_for_faces:
            share = self.frames_with_face / max(1, self.frames_looked_at)
            rows.append(("faces", f"in {share:.1%} of {self.frames_looked_at} frames (first, middle and last of each clip)"))
        if self.offsets:
            values = np.array(list(self.offsets.values()))
            low, middle, high = np.percentile(values, [5, 50, 95])
            rows.append(("A/V offset", f"known of {len(values)} clips: median {middle:g} frames, nine in ten within {low:g} to {high:g}"))
        else:
            rows.append(("A/V offset", "not known"))
        lines = [f"{name:<11}{what}" for name, what in rows]
        if self.bad:
            lines.append(f"{len(self.bad)} cannot be used:")
            lines += [f"  {b}" for b in self.bad[:_NAMED]]
            if len(self.bad) > _NAMED:
                lines.append(f"  and {len(self.bad) - _NAMED} more (--json names them all)")
        return "\n".join(lines)


def check(source: str | Path, *, faces: bool = False, home: str | Path | None = None, progress: Callable[[int, int], None] | None = None) -> Report:
    """Look at every clip of a folder or list.

    faces: also look for a face in the first, the middle and the last frame of each clip; a clip without one in any of them cannot be used.
    That needs the detector's weights, looked for in `home` and the usual places. progress: hears (files done, files in all).

    An A/V offset is known where a JSON file beside the clip, of the same name, has the key `av_offset`, in frames at 25 fps.
    Raises InputError where there is nothing to look at, WeightsError where the detector is missing.
    """
    paths, unseen = video_files(source)
    report = Report(str(source), files=len(paths), bad=unseen, looked_for_faces=faces)
    report.lengths.update({_length(a): 0 for a in LENGTHS[:-1]})
    finder = _Boxes(_detector(home)) if faces else None
    for done, (path, found) in enumerate(probe_all(paths), 1):
        why = found if isinstance(found, str) else _take_in(report, found)
        if not why and isinstance(found, ClipInfo) and finder is not None:
            why = _look(report, found, finder)
        if why:
            report.bad.append(BadClip(path, why))
        else:
            report.good.append(path)
        if progress is not None:
            progress(done, len(paths))
    return report


def _take_in(report: Report, info: ClipInfo) -> str:
    """Counts a readable clip; says why it cannot be used, '' where it can."""
    report.seconds += float(info.duration)
    report.lengths[_length(float(info.duration))] += 1
    report.sizes[f"{info.width}x{info.height}"] += 1
    report.fps[f"{float(info.fps):.3f}".rstrip("0").rstrip(".")] += 1
    offset = _offset(info.path)
    if offset is not None:
        report.offsets[str(info.path)] = offset
    if not info.audio:
        report.silent.append(info.path)
        return "has no sound"
    report.sample_rates[str(info.audio_rate)] += 1
    if info.pixel_aspect != 1 or info.width != info.height:
        return f"is {info.width}x{info.height}, not square: it should show one aligned face"
    return too_short(info, FPS, FRAMES)


def _length(seconds: float) -> str:
    low, high = next((a, b) for a, b in pairwise(LENGTHS) if seconds < b)
    return f"{low}-{high} s" if high != math.inf else f"over {low} s"


def _offset(path: Path) -> float | None:
    try:
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        value = float(told["av_offset"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if math.isfinite(value) else None


def _look(report: Report, info: ClipInfo, finder: FaceBackend) -> str:
    last = max(0, math.ceil(info.duration * FPS) - 1)
    times = [Fraction(i) / FPS for i in sorted({0, last // 2, last})]
    try:
        frames = read_frames(info.path, times)
    except InputError as e:
        return reason(info.path, e)
    found = [bool(detect(finder, _picture(frame))) for frame in frames]
    report.frames_looked_at += len(found)
    report.frames_with_face += sum(found)
    return "" if any(found) else "shows no face in its first, middle and last frame"


class _Boxes:
    """The part of a face finder that says whether there are faces."""

    name = "yunet"

    def __init__(self, detector: YuNet) -> None:
        self._detector = detector

    def detect(self, rgb: np.ndarray) -> list[Face]:
        return self._detector(rgb)

    def landmarks(self, picture: PictureLike, near: Face) -> Face | None:
        raise NotImplementedError("boxes only")


def _detector(home: str | Path | None) -> YuNet:
    root = weights.home_folder(home)
    for remote in weights.PUBLISHED.by_role("yunet"):
        for path in places.candidates(remote, root):
            if places.matches(path, remote):
                return YuNet(path, MIN_SCORE)
    raise WeightsError("looking for faces needs the face detector; run: latentsync models download face")


def _picture(rgb: np.ndarray) -> Picture:
    return Picture(tuple(np.ascontiguousarray(rgb[:, :, c]) for c in (1, 2, 0)), Layout("rgb", full=True))


def _sorted(counter: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda kv: (-kv[1], kv[0])))


def _line(counter: Mapping[str, int], unit: str = "", *, commonest: bool = True) -> str:
    rows = list(_sorted(counter).items()) if commonest else [(k, n) for k, n in counter.items() if n]
    shown = ", ".join(f"{value}{unit} ({n})" for value, n in rows[:_ROWS])
    return shown + (f" and {len(rows) - _ROWS} other" if len(rows) > _ROWS else "")
