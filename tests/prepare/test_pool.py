"""Processes that hang, die and fault, and the pool that outlives them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from latentsync.errors import WeightsError
from latentsync.prepare import flow, work
from latentsync.prepare.config import PrepareConfig, Running
from latentsync.prepare.pool import Done, Handler, Pool, Task, Tell
from latentsync.prepare.records import Span


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


def dealt(running: Running, number: int) -> Handler:
    """Says which process it is, and on which device the real one would work."""
    worker = work.Worker(work.Setting("", PrepareConfig(), running), number)

    def tell(payload: str, _: Tell) -> Any:
        if payload == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return number, worker._device, os.getpid()

    return tell


def test_devices_are_dealt_out_to_the_processes_in_turn() -> None:
    with Pool(f"{__name__}:dealt", Running(devices=("cuda:0", "cuda:1")), 3) as pool:

        def round_of(*payloads: str) -> list[Done]:
            for payload in payloads:
                pool.submit(Task(payload, payload))
            found: list[Done] = []
            while pool.busy:
                found += pool.wait(60)
            return found

        first = sorted(done.value for done in round_of("a", "b", "c"))
        assert [value[:2] for value in first] == [(0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0")]
        assert [done.failure.kind for done in round_of("die") if done.failure] == ["died"]
        again = sorted(done.value for done in round_of("a", "b", "c"))
        assert [value[:2] for value in again] == [value[:2] for value in first], "who takes a dead one's place takes its device"
        assert len({value[2] for value in first} & {value[2] for value in again}) == 2


def test_auto_is_every_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    def device(number: int) -> str:
        span = Span(Fraction(0), Fraction(1))
        given = flow.Given(PrepareConfig(), tmp_path, tmp_path, span, {}, tmp_path, lambda _, make: make(), "auto", "", "", number)
        return flow._device(given)

    monkeypatch.setattr("latentsync.device.choose", lambda *_: SimpleNamespace(device=torch.device("cuda", 0)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [device(n) for n in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    monkeypatch.setattr("latentsync.device.choose", lambda *_: SimpleNamespace(device=torch.device("cpu")))
    assert device(3) == "cpu"


def test_on_a_cluster_all_tasks_find_a_gpu() -> None:
    from latentsync.prepare.cluster import gpu_share

    assert [gpu_share(8, gpus) for gpus in (0.0, 8.0, 16.0, 2.0)] == [0.0, 1.0, 1.0, 0.25]
    for tasks, gpus in ((8, 3), (7, 1), (30, 4)):
        assert int(1 / gpu_share(tasks, gpus)) * gpus >= tasks


def test_waiting_has_an_end(pool: Pool) -> None:
    assert pool.wait(0.0) == []
    assert pool.wait(None) == [], "nothing is being done"
