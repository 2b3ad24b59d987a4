"""The workers of a desk: one for each device, started anew where one dies, and ended where one does not listen."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import connection

from latentsync.errors import LatentSyncError, OutputError
from latentsync.jobs import worker
from latentsync.jobs.folders import Folders, new_id
from latentsync.jobs.store import Store

GRACE = 60.0  # seconds that a cancelled job may go on, as in a long step; then its process is ended
LEAVE = 15.0  # seconds that workers have to put back what they do
PAUSES = (0.5, 2.0, 5.0, 15.0, 30.0, 60.0)  # seconds before a worker is started that has died so often in a row
STEADY = 60.0  # seconds of life after which a death is the first in a row
LOOK = 0.5  # seconds between looks


class Crew:
    """Processes of this machine. Those of other machines take jobs from the same store without being known here."""

    def __init__(self, store: Store, folders: Folders, settings: Sequence[worker.Setting]) -> None:
        """One process for each setting."""
        self._store, self._folders = store, folders
        self._members = [_Member(s) for s in settings]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="latentsync-crew", daemon=True)

    def start(self) -> None:
        """Start the processes, and the thread that looks after them."""
        for member in self._members:
            member.start()
        self._thread.start()

    @property
    def pids(self) -> list[int]:
        """Of the processes that are alive."""
        return [m.process.pid for m in self._members if m.process is not None and m.process.is_alive() and m.process.pid is not None]

    def close(self) -> None:
        """End the processes; what they work on goes back into the queue."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        there = [m for m in self._members if m.process is not None]
        for member in there:
            member.ask_to_leave()
        until = time.monotonic() + LEAVE
        for member in there:
            member.wait(max(0.0, until - time.monotonic()))
        for member in there:
            member.end()
            self._forget(member, blame=False)

    def _keep(self) -> None:
        while not self._over.is_set():
            for member in self._members:
                with contextlib.suppress(OutputError):  # the database is away for a moment
                    self._look(member)
            sentinels = [m.process.sentinel for m in self._members if m.process is not None]
            if sentinels:
                connection.wait(sentinels, LOOK)
            else:
                self._over.wait(LOOK)

    def _look(self, member: _Member) -> None:
        if member.process is None:
            if time.monotonic() >= member.begin_at:
                member.start()
        elif not member.process.is_alive():
            member.fallen()
            self._forget(member, blame=True)
        elif self._stuck(member):
            member.process.kill()

    def _stuck(self, member: _Member) -> bool:
        seconds = member.setting.limits.job_seconds
        late = bool(seconds) and self._store.overlong(member.setting.id, seconds + GRACE)
        if late:
            self._store.stop(member.setting.id)
        return late or self._store.overdue(member.setting.id, GRACE)

    def _forget(self, member: _Member, *, blame: bool) -> None:
        """The process of this member is no more: its job is for others."""
        gone = member.setting.id
        self._store.reap(member.setting.limits, lambda worker, host: worker == gone, blame=blame)
        self._store.leave(gone)
        with contextlib.suppress(OSError):
            (self._folders.root / worker.SIGNS / gone).unlink(missing_ok=True)


class _Member:
    """One place in the crew: a process, or the pause until the next."""

    def __init__(self, setting: worker.Setting) -> None:
        self.setting = setting
        self.process: multiprocessing.process.BaseProcess | None = None
        self.begin_at = 0.0
        self._since = 0.0
        self._deaths = 0

    def start(self) -> None:
        self.setting = replace(self.setting, id=new_id())
        context = multiprocessing.get_context("spawn")  # not forked: threads of OpenCV and contexts of GPUs do not survive that
        self.process = context.Process(target=worker.live, args=(self.setting,), daemon=True, name=f"latentsync-worker-{self.setting.number}")
        self._since = time.monotonic()
        try:
            self.process.start()
        except OSError:  # no more processes, or no memory for one
            self._rest()

    def fallen(self) -> None:
        """It has ended by itself."""
        if self.process is not None:
            self.process.join()
        self._rest()

    def _rest(self) -> None:
        now = time.monotonic()
        self._deaths = 1 if now - self._since > STEADY else self._deaths + 1
        self.begin_at = now + PAUSES[min(self._deaths, len(PAUSES)) - 1]
        self.process = None

    def ask_to_leave(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def wait(self, seconds: float) -> None:
        if self.process is not None:
            self.process.join(seconds)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def resolved(devices: Sequence[str]) -> list[str]:
    """Devices by name, one for each worker; "all" is every GPU of this machine. Raises LatentSyncError where that cannot be found out."""
    if "all" not in devices:
        return list(devices)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:  # what knows of GPUs is large, and not needed here again
        try:
            found = other.submit(_every).result()
        except OSError as e:
            raise LatentSyncError(f"cannot find out which GPUs are here: {e}; name them, such as --device cuda:0") from e
    return list(dict.fromkeys(d for device in devices for d in (found if device == "all" else [device])))


def _every() -> list[str]:
    from latentsync.device import every

    return every()
