"""Results as one HTML page that needs nothing else: what is wrong at a glance, numbers one can trust, and the worst videos to look at.

The page holds everything, small clips too. It loads nothing, and runs one script, which sorts a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from latentsync import page
from latentsync.errors import OutputError, UsageError
from latentsync.evaluate import cases, sections
from latentsync.evaluate.systems import Case, System, choose, gather, worse
from latentsync.face.protocols import FaceBackend
from latentsync.metrics.catalogue import METRICS

CASES = 8  # videos shown
CLIPS_MB = 16.0  # of all clips together, before they are written as text, which takes a third more
WORST_BY = "sync_confidence"


def report(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    title: str = "",
    overwrite: bool = False,
    clips: bool = True,
    worst_by: str = WORST_BY,
    most: int = CASES,
    paper: str = "",
) -> Path:
    """Write the page on the results in `folders` to `out`, whole or not at all; the path of the page.

    Rows of equal name in several folders are one case, shown side by side. `worst_by` is the metric by which cases come worst first; `most` is how
    many are shown. clips=False shows strips of frames in place of clips. `paper` names the data of the paper's table ("hdtf") to quote beside; say so
    only where the videos are of that data.
    Raises InputError where there are no results, UsageError for an unknown metric, OutputError where `out` exists (unless `overwrite`) or cannot
    be written.
    """
    path = Path(out)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; pass --overwrite to replace it, or name another file")
    if worst_by not in METRICS:
        raise UsageError(f"no metric '{worst_by}'; known ones are {', '.join(METRICS)}")
    if paper and paper not in sections.PAPER:
        raise UsageError(f"the paper's numbers on '{paper}' are not known; known ones are {', '.join(sections.PAPER)}")
    systems = gather(folders)
    chosen = choose(systems, worst_by, most)
    budget = int(CLIPS_MB * 1e6 / max(1, len(chosen))) if clips else 0
    faces = cases.finder() if chosen else None
    shown = [(case, _pictures(systems, case, faces, budget)) for case in chosen]
    page.write(path, sections.document(systems, shown, title, worst_by, paper), overwrite=overwrite)
    return path


def _pictures(systems: Sequence[System], case: Case, faces: FaceBackend | None, budget: int) -> cases.Shown:
    """Reference (or source) and results, around the second that is worst."""
    rows = [(system, system.rows[case.name]) for system in systems if case.name in system.rows]
    first = rows[0][1]
    panels = [cases.Panel("reference" if first.reference else "source", Path(path)) for path in [first.reference or first.source] if path]
    panels += [cases.Panel(system.name if len(systems) > 1 else "result", Path(row.video)) for system, row in rows]
    curve = sections.curve_of(case.key)
    found = [
        (worse(case.key if curve == "flicker" else "sync_confidence", value), k)
        for _, row in rows
        for k, value in enumerate(row.curves.get(curve, ()))
    ]
    known = [(value, -k) for value, k in found if math.isfinite(value)]
    return cases.show(panels, Path(first.audio or first.video), float(-max(known)[1]) if known else 0.0, faces, budget)
