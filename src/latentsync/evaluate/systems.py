"""Systems to compare, each a folder of results: which is best in a metric, which are not told apart from it, and which videos are worst."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from latentsync import page
from latentsync.errors import InputError
from latentsync.evaluate import charts
from latentsync.evaluate.records import Results, Row, find
from latentsync.evaluate.summary import Summary, summarise, table
from latentsync.metrics.catalogue import METRICS

# Each of them has its worst video shown, in this order, once half of the cases are the worst by what was asked for.
LOOKED_AT = (
    "sync_confidence",
    "seam",
    "flicker",
    "jitter",
    "silence_motion",
    "lmd",
    "lip_r",
    "ssim_mouth",
    "outside_share",
    "faces_missing",
    "identity",
)
JUDGED = {  # metrics that do not compare where these settings differ
    "judge": ("sync_confidence", "sync_distance", "sync_offset", "sync_offset_fine"),
    "vad": ("silence_motion", "silence_speed"),
    "faces": ("lmd", "lmd_pixels", "lip_r", "lip_lag", "faces_missing"),
}
ENOUGH = 5  # videos, below which no difference between systems is called one


@dataclass(frozen=True)
class System:
    """One column: a folder of results under the name and the colour that it has on the page."""

    name: str
    colour: int
    results: Results
    rows: dict[str, Row]  # those that could be evaluated, by name
    table: dict[str, Summary]


def gather(folders: Sequence[str | Path]) -> list[System]:
    """The systems in the folders, each under a name of its own. Raises InputError where there is none."""
    found = [results for folder in folders for results in find(folder)]
    if not found:
        raise InputError("no folder of results was given; `latentsync evaluate pairs` and `compare` write them")
    names = Counter(results.system for results in found)
    systems: list[System] = []
    for i, results in enumerate(found):
        name = results.system if names[results.system] == 1 else f"{results.system} ({results.folder.name})"
        name = name if name not in {s.name for s in systems} else f"{name} {i + 1}"
        systems.append(System(name, i % charts.COLOURS, results, {row.name: row for row in results.good}, table(results)))
    return systems


def worse(key: str, value: float) -> float:
    """How bad a value is: larger is worse."""
    better = METRICS[key].better if key in METRICS else ""
    return -value if better == "higher" else abs(value) if better == "zero" else value


class Case(NamedTuple):
    """A video to show."""

    name: str
    key: str  # the metric it is shown for
    why: str


def choose(systems: Sequence[System], worst_by: str, most: int) -> list[Case]:
    """The videos to show, worst first: half by one metric, then the worst of each other one, then by that metric again."""
    names = list(dict.fromkeys(name for system in systems for name in system.rows))

    def badness(name: str, key: str) -> float:
        values = [worse(key, s.rows[name].values[key]) for s in systems if name in s.rows and key in s.rows[name].values]
        return max(values, default=-math.inf)

    by = sorted(names, key=lambda name: badness(name, worst_by), reverse=True)
    known = [name for name in by if badness(name, worst_by) > -math.inf]
    chosen: dict[str, Case] = {}
    for i, name in enumerate(known[: max(1, most // 2)] if most else ()):
        chosen[name] = Case(name, worst_by, _superlative(worst_by, i + 1))
    for key in LOOKED_AT:
        if key == worst_by or (METRICS[key].better if key in METRICS else "") == "":
            continue
        worst = max(names, key=lambda name: badness(name, key), default="")
        spread = {badness(name, key) for name in names} - {-math.inf}
        if len(spread) > 1 and len(chosen) < most and worst not in chosen:
            chosen[worst] = Case(worst, key, _superlative(key, 1))
    for name in by:
        if len(chosen) < most and name not in chosen:
            chosen[name] = Case(name, worst_by, _superlative(worst_by, by.index(name) + 1) if name in known else "")
    return list(chosen.values())


def _superlative(key: str, place: int) -> str:
    order = ("", "second ", "third ")
    return f"{order[place - 1] if place <= len(order) else f'{place}th '}worst in {in_words(key)}"


def in_words(key: str) -> str:
    """A metric in words, within a sentence: in small letters, but for names."""
    words = title(key)
    return words if words[1:2].isupper() else words[:1].lower() + words[1:]


def title(key: str) -> str:
    """A metric in words."""
    return METRICS[key].title if key in METRICS else key


def of_all(systems: Iterable[System], key: str) -> list[str]:
    """Different values of a setting: what the rows say, or where they do not, the folder."""
    found: list[str] = []
    for system in systems:
        values = [row.settings[key] for row in system.rows.values() if key in row.settings] or [system.results.settings.get(key)]
        found += [page.said(value) for value in values if value not in (None, "")]
    return list(dict.fromkeys(found))


def of_set(system: System, key: str) -> tuple[float, int, str]:
    """(value, number of samples, note) of what is measured over all videos together."""
    found = system.results.sets.get(key)
    if not isinstance(found, dict):
        return math.nan, 0, ""
    value, count = found.get("value"), found.get("count")
    return (
        float(value) if isinstance(value, int | float) else math.nan,
        int(count) if isinstance(count, int | float) else 0,
        str(found.get("note") or ""),
    )


def ranking(systems: Sequence[System], key: str) -> tuple[int | None, set[int]]:
    """Which system has the best mean, and which are not told apart from it. (None, nobody) where systems do not compare."""
    if key not in METRICS or not METRICS[key].better or any(key in keys and len(of_all(systems, name)) > 1 for name, keys in JUDGED.items()):
        return None, set()
    means = {i: s.table[key].mean if key in s.table else of_set(s, key)[0] for i, s in enumerate(systems)}
    means = {i: mean for i, mean in means.items() if math.isfinite(mean)}
    if len(means) < 2 or len(set(means.values())) == 1:
        return None, set()
    best = min(means, key=lambda i: worse(key, means[i]))
    tied = set()
    for i in means:
        if i == best or key not in systems[i].table or key not in systems[best].table:
            continue
        theirs, ours = systems[i].rows, systems[best].rows
        differences = [
            worse(key, row.values[key]) - worse(key, ours[name].values[key])
            for name, row in theirs.items()
            if key in row.values and name in ours and key in ours[name].values
        ]
        if len(differences) < ENOUGH or summarise(differences).low <= 0:
            tied.add(i)
    return best, tied
