"""Worker processes that die, hang and are shut down: every job is done in the end, and finished once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentsync.jobs import Desk, Job, crew
from latentsync.jobs.worker import work
from tests.jobs.conftest import SMALL, QuickDesk, submit, until

LONG = 200  # steps, 10 s of a stand-in


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    with QuickDesk(tmp_path / "root", models=["demo"], limits=SMALL) as found:
        until(lambda: found.ready() == "")
        yield found


def final(desk: Desk, job: Job, seconds: float = 60.0) -> Job:
    found = list(desk.watch(job.id, timeout=seconds, every=0.05))[-1]
    assert found.final, found
    return found


def finished(desk: Desk) -> Counter[str]:
    """How often the workers came to the end of each job."""
    path = desk.root / "finished.txt"
    return Counter(path.read_text().split() if path.exists() else [])


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # dead, and nobody has asked how
    except OSError:
        return True


def test_one_worker_through_all_that_can_happen_to_jobs(desk: QuickDesk, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One desk for all of it: starting processes is what takes time here."""
    monkeypatch.setattr(crew, "PAUSES", (0.1,))
    first = desk.pids

    # Done; an error in a sentence, with the upload's name; and the worker goes on.
    good, faceless = submit(desk, clip), submit(desk, clip, seed=13)
    done = final(desk, good)
    assert (done.state, done.attempts, done.done, done.position) == ("done", 1, 10, None)
    assert desk.result_path(done).read_text() == "attempt 1"
    assert done.expires == pytest.approx((done.finished or 0) + SMALL.keep_hours * 3600)
    failed = final(desk, faceless)
    assert (failed.state, failed.error, failed.error_kind, failed.exit_code) == ("failed", "no face in sample.mp4", "NoFaceError", 4)
    assert desk.pids == first
    assert [(w.state, w.jobs_done, w.model) for w in desk.workers()] == [("idle", 1, "standin")]

    # Cancelled at work: within steps, not at the end.
    job = submit(desk, clip, steps=200)
    until(lambda: desk.get(job.id).step > 0)
    began = time.monotonic()
    assert desk.cancel(job.id).cancelling
    assert final(desk, job).state == "cancelled"
    assert time.monotonic() - began < 5
    assert not list((desk.root / "jobs" / job.id).glob("result-*"))
    assert desk.pids == first

    # kill -9 of the worker in the middle: the job begins anew, and is finished once.
    job = submit(desk, clip, steps=40)
    until(lambda: desk.get(job.id).step > 0)
    os.kill(desk.pids[0], signal.SIGKILL)
    done = final(desk, job)
    assert (done.state, done.attempts) == ("done", 2)
    assert desk.result_path(done).read_text() == "attempt 2"
    assert finished(desk)[job.id] == 1
    assert desk.pids != first

    # It dies of the job itself once, or each time; the others have to wait, and are done.
    once, always, after = submit(desk, clip, seed=667), submit(desk, clip, seed=669), submit(desk, clip)
    assert (final(desk, once).state, final(desk, once).attempts) == ("done", 2)
    failed = final(desk, always)
    assert (failed.state, failed.attempts) == ("failed", 3)
    assert "ended 3 times while it was at this one (IndexError: list index out of range)" in failed.error
    assert "IndexError" in (desk.root / "logs" / "worker-0.log").read_text()
    assert final(desk, after).state == "done"

    # Out of memory on the device: said in words, and the process is a new one.
    before = desk.pids
    assert final(desk, submit(desk, clip, seed=668)).error_kind == "DeviceError"
    until(lambda: desk.pids and desk.pids != before)

    # Deaf: a cancelled job that does not end is ended with its process.
    monkeypatch.setattr(crew, "GRACE", 0.3)
    until(lambda: desk.ready() == "")
    deaf = submit(desk, clip, seed=670, steps=200)
    until(lambda: desk.get(deaf.id).step > 0)
    desk.cancel(deaf.id)
    assert final(desk, deaf).state == "cancelled"

    counts = desk.counts()
    assert counts.totals["done"] == counts.done == sum(finished(desk).values())
    assert max(finished(desk).values()) == 1
    assert (counts.queued, counts.running) == (0, 0)
    assert counts.totals["submitted"] == counts.done + counts.failed + counts.cancelled


def keep_desk(root: str, told: Any) -> None:
    """A desk in a process of its own, until that is killed."""
    with QuickDesk(root, models=["demo"], limits=SMALL) as desk:
        told.put((os.getpid(), until(lambda: desk.pids)))
        time.sleep(600)


def test_kill_9_of_the_whole_desk_and_a_restart_lose_nothing(tmp_path: Path, clip: Path) -> None:
    root = tmp_path / "root"
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    process = context.Process(target=keep_desk, args=(str(root), told))
    process.start()
    pid, workers = told.get(timeout=120)
    with QuickDesk(root, models=["demo"], limits=SMALL, workers=False) as other:  # the service beside the page
        jobs = [submit(other, clip, key=f"k{k}", steps=160 if k == 1 else 8) for k in range(5)]  # the second is at work when all ends
        until(lambda: other.get(jobs[1].id).step > 1)
    os.kill(pid, signal.SIGKILL)
    process.join()
    until(lambda: all(gone(w) for w in workers), 20)  # its workers went with it

    with QuickDesk(root, models=["demo"], limits=SMALL, workers=False) as shut:
        until(lambda: shut.workers() == [], 10)
        assert "no worker" in shut.ready()  # whatever the dead one had said

    with QuickDesk(root, models=["demo"], limits=SMALL) as desk:
        until(lambda: desk.get(jobs[1].id).state == "queued" or desk.get(jobs[1].id).attempts == 2, 10)  # nobody waits for a lease of a minute
        found = [final(desk, job) for job in jobs]
        assert [j.state for j in found] == ["done"] * 5
        assert [j.attempts for j in found] == [1, 2, 1, 1, 1]
        assert finished(desk) == Counter(j.id for j in jobs)
        assert desk.counts().totals["done"] == 5
        assert submit(desk, clip, key="k3", steps=8).id == jobs[3].id  # keys outlive it too


def test_a_desk_that_closes_puts_its_job_back(tmp_path: Path, clip: Path) -> None:
    with QuickDesk(tmp_path / "root", models=["demo"], limits=SMALL) as desk:
        job = submit(desk, clip, steps=LONG)
        until(lambda: desk.get(job.id).step > 0)
        began = time.monotonic()
    assert time.monotonic() - began < crew.LEAVE - 3  # asked, not killed
    with QuickDesk(tmp_path / "root", models=["demo"], limits=SMALL, workers=False) as desk:
        found = desk.get(job.id)
        assert (found.state, found.attempts, found.position) == ("queued", 0, 1)
        assert "shut down" in found.message
        assert desk.workers() == []


def test_a_worker_in_a_thread_as_clusters_run_it(tmp_path: Path, clip: Path) -> None:
    stop = threading.Event()
    limits = replace(SMALL, max_result_bytes=5, job_seconds=1.0)
    with QuickDesk(tmp_path / "root", models=["demo"], limits=limits, workers=False) as desk:
        thread = threading.Thread(target=work, args=(desk.setting("cpu"), stop), daemon=True)
        thread.start()
        done = final(desk, submit(desk, clip))
        assert done.state == "done"
        slow = final(desk, submit(desk, clip, steps=LONG))  # longer than is given to one job
        assert (slow.state, slow.error_kind) == ("failed", "LimitError")
        assert "1 s are given" in slow.error
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        assert desk.workers() == []
