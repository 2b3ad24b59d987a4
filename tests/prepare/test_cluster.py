"""The same work on a real Ray cluster of several processes, and with a machine of it that dies. Skipped without Ray, which the extra `dev` brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from latentsync.errors import UsageError
from latentsync.prepare.engine import prepare
from tests.conftest import ROOT
from tests.prepare.films import config, film, lines, result, rows, running

ray = pytest.importorskip("ray")


# A machine that is gone is noticed within seconds, not half a minute; one that is only slow has 15 s.
SETTINGS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def patiently(start: Callable[[], Any]) -> Any:
    """Ray gives its helpers 15 s to come up, which may be too little where other work is going on; then once more."""
    try:
        return start()
    except Exception as e:
        if "timed out" not in str(e):
            raise
        return start()


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """A cluster of two machines with a core each, as processes of this one. Its first machine also keeps its books, and is the driver's."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": SETTINGS}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)  # machines inherit it
        cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        patiently(lambda: cluster.add_node(num_cpus=1))
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def processes(machine: Any) -> list[psutil.Process]:
    """Its raylet, and all that runs under it."""
    raylet = psutil.Process(machine.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def footage(tmp_path: Path, **more: Any) -> Path:
    log = tmp_path / "log"
    for i in range(3):
        film(tmp_path / "raw" / f"{i}.mp4", log, fps=25 + i % 2, offset=i, quality=38.0 + 2 * i, **more)
    film(tmp_path / "raw" / "dies.mp4", log, faults={"scenes": "die"})
    (tmp_path / "raw" / "text.mp4").write_text("no film")
    return tmp_path / "raw"


@pytest.mark.slow
def test_a_cluster_gives_what_this_machine_gives(machines: Any, tmp_path: Path) -> None:
    raw = footage(tmp_path)
    prepare(raw, tmp_path / "here", config(), running(1))
    assert sum(node["Resources"].get("CPU", 0) > 0 for node in ray.nodes() if node["Alive"]) > 1
    outcome = prepare(raw, tmp_path / "there", config(), running(0, cluster="auto"))
    assert result(tmp_path / "there") == result(tmp_path / "here")
    assert any("SIGKILL" in note for note in outcome.notes)


@pytest.mark.slow
def test_a_machine_that_dies_takes_nothing_with_it(machines: Any, tmp_path: Path) -> None:
    raw, log = footage(tmp_path, slow=0.1), tmp_path / "log"
    (doomed,) = machines.worker_nodes
    killed: list[int] = []

    def strike() -> bool:
        """As soon as one of its processes is in the middle of a step, all of them are gone at once, as in a power cut."""
        if not killed:
            busy = {int(file.name.removeprefix("busy-")) for file in tmp_path.glob("busy-*")}
            there = processes(doomed)
            if busy & {process.pid for process in there}:
                for process in there:
                    process.kill()
                killed.extend(process.pid for process in there)
        return False

    outcome = prepare(raw, tmp_path / "there", config(), running(2, cluster="auto"), stop=strike)
    machines.remove_node(doomed, allow_graceful=False)  # what is left of it
    assert killed
    assert sum(node["Alive"] for node in ray.nodes()) == 1
    assert all("dies.mp4" in note for note in outcome.notes), "a machine's death is not the file's fault"
    begun = len(lines(log))
    prepare(raw, tmp_path / "here", config(), running(1))
    assert begun > len(lines(log)) - begun, "a step was begun, lost, and begun again elsewhere"
    assert result(tmp_path / "there") == result(tmp_path / "here")
    assert {row["source"] for row in rows(tmp_path / "there") if row["failed"]} == {"dies.mp4"}


def test_ray_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    film(tmp_path / "raw" / "a.mp4", tmp_path / "log")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "latentsync\[cluster\]"'):
        prepare(tmp_path / "raw", tmp_path / "out", config(), running(cluster="auto"))
