"""Where jobs are written down: SQLite by default, or any database that SQLAlchemy knows. What it says of a job is what is true of it.

A worker claims the first job of the queue and receives a token, a number that grows with every claim of that job. It may write about the job only
as long as its token is the newest: a worker that was taken for dead can finish nothing. A claim lasts until its lease runs out and is prolonged
by every word of progress.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from latentsync.errors import OutputError, UsageError
from latentsync.jobs.errors import Conflict, DiskFull, Fenced, NotFound, QueueFull, TooMany
from latentsync.jobs.limits import Limits
from latentsync.jobs.records import FINAL, STATES, Delivery, Job, Request, State, Worker

LEASE = 60.0  # seconds without a word after which a worker is taken for dead
VERSION = 1  # of the tables
OVER = 1 << 20  # attempts of a job that is not to be begun again
SHUT_DOWN = "waits for a worker again: the last one was shut down"
_BUSY = 30.0  # seconds that a writer waits for another one

_meta = sa.MetaData()
_id = sa.String(64)

_jobs = sa.Table(
    "jobs",
    _meta,
    sa.Column("id", _id, primary_key=True),
    sa.Column("owner", sa.String(200), nullable=False, index=True),
    sa.Column("state", sa.String(12), nullable=False, index=True),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("names", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False, index=True),
    sa.Column("started", sa.Double),
    sa.Column("finished", sa.Double),
    sa.Column("expires", sa.Double, index=True),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("token", sa.Integer, nullable=False, default=0),
    sa.Column("worker", _id),
    sa.Column("host", sa.String(200)),
    sa.Column("lease", sa.Double),
    sa.Column("cancel", sa.Double),  # when it was asked for
    sa.Column("done", sa.Integer, nullable=False, default=0),
    sa.Column("total", sa.Integer),
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("steps", sa.Integer, nullable=False, default=0),
    sa.Column("seconds", sa.Double, nullable=False, default=0.0),
    sa.Column("seconds_left", sa.Double),
    sa.Column("message", sa.Text, nullable=False, default=""),
    sa.Column("error", sa.Text, nullable=False, default=""),
    sa.Column("error_kind", sa.String(100), nullable=False, default=""),
    sa.Column("exit_code", sa.Integer),
    sa.Column("result", sa.Text, nullable=False, default="{}"),
    sa.Column("out", sa.String(100)),  # name of the result in the job's folder
    sa.Column("previews", sa.Integer, nullable=False, default=0),
    sa.Column("webhook", sa.Text),
    sa.Column("version", sa.Integer, nullable=False, default=0),
    sa.Index("queue", "state", "created", "id"),
)
_keys = sa.Table(
    "idempotency",
    _meta,
    sa.Column("owner", sa.String(200), primary_key=True),
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("job", _id, nullable=False, index=True),
)
_workers = sa.Table(
    "workers",
    _meta,
    sa.Column("id", _id, primary_key=True),
    sa.Column("host", sa.String(200), nullable=False),
    sa.Column("device", sa.String(50), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("job", _id),
    sa.Column("jobs_done", sa.Integer, nullable=False),
    sa.Column("seen", sa.Double, nullable=False),
)
_deliveries = sa.Table(
    "deliveries",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job", _id, nullable=False, index=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("event", sa.String(40), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),  # due | delivered | given up
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("due", sa.Double, nullable=False, index=True),
    sa.Column("last_error", sa.Text, nullable=False, default=""),
)
_totals = sa.Table("totals", _meta, sa.Column("name", sa.String(40), primary_key=True), sa.Column("value", sa.Double, nullable=False))
TOTALS = ("submitted", "done", "failed", "cancelled", "retried", "frames", "video_seconds", "work_seconds")


class Claim(NamedTuple):
    """The right of a worker to write about a job."""

    job: str
    token: int
    worker: str


@dataclass(kw_only=True)
class Pulse:
    """What a worker says of its job from time to time."""

    done: int = 0
    total: int | None = None
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    message: str = ""
    previews: int = 0


class Store:
    """One database of jobs. Safe for many threads and processes at once."""

    def __init__(self, url: str) -> None:
        """Makes the tables where they are not there. Raises UsageError for an address that cannot be used, OutputError where the database fails."""
        try:
            address = sa.make_url(url)
        except sa.exc.ArgumentError as e:
            raise UsageError(f"'{url}' is not the address of a database; write it as SQLAlchemy does, such as sqlite:////data/jobs.sqlite") from e
        self.shown = address.render_as_string(hide_password=True)
        self._sqlite = address.get_backend_name() == "sqlite"
        if self._sqlite and address.database in (None, "", ":memory:"):
            raise UsageError(f"{self.shown} lives in memory, and workers are other processes; name a file, such as sqlite:////data/jobs.sqlite")
        try:
            if self._sqlite:
                self._engine = sa.create_engine(address, pool_size=8, max_overflow=32, connect_args={"timeout": _BUSY})
                sa.event.listen(self._engine, "connect", _tune)
                sa.event.listen(self._engine, "begin", _begin)
            else:
                self._engine = sa.create_engine(address, pool_pre_ping=True, pool_recycle=1800)
        except (sa.exc.ArgumentError, ImportError) as e:
            raise UsageError(f"cannot use {self.shown}: {e}; install the driver that SQLAlchemy needs for it") from e
        try:
            self._make_tables()
        except OutputError:  # another process makes them at this moment, and not every database lets one of the two wait
            self._make_tables()

    def _make_tables(self) -> None:
        with self._writing() as db:
            _meta.create_all(db)
            there = set(db.execute(sa.select(_totals.c.name)).scalars())
            version = db.execute(sa.select(_totals.c.value).where(_totals.c.name == "version")).scalar()
            if version is not None and version != VERSION:
                raise UsageError(f"{self.shown} was made by another version of latentsync; name another database, or another folder")
            for name, value in [("version", float(VERSION)), *((n, 0.0) for n in TOTALS)]:
                if name not in there:
                    db.execute(_totals.insert().values(name=name, value=value))

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._plainly(), self._engine.connect() as db:
            yield db

    @contextmanager
    def _writing(self, durable: bool = True) -> Iterator[Connection]:
        """A transaction that is written whole or not at all. `durable`: it outlives a loss of power, and not only of processes."""
        with self._plainly(), self._engine.connect().execution_options(writes=True, durable=durable) as db, db.begin():
            yield db

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as e:
            reason = str(getattr(e, "orig", None) or e)
            if "disk is full" in reason:
                raise DiskFull("the disk is full: no more jobs are taken until some have expired") from e
            raise OutputError(f"the database of jobs fails: {reason}") from e

    # Jobs come and go.

    def submit(
        self,
        job: str,
        request: Request,
        *,
        owner: str,
        names: dict[str, str],
        limits: Limits,
        key: str | None = None,
        digest: str = "",
        webhook: str | None = None,
    ) -> str:
        """Write a job down as waiting. Gives its id, or that of the job for which the owner used `key` before.

        Raises Conflict where that was for something else (another `digest`), QueueFull, TooMany.
        """
        now = time.time()
        with self._writing() as db:
            if key is not None:
                known = db.execute(sa.select(_keys).where(_keys.c.owner == owner, _keys.c.key == key)).first()
                if known is not None:
                    if known.digest != digest:
                        raise Conflict(f"the idempotency key '{key}' was used for another request; use a new key for a new job")
                    return str(known.job)
            waiting, unfinished = _count(db, _jobs.c.state == "queued"), _count(db, _jobs.c.state.in_(("queued", "running")), _jobs.c.owner == owner)
            if limits.max_queue and waiting >= limits.max_queue:
                raise QueueFull(f"{waiting} jobs are waiting, which is as many as are taken; try again later")
            if limits.max_per_owner and unfinished >= limits.max_per_owner:
                raise TooMany(f"{unfinished} of your jobs are not finished, which is as many as are taken from one; wait for them, or cancel some")
            db.execute(
                _jobs.insert().values(
                    id=job,
                    owner=owner,
                    state="queued",
                    model=request.model,
                    request=json.dumps(request.plain()),
                    names=json.dumps(names),
                    created=now,
                    webhook=webhook,
                )
            )
            if key is not None:
                db.execute(_keys.insert().values(owner=owner, key=key, digest=digest, job=job))
            _add(db, submitted=1)
        return job

    def known(self, owner: str, key: str) -> str | None:
        """Id of the job for which the owner used this key."""
        with self._reading() as db:
            found = db.execute(sa.select(_keys.c.job).where(_keys.c.owner == owner, _keys.c.key == key)).scalar()
        return None if found is None else str(found)

    def get(self, job: str, owner: str | None = None) -> Job:
        """Raises NotFound, also for another owner's."""
        with self._reading() as db:
            return self._job(db, self._row(db, job, owner))

    def out(self, job: str) -> str | None:
        """Name of the result in the job's folder."""
        with self._reading() as db:
            found = db.execute(sa.select(_jobs.c.out).where(_jobs.c.id == job)).scalar()
        return None if found is None else str(found)

    def jobs(self, owner: str | None, *, limit: int, before: str | None = None, state: State | None = None) -> list[Job]:
        """The newest first. `before`: only those made before that job. Raises NotFound where there is no such job."""
        asked = sa.select(_jobs).order_by(_jobs.c.created.desc(), _jobs.c.id.desc()).limit(limit)
        if owner is not None:
            asked = asked.where(_jobs.c.owner == owner)
        if state is not None:
            if state not in STATES:
                raise UsageError(f"state '{state}' is not known; choose one of {', '.join(STATES)}")
            asked = asked.where(_jobs.c.state == state)
        with self._reading() as db:
            if before is not None:
                at = self._row(db, before, owner)
                asked = asked.where(sa.or_(_jobs.c.created < at.created, sa.and_(_jobs.c.created == at.created, _jobs.c.id < at.id)))
            return [self._job(db, row) for row in db.execute(asked)]

    def _row(self, db: Connection, job: str, owner: str | None = None) -> Row[Any]:
        found = db.execute(sa.select(_jobs).where(_jobs.c.id == job)).first()
        if found is None or (owner is not None and found.owner != owner):
            raise NotFound(f"there is no job '{job}'; it may have expired")
        return found

    def _job(self, db: Connection, row: Row[Any]) -> Job:
        position = None
        if row.state == "queued":
            before = sa.or_(_jobs.c.created < row.created, sa.and_(_jobs.c.created == row.created, _jobs.c.id < row.id))
            position = 1 + _count(db, _jobs.c.state == "queued", before)
        return Job(
            id=row.id,
            owner=row.owner,
            state=row.state,
            request=Request.read(json.loads(row.request)),
            names=json.loads(row.names),
            created=row.created,
            started=row.started,
            finished=row.finished,
            expires=row.expires,
            attempts=row.attempts,
            position=position,
            done=row.done,
            total=row.total,
            step=row.step,
            steps=row.steps,
            seconds=row.seconds,
            seconds_left=row.seconds_left,
            message=row.message,
            cancelling=row.cancel is not None and row.state not in FINAL,
            error=row.error,
            error_kind=row.error_kind,
            exit_code=row.exit_code,
            result=json.loads(row.result),
            has_result=row.out is not None,
            previews=row.previews,
            webhook=row.webhook,
            version=row.version,
        )

    def cancel(self, job: str, owner: str | None, keep: float) -> Job:
        """A waiting job is cancelled at once, expires after `keep` seconds; a running one when its worker hears of it; others stay as they are."""
        now = time.time()
        with self._writing() as db:
            row = self._row(db, job, owner)
            if row.state == "queued":
                self._close(db, row, "cancelled", now, keep, message="cancelled while it waited")
            elif row.state == "running" and row.cancel is None:
                db.execute(_jobs.update().where(_jobs.c.id == job).values(cancel=now, message="stopping", version=_jobs.c.version + 1))
            return self._job(db, self._row(db, job))

    def delete(self, job: str, owner: str | None) -> None:
        """Forget a finished job. Raises NotFound, Conflict for one that is not finished."""
        with self._writing() as db:
            row = self._row(db, job, owner)
            if row.state not in FINAL:
                raise Conflict(f"the job is {row.state}; cancel it first")
            _forget(db, [job])

    def expired(self) -> list[str]:
        """Jobs whose time is over: they are forgotten, and their files may go."""
        with self._writing() as db:
            due = [str(i) for i in db.execute(sa.select(_jobs.c.id).where(_jobs.c.state.in_(FINAL), _jobs.c.expires <= time.time())).scalars()]
            _forget(db, due)
        return due

    def there(self, jobs: Collection[str]) -> set[str]:
        """Those of these ids that are written down."""
        found: set[str] = set()
        ids = list(jobs)
        with self._reading() as db:
            for k in range(0, len(ids), 500):  # databases limit the number of values
                found |= {str(i) for i in db.execute(sa.select(_jobs.c.id).where(_jobs.c.id.in_(ids[k : k + 500]))).scalars()}
        return found

    # Work.

    def waiting(self, models: Sequence[str]) -> bool:
        """Whether a job for one of these models waits."""
        with self._reading() as db:
            return db.execute(sa.select(_jobs.c.id).where(*_waits(models)).limit(1)).first() is not None

    def claim(self, worker: str, host: str, models: Sequence[str] | None = None) -> tuple[Claim, Job] | None:
        """The first job of the queue (for one of these models), which is this worker's from now on; None where none waits."""
        while True:
            now = time.time()
            with self._writing() as db:
                first = sa.select(_jobs).where(*_waits(models)).order_by(_jobs.c.created, _jobs.c.id).limit(1)
                row = db.execute(first.with_for_update(skip_locked=True)).first()
                if row is None:
                    return None
                taken = db.execute(
                    _jobs.update()
                    .where(_jobs.c.id == row.id, _jobs.c.state == "queued", _jobs.c.token == row.token)
                    .values(
                        {
                            **asdict(Pulse(message="starting")),
                            "state": "running",
                            "token": row.token + 1,
                            "attempts": row.attempts + 1,
                            "worker": worker,
                            "host": host,
                            "lease": now + LEASE,
                            "started": now,
                            "version": row.version + 1,
                        }
                    )
                )
                if taken.rowcount == 1:
                    return Claim(row.id, row.token + 1, worker), self._job(db, self._row(db, row.id))

    def pulse(self, claim: Claim, said: Pulse) -> bool:
        """Write progress down and prolong the claim. Gives whether the job is to be cancelled. Raises Fenced where the claim is lost."""
        with self._writing(durable=False) as db:
            row = self._held(db, claim)
            values: dict[str, Any] = {**asdict(said), "lease": time.time() + LEASE}
            if row.cancel is not None:
                values["message"] = "stopping"
            if any(getattr(row, k) != v for k, v in values.items() if k != "lease"):
                values["version"] = row.version + 1
            db.execute(_jobs.update().where(_jobs.c.id == claim.job).values(values))
            return row.cancel is not None

    def finish(self, claim: Claim, state: State, keep: float, **values: Any) -> None:
        """The end of a job, with its result or its error; it expires after `keep` seconds. Raises Fenced where the claim is lost."""
        with self._writing() as db:
            row = self._held(db, claim)
            self._close(db, row, state, time.time(), keep, **values)

    def release(self, claim: Claim) -> None:
        """Put a job back to where it was in the queue: nothing is wrong with it, its worker leaves. Raises Fenced where the claim is lost."""
        with self._writing() as db:
            row = self._held(db, claim)
            self._back(db, row, attempts=row.attempts - 1, message=SHUT_DOWN)

    def note(self, claim: Claim, why: str) -> None:
        """What the worker of a job is dying of, for the case that the job fails of it. No matter if the claim is lost."""
        with self._writing() as db:
            db.execute(_jobs.update().where(*_holds(claim)).values(error=why))

    def reap(self, limits: Limits, gone: Callable[[str, str], bool], *, blame: bool = True) -> int:
        """Put the jobs of dead workers back into the queue, or fail those that were begun too often. Gives how many.

        A worker is dead where its lease has run out, or where `gone` (worker, host) knows it. `blame`: it counts as an attempt.
        """
        with self._reading() as db:
            running = list(
                db.execute(sa.select(_jobs.c.id, _jobs.c.token, _jobs.c.worker, _jobs.c.host, _jobs.c.lease).where(_jobs.c.state == "running"))
            )
        now, count = time.time(), 0
        for seen in running:
            knows = gone(str(seen.worker), str(seen.host))
            if not knows and seen.lease >= now:
                continue
            with self._writing() as db:
                row = db.execute(sa.select(_jobs).where(_jobs.c.id == seen.id, _jobs.c.token == seen.token, _jobs.c.state == "running")).first()
                if row is None or not (knows or row.lease < now):
                    continue
                count += 1
                keep = limits.keep_hours * 3600
                why = f" ({row.error})" if row.error else ""
                if row.cancel is not None:
                    self._close(db, row, "cancelled", now, keep, message="cancelled")
                elif not blame:
                    self._back(db, row, attempts=row.attempts - 1, message=SHUT_DOWN)
                elif row.attempts >= limits.max_attempts:
                    times = f"{row.attempts} times" if row.attempts > 1 else "once"
                    sentence = f"the process that works on jobs ended {times} while it was at this one{why}, so it is given up"
                    self._close(db, row, "failed", now, keep, error=sentence, error_kind="LatentSyncError", exit_code=1)
                else:
                    self._back(db, row, attempts=row.attempts, message=f"begins anew: its worker ended unexpectedly{why}")
                    _add(db, retried=1)
        return count

    def _held(self, db: Connection, claim: Claim) -> Row[Any]:
        row = db.execute(sa.select(_jobs).where(*_holds(claim)).with_for_update()).first()
        if row is None:
            raise Fenced(f"job {claim.job} was taken away from {claim.worker}")
        return row

    def _back(self, db: Connection, row: Row[Any], *, attempts: int, message: str) -> None:
        fresh = asdict(Pulse(message=message))
        db.execute(
            _jobs.update()
            .where(_jobs.c.id == row.id)
            .values({**fresh, "state": "queued", "attempts": attempts, "worker": None, "host": None, "lease": None, "version": row.version + 1})
        )

    def _close(self, db: Connection, row: Row[Any], state: State, now: float, keep: float, **values: Any) -> None:
        """The last word about a job, and the message to whoever wanted to hear of it, in one transaction."""
        if "result" in values:
            found = values["result"]
            _add(db, frames=found.get("frames", 0), video_seconds=found.get("seconds", 0.0), work_seconds=found.get("elapsed_seconds", 0.0))
            values["result"] = json.dumps(found)
        settled = {"error": "", "message": "", "seconds_left": None, "worker": None, "host": None, "lease": None}
        ends = {"state": state, "finished": now, "expires": now + keep if keep else None, "version": row.version + 1}
        db.execute(_jobs.update().where(_jobs.c.id == row.id).values({**settled, **ends, **values}))
        _add(db, **{state: 1})
        if row.webhook:
            db.execute(_deliveries.insert().values(job=row.id, url=row.webhook, event=f"job.{state}", state="due", created=now, due=now))

    # Workers.

    def say(self, worker: Worker) -> None:
        """What a worker says of itself."""
        values = {**worker.__dict__, "seen": time.time()}
        with self._writing(durable=False) as db:
            if not db.execute(_workers.update().where(_workers.c.id == worker.id).values(values)).rowcount:
                db.execute(_workers.insert().values(values))

    def leave(self, worker: str) -> None:
        """A worker is no more."""
        with self._writing(durable=False) as db:
            db.execute(_workers.delete().where(_workers.c.id == worker))

    def workers(self) -> list[Worker]:
        """All that were heard of within the last hour, by host and device."""
        now = time.time()
        with self._writing(durable=False) as db:
            db.execute(_workers.delete().where(_workers.c.seen < now - 3600))
            rows = [row._asdict() for row in db.execute(sa.select(_workers).order_by(_workers.c.host, _workers.c.device, _workers.c.id))]
        return [Worker(**{**row, "state": row["state"] if row["seen"] > now - LEASE else "dead"}) for row in rows]

    def overdue(self, worker: str, grace: float) -> bool:
        """Whether the job of this worker was to be cancelled `grace` seconds ago and still runs."""
        late = sa.and_(_jobs.c.worker == worker, _jobs.c.state == "running", _jobs.c.cancel < time.time() - grace)
        with self._reading() as db:
            return _count(db, late) > 0

    def overlong(self, worker: str, seconds: float) -> bool:
        """Whether this worker has been at its job for longer."""
        late = sa.and_(_jobs.c.worker == worker, _jobs.c.state == "running", _jobs.c.started < time.time() - seconds)
        with self._reading() as db:
            return _count(db, late) > 0

    def stop(self, worker: str) -> None:
        """The job of this worker has taken too long, and does not even notice: it is not to be begun again."""
        mine = (_jobs.c.worker == worker, _jobs.c.state == "running")
        with self._writing() as db:
            db.execute(_jobs.update().where(*mine).values(attempts=OVER, error="it took longer than is given to one job"))

    # Numbers.

    def counts(self) -> tuple[dict[str, int], float]:
        """Jobs by state, and the seconds that the first of the queue has waited."""
        with self._reading() as db:
            found: dict[str, int] = dict.fromkeys(STATES, 0)
            found |= {row[0]: row[1] for row in db.execute(sa.select(_jobs.c.state, sa.func.count()).group_by(_jobs.c.state))}
            oldest = db.execute(sa.select(sa.func.min(_jobs.c.created)).where(_jobs.c.state == "queued")).scalar()
        return found, max(0.0, time.time() - oldest) if oldest is not None else 0.0

    def totals(self) -> dict[str, float]:
        """Numbers that only grow."""
        with self._reading() as db:
            return {name: value for name, value in db.execute(sa.select(_totals.c.name, _totals.c.value)) if name in TOTALS}

    # Messages to be sent when jobs are final.

    def due_deliveries(self, limit: int = 10, lease: float = 120.0) -> list[Delivery]:
        """Messages to be sent now. They are not given out again for `lease` seconds, and count an attempt."""
        now = time.time()
        found = []
        with self._writing() as db:
            asked = sa.select(_deliveries).where(_deliveries.c.state == "due", _deliveries.c.due <= now).order_by(_deliveries.c.due).limit(limit)
            for row in db.execute(asked.with_for_update(skip_locked=True)).all():
                ours = (_deliveries.c.id == row.id, _deliveries.c.state == "due", _deliveries.c.due == row.due)
                if db.execute(_deliveries.update().where(*ours).values(due=now + lease, attempts=row.attempts + 1)).rowcount == 1:
                    found.append(Delivery(**{**row._asdict(), "attempts": row.attempts + 1, "due": now + lease}))
        return found

    def delivered(self, delivery: int) -> None:
        """The message has arrived."""
        self._settle(delivery, state="delivered", last_error="")

    def postpone(self, delivery: int, seconds: float, error: str) -> None:
        """The message is to be sent again in so many seconds."""
        self._settle(delivery, due=time.time() + seconds, last_error=error)

    def give_up(self, delivery: int, error: str) -> None:
        """The message will not arrive."""
        self._settle(delivery, state="given up", last_error=error)

    def _settle(self, delivery: int, **values: Any) -> None:
        with self._writing() as db:
            db.execute(_deliveries.update().where(_deliveries.c.id == delivery).values(values))

    def deliveries(self, job: str) -> list[Delivery]:
        """All messages about a job."""
        with self._reading() as db:
            return [
                Delivery(**row._asdict()) for row in db.execute(sa.select(_deliveries).where(_deliveries.c.job == job).order_by(_deliveries.c.id))
            ]


def sqlite_url(file: Path) -> str:
    """The address of an SQLite file."""
    return sa.URL.create("sqlite", database=os.fspath(file)).render_as_string(hide_password=False)


def _tune(connection: Any, _: Any) -> None:
    """A log beside the database: readers and the one writer do not wait for each other. Transactions are begun by `_begin`, not by the driver."""
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")


def _begin(connection: Connection) -> None:
    """A transaction that will write takes the lock at once: one that reads first and then wants to write could not be let in."""
    options = connection.get_execution_options()
    if options.get("writes"):
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options.get('durable') else 'NORMAL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("BEGIN")


def _count(db: Connection, *where: sa.ColumnElement[bool]) -> int:
    return int(db.execute(sa.select(sa.func.count()).select_from(_jobs).where(*where)).scalar_one())


def _waits(models: Sequence[str] | None) -> tuple[sa.ColumnElement[bool], ...]:
    return (_jobs.c.state == "queued", *(() if models is None else (_jobs.c.model.in_(models),)))


def _holds(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    return (_jobs.c.id == claim.job, _jobs.c.token == claim.token, _jobs.c.worker == claim.worker, _jobs.c.state == "running")


def _add(db: Connection, **amounts: float) -> None:
    for name, amount in amounts.items():
        db.execute(_totals.update().where(_totals.c.name == name).values(value=_totals.c.value + amount))


def _forget(db: Connection, jobs: Sequence[str]) -> None:
    for k in range(0, len(jobs), 500):
        part = jobs[k : k + 500]
        db.execute(_keys.delete().where(_keys.c.job.in_(part)))
        db.execute(_deliveries.delete().where(_deliveries.c.job.in_(part)))
        db.execute(_jobs.delete().where(_jobs.c.id.in_(part)))
