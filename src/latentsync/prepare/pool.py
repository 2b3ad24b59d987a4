"""Processes that work on tasks: a bounded number, a time limit for every step, and the death of any of them survived.

They are spawned, not forked: OpenCV's threads do not survive a fork. A process lives on from task to task, so networks are loaded once. It ends by
itself as soon as its parent is gone, however that went, so no stray process writes into a folder that a later run works on.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from typing import Any, NamedTuple

from latentsync import errors

_START_LIMIT = 300.0  # seconds until a fresh process begins its first task: it imports much, and network disks are slow
_LEAVE_LIMIT = 5.0  # seconds that idle processes have to end in good order
_TASKS_EACH = 500  # then a process is replaced: what libraries leak is bounded

Tell = Callable[[str, float], None]  # (step, seconds it may take): says that a step begins
Handler = Callable[[Any, Tell], Any]


class Task(NamedTuple):
    """Something to do. `payload` and what comes of it must be such that processes can send them."""

    key: str
    payload: Any


class Failure(NamedTuple):
    """Why a task came to no end."""

    kind: str  # hung, died or fault
    step: str  # at which
    reason: str


class Done(NamedTuple):
    """A task that came to an end: with a value, or with a failure."""

    task: Task
    value: Any = None
    failure: Failure | None = None


class Pool:
    """`jobs` processes. Each builds its handler by `factory` ("module:function", called with `setting` and the process's number)."""

    def __init__(self, factory: str, setting: Any, jobs: int, *, threads: int = 1) -> None:
        self._factory, self._setting, self._threads = factory, setting, threads
        self._workers: list[_Worker | None] = [None] * jobs

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def free(self) -> int:
        """How many tasks can be taken."""
        return sum(w is None or w.task is None for w in self._workers)

    @property
    def busy(self) -> int:
        """How many tasks are being done."""
        return len(self._workers) - self.free

    def submit(self, task: Task) -> None:
        """Give a task to a process that has none; `free` says whether there is one."""
        order = sorted(range(len(self._workers)), key=lambda i: self._workers[i] is None)  # one that is warm already
        number = next(i for i in order if (w := self._workers[i]) is None or w.task is None)
        worker = self._workers[number]
        if worker is not None and (worker.done >= _TASKS_EACH or not worker.process.is_alive()):
            worker.end()
            worker = None
        if worker is None:
            worker = self._workers[number] = _Worker(self._factory, self._setting, number, self._threads)
        worker.give(task)

    def wait(self, timeout: float | None = None) -> list[Done]:
        """Tasks that came to an end, after waiting for one or until `timeout` seconds have passed.

        Raises what no other file would fare better with: an error of the package that a handler did not deal with, such as missing weights.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            found: list[Done] = []
            for number, worker in enumerate(self._workers):
                if worker is not None and worker.task is not None:
                    task = worker.task
                    done = worker.look()
                    if done is not None:
                        found.append(Done(task, *done))
                        if done[1] is not None:
                            worker.end()
                            self._workers[number] = None
            left = until - time.monotonic()
            working = [w for w in self._workers if w is not None and w.task is not None]
            if found or left <= 0 or not working:
                return found
            deadline = min(w.deadline for w in working) - time.monotonic()
            pause = max(0.0, min(left, deadline))
            connection.wait([p for w in working for p in (w.pipe, w.process.sentinel)], None if pause == math.inf else pause)

    def close(self) -> None:
        """End all processes: at once what works on something; the others leave by themselves, and clear away what they fetched."""
        there = [w for w in self._workers if w is not None]
        idle = [w for w in there if w.task is None]
        for worker in idle:
            worker.pipe.close()
        until = time.monotonic() + _LEAVE_LIMIT
        for worker in idle:
            worker.process.join(max(0.0, until - time.monotonic()))
        for worker in there:
            worker.end()
        self._workers = [None] * len(self._workers)


class _Worker:
    """One process, seen from its parent."""

    def __init__(self, factory: str, setting: Any, number: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_live, args=(theirs, factory, setting, number, threads), daemon=True, name=f"latentsync-prepare-{number}"
        )
        self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.done = 0
        self.step, self.limit, self.deadline = "start", _START_LIMIT, math.inf

    def give(self, task: Task) -> None:
        self.task = task
        self._begin("start", _START_LIMIT)
        with contextlib.suppress(OSError):  # it died just now, which `look` finds out
            self.pipe.send(task.payload)

    def look(self) -> tuple[Any, Failure | None] | None:
        """(value, None) or (None, failure) where the task came to an end."""
        try:
            while self.pipe.poll():
                kind, *rest = self.pipe.recv()
                if kind == "step":
                    self._begin(*rest)
                elif kind == "done":
                    self.task, self.done, self.deadline = None, self.done + 1, math.inf
                    return rest[0], None
                else:
                    return self._fault(*rest)
        except (EOFError, OSError):
            self.process.join(5)
            return None, Failure("died", self.step, _death(self.process.exitcode))
        if not self.process.is_alive() and not self.pipe.poll():
            return None, Failure("died", self.step, _death(self.process.exitcode))
        if time.monotonic() > self.deadline:
            return None, Failure("hung", self.step, f"took more than {self.limit:.0f} s and was cut off")
        return None

    def end(self) -> None:
        self.task = None
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _begin(self, step: str, limit: float) -> None:
        self.step, self.limit, self.deadline = step, limit, time.monotonic() + limit

    def _fault(self, kind: str, text: str, where: str) -> tuple[None, Failure]:
        known = getattr(errors, kind, None)
        if isinstance(known, type) and issubclass(known, errors.LatentSyncError):
            raise known(text)
        return None, Failure("fault", self.step, f"unexpected {kind}: {text} ({where})")


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = "; the system does that where memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code}"


def _live(pipe: Any, factory: str, setting: Any, number: int, threads: int) -> None:
    """The life of a process: tasks from the pipe, until the pipe or the parent is gone."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Ctrl-C strikes the whole group; the parent decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN if name == "SIGINT" else signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin for each other take 20 times as long where other programs work, too
    handler: Handler | None = None
    while True:
        try:
            payload = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if handler is None:
                module, _, function = factory.partition(":")
                handler = getattr(importlib.import_module(module), function)(setting, number)
            value = handler(payload, lambda step, limit: pipe.send(("step", step, limit)))
        except BaseException as e:  # noqa: BLE001 - told to the parent, and the process ends
            last = traceback.extract_tb(e.__traceback__)[-1]
            with contextlib.suppress(OSError):
                pipe.send(("error", type(e).__name__, str(e), f"{os.path.basename(last.filename)}:{last.lineno}"))
            raise SystemExit(1) from None
        pipe.send(("done", value))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
