"""Each step alone, on one file: what it measures, and what it says of that."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from latentsync.errors import UsageError
from latentsync.media.clip import probe
from latentsync.prepare.config import PrepareConfig
from latentsync.prepare.records import Decision, Span, to_plain
from latentsync.prepare.steps import align, check, faces, quality, resample, scenes, segments, sync


class Alone(NamedTuple):
    """What a step found in a file."""

    result: Any  # as the step's module describes it
    decision: Decision

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        found = to_plain(self.result)
        return {**(found if isinstance(found, dict) else {"spans": found}), "keep": self.decision.keep, "reason": self.decision.reason}


def run_check(path: Path) -> Alone:
    """Decode the file to its end."""
    found = check.measure(path)
    return Alone(found, check.decide(found))


def run_resample(path: Path, target: Path, config: PrepareConfig) -> Alone:
    """Write `target` with the rates of the configuration, where the file has others."""
    found = resample.measure(path, _whole(path), target, fps=config.fps, rate=config.rate)
    return Alone(found, Decision(True, found.why))


def run_scenes(path: Path, config: PrepareConfig) -> Alone:
    """Find the cuts of the file."""
    found = scenes.measure(path, threshold=config.scene_threshold, fps=config.fps)
    return Alone(found, Decision(True, f"{len(found.spans)} scenes"))


def run_segments(path: Path, config: PrepareConfig) -> Alone:
    """Split the file's scenes into clips."""
    checked = _whole(path)
    found = (
        scenes.measure(path, threshold=config.scene_threshold, fps=config.fps).spans
        if config.does("scenes")
        else (Span(Fraction(0), checked.duration),)
    )
    end = min(checked.duration, checked.audio_duration)
    spans = segments.split(found, least=config.least, most=config.most, keep_short=config.keep_short, fps=config.fps, end=end)
    return Alone(spans, Decision(bool(spans), f"{len(spans)} clips"))


def run_faces(path: Path, span: Span, config: PrepareConfig, home: Path | None = None) -> Alone:
    """Follow all faces through a span."""
    with TemporaryDirectory(prefix="latentsync-faces-") as folder:
        found = faces.measure(path, span, Path(folder, "faces.npz"), backend=faces.finder(config.face_backend, home), fps=config.fps)
    limits = {"min_face": config.min_face, "one_person": config.one_person, "max_yaw": config.max_yaw, "min_share": config.min_share}
    return Alone(found, faces.decide(found, **limits))  # type: ignore[arg-type]


def run_align(path: Path, span: Span, target: Path, config: PrepareConfig, home: Path | None = None) -> Alone:
    """Write the clip of a span, and its matrices beside it."""
    if target.suffix.lower() != ".mp4":
        raise UsageError(f"{target.name}: clips end in .mp4")
    with TemporaryDirectory(prefix="latentsync-faces-") as folder:
        found = faces.measure(path, span, Path(folder, "faces.npz"), backend=faces.finder(config.face_backend, home), fps=config.fps)
        made = align.measure(path, span, found, target, size=config.size, crop=config.crop, fps=config.fps)
    return Alone(made, Decision(True, f"{made.frames} frames"))


def run_sync(path: Path, config: PrepareConfig, device: str = "cpu", home: Path | None = None, shifted: Path | None = None) -> Alone:
    """Confidence and offset of a clip; where it is kept and `shifted` is given, the clip is written there with its sound moved into sync."""
    beside = path.with_suffix(".npz").is_file()
    info = probe(path)
    backend = None if beside or info.width == info.height else faces.finder(config.face_backend, home)
    found = sync.measure(path, model=config.sync_model, device=device, home=home, backend=backend)
    decision = sync.decide(found, min_sync=config.min_sync, max_offset=config.max_offset)
    if shifted is not None and decision.keep:
        sync.shift(path, shifted, found.offset)
    return Alone(found, decision)


def run_quality(path: Path, config: PrepareConfig, device: str = "cpu", home: Path | None = None) -> Alone:
    """The grade of three frames of a clip."""
    found = quality.measure(path, model=config.quality_model, device=device, home=home)
    return Alone(found, quality.decide(found, least=config.min_quality))


def span_of(path: Path, start: float | None, end: float | None) -> Span:
    """A span of seconds, by default the whole file. Raises UsageError for one that is not in it."""
    length = probe(path).duration
    begin = Fraction(0) if start is None else Fraction(str(start))
    stop = length if end is None else min(length, Fraction(str(end)))
    if not 0 <= begin < stop:
        raise UsageError(f"{path} is {float(length):.2f} s long; --from {float(begin):g} --to {float(stop):g} is no part of it")
    return Span(begin, stop)


def _whole(path: Path) -> check.Checked:
    """What the file holds, where it can be read to its end. Raises UsageError where it cannot."""
    checked = check.measure(path)
    if checked.problem:
        raise UsageError(f"{path}: {checked.problem}")
    return checked
