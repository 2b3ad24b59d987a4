"""Results for other programs: a table of all rows as CSV, and rows with their summary as JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

from latentsync.evaluate import summary
from latentsync.evaluate.records import Results, write_text

CSV, JSON = "results.csv", "summary.json"
ABOUT = ("name", "video", "audio", "reference", "source", "ok", "reason", "seconds", "frames")


def as_csv(results: Results) -> str:
    """A line for each row and a column for each metric that any row has; empty where a row has none."""
    keys = list(summary.by_key(results.rows))
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["system", *ABOUT, *keys])
    for row in results.rows:
        table.writerow([results.system, *(getattr(row, name) for name in ABOUT), *(row.values.get(key, "") for key in keys)])
    return out.getvalue()


def as_json(results: Results) -> str:
    """The system, its settings, each metric over all videos, and the rows."""
    return json.dumps(
        {
            "system": results.system,
            "settings": results.settings,
            "videos": len(results.rows),
            "failed": [{"name": row.name, "reason": row.reason} for row in results.rows if not row.ok],
            "metrics": {key: dataclasses.asdict(value) for key, value in summary.table(results).items()},
            "sets": results.sets,
            "rows": [row.plain() for row in results.rows],
        },
        indent=1,
        ensure_ascii=False,
    )


def write(results: Results) -> tuple[Path, Path]:
    """Both files into the folder of the results, in place of what was there. Raises OutputError."""
    table, whole = results.folder / CSV, results.folder / JSON
    write_text(table, as_csv(results))
    write_text(whole, as_json(results) + "\n")
    return table, whole
