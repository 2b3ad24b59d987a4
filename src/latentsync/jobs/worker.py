"""A process that works on jobs, one after another, on one device, with one model loaded.

It ends by itself as soon as its parent is gone, so that no stray process works on. What it cannot know how to mend, such as a GPU that answers
nothing any more, ends it: its job goes back into the queue, and the crew starts another one.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from latentsync.errors import DeviceError, LatentSyncError, OutputError
from latentsync.jobs.alive import Sign
from latentsync.jobs.errors import Cancelled, Fenced, Leaving, Stopped
from latentsync.jobs.folders import Folders, for_people, new_id
from latentsync.jobs.limits import Limits
from latentsync.jobs.records import Job, WorkerState
from latentsync.jobs.records import Worker as Record
from latentsync.jobs.store import Claim, Pulse, Store

SIGNS = "workers"  # folder of the workers' signs of life, below the root
LOGS = "logs"
IDLE = 0.2  # seconds between looks at the queue
BEAT = 0.4  # seconds between words of progress, and looks at whether the job is to be cancelled
DEAF = 2.0  # seconds until a database that failed is asked again
SEEN = 5.0  # seconds between words of a worker about itself, where nothing changes
SPACE = 2.0  # seconds between looks at the disk
_LOG_BYTES = 4 << 20  # a log that is longer is put aside when its worker starts


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a worker needs to know."""

    root: str
    store_url: str
    models: dict[str, str]  # name for people -> name or folder to load; the first is loaded at the start
    device: str = "auto"
    dtype: str = "auto"
    home: str | None = None
    limits: Limits = field(default_factory=Limits)
    number: int = 0
    id: str = ""  # "": a new one
    factory: str = "latentsync.jobs.work:performer"  # module:function that makes a `Performer` of this


class Made(NamedTuple):
    """What came of a job."""

    out: str  # name of the file in the job's folder
    result: dict[str, Any]  # of `Result.plain`, without paths


class Performer(Protocol):
    """What does jobs; see `work.Resident`."""

    @property
    def name(self) -> str:
        """Of the model that is loaded."""

    def prepare(self, say: Callable[[str], None]) -> None:
        """Load what the first job will need. Raises DeviceError where none can be done here."""

    def perform(self, job: Job, folder: Path, limits: Limits, said: Pulse, check: Callable[[], None], number: int) -> Made:
        """Do a job in its folder. How far it is stands in `said`; `check` is asked often, and ends it by raising; `number` names the attempt."""


def host() -> str:
    """This machine, as claims name it."""
    return socket.gethostname()


def work(setting: Setting, stop: threading.Event) -> int:
    """Work on jobs until `stop` is set; the job at work is put back. Gives an exit code. Raises OutputError where store or root cannot be used."""
    setting = replace(setting, id=setting.id or new_id())
    folders = Folders(Path(setting.root), setting.limits.min_free_bytes)
    store = Store(setting.store_url)
    try:
        with Sign(folders.root / SIGNS / setting.id):
            return _Life(setting, folders, store, stop).run()
    finally:
        with contextlib.suppress(OutputError):
            store.leave(setting.id)
        store.close()


class _Life:
    """One worker: the work in this thread, its words to the store in another."""

    def __init__(self, setting: Setting, folders: Folders, store: Store, stop: threading.Event) -> None:
        self._setting, self._folders, self._store, self._stop = setting, folders, store, stop
        self._record = Record(
            id=setting.id, host=host(), device=setting.device, state="starting", model="", message="", job=None, jobs_done=0, seen=time.time()
        )
        self._lock = threading.Lock()  # of what follows
        self._claim: Claim | None = None
        self._said = Pulse()
        self._began = 0.0
        self._cancel = self._fenced = False
        self._broken: LatentSyncError | None = None

    def run(self) -> int:
        self._say("starting")
        over = threading.Event()
        beat = threading.Thread(target=self._beat, args=(over,), name="latentsync-beat", daemon=True)
        beat.start()
        try:
            return self._work()
        finally:
            over.set()
            beat.join()

    def _work(self) -> int:
        s = self._setting
        module, _, function = s.factory.partition(":")
        performer: Performer = getattr(importlib.import_module(module), function)(s)
        try:
            performer.prepare(lambda what: self._say("loading", what))
            self._say("idle", model=performer.name)
        except DeviceError as e:
            self._say("dead", str(e))
            return e.exit_code
        except LatentSyncError as e:  # another model may do
            self._say("idle", str(e))
        while not self._stop.is_set():
            taken = self._claimed(list(s.models))
            if taken is None:
                self._stop.wait(IDLE)
            elif not self._do(*taken, performer):
                return DeviceError.exit_code
        return 0

    def _claimed(self, models: list[str]) -> tuple[Claim, Job] | None:
        try:
            return self._store.claim(self._setting.id, host(), models) if self._store.waiting(models) else None
        except OutputError:  # the database is busy or away, or the disk full: it may be better later
            self._stop.wait(DEAF)
            return None

    def _do(self, claim: Claim, job: Job, performer: Performer) -> bool:
        """One job. False where this process had better end, and another one start."""
        end: dict[str, Any]
        folder = self._folders.of(job.id)
        with self._lock:
            self._claim, self._said, self._began = claim, Pulse(message="starting", previews=job.previews), time.monotonic()
            self._cancel = self._fenced = False
            self._broken = None
        self._say("busy", job=job.id)
        try:
            made = performer.perform(job, folder, self._setting.limits, self._said, self._check, claim.token)
            end = {"state": "done", "result": made.result, "out": made.out}
            self._record = replace(self._record, jobs_done=self._record.jobs_done + 1)
        except Cancelled:
            end = {"state": "cancelled", "message": "cancelled"}
        except Stopped as e:
            end = {"released": isinstance(e, Leaving)}
        except LatentSyncError as e:
            end = {"state": "failed", "error": for_people(str(e), folder, job.names), "error_kind": type(e).__name__, "exit_code": e.exit_code}
        except BaseException as e:
            self._alone()
            with contextlib.suppress(LatentSyncError):
                first = (str(e).splitlines() or ["no reason given"])[0]
                self._store.note(claim, f"{type(e).__name__}: {for_people(first, folder, job.names)[:200]}")
            raise
        self._alone()
        if end.get("state") != "done":
            _drop(folder, claim)
        self._end(claim, end, folder)
        self._say("idle", model=performer.name)
        return end.get("error_kind") != "DeviceError"

    def _end(self, claim: Claim, end: dict[str, Any], folder: Path) -> None:
        """Write down how a job ended, or that it goes back. Raises OutputError where the database fails for long: then the job begins anew."""
        for pause in (0.5, 1.0, 2.0, 4.0, None):
            try:
                if "state" in end:
                    self._store.finish(claim, keep=self._setting.limits.keep_hours * 3600, **_last(self._said), **end)
                elif end["released"]:
                    self._store.release(claim)
                return
            except Fenced:
                _drop(folder, claim)
                return
            except OutputError:
                if pause is None:
                    raise
                time.sleep(pause)

    def _check(self) -> None:
        """Raises what ends the job at work."""
        if self._fenced:
            raise Fenced("the job was taken away")
        if self._cancel:
            raise Cancelled("cancelled")
        if self._stop.is_set():
            raise Leaving("the worker leaves")
        if self._broken is not None:
            raise self._broken

    def _alone(self) -> None:
        """From now on the other thread says nothing of the job."""
        with self._lock:
            self._claim = None

    def _say(self, state: WorkerState, message: str = "", *, model: str | None = None, job: str | None = None) -> None:
        self._record = replace(self._record, state=state, message=message, job=job, model=self._record.model if model is None else model)
        with contextlib.suppress(OutputError):
            self._store.say(self._record)

    def _beat(self, over: threading.Event) -> None:
        seen = looked = time.monotonic()
        while not over.wait(BEAT):
            now = time.monotonic()
            with self._lock:
                if self._claim is not None:
                    self._pulse(self._claim)
                    if now - looked >= SPACE:
                        looked = now
                        self._look(self._claim)
            if now - seen >= SEEN:
                seen = now
                with contextlib.suppress(OutputError):
                    self._store.say(self._record)

    def _pulse(self, claim: Claim) -> None:
        try:
            self._said.seconds = time.monotonic() - self._began
            self._cancel = self._store.pulse(claim, replace(self._said))
            self._setting.limits.check_work(self._said.seconds)
        except Fenced:
            self._fenced = True
        except OutputError:
            pass  # the database is busy or away; the lease is long, and the end of the job will tell
        except LatentSyncError as e:
            self._broken = e

    def _look(self, claim: Claim) -> None:
        """At the disk."""
        folder = self._folders.of(claim.job)
        try:
            self._folders.check_space()
            with contextlib.suppress(OSError):
                self._setting.limits.check_written(sum(p.stat().st_size for p in folder.iterdir() if p.name.startswith((".latentsync-", "result-"))))
        except LatentSyncError as e:
            self._broken = e


def _last(said: Pulse) -> dict[str, Any]:
    """What stays of the progress when a job ends."""
    return {"done": said.done, "total": said.total, "step": said.step, "steps": said.steps, "seconds": said.seconds, "previews": said.previews}


def _drop(folder: Path, claim: Claim) -> None:
    """What an attempt made that does not count any more."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"*-{claim.token}.*"):
            path.unlink(missing_ok=True)


def live(setting: Setting) -> None:
    """The life of a process that a crew has started."""
    stop = threading.Event()
    for name in ("SIGINT", "SIGHUP"):  # Ctrl-C strikes the whole group; the parent decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin for each other take 20 times as long where other programs work, too
    _log_to(Path(setting.root) / LOGS / f"worker-{setting.number}.log")
    raise SystemExit(work(setting, stop))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _log_to(path: Path) -> None:
    """What libraries print, and the traceback of a death, go to a file of the keeper's and to nobody else."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_suffix(".old.log"))
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
