"""What is written down about jobs: claims belong to one worker, nothing is forgotten, nothing is done twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from latentsync.errors import OutputError, UsageError
from latentsync.jobs import Conflict, DiskFull, Limits, NotFound, QueueFull, Request, TooMany
from latentsync.jobs.errors import Fenced
from latentsync.jobs.folders import new_id
from latentsync.jobs.store import Claim, Pulse, Store, sqlite_url

REQUEST = Request(video="video.mp4", audio="audio.wav", options={"seed": 1})
LIMITS = Limits()
HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Any:
    found = Store(sqlite_url(tmp_path / "jobs.sqlite"))
    yield found
    found.close()


def put(store: Store, owner: str = "", **more: Any) -> str:
    return store.submit(new_id(), REQUEST, owner=owner, names={"video.mp4": "me.mov"}, **{"limits": LIMITS, **more})


def taken(store: Store, worker: str = "w") -> Claim:
    found = store.claim(worker, "host", [""])
    assert found is not None
    return found[0]


def all_gone(worker: str, host: str) -> bool:
    return True


def claim_all(url: str, name: str, results: Any) -> None:
    store = Store(url)
    mine = []
    while (found := store.claim(name, "host", [""])) is not None:
        mine.append(found[0].job)
        store.pulse(found[0], Pulse(done=1))
        store.finish(found[0], "done", HOUR, out="result.mp4", result={"frames": 1})
    results.put(mine)


def test_of_four_processes_each_job_goes_to_one(store: Store, tmp_path: Path) -> None:
    jobs = [put(store, limits=Limits(max_queue=0, max_per_owner=0)) for _ in range(60)]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    crew = [context.Process(target=claim_all, args=(sqlite_url(tmp_path / "jobs.sqlite"), f"w{k}", results)) for k in range(4)]
    for process in crew:
        process.start()
    claimed = [job for _ in crew for job in results.get(timeout=120)]
    for process in crew:
        process.join()
    assert sorted(claimed) == sorted(jobs)
    assert {store.get(job).attempts for job in jobs} == {1}
    assert store.totals()["done"] == store.totals()["frames"] == 60


def submit_for_ever(url: str, told: str) -> None:
    store = Store(url)
    with open(told, "a", buffering=1) as f:
        while True:
            f.write(put(store, limits=Limits(max_queue=0, max_per_owner=0)) + "\n")


def test_what_was_acknowledged_outlives_kill_9(store: Store, tmp_path: Path) -> None:
    told = tmp_path / "told.txt"
    process = multiprocessing.get_context("spawn").Process(target=submit_for_ever, args=(sqlite_url(tmp_path / "jobs.sqlite"), str(told)))
    process.start()
    while not told.exists() or told.stat().st_size < 20 * 23:
        assert process.is_alive()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    acknowledged = [line for line in told.read_text().split() if len(line) == 22]
    assert len(acknowledged) >= 19
    assert store.there(acknowledged) == set(acknowledged)
    assert store.claim("w", "host", [""]) is not None  # and the database is sound


def test_first_come_first_served_with_places(store: Store) -> None:
    jobs = [put(store) for _ in range(3)]
    assert [store.get(job).position for job in jobs] == [1, 2, 3]
    claim = taken(store)
    assert claim.job == jobs[0]
    assert [store.get(job).position for job in jobs] == [None, 1, 2]
    store.release(claim)  # a worker that leaves puts it back to where it was
    assert [store.get(job).position for job in jobs] == [1, 2, 3]
    assert store.get(jobs[0]).attempts == 0


def test_workers_take_what_they_have_a_model_for(store: Store) -> None:
    small, large = (store.submit(new_id(), replace(REQUEST, model=m), owner="", names={}, limits=LIMITS) for m in ("small", "large"))
    assert store.waiting(["large"])
    assert not store.waiting(["other"])
    assert store.claim("w", "host", ["other"]) is None
    for model, job in (("large", large), ("small", small)):
        found = store.claim("w", "host", [model, "other"])
        assert found is not None
        assert found[0].job == job


def test_a_full_disk_is_told_in_words(store: Store) -> None:
    with store._reading() as db:
        pages = db.exec_driver_sql("PRAGMA page_count").scalar_one()
    store._engine.dispose()
    sa.event.listen(store._engine, "connect", lambda connection, _: connection.execute(f"PRAGMA max_page_count={pages}"))
    with pytest.raises(DiskFull, match="the disk is full"):
        for _ in range(100):
            put(store, limits=Limits(max_queue=0, max_per_owner=0))
    assert store.counts()[0]["queued"] > 0  # those before it stand


def test_a_worker_that_was_taken_for_dead_can_write_nothing(store: Store) -> None:
    job = put(store)
    old = taken(store, "slow")
    assert store.reap(LIMITS, lambda worker, host: False) == 0  # its lease runs
    assert store.reap(LIMITS, all_gone) == 1
    with pytest.raises(Fenced):
        store.pulse(old, Pulse(done=5))
    new = taken(store, "quick")
    assert new.token > old.token
    for said in (
        lambda: store.pulse(old, Pulse(done=5)),
        lambda: store.finish(old, "done", HOUR, out="wrong.mp4", result={}),
        lambda: store.release(old),
        lambda: store.pulse(replace_worker(new), Pulse()),
    ):
        with pytest.raises(Fenced):
            said()
    store.finish(new, "done", HOUR, out="right.mp4", result={"frames": 3})
    assert store.out(job) == "right.mp4"
    assert store.get(job).attempts == 2
    with pytest.raises(Fenced):
        store.finish(new, "failed", HOUR, error="twice")


def replace_worker(claim: Claim) -> Claim:
    return claim._replace(worker="somebody else")


def test_a_lease_that_ran_out_frees_the_job(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    job = put(store)
    taken(store)
    now = time.time()
    monkeypatch.setattr("latentsync.jobs.store.time.time", lambda: now + 59)
    assert store.reap(LIMITS, lambda worker, host: False) == 0
    monkeypatch.setattr("latentsync.jobs.store.time.time", lambda: now + 61)
    assert store.reap(LIMITS, lambda worker, host: False) == 1
    assert store.get(job).state == "queued"
    assert "begins anew" in store.get(job).message


def test_a_job_that_kills_its_workers_is_given_up_with_the_reason(store: Store) -> None:
    job = put(store, webhook="https://example.org/hook")
    for _ in range(3):
        store.note(taken(store), "RuntimeError: the device answers nothing")
        store.reap(LIMITS, all_gone)
    found = store.get(job)
    assert (found.state, found.attempts, found.exit_code) == ("failed", 3, 1)
    assert "ended 3 times" in found.error
    assert "the device answers nothing" in found.error
    assert store.claim("w", "host", [""]) is None
    assert store.totals()["retried"] == 2
    assert [d.event for d in store.deliveries(job)] == ["job.failed"]


def test_workers_that_are_shut_down_are_not_held_against_a_job(store: Store) -> None:
    job = put(store)
    for _ in range(5):
        taken(store)
        store.reap(LIMITS, all_gone, blame=False)
    assert (store.get(job).state, store.get(job).attempts) == ("queued", 0)


def test_cancelling(store: Store) -> None:
    waiting, running = put(store), put(store)
    claim = taken(store)
    assert claim.job == waiting
    assert store.cancel(running, None, HOUR).state == "cancelled"  # waits: at once
    assert not store.pulse(claim, Pulse(done=1))
    said = store.cancel(waiting, None, HOUR)
    assert (said.state, said.cancelling) == ("running", True)
    assert store.pulse(claim, Pulse(done=2))
    assert store.get(waiting).message == "stopping"
    store.finish(claim, "cancelled", HOUR)
    assert store.cancel(waiting, None, HOUR).state == "cancelled"
    assert store.totals()["cancelled"] == 2


def test_a_cancelled_job_whose_worker_dies_is_not_begun_again(store: Store) -> None:
    job = put(store)
    taken(store)
    store.cancel(job, None, HOUR)
    store.reap(LIMITS, all_gone)
    assert store.get(job).state == "cancelled"


def test_versions_tell_of_changes(store: Store) -> None:
    job = put(store)
    claim = taken(store)
    before = store.get(job).version
    store.pulse(claim, Pulse(message="starting"))
    assert store.get(job).version == before  # nothing new
    store.pulse(claim, Pulse(message="starting", done=1))
    assert store.get(job).version == before + 1


def test_idempotency_keys(store: Store) -> None:
    first = put(store, "a", key="k", digest="1")
    assert put(store, "a", key="k", digest="1") == first
    with pytest.raises(Conflict, match="another request"):
        put(store, "a", key="k", digest="2")
    assert put(store, "b", key="k", digest="2") != first
    assert store.known("a", "k") == first
    assert store.totals()["submitted"] == 2


def test_full_queues(store: Store) -> None:
    limits = Limits(max_queue=3, max_per_owner=2)
    put(store, "a", limits=limits)
    put(store, "a", limits=limits, key="k", digest="1")
    with pytest.raises(TooMany, match="2 of your jobs"):
        put(store, "a", limits=limits)
    put(store, "a", limits=limits, key="k", digest="1")  # this one is there already
    put(store, "b", limits=limits)
    with pytest.raises(QueueFull, match="3 jobs are waiting"):
        put(store, "c", limits=limits)
    taken(store)
    put(store, "c", limits=limits)  # who works does not wait
    with pytest.raises(TooMany):
        put(store, "a", limits=replace(limits, max_queue=0))  # but is not finished


def test_owners_do_not_see_each_other(store: Store) -> None:
    mine, theirs = put(store, "me"), put(store, "they")
    assert [j.id for j in store.jobs("me", limit=10)] == [mine]
    for ask in (store.get, lambda job, owner: store.cancel(job, owner, HOUR), store.delete):
        with pytest.raises(NotFound):
            ask(theirs, "me")
    with pytest.raises(NotFound):
        store.jobs("me", limit=10, before=theirs)
    assert len(store.jobs(None, limit=10)) == 2


def test_lists_in_pages(store: Store) -> None:
    jobs = [put(store) for _ in range(5)][::-1]
    page = [j.id for j in store.jobs(None, limit=2)]
    assert page == jobs[:2]
    assert [j.id for j in store.jobs(None, limit=9, before=page[-1])] == jobs[2:]
    assert store.jobs(None, limit=9, state="done") == []
    with pytest.raises(UsageError, match="queued, running"):
        store.jobs(None, limit=9, state="gone")  # type: ignore[arg-type]


def test_deleting_and_expiring_forget_all_of_a_job(store: Store) -> None:
    job = put(store, "a", key="k", digest="1", webhook="https://example.org")
    with pytest.raises(Conflict, match="cancel it first"):
        store.delete(job, "a")
    store.cancel(job, "a", HOUR)
    assert store.expired() == []
    store.delete(job, "a")
    assert store.known("a", "k") is None
    assert store.due_deliveries() == []
    second = put(store, "a", key="k", digest="2")
    store.cancel(second, "a", 1e-9)
    assert store.expired() == [second]
    third = put(store)
    store.cancel(third, None, 0)  # 0 keeps it for ever
    assert store.get(third).expires is None
    assert store.expired() == []


def test_messages_are_given_out_once_and_survive(store: Store, tmp_path: Path) -> None:
    put(store)
    job = put(store, webhook="https://example.org/hook")
    store.finish(taken(store), "done", HOUR)  # without a webhook
    assert store.due_deliveries() == []
    store.finish(taken(store), "done", HOUR, result={}, out="x")
    again = Store(sqlite_url(tmp_path / "jobs.sqlite"))  # as after a restart
    found = again.due_deliveries()
    assert [(d.job, d.event, d.url, d.attempts) for d in found] == [(job, "job.done", "https://example.org/hook", 1)]
    assert store.due_deliveries() == []
    again.postpone(found[0].id, 0.0, "503")
    second = store.due_deliveries()[0]
    assert (second.attempts, second.last_error) == (2, "503")
    store.give_up(second.id, "404")
    assert [(d.state, d.last_error) for d in store.deliveries(job)] == [("given up", "404")]
    assert store.due_deliveries() == []
    again.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [("nonsense", "not the address"), ("sqlite://", "in memory"), ("nodriver://x/y", "cannot use")],
)
def test_databases_that_cannot_be_used_are_refused_in_words(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Store(url)


def test_a_database_that_fails_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="unable to open"):
        Store(sqlite_url(tmp_path / "no" / "such" / "folder.sqlite"))
