"""From a folder of footage to a folder of clips: what is to be done, in which order, and what becomes of it.

This process only decides and keeps the books; what takes time is done by the processes of a `Pool`, or by those of a Ray cluster. Everything that
is finished lies in OUT/.work under the content of the file it belongs to, so a run that was ended anyhow goes on where it was, and the books are
written from nothing but those records: an interrupted run ends up with the same as one that never was.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from latentsync.errors import OutputError, UsageError, WeightsError
from latentsync.hub import locked
from latentsync.prepare import flow, manifest, report
from latentsync.prepare.config import PrepareConfig, Running, thresholds
from latentsync.prepare.pool import Done, Failure, Pool, Task
from latentsync.prepare.raw import Item, find
from latentsync.prepare.records import Span
from latentsync.prepare.store import SCRATCH, Local, Store, is_remote, open_store
from latentsync.prepare.work import Job, Setting, Worked, clip_name, folder, read_record, span_name, write_record

SETTINGS = "prepare.json"
_MARKS = ".work/contents.json"
_MARK_EVERY = 30.0  # seconds between two writings of the marks
_AHEAD = 64  # files whose bytes are read before their turn comes
_POLL = 0.5  # seconds: how soon a wish to stop is heard

Say = Callable[[str], None]


@dataclass
class Progress:
    """Where a run stands."""

    files: int = 0
    files_done: int = 0
    clips: int = 0
    kept: int = 0
    seconds: float = 0.0  # since the start
    film: float = 0.0  # seconds of the films that were finished in this run
    worked: int = 0  # films that took work in this run
    steps: dict[str, StepTime] = field(default_factory=dict)

    @property
    def slowest(self) -> str:
        """The step that most time went into; empty before any."""
        return max(self.steps, key=lambda s: self.steps[s].seconds, default="")


@dataclass
class StepTime:
    """What went into a step in this run."""

    count: int = 0
    seconds: float = 0.0  # of the processes, added up
    media: float = 0.0  # seconds of film that it saw

    @property
    def speed(self) -> float:
        """Seconds of film for each second of work."""
        return self.media / self.seconds if self.seconds else 0.0


@dataclass
class Outcome:
    """What a run came to."""

    out: str
    progress: Progress
    stopped: bool = False
    notes: list[str] = field(default_factory=list)
    tally: report.Tally | None = None  # of the manifest; None where the run was stopped


class Crew(Protocol):
    """Those who work: `Pool` here, `RayCrew` on a cluster."""

    @property
    def free(self) -> int: ...

    @property
    def busy(self) -> int: ...

    def submit(self, task: Task) -> None: ...

    def wait(self, timeout: float | None = None) -> list[Done]: ...

    def close(self) -> None: ...


def prepare(
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: PrepareConfig | None = None,
    running: Running | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    say: Say | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Make clips of the footage in `raw`, in `out`: clips/, manifest.jsonl, and .work/, by which a later call goes on. `raw` is only read.

    raw: a folder, a list of files, or an address; out: a folder or an address. stop: asked often; True ends the run as soon as possible, and the
    same call goes on from there. Raises InputError without footage, OutputError where `out` cannot be written, UsageError where the two lie within
    each other or another run works in `out`, and what the steps raise that concerns all files, such as WeightsError.
    """
    config, running = config or PrepareConfig(), running or Running()
    raw, out = os.fspath(raw), os.fspath(out)
    _apart(raw, out)
    items, unseen = find(raw)
    if running.steps == Running.steps:
        preflight(config, running)
    store = open_store(out)
    with ExitStack() as stack:
        stack.enter_context(_alone(store))
        store.remove(SCRATCH)  # half files of a run that was killed
        settings = {"raw": raw if is_remote(raw) else os.path.abspath(os.path.expanduser(raw)), "values": thresholds(config)}
        store.write(SETTINGS, (json.dumps(settings, indent=1) + "\n").encode("utf-8", "backslashreplace"))
        crew = _crew(store, config, running, say or (lambda _: None))
        stack.callback(crew.close)
        outcome = _Run(items, unseen, store, config, running, crew, progress, say or (lambda _: None), stop).go()
        crew.close()
        if not outcome.stopped:
            outcome.tally = report.write(store)
        return outcome


def preflight(config: PrepareConfig, running: Running) -> None:
    """Raise what would stop the first clip after hours of work: weights and face finders that are not here, a device that is not there."""
    from latentsync import device
    from latentsync.metrics import quality, sync
    from latentsync.prepare.steps import faces

    if not running.cluster:  # other machines have other devices
        for name in running.devices:
            device.choose(name, "fp32")
    home = running.home or None
    needed: list[tuple[Callable[[], object], str]] = []  # and what to do otherwise, where the error does not say it
    if config.does("faces") or (config.does("sync") and not config.does("align")):
        small = "; or take the small face finder that comes with the package: --face-backend demo" if config.face_backend != "demo" else ""
        needed.append((lambda: faces.finder(config.face_backend, home), small))
    if config.does("sync"):
        needed.append(((lambda: sync.load_syncnet_v2(home)) if config.sync_model == "syncnet" else sync.load_demo_judge, ""))
    if config.does("quality") and config.quality_model == "hyperiqa":
        needed.append((lambda: quality.load_hyperiqa(home), ""))
    lacking = []  # all of it is named at once
    for load, otherwise in needed:
        try:
            load()
        except WeightsError as e:
            lacking.append(f"{e}{otherwise}")
    if lacking:
        raise WeightsError("\n".join(lacking))


def _apart(raw: str, out: str) -> None:
    if is_remote(raw) != is_remote(out):
        return
    if is_remote(raw):
        a, b = raw.rstrip("/") + "/", out.rstrip("/") + "/"
        within = a.startswith(b) or b.startswith(a)
    else:
        a, b = os.path.realpath(os.path.expanduser(raw)), os.path.realpath(os.path.expanduser(out))
        within = Path(a).is_relative_to(b) or Path(b).is_relative_to(a)
    if within:
        raise UsageError(f"{raw} and {out} lie within each other; footage is only read, so choose a folder of its own for the clips")


def _alone(store: Store) -> Any:
    if not isinstance(store, Local):
        return nullcontext()

    def taken() -> None:
        raise UsageError(f"another `latentsync prepare` works in {store.place}; wait for it, or choose another folder")

    try:
        (store.root / ".work").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"cannot write in {store.place}: {e.strerror or e}; choose another folder") from e
    return _Lock(store.root / ".work" / "run", taken)


class _Lock:
    """`hub.locked`, whose words are about weights, in words about this."""

    def __init__(self, path: Path, taken: Callable[[], None]) -> None:
        self._inner = locked(path, taken)
        self._path = path

    def __enter__(self) -> None:
        try:
            self._inner.__enter__()
        except WeightsError as e:
            raise OutputError(f"cannot write in {self._path.parent}: {e.__cause__}; choose another folder") from e

    def __exit__(self, *about: Any) -> None:
        self._inner.__exit__(*about)


def _crew(store: Store, config: PrepareConfig, running: Running, say: Say) -> Crew:
    setting = Setting(store.place, config, running)
    cores = cores_here()
    if running.cluster:
        from latentsync.prepare.cluster import RayCrew

        return RayCrew(setting, running, say)
    jobs = running.jobs or cores
    return Pool("latentsync.prepare.work:worker", setting, jobs, threads=max(1, cores // jobs))


def cores_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _File:
    """A content that is being worked on."""

    item: Item
    digest: str
    way: flow.Way | None = None
    clips: tuple[Span, ...] = ()
    left: tuple[Span, ...] = ()
    open: set[Span] = field(default_factory=set)  # clips that are not finished
    kept: set[Span] = field(default_factory=set)
    worked: bool = False


class _Run:
    """The books of one run."""

    def __init__(
        self,
        items: list[Item],
        unseen: list[tuple[str, str]],
        store: Store,
        config: PrepareConfig,
        running: Running,
        crew: Crew,
        progress: Callable[[Progress], None] | None,
        say: Say,
        stop: Callable[[], bool],
    ) -> None:
        self._items, self._unseen, self._store, self._config, self._running = items, unseen, store, config, running
        self._crew, self._show, self._say, self._stop = crew, progress, say, stop
        self._begin = time.monotonic()
        self._progress = Progress(files=len(items))
        self._notes: list[str] = []
        self._marks: dict[str, list[str]] = self._read_marks()
        self._marked = time.monotonic()
        self._contents: dict[int, str] = {}  # number of the item -> digest
        self._errors: dict[int, str] = {}  # number of the item -> why its bytes could not be read
        self._first: dict[str, int] = {}  # digest -> the first item that holds it
        self._next_bytes = 0  # the first item whose bytes were not asked for
        self._next = 0  # the first item whose turn has not come
        self._files: dict[str, _File] = {}  # open ones
        self._sources: deque[str] = deque()  # digests of files to work on
        self._spans: deque[tuple[str, Span]] = deque()
        self._tasks: dict[str, tuple[str, Any]] = {}  # key -> (kind, what)
        self._tried: Counter[str] = Counter()
        self._idle: Counter[str] = Counter()

    def go(self) -> Outcome:
        """Do all that is to be done, then write the books."""
        while True:
            if self._stop():
                self._keep_marks()
                return Outcome(self._store.place, self._told(), stopped=True, notes=self._notes)
            self._advance()
            while self._crew.free and self._give():
                self._advance()
            self._tell()
            if not self._crew.busy and not self._files and self._next == len(self._items):
                break
            for done in self._crew.wait(_POLL):
                self._finish(done)
        self._keep_marks()
        self._sweep()
        manifest.write(self._store, self._lines())
        return Outcome(self._store.place, self._told(), notes=self._notes)

    # What to do next

    def _advance(self) -> None:
        """Let files whose bytes are known have their turn, in the order of their names: so the first of equal ones is always the same one."""
        while self._next < len(self._items) and len(self._files) < max(4, 2 * (self._crew.free + self._crew.busy)):
            number, item = self._next, self._items[self._next]
            known = self._marks.get(item.name)
            if number not in self._contents and number not in self._errors and known is not None and known[0] == item.mark:
                self._contents[number] = known[1]
            if number in self._errors:
                self._progress.files_done += 1
            elif number in self._contents:
                digest = self._contents[number]
                if digest in self._first:
                    self._progress.files_done += 1
                    self._say(f"{item.name} holds the same as {self._items[self._first[digest]].name}, and is prepared once")
                else:
                    self._first[digest] = number
                    self._open(_File(item, digest))
            else:
                return
            self._next += 1
            self._tell()

    def _give(self) -> bool:
        """Give one task to the crew: clips before files, so that few files are open at a time, and files before the bytes of later ones."""
        if self._spans:
            digest, span = self._spans.popleft()
            file = self._files[digest]
            self._submit(f"clip {digest} {span_name(span)}", ("clip", (digest, span)), Job(file.item.path, file.item.size, digest, span))
            return True
        if self._sources:
            digest = self._sources.popleft()
            file = self._files[digest]
            self._submit(f"file {digest}", ("file", digest), Job(file.item.path, file.item.size, digest))
            return True
        while self._next_bytes < min(len(self._items), self._next + _AHEAD):
            number, item = self._next_bytes, self._items[self._next_bytes]
            self._next_bytes += 1
            known = self._marks.get(item.name)
            if known is None or known[0] != item.mark:
                self._submit(f"bytes {number}", ("bytes", number), Job(item.path, item.size))
                return True
        return False

    def _submit(self, key: str, about: tuple[str, Any], job: Job) -> None:
        self._tasks[key] = about
        self._crew.submit(Task(key, job))

    # What came of it

    def _finish(self, done: Done) -> None:
        kind, what = self._tasks.pop(done.task.key)
        if done.failure is not None and self._again(done, kind, what):
            return
        worked = done.value if isinstance(done.value, Worked) else Worked()
        for spent in worked.spent:
            time_ = self._progress.steps.setdefault(spent.step, StepTime())
            time_.count, time_.seconds, time_.media = time_.count + 1, time_.seconds + spent.seconds, time_.media + spent.media
        error = done.failure.reason if done.failure is not None else worked.error
        if kind == "bytes":
            if error:
                self._errors[what] = error
            else:
                item = self._items[what]
                self._contents[what] = worked.digest
                self._marks[item.name] = [item.mark, worked.digest]
                if time.monotonic() - self._marked > _MARK_EVERY:
                    self._keep_marks()
            return
        digest, span = what if kind == "clip" else (what, None)
        file = self._files[digest]
        file.worked = True
        if error:
            self._fail(file, span, error, done.failure)
        elif not worked.spent:
            self._idle[done.task.key] += 1
            if self._idle[done.task.key] > 2:
                raise OutputError(f"what is kept of {file.item.name} in {self._store.place}/.work vanishes; does another program clear it?")
            span = None  # its film may have to be made again
        if span is None:
            self._look(file)
        else:
            self._look_at_clip(file, span)
            self._close(file)

    def _again(self, done: Done, kind: str, what: Any) -> bool:
        """Whether a task whose process hung or died is tried a second time."""
        failure = done.failure
        assert failure is not None
        self._tried[done.task.key] += 1
        name = self._items[what].name if kind == "bytes" else self._files[what if kind == "file" else what[0]].item.name
        where = f"{name}, {float(what[1].start):.2f}-{float(what[1].end):.2f} s" if kind == "clip" else name
        second = self._tried[done.task.key] > 1
        note = f"{where}: {failure.step}: {failure.reason}; {'given up' if second else 'tried once more'}"
        self._notes.append(note)
        self._say(note)
        if second:
            return False
        self._submit(done.task.key, (kind, what), done.task.payload)
        return True

    def _fail(self, file: _File, span: Span | None, reason: str, failure: Failure | None) -> None:
        """Put on record that a step does not come to an end with this file."""
        record = read_record(self._store, file.digest, span)
        way = self._source_way(record) if span is None else self._clip_way(record, file)
        if way.todo:
            kind = "input" if failure is None else failure.kind
            record[way.key] = {"step": way.todo, "error": f"{way.todo}: {reason}" if failure else reason, "kind": kind, "seconds": 0.0}
            write_record(self._store, file.digest, span, record)

    # Ways

    def _source_way(self, record: flow.Record) -> flow.Way:
        return flow.source_way(record, self._config, self._running.steps, Path)

    def _clip_way(self, record: flow.Record, file: _File) -> flow.Way:
        assert file.way is not None
        return flow.clip_way(record, self._config, self._running.steps, Path, file.way)

    def _record(self, file: _File, span: Span | None, fresh: bool) -> flow.Record:
        """A record; when it is looked at for the first time and --retry is given, without its failures."""
        record = read_record(self._store, file.digest, span)
        if self._running.retry and fresh:
            good = {k: v for k, v in record.items() if "error" not in v}
            if len(good) < len(record):
                write_record(self._store, file.digest, span, good)
                return good
        return record

    def _open(self, file: _File) -> None:
        self._files[file.digest] = file
        self._look(file, fresh=True)

    def _look(self, file: _File, fresh: bool = False) -> None:
        """See how far a file has come, and plan what is left."""
        way = self._source_way(self._record(file, None, fresh))
        if way.todo:
            self._sources.append(file.digest)
            return
        file.way = way
        file.clips, file.left = flow.spans(way, self._config, self._running.steps) if way.keep else ((), ())
        file.open, file.kept = set(file.clips), set()
        waiting = [span for span in file.clips if not self._look_at_clip(file, span, fresh=True, plan=False)]
        film = way.results.get("resample")
        if waiting and film is not None and film.changed and not self._store.has(film.path.as_posix()):  # it was tidied away
            self._sources.append(file.digest)
            return
        self._spans.extend((file.digest, span) for span in waiting)
        self._close(file)

    def _look_at_clip(self, file: _File, span: Span, fresh: bool = False, plan: bool = True) -> bool:
        """Whether a clip is finished; if so and it is kept, it is put in its place."""
        way = self._clip_way(self._record(file, span, fresh), file)
        if not way.todo and way.keep and not self._publish(file, span, way):
            way = way._replace(todo="align")
        if way.todo:
            if plan:
                self._spans.append((file.digest, span))
            return False
        file.open.discard(span)
        self._progress.clips += 1
        if way.keep:
            file.kept.add(span)
            self._progress.kept += 1
        return True

    def _publish(self, file: _File, span: Span, way: flow.Way) -> bool:
        """Give a kept clip its name among the clips. False where its file is gone."""
        made = way.results.get("align") or way.results["cut"]
        moved = way.results.get("shift")
        picture = (made if moved is None else moved).path.as_posix()
        target = manifest.clip_file(file.digest, span)
        pairs = [(picture, target)]
        if hasattr(made, "matrices"):
            pairs.insert(0, (made.matrices.as_posix(), target.removesuffix(".mp4") + ".npz"))
        if not all(self._store.has(name) for name, _ in pairs):
            return False
        for name, other in pairs:
            self._store.link(name, other)
        return True

    def _close(self, file: _File) -> None:
        """When nothing is left to do for a file: its part of the books, and its resampled film goes."""
        if file.way is None or file.open:
            return
        way, config, package = file.way, self._config, self._running.steps
        rows = [manifest.source_row(file.item, file.digest, way, len(file.clips), len(file.left), config, package)]
        for span in sorted({*file.clips, *file.left}):
            if span in file.clips:
                clip = self._clip_way(read_record(self._store, file.digest, span), file)
                rows.append(manifest.clip_row(file.item, file.digest, span, way, clip, config, package))
            else:
                rows.append(manifest.left_row(file.item, file.digest, span, config))
        data = b"".join(map(manifest.line, rows))
        name = f"{folder(file.digest)}/rows.jsonl"
        if self._store.read(name) != data:
            self._store.write(name, data)
        kept = {clip_name(file.digest, span) for span in file.kept}
        place = f"{manifest.CLIPS}/{file.digest[:16]}"
        for there in self._store.names(place):
            if there.rpartition(".")[0] not in kept:
                self._store.remove(f"{place}/{there}")
        film = way.results.get("resample")
        if film is not None and film.changed and not self._running.keep_work and self._store.has(film.path.as_posix()):
            self._store.remove(film.path.as_posix())
        if file.worked and "check" in way.results:
            self._progress.film += float(way.results["check"].duration)
            self._progress.worked += 1
        self._progress.files_done += 1
        del self._files[file.digest]

    # Books

    def _sweep(self) -> None:
        """Take clips away whose footage is no longer there. Their numbers stay in .work/, should it come back."""
        known = {digest[:16] for digest in self._first}
        for name in self._store.names(manifest.CLIPS):
            if name not in known:
                self._store.remove(f"{manifest.CLIPS}/{name}")

    def _lines(self) -> Iterator[bytes]:
        for name, reason in self._unseen:
            yield manifest.line(manifest.unread_row(name, reason))
        for number, item in enumerate(self._items):
            if number in self._errors:
                yield manifest.line(manifest.unread_row(item.name, self._errors[number]))
                continue
            digest = self._contents[number]
            first = self._first[digest]
            if first != number:
                yield manifest.line(manifest.same_row(item.name, digest, self._items[first].name))
            else:
                yield self._store.read(f"{folder(digest)}/rows.jsonl") or b""

    def _read_marks(self) -> dict[str, list[str]]:
        data = self._store.read(_MARKS)
        try:
            found = json.loads(data) if data else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _keep_marks(self) -> None:
        self._marked = time.monotonic()
        names = {item.name for item in self._items}
        self._store.write(_MARKS, json.dumps({k: v for k, v in self._marks.items() if k in names}).encode("utf-8", "surrogatepass"))

    def _told(self) -> Progress:
        self._progress.seconds = time.monotonic() - self._begin
        return self._progress

    def _tell(self) -> None:
        if self._show is not None:
            self._show(self._told())
