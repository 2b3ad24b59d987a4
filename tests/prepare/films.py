"""Films for the stand-in steps, and what a run leaves behind, for comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentsync.prepare.config import PrepareConfig, Running
from latentsync.prepare.engine import Crew
from latentsync.prepare.manifest import Row
from latentsync.prepare.pool import Done, Task
from latentsync.prepare.work import Setting, worker

STEPS = "tests.prepare.standin"
SHORT: dict[str, Any] = {"least": 0.1, "most": 0.2}  # seconds: films of half a second have several clips


def film(path: Path, log: Path, **more: Any) -> Path:
    """A film of half a second that is all right, but for what `more` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seconds": "1/2", "fps": 25, "name": path.as_posix(), "log": str(log)} | more))
    return path


def config(**more: Any) -> PrepareConfig:
    return PrepareConfig(**(SHORT | more))


def running(jobs: int = 1, **more: Any) -> Running:
    return Running(jobs=jobs, devices=("cpu",), steps=STEPS, **more)


def rows(out: Path) -> list[Row]:
    """The manifest, without the seconds, which no two runs share."""
    found = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    for row in found:
        for step in row["steps"].values():
            step.pop("seconds")
    return found


def result(out: Path) -> tuple[list[Row], dict[str, bytes]]:
    """All that counts of a run's result: the manifest, and every clip."""
    return rows(out), {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted((out / "clips").rglob("*")) if p.is_file()}


def lines(log: Path) -> list[str]:
    """The steps that were begun."""
    return log.read_text().splitlines() if log.exists() else []


class Here:
    """Works in this process, one task at a time: for what is not about processes."""

    def __init__(self, setting: Setting) -> None:
        self._work, self._done = worker(setting, 0), list[Done]()

    @property
    def free(self) -> int:
        return int(not self._done)

    @property
    def busy(self) -> int:
        return len(self._done)

    def submit(self, task: Task) -> None:
        self._done.append(Done(task, self._work(task.payload, lambda step, limit: None)))

    def wait(self, timeout: float | None = None) -> list[Done]:
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        pass


def in_this_process(patch: pytest.MonkeyPatch) -> None:
    """From here on the engine works without other processes."""

    def crew(store: Any, config: PrepareConfig, running: Running, say: object) -> Crew:
        return Here(Setting(store.place, config, running))

    patch.setattr("latentsync.prepare.engine._crew", crew)
