"""What preparation came to: one HTML page that needs nothing else, and the same in a few lines of text."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from latentsync import __version__
from latentsync.errors import InputError
from latentsync.page import document, escape, jpeg, table, wide
from latentsync.prepare import manifest
from latentsync.prepare.config import CLIP_STEPS, SOURCE_STEPS, STEPS
from latentsync.prepare.manifest import Row
from latentsync.prepare.store import Store, is_remote

PAGE, TEXT = "report.html", "report.txt"
_KEPT_SHOWN = 24  # samples
_DROPPED_SHOWN = 6  # samples of each step that drops
_FAILED_SHOWN = 500
_WIDTH = 160  # pixels of a sample's picture
_BARS = 40  # of a histogram; with more of them bins are joined
_SETTINGS = "prepare.json"


@dataclass(frozen=True)
class Scale:
    """A histogram: where its numbers stand in a row, and how wide a bin is."""

    title: str
    unit: str
    bin: float
    value: Callable[[Row], float | None]
    of: str = "clip"  # or source
    threshold: str = ""  # the value of the configuration to mark


def _number(row: Row, step: str, name: str) -> float | None:
    found = row["steps"].get(step, {}).get(name)
    try:
        return None if found is None or isinstance(found, bool | list) else float(Fraction(found) if isinstance(found, str) else found)
    except ValueError:
        return None


def _face(row: Row) -> float | None:
    tracks = row["steps"].get("faces", {}).get("tracks")
    if not isinstance(tracks, list) or not tracks:
        return None
    sides = [tracks[0][k] for k in ("width", "height") if k in tracks[0]]
    return float(min(sides)) if sides else None


SCALES = (
    Scale("frames per second of the footage", "fps", 1, lambda r: _number(r, "check", "fps") or None, of="source"),  # 0: cannot be read
    Scale("size of the main face", "pixels", 16, _face, threshold="min_face"),
    Scale("sync confidence", "", 0.02, lambda r: _number(r, "sync", "confidence"), threshold="min_sync"),
    Scale("offset of the sound, before it was moved", "frames", 1, lambda r: _number(r, "sync", "offset")),
    Scale("quality", "", 2.5, lambda r: _number(r, "quality", "score"), threshold="min_quality"),
)


@dataclass
class Stage:
    """What is left after a step."""

    name: str
    count: int = 0
    seconds: float = 0.0
    of: str = "clips"  # or files


@dataclass
class Tally:
    """What a manifest adds up to."""

    files: int = 0
    same: int = 0
    film: float = 0.0  # seconds of the footage that could be read
    clips: int = 0
    kept: int = 0
    kept_seconds: float = 0.0
    left: int = 0
    left_seconds: float = 0.0
    stages: list[Stage] = field(default_factory=list)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)  # (step, reason without its numbers)
    failed: list[tuple[str, str]] = field(default_factory=list)
    failures: int = 0
    bins: list[Counter[int]] = field(default_factory=lambda: [Counter() for _ in SCALES])
    times: dict[str, list[float]] = field(default_factory=dict)  # step -> count, seconds, seconds of film
    samples: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))  # "" kept, else the step that dropped

    @property
    def slowest(self) -> str:
        """The step that took most time; empty where nothing was measured."""
        return max(self.times, key=lambda s: self.times[s][1], default="")


def tally(store: Store) -> Tally:
    """Add up a manifest, in one pass and in memory that does not grow with it. Raises InputError where there is none."""
    total = Tally()
    after: dict[str, Stage] = {}
    checked = Stage("check", of="files")
    order = [s for s in _settings(store).get("values", {}).get("order", STEPS) if s in CLIP_STEPS]
    for row in manifest.read(store):
        if row["kind"] == "source":
            _add_source(total, checked, row)
        elif row["kind"] == "left over":
            total.left += 1
            total.left_seconds += row["end"] - row["start"]
            total.reasons["segments", _wordless(row["reason"])] += 1
            _sample(total, row)
        else:
            _add_clip(total, after, order, row)
        for scale, counts in zip(SCALES, total.bins, strict=True):
            value = scale.value(row) if row["kind"] == scale.of else None
            if value is not None:
                counts[math.floor(value / scale.bin + 1e-9) if scale.bin != 1 else round(value)] += 1
    first = Stage("footage", total.files, total.film, "files")
    total.stages = [first, checked, *(after[s] for s in ("segments", *order) if s in after)]
    return total


def _add_source(total: Tally, checked: Stage, row: Row) -> None:
    total.files += 1
    length = float(Fraction(row["steps"].get("check", {}).get("duration") or 0))
    total.film += length
    if row["step"] == "same":
        total.same += 1
    elif row["failed"] or row["step"] in ("read", "check"):
        total.failures += 1
        if len(total.failed) < _FAILED_SHOWN:
            total.failed.append((row["source"], row["reason"]))
    else:
        checked.count += 1
        checked.seconds += length
    if not row["keep"] and row["step"] not in ("segments", "same"):
        total.reasons[row["step"], _wordless(row["reason"])] += 1
    _add_times(total, row, SOURCE_STEPS, length)


def _add_clip(total: Tally, after: dict[str, Stage], order: list[str], row: Row) -> None:
    length = row["end"] - row["start"]
    total.clips += 1
    if row["keep"]:
        total.kept += 1
        total.kept_seconds += length
    else:
        total.reasons[row["step"], _wordless(row["reason"])] += 1
        if row["failed"]:
            total.failures += 1
            if len(total.failed) < _FAILED_SHOWN:
                total.failed.append((f"{row['source']}, {row['start']:.2f}-{row['end']:.2f} s", row["reason"]))
    dropped = {"shift": "sync", "cut": "align"}.get(row["step"], row["step"])
    for step in ("segments", *order):
        if step == dropped and not row["keep"]:
            break
        if step == "segments" or step in row["steps"] or (step == "align" and "cut" in row["steps"]):
            stage = after.setdefault(step, Stage(step))
            stage.count += 1
            stage.seconds += length
    for step in order:  # a step that nothing came through has its line, too
        if step in row["steps"]:
            after.setdefault(step, Stage(step))
    _add_times(total, row, (*CLIP_STEPS, "cut", "shift"), length)
    _sample(total, row)


def _add_times(total: Tally, row: Row, steps: tuple[str, ...], length: float) -> None:
    for step in steps:
        if step in row["steps"]:
            sums = total.times.setdefault(step, [0.0, 0.0, 0.0])
            for i, value in enumerate((1, row["steps"][step].get("seconds", 0.0), length)):
                sums[i] += value


def _sample(total: Tally, row: Row) -> None:
    shown = total.samples["" if row["keep"] else row["step"]]
    most = _KEPT_SHOWN if row["keep"] else _DROPPED_SHOWN
    if len(shown) < most:
        shown.append(row)
    elif row["content"] not in {r["content"] for r in shown}:  # rather many films than many clips of one
        seen: set[str] = set()
        for i, other in enumerate(shown):
            if other["content"] in seen:
                shown[i] = row
                break
            seen.add(other["content"])


def _wordless(reason: str) -> str:
    """A reason without its numbers, but for the threshold behind "than", so that equal ones add up."""
    return re.sub(r"(?<!than )(?<!than the )(?<![\d.,x])[-+]?\d+(?:[.,x]\d+)*", "...", reason)


def _settings(store: Store) -> dict[str, Any]:
    data = store.read(_SETTINGS)
    found = json.loads(data) if data else {}
    return found if isinstance(found, dict) else {}


def hours(seconds: float) -> str:
    """A length as people say it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def text(total: Tally) -> str:
    """The summary in lines of text."""
    lines = [f"{total.kept} of {total.clips} clips kept, {hours(total.kept_seconds)} of {hours(total.film)} of footage in {total.files} files"]
    if total.same:
        lines.append(f"{_same(total)}, and prepared once")
    lines += ["", "step        left        length"]
    lines += [f"{s.name:<12}{f'{s.count} {s.of}':<12}{hours(s.seconds)}" for s in total.stages]
    if total.reasons:
        lines += ["", "dropped, most frequent first"]
        lines += [f"{count:>7}  {step}: {reason}" for (step, reason), count in total.reasons.most_common(20)]
    if total.times:
        lines += ["", "step        done    seconds     x real time"]
        for step, (count, seconds, media) in total.times.items():
            speed = f"{media / seconds:.1f}" if seconds else "-"
            lines.append(f"{step:<12}{count:<8.0f}{seconds:<12.1f}{speed}{'   the slowest' if step == total.slowest else ''}")
    if total.failures:
        lines += ["", f"failed: {total.failures}"]
        lines += [f"  {name}: {reason}" for name, reason in total.failed[:20]]
        if total.failures > 20:
            lines.append(f"  and {total.failures - 20} more; {PAGE} and {manifest.NAME} name them")
    return "\n".join(lines) + "\n"


def _same(total: Tally) -> str:
    return f"{total.same} {'file is a copy of another' if total.same == 1 else 'files are copies of others'}"


def write(store: Store) -> Tally:
    """Write report.html and report.txt from the manifest. Raises InputError where there is none."""
    total = tally(store)
    store.write(TEXT, text(total).encode("utf-8", "backslashreplace"))
    store.write(PAGE, page(total, store).encode("utf-8", "backslashreplace"))
    return total


def page(total: Tally, store: Store) -> str:
    """The page as HTML: everything is in it, and it follows the reader's choice of light or dark."""
    settings = _settings(store)
    values = settings.get("values", {})
    reasons = [(str(count), step, reason) for (step, reason), count in total.reasons.most_common(40)]
    parts = [
        f"<h1>{total.kept} clips, {hours(total.kept_seconds)}</h1>",
        f"<p>of {total.clips} candidates from {total.files} files with {hours(total.film)} of footage"
        + (f"; {_same(total)}" if total.same else "")
        + (f"; <a href='#failed'>{total.failures} failed</a>" if total.failures else "")
        + f". Slowest step: {escape(total.slowest or 'none')}.</p>",
        "<h2>What each step leaves</h2>",
        _funnel(total),
        "<h2>Numbers</h2><div class='grid'>",
        *(_histogram(scale, counts, _threshold(scale.threshold, values)) for scale, counts in zip(SCALES, total.bins, strict=True)),
        "</div>",
        "<h2>Why files, parts and clips were dropped</h2>",
        table(("times", "step", "reason"), reasons) if reasons else "<p>None was.</p>",
        "<h2>Time</h2>",
        _times(total),
        "<h2>Kept</h2>",
        _samples(total.samples.get("", []), store, settings),
    ]
    for step in [*SOURCE_STEPS, *CLIP_STEPS, "shift", "cut"]:
        if total.samples.get(step):
            parts += [f"<h2>Dropped by {escape(step)}</h2>", _samples(total.samples[step], store, settings)]
    if total.failures:
        more = f"<p>and {total.failures - len(total.failed)} more, which {manifest.NAME} names</p>" if total.failures > len(total.failed) else ""
        parts += ["<h2 id='failed'>Failed</h2>", table(("file", "reason"), total.failed), more]
    shown = [(k, _said(k, values)) for k in values]
    parts += ["<h2>Settings</h2>", table(("value", ""), [("footage", str(settings.get("raw", ""))), *shown])]
    parts += [f"<footer>latentsync {escape(__version__)}; every clip and every reason: {manifest.NAME}</footer>"]
    return document("Preparation", "\n".join(parts), style=_STYLE)


def _threshold(name: str, values: dict[str, Any]) -> Any:
    """A threshold of the configuration; where none was given, the model's own. None where there is none."""
    if values.get(name) is not None or name not in ("min_sync", "min_quality"):
        return values.get(name)
    from latentsync.prepare.steps import quality, sync

    return sync.MIN_SYNC.get(values.get("sync_model", "")) if name == "min_sync" else quality.LEAST.get(values.get("quality_model", ""))


def _said(name: str, values: dict[str, Any]) -> str:
    value = values[name]
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        own = _threshold(name, values)
        return "none" if own is None else f"{own:g}, which is the model's own"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _funnel(total: Tally) -> str:
    most = max((s.seconds for s in total.stages), default=0.0) or 1.0
    rows = []
    for stage in total.stages:
        width = 100 * stage.seconds / most
        rows.append(
            f"<tr><th>{escape(stage.name)}</th><td class='n'>{stage.count} {stage.of}</td><td class='n'>{hours(stage.seconds)}</td>"
            f"<td class='bar'><div style='width:{width:.2f}%'></div></td><td class='n'>{width:.1f} %</td></tr>"
        )
    return wide(f"<table class='funnel'>{''.join(rows)}</table>", "What each step leaves")


def _times(total: Tally) -> str:
    whole = sum(t[1] for t in total.times.values()) or 1.0
    rows = [
        (step, f"{count:.0f}", f"{seconds:.1f}", f"{media / seconds:.1f}" if seconds else "-", f"{100 * seconds / whole:.1f} %")
        for step, (count, seconds, media) in total.times.items()
    ]
    return table(("step", "done", "seconds", "x real time, one process", "share"), rows)


def _histogram(scale: Scale, counts: Counter[int], threshold: Any) -> str:
    """A figure with one bar for each bin, from the first that is not empty to the last."""
    name = escape(scale.title)
    if not counts:
        return f"<figure><figcaption>{name}</figcaption><p class='none'>no numbers</p></figure>"
    first, last = min(counts), max(counts)
    joined = 1 if scale.bin == 1 else next((n for n in (1, 2, 5, 10, 25, 50, 100) if (last - first) // n < _BARS), 250)
    if joined > 1:
        fine, counts = counts, Counter()
        for k, count in fine.items():
            counts[k // joined] += count
        first, last = first // joined, last // joined
    unit = scale.bin * joined
    bins, most, total = last - first + 1, max(counts.values()), sum(counts.values())
    width, height, low = 300.0, 110.0, 18.0
    each = width / max(bins, 8)

    def label(k: int) -> str:
        return f"{round(k * unit, 6):g}"

    bars = []
    for k in range(first, last + 1):
        tall = (height - low - 4) * counts[k] / most
        where = label(k) if scale.bin == 1 else f"{label(k)} to {label(k + 1)}"
        bars.append(
            f"<rect x='{(k - first) * each:.2f}' y='{height - low - tall:.2f}' width='{max(each - 1, 0.5):.2f}' height='{tall:.2f}'>"
            f"<title>{where} {scale.unit}: {counts[k]}</title></rect>"
        )
    mark = ""
    if isinstance(threshold, int | float) and threshold and first <= threshold / unit <= last + 1:
        x = (threshold / unit - first) * each
        mark = f"<line x1='{x:.2f}' x2='{x:.2f}' y1='0' y2='{height - low}'><title>threshold {threshold:g}</title></line>"
    right = min(width, bins * each)
    ends = f"<text x='0' y='{height - 4}'>{label(first)}</text>"
    if bins > 1:
        ends += f"<text x='{right:.1f}' y='{height - 4}' text-anchor='end'>{label(last if scale.bin == 1 else last + 1)}</text>"
    return (
        f"<figure><figcaption>{name}{f' ({scale.unit})' if scale.unit else ''}, {total}</figcaption>"
        f"<svg viewBox='0 0 {width:.0f} {height:.0f}' role='img' aria-label='{name}'>{''.join(bars)}{mark}{ends}</svg></figure>"
    )


def _samples(rows: list[Row], store: Store, settings: dict[str, Any]) -> str:
    if not rows:
        return "<p>None.</p>"
    cells = []
    for row in rows:
        data = _picture(row, store, settings)
        image = f"<img alt='' src='{data}'>" if data else "<div class='blank'>no picture</div>"
        words = row["reason"] or ", ".join(_short(row))
        cells.append(
            f"<div class='cell'>{image}<b>{escape(row['source'])}</b><span>{row['start']:.2f}-{row['end']:.2f} s</span>"
            f"<span>{escape(words)}</span></div>"
        )
    return f"<div class='cells'>{''.join(cells)}</div>"


def _short(row: Row) -> list[str]:
    told = [(form, _number(row, step, name)) for form, step, name in _TOLD]
    return [form.format(value) for form, value in told if value]


_TOLD = (("sync {:.2f}", "sync", "confidence"), ("sound moved by {:+.0f} frames", "shift", "frames"), ("quality {:.0f}", "quality", "score"))


def _picture(row: Row, store: Store, settings: dict[str, Any]) -> str:
    """The middle frame as the address of a small JPEG: of the clip where it was kept, else of the footage; empty where there is none."""
    from latentsync.media.clip import read_frames

    middle = Fraction(row["end"]) / 2 - Fraction(row["start"]) / 2
    try:
        if "file" in row:
            path = store.get(row["file"])
        else:
            raw = settings.get("raw", "")
            if not raw or is_remote(raw):
                return ""
            path = Path(raw if os.path.isdir(raw) else os.path.dirname(raw), row["source"])
            middle += Fraction(row["start"])
        shown = read_frames(path, [middle])[0]
    except (InputError, OSError, ValueError):
        return ""
    return jpeg(shown, _WIDTH)


_STYLE = """
.funnel td.bar{width:55%;min-width:120px}.funnel td.bar div{height:14px;min-width:1px;background:var(--bar);border-radius:2px;margin-top:4px}
svg rect{fill:var(--bar)}svg line{stroke:var(--mark);stroke-width:1.5;stroke-dasharray:4 3}
.cells{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px}
.cell{display:flex;flex-direction:column;font-size:12.5px;line-height:1.35;overflow-wrap:anywhere}.cell span{color:var(--pale)}
.cell img,.blank{width:100%;border-radius:4px;margin-bottom:4px}.blank{aspect-ratio:4/3}
"""
