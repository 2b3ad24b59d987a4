"""What was found of one video, and the folder that keeps it: one line of JSON for each, written as soon as it is there.

A folder holds one system's results: results.jsonl (a row for each video) and settings.json (what was asked, and with which versions). A process that
is killed loses the row it was working on; the same command goes on after it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentsync.errors import InputError, OutputError, UsageError
from latentsync.whole import whole

ROWS, SETTINGS, SETS = "results.jsonl", "settings.json", "sets.json"
SAME = ("protocol", "system", "model", "options", "metrics", "judge", "faces", "seed")  # settings in which all rows of a folder agree


@dataclass(frozen=True)
class Row:
    """What was found of one video."""

    name: str  # unique in its folder; rows of equal names in two folders are of the same pair
    video: str
    audio: str = ""  # "": the video's own sound
    reference: str = ""  # the true video of the same words, where there is one
    source: str = ""  # the video before its mouth was made anew
    ok: bool = True
    reason: str = ""  # why not
    seconds: float = 0.0
    frames: int = 0
    values: dict[str, float] = field(default_factory=dict)  # by the keys of `metrics.catalogue`; finite
    missing: dict[str, str] = field(default_factory=dict)  # metrics without a value: why
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)  # NaN where unknown
    settings: dict[str, Any] = field(default_factory=dict)  # how it was generated, and what judged it
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON holds it; what is empty is left out, and NaN is null."""
        out: dict[str, Any] = {"name": self.name, "video": self.video, "ok": self.ok}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name in out or value in ("", 0, (), {}):
                continue
            out[f.name] = value
        if self.values:
            out["values"] = {k: _short(v) for k, v in self.values.items()}
        if self.curves:
            out["curves"] = {k: [_short(v, 5) if math.isfinite(v) else None for v in curve] for k, curve in self.curves.items()}
        if self.notes:
            out["notes"] = list(self.notes)
        return out

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Row:
        """The inverse of `plain`. Raises InputError for a record that is none."""
        known = {f.name for f in dataclasses.fields(cls)}
        try:
            values = {k: v for k, v in plain.items() if k in known}  # a later version may say more
            values["values"] = {str(k): float(v) for k, v in plain.get("values", {}).items()}
            values["curves"] = {str(k): tuple(math.nan if v is None else float(v) for v in c) for k, c in plain.get("curves", {}).items()}
            values["notes"] = tuple(plain.get("notes", ()))
            return cls(**values)
        except (TypeError, ValueError, AttributeError) as e:
            raise InputError(f"a record cannot be read ({type(e).__name__}: {e})") from e


def _short(value: float, digits: int = 7) -> float:
    """So many digits: more than any of the metrics is sure of."""
    return float(f"{value:.{digits}g}")


@dataclass(frozen=True)
class Results:
    """A folder of results, read."""

    folder: Path
    rows: tuple[Row, ...]  # in the order in which they are listed
    settings: dict[str, Any]
    sets: dict[str, Any] = field(default_factory=dict)  # of all videos together: {"fid": {"value": ..., "count": ..., "note": ...}}

    @property
    def system(self) -> str:
        """What made the videos."""
        return str(self.settings.get("system") or self.folder.name)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Results:
        """The results in a folder, of what its last run listed. A last line that was cut off counts as not there.

        Raises InputError where there are none, or they are damaged.
        """
        folder = Path(folder)
        rows = {row.name: row for row in read_rows(folder / ROWS)}
        settings = _read_json(folder / SETTINGS)
        order = settings.get("order")
        listed = [rows[name] for name in order if name in rows] if order else list(rows.values())
        return cls(folder.absolute(), tuple(listed), settings, _read_json(folder / SETS))

    @property
    def good(self) -> tuple[Row, ...]:
        """The rows that could be evaluated."""
        return tuple(row for row in self.rows if row.ok)


def find(folder: str | os.PathLike[str]) -> list[Results]:
    """The results in a folder, or of the folders right in it, by name. Raises InputError where there are none."""
    folder = Path(folder)
    if (folder / ROWS).is_file():
        return [Results.read(folder)]
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    inside = [Results.read(f) for f in sorted(folder.iterdir()) if (f / ROWS).is_file()]
    if not inside:
        raise InputError(f"{folder} holds no results ({ROWS}); `latentsync evaluate pairs` and `compare` write them")
    return inside


def read_rows(path: Path) -> list[Row]:
    """The rows of a results.jsonl, in the order of writing. A last line without its end is left out."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path.parent} holds no results ({path.name})") from None
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror or e}") from e
    rows = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        try:
            rows.append(Row.of(json.loads(line)))
        except (ValueError, InputError) as e:
            raise InputError(f"{path}: line {number} is damaged ({e}); delete it, and that video is evaluated again") from e
    return rows


class Book:
    """Results being written: a folder made by one command, which adds to it now or goes on later. A context, which one process may hold at a time."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], order: Sequence[str]) -> None:
        """Opens or makes the folder.

        Raises UsageError where the folder holds results of other settings or another process is writing to it, OutputError where it cannot be
        written, InputError where what is there is damaged.
        """
        if len(set(order)) < len(order):
            twice = next(name for i, name in enumerate(order) if name in order[:i])
            raise UsageError(f"two rows are named '{twice}'; give them names of their own (column name)")
        self.folder = folder
        self._settings = {**settings, "order": list(order)}
        self._rows: dict[str, Row] = {}
        self._handle: int | None = None

    def __enter__(self) -> Book:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / ROWS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as e:
            raise OutputError(f"cannot write to {self.folder}: {e.strerror or e}") from e
        self._handle = handle
        try:
            _lock(handle, self.folder)
            before = _read_json(self.folder / SETTINGS)
            self._rows = {row.name: row for row in read_rows(self.folder / ROWS)}
            if before:
                _same(before, self._settings, self.folder)
            _mend(handle, self.folder / ROWS)
            write_json(self.folder / SETTINGS, self._settings)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def row(self, name: str) -> Row | None:
        """What is known of that name already."""
        return self._rows.get(name)

    def add(self, row: Row) -> None:
        """Write a row; it is on the disk when this returns. A later one of the same name stands in place of an earlier one."""
        assert self._handle is not None
        line = (json.dumps(row.plain(), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "surrogateescape")
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(self._handle, view) :]
            os.fsync(self._handle)
        except OSError as e:
            raise OutputError(f"cannot write {self.folder / ROWS}: {e.strerror or e}") from e
        self._rows[row.name] = row

    def sets(self, values: Mapping[str, Any]) -> None:
        """Write what is of all videos together."""
        write_json(self.folder / SETS, values)

    @property
    def rows(self) -> list[Row]:
        """What is known so far of what is listed."""
        return [self._rows[name] for name in self._settings["order"] if name in self._rows]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A file of JSON, whole or not at all. Raises OutputError."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A file of text, whole or not at all. Raises OutputError."""
    with whole(path) as scratch:
        scratch.write_bytes(text.encode("utf-8", "surrogateescape"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise InputError(f"{path} is damaged ({e}); delete the folder, or name another one") from e
    return found if isinstance(found, dict) else {}


def _same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    now = json.loads(json.dumps(now))
    other = [name for name in SAME if before.get(name) != now.get(name)]
    if other:
        said = "; ".join(f"{name} {_said(before.get(name))} there, {_said(now.get(name))} now" for name in other)
        raise UsageError(f"{folder} holds results of other settings ({said}); name another folder, or delete it")


def _said(value: Any) -> str:
    return "none" if value in (None, "", [], {}) else json.dumps(value) if not isinstance(value, str) else value


def _lock(handle: int, folder: Path) -> None:
    """Held until the file is closed, or the process ends in whatever way. Where the system has no such locks, nothing is held."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"another process is writing to {folder}; wait for it, or name another folder") from None
    except OSError:
        return  # some network disks


def _mend(handle: int, path: Path) -> None:
    """Cut off a last line without its end: the process that wrote it was stopped."""
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.ftruncate(handle, whole)
