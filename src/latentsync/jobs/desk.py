"""The desk: where jobs are handed in, looked after, and fetched. The web page and the HTTP service are two faces of it.

with Desk("data", models=["1.6"]) as desk:
    draft = desk.new_folder()
    video, audio = draft.copy("speaker.mp4", "video"), draft.copy("speech.wav", "audio")
    job = desk.submit(draft, Request(video=video.name, audio=audio.name))
    for job in desk.watch(job.id):
        ...
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from latentsync import weights
from latentsync.errors import InputError, OutputError, UsageError, WeightsError
from latentsync.jobs import crew, worker
from latentsync.jobs.alive import Sign, alive
from latentsync.jobs.errors import LimitError, NotFound
from latentsync.jobs.folders import Draft, Folders, for_people, plain_errors
from latentsync.jobs.limits import Limits
from latentsync.jobs.probe import probe
from latentsync.jobs.records import Counts, Job, Model, Request, State, Worker
from latentsync.jobs.store import Store, sqlite_url
from latentsync.options import DEFAULT_MODEL, Options, options

PRIVATE = "latentsync-desk-"  # begins the names of folders that are deleted with their desk
DRAFT_SECONDS = 3600.0  # after which a folder without a job, to which nothing was written, is deleted
SWEEP = 30.0  # seconds between looks for what has expired
REAP = 2.0  # seconds between looks for workers that are gone
LONGEST_KEY = 200  # characters of an idempotency key


class Desk:
    """One folder of jobs, one store of what is known about them, and the workers of this machine. Safe for many threads."""

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        store_url: str | None = None,
        limits: Limits | None = None,
        models: Sequence[str] = (DEFAULT_MODEL,),
        devices: Sequence[str] = ("auto",),
        dtype: str = "auto",
        home: str | Path | None = None,
        workers: bool = True,
    ) -> None:
        """root: where files and the database lie; None: a private folder, deleted at the end. store_url: a database as SQLAlchemy names it, None:
        SQLite in the root. models: names or folders that may be asked for, the first is loaded at the start. devices: one worker for each; "all"
        is every GPU. workers: False where they run elsewhere, on the same root and store.
        """
        self.limits = limits or Limits()
        self._models = _named(models)
        self._devices, self._dtype, self._home = tuple(devices), dtype, home
        self._with_workers = workers
        self._store_url = store_url
        self._private = root is None
        self.root = Path(tempfile.mkdtemp(prefix=PRIVATE) if root is None else root).expanduser().absolute()
        self._folders = Folders(self.root, self.limits.min_free_bytes)
        self._crew: crew.Crew | None = None
        self._sign: Sign | None = None
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="latentsync-desk", daemon=True)
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """What is known about the jobs."""
        assert self._store is not None, "the desk is not open; call start()"
        return self._store

    def start(self) -> Desk:
        """Open: jobs of an earlier desk go on. Raises OutputError, UsageError where folder or store cannot be used."""
        try:
            self._folders.prepare()
            if self._private:
                self._sign = Sign(self.root / "desk")
                _sweep_private(self.root)
            self._store = Store(self._store_url or sqlite_url(self._folders.make_database()))
            self._reap()
            if self._with_workers:
                settings = [self.setting(device, number) for number, device in enumerate(crew.resolved(self._devices))]
                self._crew = crew.Crew(self.store, self._folders, settings)
                self._crew.start()
        except BaseException:
            self.close()
            raise
        self._keeper.start()
        return self

    def close(self) -> None:
        """Close: the jobs at work go back into the queue."""
        self._over.set()
        if self._keeper.is_alive():
            self._keeper.join()
        if self._crew is not None:
            self._crew.close()
            self._crew = None
        if self._store is not None:
            self._store.close()
        if self._sign is not None:
            self._sign.close()
        if self._private:
            shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Desk:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def setting(self, device: str, number: int = 0) -> worker.Setting:
        """What a worker of this desk needs to know, wherever it runs."""
        return worker.Setting(
            root=str(self.root),
            store_url=self._store_url or sqlite_url(self._folders.database),
            models=self._models,
            device=device,
            dtype=self._dtype,
            home=None if self._home is None else str(self._home),
            limits=self.limits,
            number=number,
        )

    # Handing in.

    def new_folder(self) -> Draft:
        """A folder for the files of a new job. Raises DiskFull, OutputError."""
        return Draft(self._folders)

    def submit(self, draft: Draft, request: Request, *, owner: str = "", idempotency_key: str | None = None, webhook: str | None = None) -> Job:
        """Hand a job in. It is written down when this returns, and will be done, whatever happens to this process.

        The same `idempotency_key` of the same owner with the same request and files gives the job that is there already. A seed of 0 or "random"
        is drawn here. Raises UsageError, InputError and LimitError for what cannot be done, Conflict, QueueFull, TooMany, DiskFull, WeightsError;
        the draft is deleted then.
        """
        try:
            if idempotency_key is not None and not 0 < len(idempotency_key) <= LONGEST_KEY:
                raise UsageError(f"an idempotency key has 1 to {LONGEST_KEY} characters")
            chosen = options(**request.options)
            name = self._offered(request)
            self._check_files(draft, request, chosen)
            digest = _digest(draft, request) if idempotency_key is not None else ""
            settled = replace(request, model=name, options={**_plain(request.options), "seed": chosen.seed})
            draft.settle()
            known = self.store.submit(
                draft.id,
                settled,
                owner=owner,
                names=draft.names,
                limits=self.limits,
                key=idempotency_key,
                digest=digest,
                webhook=webhook,
            )
        except BaseException:
            draft.discard()
            raise
        if known != draft.id:
            draft.discard()
        return self.store.get(known)

    def _offered(self, request: Request) -> str:
        """The name of the model that is asked for. Raises UsageError, WeightsError."""
        name = request.model or next(iter(self._models))
        if name not in self._models:
            raise UsageError(f"model '{name}' is not offered here; choose one of {', '.join(self._models)}")
        need = weights.roles(preview=request.preview, face_backend=request.face_backend)
        try:
            weights.resolve(self._models[name], home=self._home, need=need)
        except WeightsError as e:
            told = [line for line in str(e).splitlines() if not line.startswith("looked in")]  # which folders there are is nobody's business
            raise WeightsError("\n".join(told).replace(self._models[name], name)) from e
        return name

    def _check_files(self, draft: Draft, request: Request, chosen: Options) -> None:
        for file in request.files:
            if not (draft.folder / file).is_file():
                raise InputError(f"there is no {Path(file).stem} file: it was not uploaded")
        for file in [f for f in draft.names if f not in request.files]:
            (draft.folder / file).unlink(missing_ok=True)
            del draft.names[file]
        try:
            probe(draft.folder, request, chosen, draft.names, self.limits)
        except (InputError, UsageError) as e:
            kind = LimitError if isinstance(e, LimitError) else InputError if isinstance(e, InputError) else UsageError
            raise kind(for_people(str(e), draft.folder, draft.names)) from e

    # Looking after.

    def get(self, id: str, owner: str | None = None) -> Job:
        """A job. Raises NotFound, also where it is another owner's; `owner` None may see all."""
        return self.store.get(id, owner)

    def known(self, owner: str, idempotency_key: str) -> Job | None:
        """The job for which the owner used this key."""
        found = self.store.known(owner, idempotency_key)
        return None if found is None else self.store.get(found)

    def jobs(self, owner: str | None = None, *, limit: int = 50, before: str | None = None, state: State | None = None) -> list[Job]:
        """Jobs, the newest first; `before` a job of the list goes on with those behind it. Raises NotFound, UsageError."""
        return self.store.jobs(owner, limit=limit, before=before, state=state)

    def cancel(self, id: str, owner: str | None = None) -> Job:
        """Stop a job: one that waits at once, one at work within a denoising step. One that is finished stays what it is. Raises NotFound."""
        return self.store.cancel(id, owner, self.limits.keep_hours * 3600)

    def delete(self, id: str, owner: str | None = None) -> None:
        """Delete a finished job with all its files. Raises NotFound, Conflict for one that is not finished."""
        self.store.delete(id, owner)
        self._folders.delete(id)

    def watch(self, id: str, timeout: float | None = None, owner: str | None = None, every: float = 0.25) -> Iterator[Job]:
        """The job as it is now, and again at each change, until it is finished or `timeout` seconds are over. Raises NotFound, also on the way."""
        until = None if timeout is None else time.monotonic() + timeout
        last: Job | None = None
        while True:
            job = self.get(id, owner)
            if job != last:
                yield job
            last = job
            if job.final or (until is not None and time.monotonic() >= until) or self._over.wait(every):
                return

    # Fetching.

    def result_path(self, job: Job) -> Path:
        """The result's file. Raises NotFound where there is none."""
        out = self.store.out(job.id) if job.state == "done" else None
        return self._there(job, out or "", "no result" if job.final else "no result yet")

    def preview_path(self, job: Job) -> Path:
        """The newest picture of the result. Raises NotFound where there is none."""
        return self._there(job, "preview.jpg", "no picture of the result" if job.final else "no picture of the result yet")

    def input_path(self, job: Job, which: str = "video") -> Path:
        """A file that came with the job, by its kind or its name. Raises NotFound."""
        found = [f for f in job.names if which in (f, Path(f).stem)]
        return self._there(job, found[0] if found else "", f"no file '{which}'")

    def _there(self, job: Job, file: str, lacking: str) -> Path:
        path = self._folders.of(job.id) / file
        if not file or not path.is_file():
            raise NotFound(f"job {job.id} has {lacking}")
        return path

    # The keeper's view.

    def models(self) -> list[Model]:
        """What may be asked for; the first is taken where nothing is."""
        return [Model(name=name, installed=not (lacks := self._lacks(name)), note=lacks) for name in self._models]

    def _lacks(self, name: str) -> str:
        try:
            weights.resolve(self._models[name], home=self._home, need=weights.roles())
        except WeightsError as e:
            return str(e)
        return ""

    def workers(self) -> list[Worker]:
        """All that work on this desk's jobs, on this machine and on others."""
        return self.store.workers()

    @property
    def pids(self) -> list[int]:
        """Of the workers that run here."""
        return [] if self._crew is None else self._crew.pids

    def ready(self) -> str:
        """Why no job would be taken or done just now, in a sentence; "" where all is well."""
        try:
            found = self.workers()
            self._folders.check_space()
        except OutputError as e:
            return str(e)
        if not any(w.state in ("idle", "busy") for w in found):
            said = next((w.message for w in found if w.message), "none has started yet")
            return f"no worker is ready: {said}"
        return ""

    def counts(self) -> Counts:
        """Numbers for a chart."""
        by_state, oldest = self.store.counts()
        with plain_errors():
            free = self._folders.free()
        return Counts(**by_state, oldest_wait=oldest, free_bytes=free, totals=self.store.totals())

    def sweep(self) -> int:
        """Delete what has expired, and what belongs to no job. Gives how many jobs."""
        gone = self.store.expired()
        for job in gone:
            self._folders.delete(job)
        for orphan in self._folders.orphans(self.store.there, DRAFT_SECONDS):
            self._folders.delete(orphan)
        return len(gone)

    def _reap(self) -> None:
        here, signs = worker.host(), self.root / worker.SIGNS
        self.store.reap(self.limits, lambda who, where: where == here and not alive(signs / who))
        for seen in self.workers():
            if seen.host == here and not alive(signs / seen.id):
                self.store.leave(seen.id)

    def _keep(self) -> None:
        swept = 0.0
        while not self._over.wait(REAP):
            with contextlib.suppress(OutputError):  # the database is away for a moment
                self._reap()
                if time.monotonic() - swept >= SWEEP:
                    swept = time.monotonic()
                    self.sweep()


def _named(models: Sequence[str]) -> dict[str, str]:
    """Name for people -> name or folder to load. Raises UsageError for none, or two of one name."""
    if not models:
        raise UsageError("no model is offered; name one, such as --model 1.6")
    found: dict[str, str] = {}
    for model in models:
        known = model in weights.PUBLISHED.bundles or model == weights.shipped.NAME
        name = model if known else Path(model).name
        if found.get(name, model) != model:
            raise UsageError(f"two models are called '{name}' ({found[name]} and {model}); rename a folder")
        found[name] = model
    return found


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON holds them, and as `options` reads them again."""

    def plain(value: Any) -> Any:
        if isinstance(value, Fraction):
            return str(value)
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    face = values.get("face")
    pointed = {"face": "{:g},{:g}".format(*face)} if isinstance(face, tuple | list) and len(face) == 2 else {}
    return {k: plain(v) for k, v in values.items()} | pointed


def _digest(draft: Draft, request: Request) -> str:
    """What tells one request from another: its words and the content of its files."""
    whole = hashlib.sha256(json.dumps({**request.plain(), "options": _plain(request.options)}, sort_keys=True).encode())
    for file in request.files:
        part = hashlib.sha256()
        with plain_errors(), open(draft.folder / file, "rb") as f:
            while block := f.read(1 << 20):
                part.update(block)
        whole.update(part.digest())
    return whole.hexdigest()


def _sweep_private(own: Path) -> None:
    """Delete the private folders of desks that were killed."""
    for folder in own.parent.glob(f"{PRIVATE}*"):
        with contextlib.suppress(OSError):
            old = time.time() - folder.stat().st_mtime > 60
            ours = folder.stat().st_uid == own.stat().st_uid
            if folder != own and old and ours and not alive(folder / "desk"):
                shutil.rmtree(folder, ignore_errors=True)
