"""What a training run tells of itself: rows of values in events.jsonl, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from latentsync.errors import OutputError, UsageError

EVENTS = "events.jsonl"
BOARD = "tensorboard"  # folder of TensorBoard's own files


class Row(NamedTuple):
    """Values of one kind ("train" or "validation") at one step. NaN stands for whatever was not finite."""

    step: int
    split: str
    values: dict[str, float]


class History:
    """The rows of one run, appended one line at a time: {"step": 10, "split": "train", "time": seconds since 1970, "loss": 0.69, ...}.

    What is not finite is written as null, since JSON knows no NaN. `after`: the step that the run goes on from; rows of later steps, and a
    last line that a killed process left unfinished, are removed. `earlier`: a folder with the rows before it (see `copy`), for a run that goes on
    in another place than where it began; not used where there are rows already.
    """

    def __init__(self, folder: Path, *, after: int = 0, earlier: Path | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise UsageError('TensorBoard\'s events need the packages of the extra "train": pip install "latentsync[train]"') from e
        self.path = folder / EVENTS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if earlier is not None and not self.path.exists() and (earlier / EVENTS).is_file():
                shutil.copyfile(earlier / EVENTS, self.path)
            _cut(self.path, after)
            self._file = self.path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / BOARD), purge_step=after + 1)
        except OSError as e:
            raise OutputError(f"cannot write {self.path}: {e.strerror or e}") from e

    def row(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one row. Raises OutputError where the disk is full."""
        plain = {k: v if math.isfinite(v) else None for k, v in values.items()}
        try:
            self._file.write(json.dumps({"step": step, "split": split, "time": round(time.time(), 3), **plain}) + "\n")
            self._file.flush()
        except OSError as e:
            raise OutputError(f"cannot write {self.path}: {e.strerror or e}; the last checkpoint is good, the same command goes on from it") from e
        for name, value in values.items():
            self._board.add_scalar(f"{name}/{split}", value, step)

    def copy(self, folder: Path) -> None:
        """Put all rows so far into a checkpoint's folder. Raises OSError."""
        shutil.copyfile(self.path, folder / EVENTS)

    def close(self) -> None:
        """Bring everything to the files."""
        self._board.close()
        self._file.close()


def read(path: Path) -> list[Row]:
    """The rows of a run in order; lines that are not rows (one cut short by a killed process) are left out. None there: no rows."""
    if not path.is_file():
        return []
    return [row for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if (row := _row(line)) is not None]


def _row(line: str) -> Row | None:
    try:
        values: dict[str, Any] = json.loads(line)
        step, split = values.pop("step"), values.pop("split")
        values.pop("time", None)
        return Row(int(step), str(split), {k: math.nan if v is None else float(v) for k, v in values.items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _cut(path: Path, after: int) -> None:
    """Keep the rows up to a step. The file is replaced in one go, and not touched where nothing is to go."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and (row := _row(line)) is not None and row.step <= after]
    if len(kept) == len(lines):
        return
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        scratch.write_text("".join(kept), encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
