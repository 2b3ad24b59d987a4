"""The history of one clip, or of one file of the footage, as the manifest tells it."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

from latentsync.errors import InputError
from latentsync.prepare import manifest
from latentsync.prepare.manifest import Row
from latentsync.prepare.store import is_remote, open_store


def place_of(clip: str, out: str = "") -> tuple[str, str]:
    """(the folder that preparation wrote, what is looked for in it) from a clip's path, or from its name and that folder.

    Without a folder it is looked for above the path, then here. Raises InputError where no folder above has a manifest.
    """
    if out:
        return out, clip
    if not is_remote(clip):
        path = Path(os.path.abspath(os.path.expanduser(clip)))
        for folder in (*path.parents, Path.cwd()):
            if (folder / manifest.NAME).is_file():
                return str(folder), clip
    raise InputError(f"no {manifest.NAME} above {clip}; name the folder that `latentsync prepare` wrote with --in OUT")


def history(clip: str, out: str = "") -> list[Row]:
    """The rows that are about a clip (by its path or name) or about a file of the footage. Raises InputError where there is none."""
    place, wanted = place_of(clip, out)
    name = PurePosixPath(wanted.replace(os.sep, "/"))
    found = [
        row
        for row in manifest.read(open_store(place))
        if row.get("name") in (name.name, name.stem) or row["source"] == wanted or row["content"] == wanted
    ]
    if not found:
        raise InputError(f"{place}/{manifest.NAME} knows no clip and no file {wanted}; clips are named as in {place}/{manifest.CLIPS}")
    return found


def text(row: Row) -> str:
    """A row in lines of text: what it is, then a line for each step."""
    what = row.get("name", row["source"])
    where = f" {row['start']:.2f}-{row['end']:.2f} s" if "start" in row else ""
    end = "kept" if row["keep"] else f"{'failed' if row['failed'] else 'dropped'} at {row['step']}: {row['reason']}"
    if row["kind"] == "source" and row["keep"]:  # each of its clips has an end of its own
        end = f"usable; clips: {row['clips']}, left over: {row['left_over']}"
    lines = [f"{what}: {end}", f"  source    {row['source']}{where}"]
    if row["content"]:
        lines.append(f"  content   {row['content']}")
    if "file" in row:
        lines.append(f"  file      {row['file']}")
    for step, about in row["steps"].items():
        numbers = ", ".join(f"{k} {said(v)}" for k, v in about.items() if k not in ("keep", "reason", "seconds") and v not in ("", None))
        mark = "ok" if about["keep"] else "DROP"
        lines.append(f"  {step:<9} {mark:<5} {about['seconds']:.2f} s  {numbers}" + (f"  ({about['reason']})" if about["reason"] else ""))
    if "versions" in row:
        lines.append("  versions  " + ", ".join(f"{k} {v}" for k, v in row["versions"].items()))
    return "\n".join(lines)


def said(value: Any) -> str:
    """A value of a result as people read it."""
    if isinstance(value, str) and "/" in value:
        try:
            return f"{float(Fraction(value)):.3f}".rstrip("0").rstrip(".")
        except (ValueError, ZeroDivisionError):
            return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(said, value)) + "]"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k} {said(v)}" for k, v in value.items()) + ")"
    return str(value)
