"""The one ordered list of steps: what each hands to its module in `steps`, which values change its numbers, and how far a file has come.

A step's numbers are kept in a record under a key made of its name, its module's VERSION, the values that change them, and the keys of the steps they
build on. Decisions are never kept: `walk` makes them anew from the numbers, so it tells at any time, in no time, what becomes of a file and which
step is still to be measured.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from latentsync.errors import InputError
from latentsync.prepare.config import CLIP_STEPS, PrepareConfig
from latentsync.prepare.records import Decision, Span, from_plain

SYNC_FPS = 25  # frames a second in which every SyncNet counts offsets
STILL_OFF = 1  # frames: what SyncNet itself can be wrong by
Entry = dict[str, Any]  # of a record: step, result or error, seconds
Record = dict[str, Entry]  # by key


@dataclass
class Given:
    """What a step may need: the file, what earlier steps found, and where to put new files."""

    config: PrepareConfig
    source: Path  # as it was found
    media: Path  # resampled, or the source
    span: Span
    results: Mapping[str, Any]  # step -> result
    folder: Path  # empty; all files left in it are kept
    tools: Any  # networks and the like of the process: `tools(name, make)` makes each once
    device: str
    home: str
    package: str  # of the steps
    number: int = 0  # of the process among those that share this machine's devices

    @property
    def clip(self) -> Path:
        """The clip that align (or cut) wrote."""
        path: Path = self.results["align" if "align" in self.results else "cut"].path
        return path


Measure = Callable[[ModuleType, Given], Any]
Decide = Callable[[ModuleType, Any, PrepareConfig], Decision]


@dataclass(frozen=True)
class Step:
    """How a step of the list is called. `needs` names the steps whose results its numbers build on."""

    name: str
    module: str
    result: str | type  # the class of its result
    needs: tuple[str, ...]
    values: Callable[[PrepareConfig], dict[str, Any]]  # that change its numbers
    measure: Measure
    decide: Decide

    def load(self, package: str) -> ModuleType:
        """Its module."""
        return importlib.import_module(f"{package}.{self.module}")


def _stay(module: ModuleType, result: Any, config: PrepareConfig) -> Decision:
    return Decision(True, "")


def _finder(g: Given) -> Any:
    """The face finder of the process."""
    make = TABLE["faces"].load(g.package).finder
    return g.tools(("faces", g.config.face_backend), lambda: make(g.config.face_backend, home=g.home or None))


def _device(g: Given) -> str:
    """The device of the process, by its name; "auto" deals all GPUs that are here out to the processes in turn."""
    if g.device != "auto":
        return g.device

    def choose() -> str:
        from latentsync.device import dealt

        return str(dealt(g.number))

    name: str = g.tools("device", choose)
    return name


def _measure_faces(m: ModuleType, g: Given) -> Any:
    return m.measure(g.media, g.span, g.folder / "faces.npz", backend=_finder(g), fps=g.config.fps)


@dataclass(frozen=True)
class Shifted:
    """A clip whose sound was moved until the offset is 0, and what is measured of it then."""

    path: Path
    frames: int  # by which the sound was moved
    confidence: float
    offset: int


def _synced(m: ModuleType, g: Given, clip: Path) -> Any:
    """Sync of a clip; where its face is, align has written, else it is to be found."""
    aligned = g.results.get("align")
    where = {"backend": _finder(g)} if aligned is None else {"points": aligned.matrices}
    return m.measure(clip, model=g.config.sync_model, device=_device(g), home=g.home or None, **where)


def _decide_sync(m: ModuleType, r: Any, c: PrepareConfig) -> Decision:
    decision: Decision = m.decide(r, min_sync=c.min_sync, max_offset=c.max_offset)
    return decision


def _measure_shift(m: ModuleType, g: Given) -> Shifted:
    target = g.folder / "clip.mp4"
    frames = g.results["sync"].offset
    m.shift(g.clip, target, frames, fps=SYNC_FPS)
    again = _synced(m, g, target)
    return Shifted(target, frames, again.confidence, again.offset)


def _decide_shift(m: ModuleType, r: Any, c: PrepareConfig) -> Decision:
    if abs(r.offset) > STILL_OFF:
        return Decision(False, f"still off by {r.offset} frames after its sound was shifted by {r.frames}")
    return Decision(True, f"sound shifted by {r.frames} frames, now off by {r.offset}")


def _seen(config: PrepareConfig) -> dict[str, Any]:
    return {"fps": config.fps}


# In the published order; `shift` belongs to sync, and `cut` stands in where align is skipped.
TABLE: dict[str, Step] = {
    step.name: step
    for step in (
        Step("check", "check", "Checked", (), lambda c: {}, lambda m, g: m.measure(g.source), lambda m, r, c: m.decide(r)),
        Step(
            "resample",
            "resample",
            "Resampled",
            ("check",),
            lambda c: {"fps": c.fps, "rate": c.rate},
            lambda m, g: m.measure(g.source, g.results["check"], g.folder / "film.mp4", fps=g.config.fps, rate=g.config.rate),
            _stay,
        ),
        Step(
            "scenes",
            "scenes",
            "Scenes",
            ("resample",),
            lambda c: {"fps": c.fps, "threshold": c.scene_threshold},
            lambda m, g: m.measure(g.media, threshold=g.config.scene_threshold, fps=g.config.fps),
            _stay,
        ),
        Step(
            "faces",
            "faces",
            "Faces",
            ("resample",),
            lambda c: {"fps": c.fps, "backend": c.face_backend},
            _measure_faces,
            lambda m, r, c: m.decide(r, min_face=c.min_face, one_person=c.one_person, max_yaw=c.max_yaw, min_share=c.min_share),
        ),
        Step(
            "align",
            "align",
            "Aligned",
            ("resample", "faces"),
            lambda c: {"fps": c.fps, "size": c.size, "crop": c.crop},
            lambda m, g: m.measure(
                g.media, g.span, g.results["faces"], g.folder / "clip.mp4", size=g.config.size, crop=g.config.crop, fps=g.config.fps
            ),
            _stay,
        ),
        Step("cut", "cut", "Cut", ("resample",), _seen, lambda m, g: m.measure(g.media, g.span, g.folder / "clip.mp4", fps=g.config.fps), _stay),
        Step("sync", "sync", "Synced", ("align", "cut"), lambda c: {"model": c.sync_model}, lambda m, g: _synced(m, g, g.clip), _decide_sync),
        Step("shift", "sync", Shifted, ("sync",), lambda c: {}, _measure_shift, _decide_shift),
        Step(
            "quality",
            "quality",
            "Quality",
            ("align", "cut"),
            lambda c: {"model": c.quality_model},
            lambda m, g: m.measure(g.clip, model=g.config.quality_model, device=_device(g), home=g.home or None),
            lambda m, r, c: m.decide(r, least=c.min_quality),
        ),
    )
}


class Passed(NamedTuple):
    """A step that a file went through."""

    step: str
    decision: Decision
    entry: Entry


class Way(NamedTuple):
    """How far a file or a clip has come."""

    passed: tuple[Passed, ...]
    results: dict[str, Any]
    todo: str  # the step to measure next; empty: nothing is left to do
    key: str  # under which that goes
    failed: bool = False

    @property
    def keep(self) -> bool:
        """Whether nothing has dropped it so far."""
        return all(p.decision.keep for p in self.passed)


Find = Callable[[str], Path]  # a kept file's name -> its path


def source_way(record: Record, config: PrepareConfig, package: str, find: Find) -> Way:
    """How far a whole file has come; its record is one of its content."""
    names = [s for s in config.steps if s not in (*CLIP_STEPS, "segments")]
    return _walk(names, record, config, package, find, {})


def clip_way(record: Record, config: PrepareConfig, package: str, find: Find, source: Way) -> Way:
    """How far a clip has come, given that of its source."""
    names: list[str] = []
    for step in config.order:
        if step == "align" and not config.does("align"):
            names.append("cut")  # a clip is written in any case
        elif step in CLIP_STEPS and config.does(step):
            names += [step, "shift"] if step == "sync" else [step]
    return _walk(names, record, config, package, find, source.results)


@lru_cache(maxsize=256)
def keys(config: PrepareConfig, package: str, name: str) -> str:
    """The key of a step's numbers."""
    step = TABLE[name]
    there = [need for need in step.needs if (config.does(need) if need != "cut" else not config.does("align"))]
    built_on = [keys(config, package, need) for need in there]
    told = json.dumps([name, str(step.load(package).VERSION), step.values(config), built_on], sort_keys=True)
    return f"{name}-{hashlib.blake2b(told.encode(), digest_size=8).hexdigest()}"


def spans(source: Way, config: PrepareConfig, package: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """(what becomes clips, what is left over) of a file that came through its steps."""
    checked = source.results["check"]
    found = source.results.get("scenes")
    end = min(checked.duration, checked.audio_duration)
    scenes: tuple[Span, ...] = found.spans if found is not None else (Span(Fraction(0), checked.duration),)
    if not config.does("segments"):
        return tuple(s for s in scenes if s.start < end), tuple(s for s in scenes if s.start >= end)
    module = importlib.import_module(f"{package}.segments")
    clips: tuple[Span, ...] = module.split(scenes, least=config.least, most=config.most, keep_short=config.keep_short, fps=config.fps, end=end)
    return clips, tuple(_gaps(scenes, clips))


def _gaps(scenes: tuple[Span, ...], clips: tuple[Span, ...]) -> list[Span]:
    """What lies in scenes and in no clip."""
    left: list[Span] = []
    for scene in scenes:
        at = scene.start
        for clip in clips:
            if scene.start <= clip.start < scene.end:
                if clip.start > at:
                    left.append(Span(at, clip.start))
                at = max(at, clip.end)
        if at < scene.end:
            left.append(Span(at, scene.end))
    return left


def _walk(names: list[str], record: Record, config: PrepareConfig, package: str, find: Find, results: Mapping[str, Any]) -> Way:
    passed: list[Passed] = []
    found = dict(results)
    for name in names:
        step = TABLE[name]
        if name == "shift" and not found["sync"].offset:
            continue
        module = step.load(package)
        key = keys(config, package, name)
        entry = record.get(key)
        if entry is None:
            return Way(tuple(passed), found, name, key)
        if "error" in entry:
            passed.append(Passed(name, Decision(False, entry["error"]), entry))
            return Way(tuple(passed), found, "", "", failed=True)
        try:
            kind = step.result if isinstance(step.result, type) else getattr(module, step.result)
            result = from_plain(kind, entry["result"], find)
        except InputError:  # a record of an earlier program whose VERSION stayed: measured anew
            return Way(tuple(passed), found, name, key)
        found[name] = result
        decision = step.decide(module, result, config)
        passed.append(Passed(name, Decision(decision.keep, decision.reason), entry))
        if not decision.keep:
            break
    return Way(tuple(passed), found, "", "")
