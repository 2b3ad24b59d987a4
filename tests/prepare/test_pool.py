"""Processes that hang, die and fault, and the pool that outlives them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from latentsync.errors import WeightsError
from latentsync.prepare.pool import Done, Handler, Pool, Task, Tell


def handler(setting: str, number: int) -> Handler:
    """What the processes of these tests do, by the payload."""

    def work(payload: str, tell: Tell) -> Any:
        tell("looking", 30.0)
        if payload == "hang":
            tell("hanging", 0.3)
            time.sleep(60)
        if payload == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if payload == "leave":
            os._exit(3)
        if payload == "fault":
            return [][1]
        if payload == "weights":
            raise WeightsError("no weights; download them")
        return setting, payload, os.getpid(), os.environ["OMP_NUM_THREADS"]

    return work


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(f"{__name__}:handler", "told", 1) as one:
        yield one


def one(pool: Pool, payload: str) -> Done:
    pool.submit(Task(f"key of {payload}", payload))
    assert pool.free == 0
    found = pool.wait(60)
    assert len(found) == 1
    assert pool.free == 1
    assert found[0].task == Task(f"key of {payload}", payload)
    return found[0]


def test_a_process_lives_on_from_task_to_task(pool: Pool) -> None:
    first, second = one(pool, "a"), one(pool, "b")
    assert first.value[:2] == ("told", "a")
    assert second.value[1:] == ("b", *first.value[2:])
    assert first.value[2] != os.getpid()
    assert first.value[3] == "1"


def test_what_hangs_is_cut_off_and_named(pool: Pool) -> None:
    began = time.monotonic()
    failure = one(pool, "hang").failure
    assert failure is not None
    assert (failure.kind, failure.step, failure.reason) == ("hung", "hanging", "took more than 0 s and was cut off")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("how", "said"), [("die", "SIGKILL; the system does that where memory runs out"), ("leave", "ended with code 3")])
def test_a_dead_process_is_reported_and_replaced(pool: Pool, how: str, said: str) -> None:
    failure = one(pool, how).failure
    assert failure is not None
    assert (failure.kind, failure.step) == ("died", "looking")
    assert said in failure.reason


def test_a_fault_says_what_and_where_and_the_next_task_is_done(pool: Pool) -> None:
    failure = one(pool, "fault").failure
    assert failure is not None
    assert failure.kind == "fault"
    assert "IndexError" in failure.reason
    assert "test_pool.py:" in failure.reason
    assert one(pool, "c").value[1] == "c"


def test_what_concerns_all_files_is_raised() -> None:
    with Pool(f"{__name__}:handler", "", 1) as pool:
        pool.submit(Task("k", "weights"))
        with pytest.raises(WeightsError, match="download them"):
            pool.wait(60)


def test_waiting_has_an_end(pool: Pool) -> None:
    assert pool.wait(0.0) == []
    assert pool.wait(None) == [], "nothing is being done"
