"""What one process does: a step of a file after the other, each result kept as soon as it is there."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from latentsync.errors import InputError, NoFaceError, OutputError
from latentsync.prepare import flow
from latentsync.prepare.config import PrepareConfig, Running
from latentsync.prepare.pool import Tell
from latentsync.prepare.raw import Fetched
from latentsync.prepare.records import Span, to_plain
from latentsync.prepare.store import Remote, Store, open_store

SOURCE = "@source"  # in a record: the footage's own file, wherever it lies
PER_SECOND = 10.0  # seconds that a step may take for each second of film, above the limit
PER_MEGABYTE = 10.0  # the same, where the length is not known yet
_ROOM = 64 << 20  # bytes: with less left, what could not be written is no fault of the file


class Setting(NamedTuple):
    """What every process is told once."""

    out: str
    config: PrepareConfig
    running: Running


class Job(NamedTuple):
    """What a task is about: the bytes of a file (`hash`), a whole file, or a span of it."""

    path: str
    size: int
    digest: str = ""
    span: Span | None = None


class Spent(NamedTuple):
    """Time that a step took."""

    step: str
    seconds: float
    media: float  # seconds of film


class Worked(NamedTuple):
    """What comes of a job."""

    digest: str = ""
    error: str = ""
    spent: tuple[Spent, ...] = ()


def folder(digest: str) -> str:
    """Where everything about one content lies."""
    return f".work/{digest[:2]}/{digest}"


def span_name(span: Span) -> str:
    """Milliseconds, so that names sort by time."""
    return f"{round(span.start * 1000):08d}-{round(span.end * 1000):08d}"


def clip_name(digest: str, span: Span) -> str:
    """The same content and span have the same name, everywhere and always."""
    return f"{digest[:16]}-{span_name(span)}"


def record_name(digest: str, span: Span | None) -> str:
    """Where a record lies."""
    return f"{folder(digest)}/{'source' if span is None else span_name(span)}.json"


def read_record(store: Store, digest: str, span: Span | None = None) -> flow.Record:
    """The numbers that are there so far; none where nothing is, or where it cannot be read."""
    data = store.read(record_name(digest, span))
    try:
        found = json.loads(data) if data else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write_record(store: Store, digest: str, span: Span | None, record: flow.Record) -> None:
    """Keep a record, whole or not at all."""
    store.write(record_name(digest, span), json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def worker(setting: Setting, number: int) -> Worker:
    """The handler of process `number`."""
    return Worker(setting, number)


class Worker:
    """Does jobs. Networks that steps load stay loaded."""

    def __init__(self, setting: Setting, number: int) -> None:
        self._config, self._running = setting.config, setting.running
        self._store = open_store(setting.out)
        devices = setting.running.devices
        self._device, self._number = devices[number % len(devices)], number
        self._fetched = Fetched()
        self._held = ""  # the content whose files are kept here, where results lie behind an address
        self._made: dict[Any, Any] = {}

    def __call__(self, job: Job, tell: Tell) -> Worked:
        limit = self._running.time_limit + PER_MEGABYTE * job.size / 1e6
        tell("fetch", limit)
        try:
            if not job.digest:
                return Worked(digest=self._fetched.digest(job.path))
            path = self._fetched.path(job.path)
        except InputError as e:
            return Worked(error=_without(str(e), job.path))
        if isinstance(self._store, Remote) and job.digest != self._held:
            self._store.forget()  # until then the resampled film is fetched only once for all clips of it
        self._held = job.digest
        spent: list[Spent] = []
        if job.span is None:
            self._do(job, path, None, tell, limit, spent)
        else:
            find = self._finder(path, job)
            source = flow.source_way(read_record(self._store, job.digest), self._config, self._running.steps, find)
            if not source.todo:
                self._do(job, path, source, tell, limit, spent)
        return Worked(digest=job.digest, spent=tuple(spent))

    def _do(self, job: Job, path: Path, source: flow.Way | None, tell: Tell, limit: float, spent: list[Spent]) -> None:
        """Measure one step after the other, until nothing is left to measure."""
        find, package = self._finder(path, job), self._running.steps
        record = read_record(self._store, job.digest, job.span)
        while True:
            if source is None:
                way = flow.source_way(record, self._config, package, find)
            else:
                way = flow.clip_way(record, self._config, package, find, source)
            if not way.todo:
                return
            length = job.span.seconds if job.span else float(way.results["check"].duration) if "check" in way.results else 0.0
            tell(way.todo, self._running.time_limit + PER_SECOND * length if length else limit)
            begin = time.monotonic()
            entry = self._measure(job, path, way)
            seconds = round(time.monotonic() - begin, 3)
            if not length and "result" in entry:  # check has just found it out
                length = float(Fraction(entry["result"].get("duration", "0")))
            record[way.key] = {"step": way.todo, **entry, "seconds": seconds}
            write_record(self._store, job.digest, job.span, record)
            spent.append(Spent(way.todo, seconds, length))

    def _measure(self, job: Job, path: Path, way: flow.Way) -> flow.Entry:
        step = flow.TABLE[way.todo]
        prefix = f"{folder(job.digest)}/{span_name(job.span) + '-' if job.span else ''}{way.key}."
        resampled = way.results.get("resample")
        with self._store.scratch() as scratch:
            span = job.span or Span(Fraction(0), Fraction(0))
            media = path if resampled is None else resampled.path
            given = flow.Given(
                self._config, path, media, span, way.results, scratch, self._tool, self._device, self._running.home, self._running.steps, self._number
            )
            try:
                result = step.measure(step.load(self._running.steps), given)
            except (InputError, NoFaceError) as e:
                return {"error": _without(str(e), job.path, str(path), str(media)), "kind": "input"}
            except (OSError, OutputError) as e:
                full = isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)
                if full or shutil.disk_usage(scratch).free < _ROOM:
                    raise OutputError(f"no room for the step {way.todo} of {job.path}: {e}; make room and start again") from e
                return {"error": f"{way.todo}: {_without(str(e), job.path, str(path), str(media))}", "kind": "input"}

            def where(file: Path) -> str:
                if file == path:
                    return SOURCE
                return f"{prefix}{file.relative_to(scratch).as_posix()}"

            plain = to_plain(result, where)
            for file in sorted(scratch.iterdir()):
                self._store.put(file, f"{prefix}{file.name}")
        return {"result": plain}

    def _finder(self, path: Path, job: Job) -> flow.Find:
        def find(name: str) -> Path:
            return path if name == SOURCE else self._store.get(name)

        return find

    def _tool(self, name: Any, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def _without(text: str, *places: str) -> str:
    """An error without the file's place, which differs between machines and is said anyway."""
    for place in places:
        text = text.replace(f"cannot read {place}:", "cannot be read:")
        text = text.removeprefix(f"{place}: ").removeprefix(f"{place} ").replace(place, "the file")
    return text
